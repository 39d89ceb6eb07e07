"""A deployment to test against: a database and a namespace of its own, on real servers."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from redis.asyncio import Redis

from statewright import Client, RequestFailed
from statewright.connection import connection_pool
from statewright.ids import IdSource
from statewright.protocol.channels import Channels
from statewright.sync import Client as SyncClient
from statewright_worker.audit.audit import Report, audit
from statewright_worker.embedded import Servers, embedded_servers
from statewright_worker.logging import configure_logging
from statewright_worker.replica import run_replica
from statewright_worker.settings import WorkerSettings
from statewright_worker.storage import database
from statewright_worker.streams.reaching import open_pool

TEMPLATE = "statewright_template"
IDS = IdSource()
END_SESSIONS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
HANGS_SECONDS = 60
"""After so many seconds something hangs, however busy the machine is. No promise is measured with it."""


@dataclass
class Deployment:
    """Where one test's database and Redis keys are, and how to run workers and clients against them."""

    database_url: str
    """Leads straight to PostgreSQL, for the test's own questions."""
    redis_url: str
    namespace: str
    folder: Path
    pooler_url: str | None = None
    """Leads to the same database through a pooler of transactions, where the tests are run behind one."""
    starts_in: Path | None = None
    """The current folder of processes that are started; by default that of the tests."""
    _processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def channels(self) -> Channels:
        return Channels(self.namespace)

    @property
    def workers_database_url(self) -> str:
        """The URL that workers are given."""
        return self.pooler_url or self.database_url

    def settings(self, **changes: Any) -> WorkerSettings:
        own = {
            "database_url": self.workers_database_url,
            "transaction_pooler": self.pooler_url is not None,
            "redis_url": self.redis_url,
            "namespace": self.namespace,
        }
        return WorkerSettings.load(**{**own, **changes})

    def client(self, **changes: Any) -> Client:
        own = {"redis_url": self.redis_url, "namespace": self.namespace, "answer_timeout": HANGS_SECONDS}
        return Client(**{**own, **changes})

    def sync_client(self, **changes: Any) -> SyncClient:
        own = {"redis_url": self.redis_url, "namespace": self.namespace, "answer_timeout": HANGS_SECONDS}
        return SyncClient(**{**own, **changes})

    @asynccontextmanager
    async def worker(self, **changes: Any) -> AsyncIterator[None]:
        """Run a replica within this process; if it ends by itself, the body of the block is cancelled."""
        stop = asyncio.Event()
        settings = self.settings(**changes)
        configure_logging(settings)
        beside = asyncio.current_task()
        assert beside is not None
        running = asyncio.create_task(run_replica(settings, stop))
        running.add_done_callback(lambda _: stop.is_set() or beside.cancel())
        try:
            yield
        finally:
            stop.set()
            await running

    @property
    def variables(self) -> dict[str, str]:
        """The settings of a worker as environment variables."""
        return {
            "STATEWRIGHT_DATABASE_URL": self.workers_database_url,
            "STATEWRIGHT_TRANSACTION_POOLER": str(self.pooler_url is not None),
            "STATEWRIGHT_REDIS_URL": self.redis_url,
            "STATEWRIGHT_NAMESPACE": self.namespace,
        }

    def spawn_worker(self, *arguments: str, **environment: str) -> "subprocess.Popen[bytes]":
        """Start a replica as a process of its own; `arguments` replace the command `statewright worker`."""
        command = arguments or ("-m", "statewright_worker", "worker")
        log = (self.folder / f"worker-{len(self._processes)}.log").open("wb")
        process = subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **self.variables, **environment},
            cwd=self.starts_in,
            stdout=log,
            stderr=log,
        )
        log.close()
        self._processes.append(process)
        return process

    async def announced(self) -> None:
        """Return once a worker has announced how many partitions there are: clients themselves wait only 10 s."""
        async with self.redis() as redis:
            await until(lambda: redis.get(self.channels.partitions))

    async def answering(self) -> None:
        """Return once every partition answers: what follows waits for no worker that is about to start."""
        async with self.client() as client, self.redis() as redis:
            partitions = int(await redis.get(self.channels.partitions) or 0)
            asked = [client.read_run(IDS.new(tag=partition)) for partition in range(partitions)]
            answers = await asyncio.gather(*asked, return_exceptions=True)
        # There are no such runs, and each partition says so.
        assert all(isinstance(answer, RequestFailed) for answer in answers), answers

    def stop_processes(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait(HANGS_SECONDS)

    @asynccontextmanager
    async def redis(self) -> AsyncIterator[Redis]:
        """A connection of the test's own."""
        redis = Redis(connection_pool=connection_pool(self.redis_url))
        try:
            yield redis
        finally:
            await redis.aclose(close_connection_pool=True)

    async def holders(self, redis: Redis) -> dict[int, bytes]:
        """Return who holds each partition."""
        told: dict[bytes, bytes] = await redis.hgetall(self.channels.holders)  # type: ignore[misc]  # not always awaitable
        return {int(partition): holder.split()[0] for partition, holder in told.items()}

    async def empty_redis(self) -> None:
        """Delete every key of this deployment at once, as if Redis had come back empty."""
        async with self.redis() as redis:
            keys = [key async for key in redis.scan_iter(match=f"*{self.namespace}*", count=1_000)]
            if keys:
                await redis.delete(*keys)

    async def fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        """Return the rows that a query finds in the test's database."""
        connection = await asyncpg.connect(self.database_url)
        try:
            found: list[asyncpg.Record] = await connection.fetch(query, *arguments)
        finally:
            await connection.close()
        return found

    async def is_held(self) -> None:
        """Return once every partition has a holder."""

        async def all_are_held() -> bool:
            return all(one.worker is not None for one in await client.list_partitions())

        await self.announced()
        async with self.client() as client:
            await until(all_are_held)

    async def audited(self) -> Report:
        """Return what does not fit together at this moment."""
        engine = database.create_engine(self.database_url, pool_size=0)
        async with open_pool(self.redis_url) as pool:
            return await audit(engine, self.channels, pool)

    async def execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.database_url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def end_sessions(self) -> None:
        """End every session of the test's database, those that a pooler keeps too."""
        await self.execute(END_SESSIONS)

    @asynccontextmanager
    async def taking_no_writes(self) -> AsyncIterator[None]:
        """Let PostgreSQL refuse writes to the test's database meanwhile."""
        writing = {"default_transaction_read_only": "off"}
        connection = await asyncpg.connect(self.database_url, server_settings=writing)
        try:
            await connection.execute(f"ALTER DATABASE {self.namespace} SET default_transaction_read_only = on")
            await connection.execute(END_SESSIONS)
            yield
            await connection.execute(f"ALTER DATABASE {self.namespace} RESET default_transaction_read_only")
        finally:
            await connection.close()


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """The servers that the environment names, or embedded ones."""
    database_url = os.environ.get("STATEWRIGHT_TEST_DATABASE_URL")
    redis_url = os.environ.get("STATEWRIGHT_TEST_REDIS_URL")
    with ExitStack() as stack:
        if not (database_url and redis_url):
            # Not below pytest's own folder, because a new session deletes the folders of old ones.
            folder = stack.enter_context(TemporaryDirectory(prefix="statewright-"))
            embedded = stack.enter_context(embedded_servers(Path(folder)))
            database_url, redis_url = database_url or embedded.database_url, redis_url or embedded.redis_url
        yield Servers(database_url, redis_url)


@pytest.fixture(scope="session")
def template(servers: Servers) -> Iterator[str]:
    """A migrated database, of which each test gets a copy."""
    name = f"{TEMPLATE}_{uuid4().hex[:8]}"

    async def prepare() -> None:
        await _administer(servers, f"CREATE DATABASE {name}")
        engine = database.create_engine(_with_database(servers.database_url, name), pool_size=2)
        await database.migrate(engine)
        await engine.dispose()

    asyncio.run(prepare())
    yield name
    asyncio.run(_administer(servers, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
async def deployment(servers: Servers, template: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    """A deployment of this test's own; it fails the test when a connection is left open."""
    name = f"test_{uuid4().hex[:12]}"
    await _administer(servers, f"CREATE DATABASE {name} TEMPLATE {template}")
    # Databases are made and asked straight at PostgreSQL; only workers go through the pooler.
    pooler = os.environ.get("STATEWRIGHT_TEST_POOLER_URL")
    pooler_url = _with_database(pooler, name) if pooler else None
    made = Deployment(_with_database(servers.database_url, name), servers.redis_url, name, tmp_path, pooler_url)
    try:
        with _processes_of(made):
            yield made
            left_open = await made.fetch(
                "SELECT pid, query FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()"
                # A pooler keeps its connections when its clients have gone; no transaction may be open on them.
                " AND backend_type = 'client backend' AND NOT ($2 AND state = 'idle')",
                name,
                pooler_url is not None,
            )
            if not made._processes:
                assert not left_open, "the test left connections to PostgreSQL open"
    finally:
        await made.empty_redis()
        await _administer(servers, f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def _processes_of(made: Deployment) -> Iterator[None]:
    try:
        yield
    finally:
        made.stop_processes()


async def _administer(servers: Servers, statement: str) -> None:
    connection = await asyncpg.connect(servers.database_url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _with_database(url: str, name: str) -> str:
    before, _, after = url.partition("://")
    authority, _, rest = after.partition("/")
    _, _, query = rest.partition("?")
    return f"{before}://{authority}/{name}" + (f"?{query}" if query else "")


async def until(condition: Any, *, seconds: float = HANGS_SECONDS) -> None:
    """Return once the async function `condition` returns something true; fail when it never does."""
    async with asyncio.timeout(seconds):
        while not await condition():
            with suppress(TimeoutError):
                async with asyncio.timeout(0.02):
                    await asyncio.Event().wait()
