"""The producers and subscribers that were written from PROTOCOL.md alone, each against a real worker."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from statewright import Client, State
from statewright.events import ERA_BEGAN
from statewright.ids import id_from_key, partition_of
from tests.deployment import HANGS_SECONDS, Deployment, until
from tests.end_to_end.black_hole import BlackHole, black_hole
from tests.end_to_end.test_access import users
from tests.node import EXAMPLES, ROOT, node_for

KEY = "nightly/2030-01-01"
TASKS = 3
FLOW_RUN = id_from_key(KEY)
PARTITIONS = 8
PARTITION = partition_of(FLOW_RUN, PARTITIONS)
PRODUCED = [
    "created flow-run nightly",
    "ACCEPT Running",
    *(
        line
        for number in range(TASKS)
        for line in (f"created task-run load {number}", "ACCEPT Running", "ACCEPT Completed")
    ),
    "ACCEPT Completed",
]
TOLD = [
    "statewright.flow-run.Running nightly",
    *(f"statewright.task-run.{name} load {number}" for number in range(TASKS) for name in ("Running", "Completed")),
    "statewright.flow-run.Completed nightly",
]


class Running:
    """An example that runs, and what it says."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.said: list[str] = []

    async def line(self) -> str:
        """Return the next line that it says, but for those about a lost connection."""
        assert self.process.stdout
        async with asyncio.timeout(HANGS_SECONDS):
            line = (await self.process.stdout.readline()).decode().rstrip()
        self.said.append(line)
        return await self.line() if line.startswith("again: ") else line

    async def lines(self, number: int) -> list[str]:
        return [await self.line() for _ in range(number)]

    async def ended(self) -> None:
        """Return once it has ended, as it should."""
        async with asyncio.timeout(HANGS_SECONDS):
            _, errors = await self.process.communicate()
        assert (self.process.returncode, errors.decode()) == (0, "")


Start = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
async def way(deployment: Deployment) -> AsyncIterator[BlackHole]:
    """The way to Redis that the examples take."""
    async with black_hole(deployment.redis_url) as hole:
        yield hole


@pytest.fixture(params=["python", "node"])
def start(request: pytest.FixtureRequest, deployment: Deployment, way: BlackHole) -> Start:
    """Starts an example by its name, in one of the languages, for as long as a block runs."""
    command, folder, suffix = sys.executable, ROOT / "examples" / "python", "py"
    if request.param == "node":
        command, folder, suffix = node_for(EXAMPLES, request), EXAMPLES, "mjs"
    # Nothing of ours is to be found by the example.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"STATEWRIGHT_REDIS_URL": way.url, "STATEWRIGHT_NAMESPACE": deployment.namespace}

    @asynccontextmanager
    async def started(name: str, *arguments: str, **more: str) -> AsyncIterator[Running]:
        process = await asyncio.create_subprocess_exec(
            *(command, str(folder / f"{name}.{suffix}"), *arguments),
            env={**environment, **more},
            stdout=PIPE,
            stderr=PIPE,
        )
        try:
            yield Running(process)
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()

    return started


@pytest.fixture
def positions(deployment: Deployment) -> Path:
    """The file in which a subscriber keeps its positions; it is not there yet."""
    return deployment.folder / "positions.json"


@pytest.fixture
def from_the_beginning(positions: Path) -> Path:
    """The file of a subscriber that has heard nothing yet, and wants to hear everything."""
    positions.write_text(json.dumps(dict.fromkeys(range(PARTITIONS), 0)))
    return positions


async def told(subscriber: Running, number: int) -> list[str]:
    """Return what a subscriber tells, without the events' ids."""
    return [line.partition(" ")[2] for line in await subscriber.lines(number)]


async def is_longer(redis: Redis, stream: str, length: int) -> bool:
    return int(await redis.xlen(stream)) > length


