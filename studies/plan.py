"""Put the missing points of a study into the store: safe to repeat, from two machines at once, and to extend a grid."""

from __future__ import annotations

from storage import Planned, Store, Study
from studies import workloads
from studies.catalog import StudyFileError
from studies.grid import points

__all__ = ["plan"]


def plan(store: Store, study: Study, *, dry_run: bool = False) -> Planned:
    """Add the cells that are not there yet; with dry_run only count them.

    Raises StudyFileError when the workload cannot fill one batch, and whatever the store raises.
    """
    try:
        workloads.load(study.workload).batch_order(seed=0, steps=1, batch_size=study.budget.batch_size)
    except ValueError as error:
        raise StudyFileError(f"Study {study.name!r}, [budget] batch_size: {error}") from None
    return store.missing(study, points(study)) if dry_run else store.plan(study, points(study))
