"""Deletions: a batch finds a run with all that is below it, and deletes the runs with everything that belongs to them.

A verdict that let a run enter a state is named by that state; an index finds the others. Slots, places in queues and
leases go by a trigger, whoever deletes a run; here they were given back before.
"""

from collections.abc import Awaitable, Iterator, Sequence
from typing import Final
from uuid import UUID

from asyncpg import Record

from statewright.states import TERMINAL_STATES
from statewright_worker.facts.base import Reading, Subject
from statewright_worker.facts.limits import Limits
from statewright_worker.facts.parked import Parked
from statewright_worker.facts.runs import lock_runs
from statewright_worker.orchestration.deleting import DELETED_AT_ONCE, Deleting, RunsBelow, TreeRecord
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.storage.columns import Columns
from statewright_worker.storage.writing import Part, Row, insert

_ENDS: Final = ", ".join(f"'{state_type}'" for state_type in sorted(TERMINAL_STATES))
_OF_RUN: Final = "state_type, greatest(state_timestamp, created) AS changed"
_BELOW: Final = f"""
    below AS (
        SELECT root.id AS root, run.id, true AS is_flow_run, run.parent_task_run_id IS NULL AS is_whole, {_OF_RUN}
        FROM {{roots}} JOIN flow_run AS run ON run.id = root.id
        UNION ALL SELECT root.id, run.id, false, run.flow_run_id IS NULL, {_OF_RUN}
        FROM {{roots}} JOIN task_run AS run ON run.id = root.id
        UNION ALL SELECT below.root, child.* FROM below CROSS JOIN LATERAL (
            SELECT id, false, false, {_OF_RUN} FROM task_run WHERE below.is_flow_run AND flow_run_id = below.id
            UNION ALL SELECT id, true, false, {_OF_RUN} FROM flow_run
            WHERE NOT below.is_flow_run AND parent_task_run_id = below.id
        ) AS child
    )
"""
"""The roots with all that is below them."""
TREES: Final = f"""
    WITH RECURSIVE {_BELOW.format(roots="(SELECT unnest($1::uuid[]) AS id) AS root")},
    tree AS (
        SELECT root, count(*) AS runs, bool_or(is_whole) AS is_whole, max(changed) AS changed,
            count(*) FILTER (WHERE state_type IS NULL OR state_type NOT IN ({_ENDS})) AS unfinished
        FROM below GROUP BY root
    )
    SELECT tree.*, members.*, EXISTS (
        SELECT FROM below JOIN parked ON parked.run_id = below.id WHERE below.root = tree.root AND NOT parked.decided
    ) AS waits
    FROM tree LEFT JOIN LATERAL (
        SELECT array_agg(id) FILTER (WHERE is_flow_run) AS flow_runs,
            array_agg(id) FILTER (WHERE NOT is_flow_run) AS task_runs,
            array_agg(id) FILTER (WHERE state_type IS NULL OR state_type NOT IN ({_ENDS})) AS unfinished_runs
        FROM below WHERE below.root = tree.root AND tree.runs <= $2
    ) AS members ON true
"""
READ_LEFT: Final = """
    SELECT deleted.run_id AS id, flow_run.id IS NOT NULL AS is_flow_run,
        coalesce(flow_run.state_type, task_run.state_type) AS state_type
    FROM (SELECT run_id FROM pruned WHERE partition = $1 AND tree = $2 AND is_left LIMIT $3) AS deleted
    LEFT JOIN flow_run ON flow_run.id = deleted.run_id
    LEFT JOIN task_run ON task_run.id = deleted.run_id
"""
READ_NUMBERS: Final = """
    SELECT run_id, array_agg(sequence) AS numbers FROM flow_run_state WHERE run_id = ANY ($1) GROUP BY run_id
    UNION ALL SELECT run_id, array_agg(sequence) FROM task_run_state WHERE run_id = ANY ($2) GROUP BY run_id
"""

_RUNS: Final[Columns] = (("id", "uuid"),)
_PRUNED_COLUMNS: Final[Columns] = (("run_id", "uuid"), ("tree", "uuid"), ("is_left", "boolean"))
_AGAIN: Final = """
    ON CONFLICT (run_id) DO UPDATE SET tree = excluded.tree, partition = excluded.partition, pruned = excluded.pruned,
    is_left = excluded.is_left
"""


def _deleted(table: str, which: str, using: str = "") -> Part:
    return Part(f"DELETE FROM {table} USING {{rows}} {using} WHERE {which}", _RUNS)


def _verdicts(states: str) -> Part:
    of_the_run = "verdict.proposal_id = state.proposal_id AND verdict.run_id = rows.id"
    return _deleted("verdict", of_the_run, f"JOIN {states} AS state ON state.run_id = rows.id")


