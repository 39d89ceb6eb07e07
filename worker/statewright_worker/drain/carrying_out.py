"""Carrying out requests on a unit of work: what each kind needs beforehand, does, and answers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import structlog
from packaging.version import Version
from pydantic_core import to_json

from statewright.events import Era, Event
from statewright.messages import (
    REPLY,
    CreateFlowRun,
    CreateRun,
    CreateTaskRun,
    ErrorCode,
    ErrorReply,
    EventsReply,
    HistoryReply,
    LimitReply,
    Propose,
    ReadEvents,
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
from statewright_worker.orchestration.engine import Engine, Proposal
from statewright_worker.orchestration.errors import OrchestrationError, RuleError, RunMissing
from statewright_worker.orchestration.records import Answer, AnyRunRecord, FlowRunRecord, TaskRunRecord
from statewright_worker.orchestration.rules.retries import TASKS_RETRY_THEMSELVES_FROM
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.storage.batches import Needs
from statewright_worker.storage.errors import Refused
from statewright_worker.storage.sessions import RuleSessions
from statewright_worker.streams.encoding import event_body

log = structlog.get_logger()

CHANGING: Final = frozenset({"propose", "create_flow_run", "create_task_run", "set_limit"})
"""What has an effect, and so one answer for ever. The answer to a run's creation is the run, whatever became of it."""
_SAME_POLICY: Final = ("retries", "retry_delay", "retry_jitter_factor", "retry_type")
"""What of a run's policy stays as it was created."""


def needs_of(batch: Iterable[Incoming]) -> Needs:
    """Return everything that the batch's requests will ask for."""
    needs = Needs()
    for incoming in batch:
        if incoming.request.type in CHANGING:
            needs.request_ids.append(incoming.id)
        match incoming.request:
            case Propose() as proposal:
                _proposal_needs(needs, proposal)
            case CreateFlowRun() as create:
                needs.run_ids.update(_present(create.run_id, create.parent_task_run_id))
            case CreateTaskRun() as create:
                needs.run_ids.update(_present(create.run_id, create.flow_run_id))
                needs.tags_of_new_runs.update(create.tags)
            case ReadRun(run_id=run_id, after=after):
                needs.run_ids.add(run_id)
                needs.histories.add((run_id, after))
            case ReadEvents(after=after):
                needs.events_after.add(after)
            case ReadLimit(tag=tag):
                needs.limit_tags.add(tag)
            case SetLimit(tag=tag, concurrency_limit=concurrency_limit):
                needs.limit_tags.add(tag)
                needs.limit_to_set = (incoming.id, tag, concurrency_limit)
    return needs


def _present(*run_ids: UUID | None) -> list[UUID]:
    return [run_id for run_id in run_ids if run_id is not None]


def _proposal_needs(needs: Needs, proposal: Propose) -> None:
    needs.run_ids.add(proposal.run_id)
    if proposal.state.type is StateType.RUNNING:
        needs.enters_running.add(proposal.run_id)
        if proposal.state.state_details.cache_key:
            needs.cache_keys.add(proposal.state.state_details.cache_key)
    elif proposal.state.type is StateType.FAILED and _retries_the_tasks(proposal):
        needs.failing_flow_runs.add(proposal.run_id)


def _retries_the_tasks(proposal: Propose) -> bool:
    return proposal.api_version is not None and Version(proposal.api_version) < TASKS_RETRY_THEMSELVES_FROM


