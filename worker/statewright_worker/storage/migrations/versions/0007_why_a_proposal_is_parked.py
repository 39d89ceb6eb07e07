"""Why a proposal is parked: those that were parked before do not say it until they are looked at again."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("parked", sa.Column("reason", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("parked", "reason")
