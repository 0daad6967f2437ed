"""Robustness in numbers: pure functions of arrays.

losses: array of shape (seeds, points), the final validation loss of one arm at each learning rate; a diverged run
    counts as its loss at initialisation (see `cap`), nan is a cell that has not been run.
curve: array of shape (..., points), the mean of such losses over seeds; the leading axis, if any, holds bootstrap
    resamples, and every function of a curve is vectorised over it.
x: array of shape (points,), log10 of the learning rates, ascending.

A function of a curve is a statistic; `draws`, `mean_over_seeds` and `interval` give it an interval by resampling seeds,
the only independent repetitions there are: cells of one seed share their initial weights and batches.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from opda.nonparametric import EmpiricalDistribution
from scipy import special, stats

__all__ = [
    "Basin",
    "Shares",
    "anova_shares",
    "basin",
    "best",
    "cap",
    "cross_workload_sensitivity",
    "draws",
    "effective_dimension",
    "expected_best",
    "frontier",
    "interquartile_mean",
    "interval",
    "largest_stable_lr",
    "learning_rate_sensitivity",
    "mean_over_seeds",
    "normalise_scores",
    "normalised_area",
    "optimality_gap",
    "performance_profile",
    "probability_of_improvement",
    "profile_score",
    "steps_to_target",
    "stratified_bootstrap",
    "tuning_bands",
    "tuning_curve",
    "wilson",
]

VERSION = 2  # changes whenever a number in this file could, so that an old report.json says what computed it

Floats = NDArray[np.float64]
Z95 = 1.959963984540054  # two-sided 95 % of a normal variable


# ------------------------------------------------------------------------------------------------ seeds and intervals


def cap(losses: ArrayLike, initial: ArrayLike) -> Floats:
    """Final losses as metrics see them: min(L, L0), a run that ended in nan or inf counting as L0.

    Wortsman et al. 2023 (arXiv 2309.14322, section 2.2). Dropping such runs would make the least stable arm the best.
    """
    final, start = np.asarray(losses, dtype=float), np.asarray(initial, dtype=float)
    return np.where(np.isfinite(final) & (final < start), final, start)


def draws(seeds: int, *, seed: int, resamples: int) -> Floats:
    """How often each seed is in each bootstrap resample: array of shape (resamples, seeds), every row summing to seeds.

    The same numbers for every arm, so that differences between arms are paired by seed.
    """
    generator = np.random.default_rng(seed)
    return generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples).astype(float)


def mean_over_seeds(losses: ArrayLike, weights: Floats | None = None) -> Floats:
    """The curve of losses of shape (seeds, points); with weights of shape (resamples, seeds), one curve per resample.

    A cell that has not been run has no part in the mean; a point none of whose seeds has been run is nan.
    """
    losses = np.asarray(losses, dtype=float)
    weights = np.ones(len(losses)) if weights is None else weights
    ran = np.isfinite(losses)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(weights @ np.where(ran, losses, 0.0) / (weights @ ran))


def interval(statistics: ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """The percentile bootstrap interval of a statistic's resampled values; nan, nan when there are none."""
    known = np.asarray(statistics, dtype=float)
    known = known[np.isfinite(known)]
    if len(known) == 0:
        return np.nan, np.nan
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def stratified_bootstrap(
    statistic: Callable[[list[Floats]], float], scores: list[Floats], *, seed: int, resamples: int
) -> tuple[float, float]:
    """The 95 % percentile interval of a statistic of several workloads' scores, runs resampled within each workload.

    scores: one array of shape (runs,) per workload (Agarwal et al. 2021, arXiv 2108.13264).
    """
    generator = np.random.default_rng(seed)
    return interval([statistic([generator.choice(runs, size=len(runs)) for runs in scores]) for _ in range(resamples)])


