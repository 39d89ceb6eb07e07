"""A Redis of a test's own, which it may demote, fill up and stop."""

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from statewright.connection import connection_pool
from tests.deployment import Deployment, until


@dataclass
class OwnRedis:
    """The server, reached by a connection of the test's own."""

    redis: Redis
    process: "subprocess.Popen[bytes]"

    async def demote(self) -> None:
        """Make it the replica of a server that does not exist: it refuses to be written to."""
        await self.redis.execute_command("REPLICAOF", "127.0.0.1", "1")  # type: ignore[no-untyped-call]

    async def promote(self) -> None:
        await self.redis.execute_command("REPLICAOF", "NO", "ONE")  # type: ignore[no-untyped-call]


@asynccontextmanager
async def own_redis(deployment: Deployment) -> AsyncIterator[OwnRedis]:
    """Start another server of the kind that the deployment has, and let the deployment use it; stop it at the end."""
    async with deployment.redis() as redis:
        executable = (await redis.info("server"))["executable"]
    # The path of a socket may only be short.
    with TemporaryDirectory(prefix="statewright-") as folder:
        socket = Path(folder) / "redis.sock"
        process = subprocess.Popen(  # noqa: ASYNC220  # it is started, not waited for
            [executable, "--port", "0", "--unixsocket", str(socket), "--save", ""],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        others, deployment.redis_url = deployment.redis_url, f"unix://{socket}"
        redis = Redis(connection_pool=connection_pool(deployment.redis_url))
        try:
            await until(lambda: _answers(redis))
            yield OwnRedis(redis, process)
        finally:
            await redis.aclose(close_connection_pool=True)
            process.kill()
            process.wait()
            deployment.redis_url = others


async def _answers(redis: Redis) -> bool:
    try:
        return bool(await redis.ping())
    except RedisConnectionError:
        return False
