"""What holds across workloads, for the arms that several studies share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from dashboards import metrics, style
from dashboards.comparison import Estimate
from dashboards.evidence import ArmGrid, Floats
from dashboards.style import Look, plain
from dashboards.summary import Summary
from storage.records import Arm, Study

__all__ = [
    "Across",
    "ArmAcross",
    "PlaneInfo",
    "ProfileInfo",
    "across_workloads",
    "plane_figure",
    "plane_info",
    "profile_figure",
    "profile_info",
]

TAUS = np.round(np.linspace(1, 4, 301), 2)  # AlgoPerf's range: beyond four times the fastest nobody waits
RESAMPLES = 1000  # of the stratified bootstrap, which loops over workloads


@dataclass(frozen=True, slots=True)
class ArmAcross:
    """One arm over all workloads.

    area: interquartile mean of the normalised area over workloads and seeds. improvement: the chance that a run of this
    arm has a larger area than one of the baseline, nan for the baseline itself. tuned: mean over workloads of the best
    normalised score. sensitivity: what is lost when all workloads share one learning rate. time_score: area under the
    profile of steps to target.
    """

    arm: str
    area: Estimate
    improvement: float
    tuned: float
    sensitivity: float
    time_score: float

    def as_dict(self) -> dict[str, Any]:
        numbers = {name: getattr(self, name) for name in ("improvement", "tuned", "sensitivity", "time_score")}
        known = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        return {"arm": self.arm, "area": self.area.as_dict()} | known


@dataclass(frozen=True, slots=True)
class Across:
    """What holds across workloads, for the arms that every study has.

    dimensions: by family, how many of learning rate and momentum must be tuned per workload for 95 % of the score.
    times: by arm, steps to each workload's target at the arm's best learning rate; inf where some seed never got there.
    """

    workloads: tuple[str, ...]
    arms: tuple[ArmAcross, ...]
    dimensions: Mapping[str, int]
    times: Mapping[str, tuple[float, ...]]

    def as_dict(self) -> dict[str, Any]:
        return {
            "workloads": list(self.workloads),
            "arms": [arm.as_dict() for arm in self.arms],
            "effective_dimension": dict(self.dimensions),
            "steps_to_target": {
                arm: [step if math.isfinite(step) else None for step in steps] for arm, steps in self.times.items()
            },
        }


def across_workloads(summaries: Sequence[Summary], baseline: str | None = None) -> Across | None:
    """The numbers that hold across studies, for the arms that all of them have; None unless two studies share an arm.

    baseline: as for `compare`.
    """
    shared = [
        arm
        for arm in summaries[0].study.arm_names
        if all(arm in each.study.arm_names and each.row(arm).measured for each in summaries)
    ]
    if len(summaries) < 2 or not shared:
        return None
    scores = _scores(summaries, shared)
    areas = {arm: [_areas(summary, arm) for summary in summaries] for arm in shared}
    times = {arm: tuple(_steps(summary, arm) for summary in summaries) for arm in shared}
    profiles = metrics.profile_score(np.array(list(times.values())))
    bases = {arm: baseline or summaries[0].baselines.get(arm, arm) for arm in shared}
    arms = tuple(
        _arm_across(arm, areas, bases[arm], scores.get(arm), float(score), summaries[0].seed)
        for arm, score in zip(shared, profiles, strict=True)
    )
    names = tuple(each.study.name for each in summaries)
    return Across(names, arms, _dimensions(summaries[0].study, scores), times)


def _arm_across(
    arm: str, areas: Mapping[str, list[Floats]], base: str, scores: Floats | None, time: float, seed: int
) -> ArmAcross:
    def iqm(runs: list[Floats]) -> float:
        return metrics.interquartile_mean(np.concatenate(runs))

    mine = areas[arm]
    low, high = metrics.stratified_bootstrap(iqm, mine, seed=seed, resamples=RESAMPLES)
    others = areas.get(base)
    better = [metrics.probability_of_improvement(a, b) for a, b in zip(mine, others or [], strict=False)]
    return ArmAcross(
        arm=arm,
        area=Estimate(iqm(mine), low, high, sum(len(runs) for runs in mine)),
        improvement=float(np.mean(better)) if others and arm != base else math.nan,
        tuned=float(scores.max(axis=1).mean()) if scores is not None else math.nan,
        sensitivity=metrics.cross_workload_sensitivity(scores) if scores is not None else math.nan,
        time_score=time,
    )


def _areas(summary: Summary, arm: str) -> Floats:
    """The normalised area of each seed alone: array of shape (seeds run,)."""
    loss = _grid(summary, arm).loss
    initial, reference = summary.scale.initial, summary.scale.best
    return metrics.normalised_area(loss[np.isfinite(loss).any(axis=1)], initial=initial, reference=reference)


def _grid(summary: Summary, arm: str) -> ArmGrid:
    return next(grid for grid in summary.evidence.grids if grid.arm.name == arm)


def _steps(summary: Summary, arm: str) -> float:
    """Mean steps to the target at the arm's best learning rate; inf when some seed never reaches it or has no curve."""
    grid, evidence = _grid(summary, arm), summary.evidence
    at = int(np.flatnonzero(grid.lrs == summary.row(arm).best_lr)[0])
    rows = grid.row[np.isfinite(grid.loss[:, at]), at]
    steps = metrics.steps_to_target(evidence.validation_loss[rows], evidence.steps, target=summary.scale.target)
    return float(np.nan_to_num(steps, nan=math.inf, posinf=math.inf).mean())


