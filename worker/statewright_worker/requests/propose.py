"""Proposals: governed by the engine, answered with a verdict."""

import structlog

from statewright.messages import ErrorReply, Propose, Reply, VerdictReply
from statewright.verdicts import Verdict
from statewright_worker.facts.batch import Asked
from statewright_worker.orchestration.engine import Engine, Proposal
from statewright_worker.orchestration.errors import OrchestrationError, RuleFailed
from statewright_worker.requests.base import BatchSpoiled, InBatch, Incoming, OfRun, failure
from statewright_worker.storage.errors import NotWritable

log = structlog.get_logger()


async def decide(proposal: Proposal, incoming: Incoming, batch: InBatch) -> Verdict | ErrorReply:
    """Govern the proposal that was begun in the batch's unit of work, and keep its verdict or undo what it did.

    An ErrorReply means that everything since `begin` is undone. Raises BatchSpoiled when the proposal has cost the
    batch its transaction, and StorageError.
    """
    work, sessions = batch.work, batch.sessions
    try:
        verdict = await batch.engine.decide(proposal, work, sessions)
        await sessions.keep()
    except (OrchestrationError, NotWritable) as error:
        work.roll_back()
        return await _failed(proposal, incoming, batch, error)
    work.commit()
    work.record_verdict(verdict, incoming.digest)
    return verdict


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
        batch.work.begin()
        decided = await decide(proposal, incoming, batch)
        return verdict_reply(decided) if isinstance(decided, Verdict) else decided


def verdict_reply(verdict: Verdict) -> VerdictReply:
    """Return the answer that tells a verdict."""
    return VerdictReply.trusted(type="verdict", verdict=verdict)


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
