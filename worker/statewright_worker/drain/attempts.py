"""What a failure means, and what follows: the one place that decides.

| what failed | what follows |
| --- | --- |
| another drain holds the partition | give it back |
| PostgreSQL is away, or takes no writes | wait, and try the same again; when that gets nowhere, the holder gives back |
| a connection broke, and PostgreSQL takes no new one | wait, as if it was away |
| something crossed the batch's way, or its connection broke | try again, a few times; then halve |
| a request is known to have cost the batch its transaction | refuse that one, and try the rest again |
| anything else | halve, until the guilty request stands alone, and refuse it |
| Redis is away, or refuses for a reason that passes | wait, and try the same again while the partition is held |
| Redis is full | delete what is answered, owe the answers, and go on: the next requests make room |
| a server is away while something is done that no request waits for | go on; what must be done is tried again soon |
"""

import random
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum, auto
from typing import Final, TypeVar

import structlog

from statewright.protocol.replies import ErrorCode, ErrorReply
from statewright_worker.drain.decoding import Malformed
from statewright_worker.holding.hold import Hold
from statewright_worker.observing.outages import Outage
from statewright_worker.requests.base import BatchSpoiled, Incoming
from statewright_worker.storage.errors import Away, ConnectionLost, Crossed, HoldLost, StorageError
from statewright_worker.streams.errors import REDIS_FAILED, passes

PATIENCE: Final = 8
"""How many tries a batch has, or a request that is alone, when its connection breaks: that may be chance each time.

What crosses a batch's way has fewer tries, because each keeps everybody waiting for seconds."""
_COSTS: Final[dict[type[Exception], int]] = {ConnectionLost: 1, Crossed: 3}
FIRST_PAUSE_SECONDS: Final = 0.05
LONGEST_PAUSE_SECONDS: Final = 1.0

log = structlog.get_logger()

Decoded = Incoming | Malformed
Result = TypeVar("Result")


class Follows(Enum):
    """What follows from a failure of a batch."""

    GIVE_BACK = auto()
    WAIT = auto()
    TRY_AGAIN = auto()
    REFUSE = auto()
    HALVE = auto()


def what_follows(error: Exception) -> Follows:
    """Return what follows when a batch's transaction has failed."""
    match error:
        case HoldLost():
            return Follows.GIVE_BACK
        case Away():
            return Follows.WAIT
        case ConnectionLost() | Crossed():
            return Follows.TRY_AGAIN
        case BatchSpoiled():
            return Follows.REFUSE
        case _:
            return Follows.HALVE


class HoldEnded(Exception):
    """The hold was stopped during a wait; the next holder does what remains to be done."""


class _Pauses:
    """Pauses that grow, with some chance in them, so that many who wait do not try again at the same moment."""

    def __init__(self, hold: Hold) -> None:
        self._hold = hold
        self._longest = FIRST_PAUSE_SECONDS

    async def pause(self) -> None:
        """Wait a little longer than last time. Raises HoldEnded when the hold is stopped."""
        await self._hold.pause(random.uniform(self._longest / 2, self._longest))
        self._longest = min(2 * self._longest, LONGEST_PAUSE_SECONDS)
        if not self._hold.held:
            raise HoldEnded


