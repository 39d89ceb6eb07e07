"""Explaining: why a proposal was decided as it was, or why it is parked. It changes nothing."""

from uuid import UUID

from statewright.explanations import AwaitedLimit, BriefState, Explanation, RuleTrace, Trace, TraceSource
from statewright.ids import partition_of
from statewright.protocol.replies import ErrorReply, ExplanationReply, Reply
from statewright.protocol.requests import Explain
from statewright.states import State
from statewright.verdicts import Verdict
from statewright_worker.facts.base import PAGE_BYTES
from statewright_worker.facts.batch import Asked
from statewright_worker.orchestration.engine import Engine
from statewright_worker.orchestration.records import LedgerEntry, ParkedProposal
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.requests.base import InBatch, Incoming, Kind, deleted, known_reply


class ExplainKind(Kind[Explain]):
    """Explains a proposal, also one that an earlier request of the batch has decided or parked."""

    answer_bytes = PAGE_BYTES

    def place(self, request: Explain, partitions: int) -> tuple[str, int]:
        if request.run_id is not None:
            return "run_id", partition_of(request.run_id, partitions)
        return "partition", request.partition

    def ask(self, request: Explain, asked: Asked, engine: Engine) -> None:
        asked.inquiries.proposal_ids.add(request.proposal_id)
        asked.explained.proposal_ids.add(request.proposal_id)
        if request.run_id is not None:
            asked.runs.ids.add(request.run_id)

    async def carry_out(self, request: Explain, incoming: Incoming, batch: InBatch) -> Reply:
        work, proposal_id = batch.work, request.proposal_id
        entry = work.verdicts.get(proposal_id)
        if entry is not None:
            return ExplanationReply(proposal_id=proposal_id, explanation=_of_verdict(entry, work))
        refused = known_reply(proposal_id, work)
        if isinstance(refused, ErrorReply):
            return ExplanationReply(proposal_id=proposal_id, refusal=refused)
        parked = work.waiting.parked.get(proposal_id) or work.waiting.seen.get(proposal_id)
        if refused is None and parked is None and request.run_id in work.deleting.gone:
            return deleted(request.run_id)
        if refused is not None or parked is None:
            # What has another answer is no proposal.
            return ExplanationReply(proposal_id=proposal_id)
        return ExplanationReply(proposal_id=proposal_id, explanation=_of_parked(parked, work))


def _of_verdict(entry: LedgerEntry, work: UnitOfWork) -> Explanation:
    verdict = entry.verdict
    kept = Trace() if entry.trace is None else Trace.model_validate_json(entry.trace)
    is_recorded = bool(kept.rules) or kept.intended is not None
    return Explanation(
        proposal_id=verdict.proposal_id,
        run_id=verdict.run_id,
        source=TraceSource.RECORDED if is_recorded else TraceSource.SIGNATURES,
        actor=entry.actor,
        verdict=verdict,
        decided=entry.decided,
        trace=kept if is_recorded else _out_of_signatures(verdict, kept, work),
        reason=verdict.reason,
    )


def _out_of_signatures(verdict: Verdict, kept: Trace, work: UnitOfWork) -> Trace:
    left = verdict.finalization_signature
    rules = tuple(RuleTrace(rule=rule, fizzled=rule not in left) for rule in verdict.rule_signature)
    accepted = verdict.state if verdict.accepted else None
    return kept.replaced(initial=_left_by(verdict.proposal_id, work), intended=_brief(accepted), rules=rules)


def _left_by(proposal_id: UUID, work: UnitOfWork) -> BriefState | None:
    """Return the state that an accepted proposal has ended, None where it was the run's first, or nobody knows."""
    known = work.explaining.left.get(proposal_id)
    if known is not None:
        return known
    run_id = work.verdicts[proposal_id].verdict.run_id
    caused = (one for one in work.state_changes if one.proposal_id == proposal_id and one.run.id == run_id)
    return next((_brief(change.previous) for change in caused), None)


def _brief(state: State | None) -> BriefState | None:
    return None if state is None else BriefState(type=state.type, name=state.name)


def _of_parked(parked: ParkedProposal, work: UnitOfWork) -> Explanation:
    return Explanation(
        proposal_id=parked.proposal_id,
        run_id=parked.run_id,
        source=TraceSource.RECORDED,
        actor=parked.actor,
        trace=Trace() if parked.trace is None else Trace.model_validate_json(parked.trace),
        parked_since=parked.since,
        reason=parked.reason,
        waits_for=_waits_for(parked, work),
    )


def _waits_for(parked: ParkedProposal, work: UnitOfWork) -> tuple[AwaitedLimit, ...]:
    """Return the limits that it waits for, as they were before the batch; if that has parked it, as they are there."""
    read = work.explaining.awaited.get(parked.proposal_id)
    if read is not None:
        return tuple(read)
    turn = -parked.priority, parked.ticket
    limits = [limit for name in parked.waits_on if (limit := work.limits.get(name)) is not None]
    return tuple(
        AwaitedLimit(limit=limit.as_limit(), before=limit.ahead_of(parked.proposal_id, turn)) for limit in limits
    )
