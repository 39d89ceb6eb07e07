"""The statements of the hot path: set-wise, a fixed number per batch, whatever its size."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Final

from statewright.states import State

Columns = tuple[tuple[str, str], ...]
"""Column names with the PostgreSQL type of each."""

# A batch must not be held up by others, nor hold others up: a worker that freezes inside it is thrown out.
# The plans never change with the size of a table, so that nothing surprises when it has grown.
BATCH_SETTINGS: Final = {
    "lock_timeout": "2s",
    "statement_timeout": "3s",
    "idle_in_transaction_session_timeout": "5s",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}
STATEMENT_SECONDS: Final = 4.0
"""After this long we do not believe any more that an answer will come; PostgreSQL itself gives up a little earlier."""

BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"
"""For connections that were opened with BATCH_SETTINGS."""

BEGIN_POOLED: Final = "; ".join([BEGIN, *(f"SET LOCAL {name} = '{value}'" for name, value in BATCH_SETTINGS.items())])
"""For connections that a pooler shares: the settings hold for one transaction."""

TAKE_UP: Final = (
    "UPDATE partition SET epoch = epoch + 1 WHERE id = $1 RETURNING epoch, sequence, era, pg_backend_pid() AS backend"
)
BACKEND: Final = "SELECT pg_backend_pid()"
EPOCH: Final = "SELECT epoch FROM partition WHERE id = $1"
# Nobody's connections are ever ended but those of the same user to the same database: other workers'.
_OURS: Final = "usename = current_user AND datname = current_database()"
CUT_OFF_BLOCKERS: Final = f"""
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE pid = ANY (pg_blocking_pids($1)) AND {_OURS}
"""
CUT_OFF_BACKEND: Final = f"""
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE pid = $1 AND pid <> pg_backend_pid() AND {_OURS}
"""
WRITABLE: Final = "SELECT NOT pg_is_in_recovery() AND current_setting('default_transaction_read_only') = 'off'"

BEGIN_ERA: Final = """
    WITH begun AS (
        UPDATE partition SET era = era + 1, sequence = $3 + 1
        WHERE id = $1 AND epoch = $2 AND sequence < $3
        RETURNING id, era, sequence
    )
    INSERT INTO era (partition, era, sequence, went_back_to, noticed)
    SELECT begun.id, begun.era, begun.sequence, $4, clock_timestamp() FROM begun
    RETURNING era, sequence
"""
READ_ERAS: Final = "SELECT era, sequence, went_back_to FROM era WHERE partition = $1 ORDER BY sequence"

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
    ("digest", "bigint"),
)
ANSWER_COLUMNS: Final[Columns] = (("request_id", "uuid"), ("digest", "bigint"), ("reply", "text"))
SLOT_COLUMNS: Final[Columns] = (("limit_id", "bigint"), ("run_id", "uuid"))
CACHE_COLUMNS: Final[Columns] = (
    ("cache_key", "text"),
    ("cache_expiration", "timestamptz"),
    ("task_run_state_id", "uuid"),
)


def names(columns: Columns) -> list[str]:
    """Return the names of the columns."""
    return [name for name, _ in columns]


@dataclass(frozen=True, slots=True)
class Part:
    """One table's share of what a batch writes: rows as one array per column, put where the text says `rows`."""

    text: str
    columns: Columns


def _insert(table: str, columns: Columns, **of_the_batch: str) -> Part:
    """Return the part that appends rows; `of_the_batch` are columns that are the same for all of them."""
    into = ", ".join([*(f'"{name}"' for name in names(columns)), *of_the_batch])
    values = ", ".join(["rows.*", *(f"batch.{name}" for name in of_the_batch.values())])
    return Part(f"INSERT INTO {table} ({into}) SELECT {values} FROM {{rows}}, batch", columns)


def _update(table: str, columns: Columns) -> Part:
    assignments = ", ".join(f"{name} = rows.{name}" for name in names(columns) if name != "id")
    return Part(f"UPDATE {table} SET {assignments} FROM {{rows}} WHERE {table}.id = rows.id", columns)


