"""Carrying out requests on a unit of work: what each kind needs beforehand, does, and answers."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from packaging.version import Version

from statewright.messages import (
    CreateFlowRun,
    CreateRun,
    CreateTaskRun,
    ErrorCode,
    ErrorReply,
    HistoryReply,
    LimitReply,
    Propose,
    ReadLimit,
    ReadRun,
    Reply,
    RunReply,
    SetLimit,
    VerdictReply,
)
from statewright.runs import RunHistory, RunKind
from statewright.states import StateType
from statewright.verdicts import Verdict
from statewright_worker.drain.decoding import Incoming
from statewright_worker.orchestration.core_policy import TASKS_RETRY_THEMSELVES_FROM
from statewright_worker.orchestration.engine import Engine, Proposal
from statewright_worker.orchestration.errors import OrchestrationError, RuleError, RunMissing
from statewright_worker.orchestration.records import AnyRunRecord, FlowRunRecord, TaskRunRecord
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.storage.batches import Needs
from statewright_worker.storage.errors import Refused
from statewright_worker.storage.sessions import RuleSessions


def needs_of(batch: Iterable[Incoming]) -> Needs:
    """Return everything that the batch's requests will ask for."""
    needs = Needs()
    for incoming in batch:
        match incoming.request:
            case Propose() as proposal:
                _proposal_needs(needs, incoming, proposal)
            case CreateFlowRun() as create:
                needs.run_ids.update(_present(create.run_id, create.parent_task_run_id))
            case CreateTaskRun() as create:
                needs.run_ids.update(_present(create.run_id, create.flow_run_id))
                needs.tags_of_new_runs.update(create.tags)
            case ReadRun(run_id=run_id):
                needs.run_ids.add(run_id)
                needs.histories.add(run_id)
            case ReadLimit(tag=tag):
                needs.limit_tags.add(tag)
            case SetLimit(tag=tag, concurrency_limit=concurrency_limit):
                needs.limit_tags.add(tag)
                needs.limits_to_set[tag] = concurrency_limit
    return needs


def _present(*run_ids: UUID | None) -> list[UUID]:
    return [run_id for run_id in run_ids if run_id is not None]


def _proposal_needs(needs: Needs, incoming: Incoming, proposal: Propose) -> None:
    needs.run_ids.add(proposal.run_id)
    needs.proposal_ids.append(incoming.id)
    if proposal.state.type is StateType.RUNNING:
        needs.enters_running.add(proposal.run_id)
        if proposal.state.state_details.cache_key:
            needs.cache_keys.add(proposal.state.state_details.cache_key)
    elif proposal.state.type is StateType.FAILED and _retries_the_tasks(proposal):
        needs.failing_flow_runs.add(proposal.run_id)


def _retries_the_tasks(proposal: Propose) -> bool:
    return proposal.api_version is not None and Version(proposal.api_version) < TASKS_RETRY_THEMSELVES_FROM


class BatchSpoiled(Exception):
    """A request has cost the batch its transaction; `reply` is what it gets once it stands alone."""

    def __init__(self, reply: ErrorReply) -> None:
        super().__init__(reply.message)
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Office:
    """Carries out requests one by one, in order, each seeing what those before it did."""

    engine: Engine
    work: UnitOfWork
    sessions: RuleSessions

    async def carry_out(self, incoming: Incoming) -> Reply:
        """Do what the request asks for and return the answer; an ErrorReply means that nothing of it was done."""
        match incoming.request:
            case Propose() as proposal:
                return await self._propose(incoming, proposal)
            case CreateFlowRun() | CreateTaskRun() as create:
                return self._create(create)
            case ReadRun() as read:
                return self._read(read)
            case ReadLimit(tag=tag) | SetLimit(tag=tag):
                # A limit is set before its batch is loaded, so that here both find it as it is.
                limit = self.work.limits.get(tag)
                return LimitReply(limit=None if limit is None else limit.as_limit())

    async def _propose(self, incoming: Incoming, request: Propose) -> Reply:
        known = self.work.verdicts.get(incoming.id)
        if known is not None:
            if known.run_id == request.run_id:
                return _told(known)
            return _error(ErrorCode.PROPOSAL_CONFLICT, "id", f"proposal {incoming.id} was made for another run before")
        proposal = Proposal(
            incoming.id, request.run_id, request.state, incoming.entered, request.force, request.api_version
        )
        self.work.begin()
        try:
            verdict = await self.engine.decide(proposal, self.work, self.sessions)
            await self.sessions.keep()
        except (OrchestrationError, Refused) as error:
            self.work.roll_back()
            reply = _failure(error)
            if not await self.sessions.undo():
                raise BatchSpoiled(reply) from error
            return reply
        self.work.commit()
        self.work.record_verdict(verdict)
        return _told(verdict)

    def _create(self, request: CreateRun) -> Reply:
        run = self.work.runs.get(request.run_id)
        wanted = FlowRunRecord if isinstance(request, CreateFlowRun) else TaskRunRecord
        if run is None:
            problem = self._missing_parent(request)
            if problem is not None:
                return problem
            run = self._new_run(request)
            self.work.create_run(run)
        elif not isinstance(run, wanted):
            return _error(ErrorCode.RUN_CONFLICT, "run_id", f"{run.id} is a {run.kind} already")
        return RunReply.trusted(type="run", run=run.as_run())

    def _missing_parent(self, request: CreateRun) -> ErrorReply | None:
        field, parent_id, kind = (
            ("flow_run_id", request.flow_run_id, RunKind.FLOW_RUN)
            if isinstance(request, CreateTaskRun)
            else ("parent_task_run_id", request.parent_task_run_id, RunKind.TASK_RUN)
        )
        parent = self.work.runs.get(parent_id) if parent_id is not None else None
        if parent_id is None or (parent is not None and parent.kind is kind):
            return None
        return _error(ErrorCode.RUN_CONFLICT, field, f"there is no {kind} {parent_id}; create it first")

    def _new_run(self, request: CreateRun) -> AnyRunRecord:
        now = self.work.now
        shared: dict[str, Any] = {"id": request.run_id, "name": request.name, "created": now}
        shared |= {"tags": request.tags, "policy": request.policy}
        if isinstance(request, CreateTaskRun):
            return TaskRunRecord(**shared, flow_run_id=request.flow_run_id, task_key=request.task_key)
        return FlowRunRecord(
            **shared,
            flow_id=request.flow_id,
            deployment_id=request.deployment_id,
            parent_task_run_id=request.parent_task_run_id,
        )

    def _read(self, request: ReadRun) -> Reply:
        run = self.work.runs.get(request.run_id)
        if run is None:
            return _failure(RunMissing(request.run_id))
        states = self.work.histories[run.id]
        return HistoryReply(history=RunHistory(run=run.as_run(), states=tuple(states)))


def _told(verdict: Verdict) -> VerdictReply:
    return VerdictReply.trusted(type="verdict", verdict=verdict)


def _failure(error: OrchestrationError | Refused) -> ErrorReply:
    match error:
        case RunMissing():
            return _error(ErrorCode.RUN_NOT_FOUND, "run_id", str(error))
        case RuleError(rule=rule):
            return _error(ErrorCode.RULE_FAILED, rule, str(error))
        case Refused():
            return _error(ErrorCode.NOT_WRITABLE, None, str(error))
        case _:
            return _error(ErrorCode.RULE_FAILED, None, str(error))


def _error(code: ErrorCode, field: str | None, message: str) -> ErrorReply:
    return ErrorReply(code=code, message=message[:10_000].replace("\x00", "�"), field=field)
