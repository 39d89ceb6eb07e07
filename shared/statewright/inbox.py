"""A client's incoming side: the answers on its reply stream, each handed to whoever waits for it."""

import asyncio
from contextlib import suppress
from functools import partial
from typing import Final
from weakref import WeakValueDictionary

from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

from statewright.connection import EXCHANGE_SECONDS, HeldConnection, cancel, entries_of, persist, reading, trimming

BLOCK_MILLISECONDS: Final = 5_000
REPLIES_PER_READ: Final = 1_000
ANSWERS_KEPT: Final = 256
START: Final = b"0-0"


class Inbox:
    """Reads one reply stream; goes on where it was after a dropped connection."""

    def __init__(self, pool: ConnectionPool, stream: str) -> None:
        self._redis = HeldConnection(pool)
        self._stream = stream
        # Weak: once nobody holds the future of a request, its answer interests nobody.
        self._expected: WeakValueDictionary[bytes, asyncio.Future[bytes]] = WeakValueDictionary()
        self._received = 0
        """How many answers were received since the stream was trimmed."""
        self._running: asyncio.Task[None] | None = None

    def expect(self, request_id: bytes) -> "asyncio.Future[bytes]":
        """Return the future of the answer to `request_id` (as text), as JSON; who asks twice at a time shares it."""
        expected = self._expected.get(request_id)
        # One that is done was refused by Redis; who asks again expects another answer.
        if expected is None or expected.done():
            expected = self._expected[request_id] = asyncio.get_running_loop().create_future()
        if self._running is None:
            # Not before somebody asks: a subscriber needs no right to read replies.
            self._running = asyncio.create_task(self._run())
        return expected

    async def close(self) -> None:
        """Stop; whoever still waits waits in vain."""
        if self._running is not None:
            await cancel(self._running)
            with suppress(RedisError, OSError):
                await self._redis.ask("XTRIM", self._stream, "MAXLEN", 0)
        await self._redis.close()

    async def _run(self) -> None:
        position = START
        while True:
            position = await persist(partial(self._receive, position))

    async def _receive(self, position: bytes) -> bytes:
        if self._received > ANSWERS_KEPT:
            # What was received is deleted now and then, so that the stream stays short.
            await self._redis.ask(*trimming(self._stream, position.decode()))
            self._received = 0
        waiting = reading(self._stream, position, REPLIES_PER_READ, BLOCK_MILLISECONDS)
        read = await self._redis.ask(*waiting, seconds=BLOCK_MILLISECONDS / 1_000 + EXCHANGE_SECONDS)
        for entry_id, fields in entries_of(read):
            self._received += len(fields)
            for request_id, body in fields.items():
                self._hand_out(request_id, body)
            position = entry_id
        return position

    def _hand_out(self, request_id: bytes, body: bytes) -> None:
        expected = self._expected.pop(request_id, None)
        if expected is not None and not expected.done():
            expected.set_result(body)
