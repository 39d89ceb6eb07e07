"""Outages: a line when a server goes away, a line when it is back, and one a minute between."""

import time
from collections.abc import Callable
from typing import Any, Final

REMINDER_SECONDS: Final = 60.0


class Outage:
    """What is said while a server is away; everybody in the process who meets with it shares one."""

    def __init__(self, server: str, logger: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._server = server
        self._log = logger
        self._clock = clock
        self._began: float | None = None
        self._said = 0.0
        self._failures = 0

    def failed(self, error: BaseException) -> None:
        """Take note that the server was asked in vain."""
        now = self._clock()
        self._failures += 1
        if self._began is None:
            self._began = self._said = now
            self._log.warning(f"{self._server} is away", error=str(error))
        elif now - self._said >= REMINDER_SECONDS:
            self._said = now
            self._log.warning(
                f"{self._server} is still away",
                error=str(error),
                seconds=round(now - self._began),
                tried=self._failures,
            )

    def over(self) -> None:
        """Take note that the server has answered."""
        if self._began is not None:
            seconds, self._began, self._failures = round(self._clock() - self._began, 1), None, 0
            self._log.info(f"{self._server} is back", seconds=seconds)
