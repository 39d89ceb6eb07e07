"""What the engine answers. A reply is one field of an entry on the producer's reply stream: its name is the request's
id, its value one of `Reply` as JSON, which begins with its type and the version of the protocol."""

from enum import StrEnum
from typing import Annotated, Final, Literal
from uuid import UUID

from pydantic import Field, TypeAdapter

from statewright.events import AnyEvent
from statewright.explanations import Explanation, Timeline
from statewright.limits import ConcurrencyLimit
from statewright.overview import PartitionStatus, RunPage, RunTree, StateCount, WorkerStatus
from statewright.protocol.requests import ShareEvent, ShareReference, TimelineCursor, Trial
from statewright.runs import FlowRun, RunHistory, TaskRun
from statewright.states import StateType
from statewright.subscription.status import SubscriptionStatus
from statewright.values import (
    Frozen,
    Message,
    Moment,
    Name,
)
from statewright.verdicts import Verdict


class ErrorCode(StrEnum):
    """Why a request was not carried out."""

    INVALID_MESSAGE = "invalid_message"
    RUN_NOT_FOUND = "run_not_found"
    RUN_PRUNED = "run_pruned"
    RUN_CONFLICT = "run_conflict"
    PROPOSAL_CONFLICT = "proposal_conflict"
    RULE_FAILED = "rule_failed"
    NOT_WRITABLE = "not_writable"
    OVERLOADED = "overloaded"
    QUERY_TOO_SLOW = "query_too_slow"
    QUERY_FAILED = "query_failed"
    SUBSCRIPTION_NOT_FOUND = "subscription_not_found"
    SUBSCRIPTION_CONFLICT = "subscription_conflict"
    FORBIDDEN = "forbidden"


class _Reply(Frozen):
    type: str
    v: Literal[1] = 1
    """The version of the protocol: that of the request."""


class VerdictReply(_Reply):
    """The verdict on a proposal."""

    type: Literal["verdict"] = "verdict"
    verdict: Verdict
    """The one answer that the proposal has for ever."""


class ParkedReply(_Reply):
    """A proposal is parked: its verdict follows as another reply to the same request."""

    type: Literal["parked"] = "parked"
    proposal_id: UUID
    """The proposal: the id of the request that made it."""
    run_id: UUID
    """The run that it is about."""
    since: Moment
    """Since when it is parked."""
    reason: str | None = None
    """Why it waits; None where that is not known."""


class WithdrawnReply(_Reply):
    """Whether the proposal was parked in the partition and is withdrawn."""

    type: Literal["withdrawn"] = "withdrawn"
    withdrawn: bool
    """Whether it was parked there until now; false when it is answered already, or unknown."""


class RunReply(_Reply):
    """The run that a request creates, changes or reads."""

    type: Literal["run"] = "run"
    run: Annotated[FlowRun | TaskRun, Field(discriminator="kind")]
    """The run as it is after the request."""
    created: bool = False
    """Whether the run is new: this request has created it just now."""


class DeletedReply(_Reply):
    """What was deleted: so many trees, or runs with all that was below them, and so many runs in all."""

    type: Literal["deleted"] = "deleted"
    trees: int
    """How many trees, or runs that were named."""
    runs: int
    """How many runs in all."""


class HistoryReply(_Reply):
    """A run with its history, or a page of it."""

    type: Literal["history"] = "history"
    history: RunHistory
    """The run as it is now, and a page of its states."""
    next: int | None = None
    """The ordinal to read on after; None when no later state exists."""


class EventsReply(_Reply):
    """Events from PostgreSQL, eras among them: what a partition has above the position asked for and up to `up_to`,
    oldest first.

    What is missing between the two no longer exists. When `up_to` is the position itself, nothing is newer.
    """

    type: Literal["events"] = "events"
    events: tuple[Annotated[AnyEvent, Field(union_mode="left_to_right")], ...]
    """The events, oldest first."""
    up_to: int
    """The position to read on after."""
    pruned_up_to: int = 0
    """The last number whose event went with its run, which was deleted: what is missing up to there may have gone so.
    What is missing beyond went in another way."""


class PositionReply(_Reply):
    """A position in a partition: events above it are those that were asked about."""

    type: Literal["position"] = "position"
    position: int
    """The number of an event, or 0."""


class LimitReply(_Reply):
    """A limit as it stands; None when there is none."""

    type: Literal["limit"] = "limit"
    limit: ConcurrencyLimit | None = None
    """The limit; None when there is none."""


class LostRun(Frozen):
    """A run whose lease is none of the sender's any more, and what it is in now; all None when there is no such run."""

    run_id: UUID
    """The run whose lease is lost."""
    state_type: StateType | None = None
    """The type of its current state."""
    state_name: Name | None = None
    """The name of its current state."""
    state_message: Message | None = None
    """The beginning of the message of its current state."""
    executor: Name | None = None
    """The executor that holds it now, if one does."""


class RenewedLease(Frozen):
    """A lease that was renewed: the state RUNNING that it belongs to, and how long it is good now."""

    run_id: UUID
    """The run."""
    state_id: UUID
    """Its state RUNNING."""
    seconds: float
    """For how many seconds from now the lease is good."""


class HeartbeatReply(_Reply):
    """What a heartbeat has not renewed, and what it has, if that was asked."""

    type: Literal["heartbeat"] = "heartbeat"
    lost: tuple[LostRun, ...] = ()
    """The runs whose leases are not the sender's any more."""
    leases: tuple[RenewedLease, ...] = ()
    """The leases that were renewed; empty unless `tell` asked for them."""


