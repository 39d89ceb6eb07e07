"""Parked proposals wait in the queues of limits: first come, first served, and woken when there is room."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from statewright import Client, RunNotFound, RunPolicy, SetStateStatus, State, StateType, TaskRun
from tests.deployment import HANGS_SECONDS, Deployment, until


async def park(client: Client, name: str, **options: Any) -> Any:
    """Create a task run, propose that it runs, and return the proposal once it is parked."""
    policy = RunPolicy(limits=options.pop("limits", ()))
    run = await client.create_task_run(name, tags=options.pop("tags", ["db"]), policy=policy)
    sent: Any = client.propose(run, State.running(), on_wait="park", **options)
    waiting = asyncio.ensure_future(sent.answer())
    sent.verdict = waiting

    await sent.until_parked()
    return sent


async def running(client: Client, name: str, **options: Any) -> TaskRun:
    """Return a task run that runs."""
    run = await client.create_task_run(name, **{"tags": ["db"], **options})
    assert (await client.propose(run, State.running())).accepted
    return run


async def _order(client: Client, events: Any, number: int) -> list[str]:
    """Complete what runs, one after the other, and return the names of what runs next."""
    order: list[str] = []
    async with asyncio.timeout(HANGS_SECONDS):
        async for event in events:
            if event.data.resource.state_type is StateType.RUNNING:
                order.append(event.data.resource.name)
                await client.propose(event.run_id, State.completed())
                if len(order) == number:
                    break
    return order


async def test_waiters_go_first_come_first_served_over_all_partitions(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.worker(), deployment.client() as client:
        await client.set_limit("db", 1)
        async with client.subscribe() as events:
            first = await running(client, "first")
            parked = [await park(client, str(number)) for number in range(12)]
            await client.propose(first, State.completed())
            order = await _order(client, events, 13)
            verdicts = await asyncio.gather(*(sent.verdict for sent in parked))
            limit = await client.read_limit("db")

    assert order == ["first", *map(str, range(12))]
    assert all(verdict.accepted for verdict in verdicts)
    assert limit is not None
    assert (limit.held, limit.waiting) == (0, 0)


async def test_a_greater_priority_goes_first(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit("db", 1)
        first = await running(client, "first")
        async with client.subscribe() as events:
            for number, priority in enumerate([0, 5, -1, 5]):
                await park(client, f"{number} with {priority}", priority=priority)
            limit = await client.read_limit("db")
            await client.propose(first, State.completed())
            order = await _order(client, events, 4)

    assert order == ["1 with 5", "3 with 5", "0 with 0", "2 with -1"]
    assert limit is not None
    assert [waiter.name for waiter in limit.waiters] == order


async def test_who_does_not_park_does_not_overtake(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit("db", 2)
        await client.set_limit(name="gpu", concurrency_limit=0 + 1)
        busy = [await running(client, "a"), await running(client, "b", policy=RunPolicy(limits=("gpu",)))]
        # Waits for "gpu" as well, so it keeps its place on "db" when that has room.
        older = await park(client, "older", limits=["gpu"])
        await client.propose(busy[0], State.completed())
        newcomer = await client.create_task_run("newcomer", tags=["db"])
        refused = await client.propose(newcomer, State.running())
        await client.propose(busy[1], State.completed())
        verdict = await older.verdict
        accepted = await client.propose(newcomer, State.running())

    assert refused.status is SetStateStatus.WAIT
    assert verdict.accepted
    assert accepted.accepted


async def test_a_waiter_that_leaves_lets_those_behind_it_pass(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit("db", 1)
        await client.set_limit(name="gpu", concurrency_limit=1)
        busy = await running(client, "busy", tags=[], policy=RunPolicy(limits=("gpu",)))
        older = await park(client, "older", limits=["gpu"])
        behind = await park(client, "behind")
        assert await client.withdraw(older)
        verdicts = await asyncio.gather(older.verdict, behind.verdict)
        await client.propose(busy, State.completed())

    assert [verdict.status for verdict in verdicts] == [SetStateStatus.ABORT, SetStateStatus.ACCEPT]


async def test_cancelling_a_run_withdraws_its_parked_proposals(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit("db", 1)
        first = await running(client, "first")
        cancelled, behind = await park(client, "cancelled"), await park(client, "behind")
        await client.propose(cancelled.run_id, State.cancelled())
        verdict = await cancelled.verdict
        await client.propose(first, State.completed())
        passed = await behind.verdict
        history = await client.read_run(cancelled.run_id)

    assert verdict.status is SetStateStatus.ABORT
    assert passed.accepted
    assert history.run.state_type is StateType.CANCELLED


async def test_changing_a_limit_wakes_who_waits(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit("db", 1)
        await running(client, "first")
        parked = [await park(client, str(number)) for number in range(6)]
        await client.set_limit("db", 3)
        raised = await asyncio.gather(*(sent.verdict for sent in parked[:2]))
        limit = await client.read_limit("db")
        await client.set_limit("db", None)
        freed = await asyncio.gather(*(sent.verdict for sent in parked[2:]))

    assert all(verdict.accepted for verdict in (*raised, *freed))
    assert limit is not None
    assert (limit.held, limit.waiting) == (3, 4)


async def test_a_limit_of_zero_answers_who_waits(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit("db", 1)
        await running(client, "first")
        parked = [await park(client, str(number)) for number in range(3)]
        await client.set_limit("db", 0)
        verdicts = await asyncio.gather(*(sent.verdict for sent in parked))

    assert [verdict.status for verdict in verdicts] == [SetStateStatus.ABORT] * 3


async def test_a_rate_lets_waiters_start_as_time_goes_by(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit("db", 2, period=1)
        parked = [await park(client, str(number)) for number in range(6)]
        verdicts = await asyncio.gather(*(sent.verdict for sent in parked))
        states = [verdict.state for verdict in verdicts]

    assert all(verdict.accepted for verdict in verdicts)
    starts = [state.timestamp for state in states]
    assert starts == sorted(starts)
    # Two at once, then one each half of a second.
    assert (starts[5] - starts[0]).total_seconds() >= 1.9


async def test_a_raised_limit_wakes_more_than_are_called_at_once(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit("db", 1)
        await running(client, "first")
        runs = [await run for run in [client.create_task_run(str(number), tags=["db"]) for number in range(700)]]
        sent = [client.propose(run, State.running(), on_wait="park") for run in runs]
        answers = [asyncio.ensure_future(one.answer()) for one in sent]
        await client.read_limit("db")

        async def all_wait() -> bool:
            limit = await client.read_limit("db")
            return limit is not None and limit.waiting == len(runs)

        await until(all_wait)
        await client.set_limit("db", 1_000)
        verdicts = await asyncio.gather(*answers)

    assert all(verdict.accepted for verdict in verdicts)


async def test_a_proposal_that_is_parked_and_withdrawn_at_once_leaves_nothing(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit("db", 1)
        first = await running(client, "first")
        runs = [await client.create_task_run(name, tags=["db"]) for name in ("gone", "cancelled")]
        sent = [client.propose(run, State.running(), on_wait="park") for run in runs]
        cancelling = client.propose(runs[1], State.cancelled())
        withdrawn = await client.withdraw(sent[0])
        await cancelling
        verdicts = [await one for one in sent]
        behind = await park(client, "behind")
        await client.propose(first, State.completed())
        passed = await behind.verdict
        waiters = await deployment.fetch("SELECT FROM waiter")

    assert withdrawn
    assert [verdict.status for verdict in verdicts] == [SetStateStatus.ABORT] * 2
    assert passed.accepted
    assert not waiters


async def test_who_waits_for_its_scheduled_time_holds_nobody_up(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit("db", 1)
        first = await running(client, "first")
        later = await client.create_task_run("later", tags=["db"])
        await client.propose(later, State.scheduled(datetime.now(UTC) + timedelta(hours=1)))
        sent = client.propose(later, State.running(), on_wait="park")
        await sent.until_parked()
        behind = await park(client, "behind")
        await client.propose(first, State.completed())
        passed = await behind.verdict

        async def waits_for_its_time() -> bool:
            rows = await deployment.fetch("SELECT FROM timer WHERE due > now() + interval '50 minutes'")
            return len(rows) == 1

        await until(waits_for_its_time)
        await client.withdraw(sent)

    assert passed.accepted


async def test_deleted_runs_let_others_pass(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit("db", 1)
        first = await running(client, "first")
        gone, behind = await park(client, "gone"), await park(client, "behind")
        await deployment.execute(f"DELETE FROM task_run WHERE id IN ('{first.id}', '{gone.run_id}')")
        passed = await behind.verdict
        with pytest.raises(RunNotFound):
            await gone.verdict

    assert passed.accepted


async def test_a_proposal_leaves_the_queue_of_a_limit_that_its_run_asks_for_no_more(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        for tag in ("db", "other"):
            await client.set_limit(tag, 1)
        first, second = await running(client, "first"), await running(client, "second", tags=["other"])
        moved, behind = await park(client, "moved"), await park(client, "behind")
        await client.update_run(moved.run_id, tags=["other"])
        await client.propose(first, State.completed())
        passed = await behind.verdict
        await client.propose(second, State.completed())
        moved_on = await moved.verdict

    assert passed.accepted
    assert moved_on.accepted


async def test_many_that_wait_below_a_cancelled_flow_run_are_answered_once(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit("db", 3)
        flow = await client.create_flow_run("flow")
        tasks = [await run for run in [client.create_task_run(str(n), flow_run=flow, tags=["db"]) for n in range(250)]]
        sent = [client.propose(task, State.running(), on_wait="park") for task in tasks]
        answers = [asyncio.ensure_future(one.answer()) for one in sent]
        await sent[-1].until_parked()
        await client.propose(flow, State.cancelled(), cascade=True)
        verdicts = await asyncio.gather(*answers)

        async def all_are_cancelled() -> bool:
            return not await deployment.fetch("SELECT FROM task_run WHERE state_type IS DISTINCT FROM 'CANCELLED'")

        await until(all_are_cancelled)
        findings = [finding for finding in (await deployment.audited()).findings if finding.is_wrong]
        answered = await deployment.fetch("SELECT FROM answer")

    assert {verdict.status for verdict in verdicts} <= {SetStateStatus.ACCEPT, SetStateStatus.ABORT}
    assert sum(verdict.accepted for verdict in verdicts) >= 3
    assert not findings
    assert len(answered) == 1, "only the limit's answer: no proposal got an error"
