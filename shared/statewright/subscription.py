"""Subscribing to events: every partition's stream, each in its own order, from a position that can be kept."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from redis.asyncio import ConnectionPool
from redis.exceptions import ResponseError

from statewright.connection import (
    EXCHANGE_SECONDS,
    Argument,
    Command,
    HeldConnection,
    accepted,
    entries_of,
    passing,
    persist,
)
from statewright.errors import (
    EraBegan,
    EventsMissed,
    EventsPruned,
    InvalidRequest,
    NoAnswer,
    Overloaded,
    RedisUnavailable,
    StatewrightError,
)
from statewright.events import AnyEvent, Era, Event, event_from
from statewright.protocol.channels import EVENT_BODY, Channels, sequence_of
from statewright.protocol.replies import EventsReply
from statewright.values import MAX_POSITION

BLOCK_MILLISECONDS: Final = 5_000
READ_SECONDS: Final = BLOCK_MILLISECONDS / 1_000 + EXCHANGE_SECONDS
EVENTS_PER_READ: Final = 500
LOOK_SECONDS: Final = 2.0
"""How long to wait for the engine, which may have events that are not in the stream."""
PAUSE_SECONDS: Final = 0.2
"""Between a refusal that passes and the next try."""

ReadEvents = Callable[[int, int, float | None], Awaitable[EventsReply]]
"""Asks the engine for the events of a partition after a position, and waits so many seconds for the answer."""


class Subscription:
    """An endless `async for` over events; within a partition in order, without gaps and without duplicates.

    `positions` is the sequence number of the last event handed out per partition: keep it, also as JSON, and give it to
    `Client.subscribe(since=...)` to go on there. What Redis no longer keeps is read from PostgreSQL, through
    the engine.

    Iterating raises `EventsMissed` where events no longer exist, or may not be asked for; its subclass `EventsPruned`
    where some went with their runs, which were deleted; and `EraBegan` where events that were told no longer happened:
    each once, and the next `anext` goes on behind it. It raises `RedisUnavailable` when Redis refuses for longer than
    the client's `answer_timeout`. One of them ends an `async for`; begin another.
    """

    def __init__(self, pool: ConnectionPool, channels: Channels, read_events: ReadEvents, patience: float) -> None:
        """Make a subscription to nothing yet. `patience` is for how many seconds a refusal may take to pass."""
        self.positions: dict[int, int] = {}
        self._redis = HeldConnection(pool)
        self._channels = channels
        self._read_events = read_events
        self._patience = patience
        self._buffer: deque[Event | EventsMissed | EraBegan] = deque()
        self._filling = asyncio.Lock()
        self._told: dict[int, int] = {}
        """Per partition, the last sequence number in the buffer or handed out."""
        self._unsure: list[int] = []
        """Partitions of which PostgreSQL may have events that are not in their streams."""
        self._behind: dict[int, int | None] = {}
        """Partitions that are read from PostgreSQL, and up to which number; None means up to the last one."""
        self._asked: dict[int, int] = {}
        """Up to where PostgreSQL has been asked."""
        self._pruned: dict[int, int] = {}
        """Up to where events of each partition may have gone with their runs."""
        self._told_as_pruned: dict[int, int] = {}
        """Up to where the subscriber was told so."""

    async def begin(self, partitions: Sequence[int], since: Mapping[int, int] | None) -> None:
        """Begin with what is published from now on, or after the positions `since`, where the subscriber was."""
        newest = await self._ends(partitions, lambda stream: ("XREVRANGE", stream, "+", "-", "COUNT", 1), list)
        if since is not None:
            self._unsure = [p for p in partitions if p in since and newest.get(p, -1) < since[p]]
            left_out = [partition for partition in partitions if partition not in since]
            # Not XRANGE, because a subscriber may only have the right to XREAD and XREVRANGE.
            oldest = await self._ends(
                left_out, lambda stream: ("XREAD", "COUNT", 1, "STREAMS", stream, "0-0"), entries_of
            )
            newest = {**{partition: sequence - 1 for partition, sequence in oldest.items()}, **since}
        self._told = {partition: newest.get(partition, 0) for partition in partitions}
        self.positions = dict(self._told)

    async def _ends(
        self, partitions: Sequence[int], asking: Callable[[str], Command], entries_in: Callable[[Any], list[Any]]
    ) -> dict[int, int]:
        """Return the sequence number that is asked for of each partition whose stream has one."""
        if not partitions:
            return {}
        answers = await self._exchange(*(asking(self._channels.events(partition)) for partition in partitions))
        entries = {p: entries_in(answer) for p, answer in zip(partitions, answers, strict=True) if answer}
        return {partition: sequence_of(first[0]) for partition, [first] in entries.items()}

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        """Return the next event, however long it takes; a dropped connection is taken up again."""
        while not self._buffer:
            async with self._filling:
                if not self._buffer:
                    await self._fill()
        told = self._buffer.popleft()
        if isinstance(told, EventsPruned):
            self.positions[told.partition] = told.goes_on_behind
            raise told
        if isinstance(told, EventsMissed):
            went_back = told.last <= self.positions[told.partition]
            self.positions[told.partition] = told.first - 1 if went_back else told.last
            raise told
        self.positions[told.partition] = told.sequence
        if isinstance(told, EraBegan):
            raise told
        return told

    async def close(self) -> None:
        """Give the connection back; a client that is closed does so for its subscriptions."""
        await self._redis.close()

    async def _fill(self) -> None:
        if self._unsure:
            await self._look_beyond_the_streams()
        for partition, up_to in list(self._behind.items()):
            await self._read_back(partition, up_to)
        await self._read_on()

    async def _look_beyond_the_streams(self) -> None:
        pages = await asyncio.gather(*(self._page(p, self._told[p], LOOK_SECONDS) for p in self._unsure))
        for partition, page in zip(self._unsure, pages, strict=True):
            if page is not None and page.up_to < self._told[partition]:
                self._went_back(partition, page.up_to)
            elif page is not None and page.up_to > self._told[partition]:
                self._behind[partition] = None
                self._take_page(partition, page)
        self._unsure = []

    async def _read_back(self, partition: int, up_to: int | None) -> None:
        """Take a page of what the stream no longer has."""
        after = max(self._told[partition], self._asked.get(partition, 0))
        page = await self._page(partition, after, None)
        if page is None or page.up_to <= after:
            self._join_the_stream(partition, self._asked.get(partition, 0) if up_to is None else up_to)
            return
        self._take_page(partition, page)
        if up_to is not None and page.up_to >= up_to:
            self._join_the_stream(partition, up_to)

    def _take_page(self, partition: int, page: EventsReply) -> None:
        self._pruned[partition] = page.pruned_up_to
        for told in page.events:
            missed = _missing_before(told)
            if missed > self._told[partition]:
                self._miss(partition, missed)
            self._take(partition, told)
        self._asked[partition] = page.up_to

    def _went_back(self, partition: int, up_to: int) -> None:
        """Go on where PostgreSQL ends: later events no longer exist, and new ones have their numbers."""
        self._buffer.append(EventsMissed(partition, up_to + 1, self._told[partition]))
        self._told[partition] = up_to

    def _join_the_stream(self, partition: int, missed: int) -> None:
        """Read the stream from now on; what PostgreSQL did not have up to `missed` is lost."""
        del self._behind[partition]
        if missed > self._told[partition]:
            self._miss(partition, missed)

    async def _read_on(self) -> None:
        """Take the next events from the streams, and wait for one when the buffer is empty."""
        reads = {self._channels.events(p): p for p in self._told if p not in self._behind}
        if not reads:
            return
        waits: tuple[Argument, ...] = () if self._buffer or self._behind else ("BLOCK", BLOCK_MILLISECONDS)
        positions = [f"{self._told[partition]}-0" for partition in reads.values()]
        [read] = await self._exchange(
            ("XREAD", "COUNT", EVENTS_PER_READ, *waits, "STREAMS", *reads, *positions), seconds=READ_SECONDS
        )
        for stream, entries in read or ():
            self._take_entries(reads[stream.decode()], entries)

    def _take_entries(self, partition: int, entries: Iterable[Any]) -> None:
        for _, flat in entries:
            told = event_from(dict(zip(flat[::2], flat[1::2], strict=True))[EVENT_BODY])
            missing = _missing_before(told)
            if missing > self._told[partition]:
                # PostgreSQL may have the missing events. The stream is read again behind them.
                self._behind[partition] = missing
                return
            self._take(partition, told)

    def _take(self, partition: int, told: AnyEvent) -> None:
        if told.sequence > self._told[partition]:
            self._buffer.append(EraBegan(told) if isinstance(told, Era) else told)
            self._told[partition] = told.sequence

    def _miss(self, partition: int, last: int) -> None:
        first, pruned = self._told[partition] + 1, self._pruned.get(partition, 0)
        if first <= pruned:
            self._tell_of_pruning(partition, first, min(last, pruned))
        if last > pruned:
            self._buffer.append(EventsMissed(partition, max(first, pruned + 1), last))
        self._told[partition] = last

    def _tell_of_pruning(self, partition: int, first: int, last: int) -> None:
        """Tell once of all that may have gone up to the mark: what is left comes in between."""
        if first > self._told_as_pruned.get(partition, 0):
            self._told_as_pruned[partition] = pruned = self._pruned[partition]
            self._buffer.append(EventsPruned(partition, first, pruned, last))

    async def _page(self, partition: int, after: int, seconds: float | None) -> EventsReply | None:
        """Return what the engine has after a position, None when it may not be asked or refuses.

        Raises NoAnswer or Overloaded when it does not say in `seconds`, by default the client's limit.
        """
        try:
            return await self._read_events(partition, after, seconds)
        except (NoAnswer, Overloaded):
            # The engine may have the events all the same: the position stays, and iterating goes on from there.
            if seconds is None:
                raise
            return None
        except StatewrightError:
            return None

    async def _exchange(self, *commands: Command, seconds: float = EXCHANGE_SECONDS) -> list[Any]:
        """Return the answers of Redis, whatever happens to the connection.

        Raises RedisUnavailable when Redis refuses for good.
        """
        exchange = partial(self._redis.exchange, *commands, seconds=seconds)
        clock = asyncio.get_running_loop().time
        refused_at: float | None = None
        while True:
            try:
                return accepted(await persist(exchange))
            except ResponseError as refusal:
                refused_at = refused_at or clock()
                if not passing(refusal) or clock() - refused_at > self._patience:
                    raise RedisUnavailable(f"Redis refuses to tell events: {refusal}") from refusal
            await asyncio.sleep(PAUSE_SECONDS)


def positions_from(since: Mapping[Any, Any], partitions: int) -> dict[int, int]:
    """Return positions as a subscriber has kept them, perhaps as JSON, whose keys are texts.

    Raises InvalidRequest for what names no partition or no position.
    """
    if not isinstance(since, Mapping):
        raise InvalidRequest("since", f"must be a position per partition, as in {{0: 17}}, not {since!r:.100}")
    positions: dict[int, int] = {}
    for named, position in since.items():
        partition = _partition_from(named, partitions)
        if partition in positions:
            raise InvalidRequest(f"since.{partition}", "names this partition twice, as a number and as a text")
        if type(position) is not int or not 0 <= position <= MAX_POSITION:
            raise InvalidRequest(f"since.{partition}", f"must be the number of an event, or 0, not {position!r:.100}")
        positions[partition] = position
    return positions


def _partition_from(named: object, partitions: int) -> int:
    if isinstance(named, str) and named.isascii() and named.isdecimal() and str(int(named[:10])) == named:
        named = int(named)
    if type(named) is not int or not 0 <= named < partitions:
        problem = f"names no partition: this deployment has {partitions}, from 0 to {partitions - 1}"
        raise InvalidRequest(f"since.{named!s:.100}", problem)
    return named


def _missing_before(told: AnyEvent) -> int:
    """Return the last number that must have come before; numbers that an era has undone need not have come."""
    return min(told.sequence - 1, told.data.went_back_to) if isinstance(told, Era) else told.sequence - 1
