"""Leasing: which leases a batch knows, begins and ends. Whatever lets a run enter or leave RUNNING is told to it."""

from collections.abc import Callable
from datetime import datetime, timedelta
from uuid import UUID

from statewright.ids import id_of_executor
from statewright.states import State
from statewright_worker.orchestration.records import LeaseRecord, Standing, TimerKind
from statewright_worker.orchestration.waiting import Waiting, put_back


class Leasing:
    """The leases of a batch. A part of the unit of work."""

    def __init__(self, now: datetime, partition: int, waiting: Waiting, undo: list[Callable[[], object]]) -> None:
        """Take the batch's clock and partition, its timers, and where to note how to undo what is done."""
        self._now = now
        self._partition = partition
        self._waiting = waiting
        self._undo = undo
        self.known: dict[UUID, LeaseRecord] = {}
        """The leases by run that the batch has asked for, renewed by its heartbeats, and those that it begins."""
        self.changed: dict[UUID, LeaseRecord | None] = {}
        """Those that begin, by run, and None for those that end."""
        self.executors: dict[UUID, datetime] = {}
        """When the leases of executors end, by id, if the batch has asked for that."""
        self.standings: dict[UUID, Standing] = {}
        """What runs were in before the batch that its heartbeats name and that are not leased."""

    def follow(self, run_id: UUID, previous: State | None, state: State) -> None:
        """End the lease of the state that the run has left, and begin that of the state that it has entered."""
        seconds, executor = state.state_details.lease, state.state_details.executor
        if state.is_running() and seconds is not None:
            self._keep(run_id)
            ends = self._now + timedelta(seconds=seconds)
            self.known[run_id] = self.changed[run_id] = LeaseRecord(run_id, state.id, seconds, ends, executor)
            if executor is None:
                self._waiting.set_timer(TimerKind.LEASE, run_id, ends)
            else:
                if previous is not None and previous.state_details.lease is not None:
                    self._waiting.clear_timer(TimerKind.LEASE, run_id)
                self._waiting.set_timer(TimerKind.EXECUTOR, id_of_executor(executor, self._partition), ends)
        elif previous is not None and previous.is_running():
            self.end(run_id)

    def end(self, run_id: UUID) -> None:
        """Forget the run's lease."""
        self._keep(run_id)
        self.known.pop(run_id, None)
        self.changed[run_id] = None
        self._waiting.clear_timer(TimerKind.LEASE, run_id)

    def _keep(self, run_id: UUID) -> None:
        known, changed = self.known.get(run_id), self.changed.get(run_id)
        was_changed = run_id in self.changed

        def undo() -> None:
            put_back(self.known, run_id, known)
            if was_changed:
                self.changed[run_id] = changed
            else:
                self.changed.pop(run_id, None)

        self._undo.append(undo)
