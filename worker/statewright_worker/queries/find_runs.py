"""Finding runs: a page of those that match, the newest first.

Nobody knows beforehand whether many runs match or few, and PostgreSQL guesses badly for tags, labels and states. So no
step relies on it. First the newest runs are looked through, which fills the page when many of them match. Then the
indexes on what is asked for are: where few match, these are all. Where many match, all runs are looked through in their
order until the page is full.
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

NEWEST: Final = 5_000
"""How many runs are looked through before the indexes are asked."""
FEW: Final = 2_000
"""How many runs that match are sorted at most."""
WHEN_TOO_SLOW: Final = (
    "what finds runs among many is: state_types without COMPLETED, tags, labels, name, flow_id, deployment_id, parent,"
    " tree, and created_after; add one of them, or a narrower one"
)

# PostgreSQL does not see that a look in order ends early, and would rather read all and sort them; nor that few runs
# match, and would rather read the table.
_IN_ORDER: Final = "SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off"
_BY_INDEXES: Final = "SET LOCAL enable_bitmapscan = on; SET LOCAL enable_sort = on; SET LOCAL enable_seqscan = off"
_AS_USUAL: Final = "SET LOCAL enable_bitmapscan = on; SET LOCAL enable_sort = on; SET LOCAL enable_seqscan = on"
_ORDER: Final = "ORDER BY run.created DESC, run.id DESC"


class FindRunsKind(QueryKind[FindRuns]):
    """Finds a page of runs."""

    WHEN_TOO_SLOW = WHEN_TOO_SLOW

    async def answer(self, query: FindRuns, looking: Looking) -> Reply:
        matching: list[tuple[datetime, UUID, RunKind]] = []
        async with looking.moment() as driver:
            for kind in kinds_meant(query):
                for phase in phases_meant(query):
                    rows = await _matching(driver, query, kind, phase)
                    matching += [(row["created"], row["id"], kind) for row in rows]
            matching.sort(reverse=True)
            found = [Found(kind, run_id) for _, run_id, kind in matching[: query.limit]]
            await driver.execute(_AS_USUAL)
            runs = await read_runs(driver, found, PAGE_BYTES)
        last = runs[-1] if 0 < len(runs) < len(matching) else None
        end = None if last is None else Place(created=last.created, id=last.id)
        return RunsReply(page=RunPage(runs=tuple(runs), next=end))


async def _matching(driver: Connection, query: FindRuns, kind: RunKind, phase: str | None) -> list[Record]:
    """Return the first runs of a kind and a phase that match: one more than the page holds, if there are so many."""
    # What is below a run is hardly ever much, wherever it is.
    is_below = query.parent is not None or query.tree is not None
    if is_below:
        await driver.execute(_AS_USUAL)
    else:
        await driver.execute(_IN_ORDER)
        found = await _read(driver, in_order(query, kind, phase, NEWEST))
        if len(found) > query.limit:
            return found
        await driver.execute(_BY_INDEXES)
    found = await _read(driver, by_index(query, kind, phase, FEW + 1))
    if not found or found[0]["matching"] <= FEW:
        return found
    if is_below:
        return await _read(driver, by_index(query, kind, phase))
    await driver.execute(_IN_ORDER)
    return await _read(driver, in_order(query, kind, phase))


async def _read(driver: Connection, asked: tuple[str, list[object]]) -> list[Record]:
    statement, values = asked
    found: list[Record] = await driver.fetch(statement, *values)
    return found


def in_order(query: FindRuns, kind: RunKind, phase: str | None, most: int | None = None) -> tuple[str, list[object]]:
    """Return the statement that looks through runs, `most` of them, from the newest one on, and its arguments."""
    arguments = Arguments()
    filters = filters_of(query, kind, phase, arguments)
    statement = f"""
        SELECT run.id, run.created FROM (
            SELECT * FROM {TABLES[kind]} AS run WHERE {filters.ordered_alone()} AND {_behind(query, arguments)}
            {_ORDER} {_limit(most)}
        ) AS run WHERE {filters.others_alone()} {_ORDER} LIMIT {query.limit + 1}
    """
    return statement, arguments.values


def by_index(query: FindRuns, kind: RunKind, phase: str | None, most: int | None = None) -> tuple[str, list[object]]:
    """Return the statement that finds runs, `most` of them, by whichever index is best, and its arguments.

    Each of its rows says how many it has found: where these are `most`, its rows are not the newest.
    """
    arguments = Arguments()
    filters = filters_of(query, kind, phase, arguments)
    statement = f"""
        SELECT run.id, run.created, count(*) OVER () AS matching FROM (
            SELECT run.id, run.created FROM {TABLES[kind]} AS run
            WHERE {filters.every()} AND {_behind(query, arguments)} {_limit(most)}
        ) AS run {_ORDER} LIMIT {query.limit + 1}
    """
    return statement, arguments.values


def _limit(most: int | None) -> str:
    return "" if most is None else f"LIMIT {most}"


def _behind(query: FindRuns, arguments: Arguments) -> str:
    if query.after is None:
        return "true"
    created, run_id = arguments.take(query.after.created, "timestamptz"), arguments.take(query.after.id, "uuid")
    return f"(run.created, run.id) < ({created}, {run_id})"
