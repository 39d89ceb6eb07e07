"""Proposals: governed by the engine, answered with a verdict."""

import structlog

from statewright.messages import ErrorReply, Propose, Reply
from statewright.verdicts import SetStateStatus, Verdict
from statewright_worker.facts.batch import Asked
from statewright_worker.orchestration.engine import Engine, Proposal
from statewright_worker.orchestration.errors import OrchestrationError, RuleFailed
from statewright_worker.requests.base import BatchSpoiled, InBatch, Incoming, OfRun, failure, verdict_reply
from statewright_worker.requests.parking import park
from statewright_worker.storage.errors import NotWritable

log = structlog.get_logger()


class ProposeKind(OfRun[Propose]):
    """Lets a run enter a state, if its rules agree."""

    changes = True

    def ask(self, request: Propose, asked: Asked, engine: Engine) -> None:
        asked.runs.ids.add(request.run_id)
        asked.foretell(request, engine.needs(request.state.type, request.force))

    async def carry_out(self, request: Propose, incoming: Incoming, batch: InBatch) -> Reply:
        proposal = Proposal(
            incoming.id, request.run_id, request.state, incoming.entered, request.force, request.api_version
        )
        work = batch.work
        verdict = await govern(proposal, incoming, batch)
        if isinstance(verdict, ErrorReply):
            return verdict
        if verdict.status is SetStateStatus.WAIT and request.on_wait == "park":
            parked = park(request, incoming, batch, verdict.reason)
            if parked is not None:
                work.commit()
                return parked
        work.commit()
        work.record_verdict(verdict, incoming.digest)
        return verdict_reply(verdict)


async def govern(proposal: Proposal, incoming: Incoming, batch: InBatch) -> Verdict | ErrorReply:
    """Begin a proposal and return its verdict, which the caller keeps or rolls back; or what has failed, undone.

    Raises BatchSpoiled when it has cost the batch its transaction, and StorageError.
    """
    work, sessions = batch.work, batch.sessions
    work.begin()
    try:
        verdict = await batch.engine.decide(proposal, work, sessions)
        await sessions.keep()
    except (OrchestrationError, NotWritable) as error:
        work.roll_back()
        return await _failed(proposal, incoming, batch, error)
    return verdict


async def _failed(
    proposal: Proposal, incoming: Incoming, batch: InBatch, error: OrchestrationError | NotWritable
) -> ErrorReply:
    reply = failure(error)
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
