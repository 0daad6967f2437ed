"""What holds across workloads, for the arms that several studies share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from dashboards import metrics, style
from dashboards.comparison import Estimate
from dashboards.evidence import ArmGrid, Floats
from dashboards.paired import error_bar
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
UNKNOWN = Estimate(math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True, slots=True)
class ArmAcross:
    """One arm over all workloads, with stratified bootstrap intervals: runs resampled within each workload.

    area, gap: interquartile mean and optimality gap of the normalised area over workloads and seeds. improvement: the
    chance that a run of this arm has a larger area than one of the baseline, unknown for the baseline itself. tuned:
    mean over workloads of the best normalised score. sensitivity: what is lost when all workloads share one learning
    rate. time_score: area under the profile of steps to target, a view that has no interval.
    """

    arm: str
    area: Estimate
    gap: Estimate
    improvement: Estimate
    tuned: Estimate
    sensitivity: Estimate
    time_score: float

    def as_dict(self) -> dict[str, Any]:
        estimates = {
            "area": self.area,
            "optimality_gap": self.gap,
            "improvement": self.improvement,
            "tuned": self.tuned,
            "sensitivity": self.sensitivity,
        }
        found = {name: estimate.as_dict() for name, estimate in estimates.items()}
        return {"arm": self.arm, **found, "time_score": self.time_score if math.isfinite(self.time_score) else None}


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
    def estimate(statistic: Callable[[list[Floats]], float], runs: list[Floats]) -> Estimate:
        drawn = metrics.stratified_bootstrap(statistic, runs, seed=seed, resamples=RESAMPLES)
        low, high = drawn if max(map(len, runs)) > 1 else (math.nan, math.nan)
        return Estimate(statistic(runs), low, high, sum(map(len, runs)))

    mine, others = areas[arm], areas.get(base, [])
    return ArmAcross(
        arm=arm,
        area=estimate(lambda runs: metrics.interquartile_mean(np.concatenate(runs)), mine),
        gap=estimate(lambda runs: metrics.optimality_gap(np.concatenate(runs)), mine),
        improvement=estimate(_improvement, [*mine, *others]) if others and arm != base else UNKNOWN,
        tuned=_estimate(scores.max(axis=-1).mean(axis=-1), mine) if scores is not None else UNKNOWN,
        sensitivity=_estimate(metrics.cross_workload_sensitivity(scores), mine) if scores is not None else UNKNOWN,
        time_score=time,
    )


def _improvement(runs: list[Floats]) -> float:
    """The mean over workloads; the first half of the list is one arm's, the second its baseline's."""
    half = len(runs) // 2
    pairs = zip(runs[:half], runs[half:], strict=True)
    return float(np.mean([metrics.probability_of_improvement(*pair) for pair in pairs]))


def _estimate(values: Floats, runs: list[Floats]) -> Estimate:
    """values: array of shape (1 + resamples,), what was measured first."""
    low, high = metrics.interval(values[1:]) if max(map(len, runs)) > 1 else (math.nan, math.nan)
    return Estimate(float(values[0]), low, high, sum(map(len, runs)))


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
    """Per arm its normalised scores: array of shape (1 + resamples, workloads, learning rates that all studies ran).

    Normalised within each workload over all shared arms; the first row is what was measured, the others resample seeds
    within each workload. Arms without two such learning rates are left out.
    """
    common = {arm: _common_rates(summaries, arm) for arm in arms}
    rated = [arm for arm in arms if len(common[arm]) > 1]
    if not rated:
        return {}
    rates = {arm: common[arm] for arm in rated}
    flat = np.stack([_negated(summary, rates) for summary in summaries], axis=1)
    scaled = metrics.normalise_scores(flat.reshape(-1, flat.shape[-1])).reshape(flat.shape)
    if not np.isfinite(scaled[0]).all():
        return {}
    ends = np.cumsum([len(each) for each in rates.values()])[:-1]
    return dict(zip(rated, np.split(scaled, ends, axis=-1), strict=True))


def _common_rates(summaries: Sequence[Summary], arm: str) -> list[float]:
    ran = []
    for summary in summaries:
        grid = _grid(summary, arm)
        ran.append({_key(lr) for lr in grid.lrs[np.isfinite(grid.loss).any(axis=0)]})
    return sorted(set.intersection(*ran))


def _key(lr: float) -> float:
    return round(math.log10(lr), 9)


def _negated(summary: Summary, rates: Mapping[str, Sequence[float]]) -> Floats:
    """Minus the mean losses at each arm's rates, measured and for resampled seeds: shape (1 + resamples, settings)."""
    losses = []
    for arm, wanted in rates.items():
        grid = _grid(summary, arm)
        keys = [_key(lr) for lr in grid.lrs]
        losses.append(grid.loss[:, [keys.index(rate) for rate in wanted]])
    whole = np.hstack(losses)
    whole = whole[np.isfinite(whole).any(axis=1)]
    weights = metrics.draws(len(whole), seed=summary.seed, resamples=RESAMPLES)
    return -metrics.mean_over_seeds(whole, np.vstack([np.ones(len(whole)), weights]))


def _dimensions(study: Study, scores: Mapping[str, Floats]) -> dict[str, int]:
    """By family with two constants or more on the same learning rates: the effective dimension of (momentum, lr)."""
    found = {}
    for family in dict.fromkeys(arm.family for arm in study.arms):
        constants = [
            scores[arm.name][0]
            for arm in study.arms
            if arm.family == family and not arm.adaptive and arm.name in scores
        ]
        if len(constants) > 1 and len({each.shape for each in constants}) == 1:
            found[family] = metrics.effective_dimension(np.stack(constants, axis=1))
    return found


# ------------------------------------------------------------------------------------------------------ the figure


class PlaneInfo(NamedTuple):
    """The performance-sensitivity plane: per arm its sensitivity (x) and its tuned score (y)."""

    points: dict[str, tuple[Estimate, Estimate]]
    looks: dict[str, Look]


def plane_info(across: Across, arms: Sequence[Arm]) -> PlaneInfo:
    """What the plane shows; empty when no two studies share an arm's learning rates. arms: of the first study."""
    points = {each.arm: (each.sensitivity, each.tuned) for each in across.arms if each.sensitivity.known}
    return PlaneInfo(points, style.looks(arms))


def plane_figure(info: PlaneInfo) -> go.Figure:
    """Up and to the left is better: a high score once tuned, and little lost by tuning once for all."""
    figure = go.Figure()
    for arm, (x, y) in info.points.items():
        look = info.looks[arm]
        marker = {"symbol": look.marker, "size": 12, "color": look.colour}
        hover = f"<b>{plain(arm)}</b><br>Φ %{{x:.3f}}, tuned %{{y:.3f}}<extra></extra>"
        bars = {"error_x": error_bar(x, look), "error_y": error_bar(y, look)}
        shared = {"mode": "markers", "name": plain(arm), "marker": marker, "hovertemplate": hover}
        figure.add_trace(go.Scatter(x=[x.value], y=[y.value], **shared, **bars))
    style.layout(figure, height=380)
    widest = max(np.nanmax([x.value, x.high]) for x, _ in info.points.values())
    lowest = min(np.nanmin([y.value, y.low]) for _, y in info.points.values())
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
