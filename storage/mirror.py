"""What Optuna's tables say about our cells, so that its readers and its dashboard see every trial.

    params              arm (categorical), lr (log), momentum (categorical: "0.9", "adaptive"), seed
    state and value     converged, diverged -> COMPLETE with Result.capped_loss; pruned -> PRUNED with the final loss;
                        failed, oom -> FAIL without a value; lost -> WAITING again
    user attributes     outcome, initial_loss, final_loss, best_loss, final_accuracy, mean_momentum, diverged_at, error;
                        provenance, with the steps and seconds it took
    intermediate values validation losses at `curves.shown_steps`

Optuna stores no nan as a value: a loss that is nan even at initialisation counts as +inf. JSON knows no infinities:
non-finite attributes are the words "nan", "inf", "-inf", and what was not measured is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from .records import Outcome, Point, Result, Study

__all__ = ["STATES", "distributions", "result_attributes", "stored_value", "trial_params", "trial_value"]

STATES = {
    Outcome.WAITING: "WAITING",
    Outcome.LOST: "WAITING",
    Outcome.RUNNING: "RUNNING",
    Outcome.CONVERGED: "COMPLETE",
    Outcome.DIVERGED: "COMPLETE",
    Outcome.PRUNED: "PRUNED",
    Outcome.OOM: "FAIL",
    Outcome.FAILED: "FAIL",
}
PARAMS = ("arm", "lr", "momentum", "seed")
REAL_ATTRIBUTES = ("initial_loss", "final_loss", "best_loss", "final_accuracy", "mean_momentum")

Distribution = dict[str, Any]


def shown_momentum(momentum: float | None) -> str:
    """The momentum in Optuna's pages: the number as text, or "adaptive" where a rule computes it."""
    return "adaptive" if momentum is None else repr(float(momentum))


def distributions(study: Study, before: dict[str, Distribution]) -> dict[str, Distribution]:
    """The search space of the study by parameter, as Optuna writes it.

    before: the search space so far. A category keeps its index for ever, for the stored values are indices.
    """
    rates = [lr for arm in study.arms for lr in arm.lr.values]

    def categories(name: str, choices: Iterable[str]) -> Distribution:
        known = before[name]["attributes"]["choices"] if before else []
        return {
            "name": "CategoricalDistribution",
            "attributes": {"choices": list(dict.fromkeys([*known, *choices]))},
        }

    rate = {"step": None, "low": min(rates), "high": max(rates), "log": all(arm.lr.log for arm in study.arms)}
    seed = {"log": False, "step": 1, "low": min(study.seeds), "high": max(study.seeds)}
    return {
        "arm": categories("arm", study.arm_names),
        "lr": {"name": "FloatDistribution", "attributes": rate},
        "momentum": categories("momentum", (shown_momentum(arm.momentum) for arm in study.arms)),
        "seed": {"name": "IntDistribution", "attributes": seed},
    }


def trial_params(points: Sequence[Point], space: dict[str, Distribution]) -> dict[str, list[float]]:
    """Optuna's number for each parameter of each point: a category's index, or the value itself."""

    def index(name: str) -> dict[str, float]:
        return {choice: float(i) for i, choice in enumerate(space[name]["attributes"]["choices"])}

    arms, momenta = index("arm"), index("momentum")
    return {
        "arm": [arms[point.arm] for point in points],
        "lr": [point.lr for point in points],
        "momentum": [momenta[shown_momentum(point.momentum)] for point in points],
        "seed": [float(point.seed) for point in points],
    }


def stored_value(value: float) -> tuple[float | None, str]:
    """A number as Optuna keeps it: (value, type), where only finite numbers have a value."""
    if math.isfinite(value):
        return value, "FINITE"
    return None, "NAN" if math.isnan(value) else "INF_POS" if value > 0 else "INF_NEG"


def trial_value(result: Result) -> tuple[float | None, str] | None:
    """The trial's value as Optuna keeps it, None where there is none."""
    if result.outcome.measured:
        return (None, "INF_POS") if math.isnan(result.capped_loss) else stored_value(result.capped_loss)
    if result.outcome is Outcome.PRUNED and not math.isnan(result.final_loss):
        return stored_value(result.final_loss)
    return None


def result_attributes(result: Result) -> dict[str, str]:
    """The result as user attributes: JSON by key, without what was not measured."""
    said = {"outcome": json.dumps(result.outcome.value)}
    if result.outcome.measured:
        said["final_loss"] = _real(result.final_loss)
    said |= {name: _real(value) for name in REAL_ATTRIBUTES if not math.isnan(value := getattr(result, name))}
    if result.diverged_at is not None:
        said["diverged_at"] = str(result.diverged_at)
    if result.error is not None:
        said["error"] = json.dumps(result.error)
    said["provenance"] = json.dumps({**result.provenance, "steps": result.steps, "seconds": _worded(result.seconds)})
    return said


def _real(value: float) -> str:
    """A float in JSON, which knows only finite ones; the rest are words."""
    return repr(float(value)) if math.isfinite(value) else f'"{float(value)}"'


def _worded(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
