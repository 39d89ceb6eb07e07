"""Inquiries: what is known of proposals that somebody asks about, whichever partition they belong to."""

from collections.abc import Awaitable
from typing import Final
from uuid import UUID

from statewright_worker.facts.base import Reading, Subject
from statewright_worker.facts.ledger import read_answers, read_verdicts
from statewright_worker.facts.parked import parked_from
from statewright_worker.orchestration.unit_of_work import UnitOfWork

READ_WAITING: Final = """
    SELECT parked.*, parked.trace::text AS traced, NULL AS waits_on
    FROM parked WHERE proposal_id = ANY ($1) AND NOT decided
"""


class Inquiries(Subject):
    """The proposals that a batch is asked about. Nothing is locked for them."""

    def __init__(self) -> None:
        self.proposal_ids: set[UUID] = set()

    def load(self, reading: Reading, work: UnitOfWork) -> Awaitable[None] | None:
        return self._load(reading, work) if self.proposal_ids else None

    async def _load(self, reading: Reading, work: UnitOfWork) -> None:
        proposal_ids = list(self.proposal_ids)
        # In this order: what another partition decides between two statements is found parked or decided, or both.
        for row in await reading.driver.fetch(READ_WAITING, proposal_ids):
            work.waiting.seen[row["proposal_id"]] = parked_from(row)
        await read_verdicts(reading.driver, proposal_ids, work)
        await read_answers(reading.driver, proposal_ids, work)
