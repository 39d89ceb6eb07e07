"""The composition root: one worker replica, put together from its settings."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from statewright.ids import IdSource
from statewright.protocol.channels import Channels
from statewright_worker.audit.audit import audit
from statewright_worker.drain.drain import DrainTools
from statewright_worker.facts.old_trees import OldTrees
from statewright_worker.holding.holder import Holder
from statewright_worker.maintenance.jobs import Maintenance
from statewright_worker.maintenance.retention import Retention
from statewright_worker.observing.outages import Outage
from statewright_worker.orchestration.contexts import OrchestrationSettings
from statewright_worker.orchestration.engine import Engine
from statewright_worker.queries.answering import Answering
from statewright_worker.settings import DEFAULT_PARTITIONS, WorkerSettings, load_policy
from statewright_worker.starting import when_there
from statewright_worker.storage import database
from statewright_worker.storage.deployment import claim_database
from statewright_worker.storage.reading import READING_CONNECTIONS, Reading
from statewright_worker.storage.statements import BATCH_SETTINGS
from statewright_worker.storage.transactions import Storage
from statewright_worker.streams.bounds import StreamBounds
from statewright_worker.streams.holders import Holders
from statewright_worker.streams.namespace import claim_namespace
from statewright_worker.streams.partition import PartitionStreams
from statewright_worker.streams.queries import QueryStream
from statewright_worker.streams.reaching import check_redis, open_pool, worker_pool
from statewright_worker.streams.rights import check_rights
from statewright_worker.streams.standing import announcement

CHECK_SECONDS: Final = 120.0
"""How long a single check of the audit may take before it is given up until the next hour."""

log = structlog.get_logger()


async def run_replica(settings: WorkerSettings, until: asyncio.Event) -> None:
    """Run a worker until `until` is set; then hand everything back and return.

    Waits for servers that are not there yet. Raises ConfigurationError when a setting, the schema or the number of
    partitions is wrong, or when a server does not come within the setting `startup_timeout`.
    """
    async with open_replica(settings) as replica:
        await replica.run(until)


@dataclass(frozen=True, slots=True)
class Replica:
    """A worker: what holds partitions, what answers queries, and what does the maintenance."""

    holder: Holder
    answering: Answering
    maintenance: Maintenance

    async def run(self, until: asyncio.Event) -> None:
        """Work until `until` is set; then hand everything back."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.holder.run(until))
            group.create_task(self.answering.run(until))
            group.create_task(self.maintenance.run(until))


@asynccontextmanager
async def open_replica(settings: WorkerSettings) -> AsyncIterator[Replica]:
    """Connect to both servers and put a worker together."""
    engine = make_engine(settings)
    redis_url, channels, ids = settings.redis_url.get_secret_value(), Channels(settings.namespace), IdSource()
    worker = f"{socket.gethostname()}-{ids.new().hex}"
    async with AsyncExitStack() as stack:
        partitions = await _known_to_both(settings, channels)
        db = await stack.enter_async_context(_database(settings))
        read_only = await stack.enter_async_context(_reading(settings))
        aside = await stack.enter_async_context(_aside(settings, "maintenance", database.COMMAND_SECONDS))
        auditing = await stack.enter_async_context(_aside(settings, "audit", CHECK_SECONDS))
        pool = await stack.enter_async_context(open_pool(redis_url))
        bounds = _bounds(settings)
        storage = Storage(db, pooled=settings.transaction_pooler)
        postgresql, redis = Outage("PostgreSQL", log), Outage("Redis", log)
        tools = DrainTools(
            storage,
            partial(PartitionStreams, pool, channels, bounds=bounds),
            engine,
            ids,
            partitions,
            settings.batch_size,
            settings.max_message_bytes,
            settings.max_backlog,
            settings.max_backlog_bytes,
            settings.max_parked,
            settings.forbidden,
            settings.prunes_after,
            postgresql,
            redis,
        )
        holders = Holders(redis_url, channels, partitions, worker, announcement(datetime.now(UTC)))
        log.info("worker started", worker=worker, partitions=partitions)
        yield Replica(
            Holder(holders, tools.drain, storage.can_write, postgresql=postgresql, redis=redis),
            Answering(
                QueryStream(pool, channels, bounds),
                read_only,
                channels,
                partitions,
                settings.max_message_bytes,
                redis=redis,
            ),
            Maintenance(
                partial(worker_pool, redis_url),
                channels,
                worker,
                reply_seconds=settings.reply_seconds,
                retention=Retention(OldTrees(aside), partitions, settings.keep_runs),
                audit=partial(audit, auditing, channels),
                ids=ids,
                outage=redis,
            ),
        )
        log.info("worker stopped", worker=worker)


