"""Timelines: what beside its states has happened to a run. Nothing is locked for it."""

from collections.abc import Awaitable, Iterable
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from asyncpg import Record

from statewright.explanations import SlotEntry, WaitEntry
from statewright.limits import LimitScope
from statewright.protocol.requests import TimelineCursor
from statewright.verdicts import SetStateStatus, Verdict
from statewright_worker.facts.base import Reading, Subject
from statewright_worker.facts.histories import Histories
from statewright_worker.orchestration.explaining import Moments
from statewright_worker.orchestration.records import LedgerEntry
from statewright_worker.orchestration.unit_of_work import UnitOfWork

REFUSED_PER_PAGE: Final = 100
SAID_CHARACTERS: Final = 1_000
"""So much is told of a reason: a page has many."""
BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)
NO_ID: Final = UUID(int=0)

_ENTRY: Final = f"""
    SELECT proposal_id, run_id, status, left(reason, {SAID_CHARACTERS}) AS reason, delay_seconds, actor, decided,
        trace::text AS traced
    FROM verdict
"""
READ_CAUSES: Final = f"{_ENTRY} WHERE proposal_id = ANY ($1)"
# By an index of its own, which those that are accepted are not in.
READ_REFUSED: Final = f"""
    {_ENTRY} WHERE run_id = $1 AND status <> 'ACCEPT' AND (decided, proposal_id) > ($2, $3)
    ORDER BY decided, proposal_id LIMIT $4
"""
READ_NEXT: Final = " UNION ALL ".join(
    f"""
    SELECT coalesce(verdict.decided, s.timestamp) FROM {table}_state AS s
    LEFT JOIN verdict ON verdict.proposal_id = s.proposal_id WHERE s.run_id = $1 AND s.ordinal = $2
    """
    for table in ("flow_run", "task_run")
)
READ_WAITS: Final = f"""
    SELECT proposal_id, since, left(reason, {SAID_CHARACTERS}) AS reason, actor
    FROM parked WHERE run_id = $1 AND NOT decided
"""
READ_SLOTS_OF: Final = """
    SELECT named.id, named.scope, named.key, slot.taken
    FROM concurrency_slot AS slot JOIN concurrency_limit AS named ON named.id = slot.limit_id WHERE slot.run_id = $1
"""
READ_LEASE: Final = """
    SELECT lease.state_id, coalesce(executor.ends, lease.ends) AS ends
    FROM lease LEFT JOIN executor ON executor.partition = lease.partition AND executor.name = lease.executor
    WHERE lease.run_id = $1
"""


class Timelines(Subject):
    """The pages of timelines that a batch reads, beside the pages of the runs' histories, which are loaded before."""

    def __init__(self, histories: Histories) -> None:
        self._histories = histories
        self._pages: set[tuple[UUID, TimelineCursor]] = set()

    def read(self, run_id: UUID, after: TimelineCursor) -> None:
        """Ask for the page that begins there, and for that of the history."""
        self._pages.add((run_id, after))
        self._histories.pages.add((run_id, after.ordinal))

    def load(self, reading: Reading, work: UnitOfWork) -> Awaitable[None] | None:
        return self._load(reading, work) if self._pages else None

    async def _load(self, reading: Reading, work: UnitOfWork) -> None:
        for run_id, after in self._pages:
            if run_id in work.runs:
                work.explaining.moments[run_id, after] = await _moments(reading, work, run_id, after)


async def _moments(reading: Reading, work: UnitOfWork, run_id: UUID, after: TimelineCursor) -> Moments:
    driver, states = reading.driver, work.histories[run_id][after.ordinal]
    found = Moments()
    causes = {past.proposal_id for past in states if past.proposal_id is not None}
    found.decided = {entry.verdict.proposal_id: entry for entry in _entries(await driver.fetch(READ_CAUSES, causes))}
    behind = (after.decided or BEGINNING, after.proposal_id or NO_ID)
    refused = _entries(await driver.fetch(READ_REFUSED, run_id, *behind, REFUSED_PER_PAGE + 1))
    found.refused, found.are_more_refused = refused[:REFUSED_PER_PAGE], len(refused) > REFUSED_PER_PAGE
    if states and states[-1].ordinal < work.runs[run_id].state_count:
        found.next_at = await driver.fetchval(READ_NEXT, run_id, states[-1].ordinal + 1)
    for row in await driver.fetch(READ_WAITS, run_id):
        found.waits[row["proposal_id"]] = WaitEntry(
            at=row["since"], proposal_id=row["proposal_id"], reason=row["reason"], actor=row["actor"]
        )
    for row in await driver.fetch(READ_SLOTS_OF, run_id):
        found.slots[row["id"]] = SlotEntry(at=row["taken"], scope=LimitScope(row["scope"]), key=row["key"])
    for row in await driver.fetch(READ_LEASE, run_id):
        found.lease = row["state_id"], row["ends"]
    return found


def _entries(rows: Iterable[Record]) -> list[LedgerEntry]:
    return [
        LedgerEntry(
            Verdict(
                proposal_id=row["proposal_id"],
                run_id=row["run_id"],
                status=SetStateStatus(row["status"]),
                reason=row["reason"],
                delay_seconds=row["delay_seconds"],
            ),
            None,
            row["actor"],
            row["traced"],
            row["decided"],
        )
        for row in rows
    ]
