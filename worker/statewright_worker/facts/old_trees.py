"""Old trees: what retention may delete is found beside the lanes; the lanes look again before they delete anything.

Trees are looked through in the order in which they were made, by an index on what never changes. What is not over yet
is passed by, and looked at again when all have been looked through.
"""

from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from statewright.states import TERMINAL_STATES
from statewright_worker.facts.deletions import TREES, tree_from
from statewright_worker.storage.database import connected

LOOKED_AT: Final = 1_000
"""How many trees are looked at in one step."""
MEASURED_AT_ONCE: Final = 100
"""How many of these are read as a whole in one statement: they may be large."""
FORGOTTEN_AT_ONCE: Final = 1_000

_ENDS: Final = ", ".join(f"'{state_type}'" for state_type in sorted(TERMINAL_STATES))


def _looked_at(table: str, parent: str) -> str:
    return f"""
        SELECT id, created, state_type IN ({_ENDS}) AND state_timestamp < $1 AS may_be_over
        FROM {table} WHERE {parent} IS NULL AND created < $1 AND (created, id) > ($2, $3)
        ORDER BY created, id LIMIT $4
    """


ROOTS: Final = (_looked_at("flow_run", "parent_task_run_id"), _looked_at("task_run", "flow_run_id"))
"""The next trees in the order in which they were made: those of flow runs, and task runs that stand alone."""
AGO: Final = "SELECT clock_timestamp() - $1::interval"
FORGET: Final = f"""
    DELETE FROM pruned WHERE run_id IN (
        SELECT run_id FROM pruned WHERE pruned < clock_timestamp() - $1::interval AND NOT is_left
        ORDER BY pruned LIMIT {FORGOTTEN_AT_ONCE}
    )
"""
# An answer about a run goes with the run.
FORGET_ANSWERS: Final = f"""
    DELETE FROM answer WHERE request_id IN (
        SELECT request_id FROM answer WHERE answered < clock_timestamp() - $1::interval
            AND NOT EXISTS (SELECT FROM flow_run WHERE id = answer.run_id)
            AND NOT EXISTS (SELECT FROM task_run WHERE id = answer.run_id)
        ORDER BY answered LIMIT {FORGOTTEN_AT_ONCE}
    )
"""


class OldTree(NamedTuple):
    """A tree that is over, and old enough: its first run, and how many runs it has."""

    run_id: UUID
    runs: int


class _Place(NamedTuple):
    """Behind which tree to go on."""

    created: datetime
    run_id: UUID


_BEGINNING: Final = _Place(datetime.fromisoformat("0001-01-01T00:00:00+00:00"), UUID(int=0))


class OldTrees:
    """Looks through the trees for those that have not changed for some time, and forgets what is older still."""

    def __init__(self, engine: AsyncEngine) -> None:
        """Take the engine to ask."""
        self._engine = engine
        self._places: list[_Place | None] = [_BEGINNING] * len(ROOTS)
        """Where to go on with each kind; None where all have been looked through."""

    async def begin(self, keep: timedelta) -> datetime:
        """Begin anew, and return the moment since which what is found must not have changed: by PostgreSQL's clock, so
        long ago as trees are kept after their last change.

        Raises ServerAway and ConfigurationError, as `database.connected` does.
        """
        self._places = [_BEGINNING] * len(ROOTS)
        async with connected(self._engine) as connection:
            [[moment]] = await _fetch(connection, AGO, keep)
        since: datetime = moment
        return since

    async def step(self, unchanged_since: datetime) -> list[OldTree] | None:
        """Look at some more trees, and return those that are over; None when all have been looked through.

        Raises as `begin` does.
        """
        for kind, place in enumerate(self._places):
            if place is None:
                continue
            async with connected(self._engine) as connection:
                rows = await _fetch(connection, ROOTS[kind], unchanged_since, *place, LOOKED_AT)
                is_last = len(rows) < LOOKED_AT
                self._places[kind] = None if is_last else _Place(rows[-1]["created"], rows[-1]["id"])
                roots = [row["id"] for row in rows if row["may_be_over"]]
                found: list[OldTree] = []
                for first in range(0, len(roots), MEASURED_AT_ONCE):
                    # Only how many runs there are is asked, and none of their ids.
                    measured = await _fetch(connection, TREES, roots[first : first + MEASURED_AT_ONCE], 0)
                    trees = map(tree_from, measured)
                    found += [OldTree(tree.run_id, tree.runs) for tree in trees if tree.is_over(unchanged_since)]
                return found
        return None

    async def forget(self, *, pruned_before: timedelta, answers_before: timedelta | None) -> int:
        """Delete some of what is remembered of runs that were deleted so long ago, and some of the answers of no run
        that are so old, if that is given; return how many rows these were.

        Raises ServerAway and ConfigurationError, as `database.connected` does.
        """
        async with connected(self._engine) as connection:
            deleted = await _execute(connection, FORGET, pruned_before)
            if answers_before is not None:
                deleted += await _execute(connection, FORGET_ANSWERS, answers_before)
        return deleted


async def _fetch(connection: Any, query: str, *arguments: Any) -> list[Any]:
    driver = (await connection.get_raw_connection()).driver_connection
    async with driver.transaction(readonly=True):
        # Nobody knows how many runs a tree has, so PostgreSQL would compile what takes a moment without.
        await driver.execute("SET LOCAL jit = off")
        found: list[Any] = await driver.fetch(query, *arguments)
    return found


async def _execute(connection: Any, statement: str, *arguments: Any) -> int:
    driver = (await connection.get_raw_connection()).driver_connection
    told: str = await driver.execute(statement, *arguments)
    return int(told.rpartition(" ")[2])
