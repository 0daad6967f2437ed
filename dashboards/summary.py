"""A study's trials become every number that its report shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dashboards import metrics
from dashboards.calibration import Calibration, calibrate
from dashboards.claims import Claim, claims
from dashboards.comparison import Difference, Estimate, compare_arms
from dashboards.evidence import ArmGrid, Evidence
from dashboards.flags import Flag, raise_flags
from dashboards.headline import headline
from dashboards.importance import Importance, importances
from dashboards.interpolation import LawInfo, law_info
from dashboards.measures import STATISTICS, Cells, Scale, measure
from dashboards.threads import one_thread
from storage.records import Counts, Curve, Study, Trial

__all__ = ["RESAMPLES", "ArmRow", "Summary", "analyse", "summarise"]

RESAMPLES = 2000  # the ends of a 95 % interval then rest on 50 resamples each
TUNING_DRAWS = 20  # beyond twenty random grid points nobody tunes one learning rate by hand


@dataclass(frozen=True, slots=True)
class ArmRow:
    """One arm in numbers.

    metrics: an estimate for each name in measures.STATISTICS. diverged: share of its trials, with a Wilson interval.
    best_lr, best_accuracy: where its mean loss is lowest, and the accuracy there. basin_lrs: the ends of its basin.
    frontier_lr: where half the seeds diverge, interpolated. tuning: expected best loss of 1, 2, ... random grid points.
    trials: the ids of the trials behind these numbers. Any float is nan where nothing has been run.
    """

    arm: str
    family: str
    adaptive: bool
    planned: int
    seeds: int
    metrics: Mapping[str, Estimate]
    diverged: Estimate
    best_lr: float
    best_accuracy: float
    basin_lrs: tuple[float, float]
    frontier_lr: float
    tuning: tuple[Estimate, ...]
    trials: tuple[int, ...]

    @property
    def measured(self) -> int:
        return len(self.trials)

    @property
    def best_loss(self) -> Estimate:
        return self.metrics["best_loss"]

    @property
    def basin(self) -> Estimate:
        """Width in decades."""
        return self.metrics["basin"]

    @property
    def largest_stable_lr(self) -> Estimate:
        return self.metrics["largest_stable_lr"]

    @property
    def sensitivity(self) -> Estimate:
        return self.metrics["sensitivity"]

    def as_dict(self) -> dict[str, Any]:
        numbers = {
            "best_lr": self.best_lr,
            "best_accuracy": self.best_accuracy,
            "basin_low_lr": self.basin_lrs[0],
            "basin_high_lr": self.basin_lrs[1],
            "frontier_lr": self.frontier_lr,
        }
        return {
            "arm": self.arm,
            "family": self.family,
            "adaptive": self.adaptive,
            "planned": self.planned,
            "measured": self.measured,
            "seeds": self.seeds,
            **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
            "metrics": {
                "diverged": self.diverged.as_dict(),
                **{name: estimate.as_dict() for name, estimate in self.metrics.items()},
            },
            "expected_best_loss": [estimate.as_dict() for estimate in self.tuning],
            "trials": list(self.trials),
        }


@dataclass(frozen=True, eq=False)
class Summary:
    """Every number a report shows, and the evidence they were computed from.

    baselines: for each arm, the arm it is compared with; seed, resamples: of the bootstrap.
    """

    evidence: Evidence
    scale: Scale
    rows: tuple[ArmRow, ...]
    baselines: Mapping[str, str]
    differences: tuple[Difference, ...]
    seed: int
    resamples: int
    chosen: str | None = None

    @property
    def study(self) -> Study:
        return self.evidence.study

    @property
    def counts(self) -> Counts:
        return self.evidence.counts

    def row(self, arm: str) -> ArmRow:
        """The row of that arm. Raises KeyError."""
        for row in self.rows:
            if row.arm == arm:
                return row
        raise KeyError(f"This report has no arm {arm!r}. Its arms: {', '.join(row.arm for row in self.rows)}.")

    @cached_property
    def sentence(self) -> str:
        """What the study found, in one sentence with an interval."""
        return headline(self)

    @cached_property
    def claims(self) -> tuple[Claim, ...]:
        """What the study answers to the claims of the literature, for each arm that computes its momentum."""
        return claims(self)

    @cached_property
    def importances(self) -> tuple[Importance, ...]:
        """What each family's loss depends on: its shares of variance."""
        return importances(self.evidence)

    @cached_property
    def laws(self) -> tuple[LawInfo, ...]:
        """A parametric law of the loss per family of constants, with its error on cells left out of the fit."""
        with one_thread():
            return law_info(self.evidence, self.scale, seed=self.seed)

    @cached_property
    def calibration(self) -> Calibration | None:
        """How well short runs predict whole ones; None without learning curves."""
        with one_thread():
            return calibrate(self.evidence, self.scale, seed=self.seed)

    @cached_property
    def flags(self) -> tuple[Flag, ...]:
        return tuple(raise_flags(self))

    def as_dict(self) -> dict[str, Any]:
        """The contract of `adamom report --json`: strict JSON, null where nothing has been run."""
        study = self.study
        scale = {"initial_loss": self.scale.initial, "best_loss": self.scale.best, "tolerance": self.scale.tolerance}
        return {
            "version": {"report": 1, "metrics": metrics.VERSION},
            "study": {"name": study.name, "question": study.question, "workload": study.workload},
            "counts": self.counts.as_dict(),
            "planned": self.evidence.planned,
            "sentence": self.sentence,
            "scale": {name: value if math.isfinite(value) else None for name, value in scale.items()},
            "bootstrap": {"seed": self.seed, "resamples": self.resamples, "level": 0.95, "unit": "seed"},
            "arms": [
                row.as_dict() | {"points": _points(grid)}
                for row, grid in zip(self.rows, self.evidence.grids, strict=True)
            ],
            "claims": [claim.as_dict() for claim in self.claims],
            "comparisons": [difference.as_dict() for difference in self.differences],
            "importance": [each.as_dict() for each in self.importances],
            "laws": [law.as_dict() for law in self.laws],
            "calibration": self.calibration.as_dict() if self.calibration else None,
            "flags": [flag.as_dict() for flag in self.flags],
        }


