"""What stock Optuna is told of a trial that nobody planned."""

from __future__ import annotations

import optuna

__all__ = ["StrayTrial"]


class StrayTrial(optuna.TrialPruned):
    """Optuna's `ask` makes a trial of its own when none waits. It is pruned: it is no cell of the study."""
