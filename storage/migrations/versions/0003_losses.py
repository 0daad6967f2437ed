"""A cell counts the workers it has lost; a trial is started once, and ended by nobody but who holds its cell.

Stock Optuna reads before it writes: on SQLite, where nothing locks what is only read, two of its processes may start
one trial, and a process that was too slow may end a trial that another one is training. It takes an integrity error
for "somebody else was faster" and goes on, so the database answers with one.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("adamom_cells", sa.Column("losses", sa.Integer(), server_default="0", nullable=False))
    # The queue is in the order of numbers, which no other index has: by id, PostgreSQL may prefer the primary key and
    # pass over every finished cell. A finished cell is leased as well as long as Optuna has yet to be told.
    claimable, leased = sa.text("outcome IN ('waiting', 'lost')"), sa.text("lease_until IS NOT NULL")
    for name, columns, where in (
        ("adamom_cells_queue", ["study_id", "number"], claimable),
        ("adamom_cells_family_queue", ["study_id", "family", "number"], claimable),
        ("adamom_cells_leases", ["study_id", "lease_until"], leased),
    ):
        op.drop_index(name, "adamom_cells")
        op.create_index(name, "adamom_cells", columns, postgresql_where=where, sqlite_where=where)
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    for statement in SQLITE if on_sqlite else POSTGRESQL:
        op.execute(statement)


SQLITE = (
    """
    CREATE TRIGGER adamom_trials_start_once BEFORE UPDATE OF state ON trials
    WHEN NEW.state = 'RUNNING' AND OLD.state <> 'WAITING' BEGIN
        SELECT RAISE(ABORT, 'another process has started this trial');
    END
    """,
    """
    CREATE TRIGGER adamom_trials_held BEFORE UPDATE OF state ON trials
    WHEN OLD.state = 'RUNNING' AND NEW.state IN ('PRUNED', 'FAIL')
        AND EXISTS (SELECT 1 FROM adamom_cells WHERE trial_id = OLD.trial_id AND outcome = 'running') BEGIN
        SELECT RAISE(ABORT, 'a worker holds this trial');
    END
    """,
)
POSTGRESQL = (
    """
    CREATE FUNCTION adamom_refuse_if_held() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF EXISTS (SELECT FROM adamom_cells WHERE trial_id = OLD.trial_id AND outcome = 'running') THEN
            RAISE EXCEPTION 'a worker holds this trial' USING ERRCODE = 'integrity_constraint_violation';
        END IF;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER adamom_trials_held BEFORE UPDATE OF state ON trials FOR EACH ROW
    WHEN (OLD.state = 'RUNNING' AND NEW.state IN ('PRUNED', 'FAIL')) EXECUTE FUNCTION adamom_refuse_if_held()
    """,
)
