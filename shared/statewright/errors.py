"""What can go wrong, as a producer or an operator sees it.

StatewrightError
├── ConfigurationError          a setting is wrong, or the deployment has no partitions yet
│   └── PartitionCountMismatch
├── InvalidRequest              an argument is not what the protocol says; nothing was sent
├── RedisUnavailable            Redis did not answer, and asking again did not help
├── MessageTooLarge
├── NoAnswer                    no worker answered in time; asking again under the same id is safe
├── UnreadableAnswer            a worker of another version answered in a form that this client does not know
├── EventsMissed                a subscription cannot tell some events; it goes on behind them
├── EraBegan                    events that a subscription told no longer happened; it goes on behind them
└── RequestFailed               the engine refused the request; nothing was written for it
    ├── InvalidMessage
    ├── RunNotFound
    ├── RunConflict
    ├── ProposalConflict
    ├── RuleFailed
    └── NotWritable
"""

from typing import TYPE_CHECKING
from uuid import UUID

from pydantic import ValidationError

from statewright.messages import ErrorCode, ErrorReply

if TYPE_CHECKING:
    from statewright.events import Era


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
    """An argument is not what the protocol says; nothing was sent."""

    def __init__(self, wrong: ValidationError | str, problem: str = "") -> None:
        """Take what pydantic found, or the name of a field and what is wrong with it."""
        if isinstance(wrong, ValidationError):
            first = wrong.errors()[0]
            wrong, problem = ".".join(map(str, first["loc"])), first["msg"]
        super().__init__(f"{wrong}: {problem}")
        self.field = wrong


class RedisUnavailable(StatewrightError):
    """Redis did not answer, and asking again did not help."""


class MessageTooLarge(StatewrightError):
    """A message is larger than workers accept; it was not sent."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"the message has {size} bytes and at most {limit} are accepted (STATEWRIGHT_MAX_MESSAGE_BYTES);"
            " store large data elsewhere and send a reference"
        )
        self.size = size
        self.limit = limit


class NoAnswer(StatewrightError):
    """No worker answered in time; the request may still be carried out, and asking again under its id is safe."""

    def __init__(self, request_id: UUID, timeout: float) -> None:
        super().__init__(
            f"no worker answered request {request_id} within {timeout:g} s; it stays queued and takes effect once a"
            " worker runs; proposing again with this proposal_id is safe and returns its one verdict"
        )
        self.proposal_id = request_id
        self.timeout = timeout


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


class EraBegan(StatewrightError):
    """PostgreSQL went back in time, so that events which were told no longer happened; the subscription goes on.

    They are the events of `partition` above `went_back_to` and up to `undone_up_to`. What follows belongs to the era
    `era`; `sequence` is the place of this message among the events.
    """

    def __init__(self, began: "Era") -> None:
        super().__init__(
            f"the database went back in time: the events of partition {began.partition} above {began.went_back_to} and"
            f" up to {began.undone_up_to} told of changes that no longer exist; era {began.era} begins"
        )
        self.partition = began.partition
        self.sequence = began.sequence
        self.era = began.era
        self.went_back_to = began.went_back_to
        self.undone_up_to = began.undone_up_to


class RequestFailed(StatewrightError):
    """The engine refused the request; nothing was written for it."""

    def __init__(self, reply: ErrorReply, request_id: UUID) -> None:
        super().__init__(reply.message)
        self.code = reply.code
        self.field = reply.field
        self.request_id = request_id


class InvalidMessage(RequestFailed):
    """A field of the message is not what the protocol says; `field` names it."""


class RunNotFound(RequestFailed):
    """No run has this id."""


class RunConflict(RequestFailed):
    """The run to be created contradicts what exists: another kind of run, or a parent that does not exist."""


class ProposalConflict(RequestFailed):
    """The proposal id was used before for another run."""


class RuleFailed(RequestFailed):
    """A rule raised an exception; `field` names the rule."""


class NotWritable(RequestFailed):
    """PostgreSQL refused to store what the request asks for."""


_BY_CODE: dict[ErrorCode, type[RequestFailed]] = {
    ErrorCode.INVALID_MESSAGE: InvalidMessage,
    ErrorCode.RUN_NOT_FOUND: RunNotFound,
    ErrorCode.RUN_CONFLICT: RunConflict,
    ErrorCode.PROPOSAL_CONFLICT: ProposalConflict,
    ErrorCode.RULE_FAILED: RuleFailed,
    ErrorCode.NOT_WRITABLE: NotWritable,
}


def error_from(reply: ErrorReply, request_id: UUID) -> RequestFailed:
    """Return the exception that an error reply stands for."""
    return _BY_CODE[reply.code](reply, request_id)