def wilson(successes: ArrayLike, runs: ArrayLike) -> tuple[Floats, Floats]:
    """The 95 % Wilson score interval of a share: 0 of 3 is [0, 0.56], not [0, 0]. nan where there are no runs."""
    k, n = np.asarray(successes, dtype=float), np.asarray(runs, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = (k + Z95**2 / 2) / (n + Z95**2)
        half = Z95 / (n + Z95**2) * np.sqrt(k * (n - k) / n + Z95**2 / 4)
    ran = n > 0
    low, high = np.where(k == 0, 0.0, centre - half), np.where(k == n, 1.0, centre + half)
    return np.where(ran, low, np.nan), np.where(ran, high, np.nan)


# ------------------------------------------------------------------------------------------- one arm, one workload


def best(curve: ArrayLike) -> Floats:
    """L*: the lowest point of a curve; nan where nothing has been run."""
    return np.asarray(np.fmin.reduce(np.asarray(curve, dtype=float), axis=-1))


def learning_rate_sensitivity(curve: ArrayLike) -> Floats:
    """How far above its best an arm is on average over the grid: mean of L(lr) - L*.

    Wortsman et al. 2023 (arXiv 2309.14322, section 2.2). Its authors' limits: not comparable where a method changes
    what the learning rate means; blind to a shift of the optimum; 0 for an arm that is equally bad everywhere.

    >>> losses = cap([3.20, 3.00, 2.90, 2.95, 3.10, 9.0, float("nan")], 7.0)
    >>> round(float(learning_rate_sensitivity(losses)), 6)
    1.264286
    """
    curve = np.asarray(curve, dtype=float)
    ran = np.isfinite(curve)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(ran, curve, 0.0).sum(axis=-1) / ran.sum(axis=-1) - best(curve))


def normalised_area(curve: ArrayLike, *, initial: float, reference: float) -> Floats:
    """The mean over the grid of (L0 - min(L, L0)) / (L0 - L*ref): 1 is the reference's best loss everywhere, 0 none.

    initial: L0, the loss at initialisation. reference: L*ref, the best loss of any arm. Free of the loss's scale, so
    this is the one to average over workloads. nan when there is nothing to gain (L*ref >= L0).
    """
    curve = np.asarray(curve, dtype=float)
    ran, gain = np.isfinite(curve), initial - reference
    with np.errstate(invalid="ignore", divide="ignore"):
        score = (initial - np.minimum(curve, initial)) / (gain if gain > 0 else np.nan)
        return np.asarray(np.where(ran, score, 0.0).sum(axis=-1) / ran.sum(axis=-1))


class Basin(NamedTuple):
    """Where a curve stays near its best. Arrays of the curve's leading shape.

    low, high: log10 of its two ends. width: in decades. at_low, at_high: it touches that edge of the grid, so the true
    basin is at least this wide.
    """

    width: Floats
    low: Floats
    high: Floats
    at_low: NDArray[np.bool_]
    at_high: NDArray[np.bool_]


def basin(curve: ArrayLike, x: ArrayLike, *, tolerance: float, reference: float | None = None) -> Basin:
    """The contiguous interval of learning rates around the best one where L <= reference + tolerance.

    reference: the curve's own best loss unless given; with another arm's, an arm that never comes near it has width 0.
    The ends are interpolated linearly in log lr. Points that have not been run are bridged, and at the ends cut off.
    Our definition; its resolution is the grid's step.
    """
    curve, x = np.atleast_2d(np.asarray(curve, dtype=float)), np.asarray(x, dtype=float)
    leading = np.asarray(curve).shape[0]
    sides = [np.full(leading, np.nan) for _ in range(3)]
    edges = [np.zeros(leading, dtype=bool) for _ in range(2)]
    for points, rows in _alike(np.isfinite(curve)):
        if points.any():
            found = _basin(curve[np.ix_(rows, points)], x[points], tolerance, reference)
            for whole, part in zip([*sides, *edges], found, strict=True):
                whole[rows] = part
    return Basin(sides[0], sides[1], sides[2], edges[0], edges[1])


def _alike(ran: NDArray[np.bool_]) -> list[tuple[NDArray[np.bool_], NDArray[np.intp]]]:
    """The distinct rows of a mask, each with the numbers of the rows that equal it."""
    if ran.all():
        return [(ran[0], np.arange(len(ran)))]
    masks, which = np.unique(ran, axis=0, return_inverse=True)
    return [(mask, np.flatnonzero(which.ravel() == index)) for index, mask in enumerate(masks)]


