"""Learning curves as bytes, and the few points of them that Optuna's dashboard draws.

One row of `adamom_curves` holds n evaluations as five little-endian columns one after another: n int32 (steps), then
n float32 each of training loss, validation loss, validation accuracy and momentum: 20 n bytes.
"""

from __future__ import annotations

import numpy as np

from .records import Budget, Curve

__all__ = ["pack", "shown_steps", "unpack"]

SHOWN_POINTS = 8  # per trial in Optuna's dashboard: enough for a shape; each costs a row and two index entries


def pack(curve: Curve) -> bytes:
    """The curve as 20 bytes per evaluation."""
    losses = (curve.train_loss, curve.validation_loss, curve.validation_accuracy, curve.momentum)
    return curve.steps.astype("<i4").tobytes() + np.concatenate(losses).astype("<f4").tobytes()


def unpack(*pieces: bytes) -> Curve:
    """The curve whose pieces `pack` made into these bytes; a step in two pieces counts once, as in `Curve.join`.

    Raises ValueError when they are not whole evaluations.
    """
    columns = [np.empty((5, 0), "<i4")]
    for entries in pieces:
        if len(entries) % 20:
            raise ValueError(f"An evaluation takes 20 bytes: got {len(entries)} bytes.")
        columns.append(np.frombuffer(entries, "<i4").reshape(5, -1))
    whole = columns[1] if len(pieces) == 1 else np.concatenate(columns, axis=1)
    curve = Curve(whole[0], *whole[1:].view("<f4"))
    return curve if len(pieces) == 1 else Curve.join([curve])


def shown_steps(budget: Budget) -> frozenset[int]:
    """The evaluations that Optuna's dashboard gets: at most SHOWN_POINTS, evenly spaced, the last always among them.

    They follow from the budget alone, so every worker and every attempt shows the same ones.
    """
    evaluated = budget.evaluated_at
    shown = min(SHOWN_POINTS, len(evaluated))
    return frozenset(evaluated[round(len(evaluated) * k / shown) - 1] for k in range(1, shown + 1))
