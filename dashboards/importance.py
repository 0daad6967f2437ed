"""What the loss of a family depends on: learning rate, momentum, both together, or the seed."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from dashboards import metrics
from dashboards.evidence import ArmGrid, Evidence
from dashboards.style import percent
from storage.importance import EVALUATOR, fanova

__all__ = ["Importance", "importances"]

EXACT = "exact two-way ANOVA"
FEWEST = 10  # cells from which a forest may say something


class Importance(NamedTuple):
    """One family's variance shares over its constants. shares: None where there are none; why says so.

    seeds: how many of the study's seeds have run every cell, and so take part in an exact analysis of variance.
    evaluator: that, or the name of Optuna's estimate, where no seed has run every cell; it knows of no interaction.
    """

    family: str
    shares: metrics.Shares | None
    why: str
    seeds: int = 0
    evaluator: str = EXACT

    def as_dict(self) -> dict[str, Any]:
        shares = self.shares._asdict() if self.shares else {}
        known = {name: None if math.isnan(share) else share for name, share in shares.items()}
        named = {"seeds": self.seeds, "evaluator": self.evaluator, "why": self.why}
        return {"family": self.family, "shares": known or None, **named}

    @property
    def sentence(self) -> str:
        if self.shares is None:
            return f"{self.family}: {self.why}."
        lr, momentum, both, seed = (percent(share) for share in self.shares)
        why = f" ({self.why})" if self.why else ""
        if self.evaluator != EXACT:
            return f"{self.family}: learning rate {lr}, momentum {momentum}, seed {seed}{why}."
        last = f"seed {seed}" if self.seeds > 1 else "and nothing known of the seed, of which there is one"
        return f"{self.family}: learning rate {lr}, momentum {momentum}, the two together {both}, {last}{why}."


def importances(evidence: Evidence) -> tuple[Importance, ...]:
    """Variance shares per family. Learning rates are levels here, not numbers, so no scale can distort them."""
    return tuple(_importance(evidence, family) for family in dict.fromkeys(arm.family for arm in evidence.study.arms))


def _importance(evidence: Evidence, family: str) -> Importance:
    grids = [grid for grid in evidence.grids if grid.arm.family == family and not grid.arm.adaptive]
    if len(grids) < 2:
        return Importance(family, None, "not run: it takes two constant momenta")
    if len({grid.arm.lr.values for grid in grids}) > 1:
        return Importance(family, None, "not run: its momenta have different learning rates")
    losses = np.array([grid.loss for grid in grids])
    ran = np.isfinite(losses)
    whole = ran.all(axis=(0, 2))  # the seeds that ran every cell
    if not whole.any():
        return _estimate(family, grids, losses)
    shares = metrics.anova_shares(losses[:, whole])
    seeds, planned = int(whole.sum()), len(whole)
    if not np.isfinite(shares.lr):
        return Importance(family, None, "every loss is the same", seeds)
    return Importance(
        family, shares, "" if seeds == planned else f"over {seeds} of {planned} seeds, the complete ones", seeds
    )


def _estimate(family: str, grids: list[ArmGrid], losses: metrics.Floats) -> Importance:
    """Optuna's estimate over the cells that ran. losses: shape (momenta, seeds, learning rates), nan where none ran."""
    momenta, seeds, rates = np.nonzero(np.isfinite(losses))
    if len(momenta) < FEWEST or not all(len(set(axis)) > 1 for axis in (momenta, rates)):
        missing = losses.size - len(momenta)
        return Importance(family, None, f"not run: {missing} of its {losses.size} cells are missing")
    columns = {
        "lr": [math.log10(grids[0].arm.lr.values[i]) for i in rates],
        "momentum": [float(grids[i].arm.momentum or 0.0) for i in momenta],
        "seed": [float(i) for i in seeds],
    }
    found = fanova(columns, losses[momenta, seeds, rates].tolist())
    shares = metrics.Shares(found["lr"], found["momentum"], math.nan, found["seed"])
    why = f"Optuna's {EVALUATOR} over {len(momenta)} of its {losses.size} cells, on the logarithm of the learning rate"
    return Importance(family, shares, why, evaluator=EVALUATOR)
