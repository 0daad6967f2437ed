"""What was asked, what was measured, and who is measuring what: studies, trials and curves in a database.

with Store.open() as store:
    store.plan(study, points)
    trials = store.claim(study.name, 16, worker="me")
    store.record([(trial, curve), ...])
    store.finish([(trial, result), ...])
"""

from .connection import DEFAULT_URL, patiently
from .doctor import Check, doctor
from .errors import (
    BadExport,
    BadUrl,
    StoreError,
    StoreForeign,
    StoreMissing,
    StoreRefused,
    StoreUnavailable,
    StudyChanged,
    StudyMissing,
)
from .portable import Imported, export_study, import_study
from .records import Arm, Axis, Budget, Counts, Curve, Outcome, Planned, Point, Result, Study, Trial
from .store import LEASE_SECONDS, Store

__all__ = [
    "DEFAULT_URL",
    "LEASE_SECONDS",
    "Arm",
    "Axis",
    "BadExport",
    "BadUrl",
    "Budget",
    "Check",
    "Counts",
    "Curve",
    "Imported",
    "Outcome",
    "Planned",
    "Point",
    "Result",
    "Store",
    "StoreError",
    "StoreForeign",
    "StoreMissing",
    "StoreRefused",
    "StoreUnavailable",
    "Study",
    "StudyChanged",
    "StudyMissing",
    "Trial",
    "doctor",
    "export_study",
    "import_study",
    "patiently",
]
