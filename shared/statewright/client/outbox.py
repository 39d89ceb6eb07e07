"""A client's outgoing side: requests leave in the order in which they were made, many to a round trip."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, Final, NamedTuple, TypeVar
from uuid import UUID

from redis.asyncio import ConnectionPool
from redis.exceptions import NoPermissionError, OutOfMemoryError, ResponseError

from statewright.client.room import Backlog, Bound, age_of_the_oldest, asking, asking_for_the_oldest
from statewright.connection import (
    DROPPED_OR_REFUSED,
    EXCHANGE_SECONDS,
    Argument,
    Command,
    HeldConnection,
    RightMissing,
    cancel,
    passing,
    persist,
    unavailable,
)
from statewright.errors import Delivery, NoAnswer, Overloaded, StatewrightError
from statewright.log import LOG, Outage, in_a_line
from statewright.protocol.channels import REQUEST_ID

PIPELINE_SIZE: Final = 500
PIPELINE_BYTES: Final = 4_000_000
SLOWEST_BYTES_PER_SECOND: Final = 1_000_000
"""Requests that leave more slowly than this mean that the connection to Redis is dead."""
QUERIES: Final = -1
"""Names the last of an outbox's streams, that of queries, where others are named by their partition."""
TOGETHER: Final = 16
"""Up to so many requests become visible in one instant; more than that arrive faster than a drain reads anyway."""
ROOM_POLL_SECONDS: Final = 0.1

Fields = dict[bytes, bytes]
Result = TypeVar("Result")


class _Outgoing(NamedTuple):
    partition: int
    fields: Fields
    size: int
    pushed: asyncio.Future[StatewrightError | None]
    reply: asyncio.Future[bytes]

    def fail(self, error: StatewrightError) -> None:
        """Fail the request for all that wait for it: Redis will not take it, so nobody will ever answer."""
        if not self.pushed.done():
            self.pushed.set_result(error)
        if not self.reply.done():
            self.reply.set_exception(error)

    @property
    def request_id(self) -> UUID:
        return UUID(self.fields[REQUEST_ID].decode())


class _Held(NamedTuple):
    """A request that waits for room in its partition, until `refused_at` by the loop's clock."""

    entry: _Outgoing
    refused_at: float


