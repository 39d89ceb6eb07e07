"""Going through what comes, without an event loop: a plain iterator that another thread, or a timeout, can end."""

import asyncio
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Generic, Protocol, Self, TypeVar, cast

from statewright.client.requests import seconds_of
from statewright.errors import NotOpen
from statewright.sync.background import BackgroundLoop
from statewright.sync.blocks import Hosted
from statewright.sync.crossing import CrossingClient
from statewright.values import Duration

Item = TypeVar("Item")


class Iterated(Protocol):
    """What is gone through within its `async with`."""

    async def __aenter__(self) -> Any: ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None: ...

    async def __anext__(self) -> Any: ...


Source = TypeVar("Source", bound=Iterated)

_NOTHING: Final = object()
"""What came when nothing came in time."""
_THE_END: Final = object()
"""What came when it was closed meanwhile."""


class Iteration(Generic[Source, Item]):
    """What comes of a source: within its `with`, until it is closed, which any thread may do."""

    def __init__(self, owner: object, client: CrossingClient, manager: Source) -> None:
        """Take what is entered, and gone through, in the client's loop; the owner lives at least as long."""
        self._owner = owner
        self._client = client
        self._manager = manager
        self._block = Hosted(client.background, manager)
        self._has_begun = False
        self._waiting: set[asyncio.Task[object]] = set()
        self._is_closed = False

    def __enter__(self) -> Self:
        """Begin. Raises what beginning raises."""
        self._block.enter()
        self._has_begun = True
        self._client.end_with_it(self)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End."""
        if self._client.background.is_of_this_process:
            self._close(exc)

    def close(self) -> None:
        """End it, whichever thread waits in it for something: its iteration ends, as if all had come."""
        if self._has_begun:
            self._close(None)

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        """Return what comes next, however long it takes."""
        came = self._next(None)
        if came is _THE_END:
            raise StopIteration
        return came  # type: ignore[return-value]  # the source's

    def next(self, timeout: Duration | None = None) -> Item | None:
        """Return what comes next; None when nothing comes within `timeout` (seconds or a duration).

        Raises NotOpen when it is closed, and what going through it raises.
        """
        came = self._next(None if timeout is None else seconds_of(timeout))
        if came is _THE_END:
            raise NotOpen("it was closed: nothing more comes")
        return None if came is _NOTHING else came  # type: ignore[return-value]  # the source's

    def _close(self, error: BaseException | None) -> None:
        self._is_closed = True
        self._client.background.soon(self.end_here)
        self._block.leave(error)

    def _next(self, seconds: float | None) -> object:
        background = self._begun()
        if self._is_closed:
            return _THE_END
        try:
            return background.run(self._next_here, seconds)
        except NotOpen:
            if self._is_closed or background.has_ended:
                return _THE_END
            raise

    def _begun(self) -> BackgroundLoop:
        """Return the loop in which it is gone through. Raises NotOpen before it has begun."""
        if not self._has_begun:
            raise NotOpen("it has not begun yet: use it within its `with`")
        return self._client.background

    async def _next_here(self, seconds: float | None) -> object:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # a coroutine that awaits runs in a task
        if self._is_closed:
            return _THE_END
        self._waiting.add(task)
        try:
            async with asyncio.timeout(seconds):
                return cast("object", await anext(self._manager))
        except TimeoutError:
            return _NOTHING
        finally:
            self._waiting.discard(task)

    def end_here(self) -> None:
        """End the iteration of whoever waits; only the loop calls this."""
        self._is_closed = True
        for task in self._waiting:
            task.cancel()
