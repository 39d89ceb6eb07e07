"""The statements of the hot path: set-wise, a fixed number per batch, whatever its size."""

from typing import Final

Columns = tuple[tuple[str, str], ...]
"""Column names with the PostgreSQL type of each."""

# A batch must not be held up by others, nor hold others up: a worker that freezes inside it is thrown out.
# The plans never change with the size of a table, so that nothing surprises when it has grown.
BATCH_SETTINGS: Final = {
    "lock_timeout": "3s",
    "statement_timeout": "10s",
    "idle_in_transaction_session_timeout": "5s",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}

BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"
"""For connections that were opened with BATCH_SETTINGS."""

BEGIN_POOLED: Final = "; ".join([BEGIN, *(f"SET LOCAL {name} = '{value}'" for name, value in BATCH_SETTINGS.items())])
"""For connections that a pooler shares: the settings hold for one transaction."""

TAKE_UP: Final = "UPDATE partition SET epoch = epoch + 1 WHERE id = $1 RETURNING epoch, sequence"

FENCE: Final = "SELECT epoch, sequence, clock_timestamp() AS now FROM partition WHERE id = $1 FOR UPDATE"

_BOOKKEEPING: Final[Columns] = (
    ("state_id", "uuid"),
    ("state_type", "text"),
    ("state_name", "text"),
    ("state_timestamp", "timestamptz"),
    ("state_count", "integer"),
    ("run_count", "integer"),
    ("expected_start_time", "timestamptz"),
    ("next_scheduled_start_time", "timestamptz"),
    ("start_time", "timestamptz"),
    ("end_time", "timestamptz"),
    ("total_run_time", "interval"),
    ("policy", "jsonb"),
)
_IDENTITY: Final[Columns] = (("id", "uuid"), ("name", "text"), ("created", "timestamptz"), ("tags", "jsonb"))

FLOW_CHANGES: Final[Columns] = (("id", "uuid"), *_BOOKKEEPING)
TASK_CHANGES: Final[Columns] = (*FLOW_CHANGES, ("flow_run_run_count", "integer"))
FLOW_COLUMNS: Final[Columns] = (
    *_IDENTITY,
    ("flow_id", "uuid"),
    ("deployment_id", "uuid"),
    ("parent_task_run_id", "uuid"),
    *_BOOKKEEPING,
)
TASK_COLUMNS: Final[Columns] = (
    *_IDENTITY,
    ("flow_run_id", "uuid"),
    ("task_key", "text"),
    *_BOOKKEEPING,
    ("flow_run_run_count", "integer"),
)
STATE_COLUMNS: Final[Columns] = (
    ("id", "uuid"),
    ("run_id", "uuid"),
    ("ordinal", "integer"),
    ("type", "text"),
    ("name", "text"),
    ("timestamp", "timestamptz"),
    ("message", "text"),
    ("data", "jsonb"),
    ("state_details", "jsonb"),
    ("previous_state_id", "uuid"),
    ("run_count", "integer"),
    ("partition", "smallint"),
    ("sequence", "bigint"),
)
VERDICT_COLUMNS: Final[Columns] = (
    ("proposal_id", "uuid"),
    ("run_id", "uuid"),
    ("status", "text"),
    ("reason", "text"),
    ("delay_seconds", "integer"),
    ("state_id", "uuid"),
    ("rule_signature", "text"),
    ("finalization_signature", "text"),
    ("decided", "timestamptz"),
)
SLOT_COLUMNS: Final[Columns] = (("limit_id", "bigint"), ("run_id", "uuid"), ("taken", "timestamptz"))
CACHE_COLUMNS: Final[Columns] = (
    ("cache_key", "text"),
    ("cache_expiration", "timestamptz"),
    ("task_run_state_id", "uuid"),
    ("created", "timestamptz"),
)


def _unnest(columns: Columns) -> str:
    return "unnest(" + ", ".join(f"${n}::{kind}[]" for n, (_, kind) in enumerate(columns, 1)) + ")"


def names(columns: Columns) -> list[str]:
    """Return the names of the columns."""
    return [name for name, _ in columns]


def _update(table: str, columns: Columns) -> str:
    assignments = ", ".join(f"{name} = changed.{name}" for name, _ in columns if name != "id")
    changed = f"{_unnest(columns)} AS changed ({', '.join(names(columns))})"
    return f"UPDATE {table} SET {assignments} FROM {changed} WHERE {table}.id = changed.id"


UPDATE_FLOW_RUNS: Final = _update("flow_run", FLOW_CHANGES)
UPDATE_TASK_RUNS: Final = _update("task_run", TASK_CHANGES)
DELETE_SLOTS: Final = """
    DELETE FROM concurrency_slot
    USING unnest($1::bigint[], $2::uuid[]) AS freed (limit_id, run_id)
    WHERE concurrency_slot.limit_id = freed.limit_id AND concurrency_slot.run_id = freed.run_id
"""
ADVANCE: Final = "UPDATE partition SET sequence = $2 WHERE id = $1"

_STATE: Final = (
    's.id AS s_id, s.type AS s_type, s.name AS s_name, s."timestamp" AS s_timestamp, s.message AS s_message,'
    " s.data::text AS s_data, s.state_details::text AS s_details"
)


