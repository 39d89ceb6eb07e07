"""A batch's transaction: fence, lock, load, write, commit; the only place where runs are read and written."""

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
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
from statewright_worker.storage.errors import LeaseLost, Overtaken, Refused, Unavailable
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
    limits_to_set: dict[str, int | None] = field(default_factory=dict)
    """Limits by tag that are set before the first request is decided, or removed with all their slots."""
    limit_tags: set[str] = field(default_factory=set)
    """Limits that are read with all their holders."""
    tags_of_new_runs: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Lane:
    """A partition as a drain holds it: `epoch` is the drain's fencing token."""

    partition: int
    epoch: int


class Batch:
    """One open transaction on one partition."""

    def __init__(self, connection: AsyncConnection, driver: asyncpg.Connection, lane: Lane) -> None:
        self._driver = driver
        self._lane = lane
        self.sequence = 0
        """The partition's last sequence number before this batch, once it is loaded."""
        self.sessions = RuleSessions(connection, driver)

    async def load(self, needs: Needs, ids: IdSource) -> UnitOfWork:
        """Lock the partition, then the runs and limits that the batch is about, and load every fact that its rules will
        ask for.

        Raises LeaseLost when another drain has taken the partition up.
        """
        known_proposals, work = await self._load_runs(needs, ids)
        if needs.failing_flow_runs:
            failed = await self._driver.fetch(statements.LOCK_FAILED_TASK_RUNS, list(needs.failing_flow_runs))
            await self._take_runs(work, failed, rows.task_run_from, statements.READ_TASK_STATES)
        if known_proposals:
            for row in await self._driver.fetch(statements.READ_VERDICTS, known_proposals):
                work.verdicts[row["proposal_id"]] = rows.verdict_from(row)
        for tag, concurrency_limit in needs.limits_to_set.items():
            await self._set_limit(tag, concurrency_limit)
        if tags := needs.limit_tags | _limited_tags(work.runs.values(), needs):
            await self._lock_limits(work, tags, needs.limit_tags)
        if needs.cache_keys:
            for row in await self._driver.fetch(statements.READ_CACHE, list(needs.cache_keys), work.now):
                state = rows.state_from(row)
                if state is not None:
                    work.cache[row["cache_key"]] = [CacheEntry(row["cache_key"], row["cache_expiration"], state)]
        if needs.histories:
            await self._load_histories(work, needs.histories)
        return work

    async def write(self, work: UnitOfWork) -> None:
        """Write what was decided in one statement; the sequence advances by one for every change of state."""
        written = {part: values for part, values in self._parts(work) if values}
        if written:
            arrays = [column for values in written.values() for column in rows.columns_of(values)]
            sequence = self.sequence + len(work.state_changes)
            await self._driver.execute(
                statements.write(tuple(written)), self._lane.partition, sequence, work.now, *arrays
            )

    def _parts(self, work: UnitOfWork) -> Iterator[tuple[statements.Part, list[tuple[Any, ...]]]]:
        created = work.created_runs
        changed = [run for run_id, run in work.changed_runs.items() if run_id not in created]
        numbered = list(enumerate(work.state_changes, self.sequence + 1))
        yield statements.FLOW_RUNS_CREATED, _values(created.values(), FlowRunRecord, statements.FLOW_COLUMNS)
        yield statements.TASK_RUNS_CREATED, _values(created.values(), TaskRunRecord, statements.TASK_COLUMNS)
        yield statements.FLOW_RUNS_CHANGED, _values(changed, FlowRunRecord, statements.FLOW_CHANGES)
        yield statements.TASK_RUNS_CHANGED, _values(changed, TaskRunRecord, statements.TASK_CHANGES)
        for part, kind in ((statements.FLOW_RUN_STATES, FlowRunRecord), (statements.TASK_RUN_STATES, TaskRunRecord)):
            yield part, [rows.change_values(change, n) for n, change in numbered if isinstance(change.run, kind)]
        yield statements.SLOTS_RELEASED, sorted(work.slots_released)
        yield statements.SLOTS_TAKEN, sorted(work.slots_taken)
        yield statements.STATES_CACHED, [(e.cache_key, e.cache_expiration, e.state.id) for e in work.cache_added]
        yield statements.VERDICTS, [rows.verdict_values(verdict) for verdict in work.new_verdicts]

    async def _load_runs(self, needs: Needs, ids: IdSource) -> tuple[list[UUID], UnitOfWork]:
        """Load the runs; return them with those of the batch's proposals that have a verdict already."""
        loaded: dict[str, list[asyncpg.Record]] = {"fence": [], "flow": [], "task": [], "known": []}
        run_ids, proposal_ids = list(needs.run_ids), needs.proposal_ids
        for row in await self._driver.fetch(statements.LOAD, self._lane.partition, run_ids, proposal_ids):
            loaded[row["source"]].append(row)
        fence = loaded["fence"]
        if not fence or fence[0]["epoch"] != self._lane.epoch:
            raise LeaseLost(f"partition {self._lane.partition} was taken up by another drain")
        self.sequence = fence[0]["sequence"]
        work = UnitOfWork(fence[0]["now"], ids)
        await self._take_runs(work, loaded["flow"], rows.flow_run_from, statements.READ_FLOW_STATES)
        await self._take_runs(work, loaded["task"], rows.task_run_from, statements.READ_TASK_STATES)
        return [row["id"] for row in loaded["known"]], work

    async def _take_runs(
        self,
        work: UnitOfWork,
        locked: Sequence[asyncpg.Record],
        run_from: Callable[[asyncpg.Record], AnyRunRecord],
        read_states: str,
    ) -> None:
        for row in locked:
            work.runs[row["id"]] = run_from(row)
        # Whoever waited for a run's lock sees the run's newest version, but joined to the state it had before.
        overtaken = {row["state_id"]: row["id"] for row in locked if row["state_id"] != row["s_id"]}
        if overtaken:
            for row in await self._driver.fetch(read_states, list(overtaken)):
                work.runs[overtaken[row["s_id"]]].state = rows.state_from(row)

    async def _set_limit(self, tag: str, concurrency_limit: int | None) -> None:
        if concurrency_limit is None:
            await self._driver.execute(statements.REMOVE_LIMIT, tag)
        else:
            await self._driver.execute(statements.SET_LIMIT, tag, concurrency_limit)

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
        """Open a transaction on the partition; commit it at the end, roll it back on any exception.

        Raises LeaseLost, Unavailable, Overtaken or Refused; then nothing was written.
        """
        async with self._transaction(lane.partition) as (connection, driver):
            yield Batch(connection, driver, lane)

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
    except asyncpg.UniqueViolationError as error:
        raise Overtaken(str(error)) from error
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


def _values(
    runs: Iterable[AnyRunRecord], kind: type[AnyRunRecord], columns: statements.Columns
) -> list[tuple[Any, ...]]:
    names = statements.names(columns)
    return [rows.run_values(run, names) for run in runs if isinstance(run, kind)]


def _tasks(runs: Iterable[AnyRunRecord]) -> list[AnyRunRecord]:
    return [run for run in runs if isinstance(run, TaskRunRecord)]
