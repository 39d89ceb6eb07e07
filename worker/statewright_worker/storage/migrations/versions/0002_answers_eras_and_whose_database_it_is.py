"""Answers that are no verdicts, eras of events, and whose database it is."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "answer",
        sa.Column("request_id", sa.Uuid(), nullable=False),
        sa.Column("digest", sa.BigInteger(), nullable=False),
        sa.Column("reply", sa.Text(), nullable=False),
        sa.Column("answered", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_answer")),
    )
    op.create_table(
        "deployment",
        sa.Column("single", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.CheckConstraint("single", name=op.f("ck_deployment__single")),
        sa.PrimaryKeyConstraint("single", name=op.f("pk_deployment")),
    )
    op.create_table(
        "era",
        sa.Column("partition", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("era", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("went_back_to", sa.BigInteger(), nullable=False),
        sa.Column("noticed", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("partition", "era", name=op.f("pk_era")),
    )
    op.add_column("partition", sa.Column("era", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("verdict", sa.Column("digest", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("verdict", "digest")
    op.drop_column("partition", "era")
    op.drop_table("era")
    op.drop_table("deployment")
    op.drop_table("answer")