class BatchSpoiled(Exception):
    """A request has cost the batch its transaction; `reply` is what it gets."""

    def __init__(self, incoming: Incoming, reply: ErrorReply) -> None:
        super().__init__(reply.message)
        self.incoming = incoming
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Office:
    """Carries out requests one by one, in order, each seeing what those before it did."""

    engine: Engine
    work: UnitOfWork
    sessions: RuleSessions
    partition: int
    sequence: int
    """The partition's last sequence number before this batch."""
    eras: Sequence[Era]

    async def answer(self, incoming: Incoming, condemned: ErrorReply | None) -> Reply:
        """Return the answer that the request has already, or carry it out; an ErrorReply means that nothing of it was
        done. A request that is `condemned` gets that answer, and nothing is tried.

        Raises BatchSpoiled when the request has cost the batch its transaction, and StorageError.
        """
        known = self._known(incoming)
        if known is not None:
            return known
        reply = condemned or await self._carry_out(incoming)
        if reply.type in _STAYS and incoming.request.type in CHANGING:
            text = to_json(reply, exclude_none=True).decode()
            self.work.record_answer(Answer(incoming.id, incoming.digest, text))
        return reply

    def _known(self, incoming: Incoming) -> Reply | None:
        verdict = self.work.verdicts.get(incoming.id)
        if verdict is not None:
            told, digest = verdict
            same = incoming.digest == digest if digest is not None else told.run_id == _run_id_of(incoming)
            return _told(told) if same else _conflict(incoming)
        answer = self.work.answers.get(incoming.id)
        if answer is not None:
            return REPLY.validate_json(answer.reply) if incoming.digest == answer.digest else _conflict(incoming)
        return None

    async def _carry_out(self, incoming: Incoming) -> Reply:
        match incoming.request:
            case Propose() as proposal:
                return await self._propose(incoming, proposal)
            case CreateFlowRun() | CreateTaskRun() as create:
                return self._create(create)
            case ReadRun() as read:
                return self._read(read)
            case ReadEvents() as events:
                return self._read_events(events)
            case ReadLimit(tag=tag) | SetLimit(tag=tag):
                # A limit is set before its batch is loaded, so that here both find it as it is.
                limit = self.work.limits.get(tag)
                return LimitReply(limit=None if limit is None else limit.as_limit())

    async def _propose(self, incoming: Incoming, request: Propose) -> Reply:
        proposal = Proposal(
            incoming.id, request.run_id, request.state, incoming.entered, request.force, request.api_version
        )
        self.work.begin()
        try:
            verdict = await self.engine.decide(proposal, self.work, self.sessions)
            await self.sessions.keep()
        except (OrchestrationError, Refused) as error:
            self.work.roll_back()
            return await self._failed(incoming, request.run_id, error)
        self.work.commit()
        self.work.record_verdict(verdict, incoming.digest)
        return _told(verdict)

    async def _failed(self, incoming: Incoming, run_id: UUID, error: OrchestrationError | Refused) -> ErrorReply:
        reply = _failure(error)
        if isinstance(error, RuleError):
            self.sessions.raise_what_is_not_the_rules(error.__cause__)
            told = {"rule": error.rule, "run": str(run_id), "proposal": str(incoming.id)}
            log.error("a rule failed", **told, exc_info=error.__cause__ or error)
            if error.blocked:
                # PostgreSQL has waited as well, and may have ended the transaction.
                raise BatchSpoiled(incoming, reply) from error
        if not await self.sessions.undo():
            raise BatchSpoiled(incoming, reply) from error
        return reply

    def _create(self, request: CreateRun) -> Reply:
        run = self.work.runs.get(request.run_id)
        if run is None:
            problem = self._missing_parent(request)
            if problem is not None:
                return problem
            run = self._new_run(request)
            self.work.create_run(run)
        elif difference := _difference(run, request):
            return difference
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
        states = self.work.histories[run.id][request.after]
        last = states[-1][0] if states else request.after
        history = RunHistory(run=run.as_run(), states=tuple(state for _, state in states))
        return HistoryReply(history=history, next=last if states and last < run.state_count else None)

    def _read_events(self, request: ReadEvents) -> Reply:
        page = self.work.events[request.after]
        # Where PostgreSQL went back in time, it may be behind what is asked for, and the answer says so.
        up_to = min(page.up_to, self.sequence)
        events = [
            Event.model_validate_json(event_body(change, self.partition, number, era_at(self.eras, number)))
            for number, change in page.changes
        ]
        eras = [era for era in self.eras if request.after < era.sequence <= up_to]
        return EventsReply(events=tuple(events), eras=tuple(eras), up_to=up_to)


_STAYS: Final = frozenset({"error", "limit"})


def era_at(eras: Sequence[Era], sequence: int) -> int:
    """Return the number of the era to which an event belongs."""
    return max((era.era for era in eras if era.sequence <= sequence), default=0)


def _run_id_of(incoming: Incoming) -> UUID | None:
    return incoming.request.run_id if isinstance(incoming.request, Propose) else None


def _difference(run: AnyRunRecord, request: CreateRun) -> ErrorReply | None:
    """Return what is wrong with asking for a run that exists, unless the same is asked for."""
    wanted = FlowRunRecord if isinstance(request, CreateFlowRun) else TaskRunRecord
    if not isinstance(run, wanted):
        return _error(ErrorCode.RUN_CONFLICT, "run_id", f"{run.id} is a {run.kind} already")
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
            return _error(
                ErrorCode.RUN_CONFLICT,
                field,
                f"{field}: the {run.kind} {run.id} was created with another one before; the same idempotency key or"
                " run_id must come with the same content",
            )
    return None


_NO_CONTENT: Final = frozenset({"v", "type", "run_id"})


def _conflict(incoming: Incoming) -> ErrorReply:
    return _error(
        ErrorCode.PROPOSAL_CONFLICT,
        "id",
        f"the id {incoming.id} was used before for a request with another content; another request needs another id",
    )


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