def _basin(curve: Floats, x: Floats, tolerance: float, reference: float | None) -> Basin:
    level = (curve.min(axis=-1) if reference is None else np.full(len(curve), reference)) + tolerance
    start = curve.argmin(axis=-1)
    high, at_high = _crossing(curve, x, level, start)
    low, at_low = _crossing(curve[:, ::-1], x[::-1], level, len(x) - 1 - start)
    outside = curve.min(axis=-1) > level
    low, high = np.where(outside, np.nan, low), np.where(outside, np.nan, high)
    width = np.where(outside, 0.0, high - low)
    return Basin(width, low, high, at_low & ~outside, at_high & ~outside)


def _crossing(curve: Floats, x: Floats, level: Floats, start: NDArray[np.intp]) -> tuple[Floats, NDArray[np.bool_]]:
    """Where each row first rises above its level to the right of its start, and whether it never does."""
    above = (curve > level[:, None]) & (np.arange(len(x)) > start[:, None])
    never, after = np.asarray(~above.any(axis=-1)), above.argmax(axis=-1)
    rows, after = np.arange(len(curve)), np.maximum(after, 1) if len(x) > 1 else after
    before = np.maximum(after - 1, 0)
    rise = curve[rows, after] - curve[rows, before]
    share = np.divide(level - curve[rows, before], rise, out=np.zeros(len(rows)), where=rise > 0)
    return np.where(never, x[-1], x[before] + share * (x[after] - x[before])), never


def largest_stable_lr(diverged: ArrayLike, lrs: ArrayLike, *, at: ArrayLike, share: float = 0.0) -> Floats:
    """The largest learning rate reached from the best one, going up, before more than `share` of the runs diverge.

    diverged: array of shape (..., points), the share of seeds diverged. at: index of the best learning rate, of the
    leading shape; starting there keeps a lone survivor beyond the frontier from moving it. Where more than `share`
    diverge at the best one itself, the next below it that is stable; nan if none is.
    It has to be measured: the bound 2 (1 + beta) / lambda_max of a quadratic does not hold for minibatch SGD.
    """
    diverged, lrs = np.atleast_2d(np.asarray(diverged, dtype=float)), np.asarray(lrs, dtype=float)
    best = np.broadcast_to(np.asarray(at, dtype=int), len(diverged))[:, None]
    points, stable = np.arange(len(lrs)), diverged <= share  # False for nan, a point that has not been run
    start = np.where(stable & (points <= best), points, -1).max(axis=-1)
    beyond = (diverged > share) & (points > start[:, None])
    first = np.where(beyond.any(axis=-1), beyond.argmax(axis=-1), len(lrs))
    last = np.where(stable & (points < first[:, None]), points, -1).max(axis=-1)
    return np.where(start >= 0, lrs[last], np.nan)


def frontier(diverged: ArrayLike, x: ArrayLike, *, at: int, level: float = 0.5) -> float:
    """log10 of the learning rate, above the best one, where the share of diverged runs crosses `level`.

    diverged: array of shape (points,). at: index of the best learning rate. Interpolated linearly; nan when the share
    does not cross the level inside the grid.
    """
    above, rates = np.asarray(diverged, dtype=float)[at:], np.asarray(x, dtype=float)[at:]
    ran = np.isfinite(above)
    above, rates = above[ran], rates[ran]
    beyond = np.flatnonzero(above >= level)
    if len(beyond) == 0 or beyond[0] == 0:
        return float("nan")
    high = int(beyond[0])
    part = (level - above[high - 1]) / (above[high] - above[high - 1])
    return float(rates[high - 1] + part * (rates[high] - rates[high - 1]))


def expected_best(losses: ArrayLike, n: int) -> float:
    """The expected lowest loss of n random grid points, drawn without replacement.

    E = sum_j v_(j) C(j - 1, n - 1) / C(N, n), v sorted from worst to best (Tang et al. 2020, arXiv 2004.14373).
    Cells that have not been run are left out. Raises ValueError unless 1 <= n <= N.
    """
    values = np.sort(np.asarray(losses, dtype=float).ravel())[::-1]
    values = values[np.isfinite(values)]
    if not 1 <= n <= len(values):
        raise ValueError(f"The best of n draws needs 1 <= n <= {len(values)}, the number of cells: got n = {n}.")
    j = np.arange(n - 1, len(values))  # from the n-th worst on: fewer than n - 1 worse cells cannot fill the draw
    return float(values[j] @ np.exp(_log_choose(j, n - 1) - _log_choose(np.array(len(values)), n)))


