"""Who has asked, and why it was decided so; the ledger finds what a run was refused.

What was decided before has neither: nobody had said who asked, and what the rules saw is gone.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    for table in ("verdict", "answer", "parked"):
        op.add_column(table, sa.Column("actor", sa.Text(), nullable=True))
    for table in ("verdict", "parked"):
        op.add_column(table, sa.Column("trace", postgresql.JSONB(), nullable=True))
    op.create_index(
        "ix_verdict__run_id_decided",
        "verdict",
        ["run_id", "decided"],
        postgresql_where=sa.text("status <> 'ACCEPT'"),
    )


def downgrade() -> None:
    op.drop_index("ix_verdict__run_id_decided", "verdict")
    for table in ("verdict", "parked"):
        op.drop_column(table, "trace")
    for table in ("verdict", "answer", "parked"):
        op.drop_column(table, "actor")
