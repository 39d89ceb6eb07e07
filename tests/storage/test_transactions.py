"""Transactions: a probe asks whether PostgreSQL takes writes, and is not fooled by what a session remembers."""

from statewright_worker.storage import database, statements
from statewright_worker.storage.transactions import Storage
from tests.deployment import Deployment


async def test_a_session_that_remembers_that_it_takes_no_writes_is_asked_only_once(deployment: Deployment) -> None:
    url, pooled = deployment.workers_database_url, deployment.pooler_url is not None
    engine = database.create_engine(url, pool_size=1, settings=statements.BATCH_SETTINGS, pooled_transactions=pooled)
    storage = Storage(engine, pooled=pooled)
    try:
        async with deployment.taking_no_writes():
            assert not await storage.can_write()
            assert not await storage.can_write()
        assert await storage.can_write()
    finally:
        await engine.dispose()
