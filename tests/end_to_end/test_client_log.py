"""What a client logs: nothing above DEBUG while all is well, one line for each end of an outage, no secrets ever."""

import asyncio
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from statewright import Client, RedisUnavailable, State
from statewright.log import LOG, without_secrets
from tests.deployment import HANGS_SECONDS, Deployment, until
from tests.end_to_end.hand_worker import announce, answer
from tests.end_to_end.own_redis import own_redis
from tests.end_to_end.test_access import PASSWORD, user_of, users
from tests.end_to_end.test_client_faults import answers_arrive
from tests.end_to_end.test_connections import blocked


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, LOG.name)
    return caplog


def lines(log: pytest.LogCaptureFixture, above: int = logging.DEBUG) -> list[tuple[str, str]]:
    """Return the lines above a level, each with its level."""
    own = [record for record in log.records if record.name == LOG.name]
    return [(record.levelname, record.getMessage()) for record in own if record.levelno > above]


async def test_a_healthy_client_tells_of_requests_and_answers_by_id_at_debug_alone(
    deployment: Deployment, log: pytest.LogCaptureFixture
) -> None:
    secrets = [PASSWORD, "a secret message", "secret data", "a secret name"]
    async with (
        users(deployment) as urls,
        deployment.worker(),
        Client(urls["producer"], namespace=deployment.namespace, answer_timeout=HANGS_SECONDS) as client,
    ):
        run = client.create_flow_run("a secret name")
        proposed = client.propose(run, State.completed(message="a secret message", data={"k": "secret data"}))
        assert (await proposed).accepted
        await client.read_run(run)
    assert lines(log) == []
    told = [text for _, text in lines(log, 0)]
    for sent in (run, proposed):
        mine = [text for text in told if str(sent.request_id) in text]
        assert [text.split()[0] for text in mine] == ["request", "answer"]
    assert not [text for text in told if any(secret in text for secret in secrets)]


async def test_a_lost_connection_is_told_once_and_its_end_once(
    deployment: Deployment, log: pytest.LogCaptureFixture
) -> None:
    async with own_redis(deployment) as own:
        await announce(own.redis, deployment)
        async with deployment.client() as client:
            await answers_arrive(client, own.redis, deployment)
            await until(lambda: blocked(own.redis, "xread"))
            await own.demote()
            refused = [client.read_limit("tag") for _ in range(3)]

            async def is_told() -> bool:
                return bool(lines(log))

            await until(is_told)
            await own.promote()
            for pending in refused:
                await pending.pushed()
            await answer(own.redis, deployment)
            await refused[-1]
            await until(lambda: is_over(log))
            await answers_arrive(client, own.redis, deployment)
    assert [level for level, _ in lines(log)] == ["WARNING", "INFO"]
    (_, away), (_, back) = lines(log)
    assert away.startswith("Redis at unix://")
    assert back.endswith("is back")


async def is_over(log: pytest.LogCaptureFixture) -> bool:
    return [level for level, _ in lines(log)][-1:] == ["INFO"]


async def test_refused_requests_are_told_once_until_one_is_taken(
    deployment: Deployment, log: pytest.LogCaptureFixture
) -> None:
    async with own_redis(deployment) as own:
        await announce(own.redis, deployment)
        async with deployment.client() as client:
            await own.redis.config_set("maxmemory", 1)
            for _ in range(3):
                with pytest.raises(RedisUnavailable):
                    await client.read_limit("tag")
            assert [level for level, _ in lines(log)] == ["WARNING"]
            await own.redis.config_set("maxmemory", 0)
            await answers_arrive(client, own.redis, deployment)
    assert [level for level, _ in lines(log)] == ["WARNING", "INFO"]
    assert "refuses: OutOfMemoryError" in lines(log)[0][1]


async def test_what_redis_repeats_of_a_command_that_it_does_not_know_is_not_told(
    deployment: Deployment, log: pytest.LogCaptureFixture
) -> None:
    async with own_redis(deployment) as own:
        await announce(own.redis, deployment)
        async with deployment.client() as client:
            outbox = client._outbox
            outbox._command = lambda entry: ("XADDITION", *entry.fields.values())  # type: ignore[method-assign]
            with pytest.raises(RedisUnavailable):
                await client.create_flow_run("a secret name")
    assert "unknown command" in lines(log)[0][1]
    assert "a secret name" not in log.text


def test_a_program_that_does_not_listen_sees_nothing(tmp_path: Path) -> None:
    script = """
import asyncio, logging, statewright
from statewright.log import LOG, Outage
Outage("redis://u:p@h/0").failed(OSError("gone"), "me")
assert LOG.name == "statewright" and LOG.level == logging.NOTSET
"""
    ran = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert (ran.stdout, ran.stderr) == ("", "")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:s3cret@host:6379/0", "redis://host:6379/0"),
        ("rediss://:s3cr%40et@host?ssl_ca_certs=a&password=s3cret", "rediss://host"),
        ("redis://host", "redis://host"),
        ("unix:///tmp/redis.sock?db=1&password=s3cret", "unix:///tmp/redis.sock"),
        ("unix://user:s3cret@/tmp/redis.sock", "unix:///tmp/redis.sock"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


async def test_a_subscriber_that_loses_its_connection_says_so_once_and_its_end_once(
    deployment: Deployment, log: pytest.LogCaptureFixture
) -> None:
    async with own_redis(deployment) as own:
        await announce(own.redis, deployment)
        async with deployment.client() as client, client.subscribe() as events:
            told = asyncio.create_task(anext(events))
            await until(lambda: blocked(own.redis, "xread"))
            await own.demote()
            await until(lambda: is_warned(log))
            await own.promote()
            await until(lambda: is_over(log))
            told.cancel()
    assert [level for level, _ in lines(log)] == ["WARNING", "INFO"]


async def is_warned(log: pytest.LogCaptureFixture) -> bool:
    return bool(lines(log))


async def test_who_may_not_ask_for_room_reads_in_the_log_that_there_is_no_bound(
    deployment: Deployment, log: pytest.LogCaptureFixture
) -> None:
    async with users(deployment) as urls, deployment.redis() as redis:
        await announce(redis, deployment)
        user = user_of(urls["producer"])
        await redis.execute_command("ACL", "SETUSER", user, "-xlen", "-memory")  # type: ignore[no-untyped-call]
        async with Client(urls["producer"], namespace=deployment.namespace, max_backlog=1) as client:
            for _ in range(3):
                await client.read_limit("tag").pushed()
    [(level, line)] = lines(log)
    assert level == "WARNING"
    assert "without a bound" in line
    assert "may not run XLEN" in line
