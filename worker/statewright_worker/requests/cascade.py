"""Following down: the runs below a flow run that was cancelled or has crashed come to the same end.

They follow in the lane of their tree, some at a time, so that a flow run may have any number of them.
"""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from statewright.protocol.replies import ErrorReply, Reply
from statewright.protocol.requests import Propose
from statewright.states import ProposedState, State, StateType
from statewright_worker.facts.batch import Asked
from statewright_worker.facts.below import CHILDREN_AT_ONCE
from statewright_worker.orchestration.engine import Engine, Proposal
from statewright_worker.orchestration.records import FlowRunRecord, TimerKind
from statewright_worker.requests.base import InBatch, Incoming, WhenDue
from statewright_worker.requests.parking import withdraw_those_of
from statewright_worker.requests.propose import decide

# The first text is the documented one; the documented engine lets nobody follow a crash.
FOLLOWS: Final[dict[StateType | None, ProposedState]] = {
    StateType.CANCELLED: State.cancelled(message="The parent flow run was cancelled."),
    StateType.CRASHED: State.crashed(message="The parent flow run has crashed."),
}


@dataclass(frozen=True, slots=True)
class FollowDown:
    """What is below a flow run follows it."""

    flow_run_id: UUID


class FollowDownKind(WhenDue[FollowDown]):
    """Ends some of the runs below a flow run by force, and comes due again until none is left."""

    def ask(self, request: FollowDown, asked: Asked, engine: Engine) -> None:
        asked.runs.ids.add(request.flow_run_id)
        asked.below.flow_runs.add(request.flow_run_id)
        for state in FOLLOWS.values():
            following = Propose(run_id=request.flow_run_id, state=state, force=True)
            asked.foretell(following, engine.needs(following))

    async def carry_out(self, request: FollowDown, incoming: Incoming, batch: InBatch) -> Reply | None:
        work = batch.work
        flow_run = work.runs.get(request.flow_run_id)
        follows = None if flow_run is None else FOLLOWS.get(flow_run.state_type)
        work.waiting.clear_timer(TimerKind.CASCADE, request.flow_run_id)
        if follows is None:
            # The flow run was started again meanwhile.
            return None
        below = work.below[request.flow_run_id]
        problems = [problem for run_id in below if (problem := await _follow(run_id, follows, incoming, batch))]
        if problems:
            # The others follow all the same; these are tried again later.
            return problems[0]
        if len(below) == CHILDREN_AT_ONCE:
            work.waiting.set_timer(TimerKind.CASCADE, request.flow_run_id, work.now)
        return None


async def _follow(run_id: UUID, state: ProposedState, incoming: Incoming, batch: InBatch) -> ErrorReply | None:
    work = batch.work
    run = work.runs.get(run_id)
    if run is None or (run.state is not None and run.state.is_final()):
        # The task run of a subflow has followed with that.
        return None
    proposal = Proposal(work.ids.new(), run_id, state, work.now, force=True)
    problem = await decide(proposal, incoming, batch)
    if problem is not None:
        return problem
    withdraw_those_of(run_id, proposal.id, batch)
    if isinstance(run, FlowRunRecord):
        work.waiting.set_timer(TimerKind.CASCADE, run_id, work.now)
    return None