FLOW_VERDICTS_DELETED: Final = _verdicts("flow_run_state")
TASK_VERDICTS_DELETED: Final = _verdicts("task_run_state")
OTHER_VERDICTS_DELETED: Final = _deleted("verdict", "verdict.run_id = rows.id AND verdict.status <> 'ACCEPT'")
ANSWERS_DELETED: Final = _deleted("answer", "answer.run_id = rows.id")
CACHED_DELETED: Final = _deleted(
    "task_run_state_cache",
    "task_run_state_cache.task_run_state_id = state.id",
    "JOIN task_run_state AS state ON state.run_id = rows.id",
)
FLOW_STATES_DELETED: Final = _deleted("flow_run_state", "flow_run_state.run_id = rows.id")
TASK_STATES_DELETED: Final = _deleted("task_run_state", "task_run_state.run_id = rows.id")
FLOW_RUNS_DELETED: Final = _deleted("flow_run", "flow_run.id = rows.id")
TASK_RUNS_DELETED: Final = _deleted("task_run", "task_run.id = rows.id")
TIMERS_DELETED: Final = _deleted("timer", "timer.kind IN ('cascade', 'lease', 'pause') AND timer.id = rows.id")
REMEMBERED: Final = insert("pruned", _PRUNED_COLUMNS, partition="partition", pruned="now", otherwise=_AGAIN)
DELETION_BEGUN: Final = Part(
    f"""
    INSERT INTO pruned (run_id, tree, partition, pruned, is_left)
    SELECT found.id, found.root, batch.partition, batch.now, true
    FROM batch, (
        WITH RECURSIVE {_BELOW.format(roots="(SELECT id FROM {rows}) AS root")} SELECT id, root FROM below
    ) AS found
    {_AGAIN}
    """,
    _RUNS,
)
LOW_WATER_RAISED: Final = insert(
    "low_water",
    (("sequence", "bigint"),),
    partition="partition",
    otherwise="ON CONFLICT (partition) DO UPDATE SET sequence = greatest(low_water.sequence, excluded.sequence)",
)


class Deletions(Subject):
    """The trees that a batch is to delete, and what is left of those whose deletion goes on."""

    def __init__(self, parked: Parked, limits: Limits) -> None:
        """Take the subjects that load what else must be loaded of these runs: parked proposals, and limits."""
        self.trees: dict[UUID, bool] = {}
        """Their first runs, each with whether it is deleted although runs have not come to an end."""
        self.going_on: set[UUID] = set()
        """The first runs of trees whose deletion goes on."""
        self._parked = parked
        self._limits = limits

    def load(self, reading: Reading, work: UnitOfWork) -> Awaitable[None] | None:
        return self._load(reading, work) if self.trees or self.going_on else None

    async def _load(self, reading: Reading, work: UnitOfWork) -> None:
        deleting = work.deleting
        runs: list[RunsBelow] = []
        if self.trees:
            for row in await reading.driver.fetch(TREES, list(self.trees), DELETED_AT_ONCE):
                deleting.trees[row["root"]] = tree_from(row)
            runs += self._that_may_go(work)
        for tree in self.going_on:
            rows = await reading.driver.fetch(READ_LEFT, reading.partition, tree, DELETED_AT_ONCE)
            deleting.left[tree] = _left_from(rows)
            runs.append(deleting.left[tree])
        for portion in runs:
            self._parked.of_runs.update(portion.flow_runs, portion.task_runs)
            self._limits.of_runs.update(portion.unfinished)
            await lock_runs(reading, work, portion.unfinished)
        flow_runs = [run_id for portion in runs for run_id in portion.flow_runs]
        task_runs = [run_id for portion in runs for run_id in portion.task_runs]
        for row in await reading.driver.fetch(READ_NUMBERS, flow_runs, task_runs):
            deleting.numbers[row["run_id"]] = row["numbers"]

    def _that_may_go(self, work: UnitOfWork) -> Iterator[RunsBelow]:
        """Yield the runs of the trees that this batch may delete as a whole, and forget the runs of all others."""
        room = work.deleting.room
        for run_id, is_forced in self.trees.items():
            tree = work.deleting.trees.get(run_id)
            if tree is None or run_id in work.deleting.hidden:
                work.deleting.trees.pop(run_id, None)
            elif not tree.is_large and (is_forced or not tree.unfinished):
                room -= tree.runs
                if room < 0:
                    del work.deleting.trees[run_id]
                else:
                    yield tree.members

    def parts(self, work: UnitOfWork, sequence: int) -> Iterator[tuple[Part, Sequence[Row]]]:
        if work.deleting.deleted or work.deleting.begun:
            yield from _parts(work.deleting)


def _parts(deleting: Deleting) -> Iterator[tuple[Part, Sequence[Row]]]:
    flow_runs = [(run_id,) for portion in deleting.portions for run_id in portion.flow_runs]
    task_runs = [(run_id,) for portion in deleting.portions for run_id in portion.task_runs]
    both = flow_runs + task_runs
    yield FLOW_VERDICTS_DELETED, flow_runs
    yield TASK_VERDICTS_DELETED, task_runs
    yield OTHER_VERDICTS_DELETED, both
    yield ANSWERS_DELETED, both
    yield CACHED_DELETED, task_runs
    yield FLOW_STATES_DELETED, flow_runs
    yield TASK_STATES_DELETED, task_runs
    yield FLOW_RUNS_DELETED, flow_runs
    yield TASK_RUNS_DELETED, task_runs
    yield TIMERS_DELETED, both
    yield (
        REMEMBERED,
        [
            (run_id, tree, False)
            for tree, portions in deleting.deleted.items()
            for portion in portions
            for run_id in (*portion.flow_runs, *portion.task_runs)
        ],
    )
    yield DELETION_BEGUN, [(run_id,) for run_id in deleting.begun]
    if numbers := deleting.numbers_gone:
        yield LOW_WATER_RAISED, [(max(numbers),)]


def tree_from(row: Record) -> TreeRecord:
    """Return the tree of a row of TREES."""
    members = RunsBelow(row["flow_runs"] or (), row["task_runs"] or (), row["unfinished_runs"] or ())
    return TreeRecord(
        row["root"], row["is_whole"], row["runs"], row["unfinished"], row["changed"], row["waits"], members
    )


def _left_from(rows: Sequence[Record]) -> RunsBelow:
    return RunsBelow(
        [row["id"] for row in rows if row["is_flow_run"]],
        [row["id"] for row in rows if not row["is_flow_run"]],
        [row["id"] for row in rows if row["state_type"] not in TERMINAL_STATES],
    )
