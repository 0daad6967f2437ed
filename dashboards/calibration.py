"""Light runs predict heavy ones: how well a part of the budget says what the whole of it would have given.

The correction is never upwards, as in multi-level training (arXiv 2007.09953): heavy = light - D with D >= 0, D a
Gaussian process of (log lr, log (1 - beta), light) clipped at zero. A run seen early counts as a light run, which is
exact where the learning rate is constant.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from scipy.stats import spearmanr

from dashboards import metrics, style
from dashboards.evidence import ArmGrid, Evidence, Floats
from dashboards.gaussian_process import GaussianProcess
from dashboards.law import FOLDS
from dashboards.measures import Scale
from dashboards.style import Look, fixed, number, plain

__all__ = ["LIGHT", "Calibration", "calibrate", "calibration_figure"]

LIGHT = 0.25  # of the budget
LEAST_POINTS = 20


class Calibration(NamedTuple):
    """Light and heavy mean losses per arm, and root mean square errors on grid points left out, in units of the loss.

    light, heavy: per arm, arrays of shape (points,). as_is: predicting the light loss itself; shifted: less the mean
    correction; calibrated: less the fitted one. rank: Spearman's correlation of light with heavy over all points.
    steps: of the light runs.
    """

    light: dict[str, Floats]
    heavy: dict[str, Floats]
    as_is: float
    shifted: float
    calibrated: float
    rank: float
    points: int
    steps: int

    def as_dict(self) -> dict[str, Any]:
        errors = {"as_is": self.as_is, "shifted": self.shifted, "calibrated": self.calibrated}
        rank = self.rank if math.isfinite(self.rank) else None
        return {"steps": self.steps, "points": self.points, "held_out_error": errors, "rank_correlation": rank}

    @property
    def sentence(self) -> str:
        """How far a light run is from a heavy one, and whether it ranks them."""
        return (
            f"Predicting the final loss of {self.points} grid points from {self.steps} steps, left-out error: "
            f"{fixed(self.as_is)} as it is, {fixed(self.shifted)} less the mean correction, {fixed(self.calibrated)} "
            f"calibrated; rank correlation {number(self.rank)}."
        )


def calibrate(evidence: Evidence, scale: Scale, *, seed: int) -> Calibration | None:
    """How well runs seen at a quarter of their budget predict their end; None without curves for enough points."""
    column = int(np.abs(evidence.steps - LIGHT * scale.steps).argmin())
    light, heavy, inputs, ends = {}, {}, [], []
    for grid in evidence.grids:
        early, end = _pairs(grid, evidence, column)
        both = np.isfinite(early) & np.isfinite(end)
        light[grid.arm.name], heavy[grid.arm.name] = early, end
        inputs.append(_inputs(grid, early)[both])
        ends.append(end[both])
    x, y = np.vstack(inputs), np.concatenate(ends)
    if len(y) < LEAST_POINTS:
        return None
    rank = float(spearmanr(x[:, 2], y).statistic) if np.ptp(y) > 0 and np.ptp(x[:, 2]) > 0 else math.nan
    return Calibration(light, heavy, *_held_out(x, y, seed=seed), rank, len(y), int(evidence.steps[column]))


def _pairs(grid: ArmGrid, evidence: Evidence, column: int) -> tuple[Floats, Floats]:
    """Mean loss over seeds at that evaluation and at the end, per learning rate, of the runs that stored a curve."""
    losses = evidence.validation_loss
    ran = np.isfinite(grid.loss)
    ran[ran] = np.isfinite(losses[grid.row[ran]]).any(axis=1)
    light, heavy = np.full(grid.loss.shape, np.nan), np.where(ran, grid.loss, np.nan)
    light[ran] = metrics.cap(losses[grid.row[ran], column], grid.initial[ran])
    return metrics.mean_over_seeds(light), metrics.mean_over_seeds(heavy)


def _inputs(grid: ArmGrid, light: Floats) -> Floats:
    momentum = np.clip(metrics.mean_over_seeds(grid.momentum), 0, 1 - 1e-9)
    return np.column_stack([np.log10(grid.lrs), np.log10(1 - np.nan_to_num(momentum)), light])


def _held_out(inputs: Floats, heavy: Floats, *, seed: int) -> tuple[float, float, float]:
    fold = np.random.default_rng(seed).permutation(len(heavy)) % FOLDS
    light, squared = inputs[:, 2], np.empty((3, len(heavy)))
    for each in range(FOLDS):
        seen, hidden = fold != each, fold == each
        correction = light[seen] - heavy[seen]
        fitted = GaussianProcess.fit(inputs[seen], correction, seed=seed).predict(inputs[hidden])[0].clip(min=0)
        for row, guess in enumerate(
            (light[hidden], light[hidden] - max(correction.mean(), 0.0), light[hidden] - fitted)
        ):
            squared[row, hidden] = (guess - heavy[hidden]) ** 2
    as_is, shifted, calibrated = np.sqrt(squared.mean(axis=1)).tolist()
    return as_is, shifted, calibrated


def calibration_figure(info: Calibration, looks: dict[str, Look]) -> go.Figure:
    """Final loss against the loss at a quarter of the budget; on the diagonal nothing more was learned."""
    figure = go.Figure()
    for arm, light in info.light.items():
        look = looks[arm]
        marker = {"symbol": look.marker, "size": 7, "color": look.colour}
        hover = f"<b>{plain(arm)}</b><br>early %{{x:.3g}}, final %{{y:.3g}}<extra></extra>"
        figure.add_trace(
            go.Scatter(x=light, y=info.heavy[arm], mode="markers", name=plain(arm), marker=marker, hovertemplate=hover)
        )
    every = np.concatenate([*info.light.values(), *info.heavy.values()])
    low, high = float(np.nanmin(every)), float(np.nanmax(every))
    diagonal = {"color": style.MUTED, "width": 1, "dash": "dot"}
    figure.add_trace(go.Scatter(x=[low, high], y=[low, high], mode="lines", line=diagonal, showlegend=False))
    style.layout(figure, height=420)
    axis = style.log_axis(low, high)
    figure.update_xaxes(axis, title=style.axis_label(f"validation loss after {number(info.steps)} steps"))
    return figure.update_yaxes(axis, title=style.axis_label("final validation loss"))
