"""The battery of every workload: a lane gives what its trial gives alone, whoever trains beside it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from storage.records import Axis, Budget, Curve, Outcome, Point, Result, Study, Trial
from studies import arms, calibration, catalog, lanes, native, spec, training, workloads
from studies.calibration import calibrate
from studies.checkpoints import Checkpoints

CPU = torch.device("cpu")
UNSAVED = Checkpoints(Path("no such folder"), every_seconds=math.inf)


@dataclass(frozen=True)
class Run:
    """What a trial had to say."""

    curve: Curve
    result: Result


# How many steps of a stable run are compared, and how often they are looked at.
STEPS = {
    "digits": (100, 20),
    "digits-cnn": (100, 10),
    "digits-resnet": (100, 10),
    "chars-lstm": (100, 4),
    "chars-gpt": (100, 4),
}

# Relative. Models of matrix products stay within a few roundings. A convolution of many lanes adds up in another order
# than one alone, and once rounding has tipped a ReLU or a maximum the other way, the two runs are not the same to 1e-5.
CONVOLUTIONS = {"digits-cnn", "digits-resnet"}
TOLERANCE = dict.fromkeys(STEPS, 1e-4) | dict.fromkeys(CONVOLUTIONS, 1e-2)

ABSURD = 1e37  # a learning rate at which the loss is soon not finite


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=[*catalog.shipped(), "digits, not compiled"])
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name, _, not_compiled = request.param.partition(", ")
    if not_compiled:
        monkeypatch.setattr(native, "compiled", lambda *program: None)
    return str(name)


@cache
def study(name: str, steps: int, evaluations: int = 1) -> Study:
    """A shipped study, with a smaller budget."""
    shipped = spec.load(name)
    return replace(shipped, budget=Budget(steps, evaluations, shipped.budget.batch_size))


def stable_rate(study: Study, arm: str) -> float:
    """A learning rate at which the arm learns without haste, so that rounding errors do not grow into differences."""
    chosen = study.arm(arm)
    return 1e-3 if chosen.damped else 0.03 * (1 - (chosen.momentum or 0.0))


def trials(points: Sequence[tuple[str, float, int]]) -> list[Trial]:
    """Running trials at these (arm, learning rate, seed)."""
    return [
        Trial(i, i, Point(arm, lr, None, seed), Outcome.RUNNING, attempt=1) for i, (arm, lr, seed) in enumerate(points)
    ]


def together(study: Study, points: Sequence[tuple[str, float, int]]) -> list[Run]:
    """The runs of these trials as one pack, in their order."""
    curves: dict[int, list[Curve]] = {}
    results: dict[int, Result] = {}
    for trial, event in lanes.train(trials(points), study, CPU, UNSAVED):
        if isinstance(event, Curve):
            assert trial.id not in results, "a trial that has ended has nothing more to say"
            curves.setdefault(trial.id, []).append(event)
        elif isinstance(event, Result):
            results[trial.id] = event
    return [Run(Curve.join(curves[i]), results[i]) for i in range(len(points))]


def alone(study: Study, point: tuple[str, float, int]) -> Run:
    """The run of this trial by the plain loop."""
    events = list(training.train(trials([point])[0].point, study, CPU))
    return Run(Curve.join([event for event in events if isinstance(event, Curve)]), events[-1])


def assert_close(ours: Run, theirs: Run, tolerance: float) -> None:
    for column in ("train_loss", "validation_loss", "momentum"):
        a, b = getattr(ours.curve, column), getattr(theirs.curve, column)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance / 10, err_msg=column)
    assert ours.result.outcome == theirs.result.outcome
    assert ours.result.steps == theirs.result.steps
    assert ours.result.diverged_at == theirs.result.diverged_at
    assert ours.result.final_loss == pytest.approx(theirs.result.final_loss, rel=tolerance, nan_ok=True)


def assert_equal(ours: Run, theirs: Run) -> None:
    """To the bit, except for the time it took and what it ran on."""
    assert ours.curve == theirs.curve
    same = {"seconds": 0.0, "provenance": {}}
    assert repr(replace(ours.result, **same)) == repr(replace(theirs.result, **same))  # nan is equal to nan


def test_a_lane_gives_what_the_trial_gives_alone(name: str):
    small = study(name, *STEPS[name])
    points = [(arm, stable_rate(small, arm), 1) for arm in small.arm_names]
    for point, run in zip(points, together(small, points), strict=True):
        by_itself = alone(small, point)
        assert_close(run, by_itself, TOLERANCE[name])
        assert by_itself.curve.validation_loss[-1] < by_itself.curve.validation_loss[0], "the run is meant to be stable"


def test_lanes_of_one_arm_have_their_own_seeds(name: str):
    small, arm = study(name, 4, 2), "sgd 0.9"
    points = [(arm, 0.01, seed) for seed in (0, 1, 7, 0)]
    runs = together(small, points)
    for point, run in zip(points[:3], runs[:3], strict=True):
        assert_close(run, alone(small, point), TOLERANCE[name])
    assert_equal(runs[0], runs[3])
    losses = {float(run.curve.validation_loss[-1]) for run in runs}
    assert len(losses) == 3, "a seed that changes nothing is no seed"


PACK = [("sgd 0.9", 0.01, 0), ("adam adaptive", 1e-3, 1), ("sgd adaptive", 0.1, 2), ("adam 0.9", 1e-3, 3)]
SICK_PACK = [("sgd 0.9", ABSURD, 0), *PACK[1:3], ("adam 0.9", ABSURD, 3)]


def test_a_lane_that_goes_to_nan_changes_no_other_lane_by_a_bit(name: str):
    small = study(name, 4)  # looked at only in the end: until then the sick lanes stay in the pack
    healthy, sick = together(small, PACK), together(small, SICK_PACK)
    assert [run.result.outcome for run in sick[::3]] == [Outcome.DIVERGED] * 2
    for ours, theirs in zip(sick[1:3], healthy[1:3], strict=True):
        assert_equal(ours, theirs)


def test_a_pack_that_leaves_ended_lanes_behind_changes_nothing_for_the_others(name: str):
    small = study(name, 8, 4)
    healthy, sick = together(small, PACK), together(small, SICK_PACK)
    assert min(run.result.steps for run in sick) < 8, "nobody was left behind"
    for ours, theirs in zip(sick[1:3], healthy[1:3], strict=True):
        if name in CONVOLUTIONS:  # an algorithm is chosen for each width
            assert_close(ours, theirs, TOLERANCE[name])
        else:
            assert_equal(ours, theirs)


def test_the_width_of_the_pack_changes_no_lane(name: str):
    small = study(name, 4, 2)
    for ours, theirs in zip(together(small, PACK[1:3]), together(small, PACK)[1:3], strict=True):
        if name in CONVOLUTIONS:
            assert_close(ours, theirs, TOLERANCE[name])
        else:
            assert_equal(ours, theirs)


@pytest.mark.parametrize("arm", study("digits", 20).arm_names)
def test_a_lane_of_matrix_products_has_the_same_bits_wherever_it_lies_in_whatever_pack(arm: str):
    small = study("digits", 20)
    points = trials([(arm, rate, seed) for seed in range(8) for rate in (1e-3, 1e-2, 0.1, 1.0)])
    wide = lanes.Pack(points, small, CPU)
    narrow = {first: lanes.Pack(points[first : first + 5], small, CPU) for first in (0, 13, 27)}
    for _ in range(20):
        for pack in (wide, *narrow.values()):
            pack.step()
    for first, pack in narrow.items():
        assert torch.equal(pack.weights.nan_to_num(7.0), wide.weights[first : first + 5].nan_to_num(7.0))


@pytest.mark.parametrize("name", ["digits", "digits-resnet"])
@pytest.mark.parametrize(("few", "blocks", "parts"), [(3, [3, 6, 8], [3, 5, 6, 8]), (7, [7, 8], [5, 6, 7, 8])])
def test_lanes_that_take_their_steps_a_few_at_a_time_change_nothing(
    name: str, few: int, blocks: list[int], parts: list[int], monkeypatch: pytest.MonkeyPatch
):
    small = study(name, 8, 4)
    points = [("sgd 0.9", 0.01, 0), ("sgd 0.9", ABSURD, 1), *(("sgd 0.9", 0.02, seed) for seed in (2, 3, 4))]
    points += [("adam adaptive", 1e-3, seed) for seed in (0, 1)] + [("adam 0.9", ABSURD, 5)]
    at_once = together(small, points)
    monkeypatch.setattr(lanes, "TOGETHER", few)
    monkeypatch.setattr(lanes, "COMPILED", few)
    pack = lanes.Pack(trials(points), small, CPU)
    assert [block.lanes.stop for block in pack.blocks] == blocks
    assert [part.lanes.stop for block in pack.blocks for part in block.parts] == parts
    for ours, theirs in zip(together(small, points), at_once, strict=True):
        if name in CONVOLUTIONS:
            assert_close(ours, theirs, TOLERANCE[name])
        else:
            assert_equal(ours, theirs)


def test_a_study_in_bfloat16_is_less_precise_alone_and_together_alike():
    exact = study("digits", 20, 4)
    rough = replace(exact, budget=replace(exact.budget, precision="bfloat16"))
    points = [(arm, stable_rate(exact, arm), 1) for arm in ("sgd 0.9", "adam adaptive")]
    for point, run in zip(points, together(rough, points), strict=True):
        assert_close(run, alone(rough, point), 2e-2)
        assert run.curve != alone(exact, point).curve
        assert_close(run, alone(exact, point), 5e-2)


def test_studies_with_other_batch_sizes_share_a_process():
    for batch_size in (64, 32):
        small = replace(study("digits", 4, 2), budget=Budget(4, 2, batch_size))
        for point, run in zip(PACK, together(small, PACK), strict=True):
            assert_close(run, alone(small, point), TOLERANCE["digits"])


def test_a_lane_diverges_at_the_step_at_which_the_trial_does_alone(name: str):
    small = study(name, 8, 4)
    for point, run in zip(SICK_PACK[::3], together(small, SICK_PACK)[::3], strict=True):
        by_itself = alone(small, point)
        assert run.result.outcome == by_itself.result.outcome == Outcome.DIVERGED
        if name != "digits-resnet":  # how a variance overflows depends on how BatchNorm adds it up
            assert run.result.diverged_at == by_itself.result.diverged_at
            assert run.result.steps == by_itself.result.steps


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("smoothing", [0.0, 0.9])
def test_a_rule_that_measures_each_tensor_alone_does_so_in_every_lane(optimizer: str, smoothing: float):
    arm = arms.arm("own", optimizer, {"rule": "adaptive", "scope": "tensor", "smoothing": smoothing}, RATES, {})
    small = replace(study("digits", 30, 3), arms=(arm, *study("digits", 30, 3).arms))
    points = [(arm.name, rate, seed) for rate in (1e-3, 1e-2) for seed in (0, 1)] + [("sgd 0.9", ABSURD, 0)]
    for point, run in zip(points, together(small, points), strict=True):
        assert_close(run, alone(small, point), TOLERANCE["digits"])


RATES = Axis("lr", (1e-3, 1e-2))


class Unvectorised(nn.Module):
    """Drops with the generator of the whole process, which lanes would have to share."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.dropout(x, 0.1, self.training))


