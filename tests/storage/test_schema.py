"""The schema: migrations equal the models, run once however many start them, and survive going down and up."""

import asyncio

import pytest
from alembic import command
from sqlalchemy import Connection

from statewright import ConfigurationError, PartitionCountMismatch
from statewright_worker.storage import database
from tests.deployment import Deployment


async def test_the_migrations_make_what_the_models_say(deployment: Deployment) -> None:
    engine = database.create_engine(deployment.database_url, pool_size=1)
    async with engine.execution_options(isolation_level="READ COMMITTED").begin() as connection:
        await connection.run_sync(lambda plain: command.check(database._alembic(plain)))
    await engine.dispose()


async def test_the_migrations_go_down_and_up_again(deployment: Deployment) -> None:
    engine = database.create_engine(deployment.database_url, pool_size=2)

    def down(plain: Connection) -> None:
        command.downgrade(database._alembic(plain), "base")

    async with engine.execution_options(isolation_level="READ COMMITTED").begin() as connection:
        await connection.run_sync(down)
    with pytest.raises(ConfigurationError, match="revision none"):
        await database.check_schema(engine)
    await database.migrate(engine)
    await database.check_schema(engine)
    await engine.dispose()


async def test_replicas_that_start_together_migrate_once(deployment: Deployment) -> None:
    await deployment.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    engine = database.create_engine(deployment.database_url, pool_size=10)
    revisions = await asyncio.gather(*(database.migrate(engine) for _ in range(4)))
    assert set(revisions) == {database.newest_revision()}
    await engine.dispose()


async def test_the_first_start_fixes_the_number_of_partitions(deployment: Deployment) -> None:
    engine = database.create_engine(deployment.database_url, pool_size=10)
    started = await asyncio.gather(*(database.fix_partitions(engine, 6, default=8) for _ in range(4)))
    assert started == [6] * 4
    assert await database.fix_partitions(engine, None, default=8) == 6
    with pytest.raises(PartitionCountMismatch):
        await database.fix_partitions(engine, 7, default=8)
    await engine.dispose()
