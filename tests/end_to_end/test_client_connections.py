"""Connections that say nothing, and servers that refuse: both are noticed, and a client goes on by itself."""

import asyncio
import time

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from statewright.connection import HeldConnection, connection_pool, passing
from tests.deployment import Deployment
from tests.end_to_end.black_hole import black_hole


async def test_a_server_that_says_nothing_is_given_up_and_connected_to_anew(deployment: Deployment) -> None:
    async with black_hole(deployment.redis_url) as hole:
        redis = Redis(connection_pool=connection_pool(hole.url))
        held = HeldConnection(redis.connection_pool)
        assert await held.ask("PING") == b"PONG"
        hole.swallow()
        for _ in range(2):
            # The first time while it waits for an answer, the second time while it connects.
            with pytest.raises(RedisTimeoutError, match=r"no answer within 0\.1 s"):
                await held.ask("PING", seconds=0.1)
        hole.reopen()
        assert await held.ask("PING") == b"PONG"
        assert hole.connections == 3
        await redis.aclose(close_connection_pool=True)


async def test_a_command_that_blocks_has_the_time_that_it_was_given(deployment: Deployment) -> None:
    async with deployment.redis() as redis:
        held = HeldConnection(redis.connection_pool)
        assert await held.ask("BLPOP", f"{deployment.namespace}:nothing", 1, seconds=5) is None
        with pytest.raises(RedisTimeoutError):
            await held.ask("BLPOP", f"{deployment.namespace}:nothing", 30, seconds=0.1)
        assert await held.ask("PING") == b"PONG"


@pytest.mark.parametrize(
    "error",
    [
        "OOM command not allowed",
        "READONLY You can't write against a read only replica.",
        "NOPERM no rights",
        "MISCONF Errors writing to disk",
        "BUSY a script runs",
        "UNBLOCKED force unblock",
        "NOREPLICAS Not enough good replicas to write.",
    ],
)
async def test_a_refusal_that_passes_is_told_from_one_that_does_not(deployment: Deployment, error: str) -> None:
    async with deployment.redis() as redis:
        held = HeldConnection(redis.connection_pool)
        refusal, wrong = await held.exchange(
            ("EVAL", "return redis.error_reply(ARGV[1])", 0, error), ("EVAL", "return 1")
        )
        assert isinstance(refusal, ResponseError)
        assert isinstance(wrong, ResponseError)
        assert passing(refusal)
        assert not passing(wrong)


@pytest.mark.parametrize("error", ["READONLY demoted", "UNBLOCKED demoted", "MASTERDOWN no link"])
async def test_a_server_that_no_longer_serves_is_left(deployment: Deployment, error: str) -> None:
    async with deployment.redis() as redis:
        held = HeldConnection(redis.connection_pool)
        before = await held.ask("CLIENT", "ID")
        await held.exchange(("EVAL", "return redis.error_reply(ARGV[1])", 0, error), ("PING",))
        assert await held.ask("CLIENT", "ID") != before


async def test_a_busy_process_does_not_take_itself_for_a_dead_server(deployment: Deployment) -> None:
    async with deployment.redis() as redis:
        held = HeldConnection(redis.connection_pool)
        key = f"{deployment.namespace}:list"
        before = await held.ask("CLIENT", "ID")
        asking = asyncio.create_task(held.ask("BLPOP", key, 30, seconds=0.5))
        await redis.execute_command("RPUSH", key, "x")  # type: ignore[no-untyped-call]
        time.sleep(1)  # noqa: ASYNC251  # what keeps the loop busy
        assert (await asking)[1] == b"x"
        assert await held.ask("CLIENT", "ID") == before
