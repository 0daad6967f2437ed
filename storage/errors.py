"""What can go wrong with a store, said so that the reader knows what to do next.

    StoreError
    ├── StoreUnavailable   it may be back in a moment: wait and ask again (`connection.patiently`)
    ├── StoreMissing       no such file, database or schema
    ├── StoreRefused       it is there and says no: password, permission, read-only, full disk
    ├── StoreForeign       its schema was not made by a version we know
    ├── BadUrl             not an address of a store
    ├── StudyMissing       no study of that name
    ├── StudyChanged       the name is taken by a study that asks something else
    └── BadExport          a file that holds no exported study

Every message names the place, the reason and the next thing to try. No password is ever part of one.
"""

# ruff: noqa: N818  (StoreMissing says enough)

from __future__ import annotations

__all__ = [
    "BadExport",
    "BadUrl",
    "StoreError",
    "StoreForeign",
    "StoreMissing",
    "StoreRefused",
    "StoreUnavailable",
    "StudyChanged",
    "StudyMissing",
]


class StoreError(Exception):
    """The store could not do what was asked."""


class StoreUnavailable(StoreError):
    """The store does not answer at the moment."""


class StoreMissing(StoreError):
    """There is no store at this address."""


class StoreRefused(StoreError):
    """The store is there and refuses."""


class StoreForeign(StoreError):
    """The store was made by a version this one does not know."""


class BadUrl(StoreError):
    """This is not the address of a store."""


class StudyMissing(StoreError):
    """The store has no study of that name."""


class StudyChanged(StoreError):
    """The store has a study of that name that asks something else."""


class BadExport(StoreError):
    """The file does not hold an exported study."""
