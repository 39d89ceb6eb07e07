"""What finds runs among millions: indexes on what no transition changes, and the phase, which few of them change."""

from collections.abc import Sequence

from alembic import op

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

RUN_TABLES = ("flow_run", "task_run")
# An index whose columns or condition a transition changes ends HOT updates of the run. A phase changes only when a run
# ends, or begins anew; and most runs end COMPLETED, which have none, so that the index on phases stays small.
PHASE = """
    ALTER TABLE {table} ADD COLUMN phase text GENERATED ALWAYS AS (CASE
        WHEN state_type = 'COMPLETED'::text THEN NULL::text
        WHEN state_type = ANY (ARRAY['FAILED'::text, 'CRASHED'::text, 'CANCELLED'::text]) THEN 'failed'::text
        ELSE 'open'::text
    END) STORED
"""


def upgrade() -> None:
    for table in RUN_TABLES:
        op.execute(PHASE.format(table=table))
        op.create_index(f"ix_{table}__created_id", table, ["created", "id"])
        op.create_index(
            f"ix_{table}__phase_created_id", table, ["phase", "created", "id"], postgresql_where="phase IS NOT NULL"
        )
        op.create_index(f"ix_{table}__name", table, ["name"], postgresql_ops={"name": "text_pattern_ops"})
        for column, empty in (("tags", "[]"), ("labels", "{}")):
            op.create_index(
                f"ix_{table}__{column}",
                table,
                [column],
                postgresql_using="gin",
                postgresql_ops={column: "jsonb_path_ops"},
                postgresql_where=f"{column} <> '{empty}'",
            )
    for column in ("flow_id", "deployment_id"):
        op.create_index(
            f"ix_flow_run__{column}_created_id",
            "flow_run",
            [column, "created", "id"],
            postgresql_where=f"{column} IS NOT NULL",
        )


def downgrade() -> None:
    for column in ("deployment_id", "flow_id"):
        op.drop_index(f"ix_flow_run__{column}_created_id")
    for table in reversed(RUN_TABLES):
        for index in ("labels", "tags", "name", "phase_created_id", "created_id"):
            op.drop_index(f"ix_{table}__{index}")
        op.drop_column(table, "phase")