class PartlyFrozen(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 10), nn.Linear(10, 10))
        self[0].weight.requires_grad_(False)


@pytest.mark.parametrize(("model", "reason"), [(Unvectorised, "random"), (PartlyFrozen, "0.weight")])
def test_a_model_that_cannot_train_in_lanes_trains_alone_and_the_log_says_why(
    model: type[nn.Module], reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    unusual = replace(workloads.load("digits"), name=model.__name__, model=model)
    monkeypatch.setattr(workloads, "load", lambda name: unusual)
    small = study("digits", 20, 2)
    with caplog.at_level(logging.INFO):
        assert calibrate(small, CPU).lanes == 1
    assert "cannot be trained in lanes" in caplog.text
    assert reason in caplog.text
    first, again = (alone(small, ("sgd 0.9", 0.01, 0)) for _ in range(2))
    assert first.result.outcome is Outcome.CONVERGED
    assert_equal(first, again)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The arms of every pack that a calibration tries, where a step takes the same time whatever the width."""
    packs: list[list[str]] = []

    class Watched(lanes.Pack):
        def __init__(self, trials: Sequence[Trial], study: Study, device: torch.device) -> None:
            super().__init__(trials, study, device)
            packs.append([trial.point.arm for trial in trials])

    def one_second(step: Callable[[], object], device: torch.device, warm_up: int = 0) -> float:
        step()
        return 1.0

    monkeypatch.setattr(calibration, "Pack", Watched)
    monkeypatch.setattr(calibration, "timed", one_second)
    return packs


@pytest.mark.parametrize(("steps", "widths"), [(20, []), (40, [8]), (80, [8, 16]), (420, [8, 16, 32])])
def test_a_calibration_tries_no_more_than_its_study_is_worth(tried: list[list[str]], steps: int, widths: list[int]):
    small = replace(spec.load("digits-cnn"), budget=Budget(steps, 1, 64))  # 540 trials
    assert calibrate(small, CPU).lanes == max(widths, default=1)
    assert [len(pack) for pack in tried] == widths


def test_optimizers_that_know_no_lanes_do_not_keep_the_others_out_of_them(tried: list[list[str]]):
    shipped = spec.load("digits")
    foreign = arms.arm("rms", "torch.optim.RMSprop", None, shipped.arms[0].lr, {})
    assert calibrate(replace(shipped, arms=(foreign, *shipped.arms)), CPU).lanes > 1
    assert foreign.name not in {arm for pack in tried for arm in pack}
    assert calibrate(replace(shipped, arms=(foreign,)), CPU).lanes == 1


def test_parameters_of_two_types_are_refused(monkeypatch: pytest.MonkeyPatch):
    mixed = replace(
        workloads.load("digits"),
        name="mixed",
        model=lambda: nn.Sequential(nn.Linear(64, 10), nn.Linear(10, 10).double()),
    )
    monkeypatch.setattr(workloads, "load", lambda name: mixed)
    with pytest.raises(ValueError, match=r"one type: got .*float64"):
        together(study("digits", 4), PACK)
