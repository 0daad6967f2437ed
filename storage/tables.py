"""Our tables, beside the ones of Optuna that we write to.

Optuna's tables are Optuna's: `optuna_tables` repeats only the columns that we touch, a test compares them with the
installed Optuna, and the schema's version is checked at the door. Ours start with `adamom_`:

    adamom_cells    one row per planned cell: who has it, until when, and what became of it
    adamom_results  one row per finished cell: its numbers
    adamom_curves   learning curves, a few evaluations per row, packed (see `curves.py`)

Times that decide anything are seconds since 1970 by the clock of the database, never of a worker.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Double,
    Enum,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction

__all__ = [
    "cells",
    "curves",
    "directions",
    "intermediate_values",
    "moment",
    "now_epoch",
    "now_utc",
    "optuna_tables",
    "our_tables",
    "params",
    "results",
    "studies",
    "study_attributes",
    "trial_attributes",
    "trials",
    "values",
]


class now_epoch(GenericFunction[float]):  # noqa: N801 (it reads as SQL)
    """The database's clock: seconds since 1970 when the statement began. Stable, so that an index can use it."""

    type = Double()
    inherit_cache = True


class now_utc(GenericFunction[Any]):  # noqa: N801
    """The database's clock as Optuna keeps it: a naive timestamp in UTC."""

    type = DateTime()
    inherit_cache = True


class moment(GenericFunction[str]):  # noqa: N801
    """moment(column): a timestamp of Optuna's as text, "2026-01-31 23:59:59.000000"."""

    type = Text()
    inherit_cache = True


@compiles(moment, "postgresql")
def _(element: Any, compiler: Any, **how: Any) -> str:
    return f"to_char({compiler.process(element.clauses, **how)}, 'YYYY-MM-DD HH24:MI:SS.US')"


@compiles(moment, "sqlite")
def _(element: Any, compiler: Any, **how: Any) -> str:
    return f"{compiler.process(element.clauses, **how)}"


@compiles(now_epoch, "postgresql")
def _(element: Any, compiler: Any, **_: Any) -> str:
    return "CAST(extract(epoch FROM statement_timestamp()) AS double precision)"


@compiles(now_epoch, "sqlite")
def _(element: Any, compiler: Any, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now_utc, "postgresql")
def _(element: Any, compiler: Any, **_: Any) -> str:
    return "(statement_timestamp() AT TIME ZONE 'utc')"


@compiles(now_utc, "sqlite")
def _(element: Any, compiler: Any, **_: Any) -> str:
    return "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')"


# --- Optuna's (schema v3.2.0.a, version 12, the same since 2023) ------------------------------------------------------

optuna_tables = MetaData()

studies = Table(
    "studies",
    optuna_tables,
    Column("study_id", Integer, primary_key=True),
    Column("study_name", String(512)),
)
directions = Table(
    "study_directions",
    optuna_tables,
    Column("study_direction_id", Integer, primary_key=True),
    Column("direction", Enum("NOT_SET", "MINIMIZE", "MAXIMIZE", name="studydirection", create_type=False)),
    Column("study_id", Integer),
    Column("objective", Integer),
)
study_attributes = Table(
    "study_user_attributes",
    optuna_tables,
    Column("study_user_attribute_id", Integer, primary_key=True),
    Column("study_id", Integer),
    Column("key", String(512)),
    Column("value_json", Text),
)
trials = Table(
    "trials",
    optuna_tables,
    Column("trial_id", Integer, primary_key=True),
    Column("number", Integer),
    Column("study_id", Integer),
    Column("state", Enum("RUNNING", "COMPLETE", "PRUNED", "FAIL", "WAITING", name="trialstate", create_type=False)),
    Column("datetime_start", DateTime),
    Column("datetime_complete", DateTime),
)
params = Table(
    "trial_params",
    optuna_tables,
    Column("param_id", Integer, primary_key=True),
    Column("trial_id", Integer),
    Column("param_name", String(512)),
    Column("param_value", Double),
    Column("distribution_json", Text),
)
values = Table(
    "trial_values",
    optuna_tables,
    Column("trial_value_id", Integer, primary_key=True),
    Column("trial_id", Integer),
    Column("objective", Integer),
    Column("value", Double),
    Column("value_type", Enum("FINITE", "INF_POS", "INF_NEG", name="trialvaluetype", create_type=False)),
)
intermediate_values = Table(
    "trial_intermediate_values",
    optuna_tables,
    Column("trial_intermediate_value_id", Integer, primary_key=True),
    Column("trial_id", Integer),
    Column("step", Integer),
    Column("intermediate_value", Double),
    Column(
        "intermediate_value_type",
        Enum("FINITE", "INF_POS", "INF_NEG", "NAN", name="trialintermediatevaluetype", create_type=False),
    ),
)
trial_attributes = Table(
    "trial_user_attributes",
    optuna_tables,
    Column("trial_user_attribute_id", Integer, primary_key=True),
    Column("trial_id", Integer),
    Column("key", String(512)),
    Column("value_json", Text),
)

