"""What a benchmark is run against: the user's own deployment, or an embedded one in a temporary folder."""

import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from redis import Redis

from statewright_worker.embedded import Servers, embedded_servers
from statewright_worker.loop import run
from statewright_worker.migrating import migrate_database
from statewright_worker.storage import database
from statewright_worker.worker_processes import worker_processes

POSTGRESQL: Final = "postgresql"
MILLISECOND_BITS: Final = 80
"""So many bits of a UUIDv7 stand below its milliseconds."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a deployment is, and which of its processes can be watched from here."""

    redis_url: str
    database_url: str | None
    pids: Mapping[str, int] = field(default_factory=dict)

    async def batch_sizes(self, opened: datetime, closed: datetime) -> list[int]:
        """Return how many verdicts each batch held, of the proposals that were made between two moments of our clock.

        The verdicts of a batch are known by their moment: all of them are decided at the same one.
        """
        if self.database_url is None:
            return []
        async with _connection(self.database_url) as connection:
            counted = await connection.exec_driver_sql(
                "SELECT count(*) FROM verdict WHERE proposal_id >= $1 AND proposal_id < $2 GROUP BY decided ORDER BY 1",
                (_first_id(opened), _first_id(closed)),
            )
            return [size for (size,) in counted]


@contextmanager
def embedded_target(workers: int) -> Iterator[Target]:
    """Run an embedded deployment in a temporary folder, which is deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="statewright-bench-") as made:
        folder = Path(made)
        with embedded_servers(folder) as servers, deployed_on(servers, workers, folder) as target:
            postmaster = (folder / "postgresql" / "postmaster.pid").read_text().split("\n")[0]
            yield replace(target, pids={**target.pids, POSTGRESQL: int(postmaster)})


@contextmanager
def deployed_on(servers: Servers, workers: int, folder: Path) -> Iterator[Target]:
    """Migrate the database of the servers, and run workers on them that write their log into `folder`."""
    run(migrate_database(servers.database_url))
    urls = {"STATEWRIGHT_DATABASE_URL": servers.database_url, "STATEWRIGHT_REDIS_URL": servers.redis_url}
    with worker_processes(workers, os.environ | urls, folder / "workers.log") as processes:
        pids = {f"worker {number}": process.pid for number, process in enumerate(processes, 1)}
        yield Target(servers.redis_url, servers.database_url, {**pids, "redis": _redis_pid(servers.redis_url)})


@asynccontextmanager
async def _connection(database_url: str) -> AsyncIterator[Any]:
    engine = database.create_engine(database_url, pool_size=1)
    try:
        async with database.connected(engine) as connection:
            yield connection
    finally:
        await engine.dispose()


def _redis_pid(redis_url: str) -> int:
    with Redis.from_url(redis_url) as redis:
        told: dict[str, Any] = redis.info("server")
    return int(told["process_id"])


def _first_id(moment: datetime) -> UUID:
    """Return the lowest UUIDv7 of a moment. Ids of proposals rise with the time at which they are made."""
    return UUID(int=int(moment.timestamp() * 1_000) << MILLISECOND_BITS)
