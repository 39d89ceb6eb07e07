"""The URL of Redis: TLS and any password work; what is not served is refused in one sentence with the cure."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from redis.asyncio import ConnectionPool

from statewright import Client, ConfigurationError
from statewright.connection import connection_pool
from statewright.settings import ClientSettings
from statewright_worker.embedded import _valkey_server
from statewright_worker.starting import ServerAway
from statewright_worker.streams.reaching import check_redis
from tests.deployment import Deployment
from tests.relays import CERTIFICATE, Connect, relay, towards

PASSWORD = "p@:/?#% &=é"


def server_of(deployment: Deployment) -> Connect:
    url = urlsplit(deployment.redis_url)
    return towards(url.path if url.scheme == "unix" else url.hostname or "127.0.0.1", url.port or 6379)


@asynccontextmanager
async def connections(url: str) -> AsyncIterator[ConnectionPool]:
    pool = connection_pool(ClientSettings.load(redis_url=url).redis_url.get_secret_value())
    try:
        yield pool
    finally:
        await pool.disconnect()


async def check(url: str) -> None:
    async with connections(url) as pool:
        await check_redis(pool)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
async def guarded(deployment: Deployment) -> AsyncIterator[str]:
    """A user of Redis whose password has characters that mean something in a URL."""
    user = f"guarded-{deployment.namespace}"
    async with deployment.redis() as redis:
        rights = ("ACL", "SETUSER", user, "on", f">{PASSWORD}", "~*", "&*", "+@all")
        await redis.execute_command(*rights)  # type: ignore[no-untyped-call]
        yield user
        await redis.execute_command("ACL", "DELUSER", user)  # type: ignore[no-untyped-call]


async def test_a_password_of_any_characters_lets_us_in_over_tls_too(deployment: Deployment, guarded: str) -> None:
    login = f"{guarded}:{quote(PASSWORD, safe='')}"
    async with relay(server_of(deployment), with_tls=True) as made:
        url = f"rediss://{login}@127.0.0.1:{made.port}/0?ssl_ca_certs={CERTIFICATE}"
        async with deployment.worker(partitions=1), Client(url, namespace=deployment.namespace) as client:
            await client.create_flow_run("over TLS")
        await check(url)
        with pytest.raises(ConfigurationError, match=r"Redis refuses us \(STATEWRIGHT_REDIS_URL\): .*certificate"):
            await check(f"rediss://{login}@127.0.0.1:{made.port}/0")
        with pytest.raises(ConfigurationError, match=r"Redis refuses us.*password") as raised:
            await check(f"rediss://{guarded}:s3cret@127.0.0.1:{made.port}/0?ssl_ca_certs={CERTIFICATE}")
        assert "s3cret" not in str(raised.value)


async def test_a_redis_that_is_not_there_may_come(deployment: Deployment) -> None:
    for url in ("redis://127.0.0.1:1/0", "redis://nowhere.invalid/0", "unix:///nowhere.sock"):
        with pytest.raises(ServerAway, match=r"cannot reach Redis \(STATEWRIGHT_REDIS_URL\): ."):
            await check(url)


@pytest.mark.parametrize(
    ("option", "mode"), [("--cluster-enabled yes --cluster-port {}", "cluster"), ("--sentinel", "sentinel")]
)
async def test_a_node_of_a_cluster_and_a_sentinel_are_refused(tmp_path: Path, option: str, mode: str) -> None:
    config = tmp_path / "config"
    config.write_text(f"bind 127.0.0.1\nport {(port := free_port())}\ndir {tmp_path}\n")
    server = await asyncio.create_subprocess_exec(
        str(_valkey_server()), str(config), *option.format(free_port()).split(), stdout=asyncio.subprocess.DEVNULL
    )
    try:

        async def refused() -> str:
            while True:
                try:
                    await check(f"redis://127.0.0.1:{port}")
                except ServerAway:
                    await asyncio.sleep(0.02)
                except ConfigurationError as error:
                    return str(error)
                else:
                    pytest.fail("it was taken for a single server")

        async with asyncio.timeout(60):
            assert f"in {mode} mode, which is not served: name a single Redis" in await refused()
    finally:
        if server.returncode is None:
            server.kill()
        await server.wait()


REFUSED = [
    *(
        (f"{scheme}://host:26379/mymaster/0", "is not served: name a single Redis")
        for scheme in (
            "sentinel",
            "redis+sentinel",
            "rediss+sentinel",
            "redis-sentinel",
            "redis+cluster",
            "rediss+cluster",
            "cluster",
        )
    ),
    ("redis://me:s3/cret@host/0", "/ as %2F"),
    ("redis://me:s3#cret@host/0", "# as %23"),
    ("redis://me:s3?cret@host/0", r"\? as %3F"),
    ("redis://host:6379/zero", "the number of a database"),
    ("rediss://me:s3cret@host/0?ssl_ca_certs=/nowhere.crt", "ssl_ca_certs must name a file"),
    ("redis://me:s3cret@host/0?scoket_timeout=3", "is not known: 'scoket_timeout'"),
    ("redis://me:s3cret@host/0?socket_timeout=soon", "socket_timeout"),
]


@pytest.mark.parametrize(("url", "told"), REFUSED, ids=[url for url, _ in REFUSED])
def test_what_is_not_served_is_refused_in_one_sentence_with_the_cure(url: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as raised:
        ClientSettings.load(redis_url=url)
    assert str(raised.value).startswith("STATEWRIGHT_REDIS_URL: ")
    assert not any(secret in str(raised.value) for secret in ("s3", "cret"))
