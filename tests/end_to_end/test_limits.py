"""Limits are set in the order of the requests, in the transaction of the proposals beside them, without deadlocks."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from redis.asyncio import Redis

from statewright import LimitScope, RunPolicy, State
from statewright.channels import REQUEST_ID, REQUEST_MESSAGE, REQUEST_REPLY_TO
from statewright.ids import IdSource, partition_of_tag
from statewright.messages import (
    REPLY,
    CreateTaskRun,
    ErrorReply,
    LimitReply,
    Propose,
    Reply,
    Request,
    SetLimit,
    VerdictReply,
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


def proposals(runs: Sequence[CreateTaskRun], state: Any) -> list[Propose]:
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


async def test_partitions_that_set_limits_and_use_each_others_do_not_wait_in_a_circle(deployment: Deployment) -> None:
    tags = [next(tag for tag in map(str, range(100)) if partition_of_tag(tag, 2) == number) for number in (0, 1)]

    def requests(partition: int, number: int) -> list[Request]:
        runs = task_runs(RUNS, partition, *tags)
        # Now and then the limit is removed, so that the next request creates it again.
        limit = None if number % 7 == 6 else 1_000 + number
        return [
            *runs,
            *proposals(runs[:2], State.running()),
            SetLimit(tag=tags[partition], concurrency_limit=limit),
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
