"""The holder: runs a drain on each partition of its worker's share, and gives all back when work gets nowhere."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import structlog

from statewright_worker.holding.hold import Hold
from statewright_worker.holding.lookout import LOOK_SECONDS, Lookout
from statewright_worker.observing.outages import Outage
from statewright_worker.streams.holders import Holders, Look

STALL_SECONDS: Final = 4.5
"""After so many seconds of work without progress, every hold is given back."""
PROBE_SECONDS: Final = 0.5
STOP_SECONDS: Final = 4.0

log = structlog.get_logger()

Work = Callable[[Hold], Awaitable[None]]
CanWork = Callable[[], Awaitable[bool]]


class Holder:
    """Runs a drain on each partition that the lookout takes, and stops it when the hold is lost or beyond the share.

    A worker whose work gets nowhere gives everything back, and takes nothing until `can_work` returns True.
    """

    def __init__(self, holders: Holders, work: Work, can_work: CanWork, *, postgresql: Outage, redis: Outage) -> None:
        self._holders = holders
        self._work = work
        self._can_work = can_work
        self._postgresql = postgresql
        self._redis = redis
        self._holds: dict[int, Hold] = {}
        self._drains: dict[int, asyncio.Task[None]] = {}
        self._recovering: asyncio.Task[None] | None = None
        self._clock = asyncio.get_running_loop().time
        self._judged = self._clock()
        self._lookout: Lookout

    async def run(self, until: asyncio.Event) -> None:
        """Drain partitions until `until` is set; then finish the batches under way and give every partition back."""
        self._lookout = Lookout(self._holders, self._take_in, self._redis)
        self._lookout.start()
        try:
            while not until.is_set():
                self._lookout.turned()
                self._judge()
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await until.wait()
        finally:
            await self._give_everything_back()

    def _take_in(self, look: Look) -> None:
        for partition in look.lost & self._holds.keys():
            self._holds[partition].stop()
        for partition in sorted(look.taken | look.vanished):
            self._begin(Hold(partition, vanished=partition in look.vanished))
        for partition in sorted(self._holds)[look.share :]:
            self._holds[partition].stop()

    def _begin(self, hold: Hold) -> None:
        if hold.partition in self._holds:
            # The drain of this partition has not ended yet; when it does, it gives the partition back.
            return
        if not self._lookout.seeks:
            self._lookout.release(hold.partition)
            return
        self._holds[hold.partition] = hold
        self._drains[hold.partition] = asyncio.create_task(self._drain(hold))

    async def _drain(self, hold: Hold) -> None:
        failed = False
        try:
            await self._work(hold)
        except Exception:
            failed = True
            log.exception("a drain failed; its partition is taken up anew", partition=hold.partition)
        finally:
            del self._holds[hold.partition], self._drains[hold.partition]
            # The next holder must know that a drain failed here, so that it does not fail in the same way at once.
            self._lookout.release(hold.partition, vanish=failed)

    def _judge(self) -> None:
        """Give everything back when some work gets nowhere, because all other work needs the same servers."""
        self._excuse_what_the_loop_held_up()
        stalled = [hold for hold in self._holds.values() if hold.seconds_without_progress > STALL_SECONDS]
        if not stalled:
            return
        self._lookout.seeks = False
        for hold in list(self._holds.values()):
            hold.stop()
        for hold in stalled:
            self._drains[hold.partition].cancel()
        if self._recovering is None:
            self._postgresql.failed(TimeoutError(f"no progress for {STALL_SECONDS:g} s"), self)
            log.warning("no progress: every partition is given back", partitions=sorted(self._holds))
            self._recovering = asyncio.create_task(self._recover())

    def _excuse_what_the_loop_held_up(self) -> None:
        now = self._clock()
        late, self._judged = now - self._judged - LOOK_SECONDS, now
        if late > LOOK_SECONDS:
            for hold in self._holds.values():
                hold.excuse(late)

    async def _recover(self) -> None:
        while not await self._can_work():  # noqa: ASYNC110  # a server that comes back tells nobody
            await asyncio.sleep(PROBE_SECONDS)
        self._postgresql.over(self)
        self._lookout.seeks = True
        self._recovering = None

    async def _give_everything_back(self) -> None:
        self._lookout.seeks = False
        if self._recovering is not None:
            self._recovering.cancel()
        for hold in self._holds.values():
            hold.stop()
        drains = list(self._drains.values())
        if drains:
            await asyncio.wait(drains, timeout=STOP_SECONDS)
        for drain in drains:
            drain.cancel()
        await asyncio.gather(*drains, return_exceptions=True)
        await self._lookout.stop()