FLOW_RUNS_CREATED: Final = _insert("flow_run", FLOW_COLUMNS)
TASK_RUNS_CREATED: Final = _insert("task_run", TASK_COLUMNS)
FLOW_RUNS_CHANGED: Final = _update("flow_run", FLOW_CHANGES)
TASK_RUNS_CHANGED: Final = _update("task_run", TASK_CHANGES)
FLOW_RUN_STATES: Final = _insert("flow_run_state", STATE_COLUMNS, partition="partition")
TASK_RUN_STATES: Final = _insert("task_run_state", STATE_COLUMNS, partition="partition")
SLOTS_RELEASED: Final = Part(
    """DELETE FROM concurrency_slot USING {rows}
        WHERE concurrency_slot.limit_id = rows.limit_id AND concurrency_slot.run_id = rows.run_id""",
    SLOT_COLUMNS,
)
SLOTS_TAKEN: Final = _insert("concurrency_slot", SLOT_COLUMNS, taken="now")
STATES_CACHED: Final = _insert("task_run_state_cache", CACHE_COLUMNS, created="now")
VERDICTS: Final = _insert("verdict", VERDICT_COLUMNS, decided="now")
ANSWERS: Final = _insert("answer", ANSWER_COLUMNS, answered="now")


@lru_cache(maxsize=1_024)
def write(parts: tuple[Part, ...]) -> str:
    """Return the one statement that writes a batch made of these parts.

    Its first parameters are the partition, its new sequence number and the batch's clock; behind them come the columns
    of the parts, in order.
    """
    numbers = count(4)
    steps = [f"part_{n} AS ({part.text.format(rows=_rows(part.columns, numbers))})" for n, part in enumerate(parts)]
    batch = "batch (partition, sequence, now) AS (VALUES ($1::smallint, $2::bigint, $3::timestamptz))"
    return f"""
        WITH {", ".join([batch, *steps])}
        UPDATE partition SET sequence = batch.sequence FROM batch WHERE partition.id = batch.partition
    """


def _rows(columns: Columns, numbers: Iterator[int]) -> str:
    arrays = ", ".join(f"${next(numbers)}::{kind}[]" for _, kind in columns)
    return f"unnest({arrays}) AS rows ({', '.join(names(columns))})"


def _selected(alias: str, columns: Columns, prefix: str = "") -> str:
    # JSON comes as text: it is decoded once, straight into what it stands for.
    return ", ".join(
        f'{alias}."{name}"{"::text" if kind == "jsonb" else ""} AS "{prefix}{name}"' for name, kind in columns
    )


_STATE_COLUMNS: Final[Columns] = tuple(column for column in STATE_COLUMNS if column[0] in State.model_fields)
_STATE: Final = _selected("s", _STATE_COLUMNS, prefix="s_")


def _locked(table: str, columns: Columns, which: str) -> str:
    """Select the runs that `which` says, with their states, and lock them by id."""
    return f"""
        SELECT {_selected("run", columns)}, {_STATE}
        FROM {table} AS run LEFT JOIN {table}_state AS s ON s.id = run.state_id
        WHERE {which}
        ORDER BY run.id FOR NO KEY UPDATE OF run
    """


_LOADED_STATE: Final[Columns] = tuple((f"s_{name}", kind) for name, kind in _STATE_COLUMNS)
_LOADED_FENCE: Final[Columns] = (("epoch", "bigint"), ("sequence", "bigint"), ("now", "timestamptz"))
_LOADED_FLOW_RUN: Final = (*FLOW_COLUMNS, *_LOADED_STATE)
_LOADED_TASK_RUN: Final = (*TASK_COLUMNS, *_LOADED_STATE)
_LOADED: Final = tuple(dict.fromkeys((*_LOADED_FENCE, *_LOADED_FLOW_RUN, *_LOADED_TASK_RUN)))


def _loaded(source: str, columns: Columns) -> str:
    """Select the columns that `source` has, and nothing in place of what only others have."""
    selected = [
        f"{source}.{name}" if (name, kind) in columns else f"NULL::{'text' if kind == 'jsonb' else kind} AS {name}"
        for name, kind in _LOADED
    ]
    return f"SELECT '{source}' AS source, {', '.join(selected)} FROM {source}"


_NAMED_FLOW_RUNS: Final = """run.id IN (
    SELECT unnest($2::uuid[]) UNION SELECT flow_run_id FROM task_run WHERE id = ANY ($2)
)"""
_NAMED_TASK_RUNS: Final = """run.id IN (
    SELECT unnest($2::uuid[]) UNION SELECT parent_task_run_id FROM flow_run WHERE id = ANY ($2)
)"""

