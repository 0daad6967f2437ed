"""Values of the glossary as rows of our tables, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from .records import Counts, Outcome, Point, Result, Trial
from .tables import results

__all__ = ["claimed", "columns", "counts", "keepable", "result_columns", "trial"]

_REALS = ("initial_loss", "final_loss", "best_loss", "final_accuracy", "mean_momentum", "seconds")


def columns(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
    """Rows, at least one, as columns by name."""
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def result_columns(ended: Sequence[tuple[Trial, Result]]) -> dict[str, list[Any]]:
    """The rows of `adamom_results`; nan is stored as null."""
    written = {"trial_id": [trial.id for trial, _ in ended]}
    for column in results.c:
        if column.name != "trial_id":
            written[column.name] = [_stored(column.name, getattr(result, column.name)) for _, result in ended]
    return written


def keepable(text: str) -> str:
    """The text without what no database keeps: zero bytes and halves of characters become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "?")


def _stored(name: str, value: Any) -> Any:
    if name == "provenance":
        return json.dumps(dict(value))
    if isinstance(value, str):
        return keepable(value)
    return None if name in _REALS and math.isnan(value) else value


def claimed(trial_id: int, number: int, arm: str, lr: float, momentum: float | None, seed: int, attempt: int) -> Trial:
    """The trial that a claim has just made of this cell: running, for the `attempt + 1`st time."""
    return Trial(trial_id, number, Point(arm, lr, momentum, seed), Outcome.RUNNING, attempt + 1)


def trial(
    trial_id: int,
    number: int,
    arm: str,
    lr: float,
    momentum: float | None,
    seed: int,
    outcome: str,
    attempt: int,
    *measured: Any,
) -> Trial:
    """A cell with what became of it, from a row of `statements.TRIALS`."""
    became = Outcome(outcome)
    result = _result(became, *measured) if became.finished else None
    return Trial(trial_id, number, Point(arm, lr, momentum, seed), became, attempt, result)


def _result(
    outcome: Outcome,
    steps: int,
    initial_loss: float | None,
    final_loss: float | None,
    best_loss: float | None,
    final_accuracy: float | None,
    mean_momentum: float | None,
    diverged_at: int | None,
    seconds: float | None,
    error: str | None,
    provenance: str,
) -> Result:
    return Result(
        outcome,
        steps,
        _real(initial_loss),
        _real(final_loss),
        _real(best_loss),
        _real(final_accuracy),
        _real(mean_momentum),
        diverged_at,
        _real(seconds),
        error,
        json.loads(provenance),
    )


def _real(stored: float | None) -> float:
    return math.nan if stored is None else stored


def counts(counted: Iterable[tuple[Any, ...]]) -> dict[str, Counts]:
    """Counts by study, from rows of `statements.COUNTS`."""
    found: dict[str, dict[str, int]] = {}
    for name, outcome, n in counted:
        found.setdefault(name, {}).update({outcome: n} if outcome else {})
    return {name: Counts(**each) for name, each in found.items()}
