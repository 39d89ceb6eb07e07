"""The statements round a batch: they begin a transaction, guard who may write, and end another's connection."""

from typing import Final

# A batch must not wait long for others, nor make others wait long: PostgreSQL ends the transaction of a frozen worker.
# Plans do not depend on the size of a table, so that a plan made for an empty table still serves a large one.
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
"""After this long an answer counts as lost. PostgreSQL itself gives up a little earlier."""

# A query must not take much from batches: it changes nothing, takes no more than a core, and is given up early. What it
# asks for differs each time, so that each has a plan of its own.
QUERY_SETTINGS: Final = {
    "default_transaction_read_only": "on",
    "lock_timeout": "1s",
    "statement_timeout": "3s",
    "idle_in_transaction_session_timeout": "5s",
    "max_parallel_workers_per_gather": "0",
    "plan_cache_mode": "force_custom_plan",
    "jit": "off",
}
QUERY_SECONDS: Final = 3
"""How long a statement of a query may take."""

BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"
"""For connections that were opened with BATCH_SETTINGS."""

BEGIN_POOLED: Final = "; ".join([BEGIN, *(f"SET LOCAL {name} = '{value}'" for name, value in BATCH_SETTINGS.items())])
"""For connections that a pooler shares: the settings hold for one transaction."""

_BEGIN_READING: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
BEGIN_READING: Final = "; ".join(
    [_BEGIN_READING, *(f"SET LOCAL {name} = '{value}'" for name, value in QUERY_SETTINGS.items())]
)
"""What all statements of a query read is of one moment. The settings hold for one transaction, because the sessions may
be a pooler's; it is one round trip in any case."""

TAKE_UP: Final = (
    "UPDATE partition SET epoch = epoch + 1 WHERE id = $1 RETURNING epoch, sequence, era, pg_backend_pid() AS backend"
)
BACKEND: Final = "SELECT pg_backend_pid()"
EPOCH: Final = "SELECT epoch FROM partition WHERE id = $1"
# Only connections of the same user to the same database are ended: those of other workers.
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
    RETURNING era, sequence, went_back_to, noticed
"""
READ_ERAS: Final = "SELECT era, sequence, went_back_to, noticed FROM era WHERE partition = $1 ORDER BY sequence"
