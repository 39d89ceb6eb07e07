"""The Redis users of the deployment files: each can do its work, and nothing beyond."""

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from arq.cron import cron
from redis.asyncio import Redis

from statewright import Client, State
from statewright.connection import Command, HeldConnection, RightMissing, connection_pool
from statewright_worker.maintenance import jobs
from tests.deployment import Deployment, until

FOLDER = Path(__file__).parents[2] / "deploy" / "redis"
PASSWORD = "secret"
FIRST_REDIS_THAT_GRANTS_BY_KEY = 7

KEYS = {
    "proposals": "{ns:0}:proposals",
    "events": "{ns:0}:events",
    "dead letters": "{ns:0}:dead-letters",
    "suspect": "{ns:0}:suspect",
    "replies": "ns:replies:somebody",
    "partitions": "ns:partitions",
    "queries": "ns:queries",
    "holders": "ns:holders",
    "announced": "ns:announced",
    "workers": "ns:workers",
    "database": "ns:database",
    "queue": "ns:queue",
    "a job": "arq:job:ns:sweep:1",
    "another job": "arq:job:sweep:1",
    "elsewhere": "elsewhere",
    "another namespace": "{another:0}:proposals",
}
COMMANDS: dict[str, tuple[Any, ...]] = {
    "XADD": ("XADD", "KEY", "*", "a", "b"),
    "XREAD": ("XREAD", "STREAMS", "KEY", "0"),
    "XRANGE": ("XRANGE", "KEY", "-", "+"),
    "XREVRANGE": ("XREVRANGE", "KEY", "+", "-"),
    "XLEN": ("XLEN", "KEY"),
    "MEMORY": ("MEMORY", "USAGE", "KEY"),
    "XTRIM": ("XTRIM", "KEY", "MAXLEN", 1_000),
    "XDEL": ("XDEL", "KEY", "0-1"),
    "DEL": ("DEL", "KEY"),
    "EXPIRE": ("EXPIRE", "KEY", 1_000),
    "GET": ("GET", "KEY"),
    "SET": ("SET", "KEY", "1"),
    "HGETALL": ("HGETALL", "KEY"),
    "HSET": ("HSET", "KEY", "0", "1"),
    "ZRANGE": ("ZRANGE", "KEY", 0, -1),
    "ZADD": ("ZADD", "KEY", 0, "a"),
    "RENAME": ("RENAME", "KEY", "KEY"),
}
READS = "XREAD GET XLEN MEMORY"
A_PRODUCERS = {
    "queries": "XADD XLEN MEMORY",
    "proposals": "XADD XRANGE XLEN MEMORY",
    "replies": f"{READS} XADD XTRIM",
    "partitions": READS,
}
READS_MORE = f"{READS} XREVRANGE"
AN_OPERATORS = f"{READS_MORE} XRANGE HGETALL ZRANGE"
A_WORKERS = " ".join(COMMANDS.keys() - {"RENAME", "ZRANGE"})
ALLOWED = {
    "producer": A_PRODUCERS,
    "subscriber": {"events": "XREAD XREVRANGE GET", "partitions": "XREAD XREVRANGE GET"},
    "member": {
        "proposals": "XADD XRANGE XLEN MEMORY",
        "queries": "XADD XLEN MEMORY",
        "replies": f"{READS_MORE} XADD XTRIM",
        "partitions": READS_MORE,
        "events": READS_MORE,
    },
    "operator": {
        "proposals": "XADD XRANGE XLEN MEMORY",
        "queries": "XADD XLEN MEMORY",
        "replies": f"{AN_OPERATORS} XADD XTRIM",
        "dead letters": f"{AN_OPERATORS} XTRIM XDEL",
        **dict.fromkeys(("events", "partitions", "holders", "workers"), AN_OPERATORS),
    },
    "worker": dict.fromkeys(KEYS.keys() - {"another job", "elsewhere", "another namespace"}, A_WORKERS),
}
"""Which commands each user may use on which keys, and what Redis cannot tell apart; everything else is refused."""
NEEDED = {
    "producer": A_PRODUCERS,
    "subscriber": ALLOWED["subscriber"],
    "worker": ALLOWED["worker"],
}
"""What the users for Redis 6.2 may do."""
MUST_NOT = {
    "producer": {"events": "XADD XREAD", "dead letters": "XREAD XDEL", "holders": "HSET"},
    "subscriber": {"events": "XADD XTRIM XDEL DEL", "proposals": "XADD XREAD", "replies": "XREAD"},
    "worker": {"elsewhere": "SET GET", "another namespace": "XADD XREAD"},
}
"""What they must not do, all the same."""
FOR_NOBODY: list[tuple[Any, ...]] = [
    ("FLUSHALL", "nonsense"),
    ("FLUSHDB", "nonsense"),
    ("CONFIG", "GET", "nothing"),
    ("CONFIG", "SET", "nothing", "1"),
    ("KEYS", "nothing"),
    ("ACL", "LIST"),
    ("CLIENT", "LIST"),
    ("SCRIPT", "EXISTS", "nothing"),
    ("SWAPDB", "nonsense", "nonsense"),
    ("PUBLISH", "ns:channel", "nothing"),
    ("SUBSCRIBE", "ns:channel"),
]


