"""Limits have a scope and a key, and any run may hold their slots."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

RUN_TABLES = ("flow_run", "task_run")


def upgrade() -> None:
    op.add_column("concurrency_limit", sa.Column("scope", sa.Text(), server_default="tag", nullable=False))
    op.alter_column("concurrency_limit", "scope", server_default=None)
    op.alter_column("concurrency_limit", "tag", new_column_name="key")
    op.drop_constraint(op.f("uq_concurrency_limit__tag"), "concurrency_limit", type_="unique")
    op.create_unique_constraint(op.f("uq_concurrency_limit__scope_key"), "concurrency_limit", ["scope", "key"])
    # A slot's run may stand in one of two tables, to which no foreign key refers. Two nullable references would need a
    # key of their own, and be checked with each slot that is taken; a trigger costs only whoever deletes runs.
    op.drop_constraint(op.f("fk_concurrency_slot__run_id"), "concurrency_slot", type_="foreignkey")
    op.execute(
        """
        CREATE FUNCTION free_slots() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            DELETE FROM concurrency_slot USING deleted WHERE concurrency_slot.run_id = deleted.id;
            RETURN NULL;
        END $$
        """
    )
    for table in RUN_TABLES:
        op.execute(
            f"""
            CREATE TRIGGER free_slots AFTER DELETE ON {table}
            REFERENCING OLD TABLE AS deleted FOR EACH STATEMENT EXECUTE FUNCTION free_slots()
            """
        )


def downgrade() -> None:
    for table in RUN_TABLES:
        op.execute(f"DROP TRIGGER free_slots ON {table}")
    op.execute("DROP FUNCTION free_slots()")
    op.execute("DELETE FROM concurrency_limit WHERE scope <> 'tag'")
    op.execute("DELETE FROM concurrency_slot WHERE run_id NOT IN (SELECT id FROM task_run)")
    op.create_foreign_key(
        op.f("fk_concurrency_slot__run_id"), "concurrency_slot", "task_run", ["run_id"], ["id"], ondelete="CASCADE"
    )
    op.drop_constraint(op.f("uq_concurrency_limit__scope_key"), "concurrency_limit", type_="unique")
    op.alter_column("concurrency_limit", "key", new_column_name="tag")
    op.create_unique_constraint(op.f("uq_concurrency_limit__tag"), "concurrency_limit", ["tag"])
    op.drop_column("concurrency_limit", "scope")