class LimitsReply(_Reply):
    """A page of all limits, each without its holders and waiters."""

    type: Literal["limits"] = "limits"
    limits: tuple[ConcurrencyLimit, ...]
    """The limits of the page."""
    next: int | None = None
    """Where to read on; None when there are no more."""


class OwnedShare(ShareReference):
    """A share that the member is to work on, in this epoch."""

    position: int
    """Every event of the share up to this number is done with."""
    trying: int | None = None
    """The event that was tried in vain before, or that is suspected."""
    tries: int = 0
    """How often that has failed."""
    trial: Trial = Trial.NONE
    """Whether it is suspected to be one over which members die."""
    suspect_up_to: int = 0
    """A member died over one of the next events, none of which is above this number."""


class DeliveredAgain(ShareEvent):
    """A dead letter that is to be delivered again."""


class SyncedReply(_Reply):
    """What a member of a named subscription is to do."""

    type: Literal["synced"] = "synced"
    generation: int
    """Changes whenever something has changed that members must hear of."""
    is_replaced: bool = False
    """Another process has joined under the member's name: this one is the member no longer."""
    is_settled: bool = True
    """Whether every share is where it belongs; otherwise it is worth asking again soon."""
    shares: tuple[OwnedShare, ...] | None = None
    """All that are the member's; None when nothing has changed since the generation that it named."""
    give_back: tuple[ShareReference, ...] = ()
    """Which of them it is to give back, once what it has begun of them is done."""
    again: tuple[DeliveredAgain, ...] = ()
    """Dead letters of its shares that are to be delivered again; told with `shares`."""


class SubscriptionReply(_Reply):
    """A named subscription as it stands; None when there is none."""

    type: Literal["subscription"] = "subscription"
    subscription: SubscriptionStatus | None = None
    """The subscription; None when there is none."""


class SettledReply(_Reply):
    """How many dead letters are delivered again, or were dropped."""

    type: Literal["settled"] = "settled"
    count: int
    """How many."""


class SubscriptionsReply(_Reply):
    """A page of all named subscriptions."""

    type: Literal["subscriptions"] = "subscriptions"
    subscriptions: tuple[SubscriptionStatus, ...]
    """The subscriptions of the page."""
    next: str | None = None
    """Where to read on; None when there are no more."""


class RunsReply(_Reply):
    """A page of the runs that match a query."""

    type: Literal["runs"] = "runs"
    page: RunPage
    """The runs, and where to read on."""


class CountsReply(_Reply):
    """How many runs match a query, for each kind and state that any of them is in."""

    type: Literal["counts"] = "counts"
    counts: tuple[StateCount, ...]
    """One for each kind and state."""


class TreeReply(_Reply):
    """A run with what is below it."""

    type: Literal["tree"] = "tree"
    tree: RunTree
    """The run, and what is below it."""


class PartitionsReply(_Reply):
    """All partitions as they stand, by number."""

    type: Literal["partitions"] = "partitions"
    partitions: tuple[PartitionStatus, ...]
    """By their number."""


class WorkersReply(_Reply):
    """All workers that are alive, the oldest first."""

    type: Literal["workers"] = "workers"
    workers: tuple[WorkerStatus, ...]
    """The one that was started first is the first."""


class ErrorReply(_Reply):
    """A request that was not carried out, why, and which field was to blame. Nothing was written for it."""

    type: Literal["error"] = "error"
    code: Annotated[ErrorCode | str, Field(union_mode="left_to_right")]
    """A later engine may have other codes, which are texts here."""
    message: Message
    """What is wrong, for people."""
    field: Message | None = None
    """The part of the message, or the rule, that is to blame."""


class KnownReply(_Reply):
    """What is known of a proposal."""

    type: Literal["known"] = "known"
    proposal_id: UUID
    """The proposal that was asked about."""
    reply: Annotated[VerdictReply | ParkedReply | ErrorReply, Field(discriminator="type")] | None = None
    """The answer that the proposal has, or that it is parked; None when it is unknown."""


class ExplanationReply(_Reply):
    """Why a proposal was decided as it was, or would be, or is parked."""

    type: Literal["explanation"] = "explanation"
    proposal_id: UUID
    """The proposal that was asked about."""
    explanation: Explanation | None = None
    """The explanation; None when the proposal is unknown or was refused."""
    refusal: ErrorReply | None = None
    """The answer of a proposal that was refused: nothing was decided."""


class TimelineReply(_Reply):
    """What happened to a run, or a page of it."""

    type: Literal["timeline"] = "timeline"
    timeline: Timeline
    """The run as it is now, and a page of what happened to it."""
    next: TimelineCursor | None = None
    """Where to read on; None when there is no more."""


Reply = (
    VerdictReply
    | ParkedReply
    | WithdrawnReply
    | KnownReply
    | RunReply
    | DeletedReply
    | HistoryReply
    | EventsReply
    | PositionReply
    | LimitReply
    | HeartbeatReply
    | LimitsReply
    | SyncedReply
    | SubscriptionReply
    | SubscriptionsReply
    | SettledReply
    | RunsReply
    | CountsReply
    | TreeReply
    | PartitionsReply
    | WorkersReply
    | ExplanationReply
    | TimelineReply
    | ErrorReply
)
REPLY: Final[TypeAdapter[Reply]] = TypeAdapter(Annotated[Reply, Field(discriminator="type")])


def reply_from(body: bytes | str) -> Reply:
    """Return the reply that a JSON body carries; fields that are not known are ignored. Raises ValidationError."""
    return REPLY.validate_json(body, extra="ignore")
