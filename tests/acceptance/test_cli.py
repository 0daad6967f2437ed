"""The command line as a user meets it: real processes, a real database file, real training."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from typer.testing import CliRunner

import cli
from storage import Store
from tests.postgres import Postgres

SMALL = """
question = "Does the door open?"
workload = "digits"
seeds = 2

[budget]
steps = 42
evaluations = 3
batch_size = 64

[lr]
low = 0.01
high = 1000.0
points = 6

[arms.sgd]
optimizer = "sgd"
momentum = [0.9, "adaptive"]
"""
CELLS = 6 * 2 * 2

# Long enough to be interrupted in the middle.
LONG = SMALL.replace("steps = 42", "steps = 1050")
LONG_CELLS = CELLS


def adamom(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *words],
        cwd=cwd,
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def clean_environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "ADAMOM_STORE"}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def counts(cwd: Path, study: str = "small") -> dict[str, int]:
    answer = adamom("status", study, "--json", cwd=cwd)
    assert answer.returncode == 0, answer.stderr
    found: dict[str, dict[str, int]] = json.loads(answer.stdout)
    return found[study]


def cells_in_optuna(cwd: Path, study: str) -> list[tuple[object, ...]]:
    """What stock Optuna reads: every trial's parameters and state."""
    stored = optuna.load_study(study_name=study, storage=f"sqlite:///{cwd / 'adamom.db'}")
    return sorted((t.params["arm"], t.params["lr"], t.params["seed"], t.state.name) for t in stored.trials)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `adamom run small.toml` has ended."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "small.toml").write_text(SMALL)
    ran = adamom("run", "small.toml", "--workers", "2", cwd=folder)
    assert ran.returncode == 0, ran.stderr
    (folder / "stdout").write_text(ran.stdout)
    (folder / "stderr").write_text(ran.stderr)
    return folder


def test_run_trains_every_cell_and_counts_the_diverged_ones_as_results(finished: Path) -> None:
    found = counts(finished)
    assert found["total"] == found["converged"] + found["diverged"] == CELLS
    assert found["diverged"] >= 4, "a learning rate of 1000 diverges, and that is a result"


def test_run_prints_a_row_for_each_arm_and_where_the_report_is(finished: Path) -> None:
    printed = (finished / "stdout").read_text()
    assert "Does the door open?" in printed
    for arm in ("sgd 0.9", "sgd adaptive"):
        assert re.search(rf"^ *{arm} .* 12 of 12", printed, re.MULTILINE), printed
    assert "Report: report.html" in (finished / "stderr").read_text()
    assert (finished / "report.html").stat().st_size > 100_000


def test_run_again_trains_nothing_and_reports_again(finished: Path) -> None:
    before = optuna_rows(finished)
    again = adamom("run", "small.toml", cwd=finished)
    assert again.returncode == 0, again.stderr
    assert f"0 cells added, {CELLS} were there already" in again.stderr
    assert optuna_rows(finished) == before


def optuna_rows(folder: Path) -> list[tuple[object, ...]]:
    stored = optuna.load_study(study_name="small", storage=f"sqlite:///{folder / 'adamom.db'}")
    return [(t.number, t.value, t.datetime_complete) for t in stored.trials]


def test_status_json_keeps_its_contract(finished: Path) -> None:
    assert set(counts(finished)) == {
        "waiting", "running", "converged", "diverged", "pruned", "lost", "oom", "failed", "total"
    }  # fmt: skip


