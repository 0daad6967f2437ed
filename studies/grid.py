"""A study becomes its points: pure, ordered, without repeats."""

from __future__ import annotations

from collections.abc import Iterator

from storage.records import Point, Study

__all__ = ["points"]


def points(study: Study) -> Iterator[Point]:
    """Every cell of the study once, in the order in which workers take them.

    Arms stand together, so that the trials a worker claims at once can train as one program; within an arm the seeds of
    one learning rate stand together, so that a study stopped early has whole repeats.
    """
    for arm in study.arms:
        for lr in arm.lr.values:
            for seed in study.seeds:
                yield Point(arm=arm.name, lr=lr, momentum=arm.momentum, seed=seed)
