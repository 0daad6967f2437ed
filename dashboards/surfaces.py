"""Loss over learning rate and momentum: one surface per family of arms, all on one colour scale."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from dashboards import metrics, style
from dashboards.evidence import ArmGrid, Floats
from dashboards.style import number, percent, plain
from dashboards.summary import Summary

__all__ = ["SurfaceInfo", "SurfaceRow", "SurfacesInfo", "log_edges", "surfaces_figure", "surfaces_info"]

ROW_PIXELS, CONSTANTS_PIXELS = 34, 260
STRIPE_GAP, GROUP_GAP = 20, 84  # pixels above a strip of rules, and above the next study with its title
COLOURBAR_PIXELS = 360


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
    """One family's surface. constants: ascending in momentum. rules: the adaptive arms, a strip beside them.

    best, initial: the study's best loss of any arm, and its loss at initialisation.
    """

    title: str
    lrs: Floats
    constants: tuple[SurfaceRow, ...]
    rules: tuple[SurfaceRow, ...]
    best: float
    initial: float


class SurfacesInfo(NamedTuple):
    """Surfaces on one colour scale: a study's families side by side, one study below the other.

    relative: losses are coloured by the share of their own study's drop that is left above its best, because several
    studies share the scale; else by the loss itself.
    """

    surfaces: tuple[SurfaceInfo, ...]
    columns: int
    relative: bool

    @property
    def logarithmic(self) -> bool:
        return not self.relative and 0 < self.surfaces[0].best < self.surfaces[0].initial / 3


def surfaces_info(*summaries: Summary) -> SurfacesInfo:
    """What the surfaces of one study, or of several on one scale, show."""
    surfaces = [
        _surface(family, summary, several=len(summaries) > 1)
        for summary in summaries
        for family in dict.fromkeys(grid.arm.family for grid in summary.evidence.grids)
    ]
    columns = max(len({row.family for row in summary.rows}) for summary in summaries)
    return SurfacesInfo(tuple(surfaces), columns if len(summaries) == 1 else 2, len(summaries) > 1)


def _surface(family: str, summary: Summary, *, several: bool) -> SurfaceInfo:
    grids = [grid for grid in summary.evidence.grids if grid.arm.family == family]
    lrs = np.unique(np.concatenate([grid.lrs for grid in grids]))
    rows = [_row(grid, lrs, summary.row(grid.arm.name).frontier_lr) for grid in grids]
    constants = sorted((row for row in rows if row.momentum is not None), key=lambda row: row.momentum or 0.0)
    return SurfaceInfo(
        title=f"{summary.study.name}: {family}" if several else family,
        lrs=lrs,
        constants=tuple(constants),
        rules=tuple(row for row in rows if row.momentum is None),
        best=summary.scale.best,
        initial=summary.scale.initial,
    )


def _row(grid: ArmGrid, lrs: Floats, frontier_lr: float) -> SurfaceRow:
    at = np.searchsorted(lrs, grid.lrs)
    loss, diverged, runs = np.full(len(lrs), np.nan), np.full(len(lrs), np.nan), np.zeros(len(lrs))
    loss[at], diverged[at] = metrics.mean_over_seeds(grid.loss), metrics.mean_over_seeds(grid.diverged)
    runs[at] = np.isfinite(grid.loss).sum(axis=0)
    return SurfaceRow(grid.arm.name, grid.arm.momentum, loss, diverged, runs, frontier_lr)


# ------------------------------------------------------------------------------------------------------ the figure


class _Band(NamedTuple):
    """One row of panels of the figure: constants of some surfaces side by side, or their rules."""

    surfaces: tuple[SurfaceInfo, ...]
    rules: bool
    pixels: int
    gap: int
    first: bool
    last: bool


def surfaces_figure(info: SurfacesInfo) -> go.Figure:
    """The surfaces side by side: constants on the scale of log10(1 - beta), rules as stripes below."""
    bands = _bands(info)
    figure = make_subplots(rows=len(bands), cols=info.columns, horizontal_spacing=0.15 if info.columns > 1 else 0)
    height = sum(band.pixels + band.gap for band in bands)
    bottom = float(height)
    for row, band in enumerate(bands, start=1):
        bottom -= band.gap + band.pixels
        domain = [bottom / height, (bottom + band.pixels) / height]
        for column, surface in enumerate(band.surfaces, start=1):
            _draw(figure, info, surface, band, row=row, column=column)
            figure.update_yaxes(domain=domain, row=row, col=column)
            if band.first:
                _title(figure, surface.title, domain[1], row=row, column=column)
    style.layout(figure, height=height + 100)
    figure.update_xaxes(showgrid=False).update_yaxes(showgrid=False, ticks="")
    return figure.update_layout(
        coloraxis=_colour_axis(info, height), showlegend=False, margin={"l": 122, "r": 20, "t": 40, "b": 60}
    )


def _title(figure: go.Figure, text: str, y: float, *, row: int, column: int) -> None:
    axis = figure.get_subplot(row, column).xaxis.plotly_name.replace("axis", "")
    place = {"x": 0.5, "xref": f"{axis} domain", "xanchor": "center", "y": y, "yref": "paper", "yanchor": "bottom"}
    figure.add_annotation(place, text=f"<b>{plain(text)}</b>", showarrow=False, font={"size": 15})


def _bands(info: SurfacesInfo) -> list[_Band]:
    bands: list[_Band] = []
    for start in range(0, len(info.surfaces), info.columns):
        group = info.surfaces[start : start + info.columns]
        stripes, constants = max(len(surface.rules) for surface in group), any(surface.constants for surface in group)
        gap = GROUP_GAP if bands else 0
        if constants:
            bands.append(_Band(group, rules=False, pixels=CONSTANTS_PIXELS, gap=gap, first=True, last=not stripes))
        if stripes:
            gap = STRIPE_GAP if constants else gap
            pixels = stripes * ROW_PIXELS
            bands.append(_Band(group, rules=True, pixels=pixels, gap=gap, first=not constants, last=True))
    return bands


def _draw(figure: go.Figure, info: SurfacesInfo, surface: SurfaceInfo, band: _Band, *, row: int, column: int) -> None:
    """One panel with its axes; an empty one where the surface has no such arms."""
    rows = surface.rules if band.rules else surface.constants
    edges = log_edges(surface.lrs)
    at = [float(-index) for index in range(len(rows))] if band.rules else [_height(each.momentum) for each in rows]
    if rows:
        _panel(figure, info, surface, rows, edges, at, row=row, column=column)
    if not band.rules:
        _frontier(figure, rows, at, row, column)
    labels = [style.wrapped(each.arm, 16) if band.rules else f"β = {each.momentum:g}" for each in rows]
    figure.update_yaxes(tickvals=at, ticktext=labels, row=row, col=column)
    axis = style.lr_axis(float(edges[0]), float(edges[-1])) | {"range": np.log10(edges[[0, -1]]).tolist()}
    title = {"title": style.axis_label("learning rate")} if band.last else {}
    figure.update_xaxes(axis | title, showticklabels=band.last, row=row, col=column)


def _height(momentum: float | None) -> float:
    return -math.log10(1 - min(momentum or 0.0, 1 - 1e-9))


def _panel(
    figure: go.Figure,
    info: SurfacesInfo,
    surface: SurfaceInfo,
    rows: tuple[SurfaceRow, ...],
    x_edges: Floats,
    y: list[float],
    *,
    row: int,
    column: int,
) -> None:
    """Three layers that share no cell (a loss, diverged, not run), and a mark wherever there is more than a loss."""
    order = np.argsort(y)
    rows, y = tuple(rows[index] for index in order), [y[index] for index in order]
    loss, diverged = np.array([each.loss for each in rows]), np.array([each.diverged for each in rows])
    empty, mostly = np.array([each.runs for each in rows]) == 0, diverged >= 0.5
    gap = 1 if len(surface.lrs) <= style.DENSE else 0
    shape = {"x": x_edges, "y": _edges(np.array(y)), "xgap": gap, "ygap": 1, "hovertemplate": "%{text}<extra></extra>"}
    layers: list[tuple[NDArray[np.bool_], Floats, dict[str, object]]] = [
        (empty, np.ones_like(loss), _flat(style.NOT_RUN)),
        (mostly, np.ones_like(loss), _flat(style.DIVERGED)),
        (~(mostly | empty), _scaled(info, surface, loss), {"coloraxis": "coloraxis"}),
    ]
    for shown, values, look in layers:
        if shown.any():
            cells = {"z": np.where(shown, values, np.nan), "text": _hovers(rows, surface.lrs, shown)}
            figure.add_trace(go.Heatmap(**cells, **look, **shape), row=row, col=column)
    figure.add_trace(_marks(surface.lrs, np.array(y), diverged), row=row, col=column)


def _flat(colour: str) -> dict[str, object]:
    return {"colorscale": [[0, colour], [1, colour]], "showscale": False}


def _marks(lrs: Floats, y: Floats, diverged: Floats) -> go.Scatter:
    """What a grey print must tell too: a cross where half the seeds or more diverged, a dot where fewer did, a dash
    where nothing was run; on a dense grid only every few cells.
    """
    every = -(-len(lrs) // style.DENSE)
    marked = (np.isnan(diverged) | (diverged > 0)) & (np.arange(len(lrs)) % every == 0)
    cells, shares = np.argwhere(marked), diverged[marked]
    return go.Scatter(
        x=lrs[cells[:, 1]],
        y=y[cells[:, 0]],
        mode="markers",
        marker={
            "symbol": np.select([np.isnan(shares), shares >= 0.5], ["line-ew", "x-thin"], "circle").tolist(),
            "size": 8,
            "color": style.DIVERGED,
            "line": {"width": 1.4, "color": np.where(np.isnan(shares), style.MUTED, style.PAPER).tolist()},
        },
        hoverinfo="skip",
    )


def _frontier(figure: go.Figure, rows: tuple[SurfaceRow, ...], y: list[float], row: int, column: int) -> None:
    """The contour on which half of the seeds diverge."""
    known = [(each.frontier_lr, at) for each, at in zip(rows, y, strict=True) if math.isfinite(each.frontier_lr)]
    if len(known) > 1:
        x, y_known = zip(*known, strict=True)
        line = {"color": style.INK, "width": 2, "dash": "dot"}
        figure.add_trace(go.Scatter(x=x, y=y_known, mode="lines", line=line, hoverinfo="skip"), row=row, col=column)


def _hovers(rows: tuple[SurfaceRow, ...], lrs: Floats, shown: NDArray[np.bool_]) -> list[list[str]]:
    """What each cell says under the pointer; "" for cells of another layer."""
    return [
        [_hover(row, lrs, point) if seen else "" for point, seen in enumerate(mask)]
        for row, mask in zip(rows, shown.tolist(), strict=True)
    ]


def _hover(row: SurfaceRow, lrs: Floats, point: int) -> str:
    head = f"<b>{plain(row.arm)}</b><br>lr {number(float(lrs[point]))}<br>"
    if row.runs[point] == 0:
        return head + "not run"
    low, high = metrics.wilson(row.diverged[point] * row.runs[point], row.runs[point])
    return (
        f"{head}loss {number(float(row.loss[point]))}<br>{percent(float(row.diverged[point]))} "
        f"[{percent(float(low))}, {percent(float(high))}] of {row.runs[point]:.0f} seeds diverged"
    )


def _scaled(info: SurfacesInfo, surface: SurfaceInfo, loss: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        if info.relative:
            return np.asarray((loss - surface.best) / (surface.initial - surface.best))
        return np.log10(loss) if info.logarithmic else loss


def _colour_axis(info: SurfacesInfo, height: int) -> dict[str, object]:
    low, high = (0.0, 1.0) if info.relative else (info.surfaces[0].best, info.surfaces[0].initial)
    if not low < high:  # nothing was run, or nothing learned
        low, high = (low, low + 1) if math.isfinite(low) else (0.0, 1.0)
    values = np.geomspace(low, high, 5) if info.logarithmic else np.linspace(low, high, 5)
    ticks = np.log10(values) if info.logarithmic else values
    title = "loss above the study's best, share of its drop" if info.relative else "final validation loss"
    return {
        "colorscale": style.LOSS_SCALE,
        "cmin": float(ticks[0]),
        "cmax": float(ticks[-1]),
        "colorbar": {
            "title": {"text": title, "side": "right", "font": {"size": 12, "color": style.MUTED}},
            "tickvals": ticks.tolist(),
            "ticktext": [(percent if info.relative else number)(float(value)) for value in values],
            "thickness": 12,
            "outlinewidth": 0,
            "len": min(1.0, COLOURBAR_PIXELS / height),
            "y": 1,
            "yanchor": "top",
        },
    }


def _edges(centres: Floats) -> Floats:
    """The boundaries of cells around their centres, halfway between neighbours."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def log_edges(lrs: Floats) -> Floats:
    """The boundaries of the cells around learning rates, halfway between neighbours on a log axis."""
    return np.asarray(10 ** _edges(np.log10(lrs)))
