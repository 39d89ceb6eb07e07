"""Reading the partitions' streams of events from positions on, and from PostgreSQL, through the engine, where Redis no
longer has them. What is handed on is in order within a partition, without gaps in silence and without duplicates."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final

from pydantic_core import from_json
from redis.asyncio import ConnectionPool
from redis.exceptions import ResponseError

from statewright.connection import (
    DROPPED_OR_REFUSED,
    EXCHANGE_SECONDS,
    Argument,
    Command,
    HeldConnection,
    accepted,
    entries_of,
    patience_with,
    persist,
    unavailable,
)
from statewright.errors import (
    EraBegan,
    EventsMissed,
    EventsPruned,
    NoAnswer,
    Overloaded,
    StatewrightError,
)
from statewright.events import ERA_BEGAN, AnyEvent, Era, event_from
from statewright.log import Outage
from statewright.protocol.channels import EVENT_BODY, Channels, sequence_of
from statewright.protocol.replies import EventsReply
from statewright.subscription.positions import BEGINNING, Start
from statewright.subscription.told import Stretch, Told

EVENTS_PER_READ: Final = 500
BYTES_PER_READ: Final = 16 * 1024 * 1024
"""How many events of a partition are read at once: fewer, where they are so large that they would take more bytes."""
LOOK_SECONDS: Final = 2.0
"""How long to wait for the engine, which may have events that are not in the stream."""
QUIET_SECONDS: Final = 5.0
"""A stream that tells nothing for so long is looked at: it may have been emptied."""
_ERA_BEGAN: Final = ERA_BEGAN.encode()
PAUSE_SECONDS: Final = 0.2
"""Between a refusal that passes and the next try."""

FindPosition = Callable[[int, datetime | None], Awaitable[int]]
"""Asks the engine for the position before a partition's first change that is not older than a moment, or before its
first one."""
ReadEvents = Callable[[int, int, float | None], Awaitable[EventsReply]]
"""Asks the engine for the events of a partition after a position, and waits so many seconds for the answer."""


class _Place:
    """Where reading stands in one partition."""

    __slots__ = (
        "after",
        "asked",
        "behind",
        "checked",
        "heard",
        "is_new",
        "partition",
        "pruned_up_to",
        "told",
        "told_of_pruning",
        "unsure",
        "up_to",
    )

    def __init__(self, partition: int, after: int, now: float, *, is_new: bool) -> None:
        self.partition = partition
        self.after = after
        """Where the stretch that is handed on next begins."""
        self.up_to = after
        """The last sequence number that was read."""
        self.told: list[Told] = []
        """What was read, and not handed on yet."""
        self.is_new = is_new
        """Whether the stream may end before this place."""
        self.unsure = False
        """Whether PostgreSQL may have events that are not in the stream."""
        self.behind: int | None = None
        """Up to which number it is read from PostgreSQL; -1 means up to the last one, None that the stream is read."""
        self.asked = 0
        """Up to where PostgreSQL has been asked."""
        self.heard = now
        """When the stream has told something, by the loop's clock."""
        self.checked: tuple[int, int] | None = None
        """The end of the stream that was found before this place, and the place, if the engine was asked then."""
        self.pruned_up_to = 0
        """Up to which number events may have gone with their runs."""
        self.told_of_pruning = 0
        """Up to which number the subscriber was told that they may."""

    def take(self, sequence: int, what: bytes | AnyEvent) -> None:
        if sequence > self.up_to:
            self.told.append(Told(sequence, EraBegan(what) if isinstance(what, Era) else what))
            self.up_to = sequence

    def miss(self, last: int) -> None:
        first, pruned = self.up_to + 1, self.pruned_up_to
        if self.told_of_pruning < first <= pruned:
            # Told once for all that may have gone: what is left comes in between.
            self.told.append(Told(min(last, pruned), EventsPruned(self.partition, first, pruned)))
            self.told_of_pruning = pruned
        if last > pruned:
            self.told.append(Told(last, EventsMissed(self.partition, max(first, pruned + 1), last)))
        self.up_to = last

    def went_back(self, up_to: int) -> None:
        """Go on where PostgreSQL ends: later events no longer exist, and new ones have their numbers."""
        self.told.append(Told(up_to, EventsMissed(self.partition, up_to + 1, self.up_to)))
        self.up_to = up_to

    def join_the_stream(self, missed: int) -> None:
        """Read the stream from now on; what PostgreSQL did not have up to `missed` is lost."""
        self.behind = None
        if missed > self.up_to:
            self.miss(missed)

    def take_page(self, page: EventsReply) -> None:
        self.pruned_up_to = page.pruned_up_to
        for one in page.events:
            missed = _missing_before(one.sequence, one)
            if missed > self.up_to:
                self.miss(missed)
            self.take(one.sequence, one)
        self.asked = page.up_to


