"""What a family's loss depends on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dashboards import Summary, summarise
from storage.records import Axis

FLAT, TILTED = [[1.0, 1.0, 1.0]] * 2, [[0.5, 1.0, 1.5]] * 2


def of(studied: Any) -> Any:
    return summarise(*studied, resamples=10).importances[0]


def test_two_equal_arms_leave_everything_to_the_learning_rate(hand_made: Any) -> None:
    found = of(hand_made(a=TILTED, b=TILTED))
    assert found.shares == pytest.approx((1, 0, 0, 0))
    assert found.sentence == "SGD: learning rate 100 %, momentum 0 %, the two together 0 %, seed 0 %."


def test_arms_that_tilt_apart_interact(hand_made: Any) -> None:
    mirrored = [row[::-1] for row in TILTED]
    assert of(hand_made(a=TILTED, b=mirrored)).shares == pytest.approx((0, 0, 1, 0))


def test_what_seeds_alone_change_is_theirs(hand_made: Any) -> None:
    rows = [[1.0, 1.0, 1.0], [0.5, 0.5, 0.5]]
    assert of(hand_made(a=rows, b=rows)).shares == pytest.approx((0, 0, 0, 1))


def test_rules_have_no_part_in_it(hand_made: Any) -> None:
    assert of(hand_made(a=TILTED, rule=FLAT)).why == "not run: it takes two constant momenta"


def test_why_there_is_none_is_said(hand_made: Any, finished: Any) -> None:
    assert of(hand_made(a=FLAT, b=FLAT)).why == "every loss is the same"
    gaps = [[0.5, None, 1.5], [None, None, 1.5]]
    assert of(hand_made(a=TILTED, b=gaps)).why == "not run: 3 of its 12 cells are missing"
    study, trials, curves = finished
    shorter = replace(study.arms[0], lr=Axis("lr", study.arms[0].lr.values[:5]))
    assert "different learning rates" in of((replace(study, arms=(shorter, *study.arms[1:])), trials, curves)).why


def test_seeds_that_miss_a_cell_are_left_out_and_that_is_said(hand_made: Any) -> None:
    whole, gap = (
        [[0.5, 1.0, 1.5], [0.6, 1.1, 1.4], [0.4, 1.0, 1.2]],
        [[0.9, None, 1.5], [0.7, 1.0, 1.3], [0.8, 1.3, 1.6]],
    )
    found = of(hand_made(a=whole, b=gap))
    assert found.shares == of(hand_made(a=whole[1:], b=gap[1:])).shares
    assert found.sentence.endswith("(over 2 of 3 seeds, the complete ones).")


def test_one_seed_says_nothing_of_seeds(hand_made: Any) -> None:
    found = of(hand_made(a=TILTED[:1], b=FLAT[:1]))
    assert found.sentence.endswith("and nothing known of the seed, of which there is one.")


def test_a_full_study_has_shares_that_sum_to_one(summary: Summary) -> None:
    for found in summary.importances:
        assert found.shares is not None
        assert sum(found.shares) == pytest.approx(1)


def test_where_no_seed_is_complete_optuna_estimates_and_is_named(hand_made: Any) -> None:
    tilted = [[0.01, 0.5, 1.0, 1.5], [0.02, 0.5, 1.1, 1.4]]
    gaps = [[0.01, None, 1.0, 1.5], [0.02, 0.5, None, 1.4]]
    found, again = (of(hand_made(a=tilted, b=gaps)) for _ in range(2))
    assert found == again
    assert found.shares.lr > 0.8 > found.shares.momentum + found.shares.seed
    assert found.as_dict()["evaluator"] == "FanovaImportanceEvaluator"
    assert found.as_dict()["shares"]["interaction"] is None
    assert found.sentence.endswith(
        "(Optuna's FanovaImportanceEvaluator over 14 of its 16 cells, on the logarithm of the learning rate)."
    )
