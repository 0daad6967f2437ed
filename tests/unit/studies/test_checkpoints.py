"""A trial that was interrupted ends as it would have ended uninterrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch

from storage.records import Curve, Outcome, Result, Study, Trial
from studies import lanes, spec, training
from studies.checkpoints import Checkpoints, curve_from, curve_state
from studies.grid import points
from studies.training import Event

CPU = torch.device("cpu")
Engine = Callable[[list[Trial], Study, Checkpoints | None], Iterator[tuple[Trial, Event]]]

TEXT = """
question = "Does it go on?"
workload = "{workload}"
seeds = 1

[budget]
steps = 12
evaluations = 4
batch_size = 32

[lr]
values = [0.003, 0.03, 1e6]

[arms.sgd]
optimizer = "sgd"
nesterov = false
momentum = [
    0.0, 0.9, "adaptive", {{ rule = "adaptive", smoothing = 0.99 }}, {{ rule = "adaptive", scope = "tensor" }},
    "normalized_heavy_ball", "conjugate_gradient", "learning_rate_scaled", "adaptive_memory",
]

[arms.adam]
optimizer = "adam"
momentum = [0.9, "adaptive", {{ rule = "adaptive", metric = "preconditioned" }}]

[arms.amsgrad]
optimizer = "adamw"
amsgrad = true
momentum = 0.9
"""


def study_of(workload: str) -> Study:
    return spec.parse(TEXT.format(workload=workload), where="here", name=workload)


def trials_of(study: Study) -> list[Trial]:
    return [Trial(i, i, point, Outcome.RUNNING, 1) for i, point in enumerate(points(study))]


def in_lanes(trials: list[Trial], study: Study, checkpoints: Checkpoints | None) -> Iterator[tuple[Trial, Event]]:
    return lanes.train(trials, study, CPU, checkpoints)


def alone(trials: list[Trial], study: Study, checkpoints: Checkpoints | None) -> Iterator[tuple[Trial, Event]]:
    for trial in trials:
        for event in training.train(trial.point, study, CPU, checkpoints):
            yield trial, event


def ended(events: Iterator[tuple[Trial, Event]]) -> dict[int, tuple[Curve, tuple[object, ...]]]:
    """What each trial measured and how it ended, without what depends on the clock."""
    curves: dict[int, list[Curve]] = {}
    results: dict[int, tuple[object, ...]] = {}
    for trial, event in events:
        if isinstance(event, Curve):
            curves.setdefault(trial.id, []).append(event)
        elif isinstance(event, Result):
            results[trial.id] = (event.outcome, event.steps, repr(event.final_loss), event.diverged_at)
    return {trial_id: (Curve.join(curves[trial_id]), results[trial_id]) for trial_id in results}


def interrupted(engine: Engine, trials: list[Trial], study: Study, folder: Path, at: int) -> None:
    """Train until each trial has been evaluated `at` times, saving after every evaluation, and stop dead."""
    checkpoints = Checkpoints(folder, every_seconds=0)
    seen = 0
    for _, event in engine(trials, study, checkpoints):
        seen += isinstance(event, Curve)
        if event is None and seen >= at * len(trials):
            return


@pytest.mark.parametrize("workload", ["digits", "digits-resnet", "chars-gpt"])
def test_lanes_that_go_on_end_to_the_bit_as_uninterrupted_ones(workload: str, tmp_path: Path) -> None:
    study = study_of(workload)
    trials = [trial for trial in trials_of(study) if trial.point.lr < 1]
    if workload != "digits":
        trials = trials[4:10]
    whole = ended(in_lanes(trials, study, None))
    interrupted(in_lanes, trials, study, tmp_path, at=3)
    assert len(list(tmp_path.iterdir())) == len(trials)
    assert ended(in_lanes(trials, study, Checkpoints(tmp_path))) == whole


def test_lanes_go_on_in_other_company_and_from_different_steps(tmp_path: Path) -> None:
    study = study_of("digits")
    trials = [trial for trial in trials_of(study) if trial.point.lr < 1]
    whole = ended(in_lanes(trials, study, None))
    interrupted(in_lanes, trials[:5], study, tmp_path, at=2)
    interrupted(in_lanes, trials[5:12], study, tmp_path, at=3)
    shuffled = [*trials[10:], *trials[:10]]
    assert ended(in_lanes(shuffled, study, Checkpoints(tmp_path))) == whole


@pytest.mark.parametrize("workload", ["digits", "chars-gpt"])
def test_a_plain_loop_that_goes_on_ends_to_the_bit_as_an_uninterrupted_one(workload: str, tmp_path: Path) -> None:
    study = study_of(workload)
    for _, of_arm in groupby(trials_of(study), key=lambda trial: trial.point.arm):
        one = [trial for trial in of_arm if trial.point.lr == 0.03]
        whole = ended(alone(one, study, None))
        interrupted(alone, one, study, tmp_path, at=3)
        assert ended(alone(one, study, Checkpoints(tmp_path))) == whole


def test_only_the_steps_that_are_missing_are_trained(tmp_path: Path) -> None:
    study = study_of("digits")
    trials = trials_of(study)[:1]
    interrupted(alone, trials, study, tmp_path, at=3)
    steps = sum(event is None for _, event in alone(trials, study, Checkpoints(tmp_path)))
    assert steps == 6, "two of four evaluations were behind it"


def test_a_checkpoint_of_one_engine_is_no_checkpoint_of_another(tmp_path: Path) -> None:
    study = study_of("digits")
    trials = trials_of(study)[:2]
    interrupted(in_lanes, trials, study, tmp_path, at=3)
    assert ended(alone(trials, study, Checkpoints(tmp_path))) == ended(alone(trials, study, None))


def test_a_damaged_file_is_said_and_the_trial_starts_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    study = study_of("digits")
    trials = trials_of(study)[:1]
    interrupted(alone, trials, study, tmp_path, at=3)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert ended(alone(trials, study, Checkpoints(tmp_path))) == ended(alone(trials, study, None))
    assert "starting anew" in caplog.text


@pytest.mark.parametrize("engine", [alone, in_lanes], ids=["loop", "lanes"])
def test_a_file_that_lacks_what_a_trial_needs_costs_no_trial(
    engine: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = study_of("digits")
    trials = trials_of(study)[:1]
    interrupted(engine, trials, study, tmp_path, at=3)
    (file,) = tmp_path.iterdir()
    whole = torch.load(file, weights_only=True)
    torch.save({name: whole[name] for name in ("format", "engine", "step")}, file)
    assert ended(engine(trials, study, Checkpoints(tmp_path))) == ended(engine(trials, study, None))
    assert "holds no checkpoint" in caplog.text


def test_a_folder_that_cannot_be_written_is_said_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    study = study_of("digits")
    trials = trials_of(study)[:1]
    there = ended(alone(trials, study, Checkpoints(tmp_path / "file" / "folder", every_seconds=0)))
    assert there == ended(alone(trials, study, None))
    assert "starts anew" in caplog.text


def test_what_a_killed_worker_was_writing_is_removed_by_the_next_owner_of_the_cell(tmp_path: Path) -> None:
    study = study_of("digits")
    mine, other = (Checkpoints(tmp_path).path(study, trial.point) for trial in trials_of(study)[:2])
    for abandoned in (mine, other):
        abandoned.with_suffix(".1.part").touch()
    point, state = trials_of(study)[0].point, {"step": 1, "curve": {}}
    Checkpoints(tmp_path).save(study, {point: state}, "loop")
    assert sorted(tmp_path.iterdir()) == sorted([mine, other.with_suffix(".1.part")])
    mine.with_suffix(".2.part").touch()
    Checkpoints(tmp_path).drop(study, point)
    assert list(tmp_path.iterdir()) == [other.with_suffix(".1.part")]


def test_a_study_with_another_budget_does_not_go_on_from_here(tmp_path: Path) -> None:
    study, longer = study_of("digits"), spec.parse(
        TEXT.format(workload="digits").replace("steps = 12", "steps = 24"), where="here", name="digits"
    )  # fmt: skip
    point = trials_of(study)[0].point
    assert Checkpoints(tmp_path).path(study, point) != Checkpoints(tmp_path).path(longer, point)


def test_a_curve_survives_being_taken_apart() -> None:
    curve = Curve.join([Curve.entry(0, float("nan"), 2.3, 0.1, float("nan")), Curve.entry(3, 2.2, 2.1, 0.2, 0.5)])
    assert curve_from(curve_state(curve)) == curve
