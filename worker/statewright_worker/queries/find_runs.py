"""Finding runs: a page of those that match, the newest first.

Nobody knows beforehand whether many runs match or few, and PostgreSQL guesses badly for tags and labels. So there are
two steps: first the newest runs are looked through, as long as that is quick, which fills the page when many match.
When it does not, few match, and the indexes on what is asked for find them all.
"""

from datetime import datetime
from typing import Final
from uuid import UUID

from asyncpg import Connection, Record

from statewright.overview import Place, RunPage
from statewright.protocol.queries import FindRuns
from statewright.protocol.replies import Reply, RunsReply
from statewright.runs import RunKind
from statewright_worker.queries.base import PAGE_BYTES, Looking, QueryKind
from statewright_worker.queries.filters import Arguments, filters_of, kinds_meant, phases_meant
from statewright_worker.queries.rows import TABLES, Found, read_runs

NEWEST: Final = 10_000
"""How many runs are looked through before the indexes are asked."""
WHEN_TOO_SLOW: Final = (
    "what finds runs among many is: state_types without COMPLETED, tags, labels, name, flow_id, deployment_id, parent,"
    " tree, and created_after; add one of them, or a narrower one"
)

_ORDER: Final = "ORDER BY run.created DESC, run.id DESC"


class FindRunsKind(QueryKind[FindRuns]):
    """Finds a page of runs."""

    WHEN_TOO_SLOW = WHEN_TOO_SLOW

    async def answer(self, query: FindRuns, looking: Looking) -> Reply:
        matching: list[tuple[datetime, UUID, RunKind]] = []
        async with looking.moment() as driver:
            for kind in kinds_meant(query):
                for phase in phases_meant(query.state_types):
                    rows = await _matching(driver, query, kind, phase)
                    matching += [(row["created"], row["id"], kind) for row in rows]
            matching.sort(reverse=True)
            found = [Found(kind, run_id) for _, run_id, kind in matching[: query.limit]]
            runs = await read_runs(driver, found, PAGE_BYTES)
        last = runs[-1] if 0 < len(runs) < len(matching) else None
        end = None if last is None else Place(created=last.created, id=last.id)
        return RunsReply(page=RunPage(runs=tuple(runs), next=end))


async def _matching(driver: Connection, query: FindRuns, kind: RunKind, phase: str | None) -> list[Record]:
    """Return the first runs of a kind and a phase that match: one more than the page holds, if there are so many."""
    most = query.limit + 1
    # A parent or a tree has few runs, wherever they are.
    is_narrow = query.parent is not None or query.tree is not None
    for statement_for in (among_all,) if is_narrow else (among_the_newest, among_all):
        statement, values = statement_for(query, kind, phase)
        rows: list[Record] = await driver.fetch(statement, *values)
        if len(rows) == most:
            break
    return rows


def among_the_newest(query: FindRuns, kind: RunKind, phase: str | None) -> tuple[str, list[object]]:
    """Return the statement that looks through the newest runs, and its arguments."""
    arguments = Arguments()
    filters = filters_of(query, kind, phase, arguments)
    statement = f"""
        SELECT run.id, run.created FROM (
            SELECT * FROM {TABLES[kind]} AS run WHERE {filters.ordered_alone()} AND {_behind(query, arguments)}
            {_ORDER} LIMIT {NEWEST}
        ) AS run WHERE {filters.others_alone()} {_ORDER} LIMIT {query.limit + 1}
    """
    return statement, arguments.values


def among_all(query: FindRuns, kind: RunKind, phase: str | None) -> tuple[str, list[object]]:
    """Return the statement that finds all runs that match by the best index, and its arguments."""
    arguments = Arguments()
    filters = filters_of(query, kind, phase, arguments)
    # Materialized, so that PostgreSQL does not hope to meet enough of them on its way through all.
    statement = f"""
        WITH run AS MATERIALIZED (
            SELECT run.id, run.created FROM {TABLES[kind]} AS run
            WHERE {filters.every()} AND {_behind(query, arguments)}
        ) SELECT run.id, run.created FROM run {_ORDER} LIMIT {query.limit + 1}
    """
    return statement, arguments.values


def _behind(query: FindRuns, arguments: Arguments) -> str:
    if query.after is None:
        return "true"
    created, run_id = arguments.take(query.after.created, "timestamptz"), arguments.take(query.after.id, "uuid")
    return f"(run.created, run.id) < ({created}, {run_id})"
