"""What can go wrong, as a producer or an operator sees it.

StatewrightError
├── ConfigurationError          a setting is wrong, or the deployment has no partitions yet
│   └── PartitionCountMismatch
├── InvalidRequest              an argument is not what the protocol says; nothing was sent
├── NotOpen                     the client is not open here; nothing was sent
├── RedisUnavailable            Redis did not answer and asking again did not help, or it refused the request
│   └── NotPermitted            the Redis user lacks a right; says which command it may not run, or on which keys
├── MessageTooLarge
├── NoAnswer                    no answer came in time; says how far the request got; asking again under its id is safe
├── UnreadableAnswer            a worker of another version answered in a form that this client does not know
├── EventsMissed                a subscription cannot tell some events; it goes on behind them
│   └── EventsPruned            some went with their runs, which were deleted; it goes on with those that are left
├── LeaseLost                   a run is no longer held by the lease that was kept; says what it is in now, and why
├── MemberReplaced              another process has joined a named subscription under this member's name
├── EraBegan                    changes that a subscription told of no longer exist; it goes on behind them
└── RequestFailed               the request was refused; nothing was written for it
    ├── InvalidMessage
    ├── RunNotFound
    │   └── RunPruned           the run was deleted
    ├── RunConflict
    ├── ProposalConflict
    ├── RuleFailed
    ├── NotWritable
    ├── SubscriptionNotFound
    ├── SubscriptionConflict
    ├── Overloaded              too many requests of its partition, or too many queries, are unanswered
    ├── Forbidden               the deployment does not let producers do that
    ├── QueryTooSlow            a query took longer than it may; says which filter would help
    └── QueryFailed             the engine could not look: PostgreSQL is away, or refuses
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Final
from uuid import UUID

from pydantic import ValidationError

if TYPE_CHECKING:
    # The values that messages are made of raise errors themselves.
    from statewright.events import Era
    from statewright.protocol.replies import ErrorReply, LostRun


class StatewrightError(Exception):
    """The base of every error that Statewright raises on purpose."""


class ConfigurationError(StatewrightError):
    """A setting is wrong; the text says which and what would be right."""


class PartitionCountMismatch(ConfigurationError):
    """The deployment was started with another number of partitions, which is fixed."""

    def __init__(self, configured: int, actual: int) -> None:
        super().__init__(
            f"partitions is configured as {configured}, but this deployment was first started with {actual}, and the"
            f" number is fixed; set STATEWRIGHT_PARTITIONS={actual} or leave it out"
        )
        self.configured = configured
        self.actual = actual


class InvalidRequest(StatewrightError):
    """An argument is not what the protocol says; nothing was sent. `field` names it."""

    def __init__(self, wrong: ValidationError | str, problem: str = "") -> None:
        """Take what pydantic found, or the name of a field and what is wrong with it."""
        if isinstance(wrong, ValidationError):
            first = wrong.errors()[0]
            wrong, problem = ".".join(map(str, first["loc"])), first["msg"]
        super().__init__(f"{wrong}: {problem}")
        self.field = wrong


class NotOpen(StatewrightError):
    """The client is not open where it was used; nothing was sent."""


class RedisUnavailable(StatewrightError):
    """Redis did not answer and asking again did not help, or it refused the request."""


class NotPermitted(RedisUnavailable):
    """The Redis user `user` lacks a right: it may not run `command`, or may not use it on one of `keys`.

    `keys` are the keys or channels of the command; there are none where the command itself is refused. Trying again is
    in vain until somebody gives the user the right.
    """

    CURE: ClassVar[str] = "deploy/redis/users.acl shows the rights that each user needs"

    def __init__(self, message: str, user: str, command: str, keys: tuple[str, ...]) -> None:
        super().__init__(f"{message}; {self.CURE}")
        self.user = user
        self.command = command
        self.keys = keys


class MessageTooLarge(StatewrightError):
    """A message is larger than workers accept; it was not sent."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"the message has {size} bytes and at most {limit} are accepted (STATEWRIGHT_MAX_MESSAGE_BYTES);"
            " store large data elsewhere and send a reference"
        )
        self.size = size
        self.limit = limit


class Delivery(StrEnum):
    """How far a request has got, as far as its client knows."""

    NOT_SENT = "not sent"
    UNCONFIRMED = "sent and unconfirmed"
    UNANSWERED = "confirmed and unanswered"
    PARKED = "parked"