# The partition's row is the fence. Behind it flow runs before task runs, each by id: whoever locks runs does it in this
# order. It all looks at the database as it was before it waited for the fence. Whom it waits for there is mostly a
# drain that has lost the partition, and writes nothing any more, or one that takes it up, and then what was read is
# thrown away. It may also be this drain's own last transaction, when its commit got lost on the way; then what was not
# seen collides with what is written, and the batch is decided anew (Overtaken).
LOAD: Final = f"""
    WITH fence AS (
        SELECT epoch, sequence, clock_timestamp() AS now FROM partition WHERE id = $1 FOR UPDATE
    ),
    flow AS ({_locked("flow_run", FLOW_COLUMNS, _NAMED_FLOW_RUNS)}),
    task AS ({_locked("task_run", TASK_COLUMNS, _NAMED_TASK_RUNS)}),
    known AS (
        SELECT proposal_id AS id FROM verdict WHERE proposal_id = ANY ($3)
        UNION ALL SELECT request_id FROM answer WHERE request_id = ANY ($3)
    )
    {_loaded("fence", _LOADED_FENCE)}
    UNION ALL {_loaded("flow", _LOADED_FLOW_RUN)}
    UNION ALL {_loaded("task", _LOADED_TASK_RUN)}
    UNION ALL {_loaded("known", (("id", "uuid"),))}
"""
# Task runs that a flow run sends to their retry are found only now that the flow run is locked, and so they come behind
# task runs with greater ids. A deadlock with another tree is possible: PostgreSQL ends it, and it is tried again.
LOCK_FAILED_TASK_RUNS: Final = _locked(
    "task_run", TASK_COLUMNS, "run.flow_run_id = ANY ($1) AND run.state_type = 'FAILED'"
)
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

READ_ANSWERS: Final = "SELECT request_id, digest, reply FROM answer WHERE request_id = ANY ($1)"


def _page(table: str) -> str:
    return f"""SELECT wanted.run_id, wanted.after, s.ordinal, {_STATE}
        FROM unnest($1::uuid[], $2::integer[]) AS wanted (run_id, after)
        CROSS JOIN LATERAL (
            SELECT *, row_number() OVER in_order AS number,
                sum(coalesce(octet_length(data::text), 0)) OVER in_order AS size
            FROM (
                SELECT * FROM {table} WHERE run_id = wanted.run_id AND ordinal > wanted.after
                ORDER BY ordinal LIMIT $3
            ) AS next WINDOW in_order AS (ORDER BY ordinal)
        ) AS s WHERE s.number = 1 OR s.size <= $4"""


# One page of each history: so many states, whose data takes so many bytes, but one state at least.
READ_HISTORY: Final = f"{_page('flow_run_state')} UNION ALL {_page('task_run_state')} ORDER BY 1, 2, 3"

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

# An event tells nothing of a state's data, which may be large.
_CHANGED_STATE: Final = _selected("s", tuple(column for column in _STATE_COLUMNS if column[0] != "data"), prefix="s_")
_CHANGE: Final = (
    f"s.partition, s.sequence, s.ordinal, s.run_count AS s_run_count, {_CHANGED_STATE}, NULL::text AS s_data,"
    ' p.id AS p_id, p.type AS p_type, p.name AS p_name, p."timestamp" AS p_timestamp, p.message AS p_message'
)


def _next_changes(table: str) -> str:
    return f"""(
        SELECT * FROM {table} WHERE partition = $1 AND sequence > $2 AND sequence <= $3 ORDER BY sequence LIMIT $4
    )"""


READ_CHANGES: Final = f"""
    SELECT * FROM (
        SELECT {_CHANGE}, 'flow-run' AS kind, run.id, run.name, run.created, run.tags::text AS tags,
            run.flow_id, run.deployment_id, run.parent_task_run_id, NULL::uuid AS flow_run_id
        FROM {_next_changes("flow_run_state")} AS s
        JOIN flow_run AS run ON run.id = s.run_id
        LEFT JOIN flow_run_state AS p ON p.id = s.previous_state_id
        UNION ALL
        SELECT {_CHANGE}, 'task-run', run.id, run.name, run.created, run.tags::text, NULL, NULL, NULL, run.flow_run_id
        FROM {_next_changes("task_run_state")} AS s
        JOIN task_run AS run ON run.id = s.run_id
        LEFT JOIN task_run_state AS p ON p.id = s.previous_state_id
    ) AS change ORDER BY sequence LIMIT $4
"""
