"""A batch's transaction: fence, lock, load, write, commit; the only place where runs are read and written."""

from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import asyncpg
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from statewright.ids import IdSource
from statewright.states import StateType
from statewright_worker.orchestration.records import (
    AnyRunRecord,
    CacheEntry,
    FlowRunRecord,
    LimitRecord,
    StateChange,
    TaskRunRecord,
)
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.storage import rows, statements
from statewright_worker.storage.errors import LeaseLost, Refused, Unavailable
from statewright_worker.storage.sessions import RuleSessions

_TRANSIENT: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    # The driver lost its connection in the middle of an operation.
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,
    asyncpg.TransactionRollbackError,
    asyncpg.InsufficientResourcesError,
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    OSError,
    TimeoutError,
)


@dataclass(slots=True)
class Needs:
    """What a batch's proposals will ask for, so that it is loaded before any of them is decided."""

    run_ids: set[UUID] = field(default_factory=set)
    proposal_ids: list[UUID] = field(default_factory=list)
    enters_running: set[UUID] = field(default_factory=set)
    """Runs that are proposed to enter RUNNING: their tags' limits matter."""
    cache_keys: set[str] = field(default_factory=set)
    failing_flow_runs: set[UUID] = field(default_factory=set)
    """Flow runs whose failed task runs may be sent to their retry."""
    histories: set[UUID] = field(default_factory=set)
    limit_tags: set[str] = field(default_factory=set)
    """Limits that are read with all their holders."""
    tags_of_new_runs: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Lane:
    """A partition as a drain holds it: `epoch` is the drain's fencing token."""

    partition: int
    epoch: int