def test_report_json_agrees_with_what_optuna_reads(finished: Path) -> None:
    answer = adamom("report", "small", "--json", cwd=finished)
    assert answer.returncode == 0, answer.stderr

    def no_nan(word: str) -> float:
        raise AssertionError(f"{word} is not JSON")

    reported = {row["arm"]: row for row in json.loads(answer.stdout, parse_constant=no_nan)["arms"]}
    stored = optuna.load_study(study_name="small", storage=f"sqlite:///{finished / 'adamom.db'}").trials
    means = {arm: mean_losses(stored, arm) for arm in ("sgd 0.9", "sgd adaptive")}
    initial = statistics.median(trial.user_attrs["initial_loss"] for trial in stored)
    tolerance = 0.1 * (initial - min(min(curve.values()) for curve in means.values()))
    for arm, curve in means.items():
        trials = [trial for trial in stored if trial.params["arm"] == arm]
        diverged = {trial.params["lr"] for trial in trials if trial.user_attrs["outcome"] == "diverged"}
        share = sum(trial.user_attrs["outcome"] == "diverged" for trial in trials) / len(trials)
        found = {name: estimate["value"] for name, estimate in reported[arm]["metrics"].items()}
        best = min(curve, key=lambda lr: curve[lr])
        start = max(lr for lr in curve if lr <= best and lr not in diverged)
        stable = [lr for lr in curve if lr >= start and not any(start < bad <= lr for bad in diverged)]
        assert reported[arm]["best_lr"] == best
        assert found["best_loss"] == pytest.approx(curve[best], rel=1e-5)
        assert found["sensitivity"] == pytest.approx(statistics.mean(curve.values()) - curve[best], rel=1e-5)
        assert found["largest_stable_lr"] == pytest.approx(max(stable), rel=1e-5)
        assert found["basin"] == pytest.approx(basin(curve, best, curve[best] + tolerance), abs=0.01)
        assert found["diverged"] == pytest.approx(share)
        assert sorted(reported[arm]["trials"]) == sorted(trial._trial_id for trial in trials)


def mean_losses(trials: list[optuna.trial.FrozenTrial], arm: str) -> dict[float, float]:
    """The mean loss over seeds at each learning rate, ascending."""
    mine = [trial for trial in trials if trial.params["arm"] == arm]
    rates = sorted({trial.params["lr"] for trial in mine})
    return {lr: statistics.mean(trial.value for trial in mine if trial.params["lr"] == lr) for lr in rates}


def basin(curve: dict[float, float], best: float, level: float) -> float:
    """Decades around the best rate with a loss up to the level, crossing between grid points in log space."""
    rates, ends = list(curve), []
    for step in (-1, 1):
        at = rates.index(best)
        while 0 <= at + step < len(rates) and curve[rates[at + step]] <= level:
            at += step
        end = math.log10(rates[at])
        if 0 <= at + step < len(rates):
            here, there = curve[rates[at]], curve[rates[at + step]]
            end += (level - here) / (there - here) * math.log10(rates[at + step] / rates[at])
        ends.append(end)
    return ends[1] - ends[0]


def test_plan_extends_a_grid_and_adds_only_what_is_new(tmp_path: Path) -> None:
    study = tmp_path / "small.toml"
    study.write_text(SMALL)
    assert f"small: {CELLS} cells would be added" in adamom("plan", "small.toml", "--dry-run", cwd=tmp_path).stdout
    assert not (tmp_path / "adamom.db").exists(), "a dry run writes nothing"
    assert f"{CELLS} cells added, 0" in adamom("plan", "small.toml", cwd=tmp_path).stdout
    study.write_text(SMALL.replace("seeds = 2", "seeds = 3").replace('[0.9, "adaptive"]', '[0.5, 0.9, "adaptive"]'))
    assert f"{6 * 3 * 3 - CELLS} cells added, {CELLS} were" in adamom("plan", "small.toml", cwd=tmp_path).stdout
    assert len(set(cells_in_optuna(tmp_path, "small"))) == 6 * 3 * 3


def test_a_changed_budget_is_another_study_and_is_refused(tmp_path: Path) -> None:
    study = tmp_path / "small.toml"
    study.write_text(SMALL)
    adamom("plan", "small.toml", cwd=tmp_path)
    study.write_text(SMALL.replace("steps = 42", "steps = 84"))
    refused = adamom("plan", "small.toml", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "steps" in refused.stderr
    assert "Try:" in refused.stderr


def test_work_stops_after_max_trials_and_another_worker_ends_the_study(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    adamom("plan", "small.toml", cwd=tmp_path)
    some = adamom("work", "small", "--max-trials", "5", "--lanes", "4", cwd=tmp_path)
    assert (some.returncode, some.stdout) == (0, "small: 5 trials finished here.\n"), some.stderr
    assert counts(tmp_path)["waiting"] == CELLS - 5
    rest = adamom("work", "small", "--lanes", "1", cwd=tmp_path)
    assert (rest.returncode, rest.stdout) == (0, f"small: {CELLS - 5} trials finished here.\n"), rest.stderr


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`adamom run` of a long study, some cells of which are finished."""
    (tmp_path / "long.toml").write_text(LONG)
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "run", "long.toml", "--workers", "2", "--lanes", "2"],
        cwd=tmp_path, env=clean_environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (tmp_path / "adamom.db").exists() or not 0 < finished_cells(tmp_path) < LONG_CELLS:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing was finished in two minutes"
        time.sleep(0.2)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def finished_cells(folder: Path) -> int:
    answer = adamom("status", "long", "--json", cwd=folder)
    if answer.returncode:
        return 0  # not planned yet
    found = json.loads(answer.stdout)["long"]
    return int(found["converged"] + found["diverged"])


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The worker processes: those of its children that train."""
    children = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(process.pid)], capture_output=True, text=True
    )
    return [int(line.split()[0]) for line in children.stdout.splitlines() if "spawn_main" in line]


