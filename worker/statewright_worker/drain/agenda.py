"""The agenda: when a partition has something due, and what is due as requests.

The holder knows the next moment and waits for requests no longer than until then. Whoever frees something for another
partition sets a timer there and nudges its holder. A nudge may get lost, for example with everything in Redis; so the
holder also looks now and then without one.
"""

from collections.abc import Callable, Container
from dataclasses import replace
from datetime import datetime
from math import ceil
from typing import Final
from uuid import UUID

from statewright.protocol.channels import REQUEST_ACTOR, REQUEST_ID, REQUEST_MESSAGE, REQUEST_REPLY_TO
from statewright.values import ENGINE_ITSELF
from statewright_worker.drain.decoding import Place, decode
from statewright_worker.facts.timers import DueTimer
from statewright_worker.orchestration.records import TimerKind
from statewright_worker.requests.base import Incoming
from statewright_worker.requests.kinds import WHEN_DUE
from statewright_worker.requests.parking import KeepParked, TellParked
from statewright_worker.streams.proposals import Entry

LOOK_SECONDS: Final = 5.0
"""A holder looks at least this often, whether it was told to or not."""
ANY_SIZE: Final = 2**63


class Agenda:
    """When to look at what is due, by the event loop's clock. A new holder looks at once."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at = clock()

    def is_due(self) -> bool:
        """Return whether it is time to look."""
        return self._clock() >= self._at

    def milliseconds(self, most: int) -> int:
        """Return how long to wait for requests: until something is due, `most` milliseconds at most, and at least 1."""
        return max(min(ceil((self._at - self._clock()) * 1_000), most), 1)

    def looked(self, again_seconds: float | None) -> None:
        """Take note of a look that has found the next thing due in so many seconds, None when nothing is set."""
        self._at = self._clock() + min(LOOK_SECONDS, LOOK_SECONDS if again_seconds is None else again_seconds)

    def nudged(self) -> None:
        """Look as soon as possible."""
        self._at = self._clock()

    def set(self, due: datetime | None, now: datetime, read_at: float) -> None:
        """Take note of the next thing that a batch has set; it has read the time `now` of the database at `read_at`."""
        if due is not None:
            self._at = min(self._at, read_at + (due - now).total_seconds())


def due_request(timer: DueTimer, place: Place, told: Container[UUID]) -> Incoming:
    """Return the request that a timer stands for; `told` are the parked proposals that this holder has answered."""
    name = timer.name
    if name.kind is TimerKind.PARKED:
        return _parked(timer, place, timer.name.id in told)
    request = WHEN_DUE[name.kind](name.id)
    return Incoming(Entry(f"{name.kind} {name.id}", {}), name.id, None, request, 0, ENGINE_ITSELF, name)


def _parked(timer: DueTimer, place: Place, is_told: bool) -> Incoming:
    proposal_id, reply_to = timer.name.id, timer.reply_to
    if timer.message is None or timer.entry_id is None or timer.decided:
        entry = Entry(f"{timer.name.kind} {proposal_id}", {REQUEST_ID: str(proposal_id).encode()})
        return Incoming(entry, proposal_id, reply_to, TellParked(proposal_id, is_told), 0, timer=timer.name)
    fields = {REQUEST_ID: str(proposal_id).encode(), REQUEST_MESSAGE: timer.message.encode()}
    if reply_to is not None:
        fields[REQUEST_REPLY_TO] = reply_to.encode()
    if timer.actor is not None:
        fields[REQUEST_ACTOR] = timer.actor.encode()
    entry = Entry(timer.entry_id, fields)
    decoded = decode(entry, replace(place, max_message_bytes=ANY_SIZE))
    if isinstance(decoded, Incoming):
        return decoded._replace(timer=timer.name)
    # A worker of another version has parked it.
    kept = KeepParked(proposal_id, decoded.problem.message)
    return Incoming(entry, proposal_id, reply_to, kept, 0, timer=timer.name)
