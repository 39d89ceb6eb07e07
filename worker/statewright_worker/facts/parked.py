"""Parked proposals: those that come due, that are asked for again, or that must go with their run."""

from collections.abc import Awaitable, Iterable, Iterator, Sequence
from typing import Final
from uuid import UUID

from asyncpg import Record

from statewright.limits import LimitName, LimitScope
from statewright_worker.facts.base import Reading, Subject
from statewright_worker.facts.limits import Limits
from statewright_worker.orchestration.records import ParkedProposal
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.orchestration.waiting import Waiting
from statewright_worker.storage.columns import Columns
from statewright_worker.storage.transactions import Storage
from statewright_worker.storage.writing import Part, Row, delete, insert

PARKED_COLUMNS: Final[Columns] = (
    ("proposal_id", "uuid"),
    ("run_id", "uuid"),
    ("digest", "bigint"),
    ("message", "text"),
    ("reply_to", "text"),
    ("entry_id", "text"),
    ("since", "timestamptz"),
    ("until", "timestamptz"),
    ("priority", "integer"),
    ("ticket", "bigint"),
    ("decided", "boolean"),
    ("reason", "text"),
    ("actor", "text"),
    ("trace", "jsonb"),
)
PARKED_ADDED: Final = insert("parked", PARKED_COLUMNS, partition="partition")
PARKED_CHANGED: Final = Part(
    "UPDATE parked SET reply_to = rows.reply_to, decided = rows.decided, reason = rows.reason,"
    " trace = rows.trace FROM {rows} WHERE parked.proposal_id = rows.proposal_id",
    (("proposal_id", "uuid"), ("reply_to", "text"), ("decided", "boolean"), ("reason", "text"), ("trace", "jsonb")),
)
WAITER_COLUMNS: Final[Columns] = (
    ("limit_id", "bigint"),
    ("proposal_id", "uuid"),
    ("run_id", "uuid"),
    ("priority", "integer"),
    ("ticket", "bigint"),
    ("since", "timestamptz"),
)
WAITERS_ADDED: Final = insert("waiter", WAITER_COLUMNS, partition="partition")
WAITERS_REMOVED: Final = delete("waiter", (("limit_id", "bigint"), ("proposal_id", "uuid")))
PARKED_REMOVED: Final = delete("parked", (("proposal_id", "uuid"),))

COUNT_PARKED: Final = "SELECT count(*) FROM parked WHERE partition = $1"
READ_PARKED: Final = """
    SELECT parked.*, parked.trace::text AS traced, (
        SELECT array_agg(ARRAY[named.scope, named.key])
        FROM waiter JOIN concurrency_limit AS named ON named.id = waiter.limit_id
        WHERE waiter.proposal_id = parked.proposal_id
    ) AS waits_on
    FROM parked WHERE partition = $1 AND (proposal_id = ANY ($2) OR (run_id = ANY ($3) AND NOT decided))
"""


async def count_parked(storage: Storage, partition: int) -> int:
    """Return how many proposals of the partition are parked.

    It takes a transaction of its own. Raises one of the errors of `storage.errors`.
    """
    async with storage.transaction(partition) as transaction:
        counted: int = await transaction.driver.fetchval(COUNT_PARKED, partition)
    return counted


class Parked(Subject):
    """The parked proposals that a batch decides, withdraws or is asked for again, and those that it parks."""

    def __init__(self, limits: Limits) -> None:
        """Take the subject that loads limits: those in whose queues the proposals stand are loaded as well."""
        self.ids: set[UUID] = set()
        self.of_runs: set[UUID] = set()
        """Runs of which every parked proposal is loaded."""
        self._limits = limits

    def load(self, reading: Reading, work: UnitOfWork) -> Awaitable[None] | None:
        return self._load(reading, work) if self.ids or self.of_runs or reading.found["known"] else None

    async def _load(self, reading: Reading, work: UnitOfWork) -> None:
        ids = self.ids.union(row["id"] for row in reading.found["known"])
        for row in await reading.driver.fetch(READ_PARKED, reading.partition, list(ids), list(self.of_runs)):
            parked = parked_from(row)
            work.waiting.parked[parked.proposal_id] = parked
            self._limits.also.update(parked.waits_on)

    def parts(self, work: UnitOfWork, sequence: int) -> Iterable[tuple[Part, Sequence[Row]]]:
        return _parts(work.waiting) if work.waiting.has_changed else ()


def _parts(waiting: Waiting) -> Iterator[tuple[Part, Sequence[Row]]]:
    yield PARKED_ADDED, [parked_values(parked) for parked in waiting.added.values()]
    yield (
        PARKED_CHANGED,
        [
            (parked.proposal_id, parked.reply_to, parked.decided, parked.reason, parked.trace)
            for parked in waiting.changed.values()
        ],
    )
    yield (
        WAITERS_ADDED,
        [
            (limit_id, proposal_id, parked.run_id, parked.priority, parked.ticket, parked.since)
            for (limit_id, proposal_id), parked in waiting.waiters_added.items()
        ],
    )
    yield WAITERS_REMOVED, sorted(waiting.waiters_removed)
    yield PARKED_REMOVED, [(proposal_id,) for proposal_id in sorted(waiting.removed)]


def parked_from(row: Record) -> ParkedProposal:
    """Return the parked proposal of a row of READ_PARKED."""
    return ParkedProposal(
        proposal_id=row["proposal_id"],
        run_id=row["run_id"],
        digest=row["digest"],
        message=row["message"],
        reply_to=row["reply_to"],
        entry_id=row["entry_id"],
        since=row["since"],
        until=row["until"],
        priority=row["priority"],
        ticket=row["ticket"],
        decided=row["decided"],
        reason=row["reason"],
        actor=row["actor"],
        trace=row["traced"],
        waits_on=tuple(LimitName(LimitScope(scope), key) for scope, key in row["waits_on"] or ()),
    )


def parked_values(parked: ParkedProposal) -> Row:
    """Return the row of a parked proposal, in the order of PARKED_COLUMNS."""
    return (
        parked.proposal_id,
        parked.run_id,
        parked.digest,
        parked.message,
        parked.reply_to,
        parked.entry_id,
        parked.since,
        parked.until,
        parked.priority,
        parked.ticket,
        parked.decided,
        parked.reason,
        parked.actor,
        parked.trace,
    )
