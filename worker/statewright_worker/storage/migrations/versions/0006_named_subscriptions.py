"""Named subscriptions: their members, their shares with positions, their dead letters."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

FREE_SPACE = {"fillfactor": 70}


def of_subscription(table: str) -> tuple[sa.Column[str], sa.ForeignKeyConstraint]:
    return (
        sa.Column("subscription", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["subscription"], ["subscription.name"], name=op.f(f"fk_{table}__subscription"), ondelete="CASCADE"
        ),
    )


def upgrade() -> None:
    op.create_table(
        "subscription",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("filter", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("max_tries", sa.Integer(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("is_settled", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_subscription")),
        postgresql_with=FREE_SPACE,
    )
    op.create_table(
        "subscription_member",
        *of_subscription("subscription_member"),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("instance", sa.Uuid(), nullable=False),
        sa.Column("joined", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("subscription", "name", name=op.f("pk_subscription_member")),
        postgresql_with=FREE_SPACE,
    )
    op.create_table(
        "subscription_share",
        *of_subscription("subscription_share"),
        sa.Column("partition", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("share", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("owner", sa.Uuid(), nullable=True),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("trying", sa.BigInteger(), nullable=True),
        sa.Column("tries", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("trial", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("suspect_up_to", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("subscription", "partition", "share", name=op.f("pk_subscription_share")),
        postgresql_with=FREE_SPACE,
    )
    op.create_table(
        "subscription_dead_letter",
        *of_subscription("subscription_dead_letter"),
        sa.Column("partition", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("share", sa.SmallInteger(), nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("again", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("subscription", "partition", "sequence", name=op.f("pk_subscription_dead_letter")),
    )


def downgrade() -> None:
    for table in ("subscription_dead_letter", "subscription_share", "subscription_member", "subscription"):
        op.drop_table(table)
