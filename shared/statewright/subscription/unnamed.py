"""A subscription of one's own: it keeps its position itself, and shares its events with nobody."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Final, Self

from statewright.errors import EraBegan, EventsMissed, NotOpen
from statewright.events import Event
from statewright.subscription.filters import Sieve
from statewright.subscription.positions import Start
from statewright.subscription.stream import EventStreams, FindPosition, starting_at
from statewright.subscription.told import Told, event_of, wanted

BLOCK_MILLISECONDS: Final = 5_000


class Subscription:
    """An endless `async for` over events; within a partition in order, without gaps and without duplicates.

        async with client.subscribe() as events:
            async for event in events:
                ...

    `positions` is the sequence number of the last event handed out per partition, or of a later one that the filter
    does not let through: keep it, also as JSON, and give it to `Client.subscribe(since=...)` to go on there. What Redis
    no longer keeps is read from PostgreSQL, through the engine.

    Iterating raises `EventsMissed` where events no longer exist, or may not be asked for; its subclass `EventsPruned`
    where some went with their runs, which were deleted; and `EraBegan` where events that were told no longer happened:
    each once, and the next `anext` goes on behind it. It raises `RedisUnavailable` when Redis refuses for longer than
    the client's `answer_timeout`. One of them ends an `async for`; begin another.
    """

    def __init__(
        self,
        streams: Callable[[], EventStreams],
        find_position: FindPosition,
        partitions: Sequence[int],
        since: Start,
        sieve: Sieve,
    ) -> None:
        """Take the partitions that are read, and from where; `streams` makes what reads them."""
        self.positions: dict[int, int] = {}
        self._make_streams = streams
        self._find_position = find_position
        self._partitions = partitions
        self._since = since
        self._sieve = sieve
        self._streams: EventStreams | None = None
        self._is_open = False
        self._buffer: deque[tuple[int, Told]] = deque()
        self._filling = asyncio.Lock()

    async def __aenter__(self) -> Self:
        """Take the positions: what is published from now on is told, however late it is read.

        Raises RedisUnavailable when Redis refuses; with `since` a moment, or the beginning, what awaiting an answer
        raises.
        """
        if self._streams is not None:
            raise NotOpen("a subscription is entered once; make another one")
        self._streams = streams = self._make_streams()
        try:
            self.positions = await starting_at(self._since, self._partitions, streams, self._find_position)
        except BaseException:
            await streams.close()
            raise
        for partition, position in self.positions.items():
            # A stream that was just asked for its end cannot end before that.
            asked = self._since is None or (isinstance(self._since, dict) and partition not in self._since)
            streams.place(partition, position, is_new=not asked)
        self._is_open = True
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the connection back."""
        self._is_open = False
        if self._streams is not None:
            await self._streams.close()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        """Return the next event, however long it takes; a dropped connection is taken up again."""
        if self._streams is None or not self._is_open:
            raise NotOpen("a subscription is read within its `async with`")
        while True:
            while not self._buffer:
                async with self._filling:
                    if not self._buffer:
                        await self._fill(self._streams)
            partition, told = self._buffer.popleft()
            self.positions[partition] = told.sequence
            what = told.what
            if isinstance(what, EventsMissed | EraBegan):
                raise what
            return event_of(what)

    async def _fill(self, streams: EventStreams) -> None:
        # Everything that was read was handed out, or is not wanted.
        self.positions.update(streams.places())
        for stretch in await streams.read(BLOCK_MILLISECONDS):
            self._buffer += [(stretch.partition, told) for told in stretch.told if wanted(told, self._sieve)]
