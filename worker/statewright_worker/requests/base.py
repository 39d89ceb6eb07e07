"""A kind of request: where it belongs, which facts it asks for, and how it is carried out and answered."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID

from pydantic_core import to_json

from statewright.ids import partition_of
from statewright.protocol.replies import ErrorCode, ErrorReply, Reply, VerdictReply, reply_from
from statewright.protocol.requests import PROTOCOL_VERSION, RunRequest
from statewright.verdicts import Verdict
from statewright_worker.facts.batch import Asked
from statewright_worker.orchestration.engine import Engine
from statewright_worker.orchestration.errors import OrchestrationError, RuleFailed, RunNotFound
from statewright_worker.orchestration.records import StateChange, TimerName
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.storage.errors import NotWritable
from statewright_worker.storage.sessions import RuleSessions
from statewright_worker.streams.events import SequencedEvent
from statewright_worker.streams.proposals import Entry

_LAST_MILLISECOND: Final = 253_402_300_799_000


class Incoming(NamedTuple):
    """A request, who waits for its answer, and the entry that brought it."""

    entry: Entry
    id: UUID
    reply_to: str | None
    request: Any
    """One of `statewright.protocol.requests.Request`, or what a timer asks for."""
    digest: int
    """Shows whether another request with the same id asks for the same."""
    actor: str | None = None
    """Who asks, where they have said so."""
    timer: TimerName | None = None
    """What has come due, where the request was not pushed just now."""

    @property
    def entered(self) -> datetime:
        """When the request entered its stream, by Redis' clock; the end of time when the producer chose an id for the
        entry that is no moment."""
        return datetime.fromtimestamp(min(int(self.entry.id.partition("-")[0]), _LAST_MILLISECOND) / 1000, UTC)


class BatchSpoiled(Exception):
    """A request has cost the batch its transaction; `reply` is what it gets."""

    def __init__(self, incoming: Incoming, reply: ErrorReply) -> None:
        super().__init__(reply.message)
        self.incoming = incoming
        self.reply = reply


class EncodedReply(NamedTuple):
    """A reply whose parts were JSON already."""

    type: Literal["events"]
    body: bytes


AnyReply = Reply | EncodedReply
ReadBack = Callable[[Sequence[tuple[int, StateChange]], int, int], Sequence[SequencedEvent]]
"""Makes events of changes that were read from PostgreSQL, and of the eras between two sequence numbers."""


class LateAnswer(NamedTuple):
    """The answer to an earlier request, and who waits for it."""

    reply_to: str
    request_id: UUID
    reply: Reply


@dataclass(frozen=True, slots=True)
class InBatch:
    """What a request is carried out with: the batch and its unit of work."""

    engine: Engine
    work: UnitOfWork
    sessions: RuleSessions
    partition: int
    sequence: int
    """The partition's last sequence number before this batch."""
    read_back: ReadBack
    parked_room: int = 0
    """How many more proposals may be parked."""
    prunes_after: timedelta | None = None
    """How long trees must be unchanged that producers may prune; None where they may prune whatever is over."""
    late: list[LateAnswer] = field(default_factory=list)
    """Answers to requests that were not answered when they were pushed: carrying out adds to them."""


AnyRequest = TypeVar("AnyRequest")


