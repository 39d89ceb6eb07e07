"""Histories: pages of the states that runs were in."""

from collections.abc import Awaitable
from typing import Final
from uuid import UUID

from statewright_worker.facts.base import PAGE_BYTES, Reading, Subject
from statewright_worker.facts.states import STATE, joined_state
from statewright_worker.orchestration.records import PastState
from statewright_worker.orchestration.unit_of_work import UnitOfWork

STATES_PER_PAGE: Final = 100


def _page(table: str) -> str:
    return f"""SELECT wanted.run_id, wanted.after, s.ordinal, s.proposal_id, verdict.actor, {STATE}
        FROM unnest($1::uuid[], $2::integer[]) AS wanted (run_id, after)
        CROSS JOIN LATERAL (
            SELECT *, row_number() OVER in_order AS number,
                sum(coalesce(octet_length(data::text), 0)) OVER in_order AS size
            FROM (
                SELECT * FROM {table} WHERE run_id = wanted.run_id AND ordinal > wanted.after
                ORDER BY ordinal LIMIT $3
            ) AS next WINDOW in_order AS (ORDER BY ordinal)
        ) AS s LEFT JOIN verdict ON verdict.proposal_id = s.proposal_id
        WHERE s.number = 1 OR s.size <= $4"""


# One page of each history: a page ends at a number of states or at a number of bytes of their data, whichever comes
# first, and has one state at least.
READ_HISTORY: Final = f"{_page('flow_run_state')} UNION ALL {_page('task_run_state')} ORDER BY 1, 2, 3"


class Histories(Subject):
    """The pages of histories that a batch reads."""

    def __init__(self) -> None:
        self.pages: set[tuple[UUID, int]] = set()
        """Pairs of a run and an ordinal; the page begins behind the ordinal."""

    def load(self, reading: Reading, work: UnitOfWork) -> Awaitable[None] | None:
        return self._load(reading, work) if self.pages else None

    async def _load(self, reading: Reading, work: UnitOfWork) -> None:
        if not self.pages:
            return
        for run_id, after in self.pages:
            work.histories.setdefault(run_id, {})[after] = []
        run_ids, behind = zip(*self.pages, strict=True)
        for row in await reading.driver.fetch(READ_HISTORY, run_ids, behind, STATES_PER_PAGE, PAGE_BYTES):
            past = PastState(row["ordinal"], joined_state(row), row["proposal_id"], row["actor"])
            work.histories[row["run_id"]][row["after"]].append(past)
