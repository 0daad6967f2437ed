"""Trials as arrays: everything the pages know about a study, and nothing that needs a database.

Rows are sorted by (arm, learning rate, seed), so the same trials give the same evidence in whatever order they come.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dashboards import metrics
from storage.records import Arm, Budget, Counts, Curve, Outcome, Study, Trial

__all__ = ["COLUMNS", "OUTCOMES", "ArmGrid", "Evidence"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

OUTCOMES = tuple(Outcome)
COLUMNS: dict[str, type] = {  # one entry per trial; -1 or nan where there is nothing to say
    "id": int,
    "number": int,
    "arm": int,
    "point": int,
    "seed": int,
    "outcome": int,
    "steps": int,
    "diverged_at": int,
    "initial_loss": float,
    "final_loss": float,
    "best_loss": float,
    "final_accuracy": float,
    "mean_momentum": float,
    "seconds": float,
}
MEASURED = ("initial_loss", "final_loss", "best_loss", "final_accuracy", "mean_momentum", "seconds")
EVALUATIONS = 64  # a learning curve is drawn 600 pixels wide: more entries than this cannot be seen
ERRORS = 5  # distinct tracebacks that a page has room for
VALUES = 12  # distinct values of one provenance key, for the same reason


@dataclass(frozen=True, eq=False)
class ArmGrid:
    """One arm's trials as arrays of shape (seeds, points), nan (or -1) where a cell has not been run.

    loss: final validation loss, a diverged run counting as its loss at initialisation.
    initial: loss at initialisation.
    diverged: 1 where the run diverged, 0 where it converged.
    momentum: the mean of beta over the run, or the arm's constant.
    accuracy: share of the validation set classified rightly at the end.
    row: where the cell's curve is in the evidence.
    """

    arm: Arm
    lrs: Floats
    loss: Floats
    initial: Floats
    diverged: Floats
    momentum: Floats
    accuracy: Floats
    row: Ints

    @property
    def measured(self) -> int:
        return int(np.isfinite(self.loss).sum())

    @property
    def effective_lrs(self) -> Floats:
        """lr / (1 - mean beta) per point, the mean taken over seeds; lr itself where the arm averages gradients.

        A point whose momentum was not measured takes it from its neighbours. Array of shape (points,).
        """
        if self.arm.damped:
            return self.lrs
        with np.errstate(all="ignore"):
            rate = self.lrs / (1 - self.momentum)
        known = np.isfinite(rate) & (rate > 0)
        seeds = known.sum(axis=0)
        log = np.where(known, np.log10(np.where(known, rate, 1.0)), 0.0).sum(axis=0)
        have = seeds > 0
        if not have.any():
            return np.full_like(self.lrs, np.nan)
        x = np.log10(self.lrs)
        stretch = log[have] / seeds[have] - x[have]
        return np.asarray(10 ** (x + np.interp(x, x[have], stretch)))


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a study has measured so far.

    columns: one array of shape (trials,) for each name in COLUMNS; arm, point, seed and outcome are indices into the
        study's arms, that arm's learning rates, the study's seeds and OUTCOMES.
    steps: array of shape (evaluations,), the optimizer steps at which curves are looked at.
    validation_loss, momentum: float32 arrays of shape (trials, evaluations), nan where nothing was recorded.
    provenance: what the trials ran on: key -> value -> number of trials.
    errors: (number of trials, traceback) of the failures seen most often.
    strangers: trials that lie outside the study's grid, and are left out.
    """

    study: Study
    columns: Mapping[str, NDArray[Any]]
    steps: Ints
    validation_loss: NDArray[np.float32]
    momentum: NDArray[np.float32]
    provenance: Mapping[str, Mapping[str, int]]
    errors: tuple[tuple[int, str], ...]
    strangers: int = 0

    @classmethod
    def of(cls, study: Study, trials: Sequence[Trial], curves: Mapping[int, Curve]) -> Evidence:
        """The trials of a study, and their curves by trial id, as arrays."""
        where = _places(study)
        placed = {cell: trial for trial in trials if (cell := _cell(trial, where)) is not None}
        cells = sorted(placed)
        rows = [_row(placed[cell], cell) for cell in cells]
        columns: dict[str, NDArray[Any]] = {
            name: np.array([row[name] for row in rows], dtype=kind) for name, kind in COLUMNS.items()
        }
        steps = _schedule(study)
        losses, momenta = _curves([curves.get(placed[cell].id) for cell in cells], steps)
        return cls(
            study=study,
            columns=columns,
            steps=steps,
            validation_loss=losses,
            momentum=momenta,
            provenance=_provenance([placed[cell] for cell in cells]),
            errors=_errors([placed[cell] for cell in cells]),
            strangers=len(trials) - len(placed),
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what was asked and measured; the same for two stores that hold the same results."""
        study = self.study
        fixed = {"workload": study.workload, "budget": _said(study.budget)}
        asked = [fixed, study.seeds, [(arm.name, arm.definition, arm.lr.values) for arm in study.arms]]
        found = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode())
        for name in sorted(COLUMNS.keys() - {"id", "number", "seconds"}):
            found.update(np.where(np.isnan(self.columns[name]), -1e308, self.columns[name]).astype("<f8").tobytes())
        for curves in (self.validation_loss, self.momentum):
            found.update(np.where(np.isnan(curves), np.float32(-3e38), curves).astype("<f4").tobytes())
        return found.hexdigest()

    @property
    def planned(self) -> int:
        """How many cells the study's grid has, planned in the store or not."""
        return sum(len(arm.lr.values) for arm in self.study.arms) * len(self.study.seeds)

    @cached_property
    def counts(self) -> Counts:
        found = Counter(OUTCOMES[code].value for code in self.columns["outcome"].tolist())
        return Counts(**found)

    @cached_property
    def grids(self) -> tuple[ArmGrid, ...]:
        """One grid per arm, in the study's order."""
        return tuple(self._grid(index) for index in range(len(self.study.arms)))

    def _grid(self, index: int) -> ArmGrid:
        arm = self.study.arms[index]
        mine = np.flatnonzero(self.columns["arm"] == index)
        at = self.columns["seed"][mine], self.columns["point"][mine]
        shape = len(self.study.seeds), len(arm.lr.values)
        outcome = self.columns["outcome"][mine]
        diverged = outcome == OUTCOMES.index(Outcome.DIVERGED)
        initial = self.columns["initial_loss"][mine]
        loss = np.where(diverged, initial, metrics.cap(self.columns["final_loss"][mine], initial))
        measured = (diverged | (outcome == OUTCOMES.index(Outcome.CONVERGED))) & np.isfinite(loss)

        def spread(values: NDArray[Any]) -> Floats:
            filled = np.full(shape, np.nan)
            filled[at] = np.where(measured, values, np.nan)
            return filled

        momentum = self.columns["mean_momentum"][mine] if arm.adaptive else np.full(len(mine), arm.momentum)
        row = np.full(shape, -1)
        row[at] = mine
        return ArmGrid(
            arm=arm,
            lrs=np.array(arm.lr.values),
            loss=spread(loss),
            initial=spread(initial),
            diverged=spread(diverged.astype(float)),
            momentum=spread(momentum),
            accuracy=spread(self.columns["final_accuracy"][mine]),
            row=row,
        )


def _said(budget: Budget) -> dict[str, Any]:
    """The budget without what is as it always was, so that a field added later changes no hash of an older study."""
    return {each.name: value for each in fields(budget) if (value := getattr(budget, each.name)) != each.default}


Places = tuple[dict[str, int], list[dict[float, int]], dict[int, int]]


def _places(study: Study) -> Places:
    return (
        {name: index for index, name in enumerate(study.arm_names)},
        [{_rounded(lr): index for index, lr in enumerate(arm.lr.values)} for arm in study.arms],
        {seed: index for index, seed in enumerate(study.seeds)},
    )


def _rounded(lr: float) -> float:
    return round(math.log10(lr), 9) if lr > 0 else lr  # text in a database may cost a float its last digit


def _cell(trial: Trial, where: Places) -> tuple[int, int, int] | None:
    arms, points, seeds = where
    arm, seed = arms.get(trial.point.arm), seeds.get(trial.point.seed)
    if arm is None or seed is None:
        return None
    point = points[arm].get(_rounded(trial.point.lr))
    return None if point is None else (arm, point, seed)


def _row(trial: Trial, cell: tuple[int, int, int]) -> dict[str, float]:
    arm, point, seed = cell
    row: dict[str, float] = {"id": trial.id, "number": trial.number, "arm": arm, "point": point, "seed": seed}
    row["outcome"] = OUTCOMES.index(trial.outcome)
    result = trial.result
    row["steps"] = result.steps if result else 0
    row["diverged_at"] = -1 if result is None or result.diverged_at is None else result.diverged_at
    return row | {name: getattr(result, name) if result else math.nan for name in MEASURED}


def _schedule(study: Study) -> Ints:
    steps = np.array([0, *study.budget.evaluated_at])
    if len(steps) <= EVALUATIONS:
        return steps
    return np.asarray(steps[np.linspace(0, len(steps) - 1, EVALUATIONS).round().astype(int)])


def _curves(curves: Sequence[Curve | None], steps: Ints) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    losses = np.full((len(curves), len(steps)), np.nan, dtype=np.float32)
    momenta = losses.copy()
    for row, curve in enumerate(curves):
        if curve is None or len(curve) == 0:
            continue
        at = np.searchsorted(steps, curve.steps).clip(max=len(steps) - 1)
        seen = steps[at] == curve.steps
        losses[row, at[seen]] = curve.validation_loss[seen]
        momenta[row, at[seen]] = curve.momentum[seen]
    return losses, momenta


def _provenance(trials: Sequence[Trial]) -> dict[str, dict[str, int]]:
    seen: dict[str, Counter[str]] = {}
    for trial in trials:
        for key, value in (trial.result.provenance if trial.result else {}).items():
            seen.setdefault(str(key), Counter())[str(value)] += 1
    return {key: _commonest(found) for key, found in sorted(seen.items())}


def _commonest(found: Counter[str]) -> dict[str, int]:
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ranked[VALUES:])
    return dict(ranked[:VALUES]) | ({f"{len(ranked) - VALUES} other values": rest} if rest else {})


def _errors(trials: Sequence[Trial]) -> tuple[tuple[int, str], ...]:
    found = Counter(trial.result.error.strip() for trial in trials if trial.result and trial.result.error)
    return tuple((count, text) for text, count in sorted(found.items(), key=lambda item: (-item[1], item[0]))[:ERRORS])
