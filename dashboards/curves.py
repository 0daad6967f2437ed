"""Loss against learning rate, and against the steps of a run."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards import metrics, style
from dashboards.evidence import ArmGrid, Evidence, Floats
from dashboards.style import Look, number, percent, plain
from dashboards.summary import Summary

__all__ = [
    "LearningInfo",
    "LearningTrace",
    "LrCurve",
    "LrCurvesInfo",
    "learning_figure",
    "learning_info",
    "lr_curves_figure",
    "lr_curves_info",
]


class LrCurve(NamedTuple):
    """One arm's final loss at each learning rate that has been run: arrays of shape (points run,).

    effective_lrs: lr / (1 - mean beta) where momentum sums gradients. low, high: over seeds. diverged: share of seeds.
    """

    arm: str
    family: str
    lrs: Floats
    effective_lrs: Floats
    mean: Floats
    low: Floats
    high: Floats
    diverged: Floats
    runs: Floats


class LrCurvesInfo(NamedTuple):
    """Every arm's curve, and the loss at initialisation at which a diverged run counts."""

    curves: tuple[LrCurve, ...]
    initial: float
    target: float
    looks: dict[str, Look]

    @property
    def logarithmic(self) -> bool:
        lowest = min((float(curve.low.min()) for curve in self.curves if len(curve.low)), default=0.0)
        return 0 < lowest < self.initial / 3


def lr_curves_info(summary: Summary) -> LrCurvesInfo:
    """What the learning-rate curves of a study show."""
    curves = tuple(_lr_curve(grid) for grid in summary.evidence.grids)
    return LrCurvesInfo(curves, summary.scale.initial, summary.scale.target, style.looks(summary.study.arms))


def _lr_curve(grid: ArmGrid) -> LrCurve:
    runs = np.isfinite(grid.loss).sum(axis=0)
    ran = runs > 0
    loss = grid.loss[:, ran]
    return LrCurve(
        arm=grid.arm.name,
        family=grid.arm.family,
        lrs=grid.lrs[ran],
        effective_lrs=grid.effective_lrs[ran],
        mean=metrics.mean_over_seeds(loss),
        low=np.fmin.reduce(loss, axis=0) if ran.any() else np.empty(0),
        high=np.fmax.reduce(loss, axis=0) if ran.any() else np.empty(0),
        diverged=metrics.mean_over_seeds(grid.diverged[:, ran]),
        runs=runs[ran].astype(float),
    )


def lr_curves_figure(info: LrCurvesInfo) -> go.Figure:
    """A row per family: against the learning rate on the left, against the effective learning rate on the right."""
    families = list(dict.fromkeys(curve.family for curve in info.curves))
    figure = make_subplots(
        rows=len(families),
        cols=2,
        shared_yaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=0.24 / len(families) if len(families) > 1 else 0,
        subplot_titles=[title for family in families for title in (f"<b>{plain(family)}</b>", "")],
    )
    for curve in info.curves:
        row = families.index(curve.family) + 1
        for column, x in ((1, curve.lrs), (2, curve.effective_lrs)):
            for trace in _lr_traces(curve, x, info.looks[curve.arm], labelled=column == 1, group=row):
                figure.add_trace(trace, row=row, col=column)
    labels = ("learning rate γ", "effective learning rate γ / (1 − β̄)")
    for row in range(1, len(families) + 1):
        figure.update_yaxes(title=style.axis_label("final validation loss"), row=row, col=1)
        for column, label in enumerate(labels, start=1):
            rates = [c.lrs if column == 1 else c.effective_lrs for c in info.curves if c.family == families[row - 1]]
            span = np.concatenate([rate[np.isfinite(rate)] for rate in rates])
            axis = style.lr_axis(span.min(), span.max()) if len(span) else {}
            figure.update_xaxes(axis, title=style.axis_label(label), row=row, col=column)
    return _dressed(figure, info, rows=len(families))


def _dressed(figure: go.Figure, info: LrCurvesInfo, *, rows: int) -> go.Figure:
    if np.isfinite(info.initial):
        for level, dash in ((info.initial, "dot"), (info.target, "dash")):
            figure.add_hline(y=level, line={"color": style.MUTED, "width": 1, "dash": dash}, layer="below")
    style.layout(figure, height=70 + 340 * rows)
    if info.logarithmic:
        lowest = min(float(curve.low.min()) for curve in info.curves if len(curve.low))
        figure.update_yaxes(style.log_axis(lowest, info.initial))
    legend = {"groupclick": "toggleitem", "tracegroupgap": 24, "y": 1, "yanchor": "top"}
    return figure.update_layout(legend=legend, hovermode="closest")


