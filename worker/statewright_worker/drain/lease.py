"""The lease of one partition: for how long a drain may go on, and how it is told to stop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Lease:
    """Held by one drain; whoever manages leases tells it to stop, and the drain stops after its batch."""

    def __init__(self, partition: int, hold_seconds: float) -> None:
        self.partition = partition
        self._ends = asyncio.get_running_loop().time() + hold_seconds
        self._stopped = False
        self._waiting: asyncio.Timeout | None = None

    @property
    def held(self) -> bool:
        """Whether the drain may take another batch."""
        return not self._stopped and self.seconds_left > 0

    @property
    def seconds_left(self) -> float:
        """Seconds until the partition is handed on."""
        return self._ends - asyncio.get_running_loop().time()

    def stop(self) -> None:
        """Let the drain stop: at once while it waits, else after its batch."""
        self._stopped = True
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(asyncio.get_running_loop().time())

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """Mark what is done inside as waiting, which `stop` interrupts."""
        with suppress(TimeoutError):
            async with asyncio.timeout(0 if self._stopped else self.seconds_left) as self._waiting:
                yield
        self._waiting = None
