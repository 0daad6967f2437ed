"""What the loss of a family depends on: learning rate, momentum, both together, or the seed."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dashboards import metrics
from dashboards.evidence import Evidence
from dashboards.style import percent

__all__ = ["Importance", "importances"]


class Importance(NamedTuple):
    """One family's exact analysis of variance over its constants. shares: None where there is none; why says so.

    seeds: how many of the study's seeds have run every cell, and so take part.
    """

    family: str
    shares: metrics.Shares | None
    why: str
    seeds: int = 0

    def as_dict(self) -> dict[str, Any]:
        shares = self.shares._asdict() if self.shares else None
        return {"family": self.family, "shares": shares, "seeds": self.seeds, "why": self.why}

    @property
    def sentence(self) -> str:
        if self.shares is None:
            return f"{self.family}: {self.why}."
        lr, momentum, both, seed = (percent(share) for share in self.shares)
        last = f"seed {seed}" if self.seeds > 1 else "and nothing known of the seed, of which there is one"
        why = f" ({self.why})" if self.why else ""
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
        return Importance(family, None, f"not run: {int((~ran).sum())} of its {losses.size} cells are missing")
    shares = metrics.anova_shares(losses[:, whole])
    seeds, planned = int(whole.sum()), len(whole)
    if not np.isfinite(shares.lr):
        return Importance(family, None, "every loss is the same", seeds)
    return Importance(
        family, shares, "" if seeds == planned else f"over {seeds} of {planned} seeds, the complete ones", seeds
    )
