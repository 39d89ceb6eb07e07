"""What producers push. JSON only, every field checked.

A request is one stream entry with the fields of `channels.REQUEST_*`; its JSON body is one of `Request`.
"""

import json
from enum import IntEnum
from typing import Annotated, Final, Literal, Self, TypeVar, get_args
from uuid import UUID

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError, model_validator
from pydantic_core import to_json

from statewright.limits import LimitName, LimitScope
from statewright.runs import RunPolicy
from statewright.states import LeaseSeconds, ProposedState
from statewright.subscription.filters import EventFilter
from statewright.values import (
    MAX_NAME_LENGTH,
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
MAX_TRIES: Final = 1_000
MAX_SHARES: Final = 64
MAX_SHARES_IN_ALL: Final = 2_048
MAX_FAILED_AT_ONCE: Final = 100
MAX_DEAD_LETTERS: Final = 1_000
"""How many dead letters a subscription keeps: the newest."""
SILENT_SECONDS: Final = 3.0
MAX_SILENT_SECONDS: Final = 60.0
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
    """The version of the protocol."""


class _CreateRun(_Request):
    run_id: UUID
    """The run's id for ever, chosen by whoever creates it. Its last 16 bits name its tree, and so its partition."""
    name: Name
    """For people; it need not be unique."""
    tags: Tags = ()
    """Texts by which limits hold task runs back, and by which subscribers find runs."""
    policy: RunPolicy = RunPolicy()
    """How the run is retried, and which named limits it asks for."""
    labels: Labels = Field(default_factory=dict, exclude_if=lambda labels: not labels)
    """Facts of the producer's own, told with the run."""
    state: ProposedState | None = None
    """What the run is proposed to enter when this request creates it."""


class CreateFlowRun(_CreateRun):
    """Create a flow run, unless its id exists; answered with the run as it is."""

    type: Literal["create_flow_run"] = "create_flow_run"
    flow_id: UUID | None = None
    """An id of the producer's own; events name it."""
    deployment_id: UUID | None = None
    """An id of the producer's own; a limit may be on it, and events name it."""
    parent_task_run_id: UUID | None = None
    """The task run that this is a subflow of. It must exist, and it enters each state that the subflow enters."""


class CreateTaskRun(_CreateRun):
    """Create a task run, unless its id exists; answered with the run as it is."""

    type: Literal["create_task_run"] = "create_task_run"
    flow_run_id: UUID | None = None
    """The flow run that this belongs to. It must exist."""
    task_key: Name | None = None
    """A name of the producer's own for what the task does; no rule reads it."""


class _Proposing(_Request):
    run_id: UUID
    """The run that is to enter the state."""
    state: ProposedState
    """The state that it is to enter."""
    force: bool = False
    """Whether it is entered whatever the rules say; bookkeeping goes with it all the same."""
    api_version: ApiVersion | None = None
    """For producers that were made for an earlier version of the documented engine's interface; otherwise left out."""
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None
    """Which of the parked proposals that wait for the same limit goes first: the greatest; None is 0."""


class Propose(_Proposing):
    """Propose that a run enter a state; answered with a verdict."""

    type: Literal["propose"] = "propose"
    on_wait: Literal["answer", "park"] | None = None
    """What becomes of it where the verdict would be WAIT: it is answered so, or kept until it can be decided."""
    cascade: bool | None = None
    """Whether the runs below a flow run follow it when this lets it be CANCELLED or CRASHED."""
    park_seconds: ParkSeconds | None = None
    """How long it may be parked; then it is answered WAIT after all. None means for ever."""


class WhatIf(_Proposing):
    """Ask which verdict a proposal would get now, behind everything pushed before, and why. It has no effect."""

    type: Literal["what_if"] = "what_if"


class UpdateRun(_Request):
    """Change a run that is not terminal; what is None stays. Answered with the run as it is then."""

    type: Literal["update_run"] = "update_run"
    run_id: UUID
    """The run that is to be changed."""
    name: Name | None = None
    """Its new name."""
    tags: Tags | None = None
    """Its new tags, instead of all that it has."""
    policy: RunPolicy | None = None
    """Replaces the old policy, but for the marks that pausing leaves on it."""


class DeleteRun(_Request):
    """Delete a run with all that is below it; answered with how many runs these are.

    It is refused where one of them has not come to an end, unless it is forced.
    """

    type: Literal["delete_run"] = "delete_run"
    run_id: UUID
    """The run."""
    force: bool = False
    """Whether runs go that have not come to an end, too."""


class PruneRuns(_Request):
    """Delete trees that are over, named by their first runs, each as a whole or not at all.

    A tree stays when one of its runs has not come to an end, or was changed since a moment, or has a proposal parked;
    or when there is no room for it in this transaction. Answered with what was deleted.
    """

    type: Literal["prune_runs"] = "prune_runs"
    partition: Annotated[int, Field(ge=0, lt=MAX_PARTITIONS)]
    """The partition of the trees."""
    run_ids: Annotated[tuple[UUID, ...], Field(min_length=1, max_length=MAX_TREES_PRUNED)]
    """Their first runs: flow runs that are no subflows, and task runs that are within no flow run."""
    unchanged_since: Moment
    """A tree with a run that was created or changed since then stays."""


class ReadRun(_Request):
    """Read a run and its history, or the run alone, as they are after everything pushed before.

    A long history comes in pages: each holds states whose ordinal (1 for the run's first state, then 2, 3 …) is above
    `after`.
    """

    type: Literal["read_run"] = "read_run"
    run_id: UUID
    """The run that is to be read."""
    after: Position = 0
    """The ordinal behind which the page begins: 0, or `next` of the page before."""
    history: Annotated[bool, Field(exclude_if=lambda history: history)] = True
    """Whether the answer has the history, or the run alone."""


class TimelineCursor(Frozen):
    """Where a page of a timeline begins."""

    ordinal: Position = 0
    """Behind the state of this ordinal."""
    decided: Moment | None = None
    """Behind what was decided at this moment, and not accepted: None means from the beginning."""
    proposal_id: UUID | None = None
    """Of several of that moment, behind this one."""


class ReadTimeline(_Request):
    """Read what happened to a run, as it is after everything pushed before, a page at a time."""

    type: Literal["read_timeline"] = "read_timeline"
    run_id: UUID
    """The run that is to be read."""
    after: TimelineCursor = TimelineCursor()
    """Where the page begins: left out, or `next` of the page before."""


class ReadEvents(_Request):
    """Read events of a partition that its stream no longer holds, oldest first, a page at a time."""

    type: Literal["read_events"] = "read_events"
    partition: Annotated[int, Field(ge=0, lt=MAX_PARTITIONS)]
    """The partition whose events are read."""
    after: Position
    """The sequence number behind which the page begins: 0, or `up_to` of the page before."""


class FindPosition(_Request):
    """Find the position before a partition's first change that is not older than `since`, by the engine's clocks.

    Without `since`, it is the position before the first change that still exists.
    """

    type: Literal["find_position"] = "find_position"
    partition: Annotated[int, Field(ge=0, lt=MAX_PARTITIONS)]
    """The partition in which it is looked for."""
    since: Moment | None = None
    """The moment; left out, it is before everything."""


class Withdraw(_Request):
    """Withdraw a parked proposal, which is answered with ABORT; answered with whether it was parked there."""

    type: Literal["withdraw"] = "withdraw"
    partition: Annotated[int, Field(ge=0, lt=MAX_PARTITIONS)]
    """The partition of the proposal's run."""
    proposal_id: UUID
    """The proposal: the id of the request that made it."""


class ReadVerdict(_Request):
    """Read what is known of a proposal: its verdict, its refusal, or that it is parked.

    Any partition answers; that of the proposal's run does so after everything that was pushed to it before. It changes
    nothing: a proposal that is unknown and comes later is decided as if nobody had asked.
    """

    type: Literal["read_verdict"] = "read_verdict"
    partition: Annotated[int, Field(ge=0, lt=MAX_PARTITIONS)]
    """Any partition; that of the proposal's run also knows what was pushed to it before."""
    proposal_id: UUID
    """The proposal: the id of the request that made it."""
    run_id: UUID | None = None
    """Its run, if it is known: then a proposal that was deleted with it is told from one that never was."""


class Explain(_Request):
    """Ask why a proposal was decided as it was, or why it is parked.

    Any partition answers, as for `read_verdict`.
    """

    type: Literal["explain"] = "explain"
    partition: Annotated[int, Field(ge=0, lt=MAX_PARTITIONS)]
    """Any partition; that of the proposal's run also knows what was pushed to it before."""
    proposal_id: UUID
    """The proposal: the id of the request that made it."""
    run_id: UUID | None = None
    """Its run, if it is known: then a proposal that was deleted with it is told from one that never was."""


class Heartbeat(_Request):
    """Renew leases of one partition; answered with the runs whose leases are none of the sender's any more.

    With an executor, its own lease is renewed, and the answer is about the runs that it believes to hold.
    """

    type: Literal["heartbeat"] = "heartbeat"
    partition: Annotated[int, Field(ge=0, lt=MAX_PARTITIONS)]
    """The partition of all the runs."""
    run_ids: Annotated[tuple[UUID, ...], Field(max_length=MAX_RUNS_OF_HEARTBEAT)] = ()
    """The runs whose leases are renewed."""
    state_ids: Annotated[tuple[UUID | None, ...], Field(max_length=MAX_RUNS_OF_HEARTBEAT)] | None = None
    """The state RUNNING of each run whose lease is meant; None means whichever it has."""
    executor: Name | None = None
    """The executor whose own lease is renewed, as the states of its runs name it."""
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
    """For a limit on task runs with this tag."""
    name: Left[Name] = None
    """For a limit on runs whose policy asks for it by this name."""
    deployment_id: Left[UUID] = None
    """For a limit on flow runs of this deployment."""

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
    """How many runs may hold a slot; 0 aborts each that asks for one, None removes the limit. It must be there."""
    period_seconds: Left[PeriodSeconds] = None
    """Makes it a rate: so many runs may become RUNNING in a period."""
    lease_seconds: Left[LeaseSeconds] = None
    """The lease of its runs that ask for none."""

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
    """Any partition: it only says which one answers."""
    after: Position = 0
    """Where the page begins: 0, or `next` of the page before."""


class PartitionPosition(Frozen):
    """A position in a partition."""

    partition: Annotated[int, Field(ge=0, lt=MAX_PARTITIONS)]
    """The partition."""
    position: Position
    """The number of an event, or 0: what comes behind it is meant."""


class _OfSubscription(_Request):
    name: Name
    """The subscription's name; it names the partition in which it is administered."""


class OpenSubscription(_OfSubscription):
    """See that a named subscription exists; answered with it. One with another filter under its name is a conflict."""

    type: Literal["open_subscription"] = "open_subscription"
    filter: EventFilter = EventFilter()
    """Which events its members handle; the same each time."""
    max_tries: Annotated[int, Field(ge=1, le=MAX_TRIES)] | None = None
    """How often an event is tried; None means 5 for a new subscription, and whatever it is for one that exists."""
    positions: Annotated[tuple[PartitionPosition, ...], Field(max_length=MAX_PARTITIONS)] = ()
    """Where a new one begins; partitions that are left out begin with what changes from now on."""


class ShareReference(Frozen):
    """A share of a partition's events, as the member holds it: `epoch` is what it was told when it got it."""

    partition: Annotated[int, Field(ge=0, lt=MAX_PARTITIONS)]
    """The partition."""
    share: Annotated[int, Field(ge=0, lt=MAX_SHARES)]
    """The share's number within the partition."""
    epoch: Position
    """What the member was told with the share; another one means that the share was lost in between."""


class Trial(IntEnum):
    """Whether an event is suspected to be one over which members die.

    Nobody knows over which event a member has died: it may have had some of each of its shares in hand, of which the
    engine has not heard. So its successors say which events they are about to try, and narrow it down.
    """

    NONE = 0
    WITH_OTHERS = 1
    """It is tried together with one of each other share: if the member dies, one of these has done it."""
    AWAITED = 2
    """It is one of these, and is to be tried alone."""
    ALONE = 3
    """It is tried alone: if the member dies, it has failed."""


class AcknowledgedShare(ShareReference):
    """Up to where every event of a share was handled."""

    position: Position
    """Every event of the share up to this number is done with."""
    trying: Left[Position] = None
    """The next event, if it has been tried in vain, or is on trial."""
    tries: Annotated[int, Field(ge=0, le=MAX_TRIES)] = 0
    """How often that has failed."""
    trial: Trial = Trial.NONE
    """Whether it is suspected to be one over which members die."""


class ShareEvent(ShareReference):
    """An event of a share."""

    sequence: Position
    """Its number in the partition."""


class FailedEvent(ShareEvent):
    """An event that has failed as often as the subscription allows."""

    event_id: UUID
    """The event's id."""
    error: Message
    """What it has failed with."""
    tries: Annotated[int, Field(ge=0, le=MAX_TRIES)]
    """How often it has failed."""


class SyncSubscription(_OfSubscription):
    """A member's word: that it lives, and what it has done since its last one; answered with what it is to do.

    What it says of a share counts only while the share is its own, in that epoch. Said twice, it counts once.
    """

    type: Literal["sync_subscription"] = "sync_subscription"
    member: Name
    """The member's name, its own among all members."""
    instance: UUID
    """Another one each time that a member begins: the newest of a name is the member."""
    joins: bool = False
    """Whether this is its first word."""
    leaves: bool = False
    """Whether this is its last word: its shares go to others at once."""
    seconds: Annotated[float, Field(ge=1, le=MAX_SILENT_SECONDS, allow_inf_nan=False)] = SILENT_SECONDS
    """After how long without a word its shares go to others."""
    generation: Position = 0
    """The generation of the last answer that it got."""
    acknowledged: Annotated[tuple[AcknowledgedShare, ...], Field(max_length=MAX_SHARES_IN_ALL)] = ()
    """How far it is with its shares; those that have not moved may be left out."""
    given_back: Annotated[tuple[ShareReference, ...], Field(max_length=MAX_SHARES_IN_ALL)] = ()
    """Shares on which it works no more."""
    failed: Annotated[tuple[FailedEvent, ...], Field(max_length=MAX_FAILED_AT_ONCE)] = ()
    """Events for the dead letters. A position may pass over them once this was answered."""
    dealt_with: Annotated[tuple[ShareEvent, ...], Field(max_length=MAX_FAILED_AT_ONCE)] = ()
    """Dead letters that were delivered again, and handled."""


class ReadSubscription(_OfSubscription):
    """Read a named subscription; answered with it, or with none."""

    type: Literal["read_subscription"] = "read_subscription"


class RemoveSubscription(_OfSubscription):
    """Remove a named subscription, its positions and its dead letters; answered with it as it was, or with none."""

    type: Literal["remove_subscription"] = "remove_subscription"


class ResetSubscription(_OfSubscription):
    """Let a named subscription go on behind other positions; answered with it."""

    type: Literal["reset_subscription"] = "reset_subscription"
    positions: Annotated[tuple[PartitionPosition, ...], Field(min_length=1, max_length=MAX_PARTITIONS)]
    """Where it goes on; partitions that are left out stay as they are."""


class SettleDeadLetters(_OfSubscription):
    """Deliver dead letters of a subscription again, or drop them; answered with how many there were."""

    type: Literal["settle_dead_letters"] = "settle_dead_letters"
    deliver_again: bool
    """Whether they are delivered again; otherwise they are dropped."""
    event_ids: Annotated[tuple[UUID, ...], Field(max_length=MAX_DEAD_LETTERS)] | None = None
    """Which of them; None means all."""


class ReadSubscriptions(_Request):
    """Read all named subscriptions, a page at a time, by name; any partition answers."""

    type: Literal["read_subscriptions"] = "read_subscriptions"
    partition: Annotated[int, Field(ge=0, lt=MAX_PARTITIONS)]
    """Any partition: it only says which one answers."""
    after: Annotated[str, StringConstraints(max_length=MAX_NAME_LENGTH)] = ""
    """The name with which the page before has ended."""


CreateRun = CreateFlowRun | CreateTaskRun
RunRequest = CreateFlowRun | CreateTaskRun | UpdateRun | DeleteRun | Propose | WhatIf | ReadRun | ReadTimeline
LimitRequest = SetLimit | ReadLimit
SubscriptionRequest = (
    OpenSubscription | SyncSubscription | ReadSubscription | RemoveSubscription | ResetSubscription | SettleDeadLetters
)
Request = Annotated[
    CreateFlowRun
    | CreateTaskRun
    | UpdateRun
    | DeleteRun
    | PruneRuns
    | Propose
    | Withdraw
    | ReadVerdict
    | WhatIf
    | Explain
    | Heartbeat
    | ReadRun
    | ReadTimeline
    | ReadEvents
    | FindPosition
    | SetLimit
    | ReadLimit
    | ReadLimits
    | OpenSubscription
    | SyncSubscription
    | ReadSubscription
    | ReadSubscriptions
    | RemoveSubscription
    | ResetSubscription
    | SettleDeadLetters,
    Field(discriminator="type"),
]
REQUEST: Final[TypeAdapter[Request]] = TypeAdapter(Request)
MESSAGE: Final[TypeAdapter[str]] = TypeAdapter(Message)
FORCE: Final = "force"
CAN_BE_FORBIDDEN: Final = frozenset(
    {FORCE, *(model.model_fields["type"].default for model in get_args(get_args(Request)[0]))}
)
"""What a deployment may keep its producers from: any type of request, and FORCE, which is to propose with `force`."""


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
