"""Pauses that end: a flow run that nobody has resumed in time fails.

Source of the behaviour and of its text: the service of the documented engine that fails expired pauses.
"""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from statewright.protocol.replies import Reply
from statewright.protocol.requests import Propose
from statewright.states import State
from statewright_worker.facts.batch import Asked
from statewright_worker.orchestration.engine import Engine, Proposal
from statewright_worker.orchestration.records import TimerKind
from statewright_worker.requests.base import InBatch, Incoming, WhenDue
from statewright_worker.requests.propose import decide

NEVER_RESUMED: Final = State.failed(message="The flow was paused and never resumed.")


@dataclass(frozen=True, slots=True)
class EndPause:
    """A flow run's pause ends, unless it was resumed or paused anew."""

    flow_run_id: UUID


class EndPauseKind(WhenDue[EndPause]):
    """Lets a flow run fail, by force, when its pause is over."""

    def ask(self, request: EndPause, asked: Asked, engine: Engine) -> None:
        asked.runs.ids.add(request.flow_run_id)
        failing = Propose(run_id=request.flow_run_id, state=NEVER_RESUMED, force=True)
        asked.foretell(failing, engine.needs(failing))

    async def carry_out(self, request: EndPause, incoming: Incoming, batch: InBatch) -> Reply | None:
        work = batch.work
        run = work.runs.get(request.flow_run_id)
        state = None if run is None else run.state
        until = state.state_details.pause_timeout if state is not None and state.is_paused() else None
        work.waiting.clear_timer(TimerKind.PAUSE, request.flow_run_id)
        if until is None or until > work.now:
            if until is not None:
                work.waiting.set_timer(TimerKind.PAUSE, request.flow_run_id, until)
            return None
        proposal = Proposal(work.ids.new(), request.flow_run_id, NEVER_RESUMED, work.now, force=True)
        return await decide(proposal, incoming, batch)