def _log_choose(n: NDArray[np.int_], k: int) -> Floats:
    return np.asarray(special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1))


def tuning_curve(losses: ArrayLike, *, draws: int) -> Floats:
    """expected_best for n = 1 ... draws: array of shape (min(draws, cells),)."""
    cells = int(np.isfinite(np.asarray(losses, dtype=float)).sum())
    return np.array([expected_best(losses, n) for n in range(1, min(draws, cells) + 1)])


def tuning_bands(losses: ArrayLike, *, draws: int, initial: float) -> tuple[Floats, Floats]:
    """Simultaneous 95 % bands around the tuning curve: two arrays of shape (min(draws, cells),).

    From the Dvoretzky-Kiefer-Wolfowitz bands of the distribution of losses between 0 and L0, as opda computes them
    (Lourie, Cho, He 2024, arXiv 2311.09480). They take the cells for independent draws from the grid's window.
    """
    cells = np.asarray(losses, dtype=float).ravel()
    cells = cells[np.isfinite(cells)]
    ns = np.arange(1, min(draws, len(cells)) + 1)
    if len(ns) == 0:
        return np.empty(0), np.empty(0)
    limits = {"a": min(0.0, float(cells.min())), "b": max(initial, float(cells.max()))}
    high, _, low = EmpiricalDistribution.confidence_bands(cells, 0.95, method="dkw", **limits)
    return low.average_tuning_curve(ns, minimize=True), high.average_tuning_curve(ns, minimize=True)


def steps_to_target(losses: ArrayLike, steps: ArrayLike, *, target: float) -> Floats:
    """The first evaluation at which each run's validation loss is at or below the target; inf if it never is.

    losses: array of shape (runs, evaluations). steps: array of shape (evaluations,). nan for a run without a curve.
    """
    losses, steps = np.asarray(losses, dtype=float), np.asarray(steps, dtype=float)
    there = losses <= target
    first = np.where(there.any(axis=-1), steps[there.argmax(axis=-1)], np.inf)
    return np.where(np.isfinite(losses).any(axis=-1), first, np.nan)


# --------------------------------------------------------------------------------------------------- whole surfaces


class Shares(NamedTuple):
    """What share of a surface's variance each cause explains; the four sum to 1. nan on a flat surface."""

    lr: float
    momentum: float
    interaction: float
    seed: float


def anova_shares(losses: ArrayLike) -> Shares:
    """The exact two-way analysis of variance of a full grid: array of shape (momenta, seeds, points).

    Sums of squares of the means over the other axes; `seed` is what repeats of one cell differ by. Raises ValueError
    when a cell is missing, for then the shares overlap and no longer sum to 1.
    """
    losses = np.asarray(losses, dtype=float)
    if losses.ndim != 3 or not np.isfinite(losses).all():
        raise ValueError("ANOVA shares need a full grid of shape (momenta, seeds, points): some cell has not been run.")
    momenta, seeds, points = losses.shape
    whole = losses.mean()
    by_lr, by_momentum = losses.mean(axis=(0, 1)) - whole, losses.mean(axis=(1, 2)) - whole
    cells = losses.mean(axis=1)
    both = cells - whole - by_lr[None, :] - by_momentum[:, None]
    within = losses - cells[:, None, :]
    squares = np.array(
        [
            momenta * seeds * (by_lr**2).sum(),
            seeds * points * (by_momentum**2).sum(),
            seeds * (both**2).sum(),
            (within**2).sum(),
        ]
    )
    total = squares.sum()
    return Shares(*(squares / total if total > 0 else np.full(4, np.nan)).tolist())


# --------------------------------------------------------------------------------------------------- many workloads


def interquartile_mean(scores: ArrayLike) -> float:
    """The mean of the middle half of all scores (Agarwal et al. 2021, arXiv 2108.13264).

    >>> scores = [[.91, .52, .33], [.88, .55, .31], [.93, .50, .36], [.90, .58, .30], [.86, .53, .34]]
    >>> round(interquartile_mean(scores), 7)
    0.5688889
    """
    return float(stats.trim_mean(np.asarray(scores, dtype=float), proportiontocut=0.25, axis=None))