def summarise(
    study: Study,
    trials: Sequence[Trial],
    curves: Mapping[int, Curve],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    baseline: str | None = None,
) -> Summary:
    """Every number of a study's report.

    curves: by trial id; trials without one have no steps to target. seed, resamples: of the bootstrap over seeds.
    baseline: the arm that all others are compared with; unless given, each family's constant momentum with the lowest
    loss, the strongest choice that somebody without a rule could have made. Raises KeyError when there is no such arm.
    """
    return analyse(Evidence.of(study, trials, curves), seed=seed, resamples=resamples, baseline=baseline)


def analyse(evidence: Evidence, *, seed: int, resamples: int, baseline: str | None = None) -> Summary:
    """The summary of evidence: the same numbers from the same arrays, wherever they were kept in the meantime."""
    with one_thread():
        return _analyse(evidence, seed=seed, resamples=resamples, baseline=baseline)


def _analyse(evidence: Evidence, *, seed: int, resamples: int, baseline: str | None) -> Summary:
    scale = Scale.of(evidence)
    cells = {grid.arm.name: Cells.of(grid, evidence, scale) for grid in evidence.grids}
    rows = tuple(
        _row(grid, cells[grid.arm.name], evidence, scale, seed=seed, resamples=resamples) for grid in evidence.grids
    )
    baselines = _baselines(evidence.study, rows, baseline)
    differences = tuple(
        difference
        for rules in (True, False)  # the arms in question, and the constants among themselves: two families of tests
        for difference in compare_arms(
            cells,
            {row.arm: baselines[row.arm] for row in rows if row.adaptive == rules and row.arm in baselines},
            scale,
            seed=seed,
            resamples=resamples,
        )
    )
    return Summary(evidence, scale, rows, baselines, differences, seed, resamples, baseline)


