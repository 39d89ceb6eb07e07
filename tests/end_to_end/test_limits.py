"""Limits are set in the order of the requests, in the transaction of the proposals beside them, without deadlocks."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import pytest
from redis.asyncio import Redis

from statewright import LimitScope, RunPolicy, State
from statewright.ids import IdSource
from statewright.limits import LimitName
from statewright.protocol.channels import REQUEST_ID, REQUEST_MESSAGE, REQUEST_REPLY_TO
from statewright.protocol.replies import REPLY, ErrorReply, LimitReply, Reply, VerdictReply
from statewright.protocol.requests import (
    CreateFlowRun,
    CreateRun,
    CreateTaskRun,
    Propose,
    ReadLimit,
    Request,
    SetLimit,
    encode,
)
from tests.deployment import Deployment, until

ids = IdSource()
ROUNDS: Final = 60
RUNS: Final = 4


async def push_together(deployment: Deployment, redis: Redis, partition: int, requests: Sequence[Request]) -> None:
    """Push requests that a drain reads at once."""
    pipeline = redis.pipeline(transaction=True)
    for request in requests:
        fields: dict[Any, Any] = {REQUEST_ID: str(ids.new()), REQUEST_REPLY_TO: "raw", REQUEST_MESSAGE: encode(request)}
        pipeline.xadd(deployment.channels.proposals(partition), fields)
    await pipeline.execute()


async def answers(deployment: Deployment, redis: Redis, count: int) -> list[Reply]:
    """Return so many answers, in order."""
    found: list[bytes] = []

    async def all_there() -> bool:
        entries = await redis.xrange(deployment.channels.replies("raw"))
        found[:] = [body for _, fields in entries for body in fields.values()]
        return len(found) >= count

    await until(all_there)
    return [REPLY.validate_json(body) for body in found]


def statuses(replies: Sequence[Reply]) -> list[str]:
    return [reply.verdict.status if isinstance(reply, VerdictReply) else reply.type for reply in replies]


def task_runs(count: int, tag: int, *tags: str) -> list[CreateTaskRun]:
    return [CreateTaskRun(run_id=ids.new(tag=tag), name="load", tags=tags) for _ in range(count)]


def proposals(runs: Sequence[CreateRun], state: Any) -> list[Propose]:
    return [Propose(run_id=run.run_id, state=state) for run in runs]


async def test_what_was_pushed_before_a_limit_is_decided_under_the_old_one_in_the_same_transaction(
    deployment: Deployment,
) -> None:
    runs = task_runs(5, 0, "database")
    running = proposals(runs, State.running())
    async with deployment.redis() as redis:
        requests: list[Request] = [
            SetLimit(tag="database", concurrency_limit=1),
            *runs,
            *running[:2],
            SetLimit(tag="database", concurrency_limit=2),
            *running[2:4],
            SetLimit(tag="database", concurrency_limit=None),
            running[4],
            SetLimit(tag="database", concurrency_limit=0),
            *proposals(runs[1:2], State.running()),
        ]
        await push_together(deployment, redis, 0, requests)
        async with deployment.worker(partitions=1):
            replies = await answers(deployment, redis, len(requests))
            verdicts = await deployment.fetch("SELECT DISTINCT xmin::text FROM verdict")
            others = await deployment.fetch("SELECT DISTINCT xmin::text FROM answer")
            limits = await deployment.fetch("SELECT concurrency_limit, xmin::text FROM concurrency_limit")
    told = statuses(replies)
    assert told[:8] == ["limit", *["run"] * 5, "ACCEPT", "WAIT"]
    assert told[8:] == ["limit", "ACCEPT", "WAIT", "limit", "ACCEPT", "limit", "ABORT"]
    holders = [reply.limit and reply.limit.active_slots for reply in replies if isinstance(reply, LimitReply)]
    assert holders == [(), (runs[0].run_id,), None, ()]
    # It was one transaction: whatever it wrote has its number.
    assert len({row["xmin"] for row in (*verdicts, *others, *limits)}) == 1
    assert [row["concurrency_limit"] for row in limits] == [0]
    assert await deployment.fetch("SELECT * FROM concurrency_slot") == []


@pytest.mark.parametrize("scope", [LimitScope.TAG, LimitScope.NAME])
async def test_partitions_that_set_limits_and_use_each_others_do_not_wait_in_a_circle(
    deployment: Deployment, scope: LimitScope
) -> None:
    keys = [
        next(key for key in map(str, range(100)) if LimitName(scope, key).partition(2) == number) for number in (0, 1)
    ]

    def runs_of(partition: int) -> Sequence[CreateRun]:
        if scope is LimitScope.TAG:
            return task_runs(RUNS, partition, *keys)
        policy = RunPolicy(limits=tuple(keys))
        flows = [CreateFlowRun(run_id=ids.new(tag=partition), name="f", policy=policy) for _ in range(RUNS // 2)]
        return [*flows, *(run.replaced(policy=policy) for run in task_runs(RUNS - RUNS // 2, partition))]

    def requests(partition: int, number: int) -> list[Request]:
        runs = runs_of(partition)
        # Now and then the limit is removed, so that the next request creates it again.
        limit = None if number % 7 == 6 else 1_000 + number
        return [
            *runs,
            *proposals(runs[:2], State.running()),
            SetLimit(**{scope.value: keys[partition]}, concurrency_limit=limit),
            *proposals(runs[2:], State.running()),
            *proposals(runs, State.completed()),
        ]

    async with deployment.redis() as redis, deployment.worker(partitions=2, batch_size=16):
        await deployment.announced()
        pushed = 0
        for number in range(ROUNDS):
            batches = [requests(partition, number) for partition in (0, 1)]
            await asyncio.gather(
                *(push_together(deployment, redis, partition, batch) for partition, batch in enumerate(batches))
            )
            pushed += sum(map(len, batches))
        replies = await answers(deployment, redis, pushed)
    assert not [reply for reply in replies if isinstance(reply, ErrorReply)]
    assert statuses(replies).count("ACCEPT") == 2 * 2 * RUNS * ROUNDS
    assert await deployment.fetch("SELECT * FROM concurrency_slot") == []
    # The worker's connections are closed now, so the statistics count everything.
    [[deadlocks]] = await deployment.fetch("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    assert deadlocks == 0


async def test_a_named_limit_is_shared_by_runs_of_both_kinds(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit(name="gpu", concurrency_limit=1)
        policy = RunPolicy(limits=("gpu",))
        flow = await client.create_flow_run("train", policy=policy)
        task = await client.create_task_run("infer", policy=policy)
        assert flow.policy.limits == ("gpu",)
        assert (await client.propose(flow, State.running())).accepted
        waiting = await client.propose(task, State.running())
        assert (waiting.status, waiting.reason) == ("WAIT", 'Concurrency limit "gpu" has been reached')
        held = await client.read_limit(name="gpu")
        assert held is not None
        assert (held.scope, held.key, held.tag, held.active_slots) == (LimitScope.NAME, "gpu", None, (flow.id,))
        assert await client.read_limit("gpu") is None
        await client.propose(flow, State.crashed(), force=True)
        assert (await client.propose(task, State.running())).accepted
        await client.set_limit(name="gpu", concurrency_limit=None)
    assert await deployment.fetch("SELECT * FROM concurrency_slot") == []


async def test_a_deployments_limit_is_on_its_flow_runs(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        nightly = ids.new()
        await client.set_limit(deployment_id=nightly, concurrency_limit=1, lease=30)
        runs = [await client.create_flow_run("nightly", deployment_id=nightly, tags=["t"]) for _ in range(2)]
        other = await client.create_flow_run("other", deployment_id=ids.new())
        verdicts = [await client.propose(run, State.running()) for run in (*runs, other)]
        assert [verdict.status for verdict in verdicts] == ["ACCEPT", "WAIT", "ACCEPT"]
        held = await client.read_limit(deployment_id=str(nightly))
        assert held is not None
        assert (held.lease_seconds, held.active_slots) == (30, (runs[0].id,))
        await client.propose(runs[0], State.completed())
        assert (await client.propose(runs[1], State.running())).accepted


async def test_a_limit_tells_who_holds_it_since_when_and_for_how_long(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit(name="gpu", concurrency_limit=5)
        policy = RunPolicy(limits=("gpu",))
        first = await client.create_flow_run("train", policy=policy)
        second = await client.create_task_run("infer", policy=policy)
        third = await client.create_task_run("infer again", policy=policy)
        for run in (first, second, third):
            assert (await client.propose(run, State.running())).accepted
        await deployment.fetch(
            "INSERT INTO lease (run_id, partition, state_id, seconds, ends, executor)"
            " VALUES ($1, 3, $1, 5, '2030-01-01Z', NULL), ($2, 3, $2, 5, '2030-01-01Z', 'one')",
            first.id,
            second.id,
        )
        await deployment.fetch(
            "INSERT INTO executor (partition, name, seconds, ends) VALUES (3, 'one', 5, '2031-01-01Z')"
        )
        limit = await client.read_limit(name="gpu")
        assert limit is not None
        taken = await deployment.fetch("SELECT run_id, taken FROM concurrency_slot ORDER BY taken")
    assert [(holder.run_id, holder.since) for holder in limit.holders] == [tuple(row) for row in taken]
    told = [(holder.kind, holder.name, holder.lease_ends and holder.lease_ends.year) for holder in limit.holders]
    assert told == [("flow-run", "train", 2030), ("task-run", "infer", 2031), ("task-run", "infer again", None)]
    assert (limit.held, limit.free, limit.waiting, limit.waiters) == (3, 2, 0, ())


async def test_a_limit_tells_who_waits_in_the_order_in_which_they_will_be_served(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit("db", 1)
        runs = [await client.create_task_run(name, tags=["db"]) for name in ("low", "first", "second")]
        for ticket, (run, priority) in enumerate(zip(runs, (-1, 5, 5), strict=True)):
            await deployment.fetch(
                "INSERT INTO waiter (limit_id, proposal_id, run_id, partition, priority, ticket, since)"
                " SELECT id, gen_random_uuid(), $1, 0, $2, $3, '2030-01-01Z' FROM concurrency_limit",
                run.id,
                priority,
                ticket,
            )
        limit = await client.read_limit("db")
    assert limit is not None
    assert [(waiter.name, waiter.priority) for waiter in limit.waiters] == [("first", 5), ("second", 5), ("low", -1)]
    assert limit.waiting == 3
    assert {waiter.since.year for waiter in limit.waiters} == {2030}


async def test_all_limits_are_listed(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        assert await client.list_limits() == []
        nightly = ids.new()
        await asyncio.gather(*(client.set_limit(f"tag {n:03}", n).answer() for n in range(220)))
        await client.set_limit(name="gpu", concurrency_limit=2, lease=7)
        await client.set_limit(deployment_id=nightly, concurrency_limit=3, period=60)
        run = await client.create_flow_run("train", policy=RunPolicy(limits=("gpu",)))
        assert (await client.propose(run, State.running())).accepted
        deployments, named, *tags = await client.list_limits()
    assert (deployments.key, deployments.period_seconds, deployments.free) == (str(nightly), 60, 3)
    assert (named.key, named.lease_seconds, named.held, named.free, named.holders) == ("gpu", 7, 1, 1, ())
    assert [(limit.tag, limit.concurrency_limit) for limit in tags] == [(f"tag {n:03}", n) for n in range(220)]


async def test_a_rate_gives_its_slots_back_one_by_one(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit("mail", 3, period=timedelta(seconds=90))
        runs = [await client.create_task_run("send", tags=["mail"]) for _ in range(4)]
        verdicts = [await client.propose(run, State.running()) for run in runs]
        assert [verdict.status for verdict in verdicts] == ["ACCEPT", "ACCEPT", "ACCEPT", "WAIT"]
        assert verdicts[-1].delay_seconds in (29, 30)
        # Leaving RUNNING gives nothing back, and nobody holds anything.
        await client.propose(runs[0], State.completed())
        assert (await client.propose(runs[3], State.running())).status == "WAIT"
        limit = await client.read_limit("mail")
        assert limit is not None
        assert (limit.free, limit.held, limit.holders, limit.period_seconds) == (0, 0, (), 90)
        # Time does.
        await deployment.fetch("UPDATE concurrency_limit SET used_until = used_until - interval '31 s'")
        verdicts = [await client.propose(run, State.running()) for run in runs[3:]]
        assert [verdict.status for verdict in verdicts] == ["ACCEPT"]
        # Of a greater rate as many are used as before.
        changed = await client.set_limit("mail", 10, period=90)
        assert changed is not None
        assert changed.free == 7


async def test_a_rate_is_kept_within_one_batch_and_by_what_sets_it_there(deployment: Deployment) -> None:
    runs = task_runs(5, 0, "mail")
    running = proposals(runs, State.running())
    async with deployment.redis() as redis:
        requests: list[Request] = [
            SetLimit(tag="mail", concurrency_limit=1, period_seconds=3_600),
            *runs,
            *running[:2],
            SetLimit(tag="mail", concurrency_limit=2, period_seconds=3_600),
            *running[2:4],
        ]
        await push_together(deployment, redis, 0, requests)
        async with deployment.worker(partitions=1):
            replies = await answers(deployment, redis, len(requests))
            await push_together(deployment, redis, 0, [*running[4:], ReadLimit(tag="mail")])
            later = (await answers(deployment, redis, len(requests) + 2))[-2:]
    assert statuses(replies)[6:] == ["ACCEPT", "WAIT", "limit", "ACCEPT", "WAIT"]
    [waiting, read] = later
    assert isinstance(waiting, VerdictReply)
    assert isinstance(read, LimitReply)
    assert (waiting.verdict.status, read.limit and read.limit.free) == ("WAIT", 0)
    assert 1_700 < (waiting.verdict.delay_seconds or 0) <= 1_800


async def test_a_limit_with_many_holders_is_removed_and_set_again(deployment: Deployment) -> None:
    many = 20_000
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit("db", 1_000_000)
        await deployment.fetch(
            "INSERT INTO task_run (id, name, created, tags, policy)"
            " SELECT gen_random_uuid(), 'load', now(), '[\"db\"]', '{}' FROM generate_series(1, $1)",
            many,
        )
        await deployment.fetch(
            "INSERT INTO concurrency_slot (limit_id, run_id, taken)"
            " SELECT concurrency_limit.id, task_run.id, now() FROM concurrency_limit, task_run"
        )
        held = await client.read_limit("db")
        assert held is not None
        assert (held.held, len(held.holders)) == (many, 1_000)
        assert await client.set_limit("db", None) is None
        assert await deployment.fetch("SELECT * FROM concurrency_slot LIMIT 1") == []
        run = await client.create_task_run("load", tags=["db"])
        async with asyncio.TaskGroup() as group:
            for concurrency_limit in (1, None, 2):
                group.create_task(client.set_limit("db", concurrency_limit).answer())
        assert (await client.propose(run, State.running())).accepted
        again = await client.read_limit("db")
    assert again is not None
    assert again.active_slots == (run.id,)
