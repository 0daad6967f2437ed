"""What a container starts, started here: the entrypoint and the dashboard's command, against a real database."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import yaml
from psycopg import sql

from storage import Arm, Axis, Budget, Point, Store, Study
from tests.postgres import Postgres

ROOT = Path(__file__).parents[3]
ENTRYPOINT = ["sh", str(ROOT / "docker-entrypoint.sh")]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PASSWORD = r"with:a\colon and a space"
START_SECONDS = 60.0


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """The password as people write it into a file: with a newline behind it."""
    file = tmp_path / "postgres_password"
    file.write_text(PASSWORD + "\n")
    return file


@pytest.fixture
def store_without_password(postgres: Postgres, store_template: str) -> Iterator[str]:
    """The address of an empty store whose owner `adamom` needs PASSWORD, which the address does not tell."""
    url = postgres.create_database("deployed", template=store_template)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE adamom SUPERUSER LOGIN PASSWORD {}").format(sql.Literal(PASSWORD)))
    yield f"postgresql://adamom@127.0.0.1:{postgres.port}/deployed"
    postgres.drop_database("deployed")
    postgres.execute(sql.SQL("DROP ROLE adamom"))


def environment(**more: str) -> dict[str, str]:
    """Ours, without what would give libpq a password anyway."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "POSTGRES", "ADAMOM"))}
    return {**ours, "HOME": "/nonexistent", **more}


def started(*command: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The command, run by the entrypoint to its end."""
    run = [*ENTRYPOINT, *command]
    return subprocess.run(run, env=environment(**more), capture_output=True, text=True, timeout=60, check=False)


def test_entrypoint_gives_the_password_of_the_secret_to_the_command(secret: Path, store_without_password: str):
    status = (sys.executable, str(ROOT / "cli.py"), "status", "--json", "--store", store_without_password)
    without, given = started(*status), started(*status, POSTGRES_PASSWORD_FILE=str(secret), TMPDIR=str(secret.parent))
    assert (without.returncode, "password" in without.stderr) == (2, True)
    assert (given.returncode, given.stdout.strip()) == (0, "{}"), given.stderr


def test_entrypoint_keeps_the_password_to_its_user_and_leaves_the_umask_alone(secret: Path):
    command = ("sh", "-c", 'echo "$PGPASSFILE"; umask; env')
    umask = subprocess.run(["sh", "-c", "umask"], capture_output=True, text=True, check=True).stdout.strip()
    said = started(*command, POSTGRES_PASSWORD_FILE=str(secret), TMPDIR=str(secret.parent)).stdout.splitlines()
    assert stat.S_IMODE(os.stat(said[0]).st_mode) == 0o600
    assert said[1] == umask
    assert not [line for line in said if PASSWORD in line]


def test_entrypoint_without_a_secret_only_runs_the_command(tmp_path: Path):
    run = started("sh", "-c", 'echo "${PGPASSFILE-none}"', TMPDIR=str(tmp_path))
    assert (run.returncode, run.stdout, list(tmp_path.iterdir())) == (0, "none\n", [])


def test_entrypoint_says_which_secret_it_cannot_read_and_runs_nothing(tmp_path: Path):
    run = started("echo", "ran", POSTGRES_PASSWORD_FILE=str(tmp_path / "absent"))
    assert (run.returncode, run.stdout) == (2, "")
    assert f"cannot read the secret {tmp_path / 'absent'}" in run.stderr


def test_the_dashboard_of_the_compose_file_shows_our_studies(secret: Path, store_without_password: str):
    arm = Arm("sgd 0.9", "sgd", "sgd", 0.9, Axis("lr", (0.1,), log=True))
    study = Study("small", "Does it show?", "digits", Budget(10, 2, 64), (arm,), (0,))
    with Store.open(store_without_password.replace("adamom@", f"adamom:{PASSWORD}@")) as store:
        store.plan(study, [Point("sgd 0.9", 0.1, 0.9, 0)])
    service = COMPOSE["services"]["dashboard"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    here = {service["environment"]["ADAMOM_STORE"]: store_without_password, "0.0.0.0": "127.0.0.1"}
    program = Path(sys.executable).parent / service["entrypoint"][1]
    command = [*ENTRYPOINT, str(program), *(here.get(word, word) for word in service["command"]), "--port", port]
    process = subprocess.Popen(
        command,
        env=environment(POSTGRES_PASSWORD_FILE=str(secret), TMPDIR=str(secret.parent)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert [each["study_name"] for each in studies_at(port, process)] == ["small"]
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def studies_at(port: str, process: subprocess.Popen[bytes]) -> list[dict[str, object]]:
    """What the dashboard's API lists, as soon as it answers."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/studies", headers={"Accept-Encoding": "identity"})
    give_up = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return list(json.load(answer)["study_summaries"])
        except OSError:
            if process.poll() is not None or time.monotonic() > give_up:
                raise
        time.sleep(0.1)


def test_the_entrypoint_is_plain_shell():
    shell = shutil.which("dash") or "sh"
    subprocess.run([shell, "-n", str(ROOT / "docker-entrypoint.sh")], check=True)
