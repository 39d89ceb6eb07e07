"""The proposal that caused each state: what was written before has none."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

STATE_TABLES = ("flow_run_state", "task_run_state")


def upgrade() -> None:
    for table in STATE_TABLES:
        op.add_column(table, sa.Column("proposal_id", sa.Uuid(), nullable=True))


def downgrade() -> None:
    for table in STATE_TABLES:
        op.drop_column(table, "proposal_id")
