"""Two arms, paired by seed: a difference, its interval, and how easily chance would give it.

The seed is the unit of every interval and test here. Cells of one seed share their initial weights and batches, so
treating (learning rate, seed) pairs as independent would make a few seeds look like many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dashboards import metrics
from dashboards.evidence import Floats
from dashboards.measures import STATISTICS, Cells, Curves, Scale, measure

__all__ = ["Difference", "Estimate", "compare_arms", "flips", "holm", "seeds_needed", "sign_flip_p"]

SIGNIFICANCE = 0.05
ALL_FLIPS = 12  # up to so many seeds every swap is tried (4,096); beyond, so many are drawn


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval and the number of trials behind it.

    bound: ">=" or "<=" when the grid's edge or the budget cut the measurement short, else "". nan where there is none.
    """

    value: float
    low: float
    high: float
    n: int
    bound: str = ""

    @property
    def known(self) -> bool:
        return math.isfinite(self.value)

    def as_dict(self) -> dict[str, Any]:
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {k: v if math.isfinite(v) else None for k, v in numbers.items()} | {"n": self.n, "bound": self.bound}


@dataclass(frozen=True, slots=True)
class Difference:
    """One statistic of an arm minus that of its baseline, on the learning rates and seeds both have.

    estimate: the difference; in decades (log10 of the ratio) where the statistic is a learning rate. value, base: the
    statistic of either arm there. p: of a sign-flip test over seeds. p_holm: the same, corrected for the arms compared.
    needed: the number of seeds from which a corrected p below 0.05 is possible at all.
    """

    statistic: str
    arm: str
    baseline: str
    value: float
    base: float
    estimate: Estimate
    p: float
    p_holm: float
    seeds: int
    needed: int

    @property
    def better(self) -> bool | None:
        """Whether the arm is better (True) or worse (False) than its baseline; None where that is undecided."""
        if not self.estimate.known or not self.p_holm < SIGNIFICANCE or self.estimate.low * self.estimate.high <= 0:
            return None
        return (self.estimate.value < 0) == STATISTICS[self.statistic].lower_is_better

    @property
    def too_few_seeds(self) -> bool:
        return self.seeds < self.needed

    def as_dict(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in ("statistic", "arm", "baseline", "seeds", "needed", "better")}
        numbers = {name: getattr(self, name) for name in ("value", "base", "p", "p_holm")}
        known = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
        return plain | known | {"difference": self.estimate.as_dict()}


def flips(seeds: int, *, seed: int) -> Floats:
    """Which seeds swap their arms: array of shape (arrangements, seeds) of 0 and 1, the first row all 0.

    All 2^seeds arrangements up to 12 seeds; beyond, that many drawn at random.
    """
    if seeds <= ALL_FLIPS:
        return np.array(np.meshgrid(*[[0.0, 1.0]] * seeds, indexing="ij")).reshape(seeds, -1).T
    drawn = np.random.default_rng(seed).integers(0, 2, size=(2**ALL_FLIPS, seeds)).astype(float)
    drawn[0] = 0
    return drawn


def sign_flip_p(differences: ArrayLike) -> float:
    """The two-sided p-value of a sign-flip test: the share of arrangements as extreme as the first, observed one.

    differences: array of shape (arrangements,), the statistic's difference under each arrangement of `flips`.
    """
    differences = np.asarray(differences, dtype=float)
    if not math.isfinite(differences[0]):
        return math.nan
    known = np.abs(differences[np.isfinite(differences)])
    return float((known >= known[0] - 1e-12 * max(known[0], 1.0)).mean())