_WHAT_FOLLOWS: Final = {
    Delivery.NOT_SENT: "it was not sent; this client keeps it and sends it as soon as it can",
    Delivery.UNCONFIRMED: "it was sent, but not confirmed by Redis: it may take effect; this client goes on sending it",
    Delivery.UNANSWERED: "Redis holds it: it stays queued and takes effect once a worker gets to it",
    Delivery.PARKED: "it is parked: it takes effect once it can, unless it is withdrawn",
}
_WHAT_HAS_ENDED: Final = {
    Delivery.NOT_SENT: "it was not sent, and has no effect",
    Delivery.UNCONFIRMED: "it was sent, but not confirmed by Redis: it may take effect",
    Delivery.UNANSWERED: "Redis holds it: it stays queued and takes effect once a worker gets to it",
    Delivery.PARKED: "it is parked: it takes effect once it can, unless it is withdrawn",
}


class NoAnswer(StatewrightError):
    """No answer came in time; asking again under the request's id is safe. `delivery` says how far it got."""

    def __init__(self, request_id: UUID, timeout: float | None, delivery: Delivery, problem: str = "") -> None:
        """Take the seconds waited for, or None when the client was closed, and what keeps the request."""
        when = "before the client was closed" if timeout is None else f"within {timeout:g} s"
        follows = (_WHAT_HAS_ENDED if timeout is None else _WHAT_FOLLOWS)[delivery]
        super().__init__(
            f"request {request_id} was not answered {when}; {follows}{f' ({problem})' if problem else ''};"
            " proposing again with this proposal_id is safe and returns its one verdict"
        )
        self.proposal_id = request_id
        self.timeout = timeout
        self.delivery = delivery


class UnreadableAnswer(StatewrightError):
    """A worker answered in a form that this client does not know: their versions are too far apart."""

    def __init__(self, request_id: UUID, problem: str) -> None:
        super().__init__(f"the answer to request {request_id} cannot be read; is this client too old? {problem}")
        self.request_id = request_id


class EventsMissed(StatewrightError):
    """Events `first` to `last` of a partition no longer exist, or may not be asked for; the subscription goes on."""

    def __init__(self, partition: int, first: int, last: int) -> None:
        super().__init__(
            f"events {first} to {last} of partition {partition} no longer exist, or the engine could not be asked for"
            f" them; the subscription goes on behind them; to ask again, begin one at position {first - 1}"
        )
        self.partition = partition
        self.first = first
        self.last = last


class EventsPruned(EventsMissed):
    """Some of the events `first` to `last` of a partition went with their runs, which were deleted.

    The subscription goes on with those that are left, and passes over the others without a word.
    """

    def __init__(self, partition: int, first: int, last: int) -> None:
        StatewrightError.__init__(
            self,
            f"some of the events {first} to {last} of partition {partition} went with their runs, which were deleted;"
            " the subscription goes on with those that are left",
        )
        self.partition = partition
        self.first = first
        self.last = last


class LeaseLost(StatewrightError):
    """A run is no longer held by the lease that its holder kept: stop working on it.

    `state_type`, `state_name` and `state_message` are what the run is in now, and `executor` is the executor that holds
    it, if one does; all are None when there is no such run, and when nobody could be asked.
    """

    def __init__(self, message: str, run_id: UUID) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.state_type: str | None = None
        self.state_name: str | None = None
        self.state_message: str | None = None
        self.executor: str | None = None

    @classmethod
    def told(cls, lost: LostRun) -> LeaseLost:
        """Return the error for a run that the engine says is lost."""
        if lost.state_type is None:
            return cls(f"there is no lease on run {lost.run_id}, which does not exist or has no state", lost.run_id)
        whose = "" if lost.executor is None else f", held by executor {lost.executor}"
        why = "" if lost.state_message is None else f": {lost.state_message}"
        error = cls(
            f"the lease on run {lost.run_id} is lost; the run is {lost.state_name} now{whose}{why}", lost.run_id
        )
        error.state_type, error.state_name = lost.state_type, lost.state_name
        error.state_message, error.executor = lost.state_message, lost.executor
        return error

    @classmethod
    def unheard(cls, run_id: UUID, problem: str) -> LeaseLost:
        """Return the error for a run whose heartbeats were not answered until its lease must have ended."""
        why = f"; the last problem was: {problem}" if problem else ""
        return cls(
            f"the lease on run {run_id} is lost: no heartbeat was answered until it must have ended{why}", run_id
        )


class MemberReplaced(StatewrightError):
    """Another process has joined a named subscription under this member's name, and has taken its shares."""

    def __init__(self, subscription: str, member: str) -> None:
        super().__init__(
            f"another process has joined the subscription {subscription!r} as {member!r}, and has taken over what this"
            " one held; a member's name must be its own"
        )
        self.subscription = subscription
        self.member = member


