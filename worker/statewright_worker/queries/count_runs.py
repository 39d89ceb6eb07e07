"""Counting runs: how many match, for each kind and state."""

from typing import Final

from statewright.overview import StateCount
from statewright.protocol.queries import CountRuns
from statewright.protocol.replies import CountsReply, Reply
from statewright.runs import RunKind
from statewright.states import TERMINAL_STATES, StateType
from statewright_worker.queries.base import Looking, QueryKind
from statewright_worker.queries.filters import FAILED, OPEN, Arguments, filters_of, kinds_meant
from statewright_worker.queries.find_runs import WHEN_TOO_SLOW
from statewright_worker.queries.rows import TABLES

PHASES: Final = {
    OPEN: frozenset(StateType) - TERMINAL_STATES,
    FAILED: TERMINAL_STATES - {StateType.COMPLETED},
    None: frozenset({StateType.COMPLETED}),
}
COUNTED: Final = {OPEN: 50_000, FAILED: 50_000, None: 10_000}
"""How many runs of a kind and a phase are counted; where there are more, the answer says so. Nobody needs to know how
many millions are COMPLETED."""


class CountRunsKind(QueryKind[CountRuns]):
    """Counts runs."""

    WHEN_TOO_SLOW = WHEN_TOO_SLOW

    async def answer(self, query: CountRuns, looking: Looking) -> Reply:
        counts: list[StateCount] = []
        async with looking.moment() as driver:
            for kind in kinds_meant(query):
                for phase, types in PHASES.items():
                    if query.state_types and not types & set(query.state_types):
                        continue
                    statement, values = counting(query, kind, phase)
                    rows = await driver.fetch(statement, *values)
                    or_more = sum(row["count"] for row in rows) == COUNTED[phase]
                    counts += [StateCount(kind=kind, or_more=or_more, **row) for row in rows]
        return CountsReply(counts=tuple(counts))


def counting(query: CountRuns, kind: RunKind, phase: str | None) -> tuple[str, list[object]]:
    """Return the statement that counts the runs of a kind and a phase, and its arguments."""
    arguments = Arguments()
    filters = filters_of(query, kind, phase, arguments)
    completed = "run.phase IS NULL" if phase is None else "true"
    statement = f"""
        SELECT state_type, state_name, count(*) AS count FROM (
            SELECT run.state_type, run.state_name FROM {TABLES[kind]} AS run WHERE {filters.every()} AND {completed}
            LIMIT {COUNTED[phase]}
        ) AS counted GROUP BY state_type, state_name ORDER BY state_type, state_name
    """
    return statement, arguments.values
