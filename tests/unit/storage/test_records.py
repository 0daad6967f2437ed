"""The glossary refuses to be built wrong, and counts add up."""

from __future__ import annotations

import math
from typing import Any

import pytest

from storage import Arm, Axis, Budget, Counts, Curve, Outcome, Point, Result, Study

ARM = Arm("sgd", "sgd", "sgd", 0.9, Axis("lr", (0.1,)))


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: Axis("lr", ()), "An axis needs at least one value: 'lr' has none."),
        (lambda: Axis("lr", (0.1, 0.1)), "must ascend without repeats"),
        (lambda: Axis("lr", (0.0, 0.1)), "'lr' are on a log axis and must be > 0"),
        (lambda: Axis("lr", (0.1, math.inf)), "must be finite"),
        (lambda: Budget(10, 11, 1), "A trial of 10 steps cannot be evaluated 11 times."),
        (lambda: Budget(10, 0, 1), "A budget needs evaluations >= 1: got 0."),
        (lambda: Study("s", "?", "w", Budget(1, 1, 1), (), (0,)), "'s' has none"),
        (lambda: Study("s", "?", "w", Budget(1, 1, 1), (ARM, ARM), (0,)), "must differ from each other"),
        (lambda: Study("s", "?", "w", Budget(1, 1, 1), (ARM,), (0, 0)), "must differ from each other"),
        (lambda: Curve([1], [1, 2], [1], [1], [1]), "got 1 steps and 2 of train_loss"),  # type: ignore[arg-type]
        (lambda: Result(Outcome.LOST), "A result says how a trial ended: 'lost' has not."),
    ],
)
def test_a_wrong_value_is_refused_with_its_numbers(build: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build()


def test_a_point_is_named_by_everything_that_tells_it_apart() -> None:
    assert Point("sgd", 0.1, 0.9, 3).key == "sgd|lr=0.1|seed=3"


def test_counts_add_up() -> None:
    counts = Counts(waiting=1, running=2, converged=4, diverged=8, pruned=16, lost=32, oom=64, failed=128)
    assert (counts.total, counts.finished) == (255, 4 + 8 + 16 + 64 + 128)
    assert counts.as_dict() == {
        "waiting": 1,
        "running": 2,
        "converged": 4,
        "diverged": 8,
        "pruned": 16,
        "lost": 32,
        "oom": 64,
        "failed": 128,
        "total": 255,
    }


def test_a_curve_cannot_be_changed_and_equals_itself_with_nans() -> None:
    curve = Curve([0, 1], [math.nan, 1], [2, 1], [0, 1], [math.nan, 0.9])  # type: ignore[arg-type]
    assert curve == Curve.join([Curve([0], [math.nan], [2], [0], [math.nan]), Curve([1], [1], [1], [1], [0.9])])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="read-only"):
        curve.steps[0] = 1
