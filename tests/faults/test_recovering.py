"""What recovers by itself: a Redis full of requests, holds after an emptied Redis, connections that break in a row."""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from statewright import State
from statewright.protocol.channels import REQUEST_ID, REQUEST_MESSAGE, REQUEST_REPLY_TO
from statewright_worker.drain.attempts import HoldEnded
from statewright_worker.holding.hold import Hold
from statewright_worker.replica import run_replica
from tests.deployment import Deployment, until
from tests.end_to_end.black_hole import black_hole
from tests.end_to_end.own_redis import own_redis
from tests.faults.filling import Producer

LOST = asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
STOP_SECONDS = 20


def entry(**message: Any) -> dict[Any, Any]:
    return {
        REQUEST_ID: str(uuid4()),
        REQUEST_REPLY_TO: "raw",
        REQUEST_MESSAGE: json.dumps({"v": 1, **message}),
    }


def create() -> dict[Any, Any]:
    return entry(type="create_flow_run", run_id=str(uuid4()), name="x" * 150)


async def goes_on(deployment: Deployment) -> None:
    """See that a client's new requests are answered."""
    async with deployment.client() as client:
        assert (await client.propose(await client.create_flow_run("next"), State.pending())).accepted


async def test_a_redis_that_filled_up_while_nothing_could_be_answered_is_emptied(deployment: Deployment) -> None:
    async with own_redis(deployment) as own, deployment.worker(partitions=2, max_backlog=1_000_000):
        await deployment.announced()
        producer = Producer(own.redis, deployment, partitions=2)
        async with deployment.taking_no_writes():
            await producer.fill()
        async with producer.reading():
            await until(producer.all_carried_out)
            await producer.all_told()
            await goes_on(deployment)


@pytest.mark.parametrize("knows_us", [True, False], ids=["that knows the deployment", "that knows nothing"])
async def test_a_worker_that_starts_empties_a_full_redis(deployment: Deployment, knows_us: bool) -> None:
    async with own_redis(deployment) as own:
        if knows_us:
            async with deployment.worker(partitions=2):
                await deployment.announced()
        producer = Producer(own.redis, deployment, partitions=2)
        await producer.fill()
        async with producer.reading(), deployment.worker(partitions=2, max_backlog=1_000_000):
            await until(producer.all_carried_out)
            await producer.all_told()
            await goes_on(deployment)


async def test_a_redis_full_of_answers_that_nobody_reads_keeps_no_request_waiting(deployment: Deployment) -> None:
    async with own_redis(deployment) as own:
        patient, careless = (Producer(own.redis, deployment, 2, name) for name in ("patient", "careless"))
        await patient.push(20)
        await careless.fill()
        async with deployment.worker(partitions=2, max_backlog=1_000_000):
            await until(careless.all_carried_out)
            assert await patient.all_carried_out()
            # The reader makes room, and then the answers come that had to wait for it.
            async with patient.reading(), careless.reading():
                await patient.all_told()
                await careless.all_told()
                await goes_on(deployment)


async def test_producers_that_push_all_the_time_take_no_room_from_answers(deployment: Deployment) -> None:
    async with own_redis(deployment) as own:
        producer = Producer(own.redis, deployment, partitions=2)
        await producer.fill()
        several_times_as_many = 3 * len(producer.runs)
        async with producer.reading(), deployment.worker(partitions=2, max_backlog=1_000_000):
            async with producer.pressing():

                async def told() -> bool:
                    return len(producer.told) > several_times_as_many

                await until(told)
            await until(producer.all_carried_out)
            await producer.all_told()


async def test_a_flood_is_stemmed_without_refusing_what_was_answered(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1, max_backlog=10), deployment.redis() as redis:
        await deployment.announced()
        stream, told = deployment.channels.proposals(0), defaultdict(set)
        for _ in range(3):
            pipeline = redis.pipeline(transaction=True)
            for _ in range(100):
                pipeline.xadd(stream, create())
            await pipeline.execute()

            async def all_answered() -> bool:
                return int(await redis.xlen(stream)) == 0

            await until(all_answered)
        for _, fields in await redis.xrange(deployment.channels.replies("raw")):
            for request, answer in fields.items():
                told[request].add(json.loads(answer)["type"])
    assert all(len(answers) == 1 for answers in told.values())


async def test_holds_settle_after_redis_was_emptied(deployment: Deployment) -> None:
    async with own_redis(deployment) as own, deployment.worker(partitions=8):
        await deployment.announced()
        for _ in range(6):
            await own.redis.flushall()

            async def held() -> bool:
                return len(await deployment.holders(own.redis)) == 8

            await until(held)
        # No worker takes and gives back partitions in circles: that would need hundreds of looks.
        await own.redis.config_resetstat()
        began = time.monotonic()
        await asyncio.sleep(1)
        calls = (await own.redis.info("commandstats")).get("cmdstat_eval", {}).get("calls", 0)
        assert calls < 200 * (time.monotonic() - began)


@pytest.fixture
def break_connections(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, int], None]:
    """What lets the connections of workers in this process break at the next calls of a method with such a query, after
    it has done its work."""
    left: dict[tuple[str, str], int] = {}

    def patch(name: str) -> None:
        original: Callable[..., Any] = getattr(asyncpg.Connection, name)

        async def breaking(connection: asyncpg.Connection, query: str, *arguments: Any, **named: Any) -> Any:
            told = await original(connection, query, *arguments, **named)
            for (method, part), times in left.items():
                if method == name and part in query and times > 0:
                    left[method, part] -= 1
                    connection.terminate()
                    raise LOST
            return told

        monkeypatch.setattr(asyncpg.Connection, name, breaking)

    for name in ("execute", "fetch"):
        patch(name)
    return lambda name, part, times: left.update({(name, part): times})


@pytest.mark.parametrize(("method", "part"), [("execute", "BEGIN"), ("fetch", "fence AS"), ("execute", "COMMIT")])
async def test_connections_that_break_several_times_in_a_row_cost_nobody_an_answer(
    deployment: Deployment, break_connections: Callable[[str, str, int], None], method: str, part: str
) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client:
        run = await client.create_flow_run("unlucky")
        break_connections(method, part, 5)
        proposal = uuid4()
        assert (await client.propose(run, State.pending(), proposal_id=proposal)).accepted
        assert (await client.propose(run, State.pending(), proposal_id=proposal)).accepted
        assert len((await client.read_run(run)).states) == 1


async def test_a_worker_stops_while_redis_is_silent(deployment: Deployment) -> None:
    async with black_hole(deployment.redis_url) as hole:
        stop = asyncio.Event()
        running = asyncio.create_task(run_replica(deployment.settings(redis_url=hole.url), stop))
        await deployment.announced()
        hole.swallow()
        stop.set()
        async with asyncio.timeout(STOP_SECONDS):
            await running


async def test_a_hold_can_be_stopped_after_a_wait_that_failed() -> None:
    hold = Hold(0)
    with pytest.raises(HoldEnded), hold.waiting():
        raise HoldEnded
    hold.stop()
    assert not hold.held
