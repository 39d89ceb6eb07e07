"""The hold of one partition: whether its drain may go on, when it must stop, and whether it makes progress."""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Any


class Hold:
    """A worker's right to work on a partition, as the partition's drain sees it."""

    def __init__(self, partition: int, *, vanished: bool = False) -> None:
        self.partition = partition
        self.vanished = vanished
        """Whether the previous holder vanished: the requests it was working on may have ended it."""
        self._clock = asyncio.get_running_loop().time
        self._stopped = asyncio.Event()
        self._waiting: _Waiting | None = None
        self._busy_since: float | None = None

    @property
    def held(self) -> bool:
        """Whether the drain may take another batch."""
        return not self._stopped.is_set()

    def stop(self) -> None:
        """Let the drain stop: at once if it waits, else after its batch."""
        self._stopped.set()
        if self._waiting is not None:
            self._waiting.interrupt()

    def waiting(self) -> "_Waiting":
        """Return a context manager; `stop` interrupts what waits inside it, and the rest of the block is skipped."""
        return _Waiting(self)

    async def pause(self, seconds: float) -> None:
        """Wait for `seconds`, or until the hold is stopped."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopped.wait()

    def busy(self) -> None:
        """Say that there is work: from now on there must be progress."""
        if self._busy_since is None:
            self._busy_since = self._clock()

    def progressed(self) -> None:
        """Say that PostgreSQL has answered, which counts as progress."""
        if self._busy_since is not None:
            self._busy_since = self._clock()

    def excuse(self, seconds: float) -> None:
        """Say that `seconds` do not count, because the event loop did not turn meanwhile."""
        if self._busy_since is not None:
            self._busy_since += seconds

    def idle(self) -> None:
        """Say that there is no work."""
        self._busy_since = None

    @property
    def seconds_without_progress(self) -> float:
        """How long there has been work without progress, in seconds."""
        return 0.0 if self._busy_since is None else self._clock() - self._busy_since


class _Waiting:
    """Does what `asyncio.timeout` does, in a tenth of the time, because a drain waits before each of its batches."""

    __slots__ = ("_cancelled", "_hold", "_interrupted", "_task")

    def __init__(self, hold: Hold) -> None:
        self._hold = hold
        self._interrupted = False

    def __enter__(self) -> None:
        task: Any = asyncio.current_task()
        self._task = task
        self._cancelled = task.cancelling()
        self._hold._waiting = self
        if not self._hold.held:
            self.interrupt()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._hold._waiting = None
        if not self._interrupted:
            return False
        # If somebody else has cancelled the task as well, it ends.
        return self._task.uncancel() <= self._cancelled and exc_type is asyncio.CancelledError

    def interrupt(self) -> None:
        """Stop waiting."""
        if not self._interrupted:
            self._interrupted = True
            self._task.cancel()
