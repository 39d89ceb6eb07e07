"""What the engine answers. A reply is one field of an entry on the producer's reply stream: its name is the request's
id, its value one of `Reply` as JSON."""

from enum import StrEnum
from typing import Annotated, Final, Literal
from uuid import UUID

from pydantic import Field, TypeAdapter

from statewright.events import Era, Event
from statewright.limits import ConcurrencyLimit
from statewright.protocol.requests import ShareEvent, ShareReference, Trial
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
    RUN_CONFLICT = "run_conflict"
    PROPOSAL_CONFLICT = "proposal_conflict"
    RULE_FAILED = "rule_failed"
    NOT_WRITABLE = "not_writable"
    OVERLOADED = "overloaded"
    SUBSCRIPTION_NOT_FOUND = "subscription_not_found"
    SUBSCRIPTION_CONFLICT = "subscription_conflict"


class VerdictReply(Frozen):
    """The verdict on a proposal."""

    type: Literal["verdict"] = "verdict"
    verdict: Verdict


class ParkedReply(Frozen):
    """A proposal is parked: its verdict follows as another reply to the same request."""

    type: Literal["parked"] = "parked"
    proposal_id: UUID
    run_id: UUID
    since: Moment
    reason: str | None = None
    """Why it waits; None where that is not known."""


class WithdrawnReply(Frozen):
    """Whether the proposal was parked in the partition and is withdrawn."""

    type: Literal["withdrawn"] = "withdrawn"
    withdrawn: bool


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


class PositionReply(Frozen):
    """A position in a partition: events above it are those that were asked about."""

    type: Literal["position"] = "position"
    position: int


class LimitReply(Frozen):
    """A limit as it stands; None when there is none."""

    type: Literal["limit"] = "limit"
    limit: ConcurrencyLimit | None = None


class LostRun(Frozen):
    """A run whose lease is none of the sender's any more, and what it is in now; all None when there is no such run."""

    run_id: UUID
    state_type: StateType | None = None
    state_name: Name | None = None
    state_message: Message | None = None
    executor: Name | None = None
    """The executor that holds it now, if one does."""


class RenewedLease(Frozen):
    """A lease that was renewed: the state RUNNING that it belongs to, and how long it is good now."""

    run_id: UUID
    state_id: UUID
    seconds: float


class HeartbeatReply(Frozen):
    """What a heartbeat has not renewed, and what it has, if that was asked."""

    type: Literal["heartbeat"] = "heartbeat"
    lost: tuple[LostRun, ...] = ()
    leases: tuple[RenewedLease, ...] = ()


class LimitsReply(Frozen):
    """A page of all limits, each without its holders and waiters."""

    type: Literal["limits"] = "limits"
    limits: tuple[ConcurrencyLimit, ...]
    next: int | None = None
    """Where to read on; None when there are no more."""


class OwnedShare(ShareReference):
    """A share that the member is to work on, in this epoch."""

    position: int
    trying: int | None = None
    """The event that was tried in vain before, or that is suspected."""
    tries: int = 0
    trial: Trial = Trial.NONE
    suspect_up_to: int = 0
    """A member died over one of the next events, none of which is above this number."""


class DeliveredAgain(ShareEvent):
    """A dead letter that is to be delivered again."""


class SyncedReply(Frozen):
    """What a member of a named subscription is to do."""

    type: Literal["synced"] = "synced"
    generation: int
    is_replaced: bool = False
    """Another process has joined under the member's name: this one is the member no longer."""
    is_settled: bool = True
    """Whether every share is where it belongs; otherwise it is worth asking again soon."""
    shares: tuple[OwnedShare, ...] | None = None
    """All that are the member's; None when nothing has changed since the generation that it named."""
    give_back: tuple[ShareReference, ...] = ()
    """Which of them it is to give back, once what it has begun of them is done."""
    again: tuple[DeliveredAgain, ...] = ()


class SubscriptionReply(Frozen):
    """A named subscription as it stands; None when there is none."""

    type: Literal["subscription"] = "subscription"
    subscription: SubscriptionStatus | None = None


class SettledReply(Frozen):
    """How many dead letters are delivered again, or were dropped."""

    type: Literal["settled"] = "settled"
    count: int


class SubscriptionsReply(Frozen):
    """A page of all named subscriptions."""

    type: Literal["subscriptions"] = "subscriptions"
    subscriptions: tuple[SubscriptionStatus, ...]
    next: str | None = None
    """Where to read on; None when there are no more."""


class ErrorReply(Frozen):
    """A request that was not carried out, why, and which field was to blame. Nothing was written for it."""

    type: Literal["error"] = "error"
    code: ErrorCode
    message: Message
    field: Message | None = None


Reply = (
    VerdictReply
    | ParkedReply
    | WithdrawnReply
    | RunReply
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
    | ErrorReply
)
REPLY: Final[TypeAdapter[Reply]] = TypeAdapter(Annotated[Reply, Field(discriminator="type")])
