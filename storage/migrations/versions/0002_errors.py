"""A cell remembers the traceback of its last failed attempt; curves are no longer compressed.

Compressing noisy floats costs a server more than it saves. Rows that are there stay as they are.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("adamom_cells", sa.Column("last_error", sa.Text()))
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE adamom_curves ALTER entries SET STORAGE EXTERNAL")