def seeds_needed(comparisons: int) -> int:
    """The fewest seeds with which a two-sided sign-flip test can reach p < 0.05 after Holm's correction.

    The smallest p of s seeds is 2 / 2^s: three seeds never get below 0.25, six reach 0.03.
    """
    seeds = 1
    while 2 / 2**seeds * max(comparisons, 1) >= SIGNIFICANCE:
        seeds += 1
    return seeds


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979); nan stays nan and does not count."""
    order = sorted((index for index, value in enumerate(p) if math.isfinite(value)), key=lambda index: p[index])
    corrected, largest = list(p), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, p[index] * (len(order) - rank)))
        corrected[index] = largest
    return corrected


def compare_arms(
    arms: dict[str, Cells], baselines: dict[str, str], scale: Scale, *, seed: int, resamples: int
) -> tuple[Difference, ...]:
    """Every statistic of each arm against its baseline, paired by seed; Holm-corrected over the arms, per statistic."""
    pairs = [(arm, base) for arm, base in baselines.items() if arm != base]
    found = [
        difference
        for arm, base in pairs
        for difference in _differences(arm, arms[arm], base, arms[base], scale, seed=seed, resamples=resamples)
    ]
    corrected: dict[tuple[str, str], float] = {}
    for name in STATISTICS:
        same = [each for each in found if each.statistic == name]
        corrected |= {(name, d.arm): p for d, p in zip(same, holm([d.p for d in same]), strict=True)}
    needed = seeds_needed(len(pairs))
    return tuple(replace(d, p_holm=corrected[d.statistic, d.arm], needed=needed) for d in found)


def _differences(
    arm: str, mine: Cells, base: str, other: Cells, scale: Scale, *, seed: int, resamples: int
) -> list[Difference]:
    mine, other = _paired(mine, other)
    seeds, cells = len(mine.loss), int(np.isfinite(mine.loss).sum())
    if seeds == 0 or len(mine.lrs) == 0:
        nothing = Estimate(math.nan, math.nan, math.nan, 0)
        nan = math.nan
        return [Difference(name, arm, base, nan, nan, nothing, nan, nan, 0, 0) for name in STATISTICS]
    weights = metrics.draws(seeds, seed=seed, resamples=resamples)
    here, there = measure(mine.curves(), mine, scale), measure(other.curves(), other, scale)
    drawn = measure(mine.curves(weights), mine, scale), measure(other.curves(weights), other, scale)
    swaps = flips(seeds, seed=seed)
    swapped = (
        measure(_swapped(mine, other, swaps), mine, scale),
        measure(_swapped(other, mine, swaps), other, scale),
    )
    found = []
    for name in STATISTICS:
        low, high = metrics.interval(_gap(name, *drawn)) if seeds > 1 else (math.nan, math.nan)
        value, base_value, gap = float(here[name][0]), float(there[name][0]), float(_gap(name, here, there)[0])
        estimate = Estimate(gap, low, high, 2 * cells) if math.isfinite(gap) else Estimate(gap, gap, gap, 0)
        p = sign_flip_p(_gap(name, *swapped))
        found.append(Difference(name, arm, base, value, base_value, estimate, p, p, seeds, 0))
    return found


def _gap(name: str, here: dict[str, Floats], there: dict[str, Floats]) -> Floats:
    if STATISTICS[name].logarithmic:
        return np.log10(here[name]) - np.log10(there[name])
    return here[name] - there[name]


def _paired(mine: Cells, other: Cells) -> tuple[Cells, Cells]:
    """Both arms on the learning rates both have, with only the seeds both have run; a cell counts if both ran it."""
    keys, other_keys = np.round(np.log10(mine.lrs), 9), np.round(np.log10(other.lrs), 9)
    _, here, there = np.intersect1d(keys, other_keys, return_indices=True)
    everyone = np.ones(len(mine.loss), dtype=bool)
    mine, other = mine.at(here, everyone), other.at(there, everyone)
    both = np.isfinite(mine.loss) & np.isfinite(other.loss)
    mine, other = _masked(mine, both), _masked(other, both)
    seeds, every = np.asarray(both.any(axis=1)), np.arange(len(here))
    return mine.at(every, seeds), other.at(every, seeds)


def _masked(cells: Cells, ran: NDArray[np.bool_]) -> Cells:
    return replace(
        cells,
        loss=np.where(ran, cells.loss, np.nan),
        diverged=np.where(ran, cells.diverged, np.nan),
        steps=np.where(ran, cells.steps, np.nan),
    )


def _swapped(mine: Cells, other: Cells, swaps: Floats) -> Curves:
    """This arm's curves when the seeds marked 1 come from the other arm: one row per arrangement."""
    rows = ((mine.loss, other.loss), (mine.diverged, other.diverged), (mine.steps, other.steps))
    weights = np.hstack([1 - swaps, swaps])
    return Curves(*(metrics.mean_over_seeds(np.vstack(pair), weights) for pair in rows))
