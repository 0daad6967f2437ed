"""What the loss of a family depends on: learning rate, momentum, both together, or the seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dashboards import metrics
from dashboards.evidence import ArmGrid, Evidence
from dashboards.style import percent
from storage.importance import EVALUATOR, fanova_shares

__all__ = ["Importance", "importances"]

EXACT = "exact ANOVA"
FEWEST_CELLS = 10  # a forest of fewer cells mostly repeats them
FOREST_SEED = 0  # the same cells give the same page


class Importance(NamedTuple):
    """One family's analysis of variance over its constants. shares: None where there is none; why says so.

    evaluator: what found the shares, by name. Optuna's `interaction` is all that causes explain only together, the
        seed's part in it too; the exact one's `seed` is all that repeats of a cell differ by.
    seeds: how many of the study's seeds take part.
    cells: how many cells take part, of planned ones.
    """

    family: str
    shares: metrics.Shares | None
    why: str
    seeds: int = 0
    evaluator: str | None = None
    cells: int = 0
    planned: int = 0

    def as_dict(self) -> dict[str, Any]:
        return self._asdict() | {"shares": self.shares._asdict() if self.shares else None}

    @property
    def sentence(self) -> str:
        if self.shares is None:
            return f"{self.family}: {self.why}."
        lr, momentum, both, seed = (percent(share) for share in self.shares)
        together = "the two together" if self.evaluator == EXACT else "only together"
        last = f"seed {seed}" if self.seeds > 1 else "and nothing known of the seed, of which there is one"
        why = f"; {self.why}" if self.why else ""
        return (
            f"{self.family}: learning rate {lr}, momentum {momentum}, {together} {both}, {last} "
            f"({self.evaluator} over {self.cells} of {self.planned} cells{why})."
        )


def importances(evidence: Evidence) -> tuple[Importance, ...]:
    """Variance shares per family: exact over the seeds that ran every cell, by Optuna's fANOVA where there is none."""
    return tuple(_importance(evidence, family) for family in dict.fromkeys(arm.family for arm in evidence.study.arms))


def _importance(evidence: Evidence, family: str) -> Importance:
    grids = [grid for grid in evidence.grids if grid.arm.family == family and not grid.arm.adaptive]
    if len(grids) < 2:
        return Importance(family, None, "not run: it takes two constant momenta")
    if len({grid.arm.lr.values for grid in grids}) > 1:
        return Importance(family, None, "not run: its momenta have different learning rates")
    ran = np.isfinite(np.array([grid.loss for grid in grids]))
    whole = np.asarray(ran.all(axis=(0, 2)))  # the seeds that ran every cell
    return _exact(family, grids, whole) if whole.any() else _estimated(family, grids)


def _exact(family: str, grids: Sequence[ArmGrid], whole: NDArray[np.bool_]) -> Importance:
    """Learning rates are levels here, not numbers, so no scale can distort them."""
    losses = np.array([grid.loss for grid in grids])
    used = losses[:, whole]
    shares = metrics.anova_shares(used)
    seeds, planned = int(whole.sum()), len(whole)
    if not np.isfinite(shares.lr):
        return Importance(family, None, "every loss is the same", seeds, None, used.size, losses.size)
    why = "" if seeds == planned else f"over {seeds} of {planned} seeds, the complete ones"
    return Importance(family, shares, why, seeds, EXACT, used.size, losses.size)


def _estimated(family: str, grids: Sequence[ArmGrid]) -> Importance:
    """Momenta are levels, in order: 0.9 and 0.99 are one step apart, as 0 and 0.9 are."""
    grids = sorted(grids, key=lambda grid: grid.arm.momentum or 0.0)
    losses = np.array([grid.loss for grid in grids])
    momentum, seed, point = np.nonzero(np.isfinite(losses))
    values = losses[momentum, seed, point]
    seeds, cells = len(np.unique(seed)), len(values)

    def none(why: str) -> Importance:
        return Importance(family, None, why, seeds, None, cells, losses.size)

    if cells < FEWEST_CELLS:
        return none(f"not run: {cells} of its {losses.size} cells ran, and an estimate takes {FEWEST_CELLS}")
    if min(len(np.unique(momentum)), len(np.unique(point))) < 2:
        return none("not run: its cells that ran have one learning rate or one momentum")
    if len(np.unique(values)) < 2:
        return none("every loss is the same")
    causes = {"lr": np.log10(grids[0].lrs)[point], "momentum": momentum, "seed": seed}
    alone = fanova_shares(causes, values, seed=FOREST_SEED)
    shares = metrics.Shares(interaction=max(0.0, 1 - sum(alone.values())), **alone)
    return Importance(family, shares, "no seed ran every cell", seeds, EVALUATOR, cells, losses.size)