def assert_whole(folder: Path) -> None:
    """Every cell of the long study is there once, and complete."""
    cells = cells_in_optuna(folder, "long")
    assert len(cells) == len({cell[:3] for cell in cells}) == LONG_CELLS
    assert {cell[3] for cell in cells} == {"COMPLETE"}


def test_ctrl_c_gives_back_what_was_running_and_the_next_run_goes_on(
    running: subprocess.Popen[str], tmp_path: Path
) -> None:
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert "the same command goes on from here" in said
    assert "Traceback" not in said
    found = counts(tmp_path, "long")
    assert found["running"] == found["lost"] == found["failed"] == 0
    assert 0 < found["waiting"] < LONG_CELLS
    done = dict.fromkeys(number for number, value, _ in rows(tmp_path) if value is not None)
    again = adamom("run", "long.toml", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert_whole(tmp_path)
    assert done.keys() <= {number for number, _, _ in rows(tmp_path)}


def rows(folder: Path) -> list[tuple[int, float | None, object]]:
    stored = optuna.load_study(study_name="long", storage=f"sqlite:///{folder / 'adamom.db'}")
    return [(t.number, t.value, t.datetime_complete) for t in stored.trials]


def test_a_killed_worker_is_replaced_and_no_cell_is_lost(running: subprocess.Popen[str], tmp_path: Path) -> None:
    os.kill(workers_of(running)[0], signal.SIGKILL)
    _, said = running.communicate(timeout=240)
    assert running.returncode == 0, said
    assert "was killed by signal 9: starting another" in said
    assert_whole(tmp_path)


def test_after_kill_9_of_everything_the_same_command_goes_on_at_once(
    running: subprocess.Popen[str], tmp_path: Path
) -> None:
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate(timeout=60)
    kept = {row for row in rows(tmp_path) if row[1] is not None}
    assert kept
    again = adamom("run", "long.toml", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert_whole(tmp_path)
    assert kept <= set(rows(tmp_path)), "what was finished before the kill is not trained again"


def test_run_on_postgresql_gives_the_losses_of_the_embedded_store(
    finished: Path, tmp_path: Path, postgres_url: str
) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    ran = adamom("run", "small.toml", cwd=tmp_path, ADAMOM_STORE=postgres_url)
    assert ran.returncode == 0, ran.stderr
    assert not (tmp_path / "adamom.db").exists()
    on_server = optuna.load_study(
        study_name="small", storage=postgres_url.replace("postgresql://", "postgresql+psycopg://")
    )
    embedded = optuna.load_study(study_name="small", storage=f"sqlite:///{finished / 'adamom.db'}")
    outcomes = [[t.user_attrs["outcome"] for t in study.trials] for study in (on_server, embedded)]
    assert outcomes[0] == outcomes[1]
    for there, here in zip(on_server.trials, embedded.trials, strict=True):
        if here.params["lr"] < 0.2:  # beyond, rounding decides where a trial ends up
            assert there.value == pytest.approx(here.value, rel=1e-4)


def test_a_database_that_restarts_in_the_middle_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "long.toml").write_text(LONG)
    with Postgres.start() as server:
        url = server.create_database("restarted")
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "run", "long.toml", "--workers", "2", "--lanes", "2"],
            cwd=tmp_path, env=clean_environment() | {"ADAMOM_STORE": url}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        with Store.open(url) as store:
            while "long" not in store.studies() or not 0 < store.counts("long").finished < LONG_CELLS:
                assert process.poll() is None, process.communicate()
                time.sleep(0.1)
        server.stop()
        time.sleep(2)
        server.run()
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said
        assert "Trying again in" in said
        with Store.open(url) as store:
            counts = store.counts("long")
            assert counts.converged + counts.diverged == counts.total == LONG_CELLS