class EraBegan(StatewrightError):
    """PostgreSQL went back in time, so the changes behind some events no longer exist; the subscription goes on.

    They are the events of `partition` above `went_back_to` and up to `undone_up_to`. What follows belongs to the era
    `era`; `sequence` is the place of this message among the events.
    """

    def __init__(self, began: Era) -> None:
        undone = began.data
        super().__init__(
            f"the database went back in time: the events of partition {began.partition} above {undone.went_back_to} and"
            f" up to {undone.undone_up_to} told of changes that no longer exist; era {began.era} begins"
        )
        self.partition = began.partition
        self.sequence = began.sequence
        self.era = began.era
        self.went_back_to = undone.went_back_to
        self.undone_up_to = undone.undone_up_to


_OVERLOADED: Final = "overloaded"
_MINUTE: Final = 60


class RequestFailed(StatewrightError):
    """The request was refused; nothing was written for it."""

    def __init__(self, message: str, request_id: UUID, code: str, field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.field = field
        self.request_id = request_id


class InvalidMessage(RequestFailed):
    """A field of the message is not what the protocol says; `field` names it."""


class RunNotFound(RequestFailed):
    """No run has this id."""


class RunPruned(RunNotFound):
    """The run was deleted, on purpose or because it was older than runs are kept."""


class RunConflict(RequestFailed):
    """What is asked for contradicts the run as it is; `field` says what.

    A run to be created exists with other content, or its parent does not exist; a run to be changed is in a terminal
    state, or is RUNNING, which keeps its tags; a run to be deleted, or one below it, has not come to an end.
    """


class ProposalConflict(RequestFailed):
    """The request's id was used before with other content, whatever kind of request it was."""


class RuleFailed(RequestFailed):
    """A rule raised an exception; `field` names the rule."""


class NotWritable(RequestFailed):
    """PostgreSQL refused to store what the request asks for."""


class SubscriptionNotFound(RequestFailed):
    """No subscription has this name; a member is told so when it was removed."""


class SubscriptionConflict(RequestFailed):
    """A subscription of this name has another filter, or other terms; `field` says which."""


class Forbidden(RequestFailed):
    """The deployment does not let producers do that (its workers' setting STATEWRIGHT_FORBID); `field` says what."""


class QueryTooSlow(RequestFailed):
    """A query took longer than it may; the text says which filter would help. Proposals were not held up."""


class QueryFailed(RequestFailed):
    """The engine could not look: PostgreSQL does not answer the worker's queries, or refuses them. Ask again later."""


class Overloaded(RequestFailed):
    """Too many requests of the partition, or too many queries, are unanswered, in number or in bytes; nothing was
    written for this one.

    The numbers are None where the engine refused it and did not say them; `partition` is None for a query.
    """

    partition: int | None = None
    unanswered: int | None = None
    bytes: int | None = None
    oldest_seconds: float | None = None

    @classmethod
    def unsent(
        cls, request_id: UUID, partition: int | None, *, unanswered: int, size: int, oldest_seconds: float
    ) -> Overloaded:
        """Return the error of a request that its client has not sent."""
        which = "queries" if partition is None else f"requests of partition {partition}"
        error = cls(
            f"{unanswered} {which} are unanswered, of {size} bytes, the oldest of which has been"
            f" waiting for {_in_words(oldest_seconds)}; this one was not sent. Send less at a time, add workers, wait"
            " for room (STATEWRIGHT_WAIT_FOR_ROOM, in seconds) or allow more (STATEWRIGHT_MAX_BACKLOG,"
            " STATEWRIGHT_MAX_BACKLOG_BYTES)",
            request_id,
            _OVERLOADED,
        )
        error.partition, error.unanswered, error.bytes = partition, unanswered, size
        error.oldest_seconds = oldest_seconds
        return error


def _in_words(seconds: float) -> str:
    if seconds < _MINUTE:
        return f"{seconds:.1f} s"
    # Imported only now, because the import takes longer than thousands of requests.
    import pendulum

    return pendulum.duration(seconds=round(seconds)).in_words(locale="en")


_BY_CODE: Final[dict[str, type[RequestFailed]]] = {
    "invalid_message": InvalidMessage,
    "run_not_found": RunNotFound,
    "run_pruned": RunPruned,
    "run_conflict": RunConflict,
    "proposal_conflict": ProposalConflict,
    "rule_failed": RuleFailed,
    "not_writable": NotWritable,
    _OVERLOADED: Overloaded,
    "query_too_slow": QueryTooSlow,
    "query_failed": QueryFailed,
    "subscription_not_found": SubscriptionNotFound,
    "subscription_conflict": SubscriptionConflict,
    "forbidden": Forbidden,
}


def error_from(reply: ErrorReply, request_id: UUID) -> RequestFailed:
    """Return the exception that an error reply stands for."""
    return _BY_CODE.get(reply.code, RequestFailed)(reply.message, request_id, reply.code, reply.field)
