"""The hold of one partition: how long its drain may go on, how it is told to stop, and whether it gets anywhere."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Hold:
    """A worker's right to work on a partition, as the one drain sees it that uses it."""

    def __init__(self, partition: int, *, vanished: bool = False) -> None:
        self.partition = partition
        self.vanished = vanished
        """Whether the holder before this one is gone without a word: what it was working on may have been the cause."""
        self._clock = asyncio.get_running_loop().time
        self._stopped = asyncio.Event()
        self._waiting: asyncio.Timeout | None = None
        self._busy_since: float | None = None

    @property
    def held(self) -> bool:
        """Whether the drain may take another batch."""
        return not self._stopped.is_set()

    def stop(self) -> None:
        """Let the drain stop: at once while it waits, else after its batch."""
        self._stopped.set()
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(self._clock())

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """Mark what is done inside as waiting, which `stop` interrupts."""
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(None if self.held else 0) as self._waiting:
                    yield
        finally:
            self._waiting = None

    async def pause(self, seconds: float) -> None:
        """Wait so long, or until the hold is stopped."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopped.wait()

    def busy(self) -> None:
        """Say that there is work: from now on there must be progress."""
        if self._busy_since is None:
            self._busy_since = self._clock()

    def progressed(self) -> None:
        """Say that PostgreSQL has answered: the hold is of use."""
        if self._busy_since is not None:
            self._busy_since = self._clock()

    def excuse(self, seconds: float) -> None:
        """Say that for so long there could be no progress, because the event loop did not turn."""
        if self._busy_since is not None:
            self._busy_since += seconds

    def idle(self) -> None:
        """Say that there is no work."""
        self._busy_since = None

    @property
    def seconds_without_progress(self) -> float:
        """For how long there has been work and no progress, in seconds."""
        return 0.0 if self._busy_since is None else self._clock() - self._busy_since
