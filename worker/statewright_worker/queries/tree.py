"""Trees: a run with what is below it, level by level."""

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from typing import Final
from uuid import UUID

from asyncpg import Connection, Record

from statewright.overview import RunTree
from statewright.protocol.queries import ReadTree
from statewright.protocol.replies import ErrorCode, ErrorReply, Reply, TreeReply
from statewright.runs import FlowRun, RunKind, TaskRun
from statewright_worker.queries.base import Looking, QueryKind
from statewright_worker.queries.rows import Found, read_runs

RUNS_TOLD: Final = 1_000
"""How many runs a tree tells at most."""
TREE_BYTES: Final = 512 * 1024
LEVELS: Final = 32
"""How deep a tree is told, because readers of JSON have a bound too."""

# The runs below those of the level above, the oldest first.
READ_LEVEL: Final = """
    SELECT * FROM (
        SELECT 'task-run' AS kind, id, flow_run_id AS parent, created FROM task_run WHERE flow_run_id = ANY ($1)
        UNION ALL
        SELECT 'flow-run', id, parent_task_run_id, created FROM flow_run WHERE parent_task_run_id = ANY ($2)
    ) AS below ORDER BY created, id LIMIT $3
"""
READ_ROOT: Final = """
    SELECT 'flow-run' AS kind FROM flow_run WHERE id = $1 UNION ALL SELECT 'task-run' FROM task_run WHERE id = $1
"""


class ReadTreeKind(QueryKind[ReadTree]):
    """Reads a run with what is below it."""

    async def answer(self, query: ReadTree, looking: Looking) -> Reply:
        async with looking.moment() as driver:
            kind = await driver.fetchval(READ_ROOT, query.run_id)
            if kind is None:
                message = f"there is no run {query.run_id}"
                return ErrorReply(code=ErrorCode.RUN_NOT_FOUND, message=message, field="run_id")
            return TreeReply(tree=await _read_tree(driver, Found(RunKind(kind), query.run_id)))


async def _read_tree(driver: Connection, root: Found) -> RunTree:
    found = level = [root]
    parents: dict[UUID, UUID] = {}
    complete: set[UUID] = set()
    for _ in range(LEVELS):
        most = RUNS_TOLD - len(found)
        rows = await _level_below(driver, level, most) if level and most else []
        if len(rows) < most:
            complete |= {one.id for one in level}
        level = [Found(RunKind(row["kind"]), row["id"]) for row in rows]
        parents.update({row["id"]: row["parent"] for row in rows})
        found = found + level
    return _nested(await read_runs(driver, found, TREE_BYTES), parents, complete)


async def _level_below(driver: Connection, level: Sequence[Found], most: int) -> list[Record]:
    of_kind: dict[RunKind, list[UUID]] = defaultdict(list)
    for one in level:
        of_kind[one.kind].append(one.id)
    rows: list[Record] = await driver.fetch(READ_LEVEL, of_kind[RunKind.FLOW_RUN], of_kind[RunKind.TASK_RUN], most)
    return rows


def _nested(runs: Sequence[FlowRun | TaskRun], parents: Mapping[UUID, UUID], complete: Set[UUID]) -> RunTree:
    """Return the first run with the others below it. `parents` also has runs that were not read, and `complete` the
    runs below which no others were found than these."""
    read = {run.id for run in runs}
    with_more = {parent for run_id, parent in parents.items() if run_id not in read}
    below: dict[UUID, list[RunTree]] = defaultdict(list)
    # From the last one on, so that what is below a run is known before the run itself.
    for run in reversed(runs[1:]):
        below[parents[run.id]].append(_tree(run, below, or_more=run.id in with_more or run.id not in complete))
    root = runs[0]
    return _tree(root, below, or_more=root.id in with_more or root.id not in complete)


def _tree(run: FlowRun | TaskRun, below: Mapping[UUID, list[RunTree]], *, or_more: bool) -> RunTree:
    return RunTree(run=run, below=tuple(reversed(below.get(run.id, ()))), or_more=or_more)
