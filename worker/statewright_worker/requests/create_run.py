"""The creation of runs: answered with the run as it is now, and refused when another run has its id."""

from typing import Any, Final
from uuid import UUID

from statewright.protocol.replies import ErrorCode, ErrorReply, Reply, RunReply, reply_from
from statewright.protocol.requests import PROTOCOL_VERSION, CreateFlowRun, CreateRun, CreateTaskRun, Propose
from statewright.runs import FlowRun, RunKind, TaskRun
from statewright.states import ProposedState
from statewright_worker.facts.batch import Asked
from statewright_worker.facts.ledger import as_created, first_proposal
from statewright_worker.orchestration.engine import Engine, Proposal
from statewright_worker.orchestration.records import (
    AnyRunRecord,
    FlowRunRecord,
    TaskRunRecord,
    limits_asked_for,
    with_marks_of,
)
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.requests.base import InBatch, Incoming, OfRun, refusal
from statewright_worker.requests.propose import govern

_NO_CONTENT: Final = frozenset({"v", "type", "run_id", "state"})
"""What may differ when a run is created again; its first state is proposed only once."""


class CreateRunKind(OfRun[CreateRun]):
    """Creates a flow run or a task run, unless it exists, and lets a new one enter its first state, if rules agree."""

    changes = True

    def ask(self, request: CreateRun, asked: Asked, engine: Engine) -> None:
        asked.runs.ids.add(request.run_id)
        asked.runs.new.add(request.run_id)
        asked.runs.labelled.add(request.run_id)
        asked.ledger.created.add(request.run_id)
        _, parent_id, _ = _parent_of(request)
        if parent_id is not None:
            asked.runs.ids.add(parent_id)
        if isinstance(request, CreateTaskRun):
            kind, limits = RunKind.TASK_RUN, limits_asked_for(request.policy, tags=request.tags)
        else:
            kind, limits = RunKind.FLOW_RUN, limits_asked_for(request.policy, deployment_id=request.deployment_id)
        asked.limits.created(kind, request.run_id, request.tags, limits)
        if request.state is not None:
            asked.ledger.request_ids.append(first_proposal(request.run_id))
            proposal = Propose(run_id=request.run_id, state=request.state)
            asked.foretell(proposal, engine.needs(proposal))

    async def carry_out(self, request: CreateRun, incoming: Incoming, batch: InBatch) -> Reply:
        work = batch.work
        run = work.runs.get(request.run_id)
        is_new = run is None
        if run is None:
            problem = _being_deleted(request, work) or _missing_parent(request, work)
            if problem is not None:
                return problem
            work.begin(incoming.actor)
            run = _new_run(request, work)
            work.create_run(run, request.labels)
            if request.state is None:
                work.commit()
            elif problem := await _enter(request.state, run, incoming, batch):
                return problem
        elif difference := _difference(_as_created(run, work), request):
            return difference
        told = run.as_run(work.labels[run.id])
        return RunReply.trusted(type="run", v=PROTOCOL_VERSION, run=told, created=is_new)


async def _enter(state: ProposedState, run: AnyRunRecord, incoming: Incoming, batch: InBatch) -> ErrorReply | None:
    """Keep the new run, and let it enter its first state, if the rules agree; return why nothing was done.

    A proposal that is decided already belonged to a run of the same id that was deleted since. It has its verdict.
    """
    work, proposal_id = batch.work, first_proposal(run.id)
    if proposal_id in work.verdicts or proposal_id in work.answers:
        work.commit()
        return None
    verdict = await govern(Proposal(proposal_id, run.id, state, incoming.entered), incoming, batch)
    if isinstance(verdict, ErrorReply):
        return verdict
    work.commit()
    work.record_verdict(verdict, incoming.digest, incoming.actor, work.trace)
    return None


def _parent_of(request: CreateRun) -> tuple[str, UUID | None, RunKind]:
    if isinstance(request, CreateTaskRun):
        return "flow_run_id", request.flow_run_id, RunKind.FLOW_RUN
    return "parent_task_run_id", request.parent_task_run_id, RunKind.TASK_RUN


def _being_deleted(request: CreateRun, work: UnitOfWork) -> ErrorReply | None:
    if request.run_id not in work.deleting.hidden:
        return None
    message = f"the run {request.run_id} is being deleted, which may take some seconds; create it again after that"
    return refusal(ErrorCode.RUN_PRUNED, "run_id", message)


def _missing_parent(request: CreateRun, work: UnitOfWork) -> ErrorReply | None:
    field, parent_id, kind = _parent_of(request)
    parent = work.runs.get(parent_id) if parent_id is not None else None
    if parent_id is None or (parent is not None and parent.kind is kind):
        return None
    if parent_id in work.deleting.gone:
        return refusal(ErrorCode.RUN_PRUNED, field, f"{field}: the {kind} {parent_id} was deleted")
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


def _as_created(run: AnyRunRecord, work: UnitOfWork) -> FlowRun | TaskRun:
    """Return the run with what it was created with, as far as it can be changed."""
    kept = work.answers.get(as_created(run.id))
    if kept is not None:
        reply = reply_from(kept.reply)
        # It may tell of a run of the same id that was deleted since.
        if isinstance(reply, RunReply) and reply.run.created == run.created:
            return reply.run
    return run.as_run(work.labels[run.id])


def _difference(run: FlowRun | TaskRun, request: CreateRun) -> ErrorReply | None:
    """Return the refusal of a request for a run that exists with other content, None when the content is the same."""
    wanted = FlowRun if isinstance(request, CreateFlowRun) else TaskRun
    if not isinstance(run, wanted):
        return refusal(ErrorCode.RUN_CONFLICT, "run_id", f"{run.id} is a {run.kind} already")
    for field in request.__class__.model_fields:
        if field in _NO_CONTENT:
            continue
        asked, is_so = getattr(request, field), getattr(run, field)
        if field == "policy":
            asked = with_marks_of(asked, is_so)
        if asked != is_so:
            return refusal(
                ErrorCode.RUN_CONFLICT,
                field,
                f"{field}: the {run.kind} {run.id} was created with another one before; the same idempotency key or"
                " run_id must come with the same content",
            )
    return None
