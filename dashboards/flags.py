"""What a reader must know before believing a number, raised by the report itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dashboards.evidence import ArmGrid
from dashboards.measures import Scale
from dashboards.style import counted, number

if TYPE_CHECKING:
    from dashboards.summary import ArmRow, Summary

__all__ = ["Flag", "raise_flags"]


@dataclass(frozen=True, slots=True)
class Flag:
    """Something a reader must know before believing a number. arm: "" when it concerns the whole study."""

    kind: str
    arm: str
    text: str

    def as_dict(self) -> dict[str, str]:
        return {"kind": self.kind, "arm": self.arm, "text": self.text}


MIXED = {  # what should be the same for every trial of a study, and what follows if it is not
    "data": "different data, so that their losses cannot be compared",
    "device": "different devices, which round differently",
    "torch": "different releases of torch",
    "python": "different releases of Python",
    "adamom": "different releases of adamom",
    "commit": "different commits of the code",
}


def raise_flags(summary: Summary) -> Iterator[Flag]:
    """Every flag of a study, those of the whole study first."""
    yield from _study_flags(summary)
    for grid, row in zip(summary.evidence.grids, summary.rows, strict=True):
        yield from _arm_flags(grid, row, summary.scale)


def _study_flags(summary: Summary) -> Iterator[Flag]:
    evidence, counts, study = summary.evidence, summary.counts, summary.study
    unplanned = evidence.planned - counts.total
    if counts.finished < evidence.planned:
        parts = [f"{counts.waiting + counts.lost:,} wait", f"{counts.running:,} are running"]
        parts += [f"{unplanned:,} have not been planned"] if unplanned else []
        yield Flag(
            "unfinished", "", f"{counts.finished:,} of {evidence.planned:,} cells are finished; {', '.join(parts)}."
        )
    for name, what in (
        ("pruned", "were stopped early and have no final loss"),
        ("oom", "did not fit on the device"),
        ("failed", "raised an error in the workload's code"),
    ):
        if found := getattr(counts, name):
            yield Flag(name, "", f"{found:,} cells {what}: they count as not run in every number.")
    yield from _mixed(evidence.provenance)
    if evidence.strangers:
        yield Flag("outside", "", f"{evidence.strangers} stored trials lie outside the study's grid and are left out.")
    seeds = max((row.seeds for row in summary.rows), default=0)
    needed = max((each.needed for each in summary.differences), default=0)
    if 0 < seeds < needed:
        yield Flag(
            "few seeds",
            "",
            f"{counted(seeds, 'seed')}: no paired test over seeds can reach p < 0.05 with as many comparisons as here; "
            f"{needed} seeds can. Intervals from so few seeds are too narrow.",
        )
    elif seeds == 1:
        yield Flag("few seeds", "", "1 seed: nothing here can say how much of a difference is chance.")
    if len({arm.lr.values for arm in study.arms}) > 1:
        yield Flag(
            "lr windows",
            "",
            "The arms have different learning rates: compare averages over the grid (sensitivity, area, "
            "share diverged) only in the common window.",
        )
    if len({arm.damped for arm in study.arms}) > 1 or any(arm.adaptive and not arm.damped for arm in study.arms):
        yield Flag(
            "meaning of lr",
            "",
            "A learning rate does not mean the same step in every arm (momentum multiplies it by "
            "1 / (1 - beta), Adam normalises it): read the curves against the effective learning rate too.",
        )


def _mixed(provenance: Mapping[str, Mapping[str, int]]) -> Iterator[Flag]:
    for key, what in MIXED.items():
        if len(found := provenance.get(key, {})) > 1:
            counts = ", ".join(f"{value} ({counted(trials, 'trial')})" for value, trials in found.items())
            yield Flag(f"mixed {key}", "", f"Its trials ran on {what}: {counts}.")


def _arm_flags(grid: ArmGrid, row: ArmRow, scale: Scale) -> Iterator[Flag]:
    missing = row.planned - row.measured
    if missing:
        yield Flag("missing", row.arm, f"{missing:,} of its {row.planned:,} cells have not been run.")
    if not row.measured:
        return
    per_seed = np.isfinite(grid.loss).sum(axis=1)
    if len(set(per_seed[per_seed > 0].tolist())) > 1:
        yield Flag("unequal seeds", row.arm, "Its learning rates have not all been run with the same seeds.")
    if row.diverged.value == 1:
        yield Flag("all diverged", row.arm, "Every run diverged or ended no better than it began.")
        return
    if row.best_loss.value > scale.target:
        yield Flag(
            "poor basin",
            row.arm,
            f"Its best loss, {number(row.best_loss.value)}, misses the study's best, {number(scale.best)}, by more "
            "than the tolerance: its basin says how flat a poor loss is, not how easily it is tuned.",
        )
    if row.best_lr in (grid.lrs[0], grid.lrs[-1]):
        yield Flag(
            "optimum at edge", row.arm, f"Its best learning rate, {number(row.best_lr)}, is the grid's first or last."
        )
    elif row.basin.bound:
        yield Flag(
            "basin at edge", row.arm, "Its basin touches the edge of the grid: the true one is at least as wide."
        )
