"""Studies named by their trouble, and curves one can check in the head."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from storage import Arm, Axis, Budget, Curve, Outcome, Point, Result, Study

RATES = Axis("lr", (0.01, 0.1, 1.0))


@pytest.fixture
def study() -> Study:
    """Two arms of one family and one of another, three rates, two seeds: 18 cells."""
    return Study(
        name="digits",
        question="Is a rule wider than a constant?",
        workload="digits",
        budget=Budget(steps=40, evaluations=20, batch_size=64),
        arms=(
            Arm("sgd-0.9", "sgd", "sgd", 0.9, RATES),
            Arm("sgd-adaptive", "sgd", "sgd", None, RATES, rule={"rule": "adaptive", "smoothing": 0.999}),
            Arm("adam-0.9", "adam", "adam", 0.9, RATES, options={"weight_decay": 5e-4}, damped=True),
        ),
        seeds=(0, 1),
        text="question = 'Is a rule wider than a constant?'\n",
    )


@pytest.fixture
def points(study: Study) -> tuple[Point, ...]:
    return grid(study)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A place for a store with nothing in it, not even a schema."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'new.db'}"
    else:
        yield request.getfixturevalue("postgres_url")


def grid(study: Study) -> tuple[Point, ...]:
    """Every cell of the study, arm by arm."""
    return tuple(
        Point(arm.name, lr, arm.momentum, seed) for arm in study.arms for lr in arm.lr.values for seed in study.seeds
    )


def big_study(cells: int, *, arms: int = 4, seeds: int = 5) -> Study:
    """A study of exactly this many cells, a multiple of arms * seeds."""
    rates = Axis("lr", tuple(1e-5 * 1.001**i for i in range(cells // (arms * seeds))))
    return Study(
        name="big",
        question="How many?",
        workload="none",
        budget=Budget(steps=100, evaluations=100, batch_size=1),
        arms=tuple(Arm(f"sgd-{i}", "sgd", "sgd", i / 10, rates) for i in range(arms)),
        seeds=tuple(range(seeds)),
    )


def curve(steps: Sequence[int], loss: float = 1.0) -> Curve:
    """A curve at these steps whose validation loss falls from `loss` by a tenth per entry."""
    n = len(steps)
    falling = [loss * 0.9**i for i in range(n)]
    return Curve(steps, [math.nan] * n, falling, [0.5] * n, [0.9] * n)  # type: ignore[arg-type]


CONVERGED = Result(
    Outcome.CONVERGED,
    steps=40,
    initial_loss=2.3,
    final_loss=0.25,
    best_loss=0.125,
    final_accuracy=0.95,
    mean_momentum=0.9,
    seconds=1.5,
    provenance={"device": "cpu", "torch": "2.13.0"},
)
DIVERGED = Result(
    Outcome.DIVERGED, steps=40, initial_loss=2.3, final_loss=math.nan, best_loss=2.1, diverged_at=7, seconds=0.5
)
PRUNED = Result(Outcome.PRUNED, steps=20, initial_loss=2.3, final_loss=1.5, best_loss=1.5)
FAILED = Result(Outcome.FAILED, error="Traceback: KeyError: 'x'")
OOM = Result(Outcome.OOM, error="out of memory: tried to allocate 3 GiB")
