"""The composition root: one worker replica, put together from its settings."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from redis.asyncio import Redis

from statewright.channels import Channels
from statewright.connection import connection_pool
from statewright.ids import IdSource
from statewright_worker.drain.drain import DrainTools
from statewright_worker.drain.lanes import Lanes
from statewright_worker.orchestration.contexts import OrchestrationSettings
from statewright_worker.orchestration.engine import Engine
from statewright_worker.publishing.leases import Leases
from statewright_worker.settings import DEFAULT_PARTITIONS, WorkerSettings, load_policy
from statewright_worker.storage import database, statements
from statewright_worker.storage.batches import Storage

log = structlog.get_logger()


async def run_replica(settings: WorkerSettings, until: asyncio.Event) -> None:
    """Run a worker until `until` is set; then hand everything back and return.

    Raises ConfigurationError when a setting, the schema or the number of partitions is wrong.
    """
    async with open_lanes(settings) as lanes:
        await lanes.run(until)


@asynccontextmanager
async def open_lanes(settings: WorkerSettings) -> AsyncIterator[Lanes]:
    """Connect to both servers and put a worker together."""
    engine = make_engine(settings)
    configured = settings.partitions
    db = database.create_engine(
        settings.database_url.get_secret_value(),
        pool_size=configured or DEFAULT_PARTITIONS,
        for_batches=True,
        pooled_transactions=settings.transaction_pooler,
    )
    redis_url = settings.redis_url.get_secret_value()
    redis = Redis(connection_pool=connection_pool(redis_url))
    try:
        await database.check_schema(db)
        partitions = await database.fix_partitions(db, configured, DEFAULT_PARTITIONS)
        channels, ids = Channels(settings.namespace), IdSource()
        worker = f"{socket.gethostname()}-{ids.new().hex}"
        tools = DrainTools(
            Storage(db, statements.BEGIN_POOLED if settings.transaction_pooler else statements.BEGIN),
            redis,
            channels,
            engine,
            ids,
            settings.batch_size,
            settings.max_message_bytes,
            settings.events_kept,
        )
        leases = Leases(redis, channels, partitions, worker)
        await leases.announce()
        log.info("worker started", worker=worker, partitions=partitions)
        yield Lanes(connection_pool(redis_url), channels, leases, tools.drain, partitions=partitions, worker=worker)
        log.info("worker stopped", worker=worker)
    finally:
        await redis.aclose(close_connection_pool=True)
        await db.dispose()


def make_engine(settings: WorkerSettings) -> Engine:
    """Return the engine with the policies that the settings name."""
    return Engine(
        load_policy(settings.flow_policy, "STATEWRIGHT_FLOW_POLICY"),
        load_policy(settings.task_policy, "STATEWRIGHT_TASK_POLICY"),
        OrchestrationSettings(settings.concurrency_slot_wait_seconds),
        settings.rule_timeout,
    )
