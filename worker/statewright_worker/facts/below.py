"""What is below a flow run: its task runs and subflows that have not come to an end."""

from collections.abc import Awaitable
from typing import Final
from uuid import UUID

from statewright.states import TERMINAL_STATES
from statewright_worker.facts.base import Reading, Subject
from statewright_worker.facts.parked import Parked
from statewright_worker.facts.runs import hide_deleted, lock_runs
from statewright_worker.orchestration.unit_of_work import UnitOfWork

CHILDREN_AT_ONCE: Final = 100

_ENDS: Final = ", ".join(f"'{state_type}'" for state_type in sorted(TERMINAL_STATES))
_UNENDED: Final = f"(state_type IS NULL OR state_type NOT IN ({_ENDS}))"
READ_BELOW: Final = f"""
    SELECT sub.id FROM task_run AS parent JOIN flow_run AS sub ON sub.parent_task_run_id = parent.id
    WHERE parent.flow_run_id = $1 AND {_UNENDED.replace("state_type", "sub.state_type")}
    UNION ALL SELECT id FROM task_run WHERE flow_run_id = $1 AND {_UNENDED}
    LIMIT $2
"""


class Below(Subject):
    """The first runs below flow runs that have not come to an end, subflows before task runs."""

    def __init__(self, parked: Parked) -> None:
        """Take the subject that loads parked proposals: those of these runs are loaded as well."""
        self.flow_runs: set[UUID] = set()
        self._parked = parked

    def load(self, reading: Reading, work: UnitOfWork) -> Awaitable[None] | None:
        return self._load(reading, work) if self.flow_runs else None

    async def _load(self, reading: Reading, work: UnitOfWork) -> None:
        for flow_run_id in self.flow_runs:
            found = [row["id"] for row in await reading.driver.fetch(READ_BELOW, flow_run_id, CHILDREN_AT_ONCE)]
            await lock_runs(reading, work, found)
            await hide_deleted(reading, work)
            work.below[flow_run_id] = [run_id for run_id in found if run_id in work.runs]
            self._parked.of_runs.update(found)
