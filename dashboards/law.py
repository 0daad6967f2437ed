"""A parametric law of the loss over learning rate, momentum and budget, and how well it predicts cells it never saw.

Our own form, read off the pictures rather than derived: with x = log10 lr, z = log10(1 - beta) and t = log10 of the
share of the budget,

    drop = A sigmoid((x - a) / w) sigmoid((b - x) / v)
    A = c0 + c1 z + c2 z^2 + c3 t        what is gained on the plateau
    a = a0 + a1 z + a2 t                 below a, the budget ends before anything is learned
    b = b0 + b1 z + b2 t + b3 z^2        above b, runs diverge

where drop = (L0 - L) / (L0 - L*) is 0 at initialisation and 1 at the study's best. The law draws what lies between grid
points; it never stands in for a cell, and its error on cells left out of the fit is printed beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.special import expit

from dashboards import metrics
from dashboards.evidence import ArmGrid, Evidence, Floats
from dashboards.gaussian_process import GaussianProcess
from dashboards.measures import Scale

__all__ = ["HeldOut", "Samples", "SurfaceLaw", "held_out_errors", "samples"]

SHARES = (0.25, 0.5, 1.0)  # of the budget: a run seen early is a shorter run, where the learning rate is constant
FOLDS = 5
LEAST_POINTS = 20  # fewer grid points than twice the law's parameters say nothing about it
RIDGE = 1e-2  # keeps what the data do not determine, such as a slope in momentum of one momentum, where it started
WIDTHS = slice(7, 9)  # where log w and log v stand among the parameters
STEEPEST, FLATTEST = 0.04, 2.0  # decades: no edge is steeper than a grid resolves or wider than a grid is


class Samples(NamedTuple):
    """Cells of one family's constants: five arrays of shape (samples,).

    x, z, t: log10 of lr, of 1 - beta and of the share of the budget. drop: the share of the study's drop in loss that
    the mean over seeds achieved. point: which grid point, all budgets alike; folds never split one.
    """

    x: Floats
    z: Floats
    t: Floats
    drop: Floats
    point: NDArray[np.int64]

    def at(self, rows: NDArray[np.bool_]) -> Samples:
        return Samples(self.x[rows], self.z[rows], self.t[rows], self.drop[rows], self.point[rows])

    @property
    def inputs(self) -> Floats:
        """Array of shape (samples, 3)."""
        return np.column_stack([self.x, self.z, self.t])


class HeldOut(NamedTuple):
    """Root mean square error on cells left out of the fit, as a share of the study's drop. points: how many in all."""

    law: float
    gaussian_process: float
    nearest: float
    points: int


def samples(evidence: Evidence, scale: Scale, family: str) -> Samples | None:
    """The measured cells of a family's constants at a quarter, half and all of the budget; None if they are too few."""
    grids = [grid for grid in evidence.grids if grid.arm.family == family and not grid.arm.adaptive and grid.measured]
    if not scale.best < scale.initial or sum(np.isfinite(grid.loss).any(axis=0).sum() for grid in grids) < LEAST_POINTS:
        return None
    rows = []
    for index, grid in enumerate(grids):
        z = np.log10(1 - min(grid.arm.momentum or 0.0, 1 - 1e-9))
        for share, curve in zip(SHARES, _curves(grid, evidence, scale), strict=True):
            drop = (scale.initial - curve) / (scale.initial - scale.best)
            rows += [
                (np.log10(lr), z, np.log10(share), gained, index * 10_000 + point)
                for point, (lr, gained) in enumerate(zip(grid.lrs, drop, strict=True))
                if np.isfinite(gained)
            ]
    x, z, t, drop, point = np.array(rows).T
    return Samples(x, z, t, drop, point.astype(np.int64))


def _curves(grid: ArmGrid, evidence: Evidence, scale: Scale) -> list[Floats]:
    """Mean loss over seeds per learning rate after each share of the budget: nan where no curve was stored."""
    ran = np.isfinite(grid.loss)
    curves = []
    for share in SHARES[:-1]:
        column = int(np.abs(evidence.steps - share * scale.steps).argmin())
        early = np.full(grid.loss.shape, np.nan)
        stored = np.isfinite(evidence.validation_loss[grid.row[ran]]).any(axis=1)
        seen = metrics.cap(evidence.validation_loss[grid.row[ran], column], grid.initial[ran])
        early[ran] = np.where(stored, seen, np.nan)
        curves.append(metrics.mean_over_seeds(early))
    return [*curves, metrics.mean_over_seeds(grid.loss)]


