"""Paired differences: as a forest plot, an arm a row, and along the learning rate."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards import metrics, style
from dashboards.claims import difference_text
from dashboards.comparison import Difference, Estimate
from dashboards.evidence import ArmGrid, Floats
from dashboards.measures import STATISTICS
from dashboards.style import Look, number, plain
from dashboards.summary import Summary

__all__ = [
    "SHOWN",
    "AlongInfo",
    "AlongTrace",
    "ForestInfo",
    "ForestRow",
    "along_figure",
    "along_info",
    "error_bar",
    "forest_figure",
    "forest_info",
]

SHOWN = ("best_loss", "basin", "largest_stable_lr", "sensitivity_common")
AXES = {
    "best_loss": "best loss",
    "basin": "basin, decades",
    "largest_stable_lr": "largest stable lr, decades",
    "sensitivity_common": "lr sensitivity",
}


class ForestRow(NamedTuple):
    """One arm against its baseline. against: which baseline, and of which study where there are several."""

    name: str
    against: str
    look: Look
    differences: dict[str, Difference]


class ForestInfo(NamedTuple):
    """The paired differences of each arm from its baseline, for the statistics in SHOWN that could be computed."""

    rows: tuple[ForestRow, ...]
    statistics: tuple[str, ...]


def forest_info(*summaries: Summary) -> ForestInfo:
    """What the forest plot of one study, or of several below each other, shows."""
    rows = tuple(row for summary in summaries for row in _forest_rows(summary, several=len(summaries) > 1))
    known = {name for row in rows for name in row.differences}
    return ForestInfo(rows, tuple(name for name in SHOWN if name in known))


def _forest_rows(summary: Summary, *, several: bool) -> list[ForestRow]:
    looks = style.looks(summary.study.arms)
    known = [each for each in summary.differences if each.statistic in SHOWN and each.estimate.known]
    return [
        ForestRow(
            name=arm,
            against=f"{summary.study.name}, " * several + f"against {summary.baselines[arm]}",
            look=looks[arm],
            differences={each.statistic: each for each in known if each.arm == arm},
        )
        for arm in summary.study.arm_names
        if any(each.arm == arm for each in known)
    ]


def forest_figure(info: ForestInfo) -> go.Figure:
    """Difference and 95 % interval; filled where chance is ruled out, hollow where it is not."""
    figure = make_subplots(rows=1, cols=len(info.statistics), shared_yaxes=True, horizontal_spacing=0.03)
    heights = list(range(len(info.rows), 0, -1))
    for column, name in enumerate(info.statistics, start=1):
        for row, height in zip(info.rows, heights, strict=True):
            if name in row.differences:
                figure.add_trace(_mark(row.differences[name], row.look, height), row=1, col=column)
        figure.add_vline(x=0, line={"color": style.MUTED, "width": 1}, layer="below", row=1, col=column)
        better = "← better" if STATISTICS[name].lower_is_better else "better →"
        figure.update_xaxes(title=style.axis_label(f"{AXES[name]}<br>{better}"), nticks=4, row=1, col=column)
    style.layout(figure, height=110 + 38 * len(info.rows))
    figure.update_yaxes(range=[0.4, len(info.rows) + 0.6])
    labels = [_label(row.name, row.against) for row in info.rows]
    figure.update_yaxes(tickvals=heights, ticktext=labels, ticks="", row=1, col=1)
    return figure.update_layout(showlegend=False, margin={"l": 240, "r": 16, "t": 16, "b": 70})


def _label(arm: str, against: str) -> str:
    quiet = f"<span style='color:{style.MUTED};font-size:10px'>{plain(_short(against, 46))}</span>"
    return f"{plain(_short(arm, 34))}<br>{quiet}"


def _short(name: str, width: int) -> str:
    return name if len(name) <= width else f"{name[: width - 1]}…"


def _mark(difference: Difference, look: Look, height: int) -> go.Scatter:
    estimate, decided = difference.estimate, difference.better is not None
    symbol = look.marker if decided else f"{look.marker}-open"
    return go.Scatter(
        x=[estimate.value],
        y=[height],
        error_x=error_bar(estimate, look),
        mode="markers",
        marker={"symbol": symbol, "size": 10, "color": look.colour, "line": {"width": 2, "color": look.colour}},
        text=[
            f"<b>{plain(difference.arm)}</b>: {number(difference.value)}<br>{plain(difference.baseline)}: "
            f"{number(difference.base)}<br>difference {difference_text(difference)}<br>"
            f"p = {number(difference.p_holm)} (Holm), {difference.seeds} seeds"
        ],
        hovertemplate="%{text}<extra></extra>",
    )


def error_bar(estimate: Estimate, look: Look) -> dict[str, object] | None:
    """Plotly's bar from one end of an interval to the other, in the arm's colour; None where there is no interval."""
    if not math.isfinite(estimate.low):
        return None
    beyond, below = max(estimate.high - estimate.value, 0), max(estimate.value - estimate.low, 0)
    bar = {"type": "data", "symmetric": False, "array": [beyond], "arrayminus": [below]}
    return bar | {"thickness": 1.6, "width": 3, "color": look.colour}


# ------------------------------------------------------------------------------------------ along the learning rate


class AlongTrace(NamedTuple):
    """One arm's loss minus its baseline's where both ran the same seeds: arrays of shape (points,).

    low, high: 95 % bootstrap interval over seeds, point by point; nan where one seed is all there is.
    """

    arm: str
    baseline: str
    lrs: Floats
    gap: Floats
    low: Floats
    high: Floats


class AlongInfo(NamedTuple):
    """Every arm's paired difference along the learning rate, by family."""

    families: dict[str, tuple[AlongTrace, ...]]
    looks: dict[str, Look]


