"""A batch's transaction: fence, lock, load, write, commit; the only place where runs are read and written."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from statewright.events import Era
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
from statewright_worker.orchestration.unit_of_work import ChangePage, UnitOfWork
from statewright_worker.storage import rows, statements
from statewright_worker.storage.errors import Away, HoldLost
from statewright_worker.storage.meaning import LOST, said, translated
from statewright_worker.storage.sessions import RuleSessions
from statewright_worker.storage.watch import Watch

CONNECT_SECONDS: Final = 3.0
CUT_OFF_AFTER_SECONDS: Final = 0.5
"""How long the partition's previous holder may go on with its transaction before its connection is ended."""
STATES_PER_PAGE: Final = 100
CHANGES_PER_PAGE: Final = 100
PAGE_BYTES: Final = 256 * 1024
"""How large the data of a page of a history may be; one state is always told."""


@dataclass(slots=True)
class Needs:
    """What a batch's proposals will ask for, so that it is loaded before any of them is decided."""

    run_ids: set[UUID] = field(default_factory=set)
    request_ids: list[UUID] = field(default_factory=list)
    """Requests that have an effect: their answer may stand in the ledger already."""
    enters_running: set[UUID] = field(default_factory=set)
    """Runs that are proposed to enter RUNNING: their tags' limits matter."""
    cache_keys: set[str] = field(default_factory=set)
    failing_flow_runs: set[UUID] = field(default_factory=set)
    """Flow runs whose failed task runs may be sent to their retry."""
    histories: set[tuple[UUID, int]] = field(default_factory=set)
    """Runs whose histories are read, each with an ordinal behind which it is read."""
    events_after: set[int] = field(default_factory=set)
    """Sequence numbers behind which the partition's events are read back."""
    limit_to_set: tuple[UUID, str, int | None] | None = None
    """A request that sets the limit on a tag before the batch is decided, or removes it with all its slots."""
    limit_tags: set[str] = field(default_factory=set)
    """Limits that are read with all their holders."""
    tags_of_new_runs: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Fence:
    """A partition as a drain holds it: `epoch` is the drain's fencing token."""

    partition: int
    epoch: int


@dataclass(frozen=True, slots=True)
class TakenUp:
    """A partition that was taken up: its fence, its last sequence number, and how often its events began anew."""

    fence: Fence
    sequence: int
    era: int