def _row(grid: ArmGrid, cells: Cells, evidence: Evidence, scale: Scale, *, seed: int, resamples: int) -> ArmRow:
    n, repeats = grid.measured, int(np.isfinite(grid.loss).any(axis=1).sum())
    curves = cells.curves()
    values = measure(curves, cells, scale)
    weights = metrics.draws(len(grid.loss), seed=seed, resamples=resamples)
    drawn = measure(cells.curves(weights), cells, scale)
    bounds = _bounds(grid, cells, scale)

    def estimate(name: str) -> Estimate:
        value = float(values[name][0])
        low, high = metrics.interval(drawn[name]) if repeats > 1 and math.isfinite(value) else (math.nan, math.nan)
        return Estimate(value, low, high, n, bounds.get(name, ""))

    at = int(np.nanargmin(curves.loss[0])) if n else -1
    found = metrics.basin(curves.loss, np.log10(grid.lrs), tolerance=scale.tolerance)
    low, high = metrics.wilson(np.nansum(grid.diverged), n)
    edge = metrics.frontier(curves.diverged[0], np.log10(grid.lrs), at=at) if n else math.nan
    return ArmRow(
        arm=grid.arm.name,
        family=grid.arm.family,
        adaptive=grid.arm.adaptive,
        planned=grid.loss.size,
        seeds=repeats,
        metrics={name: estimate(name) for name in STATISTICS},
        diverged=Estimate(float(np.nansum(grid.diverged)) / n if n else math.nan, float(low), float(high), n),
        best_lr=float(grid.lrs[at]) if n else math.nan,
        best_accuracy=float(metrics.mean_over_seeds(grid.accuracy)[at]) if n else math.nan,
        basin_lrs=(float(10 ** found.low[0]), float(10 ** found.high[0])) if values["basin"][0] else (math.nan,) * 2,
        frontier_lr=10**edge,
        tuning=_tuning(grid, scale),
        trials=tuple(evidence.columns["id"][grid.row[np.isfinite(grid.loss)]].tolist()),
    )


def _points(grid: ArmGrid) -> list[dict[str, Any]]:
    """Per learning rate: the mean loss over seeds, and the share of seeds diverged with a Wilson interval."""
    loss, share = metrics.mean_over_seeds(grid.loss), metrics.mean_over_seeds(grid.diverged)
    runs = np.isfinite(grid.loss).sum(axis=0)
    low, high = metrics.wilson(np.round(np.nan_to_num(share) * runs), runs)
    columns = (grid.lrs, grid.effective_lrs, loss, share, low, high)
    return [
        {
            "lr": lr,
            "effective_lr": effective if math.isfinite(effective) else None,
            "loss": mean if n else None,
            "diverged": Estimate(p, below, above, n).as_dict(),
        }
        for (lr, effective, mean, p, below, above), n in zip(
            zip(*(column.tolist() for column in columns), strict=True), runs.tolist(), strict=True
        )
    ]


def _tuning(grid: ArmGrid, scale: Scale) -> tuple[Estimate, ...]:
    curve = metrics.tuning_curve(grid.loss, draws=TUNING_DRAWS)
    low, high = metrics.tuning_bands(grid.loss, draws=TUNING_DRAWS, initial=scale.initial)
    ends = zip(curve.tolist(), low.tolist(), high.tolist(), strict=True)
    return tuple(Estimate(value, below, above, grid.measured) for value, below, above in ends)


def _bounds(grid: ArmGrid, cells: Cells, scale: Scale) -> dict[str, str]:
    """Which numbers the edge of the grid or the end of the budget cut short."""
    if not grid.measured:
        return {}
    loss, diverged, _ = (each[0] for each in cells.curves())
    x, at = np.log10(grid.lrs), int(np.nanargmin(loss))
    last = grid.lrs[np.isfinite(loss)][-1]
    own = metrics.basin(loss, x, tolerance=scale.tolerance)
    shared = metrics.basin(loss, x, tolerance=scale.tolerance, reference=scale.best)
    stable = metrics.largest_stable_lr(diverged, grid.lrs, at=at)[0] == last
    learns = loss[at] < scale.initial
    cut = {
        "basin": learns and (own.at_low[0] or own.at_high[0]),
        "basin_effective": learns and (own.at_low[0] or own.at_high[0]),
        "basin_shared": learns and (shared.at_low[0] or shared.at_high[0]),
        "largest_stable_lr": stable,
        "largest_stable_effective_lr": stable,
        "largest_half_stable_lr": metrics.largest_stable_lr(diverged, grid.lrs, at=at, share=0.5)[0] == last,
        "steps_to_target": cells.unreached[:, at].any(),
    }
    return {name: ">=" for name, short in cut.items() if short}


def _baselines(study: Study, rows: Sequence[ArmRow], chosen: str | None) -> dict[str, str]:
    if chosen is not None:
        study.arm(chosen)
        return {arm.name: chosen for arm in study.arms}
    found: dict[str, str] = {}
    for family in dict.fromkeys(row.family for row in rows):
        constant = [row for row in rows if row.family == family and not row.adaptive and row.best_loss.known]
        if constant:
            strongest = min(constant, key=lambda row: row.best_loss.value)
            found |= {row.arm: strongest.arm for row in rows if row.family == family}
    return found
