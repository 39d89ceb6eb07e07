"""A producer works with every redis-py that the base install allows, whatever the worker needs."""

import asyncio
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import pytest

from tests.deployment import HANGS_SECONDS, Deployment
from tests.end_to_end.black_hole import black_hole
from tests.packaging.installing import clean_environment, run

OLDEST, NEWEST = "5.3.0", "8.1.0"
PRODUCER = Path(__file__).with_name("producer.py")


@pytest.fixture(params=[OLDEST, NEWEST])
def redis_version(request: pytest.FixtureRequest, light: Path) -> str:
    version: str = request.param
    run(light, "-m", "pip", "install", "--quiet", f"redis=={version}")
    run(light, "-m", "pip", "check")
    return version


async def test_a_producer_works_with_the_oldest_and_the_newest(
    deployment: Deployment, light: Path, redis_version: str
) -> None:
    async with deployment.worker(), black_hole(deployment.redis_url) as way:
        await deployment.announced()
        producer = await asyncio.create_subprocess_exec(
            *(light, PRODUCER, way.url, deployment.namespace),
            env=clean_environment(),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
        )
        try:
            works, began = await step(producer), way.connections
            nothing, waited = await step(producer, "go on"), way.connections
            way.drop()
            dropped = await step(producer, "go on")
            async with asyncio.timeout(HANGS_SECONDS):
                _, errors = await producer.communicate(b"go on\n")
        finally:
            if producer.returncode is None:
                producer.kill()
                await producer.wait()
    assert (producer.returncode, errors.decode()) == (0, "")
    assert (works, nothing) == (f"redis {redis_version} works", "nothing came")
    assert waited == began, "whoever waited in vain did not wait on the connection that it had"
    assert dropped == "dropped connections are made anew"
    assert way.connections > waited


async def step(producer: Process, word: str = "") -> str:
    """Give the producer the word to go on, and return what it has done next."""
    assert producer.stdin
    assert producer.stdout
    if word:
        producer.stdin.write(f"{word}\n".encode())
    async with asyncio.timeout(HANGS_SECONDS):
        return (await producer.stdout.readline()).decode().strip()