class Batch:
    """One open transaction on one partition."""

    def __init__(self, connection: AsyncConnection, driver: asyncpg.Connection, watch: Watch, fence: Fence) -> None:
        self._driver = driver
        self._watch = watch
        self._fence = fence
        self.sequence = 0
        """The partition's last sequence number before this batch, once it is loaded."""
        self.sessions = RuleSessions(connection, driver)

    async def load(self, needs: Needs, ids: IdSource) -> UnitOfWork:
        """Lock the partition, then the runs and limits that the batch is about, and load every fact that its rules will
        ask for.

        Raises HoldLost when another drain has taken the partition up.
        """
        self._watch.begin()
        known, work = await self._load_runs(needs, ids)
        if needs.failing_flow_runs:
            failed = await self._driver.fetch(statements.LOCK_FAILED_TASK_RUNS, list(needs.failing_flow_runs))
            await self._take_runs(work, failed, rows.task_run_from, statements.READ_TASK_STATES)
        if known:
            await self._load_ledger(work, known)
        if needs.limit_to_set is not None and needs.limit_to_set[0] not in {*work.answers, *work.verdicts}:
            await self._set_limit(*needs.limit_to_set[1:])
        if tags := needs.limit_tags | _limited_tags(work.runs.values(), needs):
            await self._lock_limits(work, tags, needs.limit_tags)
        if needs.cache_keys:
            for row in await self._driver.fetch(statements.READ_CACHE, list(needs.cache_keys), work.now):
                state = rows.state_from(row)
                if state is not None:
                    work.cache[row["cache_key"]] = [CacheEntry(row["cache_key"], row["cache_expiration"], state)]
        if needs.histories:
            await self._load_histories(work, needs.histories)
        for after in needs.events_after:
            work.events[after] = await _changes(self._driver, self._fence.partition, after, self.sequence)
        # Rules have their own time.
        self._watch.end()
        return work

    async def write(self, work: UnitOfWork) -> None:
        """Write what was decided in one statement; the sequence advances by one for every change of state."""
        written = {part: values for part, values in self._parts(work) if values}
        if written:
            self._watch.begin()
            arrays = [column for values in written.values() for column in rows.columns_of(values)]
            sequence = self.sequence + len(work.state_changes)
            await self._driver.execute(
                statements.write(tuple(written)), self._fence.partition, sequence, work.now, *arrays
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
        yield statements.VERDICTS, [rows.verdict_values(verdict, digest) for verdict, digest in work.new_verdicts]
        yield statements.ANSWERS, [rows.answer_values(answer) for answer in work.new_answers]

    async def _load_runs(self, needs: Needs, ids: IdSource) -> tuple[list[UUID], UnitOfWork]:
        """Load the runs; return them with those of the batch's requests that the ledger knows already."""
        loaded: dict[str, list[asyncpg.Record]] = {"fence": [], "flow": [], "task": [], "known": []}
        partition = self._fence.partition
        asked = (list(needs.run_ids), needs.request_ids)
        for row in await self._driver.fetch(statements.LOAD, partition, *asked):
            loaded[row["source"]].append(row)
        fence = loaded["fence"]
        if not fence or fence[0]["epoch"] != self._fence.epoch:
            raise HoldLost(f"partition {partition} was taken up by another drain")
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

    async def _load_ledger(self, work: UnitOfWork, known: Sequence[UUID]) -> None:
        for row in await self._driver.fetch(statements.READ_VERDICTS, known):
            work.verdicts[row["proposal_id"]] = rows.verdict_from(row), row["digest"]
        for row in await self._driver.fetch(statements.READ_ANSWERS, known):
            work.answers[row["request_id"]] = rows.answer_from(row)

    async def _load_histories(self, work: UnitOfWork, pages: Collection[tuple[UUID, int]]) -> None:
        for run_id, after in pages:
            work.histories.setdefault(run_id, {})[after] = []
        run_ids, behind = zip(*pages, strict=True)
        for row in await self._driver.fetch(statements.READ_HISTORY, run_ids, behind, STATES_PER_PAGE, PAGE_BYTES):
            state = rows.state_from(row)
            if state is not None:
                work.histories[row["run_id"]][row["after"]].append((row["ordinal"], state))


class _Kept(NamedTuple):
    """A connection that is kept for a partition, as SQLAlchemy and as the driver know it, its watch, and the process
    behind it."""

    connection: AsyncConnection
    driver: asyncpg.Connection
    watch: Watch
    backend: int


class Storage:
    """PostgreSQL as the drain uses it. No call waits for ever: what does not answer in time counts as lost."""

    def __init__(self, engine: AsyncEngine, *, pooled: bool = False) -> None:
        """Take the engine for batches; `pooled` says that a transaction-mode pooler stands before PostgreSQL."""
        self._engine = engine
        self._pooled = pooled
        self._begin = statements.BEGIN_POOLED if pooled else statements.BEGIN
        self._kept: dict[int, _Kept] = {}
        self._given_up: dict[int, int] = {}
        """Backends of connections that were given up, by partition: they may still hold its locks."""

    async def take_up(self, partition: int) -> TakenUp:
        """Make the caller the partition's only writer.

        A transaction of the previous writer that does not end soon is cut off: its worker may be frozen, and its
        backend stuck where no time limit of the server's reaches it. Raises Away, ConnectionLost or Crossed.
        """
        async with self._transaction(partition) as (_, driver, watch):
            backend = await driver.fetchval(statements.BACKEND)
            taking = asyncio.ensure_future(driver.fetchrow(statements.TAKE_UP, partition))
            try:
                await asyncio.wait({taking}, timeout=CUT_OFF_AFTER_SECONDS)
                if not taking.done():
                    await self._cut_off(statements.CUT_OFF_BLOCKERS, backend)
                    watch.begin()
                row = await taking
            finally:
                taking.cancel()
        return TakenUp(Fence(partition, row["epoch"]), row["sequence"], row["era"])

    @asynccontextmanager
    async def batch(self, fence: Fence) -> AsyncIterator[Batch]:
        """Open a transaction on the partition; commit it at the end, roll it back on any exception.

        Raises one of the errors of `storage.errors`.
        """
        async with self._transaction(fence.partition) as (connection, driver, watch):
            yield Batch(connection, driver, watch, fence)

    async def changes(self, partition: int, after: int, up_to: int) -> ChangePage:
        """Return the next of the partition's changes with sequence numbers above `after`, up to `up_to`, in order."""
        async with self._transaction(partition) as (_, driver, _):
            return await _changes(driver, partition, after, up_to)

    async def eras(self, partition: int) -> list[Era]:
        """Return the eras of the partition's events behind the first one, in order."""
        async with self._transaction(partition) as (_, driver, _):
            found = await driver.fetch(statements.READ_ERAS, partition)
        return [_era(partition, row["era"], row["sequence"], row["went_back_to"]) for row in found]

    async def begin_era(self, fence: Fence, went_back_to: int, published: int) -> Era | None:
        """Number the partition's events anew behind `published`, the last number that is out; return the era, or None
        when the numbers had got there already.

        Raises HoldLost when another drain has taken the partition up.
        """
        async with self._transaction(fence.partition) as (_, driver, _):
            asked = (fence.partition, fence.epoch, published, went_back_to)
            row = await driver.fetchrow(statements.BEGIN_ERA, *asked)
            if row is None and await driver.fetchval(statements.EPOCH, fence.partition) != fence.epoch:
                raise HoldLost(f"partition {fence.partition} was taken up by another drain")
        return None if row is None else _era(fence.partition, row["era"], row["sequence"], went_back_to)

    async def can_write(self) -> bool:
        """Return whether PostgreSQL answers soon and takes writes; never raises."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS), self._engine.connect() as connection:
                return bool((await connection.exec_driver_sql(statements.WRITABLE)).scalar_one())
        except (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
            return False

    async def release(self, partition: int) -> None:
        """Give back the connection on which the partition's transactions were made."""
        kept = self._kept.pop(partition, None)
        if kept is not None:
            kept.watch.close()
            await kept.connection.close()

    @asynccontextmanager
    async def _transaction(self, partition: int) -> AsyncIterator[tuple[AsyncConnection, asyncpg.Connection, Watch]]:
        with translated():
            connection, driver, watch, _ = await self._connection(partition)
            try:
                watch.begin()
                await self._begin_on(driver)
                yield connection, driver, watch
                watch.begin()
                await driver.execute("COMMIT")
                watch.end()
                if connection.in_transaction():
                    # A rule's session has begun one, which the driver knows nothing of.
                    await connection.commit()
            except BaseException:
                # Whatever state it is in, nobody else gets this connection; closing it rolls back.
                await self._give_up(partition)
                raise

    async def _begin_on(self, driver: asyncpg.Connection) -> None:
        try:
            await driver.execute(self._begin)
        except LOST as error:
            # It broke while it lay idle, which is no fault of a batch that was not begun.
            raise Away(f"the connection was lost: {said(error)}") from error

    async def _connection(self, partition: int) -> _Kept:
        """Return the partition's connection: taking one from the pool for each batch would cost more than it saves."""
        if partition not in self._kept:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    connection = await self._engine.connect()
                    driver: asyncpg.Connection = (await connection.get_raw_connection()).driver_connection
            except (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
                # Whatever kept us from connecting is no fault of the batch's.
                raise Away(f"cannot connect: {said(error)}") from error
            self._kept[partition] = _Kept(connection, driver, Watch(driver.terminate), driver.get_server_pid())
            await self._end_given_up(partition, driver)
        return self._kept[partition]

    async def _give_up(self, partition: int) -> None:
        """Close the partition's connection without waiting for anybody."""
        connection, driver, watch, backend = self._kept.pop(partition)
        watch.close()
        if not self._pooled:
            # A pooler names a backend that is not this one's.
            self._given_up[partition] = backend
        driver.terminate()
        await connection.invalidate()
        await connection.close()

    async def _end_given_up(self, partition: int, driver: asyncpg.Connection) -> None:
        # Its client is gone, but a backend notices only when it next speaks to it.
        backend = self._given_up.pop(partition, None)
        if backend is not None:
            await driver.fetch(statements.CUT_OFF_BACKEND, backend, timeout=statements.STATEMENT_SECONDS)

    async def _cut_off(self, statement: str, backend: int) -> None:
        async with self._engine.connect() as connection:
            driver: asyncpg.Connection = (await connection.get_raw_connection()).driver_connection
            await driver.fetch(statement, backend, timeout=statements.STATEMENT_SECONDS)


async def _changes(driver: asyncpg.Connection, partition: int, after: int, up_to: int) -> ChangePage:
    found = await driver.fetch(statements.READ_CHANGES, partition, after, up_to, CHANGES_PER_PAGE)
    changes: list[tuple[int, StateChange]] = []
    size = 0
    for row in found:
        size += len(row["s_message"] or "") + len(row["p_message"] or "")
        if changes and size > PAGE_BYTES:
            return ChangePage(changes, changes[-1][0])
        changes.append((row["sequence"], rows.change_from(row)))
    return ChangePage(changes, changes[-1][0] if len(changes) == CHANGES_PER_PAGE else max(after, up_to))


def _era(partition: int, era: int, sequence: int, went_back_to: int) -> Era:
    return Era(partition=partition, sequence=sequence, era=era, went_back_to=went_back_to, undone_up_to=sequence - 1)


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
