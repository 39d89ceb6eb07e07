"""Every pair of states for flow runs and task runs, under the core policy and by force.

The tables are written by hand from the documentation. A row is the situation that a run is in, a column what is
proposed. A cell says what becomes of it:

    accept   the run enters the proposed type
    abort    the run stays as it is, for good
    wait     the run stays as it is, for now
    retry    rejected: the run becomes SCHEDULED instead, to await its retry
    cached   rejected: the run becomes COMPLETED instead, out of the cache
"""

from collections.abc import Callable, Coroutine
from typing import Final

import pytest

from statewright import ProposedState, RunPolicy, State, StateType
from statewright_worker.orchestration import UnitOfWork
from statewright_worker.orchestration.records import AnyRunRecord
from tests.orchestration.builders import (
    IDS,
    NOW,
    cached,
    flow_run,
    limit_on,
    of_type,
    on_tag,
    propose,
    put,
    seconds,
    task_run,
    work_with,
)

PROPOSALS: Final[dict[str, ProposedState]] = {
    "SCHEDULED": of_type(StateType.SCHEDULED),
    "AwaitingRetry": State.awaiting_retry(NOW),
    "PENDING": of_type(StateType.PENDING),
    "RUNNING": of_type(StateType.RUNNING),
    "COMPLETED": of_type(StateType.COMPLETED),
    "FAILED": of_type(StateType.FAILED),
    "CANCELLED": of_type(StateType.CANCELLED),
    "CRASHED": of_type(StateType.CRASHED),
    "PAUSED": of_type(StateType.PAUSED),
    "CANCELLING": of_type(StateType.CANCELLING),
}

CORE_FLOW = """
                         SCHEDULED AwaitingRetry PENDING RUNNING COMPLETED FAILED CANCELLED CRASHED PAUSED CANCELLING
none                     accept    accept        accept  accept  accept    accept accept    accept  accept accept
SCHEDULED                abort     abort         accept  accept  accept    accept accept    accept  accept accept
SCHEDULED-in-a-minute    abort     abort         wait    wait    wait      wait   wait      wait    wait   wait
PENDING                  abort     abort         abort   accept  accept    accept accept    accept  accept accept
RUNNING                  abort     abort         abort   abort   accept    accept accept    accept  accept accept
RUNNING-with-a-retry     abort     abort         abort   abort   accept    retry  accept    accept  accept accept
PAUSED                   accept    accept        accept  accept  accept    accept accept    accept  accept accept
CANCELLING               accept    accept        accept  accept  accept    accept accept    accept  accept accept
COMPLETED                abort     abort         abort   abort   abort     abort  abort     abort   abort  abort
FAILED                   abort     abort         abort   abort   abort     abort  abort     abort   abort  abort
CANCELLED                abort     abort         abort   abort   abort     abort  abort     abort   abort  abort
CRASHED                  abort     abort         abort   abort   abort     abort  abort     abort   abort  abort
COMPLETED-but-deployed   abort     accept        abort   abort   abort     abort  abort     abort   abort  abort
FAILED-but-deployed      abort     accept        abort   abort   abort     abort  abort     abort   abort  abort
CANCELLED-but-deployed   abort     accept        abort   abort   abort     abort  abort     abort   abort  abort
CRASHED-but-deployed     abort     accept        abort   abort   abort     abort  abort     abort   abort  abort
"""

