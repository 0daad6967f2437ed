"""What the loss of a family depends on: learning rate, momentum, both together, or the seed."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dashboards import metrics
from dashboards.evidence import Evidence
from dashboards.style import percent

__all__ = ["Importance", "importances"]


class Importance(NamedTuple):
    """One family's exact analysis of variance over its constants. shares: None where there is none; why says so."""

    family: str
    shares: metrics.Shares | None
    why: str

    def as_dict(self) -> dict[str, Any]:
        return {"family": self.family, "shares": self.shares._asdict() if self.shares else None, "why": self.why}

    @property
    def sentence(self) -> str:
        if self.shares is None:
            return f"{self.family}: {self.why}."
        lr, momentum, both, seed = (percent(share) for share in self.shares)
        return f"{self.family}: learning rate {lr}, momentum {momentum}, the two together {both}, seed {seed}."


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
    if missing := int((~np.isfinite(losses)).sum()):
        return Importance(family, None, f"not run: {missing} of its {losses.size} cells are missing")
    shares = metrics.anova_shares(losses)
    if not np.isfinite(shares.lr):
        return Importance(family, None, "every loss is the same")
    return Importance(family, shares, "")