def test_a_wrong_password_is_one_clear_line(tmp_path: Path, postgres_url: str) -> None:
    wrong = re.sub(r"://([^:]+):[^@]+@", r"://\1:wrong@", postgres_url)
    answer = adamom("status", "--store", wrong, cwd=tmp_path)
    assert answer.returncode == 2
    assert "password" in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


def test_a_mistake_in_a_real_process_is_one_line_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(SMALL.replace('"sgd"', '"sgdd"'))
    answer = adamom("run", "bad.toml", cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == (
        "adamom: bad.toml, [arms.sgd]: unknown optimizer 'sgdd'. Known: adam, adamw, sgd. Did you mean 'sgd'?\n"
    )


def test_status_of_an_unknown_study_names_the_known_ones(finished: Path) -> None:
    answer = adamom("status", "smal", cwd=finished)
    assert answer.returncode == 2
    assert "'smal'" in answer.stderr
    assert "small" in answer.stderr


def test_studies_lists_every_shipped_study_with_its_question(tmp_path: Path) -> None:
    answer = adamom("studies", cwd=tmp_path)
    shipped = [path.stem for path in (Path(__file__).parents[2] / "studies" / "catalog").glob("*.toml")]
    assert answer.returncode == 0
    assert sorted(line.split()[0] for line in answer.stdout.splitlines()) == sorted(shipped)
    assert "digits" in shipped
    assert all(line.rstrip().endswith("?") for line in answer.stdout.splitlines())


def inside(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    """A command in this process: as real as in another, and without waiting for torch again."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("ADAMOM_STORE", raising=False)
    return CliRunner().invoke(cli.app, words)


def test_a_report_can_be_written_again_without_the_store(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept.json").write_bytes((finished / "report.json").read_bytes())
    again = inside(tmp_path, monkeypatch, "report", "--from", "kept.json")
    assert again.exit_code == 0, again.stderr
    assert (tmp_path / "report.html").read_bytes() == (finished / "report.html").read_bytes()
    assert not (tmp_path / "adamom.db").exists()


def test_arms_are_compared_with_the_baseline_that_was_asked_for(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "comparison.html"
    answer = inside(finished, monkeypatch, "compare", "small", "--baseline", "sgd 0.9", "--out", str(page))
    assert answer.exit_code == 0, answer.stderr
    assert "sgd adaptive: basin" in answer.stdout
    assert page.stat().st_size > 100_000
    unknown = inside(finished, monkeypatch, "compare", "small", "--baseline", "sgd 0.8")
    assert (unknown.exit_code, unknown.stdout) == (2, "")
    assert "Its arms: sgd 0.9, sgd adaptive" in unknown.stderr


@pytest.mark.parametrize("form", ["parquet", "csv", "json"])
def test_an_exported_study_gives_the_same_report_from_another_store(
    form: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / f"trials.{form}"
    assert inside(finished, monkeypatch, "export", "small", "--to", str(file)).exit_code == 0
    brought = inside(tmp_path, monkeypatch, "import", file.name)
    assert brought.exit_code == 0, brought.stderr
    assert brought.stdout == f"trials.{form}: {CELLS} cells added, {CELLS} results brought.\n"
    here, there = (inside(folder, monkeypatch, "report", "small", "--json") for folder in (tmp_path, finished))
    assert json.loads(here.stdout)["arms"] == json.loads(there.stdout)["arms"]


def test_doctor_says_what_there_is_and_what_to_do(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    well = inside(finished, monkeypatch, "doctor")
    assert well.exit_code == 0, well.stdout
    assert "database: reachable, SQLite" in well.stdout
    assert "device: cpu" in well.stdout
    ill = inside(tmp_path, monkeypatch, "doctor", "--store", "postgresql://nobody@127.0.0.1:1/none")
    assert ill.exit_code == 1
    assert "Is it up?" in ill.stdout


def test_retry_says_how_many_cells_are_in_the_queue_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    none = inside(finished, monkeypatch, "retry", "small", "--failed", "--oom")
    assert (none.exit_code, none.stdout) == (0, "small: 0 cells are in the queue again. Try: adamom work small\n")
