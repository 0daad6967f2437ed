"""Every statement of the store that is more than a line, each made once and named after what it does.

Parameters: study (id), name, ids (list of trial ids), k, families, worker, seconds, outcome, state, fewest and most
(losses).
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from .definition import FILE_KEY
from .records import Outcome
from .session import among
from .tables import (
    cells,
    curves,
    intermediate_values,
    moment,
    now_epoch,
    now_utc,
    params,
    results,
    studies,
    study_attributes,
    trial_attributes,
    trials,
    values,
)

_STUDY = sa.bindparam("study", type_=sa.Integer)
_NAME = sa.bindparam("name", type_=sa.Text)
_SECONDS = sa.bindparam("seconds", type_=sa.Double)

# The words of the partial indexes: SQLite sees that an index applies only when the words are the same.
_CLAIMABLE = sa.text("adamom_cells.outcome IN ('waiting', 'lost')")
_LEASED = sa.text("adamom_cells.lease_until IS NOT NULL")
_RUNNING = sa.text("adamom_cells.outcome = 'running'")

# A lease that ran out is lost, whether or not anybody has swept it up yet.
_OUTCOME_NOW = sa.case(
    (sa.and_(_RUNNING, cells.c.lease_until < now_epoch()), Outcome.LOST.value), else_=cells.c.outcome
).label("outcome_now")

# --- studies ----------------------------------------------------------------------------------------------------------

_OURS = sa.and_(study_attributes.c.study_id == studies.c.study_id, study_attributes.c.key == FILE_KEY)

STUDY_ID = sa.select(studies.c.study_id).join(study_attributes, _OURS).where(studies.c.study_name == _NAME)
STUDY_NAMES = sa.select(studies.c.study_name).join(study_attributes, _OURS).order_by(studies.c.study_id)
LOCK_STUDY = sa.select(studies.c.study_id).where(studies.c.study_name == _NAME).with_for_update()
MAKE_STUDY = sa.text(
    "INSERT INTO studies (study_name) VALUES (:name) ON CONFLICT (study_name) DO NOTHING RETURNING study_id"
)
STUDY_SAYS = sa.select(study_attributes.c.key, study_attributes.c.value_json).where(
    study_attributes.c.study_id == _STUDY
)
FORGET_STUDY_SAYS = sa.delete(study_attributes).where(
    study_attributes.c.study_id == _STUDY, among(study_attributes.c.key, "keys")
)
COUNTS = (
    sa.select(studies.c.study_name, _OUTCOME_NOW, sa.func.count(cells.c.trial_id))
    .join(study_attributes, _OURS)
    .outerjoin(cells, cells.c.study_id == studies.c.study_id)
    .group_by(studies.c.study_id, studies.c.study_name, "outcome_now")
    .order_by(studies.c.study_id)
)
COUNTS_OF_STUDY = COUNTS.where(studies.c.study_name == _NAME)

# --- planning ---------------------------------------------------------------------------------------------------------

KEYS = sa.select(cells.c.key).where(cells.c.study_id == _STUDY)
TRIALS_SO_FAR = sa.select(sa.func.count(trials.c.trial_id)).where(trials.c.study_id == _STUDY)
SPACE = sa.select(params.c.param_name, params.c.distribution_json).where(
    params.c.trial_id == sa.select(sa.func.min(cells.c.trial_id)).where(cells.c.study_id == _STUDY).scalar_subquery()
)
WIDEN_SPACE = (
    sa.update(params)
    .where(
        params.c.param_name == _NAME,
        params.c.trial_id.in_(sa.select(cells.c.trial_id).where(cells.c.study_id == _STUDY)),
    )
    .values(distribution_json=sa.bindparam("distribution", type_=sa.Text))
)
COUNT_ROWS_ANEW = tuple(sa.text(f"ANALYZE {table.name}") for table in (cells, trials))
NEXT_IDS = sa.text("SELECT nextval(pg_get_serial_sequence('trials', 'trial_id')) FROM generate_series(1, :n)")
LARGEST_ID = sa.select(sa.func.coalesce(sa.func.max(trials.c.trial_id), 0))

# --- working ----------------------------------------------------------------------------------------------------------

EXPIRED = (  # the index needs no second look: who has no lease is not in it
    sa.select(cells.c.trial_id, cells.c.outcome)
    .where(cells.c.study_id == _STUDY, cells.c.lease_until < now_epoch())
    .with_for_update(skip_locked=True)
)
HELD_BY = (
    sa.select(cells.c.trial_id, cells.c.outcome)
    .where(cells.c.study_id == _STUDY, _LEASED, cells.c.worker == sa.bindparam("worker", type_=sa.Text))
    .order_by(cells.c.trial_id)
    .with_for_update()
)
HOLDERS = sa.select(cells.c.worker).where(cells.c.study_id == _STUDY, _LEASED).distinct().order_by(cells.c.worker)
_SOME_EXPIRED = EXPIRED.cte("expired")
WAITING = (  # cells that another claim has locked are passed over; none as long as there are leases to sweep up
    sa.select(
        cells.c.trial_id, cells.c.number, cells.c.arm, cells.c.lr, cells.c.momentum, cells.c.seed, cells.c.attempt
    )
    .where(
        cells.c.study_id == _STUDY,
        _CLAIMABLE,
        cells.c.losses.between(sa.bindparam("fewest", type_=sa.Integer), sa.bindparam("most", type_=sa.Integer)),
        ~sa.exists(sa.select(_SOME_EXPIRED.c.trial_id)),
    )
    .order_by(cells.c.number)
    .limit(sa.bindparam("k", type_=sa.Integer))
    .with_for_update(skip_locked=True)
)
WAITING_IN_FAMILIES = WAITING.where(among(cells.c.family, "families"))
_STARTED: dict[str, Any] = {"state": sa.literal_column("'RUNNING'"), "datetime_start": now_utc()}
START = (
    sa.update(trials)
    .where(among(trials.c.trial_id, "ids"), trials.c.state == sa.literal_column("'WAITING'"))
    .values(_STARTED)
    .returning(trials.c.trial_id)
)
_UNDER_LEASE: dict[str, Any] = {
    "outcome": sa.literal_column("'running'"),
    "attempt": cells.c.attempt + sa.literal_column("1"),
    "worker": sa.bindparam("worker", type_=sa.Text),
    "lease_seconds": _SECONDS,
    "lease_until": now_epoch() + _SECONDS,
}
LEASE = sa.update(cells).where(among(cells.c.trial_id, "ids")).values(_UNDER_LEASE)


def _claim(waiting: sa.Select[Any]) -> sa.Select[Any]:
    """`waiting`, START and LEASE as one statement: each cell, and whether Optuna let us start its trial."""
    chosen = waiting.cte("chosen")
    ids = sa.func.array(sa.select(chosen.c.trial_id).scalar_subquery(), type_=postgresql.ARRAY(sa.Integer))
    started = (
        sa.update(trials)
        .where(trials.c.trial_id == sa.any_(ids), trials.c.state == sa.literal_column("'WAITING'"))
        .values(_STARTED)
        .returning(trials.c.trial_id)
        .cte("started")
    )
    leased = sa.update(cells).where(cells.c.trial_id == sa.any_(ids)).values(_UNDER_LEASE).cte("leased")
    return (
        sa.select(*chosen.c, chosen.c.trial_id.in_(sa.select(started.c.trial_id)))
        .order_by(chosen.c.number)
        .add_cte(leased)
    )


CLAIM = _claim(WAITING)  # for PostgreSQL: on SQLite nothing that writes can be part of another statement
CLAIM_IN_FAMILIES = _claim(WAITING_IN_FAMILIES)
STATES_OF = sa.select(trials.c.trial_id, sa.cast(trials.c.state, sa.Text)).where(among(trials.c.trial_id, "ids"))
LOCK_CELLS = (
    sa.select(cells.c.trial_id, cells.c.study_id, cells.c.attempt, cells.c.outcome)
    .where(among(cells.c.trial_id, "ids"))
    .order_by(cells.c.trial_id)
    .with_for_update()
)
EXTEND_LEASES = (  # a lease that has lost less than a quarter is left as it is: rewriting costs more than reading
    sa.update(cells)
    .where(
        among(cells.c.trial_id, "ids"),
        cells.c.lease_until < now_epoch() + sa.literal_column("0.75") * cells.c.lease_seconds,
    )
    .values(lease_until=now_epoch() + cells.c.lease_seconds)
)
COUNT_FAILURE = (
    sa.update(cells)
    .where(among(cells.c.trial_id, "ids"))
    .values(failures=cells.c.failures + sa.literal_column("1"), last_error=sa.bindparam("error", type_=sa.Text))
    .returning(cells.c.failures)
)
COUNT_LOSS = (  # the columns as `rows.claimed` takes them, and two more
    sa.update(cells)
    .where(among(cells.c.trial_id, "ids"))
    .values(losses=cells.c.losses + sa.literal_column("1"))
    .returning(
        cells.c.trial_id,
        cells.c.number,
        cells.c.arm,
        cells.c.lr,
        cells.c.momentum,
        cells.c.seed,
        cells.c.attempt - sa.literal_column("1"),
        cells.c.losses,
        cells.c.worker,
    )
)

# --- settling ---------------------------------------------------------------------------------------------------------

SETTLE = (
    sa.update(cells)
    .where(among(cells.c.trial_id, "ids"))
    .values(outcome=sa.bindparam("outcome", type_=sa.Text), lease_until=sa.null())
)
OWE_OPTUNA = (  # the lease of a trial that a process of stock Optuna has yet to tell Optuna of
    sa.update(cells)
    .where(among(cells.c.trial_id, "ids"))
    .values(outcome=sa.bindparam("outcome", type_=sa.Text), lease_until=now_epoch() + cells.c.lease_seconds)
)
END_LEASES = sa.update(cells).where(among(cells.c.trial_id, "ids")).values(lease_until=sa.null())
COMPLETE = (
    sa.update(trials)
    .where(among(trials.c.trial_id, "ids"))
    .values(state=sa.bindparam("state", type_=trials.c.state.type), datetime_complete=now_utc())
)
SET_ATTEMPT = (
    sa.update(cells).where(among(cells.c.trial_id, "ids")).values(attempt=sa.bindparam("attempt", type_=sa.Integer))
)
OPEN_CELLS = (
    sa.select(cells.c.trial_id, cells.c.number, cells.c.key)
    .where(cells.c.study_id == _STUDY, _CLAIMABLE)
    .order_by(cells.c.trial_id)
    .with_for_update()
)
DROP_BROKEN_CURVES = sa.delete(curves).where(
    among(curves.c.trial_id, "ids"),
    curves.c.attempt < sa.select(cells.c.attempt).where(cells.c.trial_id == curves.c.trial_id).scalar_subquery(),
)
WITH_OUTCOMES = (
    sa.select(cells.c.trial_id)
    .where(
        cells.c.study_id == _STUDY,
        sa.or_(
            among(cells.c.outcome, "outcomes"),
            sa.and_(
                cells.c.outcome == sa.literal_column("'failed'"),
                cells.c.losses >= sa.bindparam("losses", type_=sa.Integer),
            ),
        ),
    )
    .order_by(cells.c.trial_id)
    .with_for_update()
)
REQUEUE = (
    sa.update(cells)
    .where(among(cells.c.trial_id, "ids"))
    .values(
        outcome=sa.bindparam("outcome", type_=sa.Text),
        worker=sa.null(),
        lease_until=sa.null(),
        lease_seconds=sa.null(),
    )
)
RETRY = (  # for Optuna
    sa.update(trials)
    .where(among(trials.c.trial_id, "ids"))
    .values(state=sa.literal_column("'WAITING'"), datetime_start=sa.null(), datetime_complete=sa.null())
)
WAIT_AGAIN = RETRY.where(  # what a process of stock Optuna has finished meanwhile stays finished
    trials.c.state == sa.literal_column("'RUNNING'")
)
FORGET_POINTS = sa.delete(intermediate_values).where(among(intermediate_values.c.trial_id, "ids"))
FORGET_RESULTS = tuple(
    sa.delete(table).where(among(table.c.trial_id, "ids")) for table in (results, curves, values, trial_attributes)
)
FORGET_FAILURES = (
    sa.update(cells)
    .where(among(cells.c.trial_id, "ids"))
    .values(failures=sa.literal_column("0"), losses=sa.literal_column("0"), last_error=sa.null())
)

# --- reading ----------------------------------------------------------------------------------------------------------

_AS_TRIAL = sa.select(  # the columns as `rows.trial` takes them
    cells.c.trial_id,
    cells.c.number,
    cells.c.arm,
    cells.c.lr,
    cells.c.momentum,
    cells.c.seed,
    _OUTCOME_NOW,
    cells.c.attempt,
    *(column for column in results.c if column is not results.c.trial_id),
)
TRIALS = (
    _AS_TRIAL.outerjoin(results, results.c.trial_id == cells.c.trial_id)
    .where(cells.c.study_id == _STUDY)
    .order_by(cells.c.trial_id)
)
OWED = (
    sa.select(sa.func.count(cells.c.trial_id))
    .join(trials, trials.c.trial_id == cells.c.trial_id)
    .where(
        cells.c.lease_until < now_epoch(),
        cells.c.outcome != sa.literal_column("'running'"),
        trials.c.state == sa.literal_column("'RUNNING'"),
    )
)
UNTOLD = (  # of these finished cells, those that Optuna believes to be running
    _AS_TRIAL.join(results, results.c.trial_id == cells.c.trial_id)
    .join(trials, trials.c.trial_id == cells.c.trial_id)
    .where(among(cells.c.trial_id, "ids"), trials.c.state == sa.literal_column("'RUNNING'"))
    .order_by(cells.c.trial_id)
    .with_for_update(of=trials)
)
CURVES = (
    sa.select(curves.c.trial_id, curves.c.entries)
    .join(cells, sa.and_(cells.c.trial_id == curves.c.trial_id, cells.c.attempt == curves.c.attempt))
    .where(cells.c.study_id == _STUDY, sa.text("adamom_cells.outcome NOT IN ('waiting', 'lost')"))
    .order_by(curves.c.trial_id, curves.c.first_step)
)
ERRORS = sa.select(cells.c.trial_id, cells.c.last_error).where(
    cells.c.study_id == _STUDY, cells.c.last_error.is_not(None)
)
MOMENTS = (
    sa.select(trials.c.trial_id, moment(trials.c.datetime_start), moment(trials.c.datetime_complete))
    .join(cells, cells.c.trial_id == trials.c.trial_id)
    .where(cells.c.study_id == _STUDY)
)
NEXT_EXPIRY = sa.select(sa.func.min(cells.c.lease_until) - now_epoch()).where(cells.c.study_id == _STUDY, _RUNNING)
CELL_BY_NUMBER = (
    sa.select(
        cells.c.trial_id,
        cells.c.number,
        cells.c.arm,
        cells.c.lr,
        cells.c.momentum,
        cells.c.seed,
        cells.c.attempt,
        cells.c.outcome,
        cells.c.worker,
        sa.cast(trials.c.state, sa.Text),
    )
    .join(trials, trials.c.trial_id == cells.c.trial_id)
    .where(cells.c.study_id == _STUDY, cells.c.number == sa.bindparam("number", type_=sa.Integer))
    .with_for_update()
)