# --- ours -------------------------------------------------------------------------------------------------------------

our_tables = MetaData()

# A study deleted in Optuna's dashboard takes its cells with it: ON DELETE CASCADE, declared in the migrations, where
# Optuna's tables are known. SQLite keeps foreign keys only for connections that ask for it, which Optuna's do not:
# there a trigger does the same.
cells = Table(
    "adamom_cells",
    our_tables,
    Column("trial_id", Integer, primary_key=True, autoincrement=False),
    Column("study_id", Integer, nullable=False),
    Column("number", Integer, nullable=False),  # the trial's number in Optuna's pages
    Column("key", Text, nullable=False),  # Point.key
    Column("arm", Text, nullable=False),
    Column("family", Text, nullable=False),
    Column("lr", Double, nullable=False),
    Column("momentum", Double),  # null: a rule computes it
    Column("seed", BigInteger, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("attempt", Integer, nullable=False, server_default="0"),  # claims so far: the fencing token
    Column("failures", Integer, nullable=False, server_default="0"),  # attempts that ended in an exception
    Column("last_error", Text),  # the traceback of the last of them
    Column("worker", Text),
    Column("lease_seconds", Double),
    Column("lease_until", Double),  # seconds since 1970, by the database's clock; of a finished cell: to tell Optuna
    Column("losses", Integer, nullable=False, server_default="0"),  # workers that died with it, or fell silent
    UniqueConstraint("study_id", "key", name="adamom_cells_key"),
)
results = Table(
    "adamom_results",
    our_tables,
    Column(
        "trial_id", Integer, ForeignKey(cells.c.trial_id, ondelete="CASCADE"), primary_key=True, autoincrement=False
    ),
    Column("steps", Integer, nullable=False),
    Column("initial_loss", Double),  # in all of these, null is nan
    Column("final_loss", Double),
    Column("best_loss", Double),
    Column("final_accuracy", Double),
    Column("mean_momentum", Double),
    Column("diverged_at", Integer),
    Column("seconds", Double),
    Column("error", Text),
    Column("provenance", Text, nullable=False),  # JSON
)
curves = Table(
    "adamom_curves",
    our_tables,
    Column("trial_id", Integer, ForeignKey(cells.c.trial_id, ondelete="CASCADE"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("first_step", Integer, nullable=False),
    Column("entries", LargeBinary, nullable=False),  # curves.pack
    PrimaryKeyConstraint("trial_id", "attempt", "first_step"),
)

CLAIMABLE = text("outcome IN ('waiting', 'lost')")
LEASED = text("lease_until IS NOT NULL")
for name, columns, where in (
    ("adamom_cells_queue", (cells.c.study_id, cells.c.number), CLAIMABLE),
    ("adamom_cells_family_queue", (cells.c.study_id, cells.c.family, cells.c.number), CLAIMABLE),
    ("adamom_cells_leases", (cells.c.study_id, cells.c.lease_until), LEASED),
):
    Index(name, *columns, postgresql_where=where, sqlite_where=where)
