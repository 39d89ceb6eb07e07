"""Changes of runs: answered with the run as it is then, and refused when the run is past changing."""

from pydantic_core import to_json

from statewright.protocol.replies import ErrorCode, ErrorReply, Reply, RunReply
from statewright.protocol.requests import UpdateRun
from statewright.runs import RunKind, RunPolicy
from statewright.states import TERMINAL_STATES, StateType
from statewright_worker.facts.batch import Asked
from statewright_worker.facts.ledger import as_created
from statewright_worker.orchestration.engine import Engine
from statewright_worker.orchestration.records import Answer, AnyRunRecord, TimerKind, limits_asked_for, with_marks_of
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.requests.base import InBatch, Incoming, OfRun, no_run, refusal


class UpdateRunKind(OfRun[UpdateRun]):
    """Changes a run's name, tags or policy; requests behind it see the run changed."""

    changes = True
    keeps_answer = True

    def ask(self, request: UpdateRun, asked: Asked, engine: Engine) -> None:
        asked.runs.ids.add(request.run_id)
        asked.runs.labelled.add(request.run_id)
        asked.ledger.request_ids.append(as_created(request.run_id))
        # As for a new run, what it will ask for stands in no row yet when limits are loaded. Nor is known of which kind
        # it is; only task runs ask for the limits on their tags.
        tags, policy = request.tags or (), request.policy or RunPolicy()
        asked.limits.created(RunKind.TASK_RUN, request.run_id, tags, limits_asked_for(policy, tags=tags))
        asked.limits.created(RunKind.FLOW_RUN, request.run_id, tags, limits_asked_for(policy))
        if _concerns_decisions(request):
            asked.parked.of_runs.add(request.run_id)

    async def carry_out(self, request: UpdateRun, incoming: Incoming, batch: InBatch) -> Reply:
        work = batch.work
        work.begin(incoming.actor)
        run = work.run(request.run_id)
        if run is None:
            return no_run(request.run_id, work)
        problem = _problem(run, request)
        if problem is not None:
            return problem
        _keep_as_created(run, work)
        if request.policy is not None:
            run.policy = with_marks_of(request.policy, run.policy)
        if request.name is not None:
            run.name = request.name
        if request.tags is not None:
            run.tags = request.tags
        if _concerns_decisions(request):
            _look_at_parked(run, work)
        work.commit()
        return RunReply(run=run.as_run(work.labels[run.id]))


def _problem(run: AnyRunRecord, request: UpdateRun) -> ErrorReply | None:
    """Return why the run cannot be changed so, None when it can."""
    fields = [field for field in ("name", "tags", "policy") if getattr(request, field) is not None]
    if run.state_type in TERMINAL_STATES and fields:
        return refusal(
            ErrorCode.RUN_CONFLICT,
            fields[0],
            f"{fields[0]}: the {run.kind} {run.id} is {run.state_type}, and a run in a terminal state stays as it is;"
            " create another one",
        )
    if run.state_type is StateType.RUNNING and request.tags is not None:
        return refusal(
            ErrorCode.RUN_CONFLICT,
            "tags",
            f"tags: the {run.kind} {run.id} is RUNNING, and may hold slots by its tags; change them before it is"
            " RUNNING, or once it has left that state, for example for its retry",
        )
    policy = request.policy
    if run.state_type is StateType.RUNNING and policy is not None and set(policy.limits) != set(run.policy.limits):
        return refusal(
            ErrorCode.RUN_CONFLICT,
            "policy.limits",
            f"policy.limits: the {run.kind} {run.id} is RUNNING, and may hold slots of the limits its policy names;"
            f" give the new policy the same ones ({', '.join(run.policy.limits) or 'none'}), or change it once the run"
            " has left that state",
        )
    return None


def _concerns_decisions(request: UpdateRun) -> bool:
    return request.tags is not None or request.policy is not None


def _look_at_parked(run: AnyRunRecord, work: UnitOfWork) -> None:
    """Let the run's parked proposals be decided again now: they may wait for what the run does not ask for any more."""
    for parked in work.waiting.of_run(run.id):
        work.waiting.set_timer(TimerKind.PARKED, parked.proposal_id, work.now)


def _keep_as_created(run: AnyRunRecord, work: UnitOfWork) -> None:
    """Let the ledger keep what the run was created with, before it is changed for the first time."""
    kept = as_created(run.id)
    if kept not in work.answers:
        reply = RunReply(run=run.as_run(work.labels[run.id]).replaced(state=None))
        work.record_answer(Answer(kept, 0, to_json(reply, exclude_none=True).decode(), run.id))