def optimality_gap(scores: ArrayLike, *, optimum: float = 1.0) -> float:
    """By how much scores miss the optimum on average, those beyond it counting as it (Agarwal et al. 2021)."""
    return float(np.mean(optimum - np.minimum(np.asarray(scores, dtype=float), optimum)))


def probability_of_improvement(scores: ArrayLike, others: ArrayLike) -> float:
    """The chance that a run of the first scores higher than one of the second, ties counting half.

    Mann and Whitney's U over the number of pairs (Agarwal et al. 2021, arXiv 2108.13264).
    """
    pairs = np.subtract.outer(np.asarray(scores, dtype=float).ravel(), np.asarray(others, dtype=float).ravel())
    return float((np.sign(pairs) + 1).mean() / 2)


def normalise_scores(scores: ArrayLike) -> Floats:
    """Each workload's scores on a common scale: (p - p5) / (p95 - p5) over all its arms and cells, clipped to [0, 1].

    scores: array of shape (workloads, ...), higher is better (Adkins et al. 2024, arXiv 2412.07165).
    """
    scores = np.asarray(scores, dtype=float)
    flat = scores.reshape(len(scores), -1)
    low, high = np.nanquantile(flat, [0.05, 0.95], axis=1)
    spread = np.where(high > low, high - low, np.nan)
    aligned = (flat - low[:, None]) / spread[:, None]
    return np.asarray(np.clip(aligned, 0, 1).reshape(scores.shape))


def cross_workload_sensitivity(scores: ArrayLike) -> Floats:
    """What tuning per workload gains over one setting for all: mean_w max_h score - max_h mean_w score.

    scores: array of shape (..., workloads, settings), normalised, higher is better; each setting run on every workload
    (Adkins et al. 2024, arXiv 2412.07165). 0: one setting is best everywhere.
    """
    scores = np.asarray(scores, dtype=float)
    return np.asarray(scores.max(axis=-1).mean(axis=-1) - scores.mean(axis=-2).max(axis=-1))


def effective_dimension(scores: ArrayLike, *, share: float = 0.95) -> int:
    """How many hyperparameters must be tuned per workload to reach `share` of what tuning all of them reaches.

    scores: array of shape (workloads, values of hyperparameter 1, values of hyperparameter 2, ...), normalised, higher
    is better. The hyperparameters that are not tuned per workload keep the values that are best on average
    (Adkins et al. 2024, arXiv 2412.07165).
    """
    scores = np.asarray(scores, dtype=float)
    axes = range(1, scores.ndim)
    full = scores.max(axis=tuple(axes)).mean()
    for count in range(scores.ndim):
        if max(_tuned(scores, subset) for subset in combinations(axes, count)) >= share * full:
            return count
    return scores.ndim - 1


def _tuned(scores: Floats, axes: tuple[int, ...]) -> float:
    """The best mean score over workloads when only these axes are chosen per workload."""
    return float(scores.max(axis=axes).mean(axis=0).max())


def performance_profile(times: ArrayLike, taus: ArrayLike) -> Floats:
    """rho(tau): the share of workloads an arm finishes within tau times the fastest arm's time.

    times: array of shape (arms, workloads), inf where the target was not reached; result: (arms, taus). Relative to the
    arms compared: adding one may change another's (Dahl et al. 2023, arXiv 2306.07179).
    """
    times, taus = np.asarray(times, dtype=float), np.asarray(taus, dtype=float)
    fastest = times.min(axis=0)
    with np.errstate(invalid="ignore"):
        ratio = np.where(np.isfinite(times), times / fastest, np.inf)
    return np.asarray((ratio[:, :, None] <= taus).mean(axis=1))


def profile_score(times: ArrayLike, *, largest: float = 4.0) -> Floats:
    """The area under each arm's performance profile from tau = 1 to `largest`, divided by its length: shape (arms,).

    Exact: a workload finished at ratio r adds (largest - r) / (largest - 1) where r <= largest.
    """
    times = np.asarray(times, dtype=float)
    with np.errstate(invalid="ignore"):
        ratio = np.where(np.isfinite(times), times / times.min(axis=0), np.inf)
    return np.asarray((np.clip(largest - ratio, 0, None) / (largest - 1)).mean(axis=1))
