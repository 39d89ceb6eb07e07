"""The lookout: renews a worker's holds and takes free partitions, in a thread of its own.

A worker must not lose its partitions because its event loop is busy (a large message, a rule that computes), but it
must lose them when the loop no longer turns.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from statewright_worker.observing.outages import Outage
from statewright_worker.streams.holders import Look

LOOK_SECONDS: Final = 0.2
SILENT_SECONDS: Final = 4.0
"""After so many seconds without a turn of the loop, no hold is renewed."""
FRESH_SECONDS: Final = 3 * LOOK_SECONDS
"""After so many seconds without a turn of the loop, no new partition is taken."""


class _Holders(Protocol):
    def look(self, held: frozenset[int], *, seeks: bool) -> Look: ...
    def release(self, partitions: frozenset[int]) -> None: ...
    def leave(self) -> None: ...
    def close(self) -> None: ...


class Lookout:
    """Looks at the holders every 0.2 s; calls `tell` in the event loop with what it finds."""

    def __init__(self, holders: _Holders, tell: Callable[[Look], None], outage: Outage) -> None:
        self._holders = holders
        self._tell = tell
        self._outage = outage
        self._loop = asyncio.get_running_loop()
        self._guard = threading.Lock()
        self._held: set[int] = set()
        self._to_release: set[int] = set()
        self._called = threading.Event()
        self._ended = False
        self._turned = time.monotonic()
        self.seeks = True
        """Whether this worker counts for the share, and takes partitions."""
        self._thread = threading.Thread(target=self._run, name="statewright-lookout", daemon=True)

    def start(self) -> None:
        """Begin to look round."""
        self._thread.start()

    def turned(self) -> None:
        """Say that the event loop turns; the loop must say so every 0.2 s."""
        self._turned = time.monotonic()

    def release(self, partition: int, *, vanish: bool = False) -> None:
        """Give a partition back at once; with `vanish` let its hold run out, as if this worker had died."""
        with self._guard:
            self._held.discard(partition)
            if not vanish:
                self._to_release.add(partition)
        self._called.set()

    async def stop(self) -> None:
        """Give everything back, say that this worker is gone, and end the thread."""
        self._ended = True
        self._called.set()
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while not self._ended:
            self._called.wait(LOOK_SECONDS)
            self._called.clear()
            self._attempt(self._look)
        self._attempt(self._leave)
        self._holders.close()

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:
            # Whatever went wrong, go on: a worker without its lookout would never hold anything again.
            self._outage.failed(error, self)
        else:
            self._outage.over(self)

    def _look(self) -> None:
        self._release_what_is_to_be_released()
        silent = time.monotonic() - self._turned
        if silent > SILENT_SECONDS:
            return
        with self._guard:
            held = frozenset(self._held)
        look = self._holders.look(held, seeks=self.seeks and not self._ended and silent < FRESH_SECONDS)
        with self._guard:
            # A partition that was lost may have been taken again in the same look.
            self._held = (self._held - look.lost) | look.taken | look.vanished
        self._loop.call_soon_threadsafe(self._tell, look)

    def _release_what_is_to_be_released(self) -> None:
        with self._guard:
            to_release = frozenset(self._to_release)
        if to_release:
            self._holders.release(to_release)
            with self._guard:
                self._to_release -= to_release

    def _leave(self) -> None:
        with self._guard:
            everything = frozenset(self._held | self._to_release)
        self._holders.release(everything)
        self._holders.leave()
