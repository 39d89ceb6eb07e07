"""Reading timelines: what happened to a run, as it is after all requests pushed before, a page at a time."""

from collections.abc import Iterator
from datetime import datetime
from uuid import UUID

from statewright.explanations import (
    AnyEntry,
    LeaseEntry,
    SlotEntry,
    StateEntry,
    Timeline,
    Trace,
    VerdictEntry,
    WaitEntry,
    in_order,
)
from statewright.protocol.replies import Reply, TimelineReply
from statewright.protocol.requests import ReadTimeline, TimelineCursor
from statewright.values import truncated
from statewright_worker.facts.base import PAGE_BYTES
from statewright_worker.facts.batch import Asked
from statewright_worker.facts.timelines import SAID_CHARACTERS
from statewright_worker.orchestration.engine import Engine
from statewright_worker.orchestration.explaining import Moments
from statewright_worker.orchestration.records import LedgerEntry, PastState
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.requests.base import InBatch, Incoming, OfRun, no_run


class ReadTimelineKind(OfRun[ReadTimeline]):
    """Reads a page of what happened to a run, also what earlier requests of the batch have done to it."""

    answer_bytes = 2 * PAGE_BYTES

    def ask(self, request: ReadTimeline, asked: Asked, engine: Engine) -> None:
        asked.runs.ids.add(request.run_id)
        asked.runs.labelled.add(request.run_id)
        asked.timelines.read(request.run_id, request.after)

    async def carry_out(self, request: ReadTimeline, incoming: Incoming, batch: InBatch) -> Reply:
        work, run_id, after = batch.work, request.run_id, request.after
        run = work.runs.get(run_id)
        if run is None:
            return no_run(run_id, work)
        # A run that this batch has created has nothing in the database yet.
        moments = work.explaining.moments.get((run_id, after)) or Moments()
        states = work.histories[run_id][after.ordinal]
        refused = [*moments.refused]
        if not moments.are_more_refused:
            refused += [one for one in work.new_verdicts if one.verdict.run_id == run_id and not one.verdict.accepted]
        last = states[-1].ordinal if states else after.ordinal
        has_more = moments.are_more_refused or last < run.state_count
        entries = [*_of_refused(refused), *_of_states(run_id, states, moments, work)]
        if not has_more:
            entries += [*_waits(run_id, moments, work), *_slots(run_id, moments, work)]
        timeline = Timeline(run=run.as_run(work.labels[run_id]), now=work.now, entries=in_order(entries))
        return TimelineReply(timeline=timeline, next=_behind(after, last, refused) if has_more else None)


def _behind(after: TimelineCursor, ordinal: int, refused: list[LedgerEntry]) -> TimelineCursor:
    if not refused:
        return after.replaced(ordinal=ordinal)
    return TimelineCursor(ordinal=ordinal, decided=refused[-1].decided, proposal_id=refused[-1].verdict.proposal_id)


def _of_refused(refused: list[LedgerEntry]) -> Iterator[AnyEntry]:
    for entry in refused:
        yield from _verdict(entry)


def _verdict(entry: LedgerEntry) -> Iterator[AnyEntry]:
    verdict, decided = entry.verdict, entry.decided
    if decided is None:
        return
    if (kept := entry.trace and Trace.model_validate_json(entry.trace)) and kept.parked_since is not None:
        yield WaitEntry(
            at=kept.parked_since,
            until=decided,
            proposal_id=verdict.proposal_id,
            reason=kept.waited_for,
            actor=entry.actor,
        )
    yield VerdictEntry(
        at=decided,
        proposal_id=verdict.proposal_id,
        status=verdict.status,
        reason=None if verdict.reason is None else truncated(verdict.reason, SAID_CHARACTERS),
        delay_seconds=verdict.delay_seconds,
        actor=entry.actor,
    )


def _of_states(run_id: UUID, states: list[PastState], moments: Moments, work: UnitOfWork) -> Iterator[AnyEntry]:
    causes = [_cause(past, moments, work) for past in states]
    entered = _entered(states, causes)
    told: set[UUID] = set()
    for n, (past, cause) in enumerate(zip(states, causes, strict=True)):
        if cause is not None and cause.verdict.accepted and cause.verdict.run_id == run_id:
            if cause.verdict.proposal_id not in told:
                yield from _verdict(cause)
            told.add(cause.verdict.proposal_id)
        state, at = past.state, entered[n]
        until = entered[n + 1] if n + 1 < len(entered) else moments.next_at
        yield StateEntry(
            at=at,
            until=until,
            state_id=state.id,
            ordinal=past.ordinal,
            type=state.type,
            name=state.name,
            timestamp=state.timestamp,
            message=None if state.message is None else truncated(state.message, SAID_CHARACTERS),
            proposal_id=past.proposal_id,
            actor=past.actor,
        )
        details = state.state_details
        if state.is_running() and details.lease is not None:
            yield LeaseEntry(
                at=at,
                until=until,
                state_id=state.id,
                seconds=details.lease,
                executor=details.executor,
                ends=_lease_ends(run_id, state.id, moments, work),
            )


def _cause(past: PastState, moments: Moments, work: UnitOfWork) -> LedgerEntry | None:
    if past.proposal_id is None:
        return None
    return moments.decided.get(past.proposal_id) or work.verdicts.get(past.proposal_id)


def _entered(states: list[PastState], causes: list[LedgerEntry | None]) -> list[datetime]:
    """Return when the states were entered: by the database's clock, where that is kept, and never backwards."""
    moments: list[datetime] = []
    for past, cause in zip(states, causes, strict=True):
        decided = cause.decided if cause is not None and cause.decided is not None else past.state.timestamp
        moments.append(max(decided, moments[-1]) if moments else decided)
    return moments


def _lease_ends(run_id: UUID, state_id: UUID, moments: Moments, work: UnitOfWork) -> datetime | None:
    if run_id in work.leases.changed:
        begun = work.leases.changed[run_id]
        return begun.ends if begun is not None and begun.state_id == state_id else None
    return moments.lease[1] if moments.lease is not None and moments.lease[0] == state_id else None


def _waits(run_id: UUID, moments: Moments, work: UnitOfWork) -> Iterator[WaitEntry]:
    waits = {**moments.waits}
    for parked in work.waiting.of_run(run_id):
        at, reason, actor = parked.since, parked.reason, parked.actor
        waits[parked.proposal_id] = WaitEntry(at=at, proposal_id=parked.proposal_id, reason=reason, actor=actor)
    for proposal_id, wait in waits.items():
        if proposal_id not in work.verdicts:
            yield wait


def _slots(run_id: UUID, moments: Moments, work: UnitOfWork) -> Iterator[SlotEntry]:
    for limit_id, slot in moments.slots.items():
        if (limit_id, run_id) not in work.slots_released and limit_id not in work.limits_removed:
            yield slot
    for limit in work.limits.values():
        if (limit.id, run_id) in work.slots_taken:
            yield SlotEntry(at=work.now, scope=limit.scope, key=limit.key)