class Batch:
    """One open transaction on one partition, whose row it holds locked."""

    def __init__(self, connection: AsyncConnection, driver: asyncpg.Connection, lane: Lane) -> None:
        self._driver = driver
        self._partition = lane.partition
        self.sequence = 0
        self.now = datetime.min.replace(tzinfo=UTC)
        self.sessions = RuleSessions(connection, driver)

    async def fence(self, lane: Lane) -> None:
        """Lock the partition's row. Raises LeaseLost when another drain has taken it up."""
        row = await self._driver.fetchrow(statements.FENCE, lane.partition)
        if row is None or row["epoch"] != lane.epoch:
            raise LeaseLost(f"partition {lane.partition} was taken up by another drain")
        self.sequence, self.now = row["sequence"], row["now"]

    async def set_limit(self, tag: str, concurrency_limit: int | None) -> None:
        """Set a limit, or remove it with all its slots."""
        if concurrency_limit is None:
            await self._driver.execute(statements.REMOVE_LIMIT, tag)
        else:
            await self._driver.execute(statements.SET_LIMIT, tag, concurrency_limit)

    async def load(self, needs: Needs, ids: IdSource) -> UnitOfWork:
        """Lock the runs and limits that the batch is about, and load every fact that its rules will ask for."""
        work = UnitOfWork(self.now, ids)
        if needs.run_ids:
            await self._lock_runs(work, needs)
        if needs.proposal_ids:
            for row in await self._driver.fetch(statements.READ_VERDICTS, needs.proposal_ids):
                work.verdicts[row["proposal_id"]] = rows.verdict_from(row)
        if tags := needs.limit_tags | _limited_tags(work.runs.values(), needs):
            await self._lock_limits(work, tags, needs.limit_tags)
        if needs.cache_keys:
            for row in await self._driver.fetch(statements.READ_CACHE, list(needs.cache_keys), self.now):
                state = rows.state_from(row)
                if state is not None:
                    work.cache[row["cache_key"]] = [CacheEntry(row["cache_key"], row["cache_expiration"], state)]
        if needs.histories:
            await self._load_histories(work, needs.histories)
        return work

    async def write(self, work: UnitOfWork) -> None:
        """Write what was decided, set-wise; the sequence advances by one for every change of state."""
        created, changed = work.created_runs, [r for i, r in work.changed_runs.items() if i not in work.created_runs]
        await self._append(
            "flow_run", statements.FLOW_COLUMNS, _rows_of(created.values(), FlowRunRecord, statements.FLOW_COLUMNS)
        )
        await self._append(
            "task_run", statements.TASK_COLUMNS, _rows_of(created.values(), TaskRunRecord, statements.TASK_COLUMNS)
        )
        await self._write_rows(statements.UPDATE_FLOW_RUNS, _rows_of(changed, FlowRunRecord, statements.FLOW_CHANGES))
        await self._write_rows(statements.UPDATE_TASK_RUNS, _rows_of(changed, TaskRunRecord, statements.TASK_CHANGES))
        await self._write_changes(work.state_changes)
        await self._write_slots(work)
        cached = [(e.cache_key, e.cache_expiration, e.state.id, self.now) for e in work.cache_added]
        await self._append("task_run_state_cache", statements.CACHE_COLUMNS, cached)
        verdicts = [rows.verdict_values(verdict, self.now) for verdict in work.new_verdicts]
        await self._append("verdict", statements.VERDICT_COLUMNS, verdicts)

    async def _lock_runs(self, work: UnitOfWork, needs: Needs) -> None:
        run_ids = list(needs.run_ids)
        flows = await self._driver.fetch(statements.LOCK_FLOW_RUNS, run_ids)
        tasks = await self._driver.fetch(statements.LOCK_TASK_RUNS, run_ids, list(needs.failing_flow_runs))
        for row in flows:
            work.runs[row["id"]] = rows.flow_run_from(row)
        for row in tasks:
            work.runs[row["id"]] = rows.task_run_from(row)
        await self._reload_overtaken_states(work, flows, statements.READ_FLOW_STATES)
        await self._reload_overtaken_states(work, tasks, statements.READ_TASK_STATES)

    async def _reload_overtaken_states(
        self, work: UnitOfWork, locked: Iterable[asyncpg.Record], statement: str
    ) -> None:
        # Whoever waited for a run's lock sees the run's newest version, but joined to the state it had before.
        overtaken = {row["state_id"]: row["id"] for row in locked if row["state_id"] != row["s_id"]}
        if overtaken:
            for row in await self._driver.fetch(statement, list(overtaken)):
                work.runs[overtaken[row["s_id"]]].state = rows.state_from(row)

    async def _lock_limits(self, work: UnitOfWork, tags: set[str], with_holders: set[str]) -> None:
        limits = {
            row["id"]: LimitRecord(row["id"], row["tag"], row["concurrency_limit"])
            for row in await self._driver.fetch(statements.LOCK_LIMITS, sorted(tags))
        }
        if not limits:
            return
        complete = [limit.id for limit in limits.values() if limit.tag in with_holders]
        held = await self._driver.fetch(statements.READ_SLOTS, list(limits), list(work.runs), complete)
        for row in held:
            limits[row["limit_id"]].slots_held = row["held"]
            limits[row["limit_id"]].holders = set(row["holders"] or ())
        work.limits = {limit.tag: limit for limit in limits.values()}

    async def _load_histories(self, work: UnitOfWork, run_ids: Collection[UUID]) -> None:
        work.histories = {run_id: [] for run_id in run_ids}
        for row in await self._driver.fetch(statements.READ_HISTORY, list(run_ids)):
            state = rows.state_from(row)
            if state is not None:
                work.histories[row["run_id"]].append(state)

    async def _write_changes(self, changes: Sequence[StateChange]) -> None:
        if not changes:
            return
        flows: list[tuple[Any, ...]] = []
        tasks: list[tuple[Any, ...]] = []
        for sequence, change in enumerate(changes, self.sequence + 1):
            of_kind = flows if isinstance(change.run, FlowRunRecord) else tasks
            of_kind.append(rows.change_values(change, self._partition, sequence))
        await self._append("flow_run_state", statements.STATE_COLUMNS, flows)
        await self._append("task_run_state", statements.STATE_COLUMNS, tasks)
        await self._driver.execute(statements.ADVANCE, self._partition, self.sequence + len(changes))

    async def _write_slots(self, work: UnitOfWork) -> None:
        await self._write_rows(statements.DELETE_SLOTS, sorted(work.slots_released))
        taken = [(*slot, self.now) for slot in sorted(work.slots_taken)]
        await self._append("concurrency_slot", statements.SLOT_COLUMNS, taken)

    async def _append(self, table: str, columns: statements.Columns, values: Sequence[tuple[Any, ...]]) -> None:
        # COPY is what PostgreSQL and the driver append with at the least cost.
        if values:
            await self._driver.copy_records_to_table(table, records=values, columns=statements.names(columns))

    async def _write_rows(self, statement: str, values: Sequence[tuple[Any, ...]]) -> None:
        if values:
            await self._driver.execute(statement, *rows.columns_of(values))


