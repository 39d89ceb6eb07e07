"""Waiting: parked proposals, the queues of limits, and the timers of what comes due."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain
from typing import Final, TypeVar
from uuid import UUID

from statewright_worker.orchestration.records import (
    MICROSECOND,
    LimitRecord,
    NameOfLimit,
    ParkedProposal,
    Queued,
    Timer,
    TimerKind,
    TimerName,
    Turn,
)

TICKETS_BEGAN: Final = datetime(2020, 1, 1, tzinfo=UTC)
TICKETS_A_MICROSECOND: Final = 4_096
"""A ticket is the moment of the batch that has parked a proposal, and the proposal's number in it: so the order is that
of the database's clock, the same in every queue. It stays below 2**63 for seventy years."""
ANSWER_IS_SENT_WITHIN: Final = timedelta(seconds=1)
"""After this long, the answer to a parked proposal was sent, or its worker is gone."""


Key = TypeVar("Key")
Value = TypeVar("Value")


def put_back(mapping: dict[Key, Value], key: Key, value: Value | None) -> None:
    """Let the mapping have the value again that it had, None when it had none."""
    if value is None:
        mapping.pop(key, None)
    else:
        mapping[key] = value


def _turn(waiter: Queued) -> Turn:
    return waiter.turn


class Waiting:
    """What a batch parks, answers late, calls and sets timers for. A part of the unit of work."""

    def __init__(
        self,
        now: datetime,
        partition: int,
        limits: Mapping[NameOfLimit, LimitRecord],
        undo: list[Callable[[], object]],
    ) -> None:
        """Take the batch's clock and partition, its limits by name, and where to note how to undo what is done."""
        self._now = now
        self.partition = partition
        self._limits = limits
        self._undo = undo
        self.parked: dict[UUID, ParkedProposal] = {}
        """The parked proposals that this batch has asked for, and those that it parks."""
        self.seen: dict[UUID, ParkedProposal] = {}
        """Parked proposals of any partition that the batch is only asked about."""
        self.added: dict[UUID, ParkedProposal] = {}
        self.changed: dict[UUID, ParkedProposal] = {}
        self.removed: set[UUID] = set()
        self.answered: list[UUID] = []
        self.waits_for: Sequence[LimitRecord] = ()
        """The limits for which the proposal that is told to WAIT waits."""
        self.waiters_added: dict[tuple[int, UUID], ParkedProposal] = {}
        """Places in queues, each by the limit's id and the proposal's."""
        self.waiters_removed: set[tuple[int, UUID]] = set()
        self._tickets: dict[UUID, int] = {}
        self.touched_limits: dict[int, LimitRecord] = {}
        """Limits with waiters of which a slot or a place in the queue was freed."""
        self.timers_called: dict[TimerName, Timer] = {}
        """Timers of waiters that were called: they come due no later than that."""
        self.partitions_called: set[int] = set()
        """Where waiters were called already while the batch was loaded."""
        self.wait_until: datetime | None = None
        """When the proposal that is told to WAIT may be looked at again; None when nobody can know that."""
        self.timers_set: dict[TimerName, Timer] = {}
        self.timers_cleared: set[TimerName] = set()

    def begin(self) -> None:
        """Forget for what the last proposal had to wait."""
        self.wait_until = None
        self.waits_for = ()

    def of_run(self, run_id: UUID) -> list[ParkedProposal]:
        """Return the run's parked proposals that have no answer yet."""
        return [parked for parked in self.parked.values() if parked.run_id == run_id and not parked.decided]

    def turn_of(self, proposal_id: UUID | None, priority: int) -> Turn:
        """Return where a proposal stands in every queue: a parked one where it was parked, a new one at the end."""
        if proposal_id is None:
            return -priority, self._ticket(0)
        parked = self.parked.get(proposal_id)
        if parked is not None:
            return -parked.priority, parked.ticket
        if proposal_id not in self._tickets:
            self._tickets[proposal_id] = self._ticket(len(self._tickets))
            self._undo.append(partial(self._tickets.pop, proposal_id))
        return -priority, self._tickets[proposal_id]

    def _ticket(self, number: int) -> int:
        # The clock of the database and the order within the batch.
        return (self._now - TICKETS_BEGAN) // MICROSECOND * TICKETS_A_MICROSECOND + number

    def park(self, parked: ParkedProposal) -> None:
        """Keep a proposal until it can be decided. It stands in the queues of the limits that it waits for, and leaves
        those of others."""
        if parked.proposal_id not in self.parked:
            parked.ticket = self.turn_of(parked.proposal_id, parked.priority)[1]
            self.parked[parked.proposal_id] = self.added[parked.proposal_id] = parked
        names = {limit.name for limit in self.waits_for}
        self._leave(parked, [name for name in parked.waits_on if name not in names])
        for limit in self.waits_for:
            if limit.name not in parked.waits_on:
                self._enter(parked, limit)
        parked.waits_on = tuple(limit.name for limit in self.waits_for)

    def _enter(self, parked: ParkedProposal, limit: LimitRecord) -> None:
        place = limit.id, parked.proposal_id
        if place in self.waiters_removed:
            self.waiters_removed.discard(place)
        else:
            self.waiters_added[place] = parked
        limit.queue.append(Queued(parked.proposal_id, self.partition, parked.priority, parked.ticket))
        limit.queue.sort(key=_turn)

    def _leave(self, parked: ParkedProposal, names: Iterable[NameOfLimit]) -> None:
        for name in names:
            limit = self._limits.get(name)
            if limit is None:
                continue
            place = limit.id, parked.proposal_id
            # What this batch has added is no row yet: the write could not delete it.
            if self.waiters_added.pop(place, None) is None:
                self.waiters_removed.add(place)
            limit.queue = [waiter for waiter in limit.queue if waiter.proposal_id != parked.proposal_id]
            self.touch(limit)

    def limit_removed(self, limit: LimitRecord) -> None:
        """Let those look again that this batch has put into the queue of a limit that is removed. The others were
        called when the limit was loaded, and their rows go with it."""
        for place in [place for place in self.waiters_added if place[0] == limit.id]:
            parked = self.waiters_added.pop(place)
            parked.waits_on = tuple(name for name in parked.waits_on if name != limit.name)
            self.set_timer(TimerKind.PARKED, parked.proposal_id, self._now)

    def wait_for(self, limits: Sequence[LimitRecord], until: datetime | None) -> None:
        """Let the proposal that is decided stand in the queues of these limits, if it is parked.

        `until` is when it will have its turn, None when that depends on others.
        """
        self.waits_for, self.wait_until = limits, until

    def touch(self, limit: LimitRecord) -> None:
        """Take note that a slot of the limit was freed, or a place in its queue."""
        if limit.queue:
            self._undo.append(partial(put_back, self.touched_limits, limit.id, self.touched_limits.get(limit.id)))
            self.touched_limits[limit.id] = limit

    def call_waiters(self) -> None:
        """Let the first waiters of the limits at which something was freed be looked at; done once, before writing.

        Nothing is handed to them: nobody else may take what they wait for. When there are very many of them, each group
        calls the next one.
        """
        for limit in self.touched_limits.values():
            for waiter, waits in limit.next_waiters():
                self._call(waiter, self._now + waits)

    def _call(self, waiter: Queued, due: datetime) -> None:
        name = TimerName(TimerKind.PARKED, waiter.proposal_id)
        was_set = self.timers_set.get(name)
        if was_set is not None or name in self.timers_cleared:
            self.timers_cleared.discard(name)
            self.timers_set[name] = Timer(waiter.partition, due if was_set is None else min(was_set.due, due))
        else:
            called = self.timers_called.get(name)
            self.timers_called[name] = Timer(waiter.partition, due if called is None else min(called.due, due))

    def change(self, parked: ParkedProposal, **changes: object) -> None:
        """Change what is kept of a parked proposal."""
        parked = replace(parked, **changes)  # type: ignore[arg-type]
        self.parked[parked.proposal_id] = parked
        changed = self.added if parked.proposal_id in self.added else self.changed
        changed[parked.proposal_id] = parked

    def answer(self, parked: ParkedProposal) -> None:
        """Take note that a parked proposal has its answer; its row stays until the answer was sent."""
        self.change(parked, decided=True)
        self.answered.append(parked.proposal_id)
        self._leave(parked, parked.waits_on)
        self.set_timer(TimerKind.PARKED, parked.proposal_id, self._now + ANSWER_IS_SENT_WITHIN)

    def forget(self, proposal_id: UUID) -> None:
        """Delete a parked proposal, whose answer was sent."""
        self.parked.pop(proposal_id, None)
        self.added.pop(proposal_id, None)
        self.changed.pop(proposal_id, None)
        self.removed.add(proposal_id)
        self.clear_timer(TimerKind.PARKED, proposal_id)

    def drop(self, parked: ParkedProposal) -> None:
        """Delete a parked proposal together with its run, and take it out of its queues."""
        self._leave(parked, parked.waits_on)
        self.forget(parked.proposal_id)

    def set_timer(self, kind: TimerKind, timer_id: UUID, due: datetime, partition: int | None = None) -> None:
        """Let the partition's holder (without one, this partition's) look at something again, no later than at `due`.

        It is carried out as `requests/kinds.py` says for its kind.
        """
        name = TimerName(kind, timer_id)
        self._keep_timer(name)
        self.timers_set[name] = Timer(self.partition if partition is None else partition, due)
        self.timers_cleared.discard(name)

    def clear_timer(self, kind: TimerKind, timer_id: UUID) -> None:
        """Let nobody look any more."""
        name = TimerName(kind, timer_id)
        self._keep_timer(name)
        self.timers_set.pop(name, None)
        self.timers_cleared.add(name)

    def _keep_timer(self, name: TimerName) -> None:
        was_set, was_cleared = self.timers_set.get(name), name in self.timers_cleared

        def undo() -> None:
            put_back(self.timers_set, name, was_set)
            (self.timers_cleared.add if was_cleared else self.timers_cleared.discard)(name)

        self._undo.append(undo)

    @property
    def has_changed(self) -> bool:
        """Whether there is anything to write or to tell: in most batches nothing waits."""
        return bool(
            self.timers_set
            or self.timers_cleared
            or self.timers_called
            or self.added
            or self.changed
            or self.waiters_added
            or self.waiters_removed
            or self.partitions_called
        )

    @property
    def next_due(self) -> datetime | None:
        """The first moment at which this partition must look at something that this batch has set, or None."""
        if self.partition in self.partitions_called:
            return self._now
        timers = chain(self.timers_set.values(), self.timers_called.values())
        return min((timer.due for timer in timers if timer.partition == self.partition), default=None)

    @property
    def woken(self) -> set[int]:
        """The other partitions whose holders must look again at what is due, and when."""
        called = {timer.partition for timer in self.timers_called.values()}
        return called.union(self.partitions_called, (timer.partition for timer in self.timers_set.values())) - {
            self.partition
        }