class EventStreams:
    """The streams of some partitions, read together from a place in each."""

    def __init__(
        self, pool: ConnectionPool, channels: Channels, read_events: ReadEvents, patience: float, outage: Outage
    ) -> None:
        """Read nothing yet. `patience` is for how many seconds a refusal of Redis' may take to pass."""
        self._redis = HeldConnection(pool)
        self._outage = outage
        self._channels = channels
        self._read_events = read_events
        self._patience = patience
        self._clock = asyncio.get_running_loop().time
        self._places: dict[int, _Place] = {}
        self._count = EVENTS_PER_READ
        self._look_at = self._clock() + QUIET_SECONDS

    def place(self, partition: int, after: int, *, is_new: bool = True) -> None:
        """Read the partition behind this number from now on; what was read elsewhere in it is forgotten.

        `is_new` says whether its stream may end before that.
        """
        self._places[partition] = _Place(partition, after, self._clock(), is_new=is_new)

    def leave(self, partition: int) -> None:
        """Read the partition no more."""
        self._places.pop(partition, None)

    def places(self) -> dict[int, int]:
        """Return up to which number each partition was handed on."""
        return {partition: place.after for partition, place in self._places.items()}

    async def newest(self, partitions: Sequence[int]) -> dict[int, int]:
        """Return the number that each partition's stream ends with, if it has one. Raises as `read` does."""
        return await self._ends(partitions, lambda stream: ("XREVRANGE", stream, "+", "-", "COUNT", 1), list)

    async def oldest(self, partitions: Sequence[int]) -> dict[int, int]:
        """Return the number that each partition's stream begins with, if it has one. Raises as `read` does."""
        # Not XRANGE, because a subscriber may only have the right to XREAD and XREVRANGE.
        return await self._ends(partitions, lambda stream: ("XREAD", "COUNT", 1, "STREAMS", stream, "0-0"), entries_of)

    async def _ends(
        self, partitions: Sequence[int], asking: Callable[[str], Command], entries_in: Callable[[Any], list[Any]]
    ) -> dict[int, int]:
        """Return the sequence number that is asked for of each partition whose stream has one."""
        if not partitions:
            return {}
        answers = await self._exchange(*(asking(self._channels.events(partition)) for partition in partitions))
        entries = {p: entries_in(answer) for p, answer in zip(partitions, answers, strict=True) if answer}
        return {partition: sequence_of(first[0]) for partition, [first] in entries.items()}

    async def read(self, milliseconds: int) -> list[Stretch]:
        """Return what comes next in each partition, and wait so long for it; a dropped connection is taken up again.

        Raises RedisUnavailable when Redis refuses for longer than the patience, and NoAnswer or Overloaded when the
        engine, which has events that Redis no longer has, does not answer: then nothing is lost, and reading goes on.
        """
        places = list(self._places.values())
        await self._look_at_ends(places)
        await self._look_beyond_the_streams([place for place in places if place.unsure])
        for place in places:
            if place.behind is not None:
                await self._read_back(place)
        await self._read_on(places, milliseconds)
        return [self._handed_on(place) for place in places if self._has_news_of(place)]

    async def close(self) -> None:
        """Give the connection back."""
        self._outage.forget(self)
        await self._redis.close()

    def _has_news_of(self, place: _Place) -> bool:
        # Another place may have been chosen meanwhile.
        return self._places.get(place.partition) is place and (bool(place.told) or place.up_to != place.after)

    @staticmethod
    def _handed_on(place: _Place) -> Stretch:
        stretch = Stretch(place.partition, place.after, place.told, place.up_to)
        place.after, place.told = place.up_to, []
        return stretch

    async def _look_at_ends(self, places: Iterable[_Place]) -> None:
        """See which streams end before the place where they are read: PostgreSQL may have more, or less."""
        new = [place for place in places if place.is_new]
        now, quiet = self._clock(), []
        if now >= self._look_at:
            self._look_at = now + QUIET_SECONDS
            quiet = [place for place in places if not place.is_new and place.heard + QUIET_SECONDS <= now]
        looked_at = [*new, *quiet]
        newest = await self.newest([place.partition for place in looked_at])
        for place in looked_at:
            end = newest.get(place.partition, -1 if place.is_new else 0)
            found = (end, place.up_to)
            if end < place.up_to and place.behind is None and place.checked != found:
                place.unsure, place.checked = True, found
            place.is_new = False

    async def _look_beyond_the_streams(self, places: Sequence[_Place]) -> None:
        pages = await asyncio.gather(*(self._page(place.partition, place.up_to, LOOK_SECONDS) for place in places))
        for place, page in zip(places, pages, strict=True):
            if page is None:
                # Perhaps somebody can be asked later.
                place.checked = None
            elif page.up_to < place.up_to:
                place.went_back(page.up_to)
            elif page.up_to > place.up_to:
                place.behind = -1
                place.take_page(page)
            place.unsure = False

    async def _read_back(self, place: _Place) -> None:
        """Take a page of what the stream no longer has."""
        after, up_to = max(place.up_to, place.asked), place.behind
        page = await self._page(place.partition, after, None)
        if page is None or page.up_to <= after:
            place.join_the_stream(place.asked if up_to is None or up_to < 0 else up_to)
            return
        place.take_page(page)
        if up_to is not None and 0 <= up_to <= page.up_to:
            place.join_the_stream(up_to)

    async def _read_on(self, places: Sequence[_Place], milliseconds: int) -> None:
        """Take the next events from the streams, and wait for one when there is nothing to hand on."""
        reads = {self._channels.events(place.partition): place for place in places if place.behind is None}
        if not reads:
            return
        has_news = any(place.told or place.behind is not None for place in places)
        waits: tuple[Argument, ...] = () if has_news else ("BLOCK", max(milliseconds, 1))
        after = [f"{place.up_to}-0" for place in reads.values()]
        command = ("XREAD", "COUNT", self._count, *waits, "STREAMS", *reads, *after)
        [read] = await self._exchange(command, seconds=milliseconds / 1_000 + EXCHANGE_SECONDS)
        largest = 1
        for stream, entries in read or ():
            place = reads[stream.decode()]
            place.heard = self._clock()
            largest = max(largest, self._take_entries(place, entries))
        self._count = min(EVENTS_PER_READ, max(BYTES_PER_READ // largest, 1))

    @staticmethod
    def _take_entries(place: _Place, entries: Iterable[Any]) -> int:
        """Take what a stream tells; return how many bytes the largest entry has."""
        largest = 1
        for entry_id, flat in entries:
            sequence, what = sequence_of(entry_id), _decoded(flat)
            if isinstance(what, bytes):
                largest = max(largest, len(what))
            missing = _missing_before(sequence, what)
            if missing > place.up_to:
                # PostgreSQL may have the missing events. The stream is read again behind them.
                place.behind = missing
                break
            place.take(sequence, what)
        return largest

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

        Raises RedisUnavailable when Redis refuses for good, which is NotPermitted when the user lacks a right.
        """
        attempt = partial(self._attempt, commands, seconds)
        refused_at: float | None = None
        while True:
            try:
                return await persist(attempt)
            except ResponseError as refusal:
                refused_at = refused_at or self._clock()
                if self._clock() - refused_at >= patience_with(refusal, self._patience):
                    raise unavailable("Redis refuses to tell events", refusal) from refusal
            await asyncio.sleep(PAUSE_SECONDS)

    async def _attempt(self, commands: Sequence[Command], seconds: float) -> list[Any]:
        try:
            answers = accepted(await self._redis.exchange(*commands, seconds=seconds))
        except DROPPED_OR_REFUSED as error:
            self._outage.failed(error, self)
            raise
        self._outage.over(self)
        return answers


async def starting_at(
    since: Start, partitions: Sequence[int], streams: EventStreams, find_position: FindPosition
) -> dict[int, int]:
    """Return the positions to begin with: behind everything published, or where `since` says.

    A partition that positions leave out begins with the oldest event that its stream keeps. Raises what reading the
    streams and asking the engine raise.
    """
    if since is None:
        newest = await streams.newest(partitions)
        return {partition: newest.get(partition, 0) for partition in partitions}
    if isinstance(since, dict):
        oldest = await streams.oldest([partition for partition in partitions if partition not in since])
        found: dict[int, Any] = {partition: sequence - 1 for partition, sequence in oldest.items()}
        return {partition: since.get(partition, found.get(partition, 0)) for partition in partitions}
    moment = None if since == BEGINNING else since
    asked = [find_position(partition, moment) for partition in partitions]
    return dict(zip(partitions, await asyncio.gather(*asked), strict=True))


def _decoded(flat: Sequence[bytes]) -> bytes | AnyEvent:
    """Return the event in the fields of an entry: a change as JSON, or the era that begins there."""
    fields: Mapping[bytes, bytes] = dict(zip(flat[::2], flat[1::2], strict=True))
    body = fields[EVENT_BODY]
    # A type that has no escape stands in JSON just as it is.
    may_be_an_era = _ERA_BEGAN in body or (b"\\" in body and from_json(body)["type"] == ERA_BEGAN)
    return event_from(body) if may_be_an_era else body


def _missing_before(sequence: int, what: bytes | AnyEvent) -> int:
    """Return the last number that must have come before; numbers that an era has undone need not have come."""
    return min(sequence - 1, what.data.went_back_to) if isinstance(what, Era) else sequence - 1
