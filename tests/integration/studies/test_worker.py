"""A worker against a real store, on both databases: trials that raise, do not fit, or are taken away."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from storage import Counts, Outcome, Result, Store, Study
from studies import calibration, lanes, spec, workloads
from studies.grid import points
from studies.plan import plan
from studies.worker import Worker, dead, worker_name
from studies.workloads import workload as registry
from studies.workloads.digits import splits

CPU = torch.device("cpu")

TEXT = """
question = "What does the worker do?"
workload = "{workload}"
seeds = 2

[budget]
steps = 6
evaluations = 2
batch_size = 32

[lr]
values = [0.01, 0.1, 1e8]

[arms.sgd]
optimizer = "sgd"
momentum = [0.9, "adaptive"]
"""
CELLS = 3 * 2 * 2


def planned(store: Store, workload: str = "digits", text: str = TEXT) -> Study:
    study = spec.parse(text.format(workload=workload), where="here", name="study")
    plan(store, study)
    return study


class Raises(nn.Module):
    """Fails while it trains, as a workload with a bug in it does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            raise IndexError("the workload has a bug")
        return self.layer(images)


@pytest.fixture
def workload_that_raises(monkeypatch: pytest.MonkeyPatch) -> str:
    train, validation = splits()
    broken = workloads.Workload("broken", "raises", Raises, train, validation, good_accuracy=0.9)
    monkeypatch.setitem(registry.WORKLOADS, "broken", "nowhere")
    load = workloads.load
    monkeypatch.setattr(workloads, "load", lambda name: broken if name == "broken" else load(name))
    return "broken"


def test_every_cell_is_trained_and_a_diverged_one_is_a_result(store: Store) -> None:
    study = planned(store)
    assert Worker(store, study, CPU, lanes=8).work() == CELLS
    counts = store.counts("study")
    assert counts.total == counts.converged + counts.diverged == CELLS
    diverged = {trial.point.lr for trial in store.trials("study") if trial.outcome is Outcome.DIVERGED}
    assert diverged == {1e8}


def test_every_trial_keeps_its_whole_curve(store: Store) -> None:
    study = planned(store)
    Worker(store, study, CPU, lanes=5).work()
    curves = store.curves("study")
    for trial in store.trials("study"):
        assert trial.result is not None
        steps = curves[trial.id].steps.tolist()
        assert steps == [0, 3, 6][: len(steps)]
        assert steps[-1] == trial.result.steps


def test_code_that_raises_fails_its_trials_with_a_traceback_and_ends(store: Store, workload_that_raises: str) -> None:
    study = planned(store, workload_that_raises)
    assert Worker(store, study, CPU, lanes=4).work() == 0
    assert store.counts("study") == Counts(failed=CELLS)
    for trial in store.trials("study"):
        assert trial.attempt == 3, "tried once, and twice again"
        assert trial.result is not None
        assert "IndexError: the workload has a bug" in str(trial.result.error)
    assert store.retry("study", [Outcome.FAILED]) == CELLS
    assert store.counts("study") == Counts(waiting=CELLS)


