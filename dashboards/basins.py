"""Where each arm works on the learning-rate axis: the first picture of a page, drawn without a script.

Plotly's bundle takes the better part of a second to load, and mail clients run no script at all. On the page this one
is plain SVG inside a table, drawn by the template in shares of the axis, so that a phone, a print and a screen reader
get it whole; `basins_figure` draws the same for a paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from dashboards import metrics, style
from dashboards.comparison import Estimate
from dashboards.evidence import ArmGrid
from dashboards.style import Look, decades, plain
from dashboards.summary import ArmRow, Summary
from dashboards.surfaces import log_edges

__all__ = ["BasinRow", "BasinsInfo", "Stretch", "Tick", "basins_figure", "basins_info"]

Span = tuple[float, float]


class Stretch(NamedTuple):
    """Neighbouring learning rates with the same share of seeds diverged; nan where nothing has been run."""

    span: Span
    diverged: float


class BasinRow(NamedTuple):
    """One arm's track. Places are shares of the axis, 0 at its left end and 1 at its right.

    basin: where the mean loss is within the tolerance of the arm's best; None if it never learned or has not been run.
    good: that best is within the tolerance of the study's; else the basin lies around a poor loss. best: the learning
    rate of the arm's best loss. apart: it is the first of another family than the arm above it.
    """

    arm: str
    look: Look
    apart: bool
    width: Estimate
    basin: Span | None
    good: bool
    best: float
    stretches: tuple[Stretch, ...]


class Tick(NamedTuple):
    """A power of ten on the axis."""

    at: float
    label: str


class BasinsInfo(NamedTuple):
    """Every arm's track on one axis of learning rates; no rows where nothing has been run."""

    rows: tuple[BasinRow, ...]
    ticks: tuple[Tick, ...]


def basins_info(summary: Summary) -> BasinsInfo:
    """What the picture shows: each arm's basin, its best learning rate, and the share of seeds diverged."""
    if not any(row.measured for row in summary.rows):
        return BasinsInfo((), ())
    axis, looks = _Axis.of(summary.evidence.grids), style.looks(summary.study.arms)
    above = [None, *(row.family for row in summary.rows)]
    rows = [
        BasinRow(
            arm=row.arm,
            look=looks[row.arm],
            apart=family not in (None, row.family),
            width=row.basin,
            basin=_basin(row, axis),
            good=row.best_loss.value <= summary.scale.target,
            best=axis.place(row.best_lr),
            stretches=_stretches(grid, axis),
        )
        for row, grid, family in zip(summary.rows, summary.evidence.grids, above, strict=False)
    ]
    return BasinsInfo(tuple(rows), axis.ticks())


def _basin(row: ArmRow, axis: _Axis) -> Span | None:
    low, high = row.basin_lrs
    return (axis.place(low), axis.place(high)) if math.isfinite(low) else None


def _stretches(grid: ArmGrid, axis: _Axis) -> tuple[Stretch, ...]:
    shares = metrics.mean_over_seeds(grid.diverged).tolist()
    edges = log_edges(grid.lrs).tolist()
    found, at = [], 0
    for share, cells in groupby(shares, key=lambda share: -1.0 if math.isnan(share) else share):
        end = at + len(list(cells))
        found.append(Stretch((axis.place(edges[at]), axis.place(edges[end])), math.nan if share < 0 else share))
        at = end
    return tuple(found)


class _Axis(NamedTuple):
    """log10 of the first and last learning rate of any arm, half a cell beyond."""

    low: float
    high: float

    @classmethod
    def of(cls, grids: tuple[ArmGrid, ...]) -> _Axis:
        edges = np.log10(np.concatenate([log_edges(grid.lrs)[[0, -1]] for grid in grids]))
        return cls(float(edges.min()), float(edges.max()))

    def place(self, lr: float) -> float:
        return (math.log10(lr) - self.low) / (self.high - self.low) if lr > 0 else math.nan

    def ticks(self) -> tuple[Tick, ...]:
        step = 1 if self.high - self.low < style.CROWDED_DECADES else 2
        powers = range(math.ceil(self.low), math.floor(self.high) + 1, step)
        return tuple(Tick(self.place(10.0**power), style.power(power)) for power in powers)


# ------------------------------------------------------------------------------------------------- for a paper


def basins_figure(info: BasinsInfo) -> go.Figure:
    """The same picture as a figure: a track for each arm, its basin, and hatched red where seeds diverged."""
    figure = go.Figure()
    for y, row in enumerate(reversed(info.rows)):
        for (low, high), diverged in row.stretches:
            track = {"color": style.MUTED, "width": 1, "dash": "solid" if diverged == diverged else "dot"}
            figure.add_trace(go.Scatter(x=[low, high], y=[y - 0.3, y - 0.3], mode="lines", line=track))
        lost = [(span, diverged) for span, diverged in row.stretches if diverged > 0]
        hatched = {"shape": "/", "size": 6, "solidity": 0.3, "fgcolor": style.PAPER, "fillmode": "overlay"}
        figure.add_trace(_bars(lost, y, {"color": style.DIVERGED, "pattern": hatched, "line": {"width": 0}}))
        if row.basin:
            line = {"color": row.look.colour, "width": 2}
            marker = {"color": row.look.colour if row.good else style.PAPER, "line": line}
            figure.add_trace(_bars([(row.basin, 0.5)], y + 0.12, marker))
            dot = {"color": style.PAPER, "size": 7, "line": line}
            figure.add_trace(go.Scatter(x=[row.best], y=[y - 0.03], mode="markers", marker=dot))
    names = [f"{plain(row.arm)}<br><b>{_width(row.width)}</b>" for row in reversed(info.rows)]
    style.layout(figure, height=90 + 40 * len(info.rows))
    ticks = {"tickvals": [tick.at for tick in info.ticks], "ticktext": [tick.label for tick in info.ticks]}
    figure.update_xaxes(ticks, title=style.axis_label("learning rate"), range=[0, 1])
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, ticks="", showgrid=False, linewidth=0)
    return figure.update_layout(showlegend=False, barmode="overlay", margin={"l": 240, "r": 16, "t": 16, "b": 52})


def _bars(spans: Sequence[tuple[Span, float]], y: float, marker: Mapping[str, object]) -> go.Bar:
    """Blocks from 0.3 below y upwards, 0.6 high where the number is 1."""
    low, high = ([span[end] for span, _ in spans] for end in (0, 1))
    heights = [0.6 * share for _, share in spans]
    middles, widths = np.add(low, high) / 2, np.subtract(high, low)
    return go.Bar(x=middles, width=widths, base=y - 0.3, y=heights, marker=dict(marker))


def _width(width: Estimate) -> str:
    if not width.known:
        return "not run"
    between = f" [{decades(width.low)}, {decades(width.high)}]" if math.isfinite(width.low) else ""
    return f"{'≥ ' if width.bound else ''}{decades(width.value)}{between} decades"
