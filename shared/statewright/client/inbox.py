"""A client's incoming side: reads its reply stream, and hands each answer to the caller that waits for it.

A client with a name has a stream that outlives its process. When it is opened, it signs the stream with an entry, reads
what has come until then, and keeps what nobody awaits. Entries have an order, so the client that has signed last is the
one that has the name; one that reads the later sign of another stops reading.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import suppress
from typing import Final
from uuid import UUID
from weakref import WeakValueDictionary

from redis.asyncio import ConnectionPool
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from statewright.client.expected import Expected
from statewright.client.unclaimed import Unclaimed
from statewright.connection import (
    DROPPED_OR_REFUSED,
    EXCHANGE_SECONDS,
    RIGHTS_SECONDS,
    Command,
    HeldConnection,
    RightMissing,
    cancel,
    entries_of,
    persist,
    reading,
    trimming,
    unavailable,
)
from statewright.errors import Delivery, NoAnswer, NotOpen, RedisUnavailable
from statewright.log import LOG, Outage
from statewright.protocol.channels import OPENED

BLOCK_MILLISECONDS: Final = 5_000
REPLIES_PER_READ: Final = 1_000
ANSWERS_KEPT: Final = 256
ANSWERS_HELD: Final = 10_000
"""How many answers stay in the stream for the sake of an older one that nobody has claimed."""
IS_PARKED: Final = b'{"type":"parked"'
"""How a reply begins that is no answer yet."""
CLOSING_SECONDS: Final = 1.0
START: Final = b"0-0"


class Inbox:
    """Reads one reply stream; goes on where it was after a dropped connection or a refusal.

    Whoever waits for an answer is told when the user lacks the right to read it for longer than a moment.
    """

    def __init__(self, pool: ConnectionPool, stream: str, outage: Outage, name: str | None = None) -> None:
        """Make an inbox for the event loop that runs; the first request that is expected to be answered starts it.

        With the client's `name`, `take_over` starts it.
        """
        self._redis = HeldConnection(pool)
        self._stream = stream
        self._outage = outage
        self._name = name
        self._loop = asyncio.get_running_loop()
        # Weak, because nobody needs the answer to a request once nobody holds its future.
        self._expected: WeakValueDictionary[bytes, Expected] = WeakValueDictionary()
        self._position = START
        self._received = 0
        """How many answers were received."""
        self._trimmed_at = 0
        """How many of them when the stream was trimmed last."""
        self._count = REPLIES_PER_READ
        self._lacking_since: float | None = None
        """Since when a right is missing, by the loop's clock."""
        self._running: asyncio.Task[None] | None = None
        self._unclaimed = None if name is None else Unclaimed()
        self._sign: bytes | None = None
        """The id of the entry with which this client has signed the stream."""
        self._has_the_name = False
        """Whether the own sign was read, and no later one."""
        self._is_superseded = False

    async def take_over(self) -> None:
        """Take the client's name over, and read what has come under it until now. Raises RedisUnavailable."""
        try:
            self._sign = await self._redis.ask("XADD", self._stream, "*", OPENED, b"")
            # Everything before the sign. If that was deleted, there is nothing.
            while not self._has_the_name and not self._is_superseded and await self._read(1):
                pass
        except ResponseError as refusal:
            raise unavailable(f"the reply stream of client {self._name!r} cannot be taken over", refusal) from refusal
        except DROPPED_OR_REFUSED as error:
            raise RedisUnavailable(f"cannot reach Redis (STATEWRIGHT_REDIS_URL): {error}") from error
        self._has_the_name = not self._is_superseded
        self._running = asyncio.create_task(self._run())

    def expect(self, request_id: bytes) -> Expected:
        """Return the future of the answer, as JSON, to `request_id` (as text); two calls at a time share one future.

        Raises NotOpen when another client has taken the name over.
        """
        if self._is_superseded:
            raise NotOpen(
                f"another client was opened under the name {self._name!r}, and gets its answers;"
                " give each client that is open at the same time a name of its own"
            )
        if self._unclaimed is not None:
            self._unclaimed.drop(request_id)
        expected = self._expected.get(request_id)
        # A future that is done was refused by Redis; asking again expects another answer.
        if expected is None or expected.done():
            expected = self._expected[request_id] = Expected(loop=self._loop)
        if self._running is None:
            # Reading starts only now, because a mere subscriber needs no right to read replies.
            self._running = asyncio.create_task(self._run())
        return expected

    def claim(self, request_id: bytes) -> None:
        """Forget an answer that nobody has awaited: somebody asks for it again."""
        if self._unclaimed is not None:
            self._unclaimed.drop(request_id)

    def unclaimed(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the requests whose answers nobody has awaited, each with its answer, which is forgotten then."""
        return iter(()) if self._unclaimed is None else self._unclaimed.take()

    async def tidy(self) -> None:
        """Stop, and delete from the stream what was received, but for what nobody has claimed."""
        if self._running is not None:
            await cancel(self._running)
            if not self._is_superseded:
                everything = ("XTRIM", self._stream, "MAXLEN", 0)
                trim = everything if self._name is None else self._trimming()
                with suppress(*DROPPED_OR_REFUSED):
                    await self._redis.ask(*trim, seconds=CLOSING_SECONDS)

    async def close(self) -> None:
        """Stop; callers that still wait for an answer get an error, because none will come here."""
        try:
            if self._running is not None:
                await cancel(self._running)
        finally:
            self._fail()
            await self._redis.close()

    def _fail(self, problem: str = "") -> None:
        for request_id, expected in list(self._expected.items()):
            if not expected.done():
                expected.set_exception(NoAnswer(UUID(request_id.decode()), None, Delivery.UNANSWERED, problem))
                # Redis holds the request. A caller that does not await the answer need not see a warning.
                expected.exception()

    async def _run(self) -> None:
        while not self._is_superseded:
            # A refusal is tried again too: a user's rights and a server's role may come back, and somebody waits.
            await persist(self._listen, on=DROPPED_OR_REFUSED)

    async def _listen(self) -> None:
        try:
            await self._receive()
        except DROPPED_OR_REFUSED as error:
            self._outage.failed(error, self)
            if isinstance(error, RightMissing):
                now = self._loop.time()
                self._lacking_since = self._lacking_since or now
                if now - self._lacking_since >= RIGHTS_SECONDS:
                    self._tell(error)
            raise
        self._lacking_since = None
        self._outage.over(self)

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

    async def _receive(self) -> None:
        if self._received - self._trimmed_at > ANSWERS_KEPT:
            # Now and then the received answers are deleted, so that the stream stays short.
            await self._redis.ask(*self._trimming())
            self._trimmed_at = self._received
            await self._sign_again()
        await self._read(BLOCK_MILLISECONDS)

    def _trimming(self) -> Command:
        held = None if self._unclaimed is None else self._unclaimed.first_behind(self._received - ANSWERS_HELD)
        return (
            trimming(self._stream, self._position.decode()) if held is None else ("XTRIM", self._stream, "MINID", held)
        )

    async def _read(self, milliseconds: int) -> bool:
        """Read what has come, or wait so long for it; return whether anything has."""
        waiting = reading(self._stream, self._position, self._count, milliseconds)
        try:
            read = await self._redis.ask(*waiting, seconds=milliseconds / 1_000 + EXCHANGE_SECONDS)
        except RedisTimeoutError:
            # The read may have been too large for its time limit; a smaller one may come through.
            self._count = max(1, self._count // 10)
            raise
        entries = entries_of(read)
        is_followed = LOG.isEnabledFor(logging.DEBUG)
        meets_another = False
        for entry_id, fields in entries:
            self._received += len(fields)
            for request_id, body in fields.items():
                if request_id == OPENED:
                    meets_another |= self._heed(body or entry_id)
                    continue
                if is_followed:
                    LOG.debug("answer to request %s: %d bytes", request_id.decode(errors="replace"), len(body))
                self._hand_out(request_id, body, entry_id)
            self._position = entry_id
        if meets_another:
            await self._sign_again()
        return bool(entries)

    def _hand_out(self, request_id: bytes, body: bytes, entry_id: bytes) -> None:
        if body.startswith(IS_PARKED):
            self._hear(request_id, body)
            return
        expected = self._expected.pop(request_id, None)
        if expected is not None:
            if not expected.done():
                expected.set_result(body)
        elif self._unclaimed is not None:
            self._unclaimed.keep(request_id, entry_id, self._received, body)

    def _hear(self, request_id: bytes, body: bytes) -> None:
        expected = self._expected.get(request_id)
        if expected is not None:
            expected.hear(body)

    # Whose name it is.

    def _heed(self, sign: bytes) -> bool:
        """Take note of a sign in the stream; return whether it is that of an earlier client which is still open."""
        if self._sign is None:
            return False
        if sign == self._sign:
            self._has_the_name = True
            return False
        if _moment(sign) < _moment(self._sign):
            # Those before the own sign are of clients that were there before.
            return self._has_the_name
        self._is_superseded = True
        self._has_the_name = False
        problem = f"another client was opened under the name {self._name!r}"
        LOG.warning("%s: this one gets no answers any more", problem)
        self._fail(problem)
        return False

    async def _sign_again(self) -> None:
        """Let an earlier client of the same name read who has it now: the sign of this one may be deleted."""
        if self._sign is not None and self._has_the_name:
            await self._redis.ask("XADD", self._stream, "*", OPENED, self._sign)


def _moment(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, number = entry_id.partition(b"-")
    return int(milliseconds), int(number)