class Outbox:
    """Pushes requests onto the partitions' streams; sends again what was not confirmed, and waits while Redis cannot.

    What Redis refuses for good, and what has no room in its partition, is refused alone.
    """

    def __init__(
        self, pool: ConnectionPool, streams: Sequence[str], bound: Bound, wait_for_room: float, outage: Outage
    ) -> None:
        """Make an outbox for the event loop that runs; the first request starts it.

        `streams` are those of the partitions, and that of queries behind them.
        """
        self._redis = HeldConnection(pool)
        self._loop = asyncio.get_running_loop()
        self._streams = streams
        self._backlogs = [Backlog(bound) for _ in streams]
        self._wait_for_room = wait_for_room
        self._outage = outage
        self._is_unbounded = False
        """Whether the log says already that the user may not ask how much is unanswered."""
        self._waiting: deque[_Outgoing] = deque()
        self._held: dict[int, deque[_Held]] = {}
        self._in_hand: list[_Outgoing] = []
        self._size = 0
        """How many bytes are in hand."""
        self._news: tuple[int, ...] = ()
        """The partitions to ask about behind the next push."""
        self._uncertain = False
        """Whether what is in hand may have reached Redis."""
        self._problem = ""
        """What Redis says for as long as it does not take what is in hand."""
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    def put(
        self, partition: int, fields: Fields, size: int, reply: "asyncio.Future[bytes]"
    ) -> "asyncio.Future[StatewrightError | None]":
        """Queue a request of so many bytes; the future yields None once Redis holds it, or the error that refused it.

        A refusal is the reply's exception too: nobody will ever answer.
        """
        pushed: asyncio.Future[StatewrightError | None] = self._loop.create_future()
        self._waiting.append(_Outgoing(partition, fields, size, pushed, reply))
        self._filled.set()
        self._emptied.clear()
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return pushed

    def delivery_of(self, pushed: "asyncio.Future[StatewrightError | None]") -> tuple[Delivery, str]:
        """Return how far the request has got whose future `put` returned, and what keeps it, if anything does."""
        if pushed.done():
            return Delivery.UNANSWERED, ""
        if any(held.entry.pushed is pushed for held in chain.from_iterable(self._held.values())):
            return Delivery.NOT_SENT, "its partition has no room"
        is_uncertain = self._uncertain and any(entry.pushed is pushed for entry in self._in_hand)
        return Delivery.UNCONFIRMED if is_uncertain else Delivery.NOT_SENT, self._problem

    async def flush(self, timeout: float) -> None:
        """Wait until everything is pushed, `timeout` seconds at most."""
        if self._running is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._emptied.wait()

    async def close(self) -> None:
        """Stop; what is not pushed yet fails."""
        try:
            if self._running is not None:
                await cancel(self._running)
        finally:
            held = (held.entry for held in chain.from_iterable(self._held.values()))
            for entry in (*self._in_hand, *held, *self._waiting):
                if not entry.pushed.done():
                    entry.fail(NoAnswer(entry.request_id, None, *self.delivery_of(entry.pushed)))
            await self._redis.close()

    async def _run(self) -> None:
        while True:
            await self._something_to_do()
            self._filled.clear()
            await self._work_off(self._next())
            while self._waiting:
                await self._work_off(self._next())
            if not self._held:
                self._emptied.set()

    async def _something_to_do(self) -> None:
        if not self._held:
            await self._filled.wait()
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(ROOM_POLL_SECONDS):
                await self._filled.wait()

    def _next(self) -> list[_Outgoing]:
        taken: list[_Outgoing] = []
        size = 0
        while self._waiting and len(taken) < PIPELINE_SIZE and size < PIPELINE_BYTES:
            entry = self._waiting.popleft()
            size += entry.size
            taken.append(entry)
        return taken

    async def _work_off(self, entries: list[_Outgoing]) -> None:
        self._in_hand, self._uncertain = entries, False
        self._news = ()
        asked = self._count(entries)
        if asked or self._held:
            await self._find_room(entries, asked)
        if self._in_hand:
            await self._insist(self._push_at_once)

    async def _insist(self, do: Callable[[], Awaitable[Result]]) -> Result:
        """Return what `do` returns, and try until Redis takes it."""
        try:
            return await do()
        except DROPPED_OR_REFUSED as error:
            self._note(error)

        async def attempt() -> Result:
            try:
                return await do()
            except DROPPED_OR_REFUSED as error:
                self._note(error)
                raise

        result = await persist(attempt, on=DROPPED_OR_REFUSED)
        self._problem = ""
        return result

    def _note(self, error: Exception) -> None:
        self._problem = f"Redis: {error or type(error).__name__}"
        self._outage.failed(error, self)

    # Room: which requests may leave.

    def _count(self, entries: list[_Outgoing]) -> list[int]:
        """Count the entries, and return the partitions that are to be asked about."""
        asked = []
        now = self._loop.time()
        size = 0
        for entry in entries:
            size += entry.size
            if self._backlogs[entry.partition].count(entry.size, now):
                asked.append(entry.partition)
        self._size = size
        return asked

    async def _find_room(self, entries: list[_Outgoing], asked: list[int]) -> None:
        """Keep in hand what may leave, and take what was held until now; hold or refuse the others."""
        now = self._loop.time()
        doubtful = {*self._held, *(partition for partition in asked if self._backlogs[partition].is_doubtful(now))}
        self._news = tuple({*asked} - doubtful)
        if not doubtful:
            return
        await self._insist(lambda: self._ask_about(doubtful))
        leaving = []
        for entry in entries:
            if entry.partition in doubtful:
                held = _Held(entry, now + self._wait_for_room)
                self._held.setdefault(entry.partition, deque()).append(held)
            else:
                leaving.append(entry)
        for partition in doubtful:
            leaving += self._let_in(partition)
        self._in_hand = leaving
        self._size = sum(entry.size for entry in leaving)
        for partition in doubtful:
            await self._refuse_the_overdue(partition)

    async def _ask_about(self, partitions: Iterable[int]) -> None:
        asked = list(partitions)
        commands = chain.from_iterable(asking(self._streams[partition]) for partition in asked)
        self._learn(asked, await self._redis.exchange(*commands))
        self._outage.over(self)

    def _learn(self, partitions: Sequence[int], answers: Sequence[Any]) -> None:
        if not partitions:
            return
        now = self._loop.time()
        for number, partition in enumerate(partitions):
            self._backlogs[partition].learn(answers[2 * number : 2 * number + 2], now)
        if not self._is_unbounded:
            for answer in answers:
                if isinstance(answer, RightMissing):
                    self._is_unbounded = True
                    LOG.warning("requests are sent without a bound: %s", answer)
                    break

    def _let_in(self, partition: int) -> Iterator[_Outgoing]:
        held, backlog = self._held[partition], self._backlogs[partition]
        size = 0
        # The oldest first, and none overtakes it: requests to one tree take effect in the order of the calls.
        while held and size < PIPELINE_BYTES and backlog.has_room(held[0].entry.size):
            entry = held.popleft().entry
            backlog.count(entry.size, 0.0)
            size += entry.size
            yield entry

    async def _refuse_the_overdue(self, partition: int) -> None:
        held, backlog = self._held[partition], self._backlogs[partition]
        now = self._loop.time()
        if held and held[0].refused_at <= now and not backlog.has_room(held[0].entry.size):
            stream = self._streams[partition]
            age = age_of_the_oldest(await self._insist(lambda: self._redis.exchange(*asking_for_the_oldest(stream))))
            # Those behind it wait too, even when they are smaller, because they may depend on it.
            while held and held[0].refused_at <= now:
                entry = held.popleft().entry
                entry.fail(
                    Overloaded.unsent(
                        entry.request_id,
                        None if partition == QUERIES else partition,
                        unanswered=backlog.requests,
                        size=backlog.size,
                        oldest_seconds=age,
                    )
                )
        if not held:
            del self._held[partition]

    # Pushing: what leaves.

    async def _push_at_once(self) -> None:
        """Push what is in hand. Raises what Redis says when some of it stays in hand, to be tried again."""
        if not self._redis.is_connected:
            await self._redis.connect(EXCHANGE_SECONDS)
        entries, was_uncertain = self._in_hand, self._uncertain
        self._uncertain = True
        answers = await self._answers_to(entries)
        self._uncertain = was_uncertain
        refusals = []
        self._in_hand = []
        if LOG.isEnabledFor(logging.DEBUG):
            _tell(entries, answers)
        for entry, answer in zip(entries, answers, strict=True):
            if not isinstance(answer, ResponseError):
                if not entry.pushed.done():
                    entry.pushed.set_result(None)
            elif not self._is_over(entry, answer):
                self._in_hand.append(entry)
                refusals.append(answer)
        if self._outage.lasts:
            self._tell_what_is_over(entries, answers)
        if refusals:
            raise refusals[0]
        self._outage.over(self)

    def _tell_what_is_over(self, entries: Sequence[_Outgoing], answers: Sequence[Any]) -> None:
        for entry, answer in zip(entries, answers, strict=True):
            if not isinstance(answer, ResponseError):
                self._outage.over((self, entry.partition))
        if not any(isinstance(answer, ResponseError) and passing(answer) for answer in answers):
            self._outage.over((self, None))

    def _is_over(self, entry: _Outgoing, refusal: ResponseError) -> bool:
        """Fail a refused request, unless it is to be tried again; return whether it failed."""
        # Somebody must give the server memory or the user rights; that takes longer than a moment. And what waited for
        # that would be overtaken by what is pushed behind it.
        if passing(refusal) and not isinstance(refusal, OutOfMemoryError | NoPermissionError):
            return False
        entry.fail(unavailable(f"{_meaning(refusal)}; {self._effect_of_a_refusal()}", refusal))
        # What never passes concerns the one stream, as one that is no stream.
        self._outage.failed(refusal, (self, None if passing(refusal) else entry.partition))
        return True

    def _effect_of_a_refusal(self) -> str:
        if self._uncertain:
            return "it was sent once before without being confirmed, and may take effect"
        return "nothing was written"

    async def _answers_to(self, entries: list[_Outgoing]) -> list[Any]:
        commands = [self._command(entry) for entry in entries]
        # The questions go behind the requests, where they cost no round trip.
        news = [command for partition in self._news for command in asking(self._streams[partition])]
        seconds = EXCHANGE_SECONDS + self._size / SLOWEST_BYTES_PER_SECOND
        if 1 < len(commands) <= TOGETHER:
            # Otherwise the drain would wake up at the first request, and spend a transaction on it alone.
            answers, told = await self._in_one_instant(commands, news, seconds)
        else:
            together = await self._redis.exchange(*commands, *news, seconds=seconds)
            answers, told = together[: len(commands)], together[len(commands) :]
        self._learn(self._news, told)
        return answers

    async def _in_one_instant(
        self, commands: list[Command], news: list[Command], seconds: float
    ) -> tuple[list[Any], list[Any]]:
        together = await self._redis.exchange(("MULTI",), *commands, ("EXEC",), *news, seconds=seconds)
        begun, *queued = together[: len(commands) + 1]
        executed, *told = together[len(commands) + 1 :]
        if isinstance(begun, ResponseError):
            # The user may not use MULTI: Redis has carried out the commands one after the other.
            return queued, told
        if isinstance(executed, ResponseError):
            # One command was refused, so Redis did none of them. Now each is sent on its own.
            return await self._redis.exchange(*commands, seconds=seconds), told
        return executed, told

    def _command(self, entry: _Outgoing) -> Command:
        fields: Iterator[Argument] = chain.from_iterable(entry.fields.items())
        return ("XADD", self._streams[entry.partition], "*", *fields)


def _tell(entries: Sequence[_Outgoing], answers: Sequence[Any]) -> None:
    for entry, answer in zip(entries, answers, strict=True):
        became = f"refused: {in_a_line(answer)}" if isinstance(answer, ResponseError) else "sent"
        LOG.debug("request %s to partition %d, %d bytes: %s", entry.request_id, entry.partition, entry.size, became)


def _meaning(refusal: ResponseError) -> str:
    if isinstance(refusal, OutOfMemoryError):
        return "Redis has no memory left (maxmemory) and refused the request"
    if isinstance(refusal, NoPermissionError):
        return "the Redis user may not send this request"
    return "Redis refused the request"
