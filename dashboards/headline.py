"""The finding of a study in one sentence with an interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dashboards.claims import sentence, with_interval
from dashboards.comparison import Difference, compare_arms
from dashboards.measures import Cells, Scale
from dashboards.style import counted, number

if TYPE_CHECKING:
    from dashboards.summary import ArmRow, Summary

__all__ = ["headline"]


def headline(summary: Summary) -> str:
    """The widest basin of an arm with a rule against the widest of a constant momentum of its family.

    A basin around a loss that misses the study's best counts only where there is no other: a flat failure is wide.
    """
    counts, planned = summary.counts, summary.evidence.planned
    known = [row for row in summary.rows if row.basin.known]
    if not known:
        return f"Nothing has been measured yet: 0 of {planned} cells have a result."
    if not counts.converged:
        return (
            f"No arm learned: all {counts.diverged} runs measured so far diverged or ended no better than they began."
        )
    if all(len(arm.lr.values) == 1 for arm in summary.study.arms):
        lowest = min(known, key=lambda row: row.best_loss.value)
        loss = with_interval(lowest.best_loss, in_decades=False)
        return f"One learning rate has no width; the lowest loss there is {loss}, of {lowest.arm}."
    rules = [row for row in known if row.adaptive] or known
    widest = max(rules, key=lambda row: _rank(row, summary.scale))
    others = [row for row in known if row.adaptive != widest.adaptive] or [row for row in known if row is not widest]
    others = [row for row in others if row.family == widest.family] or others
    if not others:
        width = with_interval(widest.basin, in_decades=True)
        return f"{widest.arm}: basin {width} decades of learning rate, {counted(widest.seeds, 'seed')}."
    rival = max(others, key=lambda row: _rank(row, summary.scale))
    rank = ", the widest constant momentum" if widest.adaptive and not rival.adaptive else ""
    if rank and rival.basin.value < max(row.basin.value for row in others):
        rank += " that comes near the study's best loss"
    candidates = [row.arm for row in rules if row.family == widest.family and row is not rival]
    found = sentence(_basins(summary, candidates, rival.arm)[widest.arm], widest, rival, rank)
    if widest.best_loss.value <= summary.scale.target:
        return found
    loss = number(widest.best_loss.value)
    return f"{found} Its best loss, {loss}, misses the study's best by more than the tolerance."


def _rank(row: ArmRow, scale: Scale) -> tuple[bool, float, float]:
    return row.best_loss.value <= scale.target, row.basin.value, -row.best_loss.value


def _basins(summary: Summary, arms: Sequence[str], rival: str) -> dict[str, Difference]:
    """The paired differences of the arms' basins from a rival's, corrected for choosing the widest among them."""
    grids = [grid for grid in summary.evidence.grids if grid.arm.name in (*arms, rival)]
    cells = {grid.arm.name: Cells.of(grid, summary.evidence, summary.scale) for grid in grids}
    pairs = dict.fromkeys(arms, rival)
    found = compare_arms(cells, pairs, summary.scale, seed=summary.seed, resamples=summary.resamples)
    return {each.arm: each for each in found if each.statistic == "basin"}