class Kind(ABC, Generic[AnyRequest]):
    """A kind of request; one object serves all requests of the kind. `requests.kinds` maps messages to kinds."""

    changes: ClassVar[bool] = False
    """Whether it changes something, and so has one answer for ever: the ledger keeps its refusals."""
    keeps_answer: ClassVar[bool] = False
    """Whether the ledger keeps every answer as it was given. It need not for proposals, whose verdicts have a table of
    their own, nor for creations, which are answered with the run as it is now."""
    is_alone: ClassVar[bool] = False
    """Whether it shares no transaction with other requests."""
    answer_bytes: ClassVar[int] = 0
    """How many bytes its answer may take, if they are many: they count towards the size of a transaction."""

    @abstractmethod
    def place(self, request: AnyRequest, partitions: int) -> tuple[str, int]:
        """Return the name of the field that says where the request belongs, and the partition."""

    @abstractmethod
    def ask(self, request: AnyRequest, asked: Asked, engine: Engine) -> None:
        """Ask for every fact that carrying out the request needs."""

    def decides_on(self, request: AnyRequest) -> UUID | None:
        """Return the run of the request's verdict, None when the kind is not answered with one."""
        return None

    def run_of(self, request: AnyRequest) -> UUID | None:
        """Return the run that the request is about, None where it is about something else: its answer goes with it."""
        return None

    def ask_refused(self, request: AnyRequest, asked: Asked, engine: Engine) -> None:
        """Ask for what refusing the request needs: nothing, beside its earlier answer."""

    async def refuse(
        self, request: AnyRequest, incoming: Incoming, batch: InBatch, condemned: ErrorReply
    ) -> Reply | None:
        """Return the answer to a request that must not be carried out, because that has cost a batch its transaction.

        Raises what `carry_out` does.
        """
        return condemned

    @abstractmethod
    async def carry_out(self, request: AnyRequest, incoming: Incoming, batch: InBatch) -> AnyReply | None:
        """Carry the request out and return its answer; an ErrorReply means that nothing of it was done.

        None means that nobody is answered now. A kind that answers an earlier request adds to `batch.late`; one that
        wants another partition's holder, or this one's, to look at something sets a timer in `batch.work`, for now or
        for later. All of that leaves after the commit.

        Raises BatchSpoiled when the request has cost the batch its transaction, and StorageError.
        """


class WhenDue(Kind[AnyRequest]):
    """A kind of request that no producer sends: a timer asks for it."""

    def place(self, request: AnyRequest, partitions: int) -> tuple[str, int]:
        raise NotImplementedError("no producer sends it")


AboutRun = TypeVar("AboutRun", bound=RunRequest)


class OfRun(Kind[AboutRun]):
    """A kind of request about a run: it belongs to the partition of the run's tree."""

    def place(self, request: AboutRun, partitions: int) -> tuple[str, int]:
        return "run_id", partition_of(request.run_id, partitions)

    def run_of(self, request: AboutRun) -> UUID:
        return request.run_id


def verdict_reply(verdict: Verdict) -> VerdictReply:
    """Return the answer that tells a verdict."""
    return VerdictReply.trusted(type="verdict", v=PROTOCOL_VERSION, verdict=verdict)


def encoded(reply: AnyReply) -> bytes:
    """Return the reply as JSON."""
    return reply.body if isinstance(reply, EncodedReply) else to_json(reply, exclude_none=True)


def known_reply(request_id: UUID, work: UnitOfWork) -> Reply | None:
    """Return the answer that the ledger has for a request, None without one."""
    entry, answer = work.verdicts.get(request_id), work.answers.get(request_id)
    if entry is not None:
        return verdict_reply(entry.verdict)
    return None if answer is None else reply_from(answer.reply)


def refusal(code: ErrorCode, field: str | None, message: str) -> ErrorReply:
    """Return the answer to a request that is not carried out."""
    return ErrorReply(code=code, message=message[:10_000].replace("\x00", "�"), field=field)


def no_run(run_id: UUID, work: UnitOfWork) -> ErrorReply:
    """Return the answer to a request about a run that is not there, or not any more."""
    if run_id in work.deleting.gone:
        return deleted(run_id)
    return refusal(ErrorCode.RUN_NOT_FOUND, "run_id", str(RunNotFound(run_id)))


def deleted(run_id: UUID) -> ErrorReply:
    """Return the answer to a request about a run that was deleted."""
    return refusal(ErrorCode.RUN_PRUNED, "run_id", f"the run {run_id} was deleted, on purpose or because it was old")


def forbidden(field: str, what: str) -> ErrorReply:
    """Return the answer to a request that the deployment does not let producers make."""
    return refusal(
        ErrorCode.FORBIDDEN,
        field,
        f"{field}: this deployment does not let producers do this; its workers' setting STATEWRIGHT_FORBID names"
        f" {what!r}",
    )


def failure(error: OrchestrationError | NotWritable, work: UnitOfWork) -> ErrorReply:
    """Return the answer to a request that has failed."""
    match error:
        case RunNotFound(run_id=run_id):
            return no_run(run_id, work)
        case RuleFailed(rule=rule):
            return refusal(ErrorCode.RULE_FAILED, rule, str(error))
        case NotWritable():
            return refusal(ErrorCode.NOT_WRITABLE, None, str(error))
        case _:
            return refusal(ErrorCode.RULE_FAILED, None, str(error))
