"""Loss over learning rate and momentum: one surface per family of arms, all on one colour scale."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards import metrics, style
from dashboards.evidence import ArmGrid, Floats
from dashboards.style import number, percent, plain
from dashboards.summary import Summary

__all__ = ["SurfaceInfo", "SurfaceRow", "SurfacesInfo", "surfaces_figure", "surfaces_info"]

ROW_PIXELS, CONSTANTS_PIXELS = 34, 260


class SurfaceRow(NamedTuple):
    """One arm's stripe of a surface: arrays of shape (points,) on its family's learning rates.

    momentum: the constant, None for a rule. loss: mean over seeds. diverged: share of seeds. runs: trials behind a
    cell, 0 where nothing has been run. frontier_lr: where half the seeds diverge; nan if they do not inside the grid.
    """

    arm: str
    momentum: float | None
    loss: Floats
    diverged: Floats
    runs: Floats
    frontier_lr: float


class SurfaceInfo(NamedTuple):
    """One family's surface. constants: ascending in momentum. rules: the adaptive arms, a strip beside them."""

    family: str
    lrs: Floats
    constants: tuple[SurfaceRow, ...]
    rules: tuple[SurfaceRow, ...]


class SurfacesInfo(NamedTuple):
    """Every family's surface, and the colour scale they share: from the study's best loss to that at initialisation."""

    surfaces: tuple[SurfaceInfo, ...]
    best: float
    initial: float
    workload: str

    @property
    def logarithmic(self) -> bool:
        return 0 < self.best < self.initial / 3


def surfaces_info(summary: Summary) -> SurfacesInfo:
    """What the surfaces of a study show."""
    families = dict.fromkeys(grid.arm.family for grid in summary.evidence.grids)
    surfaces = tuple(_surface(family, summary) for family in families)
    return SurfacesInfo(surfaces, summary.scale.best, summary.scale.initial, summary.study.workload)


def _surface(family: str, summary: Summary) -> SurfaceInfo:
    grids = [grid for grid in summary.evidence.grids if grid.arm.family == family]
    lrs = np.unique(np.concatenate([grid.lrs for grid in grids]))
    rows = [_row(grid, lrs, summary.row(grid.arm.name).frontier_lr) for grid in grids]
    constants = sorted((row for row in rows if row.momentum is not None), key=lambda row: row.momentum or 0.0)
    return SurfaceInfo(family, lrs, tuple(constants), tuple(row for row in rows if row.momentum is None))


def _row(grid: ArmGrid, lrs: Floats, frontier_lr: float) -> SurfaceRow:
    at = np.searchsorted(lrs, grid.lrs)
    loss, diverged, runs = np.full(len(lrs), np.nan), np.full(len(lrs), np.nan), np.zeros(len(lrs))
    loss[at], diverged[at] = metrics.mean_over_seeds(grid.loss), metrics.mean_over_seeds(grid.diverged)
    runs[at] = np.isfinite(grid.loss).sum(axis=0)
    return SurfaceRow(grid.arm.name, grid.arm.momentum, loss, diverged, runs, frontier_lr)


# ------------------------------------------------------------------------------------------------------ the figure


def surfaces_figure(info: SurfacesInfo) -> go.Figure:
    """The surfaces side by side: constants on the scale of log10(1 - beta), rules as stripes below."""
    columns, stripes = len(info.surfaces), max(len(surface.rules) for surface in info.surfaces)
    constants = any(surface.constants for surface in info.surfaces)
    heights = [CONSTANTS_PIXELS] * constants + [stripes * ROW_PIXELS] * bool(stripes)
    figure = make_subplots(
        rows=len(heights),
        cols=columns,
        row_heights=[height / sum(heights) for height in heights],
        vertical_spacing=26 / (sum(heights) + 26) if len(heights) > 1 else 0,
        horizontal_spacing=0.13 if columns > 1 else 0,
        shared_xaxes="columns",
        subplot_titles=[f"<b>{plain(surface.family)}</b>" for surface in info.surfaces],
    )
    for column, surface in enumerate(info.surfaces, start=1):
        edges = _log_edges(surface.lrs)
        if surface.constants:
            heights_at = [-math.log10(1 - min(row.momentum or 0.0, 1 - 1e-9)) for row in surface.constants]
            _panel(figure, info, surface.constants, surface.lrs, edges, heights_at, row=1, column=column)
            _frontier(figure, surface.constants, heights_at, column)
            labels = [f"β = {row.momentum:g}" for row in surface.constants]
            figure.update_yaxes(tickvals=heights_at, ticktext=labels, row=1, col=column)
        if surface.rules:
            at = [float(len(surface.rules) - 1 - index) for index in range(len(surface.rules))]
            _panel(figure, info, surface.rules, surface.lrs, edges, at, row=len(heights), column=column)
            labels = [style.wrapped(row.arm, 16) for row in surface.rules]
            figure.update_yaxes(tickvals=at, ticktext=labels, row=len(heights), col=column)
        for row in {1, len(heights)}:
            figure.update_xaxes(style.lr_axis(float(edges[0]), float(edges[-1])), row=row, col=column)
        figure.update_xaxes(title=style.axis_label("learning rate"), row=len(heights), col=column)
    style.layout(figure, height=sum(heights) + 26 + 100)
    figure.update_xaxes(showgrid=False).update_yaxes(showgrid=False, ticks="")
    return figure.update_layout(
        coloraxis=_colour_axis(info), showlegend=False, margin={"l": 104, "r": 20, "t": 40, "b": 60}
    )


