"""What if: the verdict that a proposal would get now, with its trace; everything is undone."""

from typing import Any

from statewright.explanations import Explanation, Trace, TraceSource
from statewright.protocol.replies import ErrorCode, ErrorReply, ExplanationReply, Reply
from statewright.protocol.requests import Propose, WhatIf
from statewright_worker.facts.base import PAGE_BYTES
from statewright_worker.facts.batch import Asked
from statewright_worker.orchestration.engine import Engine, Proposal
from statewright_worker.requests.base import BatchSpoiled, InBatch, Incoming, OfRun, refusal
from statewright_worker.requests.propose import govern

_OF_PROPOSALS: dict[str, Any] = {name: field.get_default() for name, field in Propose.model_fields.items()}


class WhatIfKind(OfRun[WhatIf]):
    """Decides on a proposal in the order of its partition, and undoes all of it."""

    answer_bytes = PAGE_BYTES

    def ask(self, request: WhatIf, asked: Asked, engine: Engine) -> None:
        asked.runs.ids.add(request.run_id)
        proposal = Propose.trusted(**{**_OF_PROPOSALS, **request.__dict__, "type": "propose"})
        asked.foretell(proposal, engine.needs(proposal))

    async def carry_out(self, request: WhatIf, incoming: Incoming, batch: InBatch) -> Reply:
        work = batch.work
        proposal = Proposal(
            # Not the request's own: it would have a place in the queues, and may be that of a real proposal later.
            work.ids.new(),
            request.run_id,
            request.state,
            incoming.entered,
            request.force,
            request.api_version,
            request.priority or 0,
            is_what_if=True,
        )
        work.begin(incoming.actor)
        verdict = await govern(proposal, incoming, batch)
        if isinstance(verdict, ErrorReply):
            return verdict
        trace = Trace.model_validate_json(work.trace or "{}")
        work.roll_back()
        if not await batch.sessions.undo():
            raise BatchSpoiled(incoming, refusal(ErrorCode.RULE_FAILED, None, "a rule has lost its connection"))
        explanation = Explanation(
            proposal_id=incoming.id,
            run_id=request.run_id,
            source=TraceSource.NOW,
            actor=incoming.actor,
            verdict=verdict.replaced(proposal_id=incoming.id),
            decided=work.now,
            trace=trace,
            reason=verdict.reason,
        )
        return ExplanationReply(proposal_id=incoming.id, explanation=explanation)
