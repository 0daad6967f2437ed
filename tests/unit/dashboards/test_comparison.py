"""Paired differences, and what a handful of seeds can decide."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dashboards import summarise
from dashboards.comparison import flips, holm, seeds_needed, sign_flip_p
from dashboards.summary import Summary


def of(summary: Summary, statistic: str, arm: str) -> Any:
    return next(each for each in summary.differences if (each.statistic, each.arm) == (statistic, arm))


def test_all_swaps_of_three_seeds_are_tried_the_observed_one_first() -> None:
    swaps = flips(3, seed=0)
    assert len({tuple(row) for row in swaps.tolist()}) == 8
    assert swaps[0].tolist() == [0, 0, 0]


def test_swaps_of_many_seeds_are_drawn_from_the_seed() -> None:
    assert (flips(20, seed=1) == flips(20, seed=1)).all()
    assert (flips(20, seed=1) != flips(20, seed=2)).any()


def test_sign_flip_p_equals_enumeration_by_hand() -> None:
    gaps = np.array([1.0, 2.0, 3.0])
    swapped = np.array([(gaps * (1 - 2 * row)).mean() for row in flips(3, seed=0)])
    assert sign_flip_p(swapped) == 2 / 8


def test_no_difference_has_p_one() -> None:
    assert sign_flip_p(np.zeros(8)) == 1


@pytest.mark.parametrize(("comparisons", "seeds"), [(1, 6), (2, 7), (8, 9)])
def test_how_many_seeds_could_decide(comparisons: int, seeds: int) -> None:
    assert seeds_needed(comparisons) == seeds


def test_holm_corrects_step_by_step() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.02, float("nan")])[0] == 0.02


def test_six_seeds_decide_what_three_cannot(hand_made: Any) -> None:
    better = [[0.5 + 0.01 * s, 0.4 + 0.01 * s] for s in range(6)]
    worse = [[0.9 + 0.02 * s, 0.8 + 0.01 * s] for s in range(6)]
    few = of(summarise(*hand_made(base=worse[:3], rule=better[:3])), "best_loss", "rule")
    many = of(summarise(*hand_made(base=worse, rule=better)), "best_loss", "rule")
    assert (few.better, few.too_few_seeds, few.p) == (None, True, 0.25)
    assert (many.better, many.too_few_seeds, many.p) == (True, False, 2 / 64)


def test_a_worse_arm_is_called_worse(hand_made: Any) -> None:
    better = [[0.5 + 0.01 * s, 0.4 + 0.01 * s] for s in range(6)]
    worse = [[0.9 + 0.02 * s, 0.8 + 0.01 * s] for s in range(6)]
    assert of(summarise(*hand_made(base=better, rule=worse)), "best_loss", "rule").better is False


def test_equal_arms_differ_by_exactly_nothing(hand_made: Any) -> None:
    rows = [[1.0, 0.5], [0.9, 0.6]]
    found = of(summarise(*hand_made(base=rows, rule=rows)), "best_loss", "rule")
    assert (found.estimate.value, found.estimate.low, found.estimate.high, found.p) == (0, 0, 0, 1)


def test_only_seeds_that_both_arms_have_run_are_compared(hand_made: Any) -> None:
    found = of(summarise(*hand_made(base=[[1.0], [0.2]], rule=[[0.5], [None]])), "best_loss", "rule")
    assert (found.seeds, found.estimate.value, found.estimate.n) == (1, -0.5, 2)
    assert np.isnan(found.estimate.low)


def test_cells_that_the_baseline_did_not_run_are_left_out_too(hand_made: Any) -> None:
    found = of(
        summarise(*hand_made(base=[[1.0, None], [0.2, None]], rule=[[0.5, 0.1], [0.4, 0.1]])), "best_loss", "rule"
    )
    assert (found.value, found.base, found.estimate.n) == pytest.approx((0.45, 0.6, 4))


def test_pairing_by_seed_removes_what_the_seeds_share(hand_made: Any) -> None:
    shared = [0.0, 0.4, 0.8, 0.2, 0.6, 1.0]
    base = [[0.9 + s] for s in shared]
    rule = [[0.8 + s] for s in shared]
    summary = summarise(*hand_made(base=base, rule=rule))
    paired, alone = of(summary, "best_loss", "rule").estimate, summary.row("rule").best_loss
    assert paired.high - paired.low < 1e-9 < 0.3 < alone.high - alone.low


def test_learning_rates_are_compared_as_ratios_in_decades(hand_made: Any) -> None:
    base, rule = [[1.0, 0.5, 3.0, 3.0]] * 2, [[1.0, 0.5, 0.6, 3.0]] * 2
    found = of(summarise(*hand_made(base=base, rule=rule)), "largest_stable_lr", "rule")
    assert (found.value, found.base, found.estimate.value) == pytest.approx((0.1, 0.01, 1.0))
