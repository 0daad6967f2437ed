"""Studies named by their trouble."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from dashboards import Summary, summarise
from storage.records import Arm, Axis, Budget, Curve, Outcome, Point, Result, Study, Trial
from tests import synthetic

Studied = tuple[Study, list[Trial], dict[int, Curve]]
RESAMPLES = 200


@pytest.fixture(scope="session")
def finished() -> Studied:
    """Nine arms, 27 learning rates, three seeds: every cell run, both ends of the grid failing."""
    study = synthetic.study()
    return study, *synthetic.trials(study)


@pytest.fixture(scope="session")
def summary(finished: Studied) -> Summary:
    return summarise(*finished, resamples=RESAMPLES)


@pytest.fixture
def hand_made() -> Callable[..., Studied]:
    """Builds a study from final losses alone: {arm: rows of seeds}, learning rates a decade apart, L0 = 2."""

    def build(**arms: list[list[float]]) -> Studied:
        points = len(next(iter(arms.values()))[0])
        seeds = max(len(rows) for rows in arms.values())
        axis = Axis("lr", tuple(10.0 ** (at - 3) for at in range(points)))
        study = Study(
            "by-hand",
            "Which?",
            "none",
            Budget(100, 2, 1),
            tuple(_arm(name, axis) for name in arms),
            tuple(range(seeds)),
        )
        trials = []
        for name, rows in arms.items():
            for seed, row in enumerate(rows):
                for lr, loss in zip(axis.values, row, strict=True):
                    if loss is not None:
                        point = Point(name, lr, study.arm(name).momentum, seed)
                        trials.append(ended(len(trials) + 1, point, loss))
        return study, trials, {}

    return build


def _arm(name: str, axis: Axis) -> Arm:
    return Arm(name, "SGD", "sgd", None if name.startswith("rule") else 0.9, axis)


def ended(number: int, point: Point, loss: float, initial: float = 2.0) -> Trial:
    diverged = not loss < initial
    result = Result(
        Outcome.DIVERGED if diverged else Outcome.CONVERGED,
        steps=100,
        initial_loss=initial,
        final_loss=loss,
        best_loss=min(loss, initial) if math.isfinite(loss) else initial,
        mean_momentum=0.5,
        diverged_at=100 if diverged else None,
    )
    return Trial(number, number - 1, point, result.outcome, 1, result)