def along_info(summary: Summary) -> AlongInfo:
    """What the paired differences show; an arm that shares no cell with its baseline is left out."""
    grids = {grid.arm.name: grid for grid in summary.evidence.grids}
    families: dict[str, tuple[AlongTrace, ...]] = {}
    for arm, base in summary.baselines.items():
        trace = _along(grids[arm], grids[base], summary)
        if arm != base and len(trace.lrs):
            families[grids[arm].arm.family] = (*families.get(grids[arm].arm.family, ()), trace)
    return AlongInfo(families, style.looks(summary.study.arms))


def _along(arm: ArmGrid, base: ArmGrid, summary: Summary) -> AlongTrace:
    _, here, there = np.intersect1d(
        np.round(np.log10(arm.lrs), 9), np.round(np.log10(base.lrs), 9), return_indices=True
    )
    gaps = arm.loss[:, here] - base.loss[:, there]
    both = np.isfinite(gaps)
    ran = both.any(axis=0)
    gaps, both = gaps[:, ran], both[:, ran]
    weights = metrics.draws(len(gaps), seed=summary.seed, resamples=summary.resamples)
    with np.errstate(all="ignore"):
        drawn = metrics.mean_over_seeds(gaps, weights)
    repeated = both.sum(axis=0) > 1
    ends = np.full((2, int(ran.sum())), np.nan)
    if repeated.any():
        ends[:, repeated] = np.nanquantile(drawn[:, repeated], [0.025, 0.975], axis=0)
    return AlongTrace(arm.arm.name, base.arm.name, arm.lrs[here][ran], metrics.mean_over_seeds(gaps), *ends)


def along_figure(info: AlongInfo) -> go.Figure:
    """A panel per family: below zero the arm has the lower loss at that learning rate."""
    figure = make_subplots(
        rows=1,
        cols=len(info.families),
        shared_yaxes=True,
        horizontal_spacing=0.04,
        subplot_titles=[
            f"<b>{plain(family)}</b>, against {plain(_short(traces[0].baseline, 40))}"
            for family, traces in info.families.items()
        ],
    )
    for column, traces in enumerate(info.families.values(), start=1):
        for trace in traces:
            for drawn in _gap_traces(trace, info.looks[trace.arm]):
                figure.add_trace(drawn, row=1, col=column)
        lrs = np.concatenate([trace.lrs for trace in traces])
        axis = style.lr_axis(float(lrs.min()), float(lrs.max()))
        figure.update_xaxes(axis, title=style.axis_label("learning rate"), row=1, col=column)
    figure.add_hline(y=0, line={"color": style.MUTED, "width": 1}, layer="below")
    style.layout(figure, height=400)
    return figure.update_yaxes(title=style.axis_label("difference in final loss (below zero: better)"), row=1, col=1)


def _gap_traces(trace: AlongTrace, look: Look) -> list[go.Scatter]:
    known = np.isfinite(trace.low)
    x = trace.lrs[known]
    band = go.Scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([trace.high[known], trace.low[known][::-1]]),
        fill="toself",
        fillcolor=look.fill(0.13),
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )
    line = go.Scatter(
        x=trace.lrs,
        y=trace.gap,
        mode="lines+markers" if len(trace.lrs) <= style.DENSE else "lines",
        name=plain(trace.arm),
        line={"color": look.colour, "dash": look.dash, "width": 2},
        marker={"symbol": look.marker, "size": 5},
        hovertemplate=f"<b>{plain(trace.arm)}</b><br>lr %{{x:.3g}}: %{{y:+.3g}}<extra></extra>",
    )
    return [band, line]