def _lr_traces(curve: LrCurve, x: Floats, look: Look, *, labelled: bool, group: int) -> list[go.Scatter]:
    shared = {"legendgroup": f"{group}", "showlegend": False}
    band = go.Scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([curve.high, curve.low[::-1]]),
        fill="toself",
        fillcolor=look.fill(0.14),
        line={"width": 0},
        hoverinfo="skip",
        **shared,
    )
    text = [
        f"<b>{plain(curve.arm)}</b><br>lr {number(lr)}, effective {number(effective)}<br>loss {number(mean)} "
        f"[{number(low)}, {number(high)}]<br>{percent(diverged)} of {runs:.0f} seeds diverged"
        for lr, effective, mean, low, high, diverged, runs in zip(
            *(each.tolist() for each in (curve.lrs, curve.effective_lrs, curve.mean, curve.low, curve.high)),
            *(each.tolist() for each in (curve.diverged, curve.runs)),
            strict=True,
        )
    ]
    line = go.Scatter(
        x=x,
        y=curve.mean,
        mode="lines+markers" if len(x) <= style.DENSE else "lines",
        name=plain(curve.arm),
        line={"color": look.colour, "dash": look.dash, "width": 2},
        marker={"symbol": look.marker, "size": 6, "color": look.colour},
        text=text,
        hovertemplate="%{text}<extra></extra>",
        **(shared | {"showlegend": labelled}),
    )
    every = max(1, -(-len(x) // style.DENSE))  # crosses too run into each other
    lost = (curve.diverged >= 0.5) & (np.arange(len(x)) % every == 0)
    cross = {"symbol": "x", "size": 6, "color": style.DIVERGED}
    crosses = go.Scatter(x=x[lost], y=curve.mean[lost], mode="markers", marker=cross, hoverinfo="skip", **shared)
    return [band, line, crosses]


# ---------------------------------------------------------------------------------------------------- learning curves


class LearningTrace(NamedTuple):
    """One arm at its best learning rate: arrays of shape (evaluations seen,); momentum is empty for a constant."""

    arm: str
    lr: float
    steps: Floats
    mean: Floats
    low: Floats
    high: Floats
    momentum_steps: Floats
    momentum: Floats


class LearningInfo(NamedTuple):
    """Every arm's validation loss along a run at its best learning rate, and the momentum its rule chose."""

    traces: tuple[LearningTrace, ...]
    target: float
    looks: dict[str, Look]


def learning_info(summary: Summary) -> LearningInfo:
    """What the learning curves of a study show; arms whose curves were not stored are left out."""
    evidence = summary.evidence
    traces = [_trace(grid, evidence, summary.row(grid.arm.name).best_lr) for grid in evidence.grids if grid.measured]
    return LearningInfo(
        tuple(trace for trace in traces if len(trace.steps)), summary.scale.target, style.looks(summary.study.arms)
    )


def _trace(grid: ArmGrid, evidence: Evidence, lr: float) -> LearningTrace:
    rows = grid.row[:, int(np.flatnonzero(grid.lrs == lr)[0])]
    rows = rows[rows >= 0]
    losses = evidence.validation_loss[rows].astype(float)
    losses = np.where(np.isfinite(losses), losses, np.nan)
    momenta = evidence.momentum[rows].astype(float)
    seen, chosen = np.isfinite(losses).any(axis=0), np.isfinite(momenta).any(axis=0) & grid.arm.adaptive
    steps = evidence.steps.astype(float)
    return LearningTrace(
        arm=grid.arm.name,
        lr=lr,
        steps=steps[seen],
        mean=metrics.mean_over_seeds(losses)[seen],
        low=np.fmin.reduce(losses, axis=0)[seen],
        high=np.fmax.reduce(losses, axis=0)[seen],
        momentum_steps=steps[chosen],
        momentum=metrics.mean_over_seeds(momenta)[chosen],
    )


def learning_figure(info: LearningInfo) -> go.Figure:
    """Validation loss against steps, every arm at its best learning rate; below, the momentum that rules chose."""
    rules = any(len(trace.momentum) for trace in info.traces)
    figure = make_subplots(
        rows=2 if rules else 1,
        cols=1,
        shared_xaxes=True,
        row_heights=[0.68, 0.32] if rules else [1],
        vertical_spacing=0.06,
    )
    for trace in info.traces:
        look = info.looks[trace.arm]
        line = {"color": look.colour, "dash": look.dash, "width": 2}
        band = go.Scatter(
            x=np.concatenate([trace.steps, trace.steps[::-1]]),
            y=np.concatenate([trace.high, trace.low[::-1]]),
            fill="toself",
            fillcolor=look.fill(0.12),
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
        )
        name = f"{plain(trace.arm)}, lr {number(trace.lr)}"
        hover = "%{fullData.name}<br>step %{x}: %{y:.3g}<extra></extra>"
        shared = {"name": name, "line": line, "hovertemplate": hover}
        figure.add_trace(band, row=1, col=1)
        figure.add_trace(go.Scatter(x=trace.steps, y=trace.mean, mode="lines", **shared), row=1, col=1)
        if len(trace.momentum):
            beta = go.Scatter(x=trace.momentum_steps, y=trace.momentum, mode="lines", showlegend=False, **shared)
            figure.add_trace(beta, row=2, col=1)
    figure.add_hline(
        y=info.target, line={"color": style.MUTED, "width": 1, "dash": "dash"}, layer="below", row=1, col=1
    )
    style.layout(figure, height=560 if rules else 400)
    lowest = min((float(trace.low.min()) for trace in info.traces), default=0.0)
    figure.update_yaxes(title=style.axis_label("validation loss"), row=1, col=1)
    if lowest > 0:
        highest = max(float(trace.high.max()) for trace in info.traces)
        figure.update_yaxes(style.log_axis(lowest, highest), row=1, col=1)
    if rules:
        figure.update_yaxes(title=style.axis_label("momentum β"), row=2, col=1)
    return figure.update_xaxes(title=style.axis_label("optimizer steps"), row=2 if rules else 1, col=1)
