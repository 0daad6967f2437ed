"""How much an arm forgives: basin width against tolerance, and what a few random tries can expect."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from dashboards import metrics, style
from dashboards.evidence import Floats
from dashboards.measures import TOLERANCE
from dashboards.style import Look, plain
from dashboards.summary import Summary

__all__ = ["ToleranceInfo", "TuningInfo", "tolerance_figure", "tolerance_info", "tuning_figure", "tuning_info"]

SHARES = np.round(np.linspace(0.005, 0.5, 100), 4)  # of the study's drop in loss


class ToleranceInfo(NamedTuple):
    """shares: array of shape (shares,), the tolerance as a share of the drop from L0 to the study's best loss.

    widths: per arm, an array of shape (shares,): decades of learning rate, around the arm's best one, whose mean loss
    is within that tolerance of the *study's* best. marked: the share that the table's basin uses.
    """

    shares: Floats
    widths: dict[str, Floats]
    marked: float
    looks: dict[str, Look]


def tolerance_info(summary: Summary) -> ToleranceInfo:
    """What the tolerance profile of a study shows; arms that have not been run are left out."""
    scale = summary.scale
    drop = max(scale.initial - scale.best, 0.0)
    widths = {}
    for grid in summary.evidence.grids:
        if not grid.measured:
            continue
        curve, x = metrics.mean_over_seeds(grid.loss), np.log10(grid.lrs)
        found = [metrics.basin(curve, x, tolerance=s * drop, reference=scale.best).width[0] for s in SHARES]
        learns = float(metrics.best(curve)) < scale.initial
        widths[grid.arm.name] = np.array(found) * learns
    return ToleranceInfo(SHARES, widths, TOLERANCE, style.looks(summary.study.arms))


def tolerance_figure(info: ToleranceInfo) -> go.Figure:
    """Basin width against tolerance: further up and to the left forgives more."""
    figure = go.Figure()
    for arm, widths in info.widths.items():
        look = info.looks[arm]
        hover = f"<b>{plain(arm)}</b><br>within %{{x:.1%}}: %{{y:.2f}} decades<extra></extra>"
        line = {"color": look.colour, "dash": look.dash, "width": 2}
        figure.add_trace(
            go.Scatter(x=info.shares, y=widths, mode="lines", name=plain(arm), line=line, hovertemplate=hover)
        )
    figure.add_vline(x=info.marked, line={"color": style.INK, "width": 1.2, "dash": "dash"})
    style.layout(figure, height=400)
    figure.update_xaxes(
        title=style.axis_label("tolerated loss above the study's best, as a share of the drop from initialisation"),
        tickformat=".0%",
        range=[0, float(info.shares[-1])],
    )
    return figure.update_yaxes(title=style.axis_label("decades of learning rate"), rangemode="tozero")


class TuningInfo(NamedTuple):
    """Per arm, arrays of shape (draws,): the expected lowest loss of 1, 2, ... random grid points, and its band."""

    expected: dict[str, Floats]
    low: dict[str, Floats]
    high: dict[str, Floats]
    looks: dict[str, Look]


def tuning_info(summary: Summary) -> TuningInfo:
    """What the tuning curves of a study show; arms that have not been run are left out."""
    tried = {row.arm: row.tuning for row in summary.rows if row.tuning}
    return TuningInfo(
        expected={arm: np.array([each.value for each in tuning]) for arm, tuning in tried.items()},
        low={arm: np.array([each.low for each in tuning]) for arm, tuning in tried.items()},
        high={arm: np.array([each.high for each in tuning]) for arm, tuning in tried.items()},
        looks=style.looks(summary.study.arms),
    )


def tuning_figure(info: TuningInfo) -> go.Figure:
    """The expected best loss against the number of random grid points tried: lower and sooner is easier to tune."""
    figure = go.Figure()
    for arm, expected in info.expected.items():
        look, tries = info.looks[arm], np.arange(1, len(expected) + 1)
        band = {"fill": "toself", "fillcolor": look.fill(0.06), "line": {"width": 0}, "hoverinfo": "skip"}
        ends = np.concatenate([info.high[arm], info.low[arm][::-1]])
        figure.add_trace(go.Scatter(x=np.concatenate([tries, tries[::-1]]), y=ends, showlegend=False, **band))
        figure.add_trace(
            go.Scatter(
                x=tries,
                y=expected,
                mode="lines+markers",
                name=plain(arm),
                line={"color": look.colour, "dash": look.dash, "width": 2},
                marker={"symbol": look.marker, "size": 6},
                hovertemplate=f"<b>{plain(arm)}</b><br>best of %{{x}}: %{{y:.3g}}<extra></extra>",
            )
        )
    style.layout(figure, height=440)
    figure.update_xaxes(title=style.axis_label("random grid points tried"))
    values = np.concatenate(list(info.expected.values()))
    if (values > 0).all():
        low, high = 0.8 * float(values.min()), 1.1 * float(values.max())
        figure.update_yaxes(style.log_axis(low, high), range=np.log10([low, high]).tolist())
    return figure.update_yaxes(title=style.axis_label("expected best of them, final validation loss"))