async def histories(client: Client) -> list[list[str]]:
    """Return the names of the states of every run of a producer."""
    runs = [FLOW_RUN, *(id_from_key(f"load {number}", FLOW_RUN) for number in range(TASKS))]
    read = await asyncio.gather(*(client.read_run(run).answer() for run in runs))
    return [[state.name for state in history.states] for history in read]


async def test_what_one_produces_the_other_hears(deployment: Deployment, start: Start, positions: Path) -> None:
    async with deployment.worker(), deployment.client() as client:
        async with start("subscriber", str(positions)) as subscriber:
            assert await subscriber.line() == "listening"
            async with start("producer", KEY, str(TASKS)) as producer:
                assert await producer.lines(len(PRODUCED)) == PRODUCED
                await producer.ended()
            assert await told(subscriber, len(TOLD)) == TOLD
        assert await histories(client) == [["Running", "Completed"]] * (TASKS + 1)


async def test_they_need_no_more_rights_than_the_page_says(
    deployment: Deployment, start: Start, positions: Path
) -> None:
    async with users(deployment) as urls, deployment.worker():
        await deployment.answering()
        async with (
            black_hole(urls["subscriber"]) as listening,
            black_hole(urls["producer"]) as proposing,
            start("subscriber", str(positions), STATEWRIGHT_REDIS_URL=listening.url) as subscriber,
        ):
            assert await subscriber.line() == "listening"
            async with start("producer", KEY, str(TASKS), STATEWRIGHT_REDIS_URL=proposing.url) as producer:
                assert await producer.lines(len(PRODUCED)) == PRODUCED
                await producer.ended()
            assert await told(subscriber, len(TOLD)) == TOLD


async def test_lost_connections_cost_nothing(
    deployment: Deployment, way: BlackHole, start: Start, positions: Path
) -> None:
    async with deployment.worker(), deployment.client() as client:
        async with start("subscriber", str(positions)) as subscriber:
            assert await subscriber.line() == "listening"
            async with start("producer", KEY, str(TASKS)) as producer:
                for expected in PRODUCED:
                    assert await producer.line() == expected
                    way.drop()
                await producer.ended()
            assert await told(subscriber, len(TOLD)) == TOLD
        assert await histories(client) == [["Running", "Completed"]] * (TASKS + 1)


async def test_a_producer_that_is_started_again_goes_on_where_it_was(deployment: Deployment, start: Start) -> None:
    async with deployment.worker(), deployment.client() as client:
        async with start("producer", KEY, str(TASKS)) as producer:
            await producer.lines(4)
        async with start("producer", KEY, str(TASKS)) as producer:
            # What it asks again under the same id has its one answer.
            assert await producer.lines(len(PRODUCED)) == PRODUCED
            await producer.ended()
        assert await histories(client) == [["Running", "Completed"]] * (TASKS + 1)


async def test_a_parked_proposal_has_two_replies(deployment: Deployment, start: Start) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit("database", 1)
        holder = await client.create_task_run("holder", tags=["database"])
        await client.propose(holder, State.running())
        async with start("producer", KEY, "1") as producer:
            assert (await producer.lines(4))[3] == "parked: Concurrency limit for the database tag has been reached"
            await client.propose(holder, State.completed())
            assert await producer.lines(3) == ["ACCEPT Running", *["ACCEPT Completed"] * 2]
            await producer.ended()


async def test_a_refusal_is_told(deployment: Deployment, start: Start) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.create_flow_run("weekly", run_id=FLOW_RUN)
        async with start("producer", KEY, "1") as producer:
            _, errors = await producer.process.communicate()
            assert producer.process.returncode == 1
            assert f"run_conflict (name): name: the flow-run {FLOW_RUN} was created with another one before" in (
                errors.decode()
            )


async def test_a_producer_waits_for_room(deployment: Deployment, start: Start) -> None:
    async with deployment.worker():
        await deployment.answering()
    async with deployment.redis() as redis:
        for partition in range(PARTITIONS):
            await redis.xadd(deployment.channels.proposals(partition), {"nobody": "answers"})
        async with start("producer", KEY, "0", STATEWRIGHT_MAX_BACKLOG="1") as producer:
            assert await producer.lines(2) == ["no room"] * 2
            async with deployment.worker():
                while (line := await producer.line()) == "no room":
                    pass
                assert [line, *(await producer.lines(2))] == [PRODUCED[0], "ACCEPT Running", "ACCEPT Completed"]
                await producer.ended()


