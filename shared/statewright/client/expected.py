"""An answer that is expected, and what is heard meanwhile."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Expected(asyncio.Future[bytes]):
    """The future of an answer, and what was heard of the request meanwhile."""

    parked: bytes | None = None
    """The last reply that said that the request is parked."""
    _listeners: tuple[asyncio.Event, ...] = ()

    def hear(self, parked: bytes) -> None:
        """Take a reply that says that the request is parked."""
        self.parked = parked
        for heard in self._listeners:
            heard.set()

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
