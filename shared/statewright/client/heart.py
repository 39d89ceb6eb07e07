"""The heart: renews the leases that a client keeps, all in one task, and tells who has lost one.

Leases of a partition that come due at about the same time are renewed by one message; after a few beats they beat as
one. An executor's leases are renewed by its name; the runs that it believes to hold are named only to hear which ones
it does not hold any more.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from statewright.client.sent import Sent
from statewright.connection import cancel
from statewright.errors import LeaseLost, StatewrightError
from statewright.protocol.replies import HeartbeatReply
from statewright.protocol.requests import Heartbeat

BEATS_PER_LEASE: Final = 3
EARLY: Final = 1 / 3
"""A lease is renewed with others of its partition when it would be soon: within this part of the time between beats."""

Send = Callable[[Heartbeat, float], Sent[HeartbeatReply]]
"""Sends a heartbeat, whose answer is awaited for so many seconds."""


@dataclass(eq=False, slots=True)
class Kept:
    """A lease that the heart renews; with an executor, a run that the executor believes to hold."""

    run_id: UUID
    partition: int
    executor: str | None
    state_id: UUID | None
    """The state RUNNING that it belongs to; None until an answer says it."""
    seconds: float | None
    """How long it is good; None until an answer says it."""
    lost: Callable[[LeaseLost], object] = lambda _: None
    """Called once when it is lost; it is not renewed any more then."""
    learnt: Callable[[], object] = lambda: None
    """Called when an answer has said which lease it is."""
    beat_at: float = 0.0
    good_until: float = 0.0
    """By the loop's clock: unless a heartbeat that is sent before is answered, the lease has ended then."""
    awaited: "tuple[asyncio.Task[None], ...]" = ()
    """What waits for the answers to its heartbeats."""


_Lane = tuple[int, str | None]
"""A partition, and whose heartbeats renew the leases: their own, or those of an executor."""


