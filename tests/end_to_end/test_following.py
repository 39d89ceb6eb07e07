"""What the engine does by itself: runs follow their flow run to its end, and pauses end."""

import asyncio
from datetime import UTC, datetime, timedelta

from statewright import SetStateStatus, State, StateType
from tests.deployment import HANGS_SECONDS, Deployment, until


async def test_what_is_below_a_cancelled_flow_run_follows_it(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit("db", 1)
        flow = await client.create_flow_run("flow")
        await client.propose(flow, State.running())
        tasks = [await client.create_task_run(str(n), flow_run=flow, tags=["db"]) for n in range(3)]
        await client.propose(tasks[0], State.running())
        await client.propose(tasks[2], State.completed())
        parked = client.propose(tasks[1], State.running(), on_wait="park")
        parent = await client.create_task_run("parent", flow_run=flow)
        await client.propose(parent, State.running())
        subflow = await client.create_flow_run("subflow", parent_task_run=parent)
        await client.propose(subflow, State.running())
        grandchild = await client.create_task_run("grandchild", flow_run=subflow)
        await client.propose(grandchild, State.running())
        async with client.subscribe() as events:
            await client.propose(flow, State.cancelled(), cascade=True)
            followed = set()
            async with asyncio.timeout(HANGS_SECONDS):
                async for event in events:
                    if event.data.resource.state_type is StateType.CANCELLED:
                        followed.add(event.data.resource.name)
                    if "grandchild" in followed:
                        break
            verdict = await parked
            states = [(await client.read_run(run)).run.state for run in (*tasks, parent, subflow, grandchild)]
            limit = await client.read_limit("db")

    assert followed == {"flow", "0", "1", "parent", "subflow", "grandchild"}
    assert verdict.status is SetStateStatus.ABORT
    assert [state and state.type for state in states] == [
        StateType.CANCELLED,
        StateType.CANCELLED,
        StateType.COMPLETED,
        StateType.CANCELLED,
        StateType.CANCELLED,
        StateType.CANCELLED,
    ]
    assert states[0] is not None
    assert states[0].message == "The parent flow run was cancelled."
    assert limit is not None
    assert limit.held == 0


async def test_any_number_of_task_runs_follow(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        flow = await client.create_flow_run("flow")
        tasks = [client.create_task_run(str(n), flow_run=flow) for n in range(230)]
        await client.propose_many([(task, State.running()) for task in tasks])
        await client.propose(flow, State.crashed(), cascade=True)

        async def all_have_followed() -> bool:
            [row] = await deployment.fetch("SELECT count(*) FROM task_run WHERE state_type = 'CRASHED'")
            return bool(row["count"] == len(tasks))

        await until(all_have_followed)
        timers = await deployment.fetch("SELECT FROM timer")

    assert not timers


async def test_nobody_follows_who_was_not_told_to(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        flow = await client.create_flow_run("flow")
        task = await client.create_task_run("task", flow_run=flow)
        await client.propose(task, State.running())
        await client.propose(flow, State.cancelled())
        timers = await deployment.fetch("SELECT FROM timer")
        history = await client.read_run(task)

    assert not timers
    assert history.run.state_type is StateType.RUNNING


async def test_a_pause_ends_at_its_time(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client, client.subscribe() as events:
        run, resumed = await client.create_flow_run("paused"), await client.create_flow_run("resumed")
        ends = datetime.now(UTC) + timedelta(seconds=1)
        for one in (run, resumed):
            await client.propose(one, State.paused(timeout_at=ends))
        await client.propose(resumed, State.running())
        async with asyncio.timeout(HANGS_SECONDS):
            async for event in events:
                if event.data.resource.state_type is StateType.FAILED:
                    break

        async def no_timer_is_left() -> bool:
            return not await deployment.fetch("SELECT FROM timer")

        await until(no_timer_is_left)
        history = await client.read_run(resumed)

    assert (event.data.resource.name, event.data.resource.state_message) == (
        "paused",
        "The flow was paused and never resumed.",
    )
    assert event.time >= ends
    assert history.run.state_type is StateType.RUNNING
