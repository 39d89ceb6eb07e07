"""Parked proposals, waiters, leases and timers; limits with a rate; labels of runs."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

RUN_TABLES = ("flow_run", "task_run")
CALLED = 256

# What deleted runs held, and where they stood in a queue, goes to those who wait. The limits are locked first, in the
# order in which every batch locks them, and each waiter's timer says that it is to be looked at; the holder of its
# partition does that some seconds later, because nobody can nudge it from here. Leases go with their runs.
FREE_SLOTS = """
    CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
    AS $$
    DECLARE
        freed bigint[];
    BEGIN
        freed := ARRAY(
            SELECT limit_id FROM concurrency_slot {slots} UNION SELECT limit_id FROM waiter {waiters}
        );
        IF cardinality(freed) > 0 THEN
            PERFORM FROM concurrency_limit WHERE id = ANY (freed) ORDER BY id FOR UPDATE;
            DELETE FROM concurrency_slot {deleted};
            INSERT INTO timer (kind, id, partition, due)
            SELECT 'parked', called.proposal_id, called.partition, clock_timestamp()
            FROM (
                SELECT next.proposal_id, next.partition FROM unnest(freed) AS freed (limit_id)
                CROSS JOIN LATERAL (
                    SELECT proposal_id, partition FROM waiter WHERE limit_id = freed.limit_id
                    ORDER BY priority DESC, ticket LIMIT {called}
                ) AS next
                UNION SELECT proposal_id, partition FROM waiter {waiters}
            ) AS called ORDER BY called.proposal_id
            ON CONFLICT (kind, id) DO UPDATE SET due = least(timer.due, excluded.due);
        END IF;
        DELETE FROM lease {deleted};
        RETURN NULL;
    END $$
"""
OF_DELETED = "WHERE run_id IN (SELECT id FROM deleted)"
OF_NONE = """WHERE NOT EXISTS (SELECT FROM flow_run WHERE id = run_id) AND NOT EXISTS (SELECT FROM task_run WHERE id = run_id)"""
# The functions of the revision before.
BEFORE = {
    "free_slots": "USING deleted WHERE concurrency_slot.run_id = deleted.id",
    "free_slots_of_none": OF_NONE.replace("= run_id", "= concurrency_slot.run_id"),
}


def upgrade() -> None:
    op.create_table(
        "timer",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("partition", sa.SmallInteger(), nullable=False),
        sa.Column("due", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("kind", "id", name=op.f("pk_timer")),
    )
    op.create_index(op.f("ix_timer__partition_due"), "timer", ["partition", "due"], unique=False)
    op.create_table(
        "parked",
        sa.Column("proposal_id", sa.Uuid(), nullable=False),
        sa.Column("partition", sa.SmallInteger(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("digest", sa.BigInteger(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("reply_to", sa.Text(), nullable=True),
        sa.Column("entry_id", sa.Text(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("ticket", sa.BigInteger(), nullable=False),
        sa.Column("decided", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("proposal_id", name=op.f("pk_parked")),
    )
    op.create_index(op.f("ix_parked__run_id"), "parked", ["run_id"], unique=False)
    op.create_table(
        "waiter",
        sa.Column("limit_id", sa.BigInteger(), nullable=False),
        sa.Column("proposal_id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("partition", sa.SmallInteger(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("ticket", sa.BigInteger(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["limit_id"], ["concurrency_limit.id"], name=op.f("fk_waiter__limit_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("limit_id", "proposal_id", name=op.f("pk_waiter")),
    )
    op.create_index(op.f("ix_waiter__proposal_id"), "waiter", ["proposal_id"], unique=False)
    op.create_index(
        op.f("ix_waiter__limit_id_priority_ticket"),
        "waiter",
        ["limit_id", sa.text("priority DESC"), "ticket"],
        unique=False,
    )
    op.create_table(
        "lease",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("partition", sa.SmallInteger(), nullable=False),
        sa.Column("state_id", sa.Uuid(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("ends", sa.DateTime(timezone=True), nullable=False),
        sa.Column("executor", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_lease")),
        postgresql_with={"fillfactor": 70},
    )
    op.create_index(
        op.f("ix_lease__partition_executor"),
        "lease",
        ["partition", "executor"],
        unique=False,
        postgresql_where=sa.text("executor IS NOT NULL"),
    )
    op.create_table(
        "executor",
        sa.Column("partition", sa.SmallInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("ends", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("partition", "name", name=op.f("pk_executor")),
        postgresql_with={"fillfactor": 70},
    )
    op.create_index(
        op.f("ix_flow_run__parent_task_run_id"),
        "flow_run",
        ["parent_task_run_id"],
        unique=False,
        postgresql_where=sa.text("parent_task_run_id IS NOT NULL"),
    )
    for name, which in (("free_slots", OF_DELETED), ("free_slots_of_none", OF_NONE)):
        op.execute(FREE_SLOTS.format(name=name, slots=which, waiters=which, deleted=which, called=CALLED))
    op.add_column("concurrency_limit", sa.Column("period", sa.Interval(), nullable=True))
    op.add_column("concurrency_limit", sa.Column("used_until", sa.DateTime(timezone=True), nullable=True))
    op.add_column("concurrency_limit", sa.Column("lease_seconds", sa.Double(), nullable=True))
    for table in RUN_TABLES:
        op.add_column(
            table,
            sa.Column(
                "labels",
                postgresql.JSONB(astext_type=sa.Text()),
                server_default=sa.text("'{}'"),
                nullable=False,
            ),
        )


def downgrade() -> None:
    for name, which in BEFORE.items():
        op.execute(
            f"""
            CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
            SET search_path FROM CURRENT AS $$
            BEGIN
                DELETE FROM concurrency_slot {which};
                RETURN NULL;
            END $$
            """
        )
    for table in RUN_TABLES:
        op.drop_column(table, "labels")
    op.drop_index(op.f("ix_flow_run__parent_task_run_id"), table_name="flow_run")
    op.drop_column("concurrency_limit", "lease_seconds")
    op.drop_column("concurrency_limit", "used_until")
    op.drop_column("concurrency_limit", "period")
    for table in ("executor", "lease", "waiter", "parked", "timer"):
        op.drop_table(table)
