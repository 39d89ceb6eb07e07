"""Going through what comes, without an event loop: a plain iterator that another thread, or a timeout, can end."""

import asyncio
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Generic, Protocol, Self, TypeVar, cast

from statewright.client.requests import seconds_of
from statewright.errors import NotOpen
from statewright.sync.background import BackgroundLoop
from statewright.sync.crossing import CrossingClient
from statewright.values import Duration

Item = TypeVar("Item")
Item_co = TypeVar("Item_co", covariant=True)

_NOTHING: Final = object()
"""What came when nothing came in time."""
_THE_END: Final = object()
"""What came when it was closed meanwhile."""


class Source(Protocol[Item_co]):
    """What an event loop goes through: `async for` within `async with`."""

    async def __aenter__(self) -> object: ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    async def __anext__(self) -> Item_co: ...


AnySource = TypeVar("AnySource", bound=Source[object])


class Going(Generic[AnySource]):
    """A source in the loop, from its begin to its end, which whoever waits for something of it hears of."""

    def __init__(self, client: CrossingClient, source: AnySource) -> None:
        """Take a source of the client, with which it ends."""
        self.source = source
        self.is_closed = False
        self._client = client
        self._has_begun = False
        self._waiting: set[asyncio.Task[object]] = set()
        self._leaving: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Enter the source. Raises what that raises, and NotOpen where it was closed meanwhile."""
        await self.source.__aenter__()
        self._has_begun = True
        self._client.ends.add(self)
        if self.is_closed:
            await self.end()
            raise NotOpen("it was closed before it had begun; make another one")

    async def next(self, seconds: float | None) -> object:
        """Return what comes next, `_NOTHING` after so many seconds, or `_THE_END` when it is closed."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # a coroutine that awaits runs in a task
        if self.is_closed:
            return _THE_END
        self._waiting.add(task)
        try:
            async with asyncio.timeout(seconds):
                return await self.source.__anext__()
        except TimeoutError:
            return _NOTHING
        finally:
            self._waiting.discard(task)

    async def end(self) -> None:
        """End the iteration of all who wait, and leave the source; to end it once more waits for the same."""
        self.is_closed = True
        for task in self._waiting:
            task.cancel()
        if self._has_begun:
            if self._leaving is None:
                self._leaving = asyncio.create_task(self.source.__aexit__(None, None, None))
            try:
                # Who is interrupted waits no longer, and it is left all the same.
                await asyncio.shield(self._leaving)
            finally:
                self._client.ends.discard(self)


class Iteration(Generic[AnySource, Item]):
    """What comes of a source: within its `with`, until it is closed, which any thread may do."""

    def __init__(self, owner: object, client: CrossingClient, source: AnySource) -> None:
        """Take a source of the client; the owner lives at least as long."""
        self._owner = owner
        self._background: BackgroundLoop = client.background
        self._source = source
        self._going = Going(client, source)
        self._has_begun = False

    def __enter__(self) -> Self:
        """Begin. Raises what beginning raises, and NotOpen when it has begun already."""
        try:
            self._background.run(self._going.begin)
        except Exception:
            raise
        except BaseException:
            # Interrupted: it may have begun, and its block will not.
            self._background.begin(self._going.end)
            raise
        self._has_begun = True
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End."""
        self.close()

    def close(self) -> None:
        """End it, whichever thread waits in it for something: its iteration ends, as if all had come.

        To close it once more does nothing; nor does it in a process that was forked off, because it is the parent's.
        """
        background = self._background
        if not background.is_of_this_process:
            return
        try:
            background.run(self._going.end)
        except NotOpen:
            # Where the client was closed, it has ended.
            if not background.is_ending:
                raise

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        """Return what comes next, however long it takes."""
        came = self._next(None)
        if came is _THE_END:
            raise StopIteration
        return cast("Item", came)

    def next(self, timeout: Duration | None = None) -> Item | None:
        """Return what comes next; None when nothing comes within `timeout` (seconds or a duration).

        Raises NotOpen when it is closed, and what going through it raises.
        """
        came = self._next(None if timeout is None else seconds_of(timeout))
        if came is _THE_END:
            raise NotOpen("it was closed: nothing more comes")
        return None if came is _NOTHING else cast("Item", came)

    def _next(self, seconds: float | None) -> object:
        background = self._begun()
        if self._has_ended():
            return _THE_END
        try:
            return background.run(self._going.next, seconds)
        except NotOpen:
            if self._has_ended():
                return _THE_END
            raise

    def _begun(self) -> BackgroundLoop:
        """Return the loop in which it is gone through. Raises NotOpen before it has begun."""
        if not self._has_begun:
            raise NotOpen("it has not begun yet: use it within its `with`")
        return self._background

    def _has_ended(self) -> bool:
        return self._background.is_of_this_process and (self._going.is_closed or self._background.is_ending)
