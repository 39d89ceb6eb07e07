"""Transactions: a drain takes its partition up as its only writer, and keeps one connection for all its batches."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

import asyncpg
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from statewright_worker.orchestration.records import EraRecord
from statewright_worker.storage import statements
from statewright_worker.storage.errors import Away, HoldLost
from statewright_worker.storage.meaning import LOST, said, translated
from statewright_worker.storage.watch import Watch

CONNECT_SECONDS: Final = 3.0
CUT_OFF_AFTER_SECONDS: Final = 0.5
"""How long the partition's previous holder may go on with its transaction before its connection is ended."""


@dataclass(frozen=True, slots=True)
class Fence:
    """A partition as a drain holds it: `epoch` is the drain's fencing token."""

    partition: int
    epoch: int


@dataclass(frozen=True, slots=True)
class TakenUp:
    """A partition that was taken up: its fence, its last sequence number, and the number of its era."""

    fence: Fence
    sequence: int
    era: int


class Transaction(NamedTuple):
    """An open transaction: its connection, as SQLAlchemy and as the driver know it, and the connection's watch."""

    connection: AsyncConnection
    driver: asyncpg.Connection
    watch: Watch


class _Kept(NamedTuple):
    """A connection that is kept for a partition's transactions, and the process behind it."""

    transaction: Transaction
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
        """The backends of connections that were given up, by partition: they may still hold the partition's locks."""

    async def take_up(self, partition: int) -> TakenUp:
        """Make the caller the partition's only writer.

        A transaction of the previous writer that does not end soon is cut off: its worker may be frozen, and its
        backend stuck where no time limit of the server's reaches it. Raises Away, ConnectionLost or Crossed.
        """
        async with self.transaction(partition) as (_, driver, watch):
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
    async def transaction(self, partition: int) -> AsyncIterator[Transaction]:
        """Open a transaction on the partition; commit it at the end, roll it back on any exception.

        Raises one of the errors of `storage.errors`.
        """
        with translated():
            transaction = await self._connection(partition)
            connection, driver, watch = transaction
            try:
                watch.begin()
                await self._begin_on(driver)
                yield transaction
                watch.begin()
                await driver.execute("COMMIT")
                watch.end()
                if connection.in_transaction():
                    # A rule's session has begun a transaction of SQLAlchemy's, of which the driver knows nothing.
                    await connection.commit()
            except BaseException:
                # Nobody knows what state this connection is in, so nobody else gets it. Closing it rolls back.
                await self._give_up(partition)
                raise

    async def eras(self, partition: int) -> list[EraRecord]:
        """Return the eras of the partition's events behind the first one, in order."""
        async with self.transaction(partition) as (_, driver, _):
            found = await driver.fetch(statements.READ_ERAS, partition)
        return [EraRecord(*row) for row in found]

    async def begin_era(self, fence: Fence, went_back_to: int, published: int) -> EraRecord | None:
        """Begin an era: the events' numbers go on behind `published`, the last number in the stream. Return the era, or
        None when the numbers had got there already.

        Raises HoldLost when another drain has taken the partition up.
        """
        async with self.transaction(fence.partition) as (_, driver, _):
            asked = (fence.partition, fence.epoch, published, went_back_to)
            row = await driver.fetchrow(statements.BEGIN_ERA, *asked)
            if row is None and await driver.fetchval(statements.EPOCH, fence.partition) != fence.epoch:
                raise HoldLost(fence.partition)
        return None if row is None else EraRecord(*row)

    async def can_write(self) -> bool:
        """Return whether PostgreSQL answers soon and takes writes; never raises."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS), self._engine.connect() as connection:
                driver: asyncpg.Connection = (await connection.get_raw_connection()).driver_connection
                await driver.execute("BEGIN")
                can_write = bool(await driver.fetchval(statements.WRITABLE))
                if can_write:
                    await driver.execute("COMMIT")
                else:
                    # A session may remember a setting that is gone. A pooler would lend it again to the next probe, but
                    # ends it when its client leaves within a transaction.
                    driver.terminate()
                    await connection.invalidate()
                return can_write
        except (SQLAlchemyError, asyncpg.PostgresError, *LOST):
            return False

    async def release(self, partition: int) -> None:
        """Give back the connection on which the partition's transactions were made."""
        kept = self._kept.pop(partition, None)
        if kept is not None:
            kept.transaction.watch.close()
            await kept.transaction.connection.close()

    async def _begin_on(self, driver: asyncpg.Connection) -> None:
        try:
            await driver.execute(self._begin)
        except LOST as error:
            # It broke while it was idle: no batch had begun, so none can be the cause.
            raise Away(f"the connection was lost: {said(error)}") from error

    async def _connection(self, partition: int) -> Transaction:
        """Return the partition's connection: taking one from the pool for each batch would cost more than it saves."""
        if partition not in self._kept:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    connection = await self._engine.connect()
                    driver: asyncpg.Connection = (await connection.get_raw_connection()).driver_connection
            except (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
                # Whatever kept us from connecting, the batch is not the cause.
                raise Away(f"cannot connect: {said(error)}") from error
            transaction = Transaction(connection, driver, Watch(driver.terminate))
            self._kept[partition] = _Kept(transaction, driver.get_server_pid())
            await self._end_given_up(partition, driver)
        return self._kept[partition].transaction

    async def _give_up(self, partition: int) -> None:
        """Close the partition's connection without waiting for anybody."""
        (connection, driver, watch), backend = self._kept.pop(partition)
        watch.close()
        if not self._pooled:
            # Behind a pooler the process id may be that of another connection's backend.
            self._given_up[partition] = backend
        driver.terminate()
        await connection.invalidate()
        await connection.close()

    async def _end_given_up(self, partition: int, driver: asyncpg.Connection) -> None:
        # The client is gone, but its backend notices that only when it next writes to it.
        backend = self._given_up.pop(partition, None)
        if backend is not None:
            await driver.fetch(statements.CUT_OFF_BACKEND, backend, timeout=statements.STATEMENT_SECONDS)

    async def _cut_off(self, statement: str, backend: int) -> None:
        async with self._engine.connect() as connection:
            driver: asyncpg.Connection = (await connection.get_raw_connection()).driver_connection
            await driver.fetch(statement, backend, timeout=statements.STATEMENT_SECONDS)