class Attempts:
    """Tries each batch of one partition's drain again until it is carried out, or until the hold ends."""

    def __init__(
        self, hold: Hold, can_write: Callable[[], Awaitable[bool]], *, postgresql: Outage, redis: Outage
    ) -> None:
        self._hold = hold
        self._can_write = can_write
        self._postgresql = postgresql
        self._redis = redis
        self.condemned: dict[str, ErrorReply] = {}
        """Requests that are refused and not tried again, by the id of their entry, each with its answer."""
        self._troubled: set[object] = {hold, self.owing}
        """The keys under which trouble with a server is reported, to be cleared at the end."""

    async def carry_through(
        self, decoded: Sequence[Decoded], transact: Callable[[Sequence[Decoded]], Awaitable[Result]]
    ) -> Result:
        """Return what `transact` returns for as many of the requests as fit one transaction, at least for one.

        Raises HoldLost or HoldEnded.
        """
        patience, pauses = PATIENCE, _Pauses(self._hold)
        while True:
            try:
                done = await transact(decoded)
            except Exception as error:
                follows = await self._what_follows(error)
                if follows is Follows.GIVE_BACK:
                    raise
                if follows is Follows.WAIT:
                    self._postgresql.failed(error, self._hold)
                    await pauses.pause()
                    continue
                # PostgreSQL has answered, so the hold is of use.
                self._hold.progressed()
                patience -= _COSTS.get(type(error), 0)
                if follows is Follows.TRY_AGAIN and patience > 0:
                    await pauses.pause()
                elif isinstance(error, BatchSpoiled):
                    self._condemn(error.incoming, error.reply)
                elif len(decoded) > 1:
                    decoded = decoded[: len(decoded) // 2]
                    # While the batch is halved, each part has one try. A request that is alone has all tries again.
                    patience = PATIENCE if len(decoded) == 1 else 1
                elif self._refuse(decoded[0], error):
                    patience = PATIENCE
                else:
                    # Not even the refusal can be written, so the request is not the cause, and is tried again.
                    self.condemned.pop(decoded[0].entry.id)
                    patience = PATIENCE
                    self._postgresql.failed(error, self._hold)
                    await pauses.pause()
            else:
                self._hold.progressed()
                self._postgresql.over(self._hold)
                return done

    async def _what_follows(self, error: Exception) -> Follows:
        if isinstance(error, ConnectionLost) and not await self._can_write():
            # PostgreSQL takes no new connection either, so the batch is not the cause.
            return Follows.WAIT
        return what_follows(error)

    async def until_postgresql_takes_it(self, do: Callable[[], Awaitable[Result]]) -> Result:
        """Return what `do` returns, and try until PostgreSQL takes it. Raises HoldLost or HoldEnded."""

        def may_take_it(error: Exception) -> bool:
            if isinstance(error, Crossed):
                # PostgreSQL is there, and another transaction is in the way.
                self._hold.progressed()
            return isinstance(error, StorageError) and not isinstance(error, HoldLost)

        done = await self._until_taken(do, self._postgresql, may_take_it)
        self._hold.progressed()
        return done

    async def until_redis_takes_it(self, do: Callable[[], Awaitable[Result]]) -> Result:
        """Return what `do` returns, and try until Redis takes it.

        Raises HoldEnded when the hold is stopped meanwhile, and ResponseError when Redis refuses for good.
        """
        # Waiting for Redis does not count as a lack of progress: if Redis is away, the hold ends by itself.
        self._hold.idle()
        done = await self._until_taken(do, self._redis, lambda error: isinstance(error, REDIS_FAILED) and passes(error))
        self._hold.busy()
        return done

    async def aside(self, do: Callable[[], Awaitable[None]]) -> bool:
        """Do something that no request waits for; return whether it was done. Raises HoldLost."""
        try:
            await do()
        except HoldLost:
            raise
        except (StorageError, *REDIS_FAILED) as error:
            # Requests go on. If a server is away, they will meet the same failure and wait.
            outage = self._postgresql if isinstance(error, StorageError) else self._redis
            outage.failed(error, do)
            self._troubled.add(do)
            return False
        self._postgresql.over(do)
        self._redis.over(do)
        return True

    async def if_redis_takes_it(self, do: Callable[[], Awaitable[Result]]) -> Result | None:
        """Return what `do` returns, None when Redis fails: for what is useful, but not worth a wait."""
        try:
            return await do()
        except REDIS_FAILED:
            return None

    def owing(self, refusal: Exception | None) -> None:
        """Take note that a full Redis has refused answers; None means that it has taken all of them."""
        if refusal is not None:
            self._redis.failed(refusal, self.owing)
        else:
            self._redis.over(self.owing)

    def end(self) -> None:
        """Report that the drain has ended: its trouble with a server no longer counts."""
        for by in self._troubled:
            self._postgresql.over(by)
            self._redis.over(by)

    async def _until_taken(
        self, do: Callable[[], Awaitable[Result]], server: Outage, may_take_it: Callable[[Exception], bool]
    ) -> Result:
        pauses = _Pauses(self._hold)
        while True:
            try:
                done = await do()
            except Exception as error:
                if not may_take_it(error):
                    raise
                server.failed(error, self._hold)
                await pauses.pause()
            else:
                server.over(self._hold)
                return done

    def _refuse(self, one: Decoded, error: Exception) -> bool:
        if one.entry.id in self.condemned:
            return False
        log.error("a request could not be carried out", entry=one.entry.id, exc_info=error)
        message = f"the request could not be carried out: {error}".replace("\x00", "")[:10_000]
        self._condemn(one, ErrorReply(code=ErrorCode.NOT_WRITABLE, message=message))
        return True

    def _condemn(self, one: Decoded, reply: ErrorReply) -> None:
        self.condemned[one.entry.id] = reply
