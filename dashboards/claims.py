"""The claims of the literature, put as questions to the study's own data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from dashboards.comparison import Difference, Estimate
from dashboards.measures import STATISTICS
from dashboards.style import counted, decades, fixed, number

if TYPE_CHECKING:
    from dashboards.summary import ArmRow, Summary

__all__ = ["QUESTIONS", "Claim", "claims", "difference_text", "sentence", "with_interval"]

QUESTIONS = {
    "largest_stable_lr": "Does it stay stable at a larger learning rate?",
    "basin": "Is its basin wider?",
    "steps_to_target": "Does it reach the target loss in fewer steps?",
    "best_loss": "Is its best final loss lower?",
    "largest_stable_effective_lr": "Stable at a larger effective learning rate?",
    "basin_effective": "Basin wider in effective learning rate?",
}


class Claim(NamedTuple):
    """One question about one arm that computes its momentum, and what the data answer: yes, no or undecided."""

    question: str
    answer: str
    difference: Difference

    @property
    def text(self) -> str:
        """The difference with its interval, and its p-value."""
        return difference_text(self.difference)

    @property
    def why(self) -> str:
        """Why an answer is undecided; "" when it is not."""
        if self.answer != "undecided":
            return ""
        if not self.difference.estimate.known:
            return "not run" if not self.difference.seeds else "cannot be computed"
        if self.difference.too_few_seeds:
            return f"{counted(self.difference.seeds, 'seed')}, {self.difference.needed} could decide"
        return f"p = {number(self.difference.p_holm)}"

    def as_dict(self) -> dict[str, Any]:
        return {"question": self.question, "answer": self.answer, "why": self.why} | self.difference.as_dict()


def claims(summary: Summary) -> tuple[Claim, ...]:
    """Every question for every arm with a rule that has a baseline."""
    rules = {row.arm for row in summary.rows if row.adaptive}
    found = {(each.arm, each.statistic): each for each in summary.differences if each.arm in rules}
    arms = dict.fromkeys(arm for arm, _ in found)
    return tuple(_claim(QUESTIONS[name], found[arm, name]) for arm in arms for name in QUESTIONS)


def _claim(question: str, difference: Difference) -> Claim:
    return Claim(question, {True: "yes", False: "no", None: "undecided"}[difference.better], difference)


def difference_text(difference: Difference) -> str:
    """A difference as a reader would write it: learning rates as a factor, the rest with a sign; with its interval.

    >>> from dashboards.comparison import Difference, Estimate
    >>> gap = Difference("basin", "a", "b", 2.0, 1.5, Estimate(0.5, 0.25, 0.625, 6), 0.25, 0.25, 3, 6)
    >>> difference_text(gap)
    '+0.50 [+0.25, +0.62] decades'
    """
    statistic, estimate = STATISTICS[difference.statistic], difference.estimate
    if not estimate.known:
        return "not run"
    show = _factor if statistic.logarithmic else _signed if statistic.unit != "decades" else _signed_decades
    between = f" [{show(estimate.low)}, {show(estimate.high)}]" if math.isfinite(estimate.low) else ""
    unit = f" {statistic.unit}" if statistic.unit else ""
    return f"{show(estimate.value)}{between}{unit}"


def _factor(gap: float) -> str:
    return f"×{number(10**gap)}"


def _signed(gap: float) -> str:
    return f"{'+' if gap >= 0 else '−'}{number(abs(gap))}"


def _signed_decades(gap: float) -> str:
    return f"{'+' if gap >= 0 else '−'}{decades(abs(gap))}"


def sentence(difference: Difference, row: ArmRow, baseline: ArmRow, rank: str = "") -> str:
    """One computed sentence: both arms' numbers with their intervals, the difference, its p-value and the seeds.

    rank: what else is to be said of the baseline. row, baseline: the two arms' rows.
    Their numbers are over their whole grids, the difference over what both have.
    """
    statistic = STATISTICS[difference.statistic]
    here, there = (with_interval(each.metrics[statistic.name], statistic.unit == "decades") for each in (row, baseline))
    unit = f" {statistic.unit}" if statistic.unit else ""
    few = f": too few to decide, {difference.needed} could" if difference.too_few_seeds else ""
    p, repeats = number(difference.p_holm), counted(difference.seeds, "seed")
    return (
        f"{difference.arm}: {statistic.title} {here}{unit} against {there} for {difference.baseline}{rank}; "
        f"difference {difference_text(difference)}, p = {p}, {repeats}{few}."
    )


def with_interval(estimate: Estimate, in_decades: bool) -> str:
    """An estimate as a sentence says it: at least 2.0 [1.9, 2.1]."""
    show = decades if in_decades else fixed
    bound = "at least " if estimate.bound else ""
    between = f" [{show(estimate.low)}, {show(estimate.high)}]" if math.isfinite(estimate.low) else ""
    return f"{bound}{show(estimate.value)}{between}"