class SurfaceLaw(NamedTuple):
    """The fitted law. parameters: a0 a1 a2, b0 b1 b2 b3, log w, log v, c0 c1 c2 c3. covariance: of these."""

    parameters: Floats
    covariance: Floats
    noise: float

    @classmethod
    def fit(cls, cells: Samples) -> SurfaceLaw:
        """Least squares, robust to single cells, from the edges that the data show."""
        start = _start(cells)

        def residuals(parameters: Floats) -> Floats:
            return np.concatenate([_drop(parameters, cells.inputs) - cells.drop, RIDGE * (parameters - start)])

        low, high = np.full(len(start), -np.inf), np.full(len(start), np.inf)
        low[WIDTHS], high[WIDTHS] = np.log(STEEPEST), np.log(FLATTEST)
        found = least_squares(residuals, start, bounds=(low, high), loss="soft_l1", f_scale=0.1, max_nfev=200)
        misfit = _drop(found.x, cells.inputs) - cells.drop
        noise = float(np.sqrt((misfit**2).sum() / max(len(misfit) - len(start), 1)))
        return cls(found.x, noise**2 * np.linalg.inv(found.jac.T @ found.jac), noise)

    def predict(self, inputs: Floats) -> tuple[Floats, Floats]:
        """Drop and its standard deviation (parameters and misfit) at inputs of shape (samples, 3): x, z, t."""
        drop = _drop(self.parameters, inputs)
        step = 1e-5
        slopes = np.column_stack(
            [(_drop(self.parameters + step * unit, inputs) - drop) / step for unit in np.eye(len(self.parameters))]
        )
        spread = np.einsum("ij,jk,ik->i", slopes, self.covariance, slopes)
        return drop, np.sqrt(np.clip(spread, 0, None) + self.noise**2)


def _drop(parameters: Floats, inputs: Floats) -> Floats:
    x, z, t = inputs.T
    a0, a1, a2, b0, b1, b2, b3, w, v, c0, c1, c2, c3 = parameters
    plateau = c0 + c1 * z + c2 * z**2 + c3 * t
    a, b = a0 + a1 * z + a2 * t, b0 + b1 * z + b2 * t + b3 * z**2
    return np.asarray(plateau * expit((x - a) / np.exp(w)) * expit((b - x) / np.exp(v)))


def _start(cells: Samples) -> Floats:
    """Edges where the whole runs cross half the drop; slopes as theory has them: an effective lr of lr / (1 - beta)."""
    whole = cells.at(cells.t == 0)
    effective = whole.x - whole.z
    good = effective[whole.drop > 0.5]
    low, high = (good.min(), good.max()) if len(good) else (effective.min(), effective.max())
    return np.array([low, 1, -1, high + 0.1, 1, 0, 0, np.log(0.2), np.log(0.05), 1, 0, 0, 0], dtype=float)


def held_out_errors(cells: Samples, *, seed: int) -> HeldOut:
    """Five-fold errors of the law, of a Gaussian process and of the nearest grid point, on whole runs left out."""
    points = np.unique(cells.point)
    fold = np.random.default_rng(seed).permutation(len(points)) % FOLDS
    of_cell = fold[np.searchsorted(points, cells.point)]
    squared: list[list[Floats]] = [[], [], []]
    for each in range(FOLDS):
        seen, hidden = cells.at(of_cell != each), cells.at((of_cell == each) & (cells.t == 0))
        guesses = (
            SurfaceLaw.fit(seen).predict(hidden.inputs)[0],
            GaussianProcess.fit(seen.inputs, seen.drop, seed=seed).predict(hidden.inputs)[0],
            _nearest(seen, hidden),
        )
        for errors, guess in zip(squared, guesses, strict=True):
            errors.append((guess - hidden.drop) ** 2)
    law, process, nearest = (float(np.sqrt(np.concatenate(errors).mean())) for errors in squared)
    return HeldOut(law, process, nearest, len(points))


def _nearest(seen: Samples, hidden: Samples) -> Floats:
    """The drop at the nearest whole run that was seen, learning rate and 1 - beta measured in decades."""
    whole = seen.at(seen.t == 0)
    distance = np.abs(hidden.x[:, None] - whole.x) + np.abs(hidden.z[:, None] - whole.z)
    return np.asarray(whole.drop[distance.argmin(axis=1)])