class Storage:
    """PostgreSQL as the drain uses it."""

    def __init__(self, engine: AsyncEngine, begin: str = statements.BEGIN) -> None:
        self._engine = engine
        self._begin = begin
        self._held: dict[int, tuple[AsyncConnection, asyncpg.Connection]] = {}

    async def take_up(self, partition: int) -> tuple[Lane, int]:
        """Make the caller the partition's only writer; return its lane and the last sequence number.

        Waits for a transaction of the previous writer. Raises Unavailable.
        """
        async with self._transaction(partition) as (_, driver):
            row = await driver.fetchrow(statements.TAKE_UP, partition)
        return Lane(partition, row["epoch"]), row["sequence"]

    @asynccontextmanager
    async def batch(self, lane: Lane) -> AsyncIterator[Batch]:
        """Open a transaction that holds the partition; commit it at the end, roll it back on any exception.

        Raises LeaseLost, Unavailable or Refused; then nothing was written.
        """
        async with self._transaction(lane.partition) as (connection, driver):
            batch = Batch(connection, driver, lane)
            await batch.fence(lane)
            yield batch

    async def changes(self, partition: int, after: int, up_to: int) -> list[tuple[int, StateChange]]:
        """Return the partition's changes of state with sequence numbers above `after`, up to `up_to`, in order."""
        async with self._transaction(partition) as (_, driver):
            found = await driver.fetch(statements.READ_CHANGES, partition, after, up_to)
        return [(row["sequence"], rows.change_from(row)) for row in found]

    async def release(self, partition: int) -> None:
        """Give back the connection on which the partition's transactions were made."""
        held = self._held.pop(partition, None)
        if held is not None:
            await held[0].close()

    @asynccontextmanager
    async def _transaction(self, partition: int) -> AsyncIterator[tuple[AsyncConnection, asyncpg.Connection]]:
        with _translated():
            connection, driver = await self._connection(partition)
            try:
                await driver.execute(self._begin)
                yield connection, driver
                await driver.execute("COMMIT")
                if connection.in_transaction():
                    # A rule's session has begun one, which the driver knows nothing of.
                    await connection.commit()
            except BaseException:
                # Whatever state it is in, nobody else gets this connection; closing it rolls back.
                await connection.invalidate()
                await self.release(partition)
                raise

    async def _connection(self, partition: int) -> tuple[AsyncConnection, asyncpg.Connection]:
        """Return the partition's connection: taking one from the pool for each batch would cost more than it saves."""
        if partition not in self._held:
            try:
                connection = await self._engine.connect()
            except (DBAPIError, asyncpg.PostgresError) as error:
                # Whatever kept us from connecting is no fault of the batch's.
                raise Unavailable(f"cannot connect: {error}") from error
            self._held[partition] = connection, (await connection.get_raw_connection()).driver_connection
        return self._held[partition]


@contextmanager
def _translated() -> Iterator[None]:
    """Raise what the database raises as what the drain does about it."""
    try:
        yield
    except asyncpg.DataError as error:
        raise Refused(str(error)) from error
    except _TRANSIENT as error:
        raise Unavailable(f"{type(error).__name__}: {error}") from error
    except (asyncpg.PostgresError, SQLAlchemyError) as error:
        away = isinstance(error, PoolTimeout) or (isinstance(error, DBAPIError) and error.connection_invalidated)
        raise (Unavailable if away else Refused)(str(error)) from error


def _limited_tags(runs: Iterable[AnyRunRecord], needs: Needs) -> set[str]:
    tags = set(needs.tags_of_new_runs)
    for run in _tasks(runs):
        if run.id in needs.enters_running or run.state_type is StateType.RUNNING:
            tags.update(run.tags)
    return tags


def _rows_of(
    runs: Iterable[AnyRunRecord], kind: type[AnyRunRecord], columns: statements.Columns
) -> list[tuple[Any, ...]]:
    names = statements.names(columns)
    return [rows.run_values(run, names) for run in runs if isinstance(run, kind)]


def _tasks(runs: Iterable[AnyRunRecord]) -> list[AnyRunRecord]:
    return [run for run in runs if isinstance(run, TaskRunRecord)]