@asynccontextmanager
async def users(deployment: Deployment) -> AsyncIterator[dict[str, str]]:
    """Create the users for the deployment's namespace; yield a URL for each role."""
    urls = {}
    async with deployment.redis() as redis:
        for line in await lines(redis):
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


async def lines(redis: Redis) -> list[str]:
    """Return the users that are meant for the server: before Redis 7 none can be granted to read a key only."""
    file = "users.acl" if await grants_by_key(redis) else "users-6.2.acl"
    return (FOLDER / file).read_text().splitlines()


async def grants_by_key(redis: Redis) -> bool:
    return int((await redis.info("server"))["redis_version"].partition(".")[0]) >= FIRST_REDIS_THAT_GRANTS_BY_KEY


def with_user(url: str, name: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{name}:{PASSWORD}@{host}"))


def user_of(url: str) -> str:
    return urlsplit(url).netloc.partition(":")[0]


async def test_each_user_can_do_its_work(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    # The maintenance comes once a minute otherwise, and has rights of its own.
    monkeypatch.setattr(jobs, "cron", lambda job, **options: cron(job, **{**options, "second": None}))
    async with users(deployment) as urls, deployment.redis() as redis:
        without_lifetime = deployment.channels.replies("crashed")
        await redis.xadd(without_lifetime, {"a": "b"})
        as_worker = replace(deployment, redis_url=urls["worker"])
        subscriber = Client(urls["subscriber"], namespace=deployment.namespace)
        producer = Client(urls["producer"], namespace=deployment.namespace, answer_timeout=10)
        async with as_worker.worker(), producer, subscriber, subscriber.subscribe() as events:
            # Not awaited: what is sent together needs other commands than what is sent alone.
            run = producer.create_task_run("load")
            for state in (State.pending(), State.running(), State.completed()):
                assert (await producer.propose(run, state)).accepted
            await producer.set_limit("database", 1)
            assert len((await producer.read_run(run)).states) == 3
            assert [found.id for found in (await producer.find_runs()).runs] == [run.run_id]
            assert [worker.seeks for worker in await producer.list_workers()] == [True]
            assert sum(partition.sequence for partition in await producer.list_partitions()) == 3
            assert [(await anext(events)).data.resource.state_name for _ in range(3)] == [
                "Pending",
                "Running",
                "Completed",
            ]
            await until(lambda: has_lifetime(redis, without_lifetime))
        assert await refusals(redis, urls) == []


async def test_a_client_with_a_name_needs_its_own_reply_stream_alone(deployment: Deployment) -> None:
    async with users(deployment) as urls, deployment.redis() as redis:
        name, own, all_of_them = user_of(urls["producer"]), "replies:billing", "replies:*"
        [line] = [line for line in await lines(redis) if "statewright-producer" in line]
        rights = line.replace("statewright:", f"{deployment.namespace}:").replace(all_of_them, own).split(" ")[2:]
        unchanged = [right for right in rights if not right.startswith("#")]
        await redis.execute_command("ACL", "SETUSER", name, *await without_selectors(redis), *unchanged)  # type: ignore[no-untyped-call]
        billing = Client(urls["producer"], namespace=deployment.namespace, name="billing")
        async with deployment.worker(partitions=1), billing as client:
            assert (await client.propose(client.create_task_run("load"), State.pending())).accepted
        async with connected(urls["producer"]) as producer:
            others = deployment.channels.replies("somebody")
            asked = [within(deployment.namespace, COMMANDS[name], others) for name in ("XADD", "XREAD", "XTRIM")]
            assert not any(await allowed(producer, asked))


async def without_selectors(redis: Redis) -> list[str]:
    """Return what takes selectors away, where the server knows any."""
    return ["clearselectors"] if await grants_by_key(redis) else []


async def refusals(redis: Redis, urls: dict[str, str]) -> list[Any]:
    """Return what the users were refused, but for the name and version of redis-py, which servers can do without."""
    names = {user_of(url) for url in urls.values()}
    return [
        entry
        for entry in await redis.acl_log()
        if entry["username"] in names and not entry["object"].startswith("client")
    ]


async def has_lifetime(redis: Redis, key: str) -> bool:
    return int(await redis.ttl(key)) > 0


async def test_a_member_reads_events_and_proposes_and_an_operator_looks_after_all(deployment: Deployment) -> None:
    channels = deployment.channels
    async with users(deployment) as urls, deployment.redis() as redis:
        if "member" not in urls:
            pytest.skip("Redis grants to read some keys and to write others from version 7 on")
        for role in ("member", "operator"):
            async with (
                deployment.worker(partitions=1),
                Client(urls[role], namespace=deployment.namespace) as client,
                client.subscribe() as events,
                client.subscribe(f"of-{role}") as shared,
            ):
                assert (await client.propose(client.create_task_run("load"), State.pending())).accepted
                await client.set_limit("database", 1)
                assert (await anext(events)).data.resource.state_name == "Pending"
                event = await anext(shared)
                await shared.acknowledge(event)
                assert event.data.resource.state_name == "Pending"
        await redis.xadd(channels.dead_letters(0), {"a": "b"}, id="7-1")
        async with connected(urls["operator"]) as operator, deployment.worker(partitions=1):
            asked = await operator.exchange(
                ("XLEN", channels.proposals(0)),
                ("HGETALL", channels.holders),
                ("ZRANGE", channels.workers, 0, -1, "WITHSCORES"),
                ("XRANGE", channels.dead_letters(0), "-", "+"),
                ("XDEL", channels.dead_letters(0), "7-1"),
            )
        assert not [answer for answer in asked if isinstance(answer, Exception)]
        assert asked[-2:] == [[[b"7-1", [b"a", b"b"]]], 1]
        assert await refusals(redis, urls) == []


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[HeldConnection]:
    redis = Redis(connection_pool=connection_pool(url))
    try:
        yield HeldConnection(redis.connection_pool)
    finally:
        await redis.aclose(close_connection_pool=True)


async def allowed(redis: HeldConnection, commands: Sequence[Command]) -> list[bool]:
    """Return which of the commands a user may use: each is carried out, and may be wrong in another way."""
    return [not isinstance(answer, RightMissing) for answer in await redis.exchange(*commands)]


def within(namespace: str, command: Sequence[Any], key: str = "") -> Command:
    """Return a command as it is in the namespace, on the key."""
    named = (key if part == "KEY" else part for part in command)
    return tuple(part.replace("ns:", f"{namespace}:") if isinstance(part, str) else part for part in named)


async def table(redis: HeldConnection, namespace: str) -> set[tuple[str, str]]:
    """Return what a user may do: commands, and the kinds of keys on which it may use them."""
    cells = [(kind, name) for kind in KEYS for name in COMMANDS]
    asked = [within(namespace, COMMANDS[name], KEYS[kind]) for kind, name in cells]
    return {cell for cell, may in zip(cells, await allowed(redis, asked), strict=True) if may}


def cells(rights: dict[str, str]) -> set[tuple[str, str]]:
    return {(kind, name) for kind, names in rights.items() for name in names.split()}


@pytest.mark.parametrize("role", ALLOWED)
async def test_a_user_can_do_what_it_needs_and_nothing_beyond(deployment: Deployment, role: str) -> None:
    async with users(deployment) as urls, deployment.redis() as redis:
        if role not in urls:
            pytest.skip("Redis grants to read some keys and to write others from version 7 on")
        async with connected(urls[role]) as as_user:
            found = await table(as_user, deployment.namespace)
            if await grants_by_key(redis):
                assert found == cells(ALLOWED[role])
            else:
                assert found >= cells(NEEDED[role])
                assert not found & cells(MUST_NOT[role])
            forbidden = [within(deployment.namespace, command) for command in FOR_NOBODY]
            assert not any(await allowed(as_user, forbidden))
        await redis.delete("elsewhere", "{another:0}:proposals", "arq:job:sweep:1")
