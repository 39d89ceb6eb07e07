"""An answer that is expected, and what is heard meanwhile."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Expected(asyncio.Future[bytes]):
    """The future of an answer, and what was heard of the request meanwhile."""

    parked: bytes | None = None
    """The last reply that said that the request is parked."""
    _listeners: tuple[asyncio.Event, ...] = ()
    _waiters: tuple[asyncio.Future[None], ...] = ()

    def hear(self, parked: bytes) -> None:
        """Take a reply that says that the request is parked."""
        self.parked = parked
        for heard in self._listeners:
            heard.set()

    def miss(self, why: Exception) -> None:
        """Raise `why` for whoever waits now, because the answer may not be heard. It may still come for those who wait
        again."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(why)
                # Whoever is cancelled at this moment need not see a warning.
                waiter.exception()

    def wait(self, waiter: "asyncio.Future[None]") -> None:
        """Tell the waiter what `miss` is told, until `leave`."""
        self._waiters = (*self._waiters, waiter)

    def leave(self, waiter: "asyncio.Future[None]") -> None:
        """Tell the waiter no more."""
        self._waiters = tuple(other for other in self._waiters if other is not waiter)

    @contextmanager
    def listening(self) -> Iterator[asyncio.Event]:
        """Yield an event that is set whenever the request is heard of, and now if it was."""
        heard = asyncio.Event()
        if self.parked is not None:
            heard.set()
        self._listeners = (*self._listeners, heard)
        try:
            yield heard
        finally:
            self._listeners = tuple(other for other in self._listeners if other is not heard)
