"""The compose file, the image and the page about them agree with each other and with the command line."""

from __future__ import annotations

import fnmatch
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

import cli

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PAGE = (ROOT / "docs" / "deploying.md").read_text()

OURS = {name: service for name, service in SERVICES.items() if name != "postgres"}
ADAMOM = {name: service for name, service in OURS.items() if "entrypoint" not in service and "command" in service}


def parse_command(arguments: list[str]) -> None:
    """Read a command line as `adamom` would, without running it. Raises what click raises for a wrong one."""
    door = typer.main.get_command(cli.app)
    context = door.make_context("adamom", list(arguments))
    name, command, rest = door.resolve_command(context, [*context._protected_args, *context.args])
    command.make_context(name, rest, parent=context)


def interpolated(word: str) -> str:
    """What compose makes of ${NAME:-default} when nobody sets NAME."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word)


def shell_lines(page: str) -> list[str]:
    """The lines of a page's code blocks in a shell, continued lines joined and comments left out."""
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    return [line for line in "\n".join(blocks).replace("\\\n", " ").splitlines() if line and not line.startswith("#")]


# --- the compose file -------------------------------------------------------------------------------------------------


def test_compose_file_is_valid_by_the_compose_specification():
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"]
    run = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_nothing_is_published_beyond_loopback():
    published = {port for service in SERVICES.values() for port in service.get("ports", [])}
    assert {port.split(":")[0] for port in published} == {"127.0.0.1"}
    assert not any(service.get("network_mode") == "host" for service in SERVICES.values())


def test_the_password_is_a_file_and_never_a_value():
    for name, service in SERVICES.items():
        assert service["secrets"] == ["postgres_password"], name
        assert service["environment"]["POSTGRES_PASSWORD_FILE"] == "/run/secrets/postgres_password", name
        assert not [key for key in service["environment"] if "PASSWORD" in key and not key.endswith("_FILE")], name
    assert COMPOSE["secrets"] == {"postgres_password": {"file": "./secrets/postgres_password"}}
    assert re.findall(r"://[^@\s]*:[^@\s]*@", (ROOT / "docker-compose.yml").read_text()) == []


@pytest.mark.parametrize("path", ["secrets/postgres_password", ".env", "reports/digits.html"])
def test_what_a_deployment_leaves_in_the_checkout_is_not_committed(path):
    ignored = subprocess.run(["git", "check-ignore", "--quiet", path], cwd=ROOT, check=False)
    assert ignored.returncode == 0


def test_our_services_run_without_privileges():
    for name, service in OURS.items():
        assert service["user"] == "${ADAMOM_USER:-1000:1000}", name
        assert (service["cap_drop"], service["read_only"]) == (["ALL"], True), name
        assert service["security_opt"] == ["no-new-privileges:true"], name


@pytest.mark.parametrize("name", ADAMOM)
def test_the_command_of_every_service_is_one_the_command_line_knows(name):
    parse_command([interpolated(word) for word in ADAMOM[name]["command"]])


def test_a_command_the_command_line_does_not_know_is_refused():
    with pytest.raises(Exception, match="No such option: --gpu"):
        parse_command(["work", "digits", "--gpu"])


def test_workers_start_after_the_plan_and_the_plan_after_the_database():
    workers = [SERVICES["worker"], SERVICES["worker-gpu"], SERVICES["dashboard"]]
    assert [worker["depends_on"] for worker in workers] == [
        {"plan": {"condition": "service_completed_successfully"}}
    ] * 3
    assert SERVICES["plan"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}


def test_a_worker_that_finds_no_database_starts_again_and_one_that_is_done_does_not():
    assert {SERVICES[name]["restart"] for name in ("plan", "worker", "worker-gpu")} == {"on-failure"}


def test_gpus_are_asked_for_only_in_the_gpu_profile():
    asking = {name: service["profiles"] for name, service in SERVICES.items() if "deploy" in service}
    assert asking == {"worker-gpu": ["gpu"]}
    devices = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]


# --- the image --------------------------------------------------------------------------------------------------------


def let_in(path: str) -> bool:
    """Whether .dockerignore lets this file into the build. It names what may come in, and the last word counts."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    parents = [path, *map(str, Path(path).parents)][:-1]
    allowed = True
    for rule in rules:
        pattern = rule.removeprefix("!")
        anywhere = pattern.startswith("**/")
        names = [Path(parent).name for parent in parents] if anywhere else parents
        if any(fnmatch.fnmatchcase(name, pattern.removeprefix("**/")) for name in names):
            allowed = rule.startswith("!")
    return allowed


def tracked_files() -> list[str]:
    return subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_image_is_built_from_what_the_wheel_is_made_of():
    rooms = ("adamom/", "dashboards/", "storage/", "studies/")
    files = {"cli.py", "docker-entrypoint.sh", "pyproject.toml", "LICENSE", "README.md"}
    entering = {path for path in tracked_files() if let_in(path)}
    assert entering == {path for path in tracked_files() if path.startswith(rooms) or path in files}
    assert files <= entering


@pytest.mark.parametrize(
    "path",
    [".git/config", ".env", ".venv/bin/python", "secrets/postgres_password", "adamom.db", "adamom/__pycache__/sgd.pyc"],
)
def test_no_secret_and_no_leftover_enters_the_image(path):
    assert not let_in(path)


def test_every_file_the_image_copies_is_let_in():
    copied = [line.split()[1] for line in DOCKERFILE.splitlines() if line.startswith("COPY ") and "--from" not in line]
    assert copied == ["pyproject.toml", ".", "docker-entrypoint.sh"]
    assert let_in("pyproject.toml")
    assert let_in("docker-entrypoint.sh")


def test_the_image_runs_as_the_user_of_the_compose_file():
    last_user = re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE)[-1]
    assert interpolated(OURS["worker"]["user"]) == last_user == "1000:1000"


def test_the_entrypoint_may_be_executed():
    mode = subprocess.run(
        ["git", "ls-files", "--stage", "docker-entrypoint.sh"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert mode.startswith("100755")


# --- the page ---------------------------------------------------------------------------------------------------------


CALLED = re.compile(r"^(?:docker compose run --rm (?:adamom|worker-gpu)|(?:.*\bsrun (?:--\S+ )*)?adamom) (.+?)'?$")


def adamom_commands(page: str) -> list[list[str]]:
    """The arguments of every `adamom` on the page, whether called here, by srun or in a container."""
    return [shlex.split(called[1], comments=True) for line in shell_lines(page) if (called := CALLED.match(line))]


def test_the_page_shows_every_act():
    assert {verb for verb, *_ in adamom_commands(PAGE)} == {"plan", "work", "run", "status", "report"}


@pytest.mark.parametrize("arguments", adamom_commands(PAGE), ids=" ".join)
def test_every_adamom_command_on_the_page_is_one_the_command_line_knows(arguments):
    parse_command(arguments)


def test_every_service_and_setting_on_the_page_is_in_the_compose_file():
    compose = [line for line in shell_lines(PAGE) if "docker compose " in line]
    assert len(compose) >= 5
    known = {*SERVICES, "worker=4"}
    for line in compose:
        words = shlex.split(line.partition("docker compose ")[2], comments=True)
        verb = words[0]
        named = [word for word in words[1:] if not word.startswith("-")]
        assert verb in {"up", "run", "logs", "stop", "down", "build"}, line
        assert named == [] or named[0] in known, line
    text = (ROOT / "docker-compose.yml").read_text()
    assert all(f"${{{name}:-" in text for name in re.findall(r"^\| `([A-Z_]+)`", PAGE, re.MULTILINE))
