"""Cells with leases, results and curves, beside Optuna's tables.

A migration is history: it repeats its columns and imports nothing of ours, so that it does the same for ever.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "adamom_cells",
        sa.Column("trial_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("arm", sa.Text(), nullable=False),
        sa.Column("family", sa.Text(), nullable=False),
        sa.Column("lr", sa.Double(), nullable=False),
        sa.Column("momentum", sa.Double()),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("worker", sa.Text()),
        sa.Column("lease_seconds", sa.Double()),
        sa.Column("lease_until", sa.Double()),
        sa.PrimaryKeyConstraint("trial_id"),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.trial_id"], ondelete="CASCADE"),
        sa.UniqueConstraint("study_id", "key", name="adamom_cells_key"),
    )
    op.create_table(
        "adamom_results",
        sa.Column("trial_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("initial_loss", sa.Double()),
        sa.Column("final_loss", sa.Double()),
        sa.Column("best_loss", sa.Double()),
        sa.Column("final_accuracy", sa.Double()),
        sa.Column("mean_momentum", sa.Double()),
        sa.Column("diverged_at", sa.Integer()),
        sa.Column("seconds", sa.Double()),
        sa.Column("error", sa.Text()),
        sa.Column("provenance", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("trial_id"),
        sa.ForeignKeyConstraint(["trial_id"], ["adamom_cells.trial_id"], ondelete="CASCADE"),
    )
    op.create_table(
        "adamom_curves",
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("first_step", sa.Integer(), nullable=False),
        sa.Column("entries", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("trial_id", "attempt", "first_step"),
        sa.ForeignKeyConstraint(["trial_id"], ["adamom_cells.trial_id"], ondelete="CASCADE"),
    )
    claimable, leased = sa.text("outcome IN ('waiting', 'lost')"), sa.text("outcome = 'running'")
    for name, columns, where in (
        ("adamom_cells_queue", ["study_id", "trial_id"], claimable),
        ("adamom_cells_family_queue", ["study_id", "family", "trial_id"], claimable),
        ("adamom_cells_leases", ["study_id", "lease_until"], leased),
    ):
        op.create_index(name, "adamom_cells", columns, postgresql_where=where, sqlite_where=where)
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            """
            CREATE TRIGGER adamom_cells_follow_trials AFTER DELETE ON trials BEGIN
                DELETE FROM adamom_curves WHERE trial_id = OLD.trial_id;
                DELETE FROM adamom_results WHERE trial_id = OLD.trial_id;
                DELETE FROM adamom_cells WHERE trial_id = OLD.trial_id;
            END
            """
        )