CORE_TASK = """
                         SCHEDULED AwaitingRetry PENDING RUNNING COMPLETED FAILED CANCELLED CRASHED PAUSED CANCELLING
none                     accept    accept        accept  accept  accept    accept accept    accept  accept accept
SCHEDULED                abort     abort         accept  accept  accept    accept accept    accept  accept accept
SCHEDULED-in-a-minute    abort     abort         wait    wait    wait      wait   wait      wait    wait   wait
PENDING                  abort     abort         abort   accept  accept    accept accept    accept  accept accept
RUNNING                  abort     abort         abort   abort   accept    accept accept    accept  accept accept
RUNNING-with-a-retry     abort     abort         abort   abort   accept    retry  accept    accept  accept accept
PAUSED                   accept    accept        accept  accept  accept    accept accept    accept  accept accept
CANCELLING               accept    accept        accept  accept  accept    accept accept    accept  accept accept
COMPLETED                abort     abort         abort   abort   abort     abort  abort     abort   abort  abort
FAILED                   abort     abort         abort   abort   abort     abort  abort     abort   abort  abort
CANCELLED                abort     abort         abort   abort   abort     abort  abort     abort   abort  abort
CRASHED                  abort     abort         abort   abort   abort     abort  abort     abort   abort  abort
COMPLETED-in-a-rerun     abort     abort         abort   abort   abort     abort  abort     abort   abort  abort
FAILED-in-a-rerun        abort     abort         abort   accept  abort     abort  abort     abort   abort  abort
CANCELLED-in-a-rerun     abort     abort         abort   accept  abort     abort  abort     abort   abort  abort
CRASHED-in-a-rerun       abort     abort         abort   accept  abort     abort  abort     abort   abort  abort
"""

CACHED_TASK = """
                         RUNNING
none                     cached
SCHEDULED                cached
SCHEDULED-in-a-minute    cached
PENDING                  cached
RUNNING                  cached
PAUSED                   cached
CANCELLING               cached
COMPLETED                cached
FAILED                   cached
CANCELLED                cached
CRASHED                  cached
FAILED-in-a-rerun        cached
"""

FULL_TASK = """
                         SCHEDULED AwaitingRetry PENDING RUNNING COMPLETED FAILED CANCELLED CRASHED PAUSED CANCELLING
none                     accept    accept        accept  wait    accept    accept accept    accept  accept accept
SCHEDULED                abort     abort         accept  wait    accept    accept accept    accept  accept accept
SCHEDULED-in-a-minute    abort     abort         wait    wait    wait      wait   wait      wait    wait   wait
PENDING                  abort     abort         abort   wait    accept    accept accept    accept  accept accept
RUNNING                  abort     abort         abort   abort   accept    accept accept    accept  accept accept
PAUSED                   accept    accept        accept  wait    accept    accept accept    accept  accept accept
CANCELLING               accept    accept        accept  wait    accept    accept accept    accept  accept accept
COMPLETED                abort     abort         abort   abort   abort     abort  abort     abort   abort  abort
FAILED                   abort     abort         abort   abort   abort     abort  abort     abort   abort  abort
FAILED-in-a-rerun        abort     abort         abort   wait    abort     abort  abort     abort   abort  abort
"""

BECOMES: Final = {
    "accept": ("ACCEPT", None),
    "retry": ("REJECT", "SCHEDULED"),
    "cached": ("REJECT", "COMPLETED"),
    "abort": ("ABORT", "unchanged"),
    "wait": ("WAIT", "unchanged"),
}

Answer = tuple[str, str | None]
Situation = tuple[UnitOfWork, AnyRunRecord]


def rows_of(table: str) -> dict[str, dict[str, Answer]]:
    """Return, for each row and column of a table, the status and the type that the run is in afterwards."""
    head, *lines = table.strip("\n").splitlines()
    rows = {}
    for line in lines:
        row, *cells = line.split()
        columns = zip(head.split(), cells, strict=True)
        rows[row] = {column: answer_of(row, column, cell) for column, cell in columns}
    return rows


def answer_of(row: str, column: str, cell: str) -> Answer:
    status, becomes = BECOMES[cell]
    stays = None if row == "none" else row.partition("-")[0]
    return status, {None: str(PROPOSALS[column].type), "unchanged": stays}.get(becomes, becomes)


async def flow_situation(row: str) -> Situation:
    """Return a flow run that is in the situation that the row names."""
    _, _, special = row.partition("-")
    run = flow_run(
        policy=RunPolicy(retries=1 if special == "with-a-retry" else None),
        deployment_id=IDS.new() if special == "but-deployed" else None,
    )
    work = work_with(run)
    await bring_into(work, run, row)
    return work, run


