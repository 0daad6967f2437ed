"""Every statistic of one arm, computed at once: from its own seeds, from resampled ones, or from swapped ones alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dashboards import metrics
from dashboards.evidence import ArmGrid, Evidence, Floats

__all__ = ["CENTRED_DECADES", "STATISTICS", "TOLERANCE", "Cells", "Curves", "Scale", "Statistic", "measure"]

TOLERANCE = 0.10  # "near the best": all but a tenth of the study's drop in loss, 0.25 nats for a character model
CENTRED_DECADES = 1.0  # half the window around each arm's own optimum, Wortsman's answer to shifted optima


class Statistic(NamedTuple):
    """What a number is called, which way is better, and how a difference of two is expressed.

    logarithmic: compared as a ratio, in decades, because it lies on a log axis.
    """

    name: str
    title: str
    unit: str
    lower_is_better: bool
    logarithmic: bool = False


STATISTICS = {
    statistic.name: statistic
    for statistic in (
        Statistic("best_loss", "best loss", "", True),
        Statistic("basin", "basin", "decades", False),
        Statistic("basin_shared", "basin at the study's best loss", "decades", False),
        Statistic("basin_effective", "basin in effective lr", "decades", False),
        Statistic("largest_stable_lr", "largest stable lr", "", False, logarithmic=True),
        Statistic("largest_half_stable_lr", "largest lr with at most half the seeds diverged", "", False, True),
        Statistic("largest_stable_effective_lr", "largest stable effective lr", "", False, logarithmic=True),
        Statistic("sensitivity", "lr sensitivity", "", True),
        Statistic("sensitivity_common", "lr sensitivity, common window", "", True),
        Statistic("sensitivity_centred", "lr sensitivity, window centred on the optimum", "", True),
        Statistic("area", "normalised area", "", False),
        Statistic("steps_to_target", "steps to target", "steps", True),
    )
}


@dataclass(frozen=True)
class Scale:
    """What every arm of a study is measured against.

    initial: L0, the median loss at initialisation. best: the lowest mean loss of any arm. common: the first and last
    learning rate that every arm has (nan, nan when there is none). steps: of a whole run.
    """

    initial: float
    best: float
    common: tuple[float, float]
    steps: int

    @classmethod
    def of(cls, evidence: Evidence) -> Scale:
        initial = [grid.initial[np.isfinite(grid.initial)] for grid in evidence.grids]
        lowest = [float(metrics.best(metrics.mean_over_seeds(grid.loss))) for grid in evidence.grids]
        known = [loss for loss in lowest if np.isfinite(loss)]
        start = max(grid.lrs[0] for grid in evidence.grids)
        stop = min(grid.lrs[-1] for grid in evidence.grids)
        return cls(
            initial=float(np.median(np.concatenate(initial))) if known else np.nan,
            best=min(known, default=np.nan),
            common=(float(start), float(stop)) if start <= stop else (np.nan, np.nan),
            steps=evidence.study.budget.steps,
        )

    @property
    def tolerance(self) -> float:
        """How far above the best still counts as near it, in units of the loss."""
        return TOLERANCE * max(self.initial - self.best, 0.0)

    @property
    def target(self) -> float:
        """The loss that a run must reach for its steps to be counted."""
        return self.best + self.tolerance


@dataclass(frozen=True, eq=False)
class Cells:
    """What one arm measured: arrays of shape (seeds, points).

    steps: to the target, at most a whole run. unreached: the run ended before it got there, so its steps are too few.
    """

    lrs: Floats
    effective_lrs: Floats
    loss: Floats
    diverged: Floats
    steps: Floats
    unreached: NDArray[np.bool_]

    @classmethod
    def of(cls, grid: ArmGrid, evidence: Evidence, scale: Scale) -> Cells:
        steps = np.full(grid.loss.shape, np.nan)
        ran = np.isfinite(grid.loss)
        steps[ran] = metrics.steps_to_target(
            evidence.validation_loss[grid.row[ran]], evidence.steps, target=scale.target
        )
        capped = np.minimum(steps, scale.steps)
        return cls(grid.lrs, grid.effective_lrs, grid.loss, grid.diverged, capped, np.isinf(steps))

    def at(self, points: NDArray[np.bool_] | NDArray[np.intp], seeds: NDArray[np.bool_]) -> Cells:
        """Only these points and seeds."""
        rows = self.loss[seeds][:, points], self.diverged[seeds][:, points], self.steps[seeds][:, points]
        return Cells(self.lrs[points], self.effective_lrs[points], *rows, self.unreached[seeds][:, points])

    def curves(self, weights: Floats | None = None) -> Curves:
        """The means over seeds, of shape (1, points); with weights of shape (resamples, seeds), one per resample."""
        means = [metrics.mean_over_seeds(each, weights) for each in (self.loss, self.diverged, self.steps)]
        return Curves(*map(np.atleast_2d, means))


class Curves(NamedTuple):
    """Means over seeds, each an array of shape (..., points)."""

    loss: Floats
    diverged: Floats
    steps: Floats


def measure(curves: Curves, cells: Cells, scale: Scale) -> dict[str, Floats]:
    """Every statistic in STATISTICS of each row of curves: arrays of shape (rows,), nan where it cannot be computed."""
    rows = len(curves.loss)
    ran = np.asarray(np.isfinite(curves.loss).any(axis=-1))
    if not ran.all():
        values = measure(Curves(*(each[ran] for each in curves)), cells, scale) if ran.any() else {}
        return {name: _spread(values.get(name), ran) for name in STATISTICS}
    x, start = np.log10(cells.lrs), np.nanargmin(curves.loss, axis=-1)
    lowest = metrics.best(curves.loss)
    own = metrics.basin(curves.loss, x, tolerance=scale.tolerance)
    shared = metrics.basin(curves.loss, x, tolerance=scale.tolerance, reference=scale.best)
    learns = lowest < scale.initial  # an arm that never beats initialisation has no basin, however flat it is
    effective = np.log10(cells.effective_lrs)
    stable = metrics.largest_stable_lr(curves.diverged, cells.lrs, at=start)
    common = (cells.lrs >= scale.common[0]) & (cells.lrs <= scale.common[1])
    return {
        "best_loss": lowest,
        "basin": np.where(learns, own.width, 0.0),
        "basin_shared": np.where(learns, shared.width, 0.0),
        "basin_effective": np.where(learns, np.interp(own.high, x, effective) - np.interp(own.low, x, effective), 0.0),
        "largest_stable_lr": stable,
        "largest_half_stable_lr": metrics.largest_stable_lr(curves.diverged, cells.lrs, at=start, share=0.5),
        "largest_stable_effective_lr": 10 ** np.interp(np.log10(stable), x, effective),
        "sensitivity": metrics.learning_rate_sensitivity(curves.loss),
        "sensitivity_common": _sensitivity(curves.loss, np.broadcast_to(common, (rows, len(x)))),
        "sensitivity_centred": _centred(curves.loss, x, start),
        "area": metrics.normalised_area(curves.loss, initial=scale.initial, reference=scale.best),
        "steps_to_target": curves.steps[np.arange(rows), start],
    }


def _spread(values: Floats | None, where: NDArray[np.bool_]) -> Floats:
    whole = np.full(len(where), np.nan)
    if values is not None:
        whole[where] = values
    return whole


def _sensitivity(loss: Floats, window: NDArray[np.bool_]) -> Floats:
    inside = np.where(window, loss, np.nan)
    some = np.asarray(np.isfinite(inside).any(axis=-1))
    return np.where(some, metrics.learning_rate_sensitivity(np.where(some[:, None], inside, 0.0)), np.nan)


def _centred(loss: Floats, x: Floats, start: NDArray[np.intp]) -> Floats:
    """The sensitivity in a window around each row's own optimum; nan where the window leaves the grid."""
    centre = x[start][:, None]
    slack = 1e-9  # the grid's decades are sums of floats
    complete = (centre[:, 0] - CENTRED_DECADES >= x[0] - slack) & (centre[:, 0] + CENTRED_DECADES <= x[-1] + slack)
    near = np.abs(x - centre) <= CENTRED_DECADES + slack
    return np.where(complete, _sensitivity(loss, near), np.nan)
