"""Servers that refuse, fall silent or go away: a client is never deaf, and says what became of each request."""

from pathlib import Path

import pytest
from redis.asyncio import Redis

from statewright import Client, ConfigurationError, Delivery, NoAnswer, RedisUnavailable, State
from statewright.client import inbox, outbox
from statewright.ids import IdSource
from tests.deployment import HANGS_SECONDS, Deployment, until
from tests.end_to_end.black_hole import black_hole
from tests.end_to_end.hand_worker import announce, answer, requests
from tests.end_to_end.own_redis import own_redis
from tests.end_to_end.test_access import users
from tests.end_to_end.test_connections import blocked
from tests.end_to_end.waiting import waiting

ids = IdSource()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give silent servers up sooner, so that the tests are short."""
    monkeypatch.setattr(inbox, "BLOCK_MILLISECONDS", 200)
    for module in (inbox, outbox):
        monkeypatch.setattr(module, "EXCHANGE_SECONDS", 0.3)


async def answers_arrive(client: Client, redis: Redis, deployment: Deployment) -> None:
    """Fail unless a request is answered."""
    pending = client.read_limit("tag")
    await pending.pushed()
    await answer(redis, deployment)
    assert await pending is None


async def test_a_client_goes_on_after_its_server_was_demoted_and_promoted(deployment: Deployment) -> None:
    async with own_redis(deployment) as own:
        await announce(own.redis, deployment)
        async with deployment.client() as client:
            await answers_arrive(client, own.redis, deployment)
            await until(lambda: blocked(own.redis, "xread"))
            # Redis answers a blocked read with UNBLOCKED, and a write with READONLY.
            await own.demote()
            with waiting(client, 1):
                pending = client.read_limit("tag")
            with pytest.raises(NoAnswer, match="read only replica") as raised:
                await pending
            assert raised.value.delivery == Delivery.NOT_SENT
            await own.promote()
            await pending.pushed()
            await answer(own.redis, deployment)
            await until_answered(pending)
            await answers_arrive(client, own.redis, deployment)


async def test_a_client_whose_waiting_for_answers_was_ended_with_an_error_waits_again(deployment: Deployment) -> None:
    async with deployment.redis() as redis:
        await announce(redis, deployment)
        async with deployment.client() as client:
            await answers_arrive(client, redis, deployment)
            await until(lambda: blocked(redis, "xread"))
            [reading] = [one["id"] for one in await redis.client_list() if one["cmd"] == "xread"]
            await redis.execute_command("CLIENT", "UNBLOCK", reading, "ERROR")  # type: ignore[no-untyped-call]
            await answers_arrive(client, redis, deployment)


async def test_a_client_hears_again_once_it_has_the_right_to(deployment: Deployment) -> None:
    async with users(deployment) as urls, deployment.redis() as redis:
        await announce(redis, deployment)
        user = f"statewright-producer-{deployment.namespace}"
        await redis.execute_command("ACL", "SETUSER", user, "-xread")  # type: ignore[no-untyped-call]
        async with Client(urls["producer"], namespace=deployment.namespace, answer_timeout=HANGS_SECONDS) as client:
            pending = client.read_limit("tag")
            await pending.pushed()
            await until(lambda: denied(redis, user))
            await redis.execute_command("ACL", "SETUSER", user, "+xread")  # type: ignore[no-untyped-call]
            await answer(redis, deployment)
            assert await pending is None


async def denied(redis: Redis, user: str) -> bool:
    """Return whether the user was refused anything."""
    return any(entry["username"] == user for entry in await redis.acl_log())


async def test_a_request_that_a_user_may_not_send_is_refused_and_the_next_one_is_not(deployment: Deployment) -> None:
    async with users(deployment) as urls, deployment.redis() as redis:
        await announce(redis, deployment)
        user = f"statewright-producer-{deployment.namespace}"
        async with Client(urls["producer"], namespace=deployment.namespace, answer_timeout=HANGS_SECONDS) as client:
            await redis.execute_command("ACL", "SETUSER", user, "-xadd")  # type: ignore[no-untyped-call]
            with pytest.raises(RedisUnavailable, match="the Redis user may not send this request; nothing was written"):
                await client.read_limit("tag")
            await redis.execute_command("ACL", "SETUSER", user, "+xadd")  # type: ignore[no-untyped-call]
            await answers_arrive(client, redis, deployment)


async def test_a_redis_without_memory_refuses_requests_with_the_cause_until_it_has_some(deployment: Deployment) -> None:
    async with own_redis(deployment) as own:
        await announce(own.redis, deployment)
        async with deployment.client() as client:
            await own.redis.config_set("maxmemory", 1)
            refused = [client.read_limit("tag") for _ in "many"]
            for pending in refused:
                with pytest.raises(RedisUnavailable, match=r"no memory left \(maxmemory\).*nothing was written"):
                    await pending
            await own.redis.config_set("maxmemory", 0)
            assert await requests(own.redis, deployment) == []
            await answers_arrive(client, own.redis, deployment)


@pytest.mark.usefixtures("impatient")
async def test_connections_that_die_without_a_word_are_replaced_while_nothing_happens(deployment: Deployment) -> None:
    async with black_hole(deployment.redis_url) as hole, deployment.redis() as redis:
        await announce(redis, deployment)
        async with Client(hole.url, namespace=deployment.namespace, answer_timeout=HANGS_SECONDS) as client:
            await answers_arrive(client, redis, deployment)
            # Only those that are there die. The one that waits for answers has nothing to send.
            hole.swallow()
            hole.reopen()
            await answers_arrive(client, redis, deployment)


@pytest.mark.usefixtures("impatient")
async def test_a_request_that_goes_into_a_black_hole_is_unconfirmed_and_sent_again(deployment: Deployment) -> None:
    async with black_hole(deployment.redis_url) as hole, deployment.redis() as redis:
        await announce(redis, deployment)
        async with Client(hole.url, namespace=deployment.namespace, answer_timeout=HANGS_SECONDS) as client:
            await answers_arrive(client, redis, deployment)
            hole.swallow()
            with waiting(client, 1):
                pending = client.read_limit("tag")
            with pytest.raises(NoAnswer, match="sent, but not confirmed by Redis") as raised:
                await pending
            assert raised.value.delivery == Delivery.UNCONFIRMED
            hole.reopen()
            await pending.pushed()
            await answer(redis, deployment)
            await until_answered(pending)


async def until_answered(pending: object) -> None:
    async def is_answered() -> bool:
        try:
            return await pending is None  # type: ignore[misc]
        except NoAnswer:
            return False

    await until(is_answered)


async def test_a_request_that_nobody_answers_says_that_redis_holds_it(deployment: Deployment) -> None:
    async with deployment.redis() as redis:
        await announce(redis, deployment)
        async with deployment.client() as client:
            with waiting(client, 0.2):
                pending = client.read_limit("tag")
            await pending.pushed()
            with pytest.raises(NoAnswer, match=r"within 0\.2 s; Redis holds it") as raised:
                await pending
            assert raised.value.delivery == Delivery.UNANSWERED


async def test_a_timeout_of_zero_does_not_wait(deployment: Deployment) -> None:
    async with deployment.redis() as redis:
        await announce(redis, deployment)
        async with deployment.client() as client:
            with pytest.raises(NoAnswer, match="within 0 s") as raised:
                await client.propose(ids.new(), State.pending(), timeout=0)
            assert raised.value.timeout == 0


async def test_what_redis_does_not_hold_when_the_client_closes_fails(deployment: Deployment) -> None:
    async with own_redis(deployment) as own:
        await announce(own.redis, deployment)
        # It bounds the closing, which must end in vain here, and so the opening as well.
        async with deployment.client(answer_timeout=2) as client:
            held = client.read_limit("tag")
            await held.pushed()
            own.process.kill()
            own.process.wait()
            first = client.read_limit("tag")
            with pytest.raises(NoAnswer, match=r"within 2 s; it was sent, but not confirmed by Redis") as raised:
                await first
            lost = [client.read_limit("tag") for _ in "many"]
        for pending, delivery in ((first, Delivery.UNCONFIRMED), *((one, Delivery.NOT_SENT) for one in lost)):
            with pytest.raises(NoAnswer, match=r"before the client was closed; .* \(Redis: ") as raised:
                await pending
            assert raised.value.delivery == delivery
            with pytest.raises(NoAnswer):
                await pending.pushed()
        with pytest.raises(NoAnswer, match="before the client was closed; Redis holds it") as raised:
            await held
        assert raised.value.delivery == Delivery.UNANSWERED


async def test_a_client_that_finds_no_server_says_so(deployment: Deployment, tmp_path: Path) -> None:
    with pytest.raises(RedisUnavailable, match="cannot reach Redis"):
        async with Client(f"unix://{tmp_path}/nothing"):
            pass


async def test_a_client_that_is_opened_into_a_black_hole_says_so(deployment: Deployment) -> None:
    async with black_hole(deployment.redis_url) as hole:
        hole.swallow()
        with pytest.raises(RedisUnavailable, match=r"cannot reach Redis.*no answer within 0\.2 s"):
            async with Client(hole.url, namespace=deployment.namespace, answer_timeout=0.2):
                pass


async def test_a_client_waits_for_a_worker_as_long_as_for_an_answer(deployment: Deployment) -> None:
    with pytest.raises(ConfigurationError, match=r"no worker has announced itself .* within 0\.2 s"):
        async with deployment.client(answer_timeout=0.2):
            pass


async def test_a_client_that_may_not_ask_for_the_partitions_says_so(deployment: Deployment) -> None:
    async with users(deployment) as urls, deployment.redis() as redis:
        user = f"statewright-producer-{deployment.namespace}"
        await redis.execute_command("ACL", "SETUSER", user, "-get")  # type: ignore[no-untyped-call]
        with pytest.raises(RedisUnavailable, match="number of partitions"):
            async with Client(urls["producer"], namespace=deployment.namespace):
                pass
