"""Proposals: governed by the engine, answered with a verdict."""

from typing import Final
from uuid import UUID

import structlog

from statewright.protocol.replies import ErrorReply, Reply
from statewright.protocol.requests import Propose
from statewright.states import StateType
from statewright.verdicts import SetStateStatus, Verdict
from statewright_worker.facts.batch import Asked
from statewright_worker.orchestration.engine import Engine, Proposal
from statewright_worker.orchestration.errors import OrchestrationError, RuleFailed
from statewright_worker.orchestration.records import TimerKind
from statewright_worker.orchestration.trace import with_parking
from statewright_worker.requests.base import BatchSpoiled, InBatch, Incoming, OfRun, failure, verdict_reply
from statewright_worker.requests.parking import park, withdraw_those_of
from statewright_worker.storage.errors import NotWritable

LEAD_DOWN: Final = frozenset({StateType.CANCELLED, StateType.CRASHED})
"""The ends of a flow run in which those below may follow it."""

log = structlog.get_logger()


async def govern(proposal: Proposal, incoming: Incoming, batch: InBatch) -> Verdict | ErrorReply:
    """Govern the proposal that was begun in the batch's unit of work, and return the verdict, which is not kept yet.

    An ErrorReply means that everything since `begin` is undone. Raises BatchSpoiled when the proposal has cost the
    batch its transaction, and StorageError.
    """
    work, sessions = batch.work, batch.sessions
    try:
        verdict = await batch.engine.decide(proposal, work, sessions)
        await (sessions.send() if proposal.is_what_if else sessions.keep())
    except (OrchestrationError, NotWritable) as error:
        work.roll_back()
        return await _failed(proposal, incoming, batch, error)
    return verdict


async def decide(proposal: Proposal, incoming: Incoming, batch: InBatch) -> ErrorReply | None:
    """Decide on a proposal of the engine's own, and keep its verdict; return why nothing of it was done, if so.

    Raises what `govern` does.
    """
    work = batch.work
    work.begin(incoming.actor)
    verdict = await govern(proposal, incoming, batch)
    if isinstance(verdict, ErrorReply):
        return verdict
    work.commit()
    work.record_verdict(verdict, actor=incoming.actor, trace=work.trace)
    return None


class ProposeKind(OfRun[Propose]):
    """Lets a run enter a state, if its rules agree."""

    changes = True

    def decides_on(self, request: Propose) -> UUID:
        return request.run_id

    def ask(self, request: Propose, asked: Asked, engine: Engine) -> None:
        asked.runs.ids.add(request.run_id)
        asked.foretell(request, engine.needs(request))
        if request.state.is_cancelled():
            asked.parked.of_runs.add(request.run_id)

    async def carry_out(self, request: Propose, incoming: Incoming, batch: InBatch) -> Reply:
        state, entered = request.state, incoming.entered
        if incoming.timer is not None:
            # What was parked is entered now, and not when it was asked for.
            state, entered = state.replaced(timestamp=None), batch.work.now
        proposal = Proposal(
            incoming.id,
            request.run_id,
            state,
            entered,
            request.force,
            request.api_version,
            request.priority or 0,
        )
        work = batch.work
        work.begin(incoming.actor)
        verdict = await govern(proposal, incoming, batch)
        if isinstance(verdict, ErrorReply):
            return verdict
        if verdict.status is SetStateStatus.WAIT and request.on_wait == "park":
            parked = park(request, incoming, batch, verdict.reason)
            if parked is not None:
                work.commit()
                return parked
        work.commit()
        trace = work.trace
        if incoming.timer is not None and (was_parked := work.waiting.parked.get(incoming.id)) is not None:
            trace = with_parking(trace, was_parked)
        work.record_verdict(verdict, incoming.digest, incoming.actor, trace)
        if verdict.state is not None and verdict.state.is_cancelled():
            withdraw_those_of(request.run_id, incoming.id, batch)
        if request.cascade and verdict.accepted and request.state.type in LEAD_DOWN:
            work.waiting.set_timer(TimerKind.CASCADE, request.run_id, work.now)
        return verdict_reply(verdict)


async def _failed(
    proposal: Proposal, incoming: Incoming, batch: InBatch, error: OrchestrationError | NotWritable
) -> ErrorReply:
    reply = failure(error, batch.work)
    if isinstance(error, RuleFailed):
        batch.sessions.raise_what_is_not_the_rules(error.__cause__)
        told = {"rule": error.rule, "run": str(proposal.run_id), "proposal": str(proposal.id)}
        log.error("a rule failed", **told, exc_info=error.__cause__ or error)
        if error.blocked:
            # PostgreSQL has waited as long, and may have ended the transaction.
            raise BatchSpoiled(incoming, reply) from error
    if not await batch.sessions.undo():
        raise BatchSpoiled(incoming, reply) from error
    return reply