async def task_situation(row: str) -> Situation:
    """Return a task run that is in the situation that the row names."""
    _, _, special = row.partition("-")
    flow = flow_run()
    run = task_run(flow, policy=RunPolicy(retries=1 if special == "with-a-retry" else None))
    work = work_with(flow, run)
    await bring_into(work, run, row)
    if special == "in-a-rerun":
        await put(work, flow, State.running())
    return work, run


async def full_task_situation(row: str) -> Situation:
    """Return a task run in the situation of the row, whose tag's limit others have filled."""
    work, run = await task_situation(row)
    run.tags = ("full",)
    work.limits[on_tag("full")] = limit_on("full", 1, task_run())
    return work, run


async def cached_task_situation(row: str) -> Situation:
    """Return a task run in the situation of the row, for whose cache key a state is cached."""
    work, run = await task_situation(row)
    cached(work, "key", State.completed())
    return work, run


async def bring_into(work: UnitOfWork, run: AnyRunRecord, row: str) -> None:
    state, _, special = row.partition("-")
    if state != "none":
        at = {"scheduled_time": NOW + seconds(60)} if special == "in-a-minute" else {}
        await put(work, run, of_type(StateType(state), **at))


Situations = Callable[[str], Coroutine[None, None, Situation]]


async def answer(situation: Situation, proposed: ProposedState, *, force: bool = False) -> Answer:
    """Return the status of the verdict, and the type that the run is in afterwards."""
    work, run = situation
    verdict = await propose(work, run, proposed, force=force)
    assert run.state is verdict.state
    return str(verdict.status), None if run.state_type is None else str(run.state_type)


def test_the_tables_have_every_type_in_their_rows_and_columns() -> None:
    everything = set(StateType)
    assert {proposed.type for proposed in PROPOSALS.values()} == everything
    for table in (CORE_FLOW, CORE_TASK):
        rows = rows_of(table)
        assert {row.partition("-")[0] for row in rows} == {"none", *everything}
        assert all(list(columns) == list(PROPOSALS) for columns in rows.values())


@pytest.mark.parametrize(("row", "expected"), rows_of(CORE_FLOW).items(), ids=rows_of(CORE_FLOW))
async def test_a_flow_run_under_the_core_policy(row: str, expected: dict[str, Answer]) -> None:
    assert {name: await answer(await flow_situation(row), PROPOSALS[name]) for name in expected} == expected


@pytest.mark.parametrize(("row", "expected"), rows_of(CORE_TASK).items(), ids=rows_of(CORE_TASK))
async def test_a_task_run_under_the_core_policy(row: str, expected: dict[str, Answer]) -> None:
    assert {name: await answer(await task_situation(row), PROPOSALS[name]) for name in expected} == expected


@pytest.mark.parametrize(("row", "expected"), rows_of(FULL_TASK).items(), ids=rows_of(FULL_TASK))
async def test_a_task_run_whose_limit_is_full(row: str, expected: dict[str, Answer]) -> None:
    assert {name: await answer(await full_task_situation(row), PROPOSALS[name]) for name in expected} == expected


@pytest.mark.parametrize(("row", "expected"), rows_of(CACHED_TASK).items(), ids=rows_of(CACHED_TASK))
async def test_a_task_run_whose_result_is_cached(row: str, expected: dict[str, Answer]) -> None:
    running = State.running(cache_key="key")
    assert {"RUNNING": await answer(await cached_task_situation(row), running)} == expected


@pytest.mark.parametrize("situation", [flow_situation, task_situation, full_task_situation, cached_task_situation])
@pytest.mark.parametrize("row", ["none", "SCHEDULED-in-a-minute", "RUNNING-with-a-retry", *StateType])
async def test_by_force_every_run_enters_every_type_from_everywhere(situation: Situations, row: str) -> None:
    for proposed in PROPOSALS.values():
        verdict = await answer(await situation(row), proposed, force=True)
        assert verdict == ("ACCEPT", str(proposed.type))
