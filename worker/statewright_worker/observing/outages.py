"""What is said about a server that is away: when that begins, once in a while, and when it is over."""

import time
from collections.abc import Callable
from typing import Any, Final

REMINDER_SECONDS: Final = 60.0


class Outage:
    """One server, as all of its users in this process see it: they share this object, so that each thing is said once.

    Failures that come while the server is away, whoever has them, are one outage, until somebody says that it is over.
    """

    def __init__(self, server: str, log: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._server = server
        self._log = log
        self._clock = clock
        self._tries = 0
        self._began = 0.0
        self._told = 0.0

    def failed(self, error: BaseException) -> None:
        """Note a try that failed. It is told if it is the first one, or the last line was a minute ago."""
        now = self._clock()
        self._tries += 1
        said = _line(error)
        if self._tries == 1:
            self._began = self._told = now
            self._log.warning(f"{self._server} is away", error=said)
        elif now - self._told >= REMINDER_SECONDS:
            self._told = now
            lasted = round(now - self._began, 1)
            self._log.warning(f"{self._server} is still away", error=said, seconds=lasted, tried=self._tries)

    def over(self) -> None:
        """Note that the server does what it is asked; it is told if it did not before."""
        if self._tries:
            lasted, tries = round(self._clock() - self._began, 1), self._tries
            self._tries = 0
            self._log.info(f"{self._server} is back", seconds=lasted, tried=tries)


def _line(error: BaseException) -> str:
    """Return what an error says in one line, and at least what it is."""
    said = str(error).partition("\n")[0].strip()
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
