"""Paired differences as a forest plot: an arm a row, a statistic a panel."""

from __future__ import annotations

import math
from typing import NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards import style
from dashboards.comparison import Difference
from dashboards.measures import STATISTICS
from dashboards.style import Look, number, plain
from dashboards.summary import Summary

__all__ = ["SHOWN", "ForestInfo", "forest_figure", "forest_info"]

SHOWN = ("best_loss", "basin", "largest_stable_lr", "sensitivity_common")
AXES = {
    "best_loss": "best loss",
    "basin": "basin, decades",
    "largest_stable_lr": "largest stable lr, decades",
    "sensitivity_common": "lr sensitivity",
}


class ForestInfo(NamedTuple):
    """The paired differences of each arm from its baseline, for the statistics in SHOWN that could be computed."""

    arms: tuple[str, ...]
    baselines: dict[str, str]
    panels: dict[str, tuple[Difference, ...]]
    looks: dict[str, Look]


def forest_info(summary: Summary) -> ForestInfo:
    """What the forest plot of a study shows."""
    known = [each for each in summary.differences if each.statistic in SHOWN and each.estimate.known]
    arms = tuple(dict.fromkeys(each.arm for each in known))
    panels = {name: tuple(each for each in known if each.statistic == name) for name in SHOWN}
    shown = {name: differences for name, differences in panels.items() if differences}
    return ForestInfo(arms, {arm: summary.baselines[arm] for arm in arms}, shown, style.looks(summary.study.arms))


def forest_figure(info: ForestInfo) -> go.Figure:
    """Difference and 95 % interval; filled where chance is ruled out, hollow where it is not."""
    figure = make_subplots(rows=1, cols=len(info.panels), shared_yaxes=True, horizontal_spacing=0.03)
    heights = {arm: len(info.arms) - index for index, arm in enumerate(info.arms)}
    for column, (name, differences) in enumerate(info.panels.items(), start=1):
        for each in differences:
            figure.add_trace(_mark(each, info.looks[each.arm], heights[each.arm]), row=1, col=column)
        figure.add_vline(x=0, line={"color": style.MUTED, "width": 1}, layer="below", row=1, col=column)
        better = "← better" if STATISTICS[name].lower_is_better else "better →"
        label = f"{AXES[name]}<br>{better}"
        figure.update_xaxes(title=style.axis_label(label), nticks=4, row=1, col=column)
    style.layout(figure, height=110 + 38 * len(info.arms))
    labels = [_label(arm, info.baselines[arm]) for arm in info.arms]
    figure.update_yaxes(range=[0.4, len(info.arms) + 0.6])
    figure.update_yaxes(tickvals=[heights[arm] for arm in info.arms], ticktext=labels, ticks="", row=1, col=1)
    return figure.update_layout(showlegend=False, margin={"l": 240, "r": 16, "t": 16, "b": 70})


def _label(arm: str, baseline: str) -> str:
    quiet = f"<span style='color:{style.MUTED};font-size:10px'>against {plain(_short(baseline, 40))}</span>"
    return f"{plain(_short(arm, 34))}<br>{quiet}"


def _short(name: str, width: int) -> str:
    return name if len(name) <= width else f"{name[: width - 1]}…"


def _mark(difference: Difference, look: Look, height: int) -> go.Scatter:
    estimate, decided = difference.estimate, difference.better is not None
    error = (
        {
            "type": "data",
            "symmetric": False,
            "array": [estimate.high - estimate.value],
            "arrayminus": [estimate.value - estimate.low],
            "thickness": 1.6,
            "width": 3,
            "color": look.colour,
        }
        if math.isfinite(estimate.low)
        else None
    )
    text = (
        f"<b>{plain(difference.arm)}</b>: {number(difference.value)}<br>{plain(difference.baseline)}: "
        f"{number(difference.base)}<br>difference {number(estimate.value)} [{number(estimate.low)}, "
        f"{number(estimate.high)}]<br>p = {number(difference.p_holm)} (Holm), {difference.seeds} seeds"
    )
    symbol = look.marker if decided else f"{look.marker}-open"
    return go.Scatter(
        x=[estimate.value],
        y=[height],
        error_x=error,
        mode="markers",
        marker={"symbol": symbol, "size": 10, "color": look.colour, "line": {"width": 2}},
        text=[text],
        hovertemplate="%{text}<extra></extra>",
    )
