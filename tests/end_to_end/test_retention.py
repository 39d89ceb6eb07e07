"""Deleting runs on purpose, and pruning old ones: what goes with them, who is told, and what stays."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from statewright import (
    Client,
    EventsPruned,
    FlowRun,
    RunConflict,
    RunNotFound,
    RunPruned,
    State,
    TaskRun,
)
from statewright.protocol.channels import EVENT_BODY
from statewright.protocol.requests import DeleteRun, encode
from statewright_worker.facts.old_trees import OldTrees
from statewright_worker.maintenance.retention import Retention
from statewright_worker.storage.database import create_engine
from tests.deployment import HANGS_SECONDS, IDS, Deployment, until
from tests.end_to_end.test_bad_input import RawProducer

OF_RUNS = (
    "flow_run",
    "task_run",
    "flow_run_state",
    "task_run_state",
    "task_run_state_cache",
    "verdict",
    "concurrency_slot",
    "parked",
    "waiter",
    "lease",
    "timer",
)


async def rows(deployment: Deployment, *tables: str) -> dict[str, int]:
    """Return how many rows each of the tables has, without those that are empty."""
    counted = " UNION ALL ".join(f"SELECT '{table}' AS name, count(*) FROM {table}" for table in tables or OF_RUNS)
    return {row["name"]: row["count"] for row in await deployment.fetch(counted) if row["count"]}


async def a_tree(client: Client) -> tuple[FlowRun, list[TaskRun]]:
    """Make a flow run with a cached task run, one that was retried, and a subflow with a task run; all are over."""
    flow = await client.create_flow_run("flow", labels={"team": "data"})
    await client.propose(flow, State.running())
    await client.propose(flow, State.pending())
    cached = await client.create_task_run("cached", flow_run=flow)
    parent = await client.create_task_run("parent", flow_run=flow)
    subflow = await client.create_flow_run("subflow", parent_task_run=parent)
    below = await client.create_task_run("below", flow_run=subflow)
    await client.update_run(below, name="renamed")
    await client.propose(subflow, State.running())
    for task, end in ((cached, State.completed(cache_key="key")), (below, State.failed())):
        await client.propose(task, State.running())
        await client.propose(task, end)
    await client.propose(subflow, State.completed())
    await client.propose(flow, State.completed())
    return flow, [cached, parent, below]


async def test_a_tree_goes_with_everything_that_belongs_to_it(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client, deployment.redis() as redis:
        await a_tree(client)
        stays = await rows(deployment)
        answers = await rows(deployment, "answer")
        flow, tasks = await a_tree(client)
        proposal = IDS.new()
        await client.propose(tasks[0], State.pending(), proposal_id=proposal)
        assert await client.verdict(proposal, run=tasks[0]) is not None
        assert await client.delete_run(flow) == 5
        assert await rows(deployment) == stays
        # That of the deletion itself, by which a request that comes again is answered.
        assert await rows(deployment, "answer") == {"answer": answers["answer"] + 1}

        async def events() -> list[bytes]:
            return [fields[EVENT_BODY] for _, fields in await redis.xrange(deployment.channels.events(0))]

        async def are_erased() -> bool:
            return not any(str(flow.id).encode() in body for body in await events())

        await until(are_erased)
        assert len(await events()) == stays["flow_run_state"] + stays["task_run_state"]
        for run in (flow, *tasks):
            with pytest.raises(RunPruned):
                await client.read_run(run)
            with pytest.raises(RunPruned):
                await client.propose(run, State.running())
            with pytest.raises(RunPruned):
                await client.update_run(run, name="other")
        for ask in (client.verdict, client.explain):
            with pytest.raises(RunPruned):
                await ask(proposal, run=tasks[0])
            # Nobody knows to which run it has belonged.
            assert await ask(proposal) is None
        with pytest.raises(RunPruned) as refused:
            await client.create_task_run("late", flow_run=flow)
        assert (refused.value.code, refused.value.field) == ("run_pruned", "flow_run_id")
        with pytest.raises(RunPruned):
            await client.delete_run(flow)
        with pytest.raises(RunNotFound) as unknown:
            await client.read_run(IDS.new())
        assert unknown.value.code == "run_not_found"


async def test_a_deletion_that_is_sent_again_gets_the_same_answer(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client, deployment.redis() as redis:
        flow, _ = await a_tree(client)
        raw, request_id = RawProducer(redis, deployment), str(IDS.new())
        for _ in range(2):
            await raw.push(encode(DeleteRun(run_id=flow.id)), id=request_id)
            assert await raw.reply() == {"type": "deleted", "v": 1, "trees": 1, "runs": 5}
            await redis.delete(deployment.channels.replies("raw"))


async def test_what_has_not_come_to_an_end_stays_unless_it_is_forced(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit("db", 1)
        flow = await client.create_flow_run("flow", state=State.running())
        holder = await client.create_task_run("holder", flow_run=flow, tags=["db"])
        await client.propose(holder, State.running(), lease=60)
        waits = await client.create_task_run("waits", flow_run=flow, tags=["db"])
        own = client.propose(waits, State.running(), on_wait="park")
        await own.until_parked()
        other = await client.create_task_run("other", tags=["db"])
        parked = client.propose(other, State.running(), on_wait="park")
        await parked.until_parked()
        before = await rows(deployment)
        with pytest.raises(RunConflict, match="3 have not come to an end"):
            await client.delete_run(flow)
        assert await rows(deployment) == before
        assert await client.delete_run(flow, force=True) == 3
        # What it held goes to whoever waits, in another partition too; its own proposals are answered.
        async with asyncio.timeout(HANGS_SECONDS):
            assert (await parked).accepted
            with pytest.raises(RunPruned):
                await own
        limit = await client.read_limit("db")
        assert limit is not None
        assert [holder.name for holder in limit.holders] == ["other"]
        assert await rows(deployment, "lease", "waiter") == {}

        async def nothing_is_parked() -> bool:
            return await rows(deployment, "parked", "timer") == {}

        await until(nothing_is_parked)


async def test_a_part_of_a_tree_can_be_deleted(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        flow, [cached, parent, below] = await a_tree(client)
        assert await client.delete_run(parent) == 3
        assert await client.delete_run(cached) == 1
        history = await client.read_run(flow)
        verdicts = await deployment.fetch("SELECT FROM verdict WHERE run_id = $1", flow.id)
        with pytest.raises(RunPruned):
            await client.read_run(below)
        assert len(history.states) == 2
        assert len(verdicts) == 3
        assert await rows(deployment, "task_run", "task_run_state", "task_run_state_cache") == {}


async def test_a_key_whose_run_was_deleted_makes_a_new_run(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        for _ in range(2):
            sent = client.create_flow_run("nightly", idempotency_key="key", state=State.running())
            run = await sent
            assert (sent.created, run.state_name) == (True, "Running")
            await client.propose(run, State.completed())
            assert await client.delete_run(run) == 1


async def test_nobody_sees_a_large_tree_while_it_is_being_deleted(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        flow = await client.create_flow_run("large", idempotency_key="large", state=State.running())
        tasks = [client.create_task_run(str(n), flow_run=flow, state=State.running()) for n in range(950)]
        await asyncio.gather(*(task.answer() for task in tasks))
        await client.propose_many([(task, State.completed()) for task in tasks])
        await client.propose(flow, State.completed())
        small = await client.create_flow_run("small", run_id=IDS.new(tag=flow.id.int & 0xFFFF))
        deletion = client.delete_run(flow)
        # They are sent together, so that most of the tree is still there.
        asked: list[Any] = [
            client.create_task_run("late", flow_run=flow),
            client.propose(tasks[-1], State.running(), force=True),
            client.read_run(flow),
            client.create_flow_run("large", idempotency_key="large"),
            client.delete_run(flow),
        ]
        assert await deletion == 951
        answers = await asyncio.gather(*(sent.answer() for sent in asked), return_exceptions=True)
        assert [type(answer) for answer in answers] == [RunPruned] * 5
        assert "being deleted" in str(answers[3])
        assert (await client.propose(small, State.running())).accepted

        async def is_deleted() -> bool:
            return await rows(deployment) == {"flow_run": 1, "flow_run_state": 1, "verdict": 1}

        await until(is_deleted)
        again = client.create_flow_run("large", idempotency_key="large")
        await again
        assert again.created


async def test_a_large_tree_goes_on_being_deleted_whoever_dies(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client:
        flow = await client.create_flow_run("large", state=State.running())
        tasks = [client.create_task_run(str(n), flow_run=flow) for n in range(950)]
        await asyncio.gather(*(task.answer() for task in tasks))
        await client.delete_run(flow, force=True)
    left = await rows(deployment, "task_run")
    async with deployment.worker():

        async def is_deleted() -> bool:
            return await rows(deployment) == {}

        await until(is_deleted)
    assert left


async def test_trees_that_are_over_are_pruned_and_no_others(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit("none", 1)
        over, tasks = await a_tree(client)
        alone = await client.create_task_run("alone", state=State.running())
        await client.propose(alone, State.completed())
        unfinished, _ = await a_tree(client)
        await client.create_task_run("no state yet", flow_run=unfinished)
        later = datetime.now(UTC) + timedelta(hours=1)
        younger = datetime.now(UTC) - timedelta(hours=1)
        every = [over, alone, unfinished, tasks[1]]
        assert await client.prune_runs(every, unchanged_since=younger) == (0, 0)
        assert await client.prune_runs(every, unchanged_since=later) == (2, 6)
        assert (await client.read_run(unfinished)).run.name == "flow"
        assert await client.prune_runs(every, unchanged_since=later) == (0, 0)


async def test_a_subscriber_that_is_behind_is_told_once_of_what_was_deleted(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client:
        start = dict.fromkeys(range(client.partitions), 0)
        runs = [await client.create_flow_run(str(n)) for n in range(6)]
        for run in runs:
            await client.propose(run, State.running())
            await client.propose(run, State.completed())
        for run in (runs[0], runs[2], runs[4]):
            await client.delete_run(run)
        await client.propose(await client.create_flow_run("last"), State.running())

        async def told(since: dict[int, int]) -> list[Any]:
            found: list[Any] = []
            async with asyncio.timeout(HANGS_SECONDS), client.subscribe(since=since) as events:
                while not found or found[-1] != "last":
                    try:
                        found.append((await anext(events)).data.resource.name)
                    except EventsPruned as pruned:
                        found.append((pruned.first, pruned.last))
            return found

        everything = [(1, 10), "1", "1", "3", "3", "5", "5", "last"]
        assert await told(start) == everything
        await deployment.empty_redis()
        assert await told(start) == everything
        assert await told({0: 10}) == ["5", "5", "last"]


async def test_old_trees_are_deleted_when_their_time_has_come(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        over, _ = await a_tree(client)
        alone = await client.create_task_run("alone", state=State.running())
        await client.propose(alone, State.failed())
        running = await client.create_flow_run("running", state=State.running())
        keyed = await client.create_flow_run("keyed", idempotency_key="key", state=State.running())
        await client.propose(keyed, State.cancelled())
        with pytest.raises(RunConflict):
            await client.update_run(keyed, name="other")
    # As if a day had passed.
    for table in ("flow_run", "task_run"):
        earlier = ", ".join(f"{column} = {column} - interval '1 day'" for column in ("created", "state_timestamp"))
        await deployment.execute(f"UPDATE {table} SET {earlier}")
    await deployment.execute("UPDATE answer SET answered = answered - interval '1 day'")
    async with deployment.worker(keep_runs="12h"), deployment.client() as client:

        async def are_deleted() -> bool:
            return await rows(deployment, "flow_run", "task_run", "verdict") == {"flow_run": 1, "verdict": 1}

        await until(are_deleted)
        for run in (over, alone, keyed):
            with pytest.raises(RunPruned):
                await client.read_run(run)
        again = client.create_flow_run("keyed", idempotency_key="key")
        await again
        assert again.created
        assert (await client.propose(running, State.completed())).accepted


async def test_what_is_remembered_is_forgotten_in_the_end(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        flow, _ = await a_tree(client)
        await client.delete_run(flow)
        stays = await client.create_flow_run("stays", state=State.running())
        await client.update_run(stays, name="renamed")
        await client.set_limit("db", 1)
    await deployment.execute(
        "UPDATE answer SET answered = answered - interval '1 day'; UPDATE pruned SET pruned = pruned - interval '1 day'"
    )
    assert await rows(deployment, "answer", "pruned") == {"answer": 4, "pruned": 5}
    async with deployment.worker(keep_runs=timedelta(hours=12)), deployment.client() as client:

        async def are_forgotten() -> bool:
            # What `stays` was created with stays, and the answer to its change.
            return await rows(deployment, "answer", "pruned") == {"answer": 2}

        await until(are_forgotten)
        with pytest.raises(RunNotFound) as unknown:
            await client.read_run(flow)
        assert unknown.value.code == "run_not_found"


async def test_nothing_is_deleted_by_itself_unless_that_is_asked_for(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await a_tree(client)
    for table in ("flow_run", "task_run"):
        await deployment.execute(f"UPDATE {table} SET created = '2000-01-01Z', state_timestamp = '2000-01-01Z'")
    before = await rows(deployment)
    trees = OldTrees(engine := create_engine(deployment.database_url, pool_size=0))
    try:
        asked: list[int] = []

        async def push(partition: int, body: bytes) -> bool:
            asked.append(partition)
            return True

        await Retention(trees, 8, None).work(push, seconds=5)
        assert not asked
        await Retention(trees, 8, 3_600).work(push, seconds=0.5)
        assert asked
    finally:
        await engine.dispose()
    assert await rows(deployment) == before


async def test_nothing_is_left_of_an_executor_that_has_ended(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        async with client.executor("worker-7", lease=0.2) as executor:
            run = await client.create_task_run("load")
            await executor.propose(run, State.running())
            await client.propose(run, State.completed())
        assert await rows(deployment, "executor")

        async def is_gone() -> bool:
            return await rows(deployment, "executor", "lease", "timer") == {}

        await until(is_gone)
