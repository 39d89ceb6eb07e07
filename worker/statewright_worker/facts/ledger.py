"""The ledger: the one answer that each request has for ever, a verdict or another one."""

from collections.abc import Awaitable, Iterator, Sequence
from functools import lru_cache
from typing import Final
from uuid import UUID, uuid5

from asyncpg import Connection, Record

from statewright.verdicts import SetStateStatus, Verdict
from statewright_worker.facts.base import Reading, Subject
from statewright_worker.facts.states import STATE, state_from
from statewright_worker.orchestration.records import Answer, LedgerEntry
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.storage.columns import Columns, Source
from statewright_worker.storage.writing import Part, Row, insert

SIGNATURE_SEPARATOR: Final = ","
SIGNATURES_REMEMBERED: Final = 4_096

VERDICT_COLUMNS: Final[Columns] = (
    ("proposal_id", "uuid"),
    ("run_id", "uuid"),
    ("status", "text"),
    ("reason", "text"),
    ("delay_seconds", "integer"),
    ("state_id", "uuid"),
    ("rule_signature", "text"),
    ("finalization_signature", "text"),
    ("digest", "bigint"),
    ("actor", "text"),
    ("trace", "jsonb"),
)
ANSWER_COLUMNS: Final[Columns] = (
    ("request_id", "uuid"),
    ("digest", "bigint"),
    ("reply", "text"),
    ("run_id", "uuid"),
    ("actor", "text"),
)
VERDICTS: Final = insert("verdict", VERDICT_COLUMNS, decided="now")
ANSWERS: Final = insert("answer", ANSWER_COLUMNS, answered="now")

KNOWN: Final = Source(
    "known",
    (("id", "uuid"),),
    """
        SELECT proposal_id AS id FROM verdict WHERE proposal_id = ANY ($3)
        UNION ALL SELECT request_id FROM answer WHERE request_id = ANY ($3)
        UNION ALL SELECT proposal_id FROM parked WHERE proposal_id = ANY ($3)
    """,
)
READ_VERDICTS: Final = f"""
    SELECT verdict.*, verdict.trace::text AS traced, {STATE}
    FROM verdict
    LEFT JOIN LATERAL (
        SELECT * FROM flow_run_state WHERE id = verdict.state_id
        UNION ALL SELECT * FROM task_run_state WHERE id = verdict.state_id
    ) AS s ON true
    WHERE verdict.proposal_id = ANY ($1)
"""
READ_ANSWERS: Final = "SELECT request_id, digest, reply FROM answer WHERE request_id = ANY ($1)"


class Ledger(Subject):
    """The answers that the ledger has for a batch's requests, and those that it gets."""

    def __init__(self) -> None:
        self.request_ids: list[UUID] = []
        self.created: set[UUID] = set()
        """Runs of which is loaded what they were created with, if they exist and were changed since."""

    def load(self, reading: Reading, work: UnitOfWork) -> Awaitable[None] | None:
        return self._load(reading, work) if reading.found[KNOWN.name] or self.created else None

    async def _load(self, reading: Reading, work: UnitOfWork) -> None:
        known = [row["id"] for row in reading.found[KNOWN.name]]
        if known:
            await read_verdicts(reading.driver, known, work)
        if answers := known + [as_created(run_id) for run_id in self.created & work.runs.keys()]:
            await read_answers(reading.driver, answers, work)

    def parts(self, work: UnitOfWork, sequence: int) -> Iterator[tuple[Part, Sequence[Row]]]:
        yield VERDICTS, [verdict_values(entry) for entry in work.new_verdicts]
        yield (
            ANSWERS,
            [
                (answer.request_id, answer.digest, answer.reply, answer.run_id, answer.actor)
                for answer in work.new_answers
            ],
        )


async def read_verdicts(driver: Connection, proposal_ids: Sequence[UUID], work: UnitOfWork) -> None:
    """Put the verdicts that these proposals have into the unit of work."""
    for row in await driver.fetch(READ_VERDICTS, proposal_ids):
        kept = (row["digest"], row["actor"], row["traced"], row["decided"])
        work.verdicts[row["proposal_id"]] = LedgerEntry(verdict_from(row), *kept)


async def read_answers(driver: Connection, request_ids: Sequence[UUID], work: UnitOfWork) -> None:
    """Put the other answers that these requests have into the unit of work."""
    for row in await driver.fetch(READ_ANSWERS, request_ids):
        work.answers[row["request_id"]] = Answer(row["request_id"], row["digest"], row["reply"])


def first_proposal(run_id: UUID) -> UUID:
    """Return the id of the proposal by which the run's creation gives it its first state."""
    return uuid5(run_id, "first state")


def as_created(run_id: UUID) -> UUID:
    """Return the id under which the ledger keeps the answer that tells the run as it was created, once it is changed.

    So whoever creates it again with the same content gets it, and is not told that it has other content now.
    """
    return uuid5(run_id, "as created")


def verdict_from(row: Record) -> Verdict:
    """Return the verdict of a row of the ledger."""
    return Verdict(
        proposal_id=row["proposal_id"],
        run_id=row["run_id"],
        status=SetStateStatus(row["status"]),
        reason=row["reason"],
        delay_seconds=row["delay_seconds"],
        state=state_from(row),
        rule_signature=_signature(row["rule_signature"]),
        finalization_signature=_signature(row["finalization_signature"]),
    )


def verdict_values(entry: LedgerEntry) -> Row:
    """Return the row of the ledger, in the order of VERDICT_COLUMNS."""
    verdict, digest, actor, trace, _ = entry
    return (
        verdict.proposal_id,
        verdict.run_id,
        verdict.status,
        verdict.reason,
        verdict.delay_seconds,
        None if verdict.state is None else verdict.state.id,
        SIGNATURE_SEPARATOR.join(verdict.rule_signature),
        SIGNATURE_SEPARATOR.join(verdict.finalization_signature),
        digest,
        actor,
        trace,
    )


@lru_cache(maxsize=SIGNATURES_REMEMBERED)
def _signature(stored: str) -> tuple[str, ...]:
    return tuple(stored.split(SIGNATURE_SEPARATOR)) if stored else ()
