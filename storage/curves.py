"""Learning curves as bytes, and the few points of them that Optuna's dashboard draws.

One row of `adamom_curves` holds n evaluations as five little-endian columns one after another: n int32 (steps), then
n float32 each of training loss, validation loss, validation accuracy and momentum: 20 n bytes.
"""

from __future__ import annotations

import numpy as np

from .records import Budget, Curve

__all__ = ["pack", "shown_steps", "unpack"]

SHOWN_POINTS = 10  # per trial in Optuna's dashboard: enough for a shape; each costs a row and two index entries


def pack(curve: Curve) -> bytes:
    """The curve as 20 bytes per evaluation."""
    losses = (curve.train_loss, curve.validation_loss, curve.validation_accuracy, curve.momentum)
    return curve.steps.astype("<i4").tobytes() + np.concatenate(losses).astype("<f4").tobytes()


def unpack(entries: bytes) -> Curve:
    """The curve that `pack` made into these bytes. Raises ValueError when they are not whole evaluations."""
    if len(entries) % 20:
        raise ValueError(f"An evaluation takes 20 bytes: got {len(entries)} bytes.")
    n = len(entries) // 20
    return Curve(np.frombuffer(entries, "<i4", n), *np.frombuffer(entries, "<f4", 4 * n, 4 * n).reshape(4, n))


def shown_steps(budget: Budget) -> frozenset[int]:
    """The evaluations that Optuna's dashboard gets: at most SHOWN_POINTS, evenly spaced, the last always among them.

    They follow from the budget alone, so every worker and every attempt shows the same ones.
    """
    evaluated = budget.evaluated_at
    shown = min(SHOWN_POINTS, len(evaluated))
    return frozenset(evaluated[round(len(evaluated) * k / shown) - 1] for k in range(1, shown + 1))
