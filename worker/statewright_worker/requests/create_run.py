"""The creation of runs: answered with the run as it is now, and refused when another run has its id."""

from typing import Any, Final
from uuid import UUID

from statewright.messages import CreateFlowRun, CreateRun, CreateTaskRun, ErrorCode, ErrorReply, Reply, RunReply
from statewright.runs import RunKind
from statewright_worker.facts.batch import Asked
from statewright_worker.orchestration.engine import Engine
from statewright_worker.orchestration.records import AnyRunRecord, FlowRunRecord, TaskRunRecord, limits_asked_for
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.requests.base import InBatch, Incoming, OfRun, refusal

_NO_CONTENT: Final = frozenset({"v", "type", "run_id"})
_SAME_POLICY: Final = ("retries", "retry_delay", "retry_jitter_factor", "retry_type", "limits")
"""The fields of a run's policy that never change."""


class CreateRunKind(OfRun[CreateRun]):
    """Creates a flow run or a task run, unless it exists."""

    changes = True

    def ask(self, request: CreateRun, asked: Asked, engine: Engine) -> None:
        asked.runs.ids.add(request.run_id)
        _, parent_id, _ = _parent_of(request)
        if parent_id is not None:
            asked.runs.ids.add(parent_id)
        if isinstance(request, CreateTaskRun):
            kind, limits = RunKind.TASK_RUN, limits_asked_for(request.policy, tags=request.tags)
        else:
            kind, limits = RunKind.FLOW_RUN, limits_asked_for(request.policy, deployment_id=request.deployment_id)
        asked.limits.created(kind, request.run_id, request.tags, limits)

    async def carry_out(self, request: CreateRun, incoming: Incoming, batch: InBatch) -> Reply:
        work = batch.work
        run = work.runs.get(request.run_id)
        if run is None:
            problem = _missing_parent(request, work)
            if problem is not None:
                return problem
            run = _new_run(request, work)
            work.create_run(run)
        elif difference := _difference(run, request):
            return difference
        return RunReply.trusted(type="run", run=run.as_run())


def _parent_of(request: CreateRun) -> tuple[str, UUID | None, RunKind]:
    if isinstance(request, CreateTaskRun):
        return "flow_run_id", request.flow_run_id, RunKind.FLOW_RUN
    return "parent_task_run_id", request.parent_task_run_id, RunKind.TASK_RUN


def _missing_parent(request: CreateRun, work: UnitOfWork) -> ErrorReply | None:
    field, parent_id, kind = _parent_of(request)
    parent = work.runs.get(parent_id) if parent_id is not None else None
    if parent_id is None or (parent is not None and parent.kind is kind):
        return None
    return refusal(ErrorCode.RUN_CONFLICT, field, f"there is no {kind} {parent_id}; create it first")


def _new_run(request: CreateRun, work: UnitOfWork) -> AnyRunRecord:
    shared: dict[str, Any] = {"id": request.run_id, "name": request.name, "created": work.now}
    shared |= {"tags": request.tags, "policy": request.policy}
    if isinstance(request, CreateTaskRun):
        return TaskRunRecord(**shared, flow_run_id=request.flow_run_id, task_key=request.task_key)
    return FlowRunRecord(
        **shared,
        flow_id=request.flow_id,
        deployment_id=request.deployment_id,
        parent_task_run_id=request.parent_task_run_id,
    )


def _difference(run: AnyRunRecord, request: CreateRun) -> ErrorReply | None:
    """Return the refusal of a request for a run that exists with other content, None when the content is the same."""
    wanted = FlowRunRecord if isinstance(request, CreateFlowRun) else TaskRunRecord
    if not isinstance(run, wanted):
        return refusal(ErrorCode.RUN_CONFLICT, "run_id", f"{run.id} is a {run.kind} already")
    for field in request.__class__.model_fields:
        if field in _NO_CONTENT:
            continue
        asked, is_so = getattr(request, field), getattr(run, field)
        same = (
            all(getattr(asked, name) == getattr(is_so, name) for name in _SAME_POLICY)
            if field == "policy"
            else (asked == is_so)
        )
        if not same:
            return refusal(
                ErrorCode.RUN_CONFLICT,
                field,
                f"{field}: the {run.kind} {run.id} was created with another one before; the same idempotency key or"
                " run_id must come with the same content",
            )
    return None