def test_a_pack_that_does_not_fit_is_split_until_it_does(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    advance = lanes.Pack.advance

    def advance_of_a_small_device(pack: lanes.Pack, to: int) -> Iterator[None]:
        widths.append(len(pack.live))
        if len(pack.live) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return advance(pack, to)

    monkeypatch.setattr(lanes.Pack, "advance", advance_of_a_small_device)
    worker = Worker(store, planned(store), CPU, lanes=CELLS)
    assert worker.work() == CELLS
    assert [width for width in widths if width > 3] == [12, 6], "what did not fit once is not tried again"
    assert worker.width == 3, "the next packs are claimed at a size that fits"
    assert store.counts("study").oom == 0


def test_what_does_not_fit_even_alone_is_a_result_of_its_own(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def advance_of_a_tiny_device(pack: lanes.Pack, to: int) -> Iterator[None]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(lanes.Pack, "advance", advance_of_a_tiny_device)
    Worker(store, planned(store), CPU, lanes=4).work(max_trials=4)
    trials = [trial for trial in store.trials("study") if trial.outcome is Outcome.OOM]
    assert len(trials) == 4
    assert all("out of memory" in str(trial.result and trial.result.error) for trial in trials)


def test_a_worker_told_to_stop_gives_everything_back(store: Store) -> None:
    asked = iter([False] * 6 + [True] * 1000)
    worker = Worker(store, planned(store), CPU, lanes=8, stopped=lambda: next(asked))
    assert worker.work() == 0
    assert store.counts("study") == Counts(waiting=CELLS)
    assert worker.held == {}


def test_a_trial_that_another_worker_has_taken_over_is_let_go(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    study = planned(store)
    worker = Worker(store, study, CPU, lanes=4)
    (lost, *_) = worker.claim(4)
    assert store.bury("study", worker.name) == 4
    assert [trial.id for trial in store.claim("study", 1, worker="another")] == [lost.id]
    worker.train(tuple(worker.held.values()), in_lanes=True)
    worker.record()
    assert worker.held == {}
    assert "lost the lease" in caplog.text
    assert store.counts("study").running == 1, "the other worker still has it"


def test_a_full_disk_ends_a_worker_with_one_line_and_loses_nothing_recorded(tmp_path: Path) -> None:
    """No file may grow any more: what a full disk is to a process that writes one."""
    file = tmp_path / "adamom.db"
    url = f"sqlite:///{file}"
    with Store.open(url) as store:
        study = planned(store, text=TEXT.replace("seeds = 2", "seeds = 20"))
    limit = file.stat().st_size + 2**16
    words = [sys.executable, "-m", "cli", "work", "study", "--store", url, "--lanes", "1", "--device", "cpu"]
    full = subprocess.run(
        words,
        cwd=Path(__file__).parents[3],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert full.returncode == 2
    assert full.stderr.count("\n") == 1, full.stderr
    assert f"Make room where {file} lives; everything recorded so far is safe." in full.stderr
    with Store.open(url) as store:
        before = {trial.number: repr(trial.result) for trial in store.trials("study") if trial.result}
        assert 0 < len(before) < 10 * CELLS
        (holder,) = store.holders("study")
        store.bury("study", holder)
        Worker(store, study, CPU, lanes=32).work()
        after = {trial.number: repr(trial.result) for trial in store.trials("study")}
        assert len(after) == 10 * CELLS
        assert {number: after[number] for number in before} == before


def test_a_worker_learns_of_arms_that_were_added_while_it_worked(store: Store) -> None:
    study = planned(store)
    worker = Worker(store, study, CPU, lanes=4)
    planned(store, text=TEXT.replace("[0.9,", "[0.5, 0.9,"))
    assert worker.work() == CELLS + 6


def test_optimizers_of_other_libraries_train_beside_ours(store: Store) -> None:
    text = TEXT + '\n[arms.rms]\noptimizer = "torch.optim.RMSprop"\n\n[arms.rem]\noptimizer = "adamom.AdaRem"\n'
    study = planned(store, text=text)
    assert study.arm_names[-2:] == ("rms", "rem")
    assert Worker(store, study, CPU, lanes=64).work() == CELLS + 12
    engines = {
        trial.point.arm: trial.result.provenance["engine"]
        for trial in store.trials("study")
        if trial.result is not None
    }
    assert (engines["sgd 0.9"], engines["rms"], engines["rem"]) == ("lanes 12, compiled", "loop", "loop")


def test_a_plain_loop_and_lanes_agree(store: Store) -> None:
    planned(store)
    study = store.study("study")
    Worker(store, study, CPU, lanes=1).work(max_trials=4)
    alone = {trial.point.key: trial.result for trial in store.trials("study") if trial.result}
    packed = {}
    for trial, event in lanes.train(store.trials("study")[:4], study, CPU):
        if isinstance(event, Result):
            packed[trial.point.key] = event
    assert len(alone) == 4
    for key, result in alone.items():
        assert result is not None
        assert packed[key].outcome is result.outcome
        assert packed[key].final_loss == pytest.approx(result.final_loss, rel=1e-4)


def test_calibration_chooses_lanes_for_the_perceptron_and_the_loop_where_lanes_cannot_be(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    study = spec.load("digits")
    monkeypatch.setattr(calibration, "WIDTHS", {"cpu": (32,)})
    assert calibration.calibrate(study, CPU).lanes == 32

    def cannot(*_: object) -> None:
        raise RuntimeError("vmap does not know this operation")

    monkeypatch.setattr(calibration, "Pack", cannot)
    assert calibration.calibrate(study, CPU).lanes == 1
    assert "vmap does not know this operation" in caplog.text


def test_only_workers_of_this_machine_that_are_gone_are_dead() -> None:
    assert not dead(worker_name())
    assert dead(worker_name(2**22 + 1))  # beyond the largest process id of Linux
    assert not dead("elsewhere:1")


def test_a_grid_lists_every_cell_once_in_the_order_of_its_arms() -> None:
    study = spec.parse(TEXT.format(workload="digits"), where="here", name="study")
    cells = list(points(study))
    assert len({cell.key for cell in cells}) == len(cells) == CELLS
    assert [cell.key for cell in cells[:3]] == [
        "sgd 0.9|lr=0.01|seed=0",
        "sgd 0.9|lr=0.01|seed=1",
        "sgd 0.9|lr=0.1|seed=0",
    ]
