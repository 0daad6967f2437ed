"""How much of the variance of a result each cause explains where a grid has holes, by Optuna's fANOVA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from optuna import Study

__all__ = ["EVALUATOR", "fanova_shares"]

EVALUATOR = "optuna.importance.FanovaImportanceEvaluator"
MAX_DEPTH = 8  # splits: shares within 0.02 of unbounded trees, which take 20 times as long on 9,600 cells


def fanova_shares(causes: Mapping[str, ArrayLike], values: ArrayLike, *, seed: int) -> dict[str, float]:
    """The share of variance each cause explains by itself; 1 less their sum is what causes explain only together.

    A forest of regression trees predicts the values, and its variance over the box of causes is decomposed (Hutter et
    al. 2014, "An Efficient Approach for Assessing Hyperparameter Importance"). Optuna takes every cause as linear: give
    the logarithm of what varies by decades. The box reaches half a step beyond the outermost levels of a cause, so that
    the levels of an even grid count the same.

    causes: name -> array of shape (cells,). A cause with one level has no share: 0.
    values: array of shape (cells,).
    seed: of the forest.

    Raises ValueError when a number is not finite, which Optuna would leave out without a word, or all values are equal.
    """
    columns = {name: np.asarray(column, dtype=float) for name, column in causes.items()}
    values = np.asarray(values, dtype=float)
    if not all(np.isfinite(numbers).all() for numbers in (values, *columns.values())):
        raise ValueError("Importances need finite numbers: cap the value of a diverged cell.")
    if len(np.unique(values)) < 2:
        raise ValueError("Importances need values that differ: all are the same.")
    from optuna.importance import FanovaImportanceEvaluator

    varied = {name: column for name, column in columns.items() if len(np.unique(column)) > 1}
    evaluator = FanovaImportanceEvaluator(max_depth=MAX_DEPTH, seed=seed)
    found = evaluator.evaluate(_study(varied, values))
    return {name: float(found.get(name, 0.0)) for name in columns}


def _study(columns: Mapping[str, NDArray[np.float64]], values: NDArray[np.float64]) -> Study:
    """An Optuna study in memory, one finished trial per cell."""
    import optuna

    boxes = {name: optuna.distributions.FloatDistribution(*_box(column)) for name, column in columns.items()}
    with _quietly():
        study = optuna.create_study()
    for *row, value in np.column_stack([*columns.values(), values]).tolist():
        params = dict(zip(columns, row, strict=True))
        study.add_trial(optuna.create_trial(params=params, distributions=dict(boxes), value=value))
    return study


def _box(column: NDArray[np.float64]) -> tuple[float, float]:
    levels = np.unique(column)
    half = float(np.diff(levels).min()) / 2
    return float(levels[0]) - half, float(levels[-1]) + half


@contextmanager
def _quietly() -> Iterator[None]:
    """Without Optuna's line on stderr that a study was created: this one is nobody's."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