async def _known_to_both(settings: WorkerSettings, channels: Channels) -> int:
    """Wait until both servers are there, and see that they belong together; return the number of partitions."""
    seconds = settings.startup_timeout
    async with _database(settings) as db, open_pool(settings.redis_url.get_secret_value()) as pool:

        async def ask_postgresql() -> tuple[UUID, int]:
            await database.check_schema(db)
            deployment = await claim_database(db, settings.namespace)
            return deployment, await database.fix_partitions(db, settings.partitions, DEFAULT_PARTITIONS)

        async def ask_redis() -> None:
            await check_redis(pool)
            await check_rights(settings.redis_url.get_secret_value(), channels)
            await claim_namespace(pool, channels, deployment)

        deployment, partitions = await when_there(ask_postgresql, seconds, log.warning)
        await when_there(ask_redis, seconds, log.warning)
    return partitions


@asynccontextmanager
async def _database(settings: WorkerSettings) -> AsyncIterator[AsyncEngine]:
    db = database.create_engine(
        settings.database_url.get_secret_value(),
        # Each partition keeps its own connection. One that a pool kept idle could be broken without anybody knowing.
        pool_size=0,
        settings=BATCH_SETTINGS,
        pooled_transactions=settings.transaction_pooler,
        application="worker",
        # Storage watches its connections itself, because the driver's own limit is expensive.
        command_timeout=None,
    )
    try:
        yield db
    finally:
        await db.dispose()


@asynccontextmanager
async def _aside(settings: WorkerSettings, application: str, command_seconds: float) -> AsyncIterator[AsyncEngine]:
    """Yield an engine for what is done now and then, and keeps no connection in between."""
    db = database.create_engine(
        settings.database_url.get_secret_value(),
        pool_size=0,
        pooled_transactions=settings.transaction_pooler,
        application=application,
        command_timeout=command_seconds,
    )
    try:
        yield db
    finally:
        await db.dispose()


@asynccontextmanager
async def _reading(settings: WorkerSettings) -> AsyncIterator[Reading]:
    db = database.create_engine(
        settings.database_url.get_secret_value(),
        pool_size=READING_CONNECTIONS,
        pooled_transactions=settings.transaction_pooler,
        application="queries",
        # The reading itself watches how long it takes.
        command_timeout=None,
    )
    try:
        yield Reading(db)
    finally:
        await db.dispose()


def _bounds(settings: WorkerSettings) -> StreamBounds:
    return StreamBounds(
        settings.events_kept,
        settings.events_bytes,
        settings.replies_kept,
        settings.reply_seconds,
        settings.dead_letters_kept,
        settings.dead_letter_seconds,
    )


def make_engine(settings: WorkerSettings) -> Engine:
    """Return the engine with the policies that the settings name."""
    return Engine(
        load_policy(settings.flow_policy, "STATEWRIGHT_FLOW_POLICY"),
        load_policy(settings.task_policy, "STATEWRIGHT_TASK_POLICY"),
        OrchestrationSettings(settings.concurrency_slot_wait_seconds),
        settings.rule_timeout,
    )
