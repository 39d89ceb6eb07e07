"""Retention: what was deleted is remembered for some time, what is old is found by index, and vacuum keeps pace."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# Retention deletes as many rows as the load adds, so PostgreSQL must vacuum at a steady pace: by default it would wait
# until a fifth of a table is dead, and the table would keep that room for ever. It cuts no pages off a table's end,
# which would lock batches out: the next rows go there.
DELETED_FROM = ("flow_run", "task_run", "flow_run_state", "task_run_state", "verdict")
SETTINGS = {
    "autovacuum_vacuum_scale_factor": "0.02",
    "autovacuum_vacuum_threshold": "10000",
    "vacuum_truncate": "false",
}


def upgrade() -> None:
    op.create_table(
        "pruned",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("tree", sa.Uuid(), nullable=False),
        sa.Column("partition", sa.SmallInteger(), nullable=False),
        sa.Column("pruned", sa.DateTime(timezone=True), nullable=False),
        sa.Column("is_left", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_pruned")),
    )
    op.create_index(op.f("ix_pruned__pruned"), "pruned", ["pruned"], unique=False)
    op.create_index(
        op.f("ix_pruned__partition_tree"),
        "pruned",
        ["partition", "tree"],
        unique=False,
        postgresql_where=sa.text("is_left"),
    )
    op.create_table(
        "low_water",
        sa.Column("partition", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("partition", name=op.f("pk_low_water")),
    )
    op.create_index(
        op.f("ix_task_run__created"),
        "task_run",
        ["created"],
        unique=False,
        postgresql_where=sa.text("flow_run_id IS NULL"),
    )
    op.create_index(
        op.f("ix_task_run_state_cache__task_run_state_id"), "task_run_state_cache", ["task_run_state_id"], unique=False
    )
    op.add_column("answer", sa.Column("run_id", sa.Uuid(), nullable=True))
    op.create_index(
        op.f("ix_answer__run_id"), "answer", ["run_id"], unique=False, postgresql_where=sa.text("run_id IS NOT NULL")
    )
    op.create_index(op.f("ix_answer__answered"), "answer", ["answered"], unique=False)
    for table in DELETED_FROM:
        op.execute(f"ALTER TABLE {table} SET ({', '.join(f'{name} = {value}' for name, value in SETTINGS.items())})")


def downgrade() -> None:
    for table in DELETED_FROM:
        op.execute(f"ALTER TABLE {table} RESET ({', '.join(SETTINGS)})")
    op.drop_index(op.f("ix_answer__answered"), table_name="answer")
    op.drop_index(op.f("ix_answer__run_id"), table_name="answer")
    op.drop_column("answer", "run_id")
    op.drop_index(op.f("ix_task_run_state_cache__task_run_state_id"), table_name="task_run_state_cache")
    op.drop_index(op.f("ix_task_run__created"), table_name="task_run")
    op.drop_table("low_water")
    op.drop_table("pruned")