def _scores(summaries: Sequence[Summary], arms: Sequence[str]) -> dict[str, Floats]:
    """Per arm its normalised scores: array of shape (workloads, learning rates that all studies have run).

    Normalised within each workload over all shared arms; arms without two such learning rates are left out.
    """
    common = {arm: _common_rates(summaries, arm) for arm in arms}
    rated = [arm for arm in arms if len(common[arm]) > 1]
    if not rated:
        return {}
    flat = np.array([np.concatenate([_negated(summary, arm, common[arm]) for arm in rated]) for summary in summaries])
    scaled = metrics.normalise_scores(flat)
    if not np.isfinite(scaled).all():
        return {}
    ends = np.cumsum([len(common[arm]) for arm in rated])[:-1]
    return dict(zip(rated, np.split(scaled, ends, axis=1), strict=True))


def _common_rates(summaries: Sequence[Summary], arm: str) -> list[float]:
    ran = []
    for summary in summaries:
        grid = _grid(summary, arm)
        ran.append({_key(lr) for lr in grid.lrs[np.isfinite(grid.loss).any(axis=0)]})
    return sorted(set.intersection(*ran))


def _key(lr: float) -> float:
    return round(math.log10(lr), 9)


def _negated(summary: Summary, arm: str, rates: Sequence[float]) -> Floats:
    grid = _grid(summary, arm)
    at = [[_key(lr) for lr in grid.lrs].index(rate) for rate in rates]
    return -metrics.mean_over_seeds(grid.loss)[at]


def _dimensions(study: Study, scores: Mapping[str, Floats]) -> dict[str, int]:
    """By family with two constants or more on the same learning rates: the effective dimension of (momentum, lr)."""
    found = {}
    for family in dict.fromkeys(arm.family for arm in study.arms):
        constants = [
            scores[arm.name] for arm in study.arms if arm.family == family and not arm.adaptive and arm.name in scores
        ]
        if len(constants) > 1 and len({each.shape for each in constants}) == 1:
            found[family] = metrics.effective_dimension(np.stack(constants, axis=1))
    return found


# ------------------------------------------------------------------------------------------------------ the figure


class PlaneInfo(NamedTuple):
    """The performance-sensitivity plane: per arm its sensitivity (x) and its tuned score (y)."""

    points: dict[str, tuple[float, float]]
    looks: dict[str, Look]


def plane_info(across: Across, arms: Sequence[Arm]) -> PlaneInfo:
    """What the plane shows; empty when no two studies share an arm's learning rates. arms: of the first study."""
    points = {each.arm: (each.sensitivity, each.tuned) for each in across.arms if math.isfinite(each.sensitivity)}
    return PlaneInfo(points, style.looks(arms))


def plane_figure(info: PlaneInfo) -> go.Figure:
    """Up and to the left is better: a high score once tuned, and little lost by tuning once for all."""
    figure = go.Figure()
    for arm, (x, y) in info.points.items():
        look = info.looks[arm]
        marker = {"symbol": look.marker, "size": 12, "color": look.colour}
        hover = f"<b>{plain(arm)}</b><br>Φ %{{x:.3f}}, tuned %{{y:.3f}}<extra></extra>"
        figure.add_trace(go.Scatter(x=[x], y=[y], mode="markers", name=plain(arm), marker=marker, hovertemplate=hover))
    style.layout(figure, height=380)
    widest = max(x for x, _ in info.points.values())
    lowest = min(y for _, y in info.points.values())
    title = style.axis_label("sensitivity Φ: lost by sharing one learning rate")
    figure.update_xaxes(title=title, range=[-0.03 * max(widest, 0.1), 1.1 * max(widest, 0.1)])
    return figure.update_yaxes(title=style.axis_label("tuned score"), range=[min(lowest, 0.9) - 0.03, 1.03])


class ProfileInfo(NamedTuple):
    """Performance profiles: per arm the share of workloads it finishes within tau times the fastest arm's steps."""

    taus: Floats
    shares: dict[str, Floats]
    looks: dict[str, Look]


def profile_info(across: Across, arms: Sequence[Arm]) -> ProfileInfo:
    """What the profiles show, for tau from 1 to 4; empty when no arm reached a target. arms: of the first study."""
    times = np.array(list(across.times.values()))
    shares = metrics.performance_profile(times, TAUS) if np.isfinite(times).any() else np.empty((0, 0))
    return ProfileInfo(TAUS, dict(zip(across.times, shares, strict=False)), style.looks(arms))


def profile_figure(info: ProfileInfo) -> go.Figure:
    """Higher and further left is faster."""
    figure = go.Figure()
    for arm, shares in info.shares.items():
        look = info.looks[arm]
        line = {"color": look.colour, "dash": look.dash, "width": 2, "shape": "hv"}
        hover = f"<b>{plain(arm)}</b><br>within %{{x:.2f}} times: %{{y:.0%}}<extra></extra>"
        figure.add_trace(
            go.Scatter(x=info.taus, y=shares, mode="lines", name=plain(arm), line=line, hovertemplate=hover)
        )
    style.layout(figure, height=380)
    figure.update_xaxes(title=style.axis_label("τ: steps to target, as a multiple of the fastest arm's"))
    title = style.axis_label("share of workloads")
    return figure.update_yaxes(title=title, range=[-0.03, 1.05], tickformat=".0%")
