"""Limits have a scope and a key, and any run may hold their slots."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

RUN_TABLES = ("flow_run", "task_run")
DELETED = "USING deleted WHERE concurrency_slot.run_id = deleted.id"
WITHOUT_A_RUN = """
    WHERE NOT EXISTS (SELECT FROM flow_run WHERE id = concurrency_slot.run_id)
    AND NOT EXISTS (SELECT FROM task_run WHERE id = concurrency_slot.run_id)
"""


def upgrade() -> None:
    op.add_column("concurrency_limit", sa.Column("scope", sa.Text(), server_default="tag", nullable=False))
    op.alter_column("concurrency_limit", "scope", server_default=None)
    op.alter_column("concurrency_limit", "tag", new_column_name="key")
    op.drop_constraint(op.f("uq_concurrency_limit__tag"), "concurrency_limit", type_="unique")
    op.create_unique_constraint(op.f("uq_concurrency_limit__scope_key"), "concurrency_limit", ["scope", "key"])
    # A slot's run may stand in one of two tables, to which no foreign key refers. Two nullable references would need a
    # key of their own, and be checked with each slot that is taken; a trigger costs only whoever deletes runs.
    op.drop_constraint(op.f("fk_concurrency_slot__run_id"), "concurrency_slot", type_="foreignkey")
    # They run with the rights and the schema of whoever migrates: to delete runs, nobody needs to know of slots.
    for name, which in (("free_slots", DELETED), ("free_slots_of_none", WITHOUT_A_RUN)):
        op.execute(
            f"""
            CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
            BEGIN
                DELETE FROM concurrency_slot {which};
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
        op.execute(
            f"""
            CREATE TRIGGER free_slots_of_none AFTER TRUNCATE ON {table}
            FOR EACH STATEMENT EXECUTE FUNCTION free_slots_of_none()
            """
        )


def downgrade() -> None:
    for name in ("free_slots", "free_slots_of_none"):
        for table in RUN_TABLES:
            op.execute(f"DROP TRIGGER {name} ON {table}")
        op.execute(f"DROP FUNCTION {name}()")
    op.execute("DELETE FROM concurrency_limit WHERE scope <> 'tag'")
    op.execute("DELETE FROM concurrency_slot WHERE run_id NOT IN (SELECT id FROM task_run)")
    op.create_foreign_key(
        op.f("fk_concurrency_slot__run_id"), "concurrency_slot", "task_run", ["run_id"], ["id"], ondelete="CASCADE"
    )
    op.drop_constraint(op.f("uq_concurrency_limit__scope_key"), "concurrency_limit", type_="unique")
    op.alter_column("concurrency_limit", "key", new_column_name="tag")
    op.create_unique_constraint(op.f("uq_concurrency_limit__tag"), "concurrency_limit", ["tag"])
    op.drop_column("concurrency_limit", "scope")