async def test_a_producer_that_was_refused_in_a_flood_asks_again(deployment: Deployment, start: Start) -> None:
    async with deployment.worker():
        await deployment.answering()
    async with deployment.redis() as redis:
        stream = deployment.channels.proposals(PARTITION)
        for _ in range(40):
            await redis.xadd(stream, {"nobody": "answers"})
        async with start("producer", KEY, "0") as producer:
            await until(lambda: is_longer(redis, stream, 40))
            # The newest of 41 requests is one too many, where 2 are no flood yet.
            async with deployment.worker(max_backlog=1, batch_size=1):
                assert await producer.line() == "overloaded"
                while (line := await producer.line()) == "overloaded":
                    pass
                assert [line, *(await producer.lines(2))] == [PRODUCED[0], "ACCEPT Running", "ACCEPT Completed"]
                await producer.ended()


async def test_a_subscriber_reads_back_what_the_stream_has_lost(
    deployment: Deployment, start: Start, from_the_beginning: Path
) -> None:
    async with deployment.worker(), deployment.redis() as redis:
        async with start("producer", KEY, str(TASKS)) as producer:
            await producer.lines(len(PRODUCED))
            await producer.ended()
        await redis.xtrim(deployment.channels.events(PARTITION), minid="6-0", approximate=False)
        async with start("subscriber", str(from_the_beginning)) as subscriber:
            assert await subscriber.line() == "listening"
            assert await told(subscriber, len(TOLD)) == TOLD


async def test_a_subscriber_goes_on_where_it_was(deployment: Deployment, start: Start, positions: Path) -> None:
    async with deployment.worker():
        async with start("subscriber", str(positions)) as subscriber:
            assert await subscriber.line() == "listening"
        async with start("producer", KEY, str(TASKS)) as producer:
            await producer.lines(len(PRODUCED))
            await producer.ended()
        async with start("subscriber", str(positions)) as subscriber:
            assert await subscriber.line() == "listening"
            assert await told(subscriber, len(TOLD)) == TOLD


async def test_a_subscriber_tells_what_no_longer_exists(
    deployment: Deployment, start: Start, from_the_beginning: Path
) -> None:
    async with deployment.worker(), deployment.redis() as redis:
        async with start("producer", KEY, str(TASKS)) as producer:
            await producer.lines(len(PRODUCED))
            await producer.ended()
        await deployment.execute("DELETE FROM task_run WHERE name = 'load 1'")
        await redis.xtrim(deployment.channels.events(PARTITION), minid="8-0", approximate=False)
        async with start("subscriber", str(from_the_beginning)) as subscriber:
            assert await subscriber.line() == "listening"
            assert await told(subscriber, 3) == TOLD[:3]
            assert await subscriber.line() == f"missed {PARTITION} 4 5"
            assert await told(subscriber, 3) == TOLD[5:]


async def test_a_subscriber_hears_of_a_new_era(deployment: Deployment, start: Start, positions: Path) -> None:
    began: Any = {"type": ERA_BEGAN, "sequence": f"{9:019d}", "data": {"went_back_to": 6, "undone_up_to": 8}}
    async with deployment.worker(), deployment.redis() as redis, start("subscriber", str(positions)) as subscriber:
        assert await subscriber.line() == "listening"
        async with start("producer", KEY, str(TASKS)) as producer:
            await producer.lines(len(PRODUCED))
        assert await told(subscriber, len(TOLD)) == TOLD
        await redis.xadd(deployment.channels.events(PARTITION), {"event": json.dumps(began)}, id="9-0")
        assert await subscriber.line() == f"undone {PARTITION} 7 8"
