"""What producers push. JSON only, every field checked.

A request is one stream entry with the fields of `channels.REQUEST_*`; its JSON body is one of `Request`.
"""

import json
from typing import Annotated, Final, Literal, Self, TypeVar
from uuid import UUID

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError, model_validator
from pydantic_core import to_json

from statewright.limits import LimitName, LimitScope
from statewright.runs import RunPolicy
from statewright.states import LeaseSeconds, ProposedState
from statewright.values import (
    MAX_PARTITIONS,
    MAX_POSITION,
    TAKES_DURATIONS,
    Frozen,
    Labels,
    Message,
    Moment,
    Name,
    Tags,
)

PROTOCOL_VERSION: Final = 1
VERSIONS_READ: Final = (PROTOCOL_VERSION,)
"""The versions of requests that the engine reads: the newest one and, once there are two, the one before."""
MAX_CONCURRENCY_LIMIT: Final = 1_000_000
MAX_PRIORITY: Final = 1_000_000
MAX_RUNS_OF_HEARTBEAT: Final = 1_000
MAX_TREES_PRUNED: Final = 100
MAX_PARK_SECONDS: Final = 10 * 365 * 86_400
MAX_PERIOD_SECONDS: Final = 10 * 365 * 86_400
ONE_OF_THREE: Final = "a limit is named by exactly one of tag, name and deployment_id"

Position = Annotated[int, Field(ge=0, le=MAX_POSITION)]
ParkSeconds = Annotated[float, Field(ge=0, le=MAX_PARK_SECONDS, allow_inf_nan=False)]
PeriodSeconds = Annotated[float, Field(ge=0.001, le=MAX_PERIOD_SECONDS, allow_inf_nan=False), TAKES_DURATIONS]
ApiVersion = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,4}(\.[0-9]{1,4}){0,3}$")]

Given = TypeVar("Given")
Left = Annotated[Given | None, Field(exclude_if=lambda given: given is None)]
"""A field that is left out of the message when it is None, whatever else is None there."""


class _Request(Frozen):
    v: Literal[1] = PROTOCOL_VERSION


class _CreateRun(_Request):
    run_id: UUID
    name: Name
    tags: Tags = ()
    policy: RunPolicy = RunPolicy()
    labels: Labels = Field(default_factory=dict, exclude_if=lambda labels: not labels)
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
    on_wait: Literal["answer", "park"] | None = None
    """What becomes of it where the verdict would be WAIT: it is answered so, or kept until it can be decided."""
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None
    """Which of the parked proposals that wait for the same limit goes first: the greatest; None is 0."""
    cascade: bool | None = None
    """Whether the runs below a flow run follow it when this lets it be CANCELLED or CRASHED."""
    park_seconds: ParkSeconds | None = None
    """How long it may be parked; then it is answered WAIT after all. None means for ever."""


class UpdateRun(_Request):
    """Change a run that is not terminal; what is None stays. Answered with the run as it is then."""

    type: Literal["update_run"] = "update_run"
    run_id: UUID
    name: Name | None = None
    tags: Tags | None = None
    policy: RunPolicy | None = None
    """Replaces the old policy, but for the marks that pausing leaves on it."""


class DeleteRun(_Request):
    """Delete a run with all that is below it; answered with how many runs these are.

    It is refused where one of them has not come to an end, unless it is forced.
    """

    type: Literal["delete_run"] = "delete_run"
    run_id: UUID
    force: bool = False


class PruneRuns(_Request):
    """Delete trees that are over, named by their first runs, each as a whole or not at all.

    A tree stays when one of its runs has not come to an end, or was changed since a moment, or has a proposal parked;
    or when there is no room for it in this transaction. Answered with what was deleted.
    """

    type: Literal["prune_runs"] = "prune_runs"
    partition: Annotated[int, Field(ge=0, lt=MAX_PARTITIONS)]
    run_ids: Annotated[tuple[UUID, ...], Field(min_length=1, max_length=MAX_TREES_PRUNED)]
    unchanged_since: Moment


class ReadRun(_Request):
    """Read a run and its history, or the run alone, as they are after everything pushed before.

    A long history comes in pages: each holds states whose ordinal (1 for the run's first state, then 2, 3 …) is above
    `after`.
    """

    type: Literal["read_run"] = "read_run"
    run_id: UUID
    after: Position = 0
    history: Annotated[bool, Field(exclude_if=lambda history: history)] = True


class ReadEvents(_Request):
    """Read events of a partition that its stream no longer holds, oldest first, a page at a time."""

    type: Literal["read_events"] = "read_events"
    partition: Annotated[int, Field(ge=0, lt=MAX_PARTITIONS)]
    after: Position