class Heart:
    """Renews what it keeps until that is dropped or lost; it beats only while it keeps something."""

    def __init__(self, send: Send, patience: float, at_once: int) -> None:
        """Take what sends a heartbeat, and how many runs it may name; a lease of unknown length counts as lost after
        `patience` seconds unanswered."""
        self._send = send
        self._at_once = at_once
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._lanes: dict[_Lane, dict[Kept, None]] = {}
        self._beat_at: dict[_Lane, float] = {}
        """When the first lease of the lane is to be renewed, or is lost unless there is an answer."""
        self._more = asyncio.Event()
        self._beating: asyncio.Task[None] | None = None
        self._unanswered: dict[asyncio.Task[None], int] = {}
        """What waits for the answer to a heartbeat, and for how many leases that are still kept."""
        self._problem = ""

    def keep(self, kept: Kept, since: float | None = None) -> None:
        """Renew the lease from now on: at once, unless it is known to be good `since` a moment of the loop's clock."""
        now = self._loop.time()
        if since is None or since + self._pause(kept) < now:
            kept.beat_at, kept.good_until = now, now + (kept.seconds or self._patience)
        else:
            kept.beat_at, kept.good_until = since + self._pause(kept), since + (kept.seconds or self._patience)
        lane = kept.partition, kept.executor
        self._lanes.setdefault(lane, {})[kept] = None
        self._beat_at[lane] = min(self._beat_at.get(lane, kept.beat_at), kept.beat_at)
        self._more.set()
        if self._beating is None:
            self._beating = asyncio.create_task(self._beat())

    def drop(self, kept: Kept) -> None:
        """Renew the lease no more."""
        lane = kept.partition, kept.executor
        leases = self._lanes.get(lane)
        if leases is not None:
            leases.pop(kept, None)
            if not leases:
                del self._lanes[lane], self._beat_at[lane]
        for waiting in kept.awaited:
            if waiting in self._unanswered:
                self._unanswered[waiting] -= 1
                if self._unanswered[waiting] == 0:
                    waiting.cancel()
        kept.awaited = ()

    async def close(self) -> None:
        """Stop; what is still kept is lost, because nobody renews it."""
        try:
            await cancel(*self._unanswered, *(() if self._beating is None else (self._beating,)))
        finally:
            for leases in list(self._lanes.values()):
                for kept in list(leases):
                    self._lose(kept, LeaseLost.unheard(kept.run_id, "the client was closed"))

    async def _beat(self) -> None:
        while True:
            self._more.clear()
            now = self._loop.time()
            for lane in [lane for lane, beat_at in self._beat_at.items() if beat_at <= now]:
                self._renew(lane, now)
            next_beat = min(self._beat_at.values(), default=None)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(next_beat):
                    await self._more.wait()

    def _renew(self, lane: _Lane, now: float) -> None:
        """Renew the leases of a lane that are due or nearly so, and count those as lost that have ended unanswered."""
        for kept in [kept for kept in self._lanes[lane] if kept.good_until <= now]:
            self._lose(kept, LeaseLost.unheard(kept.run_id, self._problem))
        leases = self._lanes.get(lane, {})
        due = [kept for kept in leases if kept.beat_at <= now + EARLY * self._pause(kept)]
        for number in range(0, len(due), self._at_once):
            self._send_for(lane, due[number : number + self._at_once], now)
        if leases:
            self._beat_at[lane] = min(min(kept.beat_at, kept.good_until) for kept in leases)

    def _send_for(self, lane: _Lane, leases: Sequence[Kept], now: float) -> None:
        partition, executor = lane
        for kept in leases:
            kept.beat_at = now + self._pause(kept)
        message = Heartbeat(
            partition=partition,
            executor=executor,
            run_ids=tuple(kept.run_id for kept in leases),
            state_ids=tuple(kept.state_id for kept in leases),
            tell=any(kept.state_id is None or kept.seconds is None for kept in leases),
        )
        try:
            sent = self._send(message, max(kept.good_until for kept in leases) - now)
        except StatewrightError as error:
            self._problem = str(error)
            return
        learning = asyncio.create_task(self._learn(sent, leases, now))
        self._unanswered[learning] = len(leases)
        learning.add_done_callback(self._answered)
        for kept in leases:
            kept.awaited = (*(waiting for waiting in kept.awaited if waiting in self._unanswered), learning)

    def _answered(self, waiting: "asyncio.Task[None]") -> None:
        self._unanswered.pop(waiting, None)

    async def _learn(self, sent: Sent[HeartbeatReply], leases: Sequence[Kept], sent_at: float) -> None:
        try:
            reply = await sent
        except StatewrightError as error:
            # The next heartbeat may be answered. If none is in time, this is why.
            self._problem = str(error)
            return
        self._problem = ""
        if (waiting := asyncio.current_task()) is not None:
            # It waits no more, so nobody needs to end it.
            self._unanswered.pop(waiting, None)
        lost = {run.run_id: run for run in reply.lost}
        renewed = {lease.run_id: lease for lease in reply.leases}
        for kept in leases:
            if kept.run_id in lost:
                self._lose(kept, LeaseLost.told(lost[kept.run_id]))
                continue
            if kept.run_id in renewed:
                told = renewed[kept.run_id]
                kept.state_id, kept.seconds = told.state_id, told.seconds
                kept.beat_at = min(kept.beat_at, sent_at + self._pause(kept))
                kept.good_until = sent_at + told.seconds
                kept.learnt()
            elif kept.seconds is not None:
                kept.good_until = max(kept.good_until, sent_at + kept.seconds)
        if renewed:
            # They may end earlier than it seemed.
            lane = leases[0].partition, leases[0].executor
            if lane in self._beat_at:
                self._beat_at[lane] = min(self._beat_at[lane], *(kept.beat_at for kept in leases))
            self._more.set()

    def _lose(self, kept: Kept, why: LeaseLost) -> None:
        leases = self._lanes.get((kept.partition, kept.executor), {})
        if kept in leases:
            self.drop(kept)
            kept.lost(why)

    def _pause(self, kept: Kept) -> float:
        return (kept.seconds or self._patience) / BEATS_PER_LEASE
