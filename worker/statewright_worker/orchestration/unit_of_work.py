"""The unit of work: the facts of a batch and the decisions on them, which every later proposal of the batch sees."""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

from statewright.ids import IdSource
from statewright.limits import ConcurrencyLimit, LimitName, SlotHolder
from statewright.runs import RunKind
from statewright.states import State, StateType
from statewright.verdicts import Verdict
from statewright_worker.orchestration.deleting import Deleting
from statewright_worker.orchestration.explaining import Explaining
from statewright_worker.orchestration.leasing import Leasing
from statewright_worker.orchestration.records import (
    Answer,
    AnyRunRecord,
    CacheEntry,
    LedgerEntry,
    LimitRecord,
    NameOfLimit,
    PastState,
    Queued,
    RunRecord,
    StateChange,
    TaskRunRecord,
    TimerKind,
    limits_on_tags,
)
from statewright_worker.orchestration.subscribing import Subscribing
from statewright_worker.orchestration.waiting import Waiting, put_back


class ChangePage(NamedTuple):
    """Changes of a partition with their sequence numbers: all that exist up to `up_to`.

    Of those up to `pruned_up_to` some went with their runs.
    """

    changes: list[tuple[int, StateChange]]
    up_to: int
    pruned_up_to: int


class LimitPage(NamedTuple):
    """Limits in the order in which they were made, and where to read on; None when there are no more."""

    limits: list[LimitRecord]
    next: int | None


HOLDERS_TOLD: Final = 1_000
"""How many of a limit's holders are told to whoever reads it."""

_NO_PAGES: Final[dict[int, list[PastState]]] = {}
NO_LABELS: Final[dict[str, str]] = {}