def _selected(alias: str, columns: Columns) -> str:
    # JSON comes as text: it is decoded once, straight into what it stands for.
    return ", ".join(
        f'{alias}."{name}"::text AS "{name}"' if kind == "jsonb" else f'{alias}."{name}"' for name, kind in columns
    )


# Flow runs before task runs, each by id: whoever locks runs does it in this order, so that nobody deadlocks.
LOCK_FLOW_RUNS: Final = f"""
    SELECT {_selected("run", FLOW_COLUMNS)}, {_STATE}
    FROM flow_run AS run LEFT JOIN flow_run_state AS s ON s.id = run.state_id
    WHERE run.id IN (
        SELECT unnest($1::uuid[])
        UNION SELECT flow_run_id FROM task_run WHERE id = ANY ($1)
    )
    ORDER BY run.id FOR NO KEY UPDATE OF run
"""
LOCK_TASK_RUNS: Final = f"""
    SELECT {_selected("run", TASK_COLUMNS)}, {_STATE}
    FROM task_run AS run LEFT JOIN task_run_state AS s ON s.id = run.state_id
    WHERE run.id IN (
        SELECT unnest($1::uuid[])
        UNION SELECT parent_task_run_id FROM flow_run WHERE id = ANY ($1)
        UNION SELECT id FROM task_run WHERE flow_run_id = ANY ($2) AND state_type = 'FAILED'
    )
    ORDER BY run.id FOR NO KEY UPDATE OF run
"""
READ_FLOW_STATES: Final = f"SELECT {_STATE} FROM flow_run_state AS s WHERE s.id = ANY ($1)"
READ_TASK_STATES: Final = f"SELECT {_STATE} FROM task_run_state AS s WHERE s.id = ANY ($1)"

READ_VERDICTS: Final = f"""
    SELECT verdict.*, {_STATE}
    FROM verdict
    LEFT JOIN LATERAL (
        SELECT * FROM flow_run_state WHERE id = verdict.state_id
        UNION ALL SELECT * FROM task_run_state WHERE id = verdict.state_id
    ) AS s ON true
    WHERE verdict.proposal_id = ANY ($1)
"""

READ_HISTORY: Final = f"""
    SELECT s.run_id, s.ordinal, {_STATE} FROM flow_run_state AS s WHERE s.run_id = ANY ($1)
    UNION ALL SELECT s.run_id, s.ordinal, {_STATE} FROM task_run_state AS s WHERE s.run_id = ANY ($1)
    ORDER BY 1, 2
"""

READ_CACHE: Final = f"""
    SELECT newest.cache_key, newest.cache_expiration, {_STATE}
    FROM unnest($1::text[]) AS wanted (cache_key)
    CROSS JOIN LATERAL (
        SELECT * FROM task_run_state_cache AS entry
        WHERE entry.cache_key = wanted.cache_key AND (entry.cache_expiration IS NULL OR entry.cache_expiration > $2)
        ORDER BY entry.id DESC LIMIT 1
    ) AS newest
    JOIN task_run_state AS s ON s.id = newest.task_run_state_id
"""

LOCK_LIMITS: Final = (
    "SELECT id, tag, concurrency_limit FROM concurrency_limit WHERE tag = ANY ($1) ORDER BY id FOR UPDATE"
)
# A statement of its own, so that it sees what the previous holder of the locks has committed.
READ_SLOTS: Final = """
    SELECT limit_id, count(*) AS held,
        array_agg(run_id) FILTER (WHERE run_id = ANY ($2) OR limit_id = ANY ($3)) AS holders
    FROM concurrency_slot WHERE limit_id = ANY ($1) GROUP BY limit_id
"""
SET_LIMIT: Final = """
    INSERT INTO concurrency_limit (tag, concurrency_limit) VALUES ($1, $2)
    ON CONFLICT (tag) DO UPDATE SET concurrency_limit = excluded.concurrency_limit
"""
REMOVE_LIMIT: Final = "DELETE FROM concurrency_limit WHERE tag = $1"

_CHANGE: Final = (
    f"s.partition, s.sequence, s.ordinal, s.run_count AS s_run_count, {_STATE},"
    ' p.id AS p_id, p.type AS p_type, p.name AS p_name, p."timestamp" AS p_timestamp, p.message AS p_message'
)
READ_CHANGES: Final = f"""
    SELECT * FROM (
        SELECT {_CHANGE}, 'flow-run' AS kind, run.id, run.name, run.created, run.tags::text AS tags,
            run.flow_id, run.deployment_id, run.parent_task_run_id, NULL::uuid AS flow_run_id
        FROM flow_run_state AS s
        JOIN flow_run AS run ON run.id = s.run_id
        LEFT JOIN flow_run_state AS p ON p.id = s.previous_state_id
        WHERE s.partition = $1 AND s.sequence > $2 AND s.sequence <= $3
        UNION ALL
        SELECT {_CHANGE}, 'task-run', run.id, run.name, run.created, run.tags::text, NULL, NULL, NULL, run.flow_run_id
        FROM task_run_state AS s
        JOIN task_run AS run ON run.id = s.run_id
        LEFT JOIN task_run_state AS p ON p.id = s.previous_state_id
        WHERE s.partition = $1 AND s.sequence > $2 AND s.sequence <= $3
    ) AS change ORDER BY sequence
"""
