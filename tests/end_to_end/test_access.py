"""The Redis users of the deployment files: each can do its work, and nothing beyond."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from statewright import Client, State
from statewright.connection import connection_pool
from tests.deployment import Deployment

USERS = (Path(__file__).parents[2] / "deploy" / "redis" / "users.acl").read_text().splitlines()
PASSWORD = "secret"
FORBIDDEN = {
    "producer": [("XADD", "{ns:0}:events", "*", "a", "b"), ("DEL", "{ns:0}:proposals"), ("FLUSHALL",), ("KEYS", "*")],
    "subscriber": [
        ("XADD", "{ns:0}:proposals", "*", "a", "b"),
        ("XREAD", "STREAMS", "ns:replies:x", "0"),
        ("FLUSHALL",),
    ],
    "worker": [("SET", "elsewhere", "1"), ("FLUSHALL",), ("CONFIG", "GET", "*"), ("KEYS", "*")],
}


@asynccontextmanager
async def users(deployment: Deployment) -> AsyncIterator[dict[str, str]]:
    """Create the users for the deployment's namespace; yield a URL for each role."""
    urls = {}
    async with deployment.redis() as redis:
        for line in USERS:
            _, name, *rights = line.replace("statewright:", f"{deployment.namespace}:").split(" ")
            role = name.removeprefix("statewright-")
            password = f"#{hashlib.sha256(PASSWORD.encode()).hexdigest()}"
            own = f"{name}-{deployment.namespace}"
            await redis.execute_command(  # type: ignore[no-untyped-call]
                "ACL", "SETUSER", own, *(password if right.startswith("#") else right for right in rights)
            )
            urls[role] = with_user(deployment.redis_url, own)
        try:
            yield urls
        finally:
            await redis.execute_command("ACL", "DELUSER", *(with_name for with_name in map(user_of, urls.values())))  # type: ignore[no-untyped-call]


def with_user(url: str, name: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{name}:{PASSWORD}@{host}"))


def user_of(url: str) -> str:
    return urlsplit(url).netloc.partition(":")[0]


async def test_each_user_can_do_its_work(deployment: Deployment) -> None:
    async with users(deployment) as urls:
        as_worker = replace(deployment, redis_url=urls["worker"])
        subscriber = Client(urls["subscriber"], namespace=deployment.namespace)
        producer = Client(urls["producer"], namespace=deployment.namespace, answer_timeout=10)
        async with as_worker.worker(), producer, subscriber:
            events = await subscriber.subscribe()
            # Not awaited: what is sent together needs other commands than what is sent alone.
            run = producer.create_task_run("load")
            for state in (State.pending(), State.running(), State.completed()):
                assert (await producer.propose(run, state)).accepted
            await producer.set_limit("database", 1)
            assert len((await producer.read_run(run)).states) == 3
            assert [(await anext(events)).data.resource.state_name for _ in range(3)] == [
                "Pending",
                "Running",
                "Completed",
            ]


@pytest.mark.parametrize(
    ("role", "command"), [(role, command) for role, commands in FORBIDDEN.items() for command in commands], ids=str
)
async def test_a_user_can_do_nothing_beyond(deployment: Deployment, role: str, command: tuple[Any, ...]) -> None:
    async with users(deployment) as urls:
        redis = Redis(connection_pool=connection_pool(urls[role]))
        own = [part.replace("ns:", f"{deployment.namespace}:") for part in command]
        with pytest.raises(NoPermissionError):
            await redis.execute_command(*own)  # type: ignore[no-untyped-call]
        await redis.aclose(close_connection_pool=True)
