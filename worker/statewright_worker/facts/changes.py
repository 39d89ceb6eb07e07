"""Changes of state, read back from the histories: an event is made of each."""

from collections.abc import Awaitable
from datetime import datetime
from typing import Final

from asyncpg import Connection, Record

from statewright.ids import first_id_at
from statewright.states import State, StateType
from statewright_worker.facts.base import PAGE_BYTES, Reading, Subject
from statewright_worker.facts.runs import tags_from
from statewright_worker.facts.states import STORED_STATE, joined_state
from statewright_worker.orchestration.records import AnyRunRecord, FlowRunRecord, StateChange, TaskRunRecord
from statewright_worker.orchestration.unit_of_work import ChangePage, UnitOfWork
from statewright_worker.storage.columns import selected
from statewright_worker.storage.transactions import Storage

CHANGES_PER_PAGE: Final = 100

# Without the states' data, which may be large and is in no event.
_CHANGED_STATE: Final = selected("s", tuple(column for column in STORED_STATE if column[0] != "data"), prefix="s_")
_CHANGE: Final = (
    "s.sequence, s.ordinal, s.proposal_id, verdict.actor, s.run_count AS s_run_count,"
    f" {_CHANGED_STATE}, NULL::text AS s_data,"
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
        LEFT JOIN verdict ON verdict.proposal_id = s.proposal_id
        UNION ALL
        SELECT {_CHANGE}, 'task-run', run.id, run.name, run.created, run.tags::text, NULL, NULL, NULL, run.flow_run_id
        FROM {_next_changes("task_run_state")} AS s
        JOIN task_run AS run ON run.id = s.run_id
        LEFT JOIN task_run_state AS p ON p.id = s.previous_state_id
        LEFT JOIN verdict ON verdict.proposal_id = s.proposal_id
    ) AS change ORDER BY sequence LIMIT $4
"""
LOW_WATER: Final = "SELECT coalesce(max(sequence), 0) FROM low_water WHERE partition = $1"


def _first_behind(table: str, after: str, up_to: str) -> str:
    return f"""(
        SELECT id, sequence FROM {table} WHERE partition = $1 AND sequence > {after} AND sequence <= {up_to}
        ORDER BY sequence LIMIT 1
    )"""


def _first_change(after: str, up_to: str) -> str:
    either = " UNION ALL ".join(_first_behind(table, after, up_to) for table in ("flow_run_state", "task_run_state"))
    return f"SELECT id, sequence FROM ({either}) AS either ORDER BY sequence LIMIT 1"


# The ids of states rise with time, and so with their sequence numbers. So the first one that is not below an id is
# found by halving, with two looks into an index each time, however many other partitions share the table, and however
# long nothing has happened in this one.
FIND_POSITION: Final = f"""
    WITH RECURSIVE search (low, high) AS (
        SELECT 0::bigint, $3::bigint
        UNION ALL
        SELECT CASE WHEN probe.id < $2 THEN probe.sequence ELSE search.low END,
            CASE WHEN probe.id < $2 THEN search.high ELSE halves.middle END
        FROM search
        CROSS JOIN LATERAL (SELECT (search.low + search.high) / 2 AS middle) AS halves
        LEFT JOIN LATERAL ({_first_change("halves.middle", "search.high")}) AS probe ON true
        WHERE search.low < search.high
    ),
    found AS (SELECT max(low) AS low FROM search)
    SELECT coalesce(first.sequence - 1, $3) FROM found
    LEFT JOIN LATERAL ({_first_change("found.low", "$3")}) AS first ON true
"""


class Changes(Subject):
    """Pages of the partition's changes, read back for subscribers, and positions among them."""

    def __init__(self) -> None:
        self.after: set[int] = set()
        """Sequence numbers; a page begins behind each."""
        self.since: set[datetime | None] = set()
        """Moments; the position before the first change that is not older is found. None means the first one."""

    def load(self, reading: Reading, work: UnitOfWork) -> Awaitable[None] | None:
        return self._load(reading, work) if self.after or self.since else None

    async def _load(self, reading: Reading, work: UnitOfWork) -> None:
        for since in self.since:
            first = first_id_at(0 if since is None else since.timestamp())
            asked = (reading.partition, first, reading.sequence)
            work.positions[since] = await reading.driver.fetchval(FIND_POSITION, *asked)
        for after in self.after:
            work.events[after] = await _read(reading.driver, reading.partition, after, reading.sequence)


async def changes_between(storage: Storage, partition: int, after: int, up_to: int) -> ChangePage:
    """Return the next of the partition's changes with sequence numbers above `after`, up to `up_to`, in order.

    It takes a transaction of its own. Raises one of the errors of `storage.errors`.
    """
    async with storage.transaction(partition) as transaction:
        return await _read(transaction.driver, partition, after, up_to)


async def _read(driver: Connection, partition: int, after: int, up_to: int) -> ChangePage:
    found = await driver.fetch(READ_CHANGES, partition, after, up_to, CHANGES_PER_PAGE)
    pruned_up_to = await driver.fetchval(LOW_WATER, partition)
    changes: list[tuple[int, StateChange]] = []
    size = 0
    for row in found:
        size += len(row["s_message"] or "") + len(row["p_message"] or "")
        if changes and size > PAGE_BYTES:
            return ChangePage(changes, changes[-1][0], pruned_up_to)
        changes.append((row["sequence"], change_from(row)))
    is_full = len(changes) == CHANGES_PER_PAGE
    return ChangePage(changes, changes[-1][0] if is_full else max(after, up_to), pruned_up_to)


def change_from(row: Record) -> StateChange:
    """Return the change in a row of READ_CHANGES; its run has only the fields that an event needs."""
    shared = {"id": row["id"], "name": row["name"], "created": row["created"], "tags": tags_from(row["tags"])}
    run: AnyRunRecord
    if row["kind"] == FlowRunRecord.kind:
        run = FlowRunRecord(
            **shared,
            flow_id=row["flow_id"],
            deployment_id=row["deployment_id"],
            parent_task_run_id=row["parent_task_run_id"],
        )
    else:
        run = TaskRunRecord(**shared, flow_run_id=row["flow_run_id"])
    caused_by = row["proposal_id"]
    return StateChange(
        run, row["ordinal"], joined_state(row), _previous(row), caused_by, row["s_run_count"], row["actor"]
    )


def _previous(row: Record) -> State | None:
    if row["p_id"] is None:
        return None
    return State(
        id=row["p_id"],
        type=StateType(row["p_type"]),
        name=row["p_name"],
        timestamp=row["p_timestamp"],
        message=row["p_message"],
    )
