"""Parking: proposals that would be told WAIT are kept until they can be decided, and are answered then.

A parked proposal has its answer in the ledger as soon as it is decided. Its row stays a little longer: if the worker
dies before the answer is sent, the next holder of the partition finds the row and sends the answer.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

import structlog

from statewright.protocol.channels import REQUEST_MESSAGE
from statewright.protocol.replies import ParkedReply, Reply, WithdrawnReply
from statewright.protocol.requests import Propose, Withdraw
from statewright.verdicts import SetStateStatus, Verdict
from statewright_worker.facts.batch import Asked
from statewright_worker.orchestration.engine import Engine
from statewright_worker.orchestration.records import ParkedProposal, TimerKind
from statewright_worker.orchestration.trace import with_parking
from statewright_worker.requests.base import InBatch, Incoming, Kind, LateAnswer, WhenDue, known_reply, verdict_reply

WITHDRAWN: Final = "The proposal was withdrawn."
UNREADABLE_FOR: Final = timedelta(minutes=1)
"""After this long, a parked proposal that could not be read is looked at again, perhaps by a worker that can."""

log = structlog.get_logger()

RUN_CANCELLED: Final = "The run was cancelled while the proposal was parked."


@dataclass(frozen=True, slots=True)
class TellParked:
    """The answer to a parked proposal must be sent, unless it was, and its row can go."""

    proposal_id: UUID
    is_told: bool


class TellParkedKind(WhenDue[TellParked]):
    """Sends the answer to a parked proposal from the ledger, and deletes what was parked."""

    def ask(self, request: TellParked, asked: Asked, engine: Engine) -> None:
        if not request.is_told:
            asked.ledger.request_ids.append(request.proposal_id)

    async def carry_out(self, request: TellParked, incoming: Incoming, batch: InBatch) -> Reply | None:
        waiting = batch.work.waiting
        parked = waiting.parked.get(request.proposal_id)
        if parked is not None and not parked.decided:
            return None
        waiting.forget(request.proposal_id)
        reply = None if request.is_told else known_reply(request.proposal_id, batch.work)
        if reply is not None and incoming.reply_to is not None:
            batch.late.append(LateAnswer(incoming.reply_to, request.proposal_id, reply))
        return None


@dataclass(frozen=True, slots=True)
class KeepParked:
    """A parked proposal that this version cannot read, because a newer one has parked it."""

    proposal_id: UUID
    problem: str


class KeepParkedKind(WhenDue[KeepParked]):
    """Keeps a parked proposal for a worker that can read it."""

    def ask(self, request: KeepParked, asked: Asked, engine: Engine) -> None:
        return

    async def carry_out(self, request: KeepParked, incoming: Incoming, batch: InBatch) -> Reply | None:
        parked = batch.work.waiting.parked.get(request.proposal_id)
        if parked is None or parked.decided:
            return None
        log.warning("a parked proposal cannot be read", proposal=str(request.proposal_id), problem=request.problem)
        work = batch.work
        work.waiting.set_timer(TimerKind.PARKED, request.proposal_id, work.now + UNREADABLE_FOR)
        return None


class WithdrawKind(Kind[Withdraw]):
    """Withdraws a parked proposal: it is answered at once, with ABORT."""

    changes = True
    keeps_answer = True

    def place(self, request: Withdraw, partitions: int) -> tuple[str, int]:
        return "partition", request.partition

    def ask(self, request: Withdraw, asked: Asked, engine: Engine) -> None:
        asked.parked.ids.add(request.proposal_id)

    async def carry_out(self, request: Withdraw, incoming: Incoming, batch: InBatch) -> Reply:
        parked = batch.work.waiting.parked.get(request.proposal_id)
        is_here = parked is not None and not parked.decided and batch.partition == request.partition
        if parked is not None and is_here:
            batch.work.begin(incoming.actor)
            withdraw(parked, WITHDRAWN, batch)
            batch.work.commit()
        return WithdrawnReply(withdrawn=is_here)


def park(request: Propose, incoming: Incoming, batch: InBatch, reason: str | None) -> ParkedReply | None:
    """Keep a proposal that is told to WAIT, and return what its producer hears meanwhile; None when it has waited as
    long as it may, or when too many are parked.

    It is looked at again when its time has come, or when a limit that it waits for has room.
    """
    work = batch.work
    parked = work.waiting.parked.get(incoming.id)
    if parked is None and len(work.waiting.added) >= batch.parked_room:
        return None
    if parked is None:
        until = None if request.park_seconds is None else work.now + timedelta(seconds=request.park_seconds)
        message = incoming.entry.fields[REQUEST_MESSAGE].decode()
        parked = ParkedProposal(
            incoming.id,
            request.run_id,
            incoming.digest,
            message,
            incoming.reply_to,
            incoming.entry.id,
            work.now,
            until,
            request.priority or 0,
            reason=reason,
            actor=incoming.actor,
            trace=work.trace,
        )
    elif reason != parked.reason:
        work.waiting.change(parked, reason=reason, trace=work.trace)
        parked = work.waiting.parked[incoming.id]
    if parked.until is not None and parked.until <= work.now:
        return None
    work.waiting.park(parked)
    due = min((moment for moment in (work.waiting.wait_until, parked.until) if moment is not None), default=None)
    if due is not None:
        work.waiting.set_timer(TimerKind.PARKED, incoming.id, due)
    elif incoming.timer is not None:
        work.waiting.clear_timer(TimerKind.PARKED, incoming.id)
    return parked_reply(parked)


def withdraw_those_of(run_id: UUID, but: UUID, batch: InBatch) -> None:
    """Withdraw the parked proposals of a run that was cancelled, except the one that has cancelled it."""
    for parked in batch.work.waiting.of_run(run_id):
        if parked.proposal_id != but:
            withdraw(parked, RUN_CANCELLED, batch)


def parked_reply(parked: ParkedProposal) -> ParkedReply:
    """Return what is told of a proposal that is still parked."""
    return ParkedReply(proposal_id=parked.proposal_id, run_id=parked.run_id, since=parked.since, reason=parked.reason)


def withdraw(parked: ParkedProposal, reason: str, batch: InBatch) -> None:
    """Answer a parked proposal with ABORT for the reason, and take it out of its queues."""
    work = batch.work
    run = work.runs.get(parked.run_id)
    verdict = Verdict(
        proposal_id=parked.proposal_id,
        run_id=parked.run_id,
        status=SetStateStatus.ABORT,
        reason=reason,
        state=None if run is None else run.state,
    )
    work.record_verdict(verdict, parked.digest, parked.actor, with_parking(None, parked, work.actor))
    work.waiting.answer(parked)
    if parked.reply_to is not None:
        batch.late.append(LateAnswer(parked.reply_to, parked.proposal_id, verdict_reply(verdict)))
