"""A client's incoming side: reads its reply stream, and hands each answer to the caller that waits for it."""

import asyncio
from contextlib import suppress
from functools import partial
from typing import Final
from uuid import UUID
from weakref import WeakValueDictionary

from redis.asyncio import ConnectionPool
from redis.exceptions import TimeoutError as RedisTimeoutError

from statewright.client.expected import Expected
from statewright.connection import (
    DROPPED_OR_REFUSED,
    EXCHANGE_SECONDS,
    RIGHTS_SECONDS,
    HeldConnection,
    RightMissing,
    cancel,
    entries_of,
    persist,
    reading,
    trimming,
    unavailable,
)
from statewright.errors import Delivery, NoAnswer

BLOCK_MILLISECONDS: Final = 5_000
REPLIES_PER_READ: Final = 1_000
ANSWERS_KEPT: Final = 256
IS_PARKED: Final = b'{"type":"parked"'
"""How a reply begins that is no answer yet."""
CLOSING_SECONDS: Final = 1.0
START: Final = b"0-0"


class Inbox:
    """Reads one reply stream; goes on where it was after a dropped connection or a refusal.

    Whoever waits for an answer is told when the user lacks the right to read it for longer than a moment.
    """

    def __init__(self, pool: ConnectionPool, stream: str) -> None:
        """Make an inbox for the event loop that runs; the first request that is expected to be answered starts it."""
        self._redis = HeldConnection(pool)
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        # Weak, because nobody needs the answer to a request once nobody holds its future.
        self._expected: WeakValueDictionary[bytes, Expected] = WeakValueDictionary()
        self._received = 0
        """How many answers were received since the stream was trimmed."""
        self._count = REPLIES_PER_READ
        self._lacking_since: float | None = None
        """Since when a right is missing, by the loop's clock."""
        self._running: asyncio.Task[None] | None = None

    def expect(self, request_id: bytes) -> Expected:
        """Return the future of the answer, as JSON, to `request_id` (as text); two calls at a time share one future."""
        expected = self._expected.get(request_id)
        # A future that is done was refused by Redis; asking again expects another answer.
        if expected is None or expected.done():
            expected = self._expected[request_id] = Expected(loop=self._loop)
        if self._running is None:
            # Reading starts only now, because a mere subscriber needs no right to read replies.
            self._running = asyncio.create_task(self._run())
        return expected

    async def close(self) -> None:
        """Stop; callers that still wait for an answer get an error, because none will come here."""
        if self._running is not None:
            await cancel(self._running)
            with suppress(*DROPPED_OR_REFUSED):
                await self._redis.ask("XTRIM", self._stream, "MAXLEN", 0, seconds=CLOSING_SECONDS)
        await self._redis.close()
        for request_id, expected in list(self._expected.items()):
            if not expected.done():
                expected.set_exception(NoAnswer(UUID(request_id.decode()), None, Delivery.UNANSWERED))
                # Redis holds the request. A caller that does not await the answer need not see a warning.
                expected.exception()

    async def _run(self) -> None:
        position = START
        while True:
            # A refusal is tried again too: a user's rights and a server's role may come back, and somebody waits.
            position = await persist(partial(self._listen, position), on=DROPPED_OR_REFUSED)

    async def _listen(self, position: bytes) -> bytes:
        try:
            position = await self._receive(position)
        except RightMissing as refusal:
            now = self._loop.time()
            self._lacking_since = self._lacking_since or now
            if now - self._lacking_since >= RIGHTS_SECONDS:
                self._tell(refusal)
            raise
        self._lacking_since = None
        return position

    def _tell(self, refusal: RightMissing) -> None:
        for request_id, expected in list(self._expected.items()):
            # The request is none the worse for it, and its answer stays in the stream.
            expected.miss(
                unavailable(
                    f"the answer to request {request_id.decode()} cannot be read, but the request may take effect;"
                    " awaiting it again, or proposing again with this proposal_id, is safe",
                    refusal,
                )
            )

    async def _receive(self, position: bytes) -> bytes:
        if self._received > ANSWERS_KEPT:
            # Now and then the received answers are deleted, so that the stream stays short.
            await self._redis.ask(*trimming(self._stream, position.decode()))
            self._received = 0
        waiting = reading(self._stream, position, self._count, BLOCK_MILLISECONDS)
        try:
            read = await self._redis.ask(*waiting, seconds=BLOCK_MILLISECONDS / 1_000 + EXCHANGE_SECONDS)
        except RedisTimeoutError:
            # The read may have been too large for its time limit; a smaller one may come through.
            self._count = max(1, self._count // 10)
            raise
        for entry_id, fields in entries_of(read):
            self._received += len(fields)
            for request_id, body in fields.items():
                self._hand_out(request_id, body)
            position = entry_id
        return position

    def _hand_out(self, request_id: bytes, body: bytes) -> None:
        if body.startswith(IS_PARKED):
            self._hear(request_id, body)
            return
        expected = self._expected.pop(request_id, None)
        if expected is not None and not expected.done():
            expected.set_result(body)

    def _hear(self, request_id: bytes, body: bytes) -> None:
        expected = self._expected.get(request_id)
        if expected is not None:
            expected.hear(body)
