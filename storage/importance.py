"""What a result depends on, as Optuna estimates it: for cells that are no full grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["EVALUATOR", "fanova"]

EVALUATOR = "FanovaImportanceEvaluator"


def fanova(columns: Mapping[str, Sequence[float]], values: Sequence[float]) -> dict[str, float]:
    """The share of the values' variance that each column explains, alone or with others; the shares sum to 1.

    columns: one finite number per cell, by name; give learning rates as logarithms, for the estimate splits a column
    where it lies and knows no other scale. values: one finite number per cell. Equal cells give equal shares.

    Optuna's FanovaImportanceEvaluator: a random forest's variance, decomposed (Hutter, Hoos and Leyton-Brown 2014, "An
    Efficient Approach for Assessing Hyperparameter Importance").
    """
    import optuna  # with its evaluator comes scikit-learn: a second, for those who need it

    distributions = {
        name: optuna.distributions.FloatDistribution(min(column), max(column)) for name, column in columns.items()
    }
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    trials = [
        optuna.trial.create_trial(params=row, distributions=dict(distributions), value=value)
        for row, value in zip(rows, values, strict=True)
    ]
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would announce a study that nobody asked for
    try:
        study = optuna.create_study()
        study.add_trials(trials)
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    finally:
        optuna.logging.set_verbosity(before)
    return {name: float(shares.get(name, 0.0)) for name in columns}
