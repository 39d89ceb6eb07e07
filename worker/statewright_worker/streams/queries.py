"""Queries: the stream of reads beside the lanes, which all workers read as one consumer group."""

import asyncio
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from redis.asyncio import ConnectionPool
from redis.exceptions import ResponseError

from statewright.connection import EXCHANGE_SECONDS, Command, HeldConnection, accepted, entries_of
from statewright.protocol.channels import Channels
from statewright_worker.streams.bounds import StreamBounds
from statewright_worker.streams.proposals import Entry
from statewright_worker.streams.replies import Replies, Reply

GROUP: Final = "workers"
MEMBER: Final = "worker"
"""All workers are this one member of the group: each query goes to one of them all the same, and none that has died
must be forgotten."""
CLAIM_MILLISECONDS: Final = 10_000
"""A query that its worker has not answered after this long goes to another one."""
CLAIM_SECONDS: Final = 5.0


class Waiting(NamedTuple):
    """A query that waits for its answer, and for how many seconds it has waited, by Redis' clock."""

    entry: Entry
    age: float


class QueryStream:
    """The queries, as one worker reads and answers them.

    Every method raises what `statewright_worker.streams.errors.REDIS_FAILED` lists.
    """

    def __init__(self, pool: ConnectionPool, channels: Channels, bounds: StreamBounds) -> None:
        """Make it for the event loop that runs; connections are made when they are first used."""
        self._reads = HeldConnection(pool)
        # Reading blocks, and answers must not wait for it.
        self._answers = HeldConnection(pool)
        self._one_at_a_time = asyncio.Lock()
        self._key = channels.queries
        self._replies = Replies(channels, bounds)
        self._loop = asyncio.get_running_loop()
        self._claims_at = self._loop.time()

    async def read(self, count: int, block_milliseconds: int) -> list[Waiting]:
        """Return up to `count` queries that nobody else answers; wait `block_milliseconds` at most for the first one.

        Now and then they are those of workers that have died.
        """
        if self._loop.time() >= self._claims_at:
            self._claims_at = self._loop.time() + CLAIM_SECONDS
            if claimed := await self._claim(count):
                return claimed
        reading = ("XREADGROUP", "GROUP", GROUP, MEMBER, "COUNT", count, "BLOCK", block_milliseconds)
        seconds = EXCHANGE_SECONDS + block_milliseconds / 1_000
        read, now = await self._exchange((*reading, "STREAMS", self._key, ">"), ("TIME",), seconds=seconds)
        return list(_waiting(entries_of(read), now))

    async def answer(self, waiting: Waiting, client: str | None, reply: Reply | None) -> None:
        """Send the reply, if there is one and somebody waits for it, and forget the query."""
        commands: list[Command] = []
        if client is not None and reply is not None:
            commands += [command for _, command in self._replies.sending({client: [reply]})]
        entry_id = waiting.entry.id
        commands += [("XACK", self._key, GROUP, entry_id), ("XDEL", self._key, entry_id)]
        async with self._one_at_a_time:
            answers = await self._answers.exchange(*commands)
        # Whatever is wrong with the client's key, the query is over.
        accepted(answers[-2:])

    async def ask(self, *commands: Command) -> list[Any]:
        """Return the answers of Redis to commands that only read. Raises ResponseError when it refuses one."""
        async with self._one_at_a_time:
            return accepted(await self._answers.exchange(*commands))

    async def close(self) -> None:
        """Give the connections back."""
        await self._reads.close()
        await self._answers.close()

    async def _claim(self, count: int) -> list[Waiting]:
        claiming = ("XAUTOCLAIM", self._key, GROUP, MEMBER, CLAIM_MILLISECONDS, "0-0", "COUNT", count)
        claimed, now = await self._exchange(claiming, ("TIME",))
        # Redis 6.2 also tells of entries that were deleted meanwhile, as nothing.
        found = [entry for entry in claimed[1] if entry is not None and entry[1] is not None]
        return list(_waiting(entries_of([(b"", found)]), now))

    async def _exchange(self, *commands: Command, seconds: float = EXCHANGE_SECONDS) -> list[Any]:
        """Return the answers of Redis; where there is no group, which also goes when Redis is emptied, make it."""
        try:
            return accepted(await self._reads.exchange(*commands, seconds=seconds))
        except ResponseError as refusal:
            if "NOGROUP" not in str(refusal):
                raise
        [made] = await self._reads.exchange(("XGROUP", "CREATE", self._key, GROUP, "0", "MKSTREAM"))
        if isinstance(made, ResponseError) and "BUSYGROUP" not in str(made):
            raise made
        return accepted(await self._reads.exchange(*commands, seconds=seconds))


def _waiting(entries: list[tuple[bytes, dict[bytes, bytes]]], now: Any) -> Iterator[Waiting]:
    milliseconds = int(now[0]) * 1_000 + int(now[1]) // 1_000
    for entry_id, fields in entries:
        entry = Entry(entry_id.decode(), fields)
        yield Waiting(entry, (milliseconds - int(entry.id.partition("-")[0])) / 1_000)
