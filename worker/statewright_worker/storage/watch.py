"""The watch on a connection: an answer of PostgreSQL that does not come in time counts as lost."""

import asyncio
from collections.abc import Callable
from math import inf

from statewright_worker.storage.statements import STATEMENT_SECONDS


class Watch:
    """Cuts a connection on which an answer is overdue.

    One timer serves many statements. The driver's own limit makes a timer for each statement, and that alone takes a
    twentieth of what a small batch costs.
    """

    def __init__(self, cut: Callable[[], None], seconds: float = STATEMENT_SECONDS) -> None:
        """Watch in the event loop that runs; `cut` drops the connection, which fails the statement that waits."""
        self._cut = cut
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._due = inf
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Expect an answer within the time, from now on."""
        self._due = self._loop.time() + self._seconds
        if self._timer is None:
            self._timer = self._loop.call_at(self._due, self._look)

    def end(self) -> None:
        """Expect nothing."""
        self._due = inf

    def close(self) -> None:
        """Stop looking."""
        self.end()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._due == inf:
            return
        if self._due <= self._loop.time():
            self._cut()
        else:
            self._timer = self._loop.call_at(self._due, self._look)