def _panel(
    figure: go.Figure,
    info: SurfacesInfo,
    rows: tuple[SurfaceRow, ...],
    lrs: Floats,
    x_edges: Floats,
    y: list[float],
    *,
    row: int,
    column: int,
) -> None:
    """Three layers that share no cell (a loss, diverged, not run), and a cross wherever some seed diverged."""
    loss, diverged = np.array([each.loss for each in rows]), np.array([each.diverged for each in rows])
    runs = np.array([each.runs for each in rows])
    order = np.argsort(y)
    mostly, empty = diverged >= 0.5, runs == 0
    text = [[_hover(each, lrs, point) for point in range(len(lrs))] for each in rows]
    shape = {"x": x_edges, "y": _edges(np.sort(y)), "xgap": 1, "ygap": 1, "hovertemplate": "%{text}<extra></extra>"}
    texts = [text[index] for index in order]
    for mask, colour in ((empty, style.NOT_RUN), (mostly, style.DIVERGED)):
        if mask.any():
            z = np.where(mask, 1.0, np.nan)[order]
            flat = {"colorscale": [[0, colour], [1, colour]], "showscale": False}
            figure.add_trace(go.Heatmap(z=z, text=texts, **flat, **shape), row=row, col=column)
    z = np.where(mostly | empty, np.nan, _scaled(info, loss))[order]
    figure.add_trace(go.Heatmap(z=z, text=texts, coloraxis="coloraxis", **shape), row=row, col=column)
    crossed = np.argwhere(diverged > 0)
    figure.add_trace(
        go.Scatter(
            x=lrs[crossed[:, 1]],
            y=np.array(y)[crossed[:, 0]],
            mode="markers",
            marker={
                "symbol": ["x-thin" if mostly[tuple(cell)] else "circle" for cell in crossed],
                "size": 8,
                "color": style.DIVERGED,
                "line": {"width": 1.4, "color": style.PAPER},
            },
            hoverinfo="skip",
        ),
        row=row,
        col=column,
    )


def _frontier(figure: go.Figure, rows: tuple[SurfaceRow, ...], y: list[float], column: int) -> None:
    """The contour on which half of the seeds diverge."""
    known = [(row.frontier_lr, at) for row, at in zip(rows, y, strict=True) if math.isfinite(row.frontier_lr)]
    if len(known) > 1:
        x, y_known = zip(*known, strict=True)
        line = {"color": style.INK, "width": 2, "dash": "dot"}
        figure.add_trace(go.Scatter(x=x, y=y_known, mode="lines", line=line, hoverinfo="skip"), row=1, col=column)


def _hover(row: SurfaceRow, lrs: Floats, point: int) -> str:
    head = f"<b>{plain(row.arm)}</b><br>lr {number(float(lrs[point]))}<br>"
    if row.runs[point] == 0:
        return head + "not run"
    return (
        f"{head}loss {number(float(row.loss[point]))}<br>"
        f"{percent(float(row.diverged[point]))} of {row.runs[point]:.0f} seeds diverged"
    )


def _scaled(info: SurfacesInfo, loss: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.log10(loss) if info.logarithmic else loss


def _colour_axis(info: SurfacesInfo) -> dict[str, object]:
    low, high = (info.best, info.initial) if info.best < info.initial else (info.best, info.best + 1)
    if not math.isfinite(low):
        low, high = 0.0, 1.0
    values = np.geomspace(low, high, 5) if info.logarithmic else np.linspace(low, high, 5)
    ticks = np.log10(values) if info.logarithmic else values
    return {
        "colorscale": style.LOSS_SCALE,
        "cmin": float(ticks[0]),
        "cmax": float(ticks[-1]),
        "colorbar": {
            "title": {"text": "final validation loss", "side": "right", "font": {"size": 12, "color": style.MUTED}},
            "tickvals": ticks.tolist(),
            "ticktext": [number(float(value)) for value in values],
            "thickness": 12,
            "outlinewidth": 0,
        },
    }


def _edges(centres: Floats) -> Floats:
    """The boundaries of cells around their centres, halfway between neighbours."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def _log_edges(lrs: Floats) -> Floats:
    return np.asarray(10 ** _edges(np.log10(lrs)))
