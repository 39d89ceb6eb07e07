"""Runs as rows that are only read: some runs, each with its state and labels, within a number of bytes."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Final
from uuid import UUID

from asyncpg import Connection, Record
from pydantic_core import from_json

from statewright.runs import FlowRun, RunKind, TaskRun
from statewright_worker.facts.runs import FLOW_COLUMNS, TASK_COLUMNS, flow_run_from, task_run_from
from statewright_worker.facts.states import STATE
from statewright_worker.orchestration.records import AnyRunRecord
from statewright_worker.storage.columns import Columns, selected

ROWS_AT_ONCE: Final = 20
"""After so many rows the event loop may turn, because proposals are decided in it."""
ROW_BYTES: Final = 1_000
"""About how many bytes a run takes beside its texts."""
TABLES: Final = {RunKind.FLOW_RUN: "flow_run", RunKind.TASK_RUN: "task_run"}

_LABELS: Final[Columns] = (("labels", "jsonb"),)
_TEXTS: Final = ("run.tags", "run.labels", "run.policy", "s.message", "s.data", "s.state_details")
_SIZE: Final = " + ".join([str(ROW_BYTES), *(f"coalesce(octet_length({text}::text), 0)" for text in _TEXTS)])


def _read(table: str, columns: Columns) -> str:
    """Return the query that reads the runs $1 with their states, in that order, as long as they take $2 bytes at most;
    it reads the first one, however large."""
    return f"""
        SELECT * FROM (
            SELECT {selected("run", (*columns, *_LABELS))}, {STATE}, wanted.number,
                sum({_SIZE}) OVER (ORDER BY wanted.number) AS size
            FROM unnest($1::uuid[]) WITH ORDINALITY AS wanted (id, number)
            JOIN {table} AS run ON run.id = wanted.id
            LEFT JOIN {table}_state AS s ON s.id = run.state_id
        ) AS sized WHERE number = 1 OR size <= $2 ORDER BY number
    """


READ_FLOW_RUNS: Final = _read("flow_run", FLOW_COLUMNS)
READ_TASK_RUNS: Final = _read("task_run", TASK_COLUMNS)


_READ: Final[dict[RunKind, tuple[str, Callable[[Record], AnyRunRecord]]]] = {
    RunKind.FLOW_RUN: (READ_FLOW_RUNS, flow_run_from),
    RunKind.TASK_RUN: (READ_TASK_RUNS, task_run_from),
}


class Found:
    """A run that was found, and not read yet."""

    __slots__ = ("id", "kind")

    def __init__(self, kind: RunKind, run_id: UUID) -> None:
        self.kind = kind
        self.id = run_id


async def read_runs(driver: Connection, found: Sequence[Found], most_bytes: int) -> list[FlowRun | TaskRun]:
    """Return the runs in the same order, the first ones of them when they take more than so many bytes."""
    read: dict[UUID, FlowRun | TaskRun] = {}
    for kind, (statement, run_from) in _READ.items():
        for number, row in enumerate(await _rows(driver, statement, found, kind, most_bytes), 1):
            read[row["id"]] = run_from(row).as_run(from_json(row["labels"]))
            if number % ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)
    runs: list[FlowRun | TaskRun] = []
    for one in found:
        if one.id not in read:
            break
        runs.append(read[one.id])
    return runs


async def _rows(
    driver: Connection, statement: str, found: Iterable[Found], kind: RunKind, most_bytes: int
) -> list[Record]:
    wanted = [one.id for one in found if one.kind is kind]
    rows: list[Record] = await driver.fetch(statement, wanted, most_bytes) if wanted else []
    return rows