class UnitOfWork:
    """The world as one batch sees it. Rules read it and write to it; `facts` loads and saves it.

    Between `begin` and `commit` or `roll_back` lies one proposal: rolling back undoes all that it did.
    """

    def __init__(self, now: datetime, ids: IdSource, partition: int = 0) -> None:
        self.now = now
        """The database's clock when the batch was taken up; the only clock that decides."""
        self.ids = ids
        self.runs: dict[UUID, AnyRunRecord] = {}
        self.labels: dict[UUID, dict[str, str]] = {}
        """The labels of the runs that are created, or whose labels a request asks for."""
        self.limits: dict[NameOfLimit, LimitRecord] = {}
        """The limits by name."""
        self.limit_ids: dict[NameOfLimit, int] = {}
        """The ids of limits that do not exist and may be set."""
        self.cache: dict[str, list[CacheEntry]] = {}
        self.verdicts: dict[UUID, LedgerEntry] = {}
        """The verdicts by proposal, with what is kept of each."""
        self.answers: dict[UUID, Answer] = {}
        self.histories: dict[UUID, dict[int, list[PastState]]] = {}
        """Pages of runs' histories, each by the ordinal behind which it was read."""
        self.events: dict[int, ChangePage] = {}
        """Changes of the partition, by the number behind which they were read back."""
        self.positions: dict[datetime | None, int] = {}
        """Positions before the partition's first change that is not older than a moment; None: before its first."""
        self.below: dict[UUID, list[UUID]] = {}
        """The first runs below flow runs that have not come to an end."""
        self.limit_pages: dict[int, LimitPage] = {}
        """Pages of all limits, by the place behind which they were read, as they were before this batch."""

        self.created_runs: dict[UUID, AnyRunRecord] = {}
        self.changed_runs: dict[UUID, AnyRunRecord] = {}
        self.redescribed_runs: set[UUID] = set()
        """Those of the changed runs that have another name, other tags or another policy: few transitions do that."""
        self.state_changes: list[StateChange] = []
        self.limits_set: dict[int, LimitRecord] = {}
        self.limits_removed: set[int] = set()
        self.rates_used: dict[int, LimitRecord] = {}
        self.slots_taken: set[tuple[int, UUID]] = set()
        self.slots_released: set[tuple[int, UUID]] = set()
        self.cache_added: list[CacheEntry] = []
        self.new_verdicts: list[LedgerEntry] = []
        self.new_answers: list[Answer] = []

        self._queues_removed: dict[NameOfLimit, list[Queued]] = {}
        self._undo: list[Callable[[], object]] = []
        self.waiting = Waiting(now, partition, self.limits, self._undo)
        """What waits and what comes due."""
        self.leases = Leasing(now, partition, self.waiting, self._undo)
        self.deleting = Deleting()
        self.subscribing = Subscribing(now)
        self.explaining = Explaining()
        self._before: dict[UUID, dict[str, object]] = {}
        self.actor: str | None = None
        """Who has made the proposal that is decided, where they have said so."""
        self.trace: str | None = None
        """What its rules saw and decided, as JSON, when they have not accepted it."""

    # -- one proposal ------------------------------------------------------------------------------------------------

    def begin(self, actor: str | None = None) -> None:
        """Start a proposal of an actor's, which can be rolled back as a whole."""
        self.actor, self.trace = actor, None
        self._undo.clear()
        self._before.clear()
        self.waiting.begin()

    def commit(self) -> None:
        """Keep what the proposal did."""
        for run_id, before in self._before.items():
            run = self.runs[run_id]
            # A new state is recorded as a change already, and comparing states is expensive.
            if run_id not in self.changed_runs and (run.state is not before["state"] or run.__dict__ != before):
                self.changed_runs[run_id] = run
            if run.policy is not before["policy"] or run.tags is not before["tags"] or run.name is not before["name"]:
                self.redescribed_runs.add(run_id)
        self._undo.clear()
        self._before.clear()

    def roll_back(self) -> None:
        """Undo everything since `begin`."""
        # Before anything else: a run that was created since is at hand no more once that is undone.
        for run_id, before in self._before.items():
            self.runs[run_id].__dict__.update(before)
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
        self._before.clear()

    # -- runs and states ---------------------------------------------------------------------------------------------

    def run(self, run_id: UUID | None) -> AnyRunRecord | None:
        """Return the run, to be read and written, or None."""
        run = self.runs.get(run_id) if run_id else None
        if run is not None and run.id not in self._before:
            self._before[run.id] = run.__dict__.copy()
        return run

    def failed_task_runs(self, flow_run_id: UUID) -> list[TaskRunRecord]:
        """Return the flow run's task runs that are FAILED, by id."""
        failed = [
            run.id
            for run in self.runs.values()
            if isinstance(run, TaskRunRecord) and run.flow_run_id == flow_run_id and run.state_type is StateType.FAILED
        ]
        found = [self.run(run_id) for run_id in sorted(failed)]
        return [run for run in found if isinstance(run, TaskRunRecord)]

    def create_run(self, run: AnyRunRecord, labels: dict[str, str] = NO_LABELS) -> None:
        """Add a run that does not exist yet."""
        self.runs[run.id] = self.created_runs[run.id] = run
        self.labels[run.id] = labels
        self._undo.append(lambda: self._forget_run(run.id))

    def _forget_run(self, run_id: UUID) -> None:
        del self.runs[run_id], self.created_runs[run_id], self.labels[run_id]

    def write_state(self, run: AnyRunRecord, state: State, proposal_id: UUID | None = None) -> State:
        """Let the run enter `state`, which a proposal has caused, and return it. A run that is not RUNNING any more
        gives its slots back.
        """
        run.state_count += 1
        self.state_changes.append(StateChange(run, run.state_count, state, run.state, proposal_id, actor=self.actor))
        self._undo.append(self.state_changes.pop)
        for after, page in self.histories.get(run.id, _NO_PAGES).items():
            if (page[-1].ordinal if page else after) == run.state_count - 1:
                page.append(PastState(run.state_count, state, proposal_id, self.actor))
                self._undo.append(page.pop)
        previous, run.state = run.state, state
        if state.state_details.lease is not None or (previous is not None and previous.state_details.lease is not None):
            self.leases.follow(run.id, previous, state)
        if state.state_details.pause_timeout is not None and run.kind is RunKind.FLOW_RUN and state.is_paused():
            self.waiting.set_timer(TimerKind.PAUSE, run.id, state.state_details.pause_timeout)
        # Here, so that slots do not depend on a rule: no policy, and no forced or nested transition, keeps them.
        if self.limits and state.type is not StateType.RUNNING:
            for limit in self.limits_of(run):
                self.release_slot(limit, run.id)
        return state

    def instrument(self, run: RunRecord, state: State) -> None:
        """Note on the change of `run` to `state` what its event will say beside the state itself."""
        for change in reversed(self.state_changes):
            if change.state is state:
                change.run_count = run.run_count
                return

    # -- limits ------------------------------------------------------------------------------------------------------

    def limits_on(self, tags: Iterable[str]) -> list[LimitRecord]:
        """Return the limits on `tags`, each once, in ascending order of the tag."""
        return self._known(limits_on_tags(tags)) if self.limits else []

    def limits_of(self, run: AnyRunRecord) -> list[LimitRecord]:
        """Return the limits of which the run takes a slot each while it is RUNNING, in the order of `limit_names`."""
        return self._known(run.limit_names()) if self.limits else []

    def _known(self, names: Iterable[NameOfLimit]) -> list[LimitRecord]:
        found = map(self.limits.get, names)
        return [limit for limit in found if limit is not None]

    def set_limit(
        self,
        name: LimitName,
        concurrency_limit: int,
        *,
        period: timedelta | None = None,
        lease_seconds: float | None = None,
    ) -> None:
        """Set the limit of the name; what is used of it stays used. A new limit takes its id from `limit_ids`."""
        limit = self.limits.get(name)
        if limit is None:
            queue = self._queues_removed.get(name, [])
            limit = LimitRecord(self.limit_ids[name], name.scope, name.key, concurrency_limit, queue=queue)
        self._keep_limit(name, limit.id)
        limit = limit.changed(concurrency_limit, period, lease_seconds)
        self.limits[name] = self.limits_set[limit.id] = limit
        self.waiting.touch(limit)
        self.limits_removed.discard(limit.id)

    def remove_limit(self, name: LimitName) -> None:
        """Remove the limit of the name, if there is one, and free its slots.

        When it is set again in this batch, it is the same row without holders: then all of these must be loaded.
        """
        limit = self.limits.get(name)
        if limit is None:
            return
        for run_id in sorted(limit.holders):
            self.release_slot(limit, run_id)
        self._keep_limit(name, limit.id)
        del self.limits[name]
        self.limit_ids[name] = limit.id
        self.limits_set.pop(limit.id, None)
        self.limits_removed.add(limit.id)
        self.waiting.limit_removed(limit)
        # If it is set again in this batch, its row stays, and with it the queue.
        self._queues_removed[name] = limit.queue

    def _keep_limit(self, name: LimitName, limit_id: int) -> None:
        limit, reserved = self.limits.get(name), self.limit_ids.get(name)
        was_set, was_removed = self.limits_set.get(limit_id), limit_id in self.limits_removed

        def undo() -> None:
            put_back(self.limits, name, limit)
            put_back(self.limit_ids, name, reserved)
            put_back(self.limits_set, limit_id, was_set)
            (self.limits_removed.add if was_removed else self.limits_removed.discard)(limit_id)

        self._undo.append(undo)

    def told_limit(self, name: NameOfLimit) -> ConcurrencyLimit | None:
        """Return the limit as a producer reads it, None when there is none; it must have been loaded to be told."""
        limit = self.limits.get(name)
        if limit is None:
            return None
        holders = [holder for holder in limit.shown if (limit.id, holder.run_id) not in self.slots_released]
        for run_id in sorted(run_id for limit_id, run_id in self.slots_taken if limit_id == limit.id):
            run = self.runs[run_id]
            holders.append(SlotHolder(run_id=run_id, kind=run.kind, name=run.name, since=self.now))
        return limit.as_limit(holders[:HOLDERS_TOLD])

    def take_slot(self, limit: LimitRecord, run_id: UUID) -> bool:
        """Give the run a slot; return whether it is a new one, False when it held one already."""
        if run_id in limit.holders:
            return False
        if limit.period is not None:
            self._use_rate(limit, limit.interval)
            return True
        self._move_slot(limit, run_id, self.slots_taken, self.slots_released, +1)
        self._undo.append(lambda: self._move_slot(limit, run_id, self.slots_released, self.slots_taken, -1))
        return True

    def return_slot(self, limit: LimitRecord, run_id: UUID) -> None:
        """Take back the slot that the run has just been given, because it does not enter RUNNING after all."""
        if limit.period is not None:
            self._use_rate(limit, -limit.interval)
            self.waiting.touch(limit)
        else:
            self.release_slot(limit, run_id)

    def _use_rate(self, limit: LimitRecord, time: timedelta) -> None:
        was_used = limit.id in self.rates_used
        self.rates_used[limit.id] = limit
        limit.used += time

        def undo() -> None:
            limit.used -= time
            if not was_used:
                del self.rates_used[limit.id]

        self._undo.append(undo)

    def release_slot(self, limit: LimitRecord, run_id: UUID) -> None:
        """Take the run's slot back, if it has one. What it has used of a rate comes back by time alone."""
        if run_id in limit.holders:
            self._move_slot(limit, run_id, self.slots_released, self.slots_taken, -1)
            self.waiting.touch(limit)
            self._undo.append(lambda: self._move_slot(limit, run_id, self.slots_taken, self.slots_released, +1))

    @staticmethod
    def _move_slot(
        limit: LimitRecord, run_id: UUID, to: set[tuple[int, UUID]], opposite: set[tuple[int, UUID]], change: int
    ) -> None:
        slot = (limit.id, run_id)
        if slot in opposite:
            opposite.discard(slot)
        else:
            to.add(slot)
        limit.slots_held += change
        limit.holders.symmetric_difference_update({run_id})

    # -- cache -------------------------------------------------------------------------------------------------------

    def cached_state(self, cache_key: str) -> State | None:
        """Return the newest state cached under the key that has not expired, or None."""
        for entry in reversed(self.cache.get(cache_key, ())):
            if entry.cache_expiration is None or entry.cache_expiration > self.now:
                return entry.state
        return None

    def add_cache_entry(self, entry: CacheEntry) -> None:
        """Cache a state under its key; later runs take the newest."""
        entries = self.cache.setdefault(entry.cache_key, [])
        entries.append(entry)
        self.cache_added.append(entry)
        self._undo += [entries.pop, self.cache_added.pop]

    # -- the ledger --------------------------------------------------------------------------------------------------

    def record_verdict(
        self, verdict: Verdict, digest: int | None = None, actor: str | None = None, trace: str | None = None
    ) -> None:
        """Keep the verdict for ever: from now on the proposal's id has this verdict and the content of `digest`."""
        self.verdicts[verdict.proposal_id] = entry = LedgerEntry(verdict, digest, actor, trace, self.now)
        self.new_verdicts.append(entry)

    def record_answer(self, answer: Answer) -> None:
        """Keep an answer that is no verdict for ever, as for verdicts."""
        self.answers[answer.request_id] = answer
        self.new_answers.append(answer)
