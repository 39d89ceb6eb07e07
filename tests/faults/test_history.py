"""What the sweep through a history calls wrong."""

from typing import Any

from tests.faults.history import Sweep

LIMIT = {"id": 1, "scope": "tag", "key": "db", "concurrency_limit": 1, "period": None}


def wrote(what: str, *, before: Any = None, after: Any = None) -> dict[str, Any]:
    return {"what": what, "before": before, "after": after}


def state(run: str, entered: str) -> dict[str, Any]:
    return wrote("task_run_state", after={"id": f"{run} {entered}", "run_id": run, "type": entered})


def slot(run: str) -> dict[str, Any]:
    return {"limit_id": 1, "run_id": run}


def starts(run: str) -> list[dict[str, Any]]:
    return [state(run, "RUNNING"), wrote("concurrency_slot", after=slot(run))]


def ends(run: str) -> list[dict[str, Any]]:
    return [state(run, "COMPLETED"), wrote("concurrency_slot", before=slot(run))]


def place(run: str, ticket: int, priority: int = 0) -> dict[str, Any]:
    return {"limit_id": 1, "run_id": run, "proposal_id": f"of {run}", "priority": priority, "ticket": ticket}


def waits(*arguments: Any) -> list[dict[str, Any]]:
    return [wrote("waiter", after=place(*arguments))]


def leaves(*arguments: Any) -> list[dict[str, Any]]:
    return [wrote("waiter", before=place(*arguments))]


def problems(*transactions: list[dict[str, Any]]) -> list[str]:
    sweep = Sweep({run: {("tag", "db")} for run in "abc"}, {}, set(), {})
    for rows in ([wrote("concurrency_limit", after=LIMIT)], *transactions):
        sweep.transaction(rows)
    return sweep.problems


def test_a_queue_in_order_is_right() -> None:
    in_order = (*waits("b", 1), *waits("c", 2, 1))
    assert not problems(
        starts("a"), list(in_order), ends("a"), starts("c") + leaves("c", 2, 1), ends("c"), starts("b") + leaves("b", 1)
    )


def test_an_exceeded_limit_is_found() -> None:
    assert problems(starts("a"), starts("b")) == ["2 runs hold tag db (1)"]


def test_a_run_that_starts_in_front_of_a_waiter_is_found() -> None:
    found = problems(starts("a"), waits("b", 1), ends("a"), starts("c"))
    assert found == ["the run c (0, inf) took tag db (1) before ['b'], with 1 free"]


def test_a_waiter_that_overtakes_another_is_found() -> None:
    [found] = problems(starts("a"), waits("b", 1), waits("c", 2), ends("a"), starts("c") + leaves("c", 2))
    assert found.startswith("the run c (0, 2) took")


def test_a_run_without_its_slot_and_a_slot_without_its_run_are_found() -> None:
    assert problems([state("a", "RUNNING")]) == ["the run a is RUNNING without a slot of tag db (1)"]
    assert problems(starts("a"), [state("a", "FAILED")]) == ["the run a is FAILED and holds tag db (1)"]
