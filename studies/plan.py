"""Put the missing points of a study into the store: safe to repeat, from two machines at once, and to extend a grid."""

from __future__ import annotations

from storage import Planned, Store, StoreMissing, Study
from studies.grid import points

__all__ = ["plan", "would_plan"]


def plan(store: Store, study: Study) -> Planned:
    """Add the cells that are not there yet."""
    return store.plan(study, points(study))


def would_plan(url: str | None, study: Study) -> Planned:
    """What `plan` would do to the store at this address, without doing it; to no store at all, if there is none yet."""
    try:
        with Store.open(url, create=False) as store:
            return store.missing(study, points(study))
    except StoreMissing:
        return Planned(added=sum(1 for _ in points(study)), present=0)
