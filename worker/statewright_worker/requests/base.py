"""What every kind of request is: where it belongs, what it asks for beforehand, how it is carried out and answered."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar, Final, Generic, NamedTuple, TypeVar
from uuid import UUID

from statewright.events import Era
from statewright.ids import partition_of
from statewright.messages import ErrorCode, ErrorReply, Reply, Request, RunRequest
from statewright_worker.facts.batch import Asked
from statewright_worker.orchestration.engine import Engine
from statewright_worker.orchestration.errors import OrchestrationError, RuleFailed, RunNotFound
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.storage.errors import NotWritable
from statewright_worker.storage.sessions import RuleSessions
from statewright_worker.streams.proposals import Entry

_LAST_MILLISECOND: Final = 253_402_300_799_000


class Incoming(NamedTuple):
    """A request, who waits for its answer, and the entry that brought it."""

    entry: Entry
    id: UUID
    reply_to: str | None
    request: Request
    digest: int
    """Tells whether a request of the same id asks for the same."""

    @property
    def entered(self) -> datetime:
        """When the request entered its stream, by Redis' clock; the end of time when the producer chose an entry's id
        that is no moment."""
        return datetime.fromtimestamp(min(int(self.entry.id.partition("-")[0]), _LAST_MILLISECOND) / 1000, UTC)


class BatchSpoiled(Exception):
    """A request has cost the batch its transaction; `reply` is what it gets."""

    def __init__(self, incoming: Incoming, reply: ErrorReply) -> None:
        super().__init__(reply.message)
        self.incoming = incoming
        self.reply = reply


@dataclass(frozen=True, slots=True)
class InBatch:
    """What the requests of a batch are carried out with."""

    engine: Engine
    work: UnitOfWork
    sessions: RuleSessions
    partition: int
    sequence: int
    """The partition's last sequence number before this batch."""
    eras: Sequence[Era]


AnyRequest = TypeVar("AnyRequest")


class Kind(ABC, Generic[AnyRequest]):
    """A kind of request; one of each serves all of its requests. `requests.kinds` says which message is of which."""

    changes: ClassVar[bool] = False
    """Whether it changes something, and so has one answer for ever: what it is refused with is kept in the ledger."""
    keeps_answer: ClassVar[bool] = False
    """Whether the ledger keeps every answer as it was given. A verdict has a place of its own, and a run is told as it
    is whenever its creation is asked for again."""
    answer_bytes: ClassVar[int] = 0
    """How large its answer may be, where that is much: so much less goes into its transaction."""

    @abstractmethod
    def place(self, request: AnyRequest, partitions: int) -> tuple[str, int]:
        """Return the partition to which the request belongs, behind the name of the field that says so."""

    @abstractmethod
    def ask(self, request: AnyRequest, asked: Asked, engine: Engine) -> None:
        """Ask for everything that must be known before the request can be carried out."""

    @abstractmethod
    async def carry_out(self, request: AnyRequest, incoming: Incoming, batch: InBatch) -> Reply:
        """Carry the request out and return its answer; an ErrorReply means that nothing of it was done.

        A kind that has more to say, "wake that partition after the commit" or "this is answered later", says it here:
        `answering.answer` takes what is returned apart, and hands it on to the drain, which publishes after the commit.

        Raises BatchSpoiled when the request has cost the batch its transaction, and StorageError.
        """


AboutRun = TypeVar("AboutRun", bound=RunRequest)


class OfRun(Kind[AboutRun]):
    """A kind of request about a run: it belongs where the run's tree does."""

    def place(self, request: AboutRun, partitions: int) -> tuple[str, int]:
        return "run_id", partition_of(request.run_id, partitions)


def refusal(code: ErrorCode, field: str | None, message: str) -> ErrorReply:
    """Return the answer to a request that is not carried out."""
    return ErrorReply(code=code, message=message[:10_000].replace("\x00", "�"), field=field)


def failure(error: OrchestrationError | NotWritable) -> ErrorReply:
    """Return the answer to a request that has failed."""
    match error:
        case RunNotFound():
            return refusal(ErrorCode.RUN_NOT_FOUND, "run_id", str(error))
        case RuleFailed(rule=rule):
            return refusal(ErrorCode.RULE_FAILED, rule, str(error))
        case NotWritable():
            return refusal(ErrorCode.NOT_WRITABLE, None, str(error))
        case _:
            return refusal(ErrorCode.RULE_FAILED, None, str(error))
