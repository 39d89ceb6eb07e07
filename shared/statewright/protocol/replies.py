"""What the engine answers. A reply is one field of an entry on the producer's reply stream: its name is the request's
id, its value one of `Reply` as JSON, which begins with its type and the version of the protocol."""

from enum import StrEnum
from typing import Annotated, Final, Literal
from uuid import UUID

from pydantic import Field, TypeAdapter

from statewright.events import AnyEvent
from statewright.limits import ConcurrencyLimit
from statewright.runs import FlowRun, RunHistory, TaskRun
from statewright.states import StateType
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
    PRUNED = "pruned"
    RUN_CONFLICT = "run_conflict"
    PROPOSAL_CONFLICT = "proposal_conflict"
    RULE_FAILED = "rule_failed"
    NOT_WRITABLE = "not_writable"
    OVERLOADED = "overloaded"


class _Reply(Frozen):
    type: str
    v: Literal[1] = 1


class VerdictReply(_Reply):
    """The verdict on a proposal."""

    type: Literal["verdict"] = "verdict"
    verdict: Verdict


class ParkedReply(_Reply):
    """A proposal is parked: its verdict follows as another reply to the same request."""

    type: Literal["parked"] = "parked"
    proposal_id: UUID
    run_id: UUID
    since: Moment
    reason: str | None = None
    """Why it waits; None where that is not known."""


class WithdrawnReply(_Reply):
    """Whether the proposal was parked in the partition and is withdrawn."""

    type: Literal["withdrawn"] = "withdrawn"
    withdrawn: bool


class RunReply(_Reply):
    """The run that a request creates, changes or reads."""

    type: Literal["run"] = "run"
    run: Annotated[FlowRun | TaskRun, Field(discriminator="kind")]
    created: bool = False
    """Whether the run is new: this request has created it just now."""


class DeletedReply(_Reply):
    """What was deleted: so many trees, or runs with all that was below them, and so many runs in all."""

    type: Literal["deleted"] = "deleted"
    trees: int
    runs: int


class HistoryReply(_Reply):
    """A run with its history, or a page of it."""

    type: Literal["history"] = "history"
    history: RunHistory
    next: int | None = None
    """The ordinal to read on after; None when no later state exists."""


class EventsReply(_Reply):
    """Events from PostgreSQL, eras among them: what a partition has above the position asked for and up to `up_to`,
    oldest first.

    What is missing between the two no longer exists. When `up_to` is the position itself, nothing is newer.
    """

    type: Literal["events"] = "events"
    events: tuple[Annotated[AnyEvent, Field(union_mode="left_to_right")], ...]
    up_to: int
    pruned_up_to: int = 0
    """The last number whose event went with its run, which was deleted: what is missing up to there may have gone so.
    What is missing beyond went in another way."""


class LimitReply(_Reply):
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


class HeartbeatReply(_Reply):
    """What a heartbeat has not renewed, and what it has, if that was asked."""

    type: Literal["heartbeat"] = "heartbeat"
    lost: tuple[LostRun, ...] = ()
    leases: tuple[RenewedLease, ...] = ()


class LimitsReply(_Reply):
    """A page of all limits, each without its holders and waiters."""

    type: Literal["limits"] = "limits"
    limits: tuple[ConcurrencyLimit, ...]
    next: int | None = None
    """Where to read on; None when there are no more."""


class ErrorReply(_Reply):
    """A request that was not carried out, why, and which field was to blame. Nothing was written for it."""

    type: Literal["error"] = "error"
    code: Annotated[ErrorCode | str, Field(union_mode="left_to_right")]
    """A later engine may have other codes, which are texts here."""
    message: Message
    field: Message | None = None


Reply = (
    VerdictReply
    | ParkedReply
    | WithdrawnReply
    | RunReply
    | DeletedReply
    | HistoryReply
    | EventsReply
    | LimitReply
    | HeartbeatReply
    | LimitsReply
    | ErrorReply
)
REPLY: Final[TypeAdapter[Reply]] = TypeAdapter(Annotated[Reply, Field(discriminator="type")])


def reply_from(body: bytes | str) -> Reply:
    """Return the reply that a JSON body carries; fields that are not known are ignored. Raises ValidationError."""
    return REPLY.validate_json(body, extra="ignore")
