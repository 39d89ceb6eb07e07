"""What explains proposals: the queues in which parked ones stand, and the states that accepted ones have ended."""

from collections import defaultdict
from collections.abc import Awaitable
from typing import Final
from uuid import UUID

from statewright.explanations import AwaitedLimit, BriefState
from statewright.limits import SlotHolder
from statewright.states import StateType
from statewright_worker.facts.base import Reading, Subject
from statewright_worker.facts.limits import READ_HOLDERS, holder_from, limit_from
from statewright_worker.orchestration.unit_of_work import UnitOfWork

HOLDERS_TOLD: Final = 10
COUNTED: Final = 10_000
"""So many waiters are counted: a queue may have far more, and counting holds up the partition."""

# Nothing is locked. Two counts, each along the index, instead of one with OR.
READ_QUEUES: Final = f"""
    SELECT waiter.proposal_id, named.*,
        (SELECT count(*) FROM concurrency_slot WHERE limit_id = named.id) AS held,
        (SELECT count(*) FROM (
            SELECT FROM waiter AS other WHERE other.limit_id = named.id AND other.priority > waiter.priority
            LIMIT {COUNTED}
        ) AS ahead) + (SELECT count(*) FROM (
            SELECT FROM waiter AS other WHERE other.limit_id = named.id
                AND other.priority = waiter.priority AND other.ticket < waiter.ticket
            LIMIT {COUNTED}
        ) AS ahead) AS before
    FROM waiter JOIN concurrency_limit AS named ON named.id = waiter.limit_id
    WHERE waiter.proposal_id = ANY ($1) ORDER BY waiter.proposal_id, named.scope, named.key
"""


def _either(columns: str, state_id: str) -> str:
    return " UNION ALL ".join(
        f"SELECT {columns} FROM {table}_state WHERE id = {state_id}" for table in ("flow_run", "task_run")
    )


READ_LEFT: Final = f"""
    SELECT verdict.proposal_id, previous.type, previous.name FROM verdict
    CROSS JOIN LATERAL ({_either("previous_state_id", "verdict.state_id")}) AS s
    CROSS JOIN LATERAL ({_either("type, name", "s.previous_state_id")}) AS previous
    WHERE verdict.proposal_id = ANY ($1) AND verdict.status = 'ACCEPT'
"""


class Explained(Subject):
    """The proposals that are to be explained, beside what is known of them."""

    def __init__(self) -> None:
        self.proposal_ids: set[UUID] = set()

    def load(self, reading: Reading, work: UnitOfWork) -> Awaitable[None] | None:
        return self._load(reading, work) if self.proposal_ids else None

    async def _load(self, reading: Reading, work: UnitOfWork) -> None:
        proposal_ids = list(self.proposal_ids)
        queues = await reading.driver.fetch(READ_QUEUES, proposal_ids)
        holders: defaultdict[int, list[SlotHolder]] = defaultdict(list)
        if queues:
            limit_ids = list({row["id"] for row in queues})
            for row in await reading.driver.fetch(READ_HOLDERS, limit_ids, HOLDERS_TOLD):
                holders[row["limit_id"]].append(holder_from(row))
        for row in queues:
            limit = limit_from(row, work.now)
            limit.slots_held = row["held"]
            awaited = AwaitedLimit(limit=limit.as_limit(holders[limit.id]), before=min(row["before"], COUNTED))
            work.explaining.awaited.setdefault(row["proposal_id"], []).append(awaited)
        for row in await reading.driver.fetch(READ_LEFT, proposal_ids):
            work.explaining.left[row["proposal_id"]] = BriefState(type=StateType(row["type"]), name=row["name"])