class Withdraw(_Request):
    """Withdraw a parked proposal, which is answered with ABORT; answered with whether it was parked there."""

    type: Literal["withdraw"] = "withdraw"
    partition: Annotated[int, Field(ge=0, lt=MAX_PARTITIONS)]
    proposal_id: UUID


class Heartbeat(_Request):
    """Renew leases of one partition; answered with the runs whose leases are none of the sender's any more.

    With an executor, its own lease is renewed, and the answer is about the runs that it believes to hold.
    """

    type: Literal["heartbeat"] = "heartbeat"
    partition: Annotated[int, Field(ge=0, lt=MAX_PARTITIONS)]
    run_ids: Annotated[tuple[UUID, ...], Field(max_length=MAX_RUNS_OF_HEARTBEAT)] = ()
    state_ids: Annotated[tuple[UUID | None, ...], Field(max_length=MAX_RUNS_OF_HEARTBEAT)] | None = None
    """The state RUNNING of each run whose lease is meant; None means whichever it has."""
    executor: Name | None = None
    tell: bool = False
    """Whether the answer says which leases were renewed as well."""

    @model_validator(mode="after")
    def _is_for_somebody(self) -> Self:
        if not self.run_ids and self.executor is None:
            raise ValueError("a heartbeat is for runs or for an executor")
        if self.state_ids is not None and len(self.state_ids) != len(self.run_ids):
            raise ValueError("state_ids must be as many as run_ids")
        return self


class _OfLimit(_Request):
    """What a request about a limit names it by: one of the three fields."""

    tag: Left[Name] = None
    name: Left[Name] = None
    deployment_id: Left[UUID] = None

    @model_validator(mode="after")
    def _is_of_one(self) -> Self:
        if sum(given is not None for given in (self.tag, self.name, self.deployment_id)) != 1:
            raise ValueError(ONE_OF_THREE)
        return self

    @property
    def limit(self) -> LimitName:
        """The limit that is meant."""
        if self.tag is not None:
            return LimitName(LimitScope.TAG, self.tag)
        if self.name is not None:
            return LimitName(LimitScope.NAME, self.name)
        return LimitName(LimitScope.DEPLOYMENT, str(self.deployment_id))

    @property
    def named_by(self) -> str:
        """The field that names it."""
        return {LimitScope.TAG: "tag", LimitScope.NAME: "name", LimitScope.DEPLOYMENT: "deployment_id"}[
            self.limit.scope
        ]


class SetLimit(_OfLimit):
    """Set a limit; None removes it and frees its slots.

    With a period it is a rate: so many runs may become RUNNING in a period. `lease_seconds` is the lease of its runs
    that ask for none.
    """

    type: Literal["set_limit"] = "set_limit"
    concurrency_limit: Annotated[int, Field(ge=0, le=MAX_CONCURRENCY_LIMIT)] | None
    period_seconds: Left[PeriodSeconds] = None
    lease_seconds: Left[LeaseSeconds] = None

    @model_validator(mode="after")
    def _is_set_or_removed(self) -> Self:
        if self.concurrency_limit is None and (self.period_seconds is not None or self.lease_seconds is not None):
            raise ValueError(
                "a limit without a concurrency_limit is removed: it has no period_seconds or lease_seconds"
            )
        return self


class ReadLimit(_OfLimit):
    """Read a limit and who holds its slots."""

    type: Literal["read_limit"] = "read_limit"


class ReadLimits(_Request):
    """Read all limits without their holders, a page at a time; any partition answers.

    A page holds the limits behind the place `after`, where the page before it has ended.
    """

    type: Literal["read_limits"] = "read_limits"
    partition: Annotated[int, Field(ge=0, lt=MAX_PARTITIONS)]
    after: Position = 0


CreateRun = CreateFlowRun | CreateTaskRun
RunRequest = CreateFlowRun | CreateTaskRun | UpdateRun | DeleteRun | Propose | ReadRun
LimitRequest = SetLimit | ReadLimit
Request = Annotated[
    CreateFlowRun
    | CreateTaskRun
    | UpdateRun
    | DeleteRun
    | PruneRuns
    | Propose
    | Withdraw
    | Heartbeat
    | ReadRun
    | ReadEvents
    | SetLimit
    | ReadLimit
    | ReadLimits,
    Field(discriminator="type"),
]
REQUEST: Final[TypeAdapter[Request]] = TypeAdapter(Request)
MESSAGE: Final[TypeAdapter[str]] = TypeAdapter(Message)


def encode(request: Request) -> bytes:
    """Return the JSON body of a request. What is None is left out, except where None is the message."""
    return to_json(request, exclude_none=request.type != "set_limit")


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
