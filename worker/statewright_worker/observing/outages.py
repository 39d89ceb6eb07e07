"""Outages: one log line when a server goes away, one a minute, and one when it is back."""

import threading
import time
from collections.abc import Callable
from typing import Any, Final

REMINDER_SECONDS: Final = 60.0


class Outage:
    """One server, as all of its users in this process see it. They share this object, so that each line is logged once.

    It lasts from the first failure until none of those who failed has any trouble left. It may be used by threads.
    """

    def __init__(self, server: str, log: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._server = server
        self._log = log
        self._clock = clock
        self._guard = threading.Lock()
        self._troubled: set[object] = set()
        self._tries = 0
        self._began = 0.0
        self._told = 0.0

    def failed(self, error: BaseException, by: object = None) -> None:
        """Note a try of `by` that failed. It is logged if it is the first one, or if the last line was a minute ago."""
        with self._guard:
            now, said = self._clock(), _line(error)
            self._tries += 1
            first = not self._troubled
            self._troubled.add(by)
            if first:
                self._began = self._told = now
                self._log.warning(f"{self._server} is away", error=said)
            elif now - self._told >= REMINDER_SECONDS:
                self._told = now
                lasted = round(now - self._began, 1)
                self._log.warning(f"{self._server} is still away", error=said, seconds=lasted, tried=self._tries)

    def over(self, by: object = None) -> None:
        """Note that the server does what `by` asks; the end is logged when the server does so for all of its users."""
        if by not in self._troubled:
            return
        with self._guard:
            self._troubled.discard(by)
            if not self._troubled:
                lasted, tries = round(self._clock() - self._began, 1), self._tries
                self._tries = 0
                self._log.info(f"{self._server} is back", seconds=lasted, tried=tries)


def _line(error: BaseException) -> str:
    """Return an error in one line: its class, and its text if it has one."""
    said = str(error).partition("\n")[0].strip()
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
