"""The wire protocol: what producers push, what the engine answers. JSON only, every field checked.

A request is one stream entry with the fields of `channels.REQUEST_*`; its JSON body is one of `Request`. A reply is one
field of an entry on the producer's reply stream: its name is the request's id, its value one of `Reply`.
"""

import json
from enum import StrEnum
from typing import Annotated, Final, Literal
from uuid import UUID

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from statewright.events import Era, Event
from statewright.runs import ConcurrencyLimit, FlowRun, RunHistory, RunPolicy, TaskRun
from statewright.states import ProposedState
from statewright.values import MAX_PARTITIONS, MAX_POSITION, Frozen, Labels, Message, Name, Tags
from statewright.verdicts import Verdict

PROTOCOL_VERSION: Final = 1
MAX_CONCURRENCY_LIMIT: Final = 1_000_000

Position = Annotated[int, Field(ge=0, le=MAX_POSITION)]
ApiVersion = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,4}(\.[0-9]{1,4}){0,3}$")]


class _Request(Frozen):
    v: Literal[1] = PROTOCOL_VERSION


class _CreateRun(_Request):
    run_id: UUID
    name: Name
    tags: Tags = ()
    policy: RunPolicy = RunPolicy()
    labels: Labels = Field(default_factory=dict)
    state: ProposedState | None = None
    """What the run is proposed to enter when this request creates it."""


class CreateFlowRun(_CreateRun):
    """Create a flow run, unless its id exists; answered with the run as it is."""

    type: Literal["create_flow_run"] = "create_flow_run"
    flow_id: UUID | None = None
    deployment_id: UUID | None = None
    parent_task_run_id: UUID | None = None


class CreateTaskRun(_CreateRun):
    """Create a task run, unless its id exists; answered with the run as it is."""

    type: Literal["create_task_run"] = "create_task_run"
    flow_run_id: UUID | None = None
    task_key: Name | None = None


class Propose(_Request):
    """Propose that a run enter a state; answered with a verdict."""

    type: Literal["propose"] = "propose"
    run_id: UUID
    state: ProposedState
    force: bool = False
    api_version: ApiVersion | None = None


class UpdateRun(_Request):
    """Change a run that is not terminal; what is None stays. Answered with the run as it is then."""

    type: Literal["update_run"] = "update_run"
    run_id: UUID
    name: Name | None = None
    tags: Tags | None = None
    policy: RunPolicy | None = None
    """Replaces the old policy, but for the marks that pausing leaves on it."""


class ReadRun(_Request):
    """Read a run and its history, or the run alone, as they are after everything pushed before.

    A long history comes in pages: each holds states whose ordinal (1 for the run's first state, then 2, 3 …) is above
    `after`.
    """

    type: Literal["read_run"] = "read_run"
    run_id: UUID
    after: Position = 0
    history: bool = True


class ReadEvents(_Request):
    """Read events of a partition that its stream no longer holds, oldest first, a page at a time."""

    type: Literal["read_events"] = "read_events"
    partition: Annotated[int, Field(ge=0, lt=MAX_PARTITIONS)]
    after: Position


class SetLimit(_Request):
    """Set the concurrency limit on a tag; None removes it and frees its slots."""

    type: Literal["set_limit"] = "set_limit"
    tag: Name
    concurrency_limit: Annotated[int, Field(ge=0, le=MAX_CONCURRENCY_LIMIT)] | None


class ReadLimit(_Request):
    """Read the concurrency limit on a tag and who holds its slots."""

    type: Literal["read_limit"] = "read_limit"
    tag: Name


CreateRun = CreateFlowRun | CreateTaskRun
RunRequest = CreateFlowRun | CreateTaskRun | UpdateRun | Propose | ReadRun
LimitRequest = SetLimit | ReadLimit
Request = Annotated[
    CreateFlowRun | CreateTaskRun | UpdateRun | Propose | ReadRun | ReadEvents | SetLimit | ReadLimit,
    Field(discriminator="type"),
]
REQUEST: Final[TypeAdapter[Request]] = TypeAdapter(Request)
MESSAGE: Final[TypeAdapter[str]] = TypeAdapter(Message)


class ErrorCode(StrEnum):
    """Why a request was not carried out."""

    INVALID_MESSAGE = "invalid_message"
    RUN_NOT_FOUND = "run_not_found"
    RUN_CONFLICT = "run_conflict"
    PROPOSAL_CONFLICT = "proposal_conflict"
    RULE_FAILED = "rule_failed"
    NOT_WRITABLE = "not_writable"
    OVERLOADED = "overloaded"


class VerdictReply(Frozen):
    """The verdict on a proposal."""

    type: Literal["verdict"] = "verdict"
    verdict: Verdict


class RunReply(Frozen):
    """The run that a request creates, changes or reads."""

    type: Literal["run"] = "run"
    run: Annotated[FlowRun | TaskRun, Field(discriminator="kind")]
    created: bool = False
    """Whether the run is new: this request has created it just now."""


class HistoryReply(Frozen):
    """A run with its history, or a page of it."""

    type: Literal["history"] = "history"
    history: RunHistory
    next: int | None = None
    """The ordinal to read on after; None when no later state exists."""


class EventsReply(Frozen):
    """Events from PostgreSQL: what a partition has above the position asked for and up to `up_to`, oldest first.

    What is missing between the two no longer exists. When `up_to` is the position itself, nothing is newer.
    """

    type: Literal["events"] = "events"
    events: tuple[Event, ...]
    eras: tuple[Era, ...] = ()
    up_to: int


class LimitReply(Frozen):
    """A limit as it stands; None when the tag has none."""

    type: Literal["limit"] = "limit"
    limit: ConcurrencyLimit | None = None


class ErrorReply(Frozen):
    """A request that was not carried out, why, and which field was to blame. Nothing was written for it."""

    type: Literal["error"] = "error"
    code: ErrorCode
    message: Message
    field: Message | None = None


Reply = VerdictReply | RunReply | HistoryReply | EventsReply | LimitReply | ErrorReply
REPLY: Final[TypeAdapter[Reply]] = TypeAdapter(Annotated[Reply, Field(discriminator="type")])


def encode(request: Request) -> bytes:
    """Return the JSON body of a request. What is None is left out, except where None is the message."""
    return request.model_dump_json(exclude_none=request.type != "set_limit").encode()


def request_from(body: bytes) -> Request:
    """Return the request that a JSON body carries. Raises ValidationError, naming the field.

    Half of a surrogate pair makes a text no Unicode; in a state's message it is escaped, elsewhere refused.
    """
    try:
        return REQUEST.validate_json(body, strict=True)
    except ValidationError:
        mended = _with_its_message_escaped(body)
        if mended is None:
            raise
    return REQUEST.validate_json(mended, strict=True)


def _with_its_message_escaped(body: bytes) -> str | None:
    """Return the body as JSON again, its state's message escaped, when that has half of a surrogate pair."""
    try:
        # The standard library's parser takes what is no Unicode. Only here: it is far slower than pydantic's.
        request = json.loads(body)
        message = request["state"]["message"]
        message.encode()
    except UnicodeEncodeError:
        request["state"]["message"] = MESSAGE.validate_python(message)
        return json.dumps(request)
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        # Whatever else is wrong with it, pydantic has said in better words.
        return None
    return None
