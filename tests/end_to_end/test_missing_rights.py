"""A right that is missing in Redis: it is told soon and by name, and what goes on in the background waits for it."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import structlog
from redis.asyncio import Redis

from statewright import Client, ConfigurationError, NotPermitted, RedisUnavailable, State
from statewright import connection as connecting
from statewright.client import inbox
from statewright.ids import IdSource
from statewright_worker.streams.rights import check_rights
from tests.deployment import HANGS_SECONDS, Deployment, until
from tests.end_to_end.hand_worker import announce, answer
from tests.end_to_end.test_access import lines, user_of, users
from tests.end_to_end.test_client_faults import denied
from tests.end_to_end.test_subscriptions import event, sequences, tell

SOON = HANGS_SECONDS / 3
"""Much less than the patience of the clients here, and more than a busy machine needs."""
CURE = "deploy/redis/users.acl shows the rights that each user needs"
ids = IdSource()


@dataclass
class User:
    """A user whose rights change."""

    redis: Redis
    url: str

    @property
    def name(self) -> str:
        return user_of(self.url)

    async def set(self, *rights: str) -> None:
        await self.redis.execute_command("ACL", "SETUSER", self.name, *rights)  # type: ignore[no-untyped-call]

    async def denied(self) -> None:
        await until(lambda: denied(self.redis, self.name))


@asynccontextmanager
async def opened(deployment: Deployment, role: str) -> AsyncIterator[tuple[User, Client]]:
    """Yield a user and its client, whose worker is played by hand."""
    async with users(deployment) as urls, deployment.redis() as redis:
        await announce(redis, deployment)
        user = User(redis, urls[role])
        async with Client(user.url, namespace=deployment.namespace, answer_timeout=HANGS_SECONDS) as client:
            yield user, client


async def refused(waits: Awaitable[Any]) -> NotPermitted:
    async with asyncio.timeout(SOON):
        with pytest.raises(NotPermitted) as raised:
            await waits
    assert isinstance(raised.value, RedisUnavailable)
    assert str(raised.value).endswith(CURE)
    return raised.value


# -- clients -----------------------------------------------------------------------------------------------------------


async def test_a_push_says_which_command_the_user_may_not_run(deployment: Deployment) -> None:
    async with opened(deployment, "producer") as (user, client):
        # Neither here nor on its reply stream, which a client with a name signs.
        await user.set("clearselectors", "-xadd")
        error = await refused(client.read_limit("tag").answer())
        # Where the user may still sign reply streams, the command is refused for this key.
        assert (error.user, error.command) == (user.name, "XADD")
        assert set(error.keys) <= {deployment.channels.proposals(0)}
        assert f"nothing was written: Redis user {user.name!r} may not " in str(error)
        many = [client.read_limit("tag") for _ in "many"]
        for pending in many:
            assert (await refused(pending.pushed())).command == "XADD"


async def test_a_push_says_on_which_key_the_user_may_not_use_the_command(deployment: Deployment) -> None:
    async with opened(deployment, "producer") as (user, client):
        await user.set("resetkeys", f"~{deployment.namespace}:replies:*")
        stream = deployment.channels.proposals(0)
        error = await refused(client.read_limit("tag").answer())
        assert (error.user, error.command, error.keys) == (user.name, "XADD", (stream,))
        assert f"may not use XADD on the key {stream!r};" in str(error)


@pytest.mark.parametrize("kind", ["a request", "a proposal that may be parked", "until parked"])
async def test_who_waits_for_an_answer_that_may_not_be_read_is_told_and_can_wait_again(
    deployment: Deployment, kind: str
) -> None:
    async with opened(deployment, "producer") as (user, client):
        await user.set("-xread")
        waits: Any
        if kind == "a request":
            pending: Any = client.read_limit("tag")
            waits = pending.answer()
        else:
            pending = client.propose(ids.new(), State.pending(), on_wait="park")
            waits = pending.until_parked() if kind == "until parked" else pending.answer()
        error = await refused(waits)
        assert (error.user, error.command, error.keys) == (user.name, "XREAD", ())
        assert str(pending.request_id) in str(error)
        # It is none the worse for it.
        await pending.pushed()
        again = asyncio.create_task(client.read_limit("tag").answer())
        await user.set("+xread")
        async with asyncio.timeout(HANGS_SECONDS):
            while True:
                await answer(user.redis, deployment)
                done, _ = await asyncio.wait([again], timeout=0.02)
                if done:
                    break
        if kind == "a request":
            assert await pending is None


async def test_a_gap_in_the_rights_ends_no_wait_for_an_answer(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine, a gap may last for longer than a moment.
    monkeypatch.setattr(inbox, "RIGHTS_SECONDS", SOON)
    async with opened(deployment, "producer") as (user, client):
        waits = asyncio.create_task(client.read_limit("tag").answer())
        await user.set("-xread")
        await client.read_limit("tag").pushed()
        await answer(user.redis, deployment)
        await user.denied()
        assert not waits.done()
        await user.set("+xread")
        assert await waits is None


async def test_a_subscription_names_the_missing_right_and_goes_on_when_it_is_back(deployment: Deployment) -> None:
    async with opened(deployment, "subscriber") as (user, client), client.subscribe() as events:
        await user.set("resetkeys", f"~{deployment.channels.partitions}")
        error = await refused(anext(events))
        assert (error.user, error.command) == (user.name, "XREAD")
        assert error.keys == (deployment.channels.events(0),)
        await user.set("resetkeys", "~*")
        await tell(user.redis, deployment, event(1))
        assert await sequences(events, 1) == [1]


async def test_a_member_of_a_group_hears_of_the_missing_right_and_goes_on_when_it_is_back(
    deployment: Deployment,
) -> None:
    async with users(deployment) as urls, deployment.redis() as redis:
        if "member" not in urls:
            pytest.skip("Redis grants to read some keys and to write others from version 7 on")
        user = User(redis, urls["member"])
        member = Client(user.url, namespace=deployment.namespace, answer_timeout=HANGS_SECONDS)
        async with deployment.worker(partitions=1), member as client, client.subscribe("shared") as events:
            stream = deployment.channels.events(0)
            kept = [f"~{deployment.namespace}:*", f"~{deployment.channels.proposals(0)}"]
            await user.set("resetkeys", *kept)
            error = await refused(anext(events))
            # The first says where the stream ends.
            assert error.command in {"XREVRANGE", "XREAD"}
            assert (error.user, error.keys) == (user.name, (stream,))
            await user.set(f"%R~{stream}")
            run = await client.create_task_run("load")
            assert (await client.propose(run, State.pending())).accepted
            async with asyncio.timeout(HANGS_SECONDS):
                assert (await anext(events)).data.resource.state_name == "Pending"


async def test_a_gap_in_the_rights_ends_no_subscription(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "RIGHTS_SECONDS", SOON)
    async with opened(deployment, "subscriber") as (user, client), client.subscribe() as events:
        await user.set("-xread")
        waits = asyncio.create_task(sequences(events, 1))
        await user.denied()
        assert not waits.done()
        await user.set("+xread")
        await tell(user.redis, deployment, event(1))
        assert await waits == [1]


async def test_what_may_not_be_asked_about_room_refuses_no_request(deployment: Deployment) -> None:
    async with opened(deployment, "producer") as (user, client):
        await user.set("-xlen", "-memory", "-time", "-xrange")
        await client.read_limit("tag").pushed()


async def test_opening_a_client_names_the_missing_right(deployment: Deployment) -> None:
    async with users(deployment) as urls, deployment.redis() as redis:
        user = User(redis, urls["subscriber"])
        await user.set("-get")
        opening = Client(user.url, namespace=deployment.namespace).__aenter__()
        assert (await refused(opening)).command == "GET"


# -- workers -----------------------------------------------------------------------------------------------------------


async def test_a_worker_is_not_started_without_any_of_its_rights(deployment: Deployment) -> None:
    async with users(deployment) as urls, deployment.redis() as redis:
        worker, url = User(redis, urls["worker"]), urls["worker"]
        [line] = [line for line in await lines(redis) if "statewright-worker" in line]
        granted = line.replace("statewright:", f"{deployment.namespace}:").split()
        await check_rights(url, deployment.channels)
        # Nobody needs to answer a PING, and the name of a connection is for whoever looks.
        commands = [right for right in granted if right.startswith("+") and right not in {"+ping", "+client|setname"}]
        for right in commands:
            # Before Redis 7 a command is taken with all that it has below it.
            await worker.set(right.replace("+", "-").partition("|")[0])
            named = right.removeprefix("+").upper().replace("|", " ")
            with pytest.raises(ConfigurationError, match=f"{worker.name}' may not run {named};") as raised:
                await check_rights(url, deployment.channels)
            assert str(raised.value).endswith(CURE)
            await worker.set(right)
        keys = [right for right in granted if right.startswith("~")]
        for key in keys:
            await worker.set("resetkeys", *(other for other in keys if other != key))
            with pytest.raises(ConfigurationError, match=rf"{worker.name}' may not use [A-Z]+ on (the key|one of)"):
                await check_rights(url, deployment.channels)
        await worker.set(*keys)
        await check_rights(url, deployment.channels)
        left = [key async for key in redis.scan_iter(match=f"*{deployment.namespace}*", count=1_000)]
    assert left == []


async def test_the_command_says_in_one_sentence_which_right_the_worker_lacks(deployment: Deployment) -> None:
    async with users(deployment) as urls, deployment.redis() as redis:
        worker = User(redis, urls["worker"])
        await worker.set("-xtrim")
        process = replace(deployment, redis_url=worker.url).spawn_worker()
        assert await asyncio.to_thread(process.wait, HANGS_SECONDS) == 1
    *_, last = (deployment.folder / "worker-0.log").read_text().splitlines()
    assert last == (
        f"statewright: Redis refuses us (STATEWRIGHT_REDIS_URL): Redis user {worker.name!r} may not run XTRIM; {CURE}"
    )


LOST = {
    "reading requests": ("-xread", "+xread", "XREAD"),
    "sending answers and events": ("-xadd", "+xadd", "XADD"),
    # Before Redis 7.2 it does not say which command of a script it refuses.
    "holding partitions": ("-hset", "+hset", "(HSET|a command within EVAL)"),
}


@pytest.mark.parametrize(("takes", "gives", "named"), LOST.values(), ids=LOST.keys())
async def test_a_worker_that_loses_a_right_says_so_once_and_goes_on_when_it_is_back(
    deployment: Deployment, takes: str, gives: str, named: str
) -> None:
    async with users(deployment) as urls, deployment.redis() as redis:
        worker = User(redis, urls["worker"])
        as_worker = replace(deployment, redis_url=worker.url)
        async with as_worker.worker(partitions=2), deployment.client() as client:
            run = await client.create_flow_run("before")
            with structlog.testing.capture_logs() as logged:
                await worker.set(takes)
                pending = client.propose(run, State.pending())
                await until(lambda: worded(logged, "Redis is away"))
                await worker.set(gives)
                assert (await pending).accepted
                await until(lambda: worded(logged, "Redis is back"))
    [away] = [line for line in logged if line["event"] == "Redis is away"]
    assert re.search(f"Redis user {worker.name!r} may not run {named}; {CURE}", away["error"])
    assert [line for line in logged if line["log_level"] == "error"] == []


async def worded(logged: list[Any], words: str) -> bool:
    return any(line["event"] == words for line in logged)
