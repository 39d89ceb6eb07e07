"""Leases that end: whoever has fallen silent holds nothing any more.

A timer is not moved when its lease is renewed. So it may come due while the lease is good, and is set anew then.
"""

from dataclasses import dataclass
from uuid import UUID

import structlog

from statewright.protocol.replies import ErrorCode, ErrorReply, Reply
from statewright.protocol.requests import Propose
from statewright.states import NO_DETAILS, ProposedState, State
from statewright_worker.facts.batch import Asked
from statewright_worker.orchestration.engine import Engine, Proposal
from statewright_worker.orchestration.records import LeaseRecord, TimerKind
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.requests.base import InBatch, Incoming, WhenDue
from statewright_worker.requests.propose import decide

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class EndLease:
    """A run's lease ends, unless it was renewed."""

    run_id: UUID


class EndLeaseKind(WhenDue[EndLease]):
    """Lets a run crash whose lease has ended: through the policies, and by force where they would let it be."""

    def ask(self, request: EndLease, asked: Asked, engine: Engine) -> None:
        asked.runs.ids.add(request.run_id)
        asked.leases.ids.add(request.run_id)
        crashing = Propose(run_id=request.run_id, state=State.crashed())
        asked.foretell(crashing, engine.needs(crashing))

    def ask_refused(self, request: EndLease, asked: Asked, engine: Engine) -> None:
        self.ask(request, asked, engine)

    async def carry_out(self, request: EndLease, incoming: Incoming, batch: InBatch) -> Reply | None:
        lease = _ended(request, batch.work)
        if lease is None:
            return None
        crashed = _crashed(lease, batch.work)
        work = batch.work
        proposal = Proposal(work.ids.new(), lease.run_id, crashed, work.now)
        problem = await decide(proposal, incoming, batch)
        if _is_in_it(lease, work):
            reason = work.verdicts[proposal.id].verdict.reason if problem is None else problem.message
            return await _force(lease, crashed, reason, incoming, batch)
        return None

    async def refuse(
        self, request: EndLease, incoming: Incoming, batch: InBatch, condemned: ErrorReply
    ) -> Reply | None:
        if condemned.code is not ErrorCode.RULE_FAILED:
            return condemned
        lease = _ended(request, batch.work)
        if lease is None:
            return None
        return await _force(lease, _crashed(lease, batch.work), condemned.message, incoming, batch)


@dataclass(frozen=True, slots=True)
class EndExecutor:
    """An executor's lease ends, unless it was renewed."""

    executor_id: UUID


class EndExecutorKind(WhenDue[EndExecutor]):
    """Leaves the runs of an executor whose lease has ended to themselves: their own leases have ended, too."""

    def ask(self, request: EndExecutor, asked: Asked, engine: Engine) -> None:
        asked.leases.executors.add(request.executor_id)

    async def carry_out(self, request: EndExecutor, incoming: Incoming, batch: InBatch) -> Reply | None:
        work = batch.work
        ends = work.leases.executors.get(request.executor_id)
        if ends is None:
            work.waiting.clear_timer(TimerKind.EXECUTOR, request.executor_id)
        else:
            # If it has ended, the next look finds its runs.
            work.waiting.set_timer(TimerKind.EXECUTOR, request.executor_id, max(ends, work.now))
        return None


def _ended(request: EndLease, work: UnitOfWork) -> LeaseRecord | None:
    """Return the run's lease if it has ended, and the run is still in its state; otherwise see to what is left."""
    lease = work.leases.known.get(request.run_id)
    if lease is None or lease.executor is not None:
        work.waiting.clear_timer(TimerKind.LEASE, request.run_id)
    elif lease.ends > work.now:
        work.waiting.set_timer(TimerKind.LEASE, request.run_id, lease.ends)
    elif _is_in_it(lease, work):
        return lease
    else:
        work.leases.end(request.run_id)
    return None


def _is_in_it(lease: LeaseRecord, work: UnitOfWork) -> bool:
    run = work.runs.get(lease.run_id)
    return run is not None and run.state is not None and run.state.id == lease.state_id


def _crashed(lease: LeaseRecord, work: UnitOfWork) -> ProposedState:
    state = work.runs[lease.run_id].state
    details = NO_DETAILS if state is None else state.state_details
    whose = "" if details.executor is None else f" of executor {details.executor}"
    ended = lease.ends.isoformat(sep=" ", timespec="milliseconds")
    seconds = details.lease or lease.seconds
    return State.crashed(message=f"The lease of {seconds:g} s{whose} ended at {ended} without a heartbeat.")


async def _force(
    lease: LeaseRecord, crashed: ProposedState, reason: str | None, incoming: Incoming, batch: InBatch
) -> Reply | None:
    """Let the run crash by force: what the dead hold must come free, whatever the rules say."""
    work = batch.work
    log.error("a run whose lease has ended is crashed by force", run=str(lease.run_id), reason=reason)
    return await decide(Proposal(work.ids.new(), lease.run_id, crashed, work.now, force=True), incoming, batch)
