"""The schema: migrations equal the models, run once however many start them, and survive going down and up."""

import asyncio

import pytest
from alembic import command
from sqlalchemy import Connection

from statewright import ConfigurationError, PartitionCountMismatch, State
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


async def test_limits_and_their_slots_are_carried_over_to_limits_with_a_scope(deployment: Deployment) -> None:
    await deployment.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    engine = database.create_engine(deployment.database_url, pool_size=2)
    async with engine.execution_options(isolation_level="READ COMMITTED").begin() as connection:
        await connection.run_sync(lambda plain: command.upgrade(database._alembic(plain), "0002"))
    await deployment.execute(
        """
        INSERT INTO task_run (id, name, created, tags, policy)
            SELECT gen_random_uuid(), n::text, now(), '["database"]', '{}' FROM generate_series(1, 3) AS n;
        INSERT INTO concurrency_limit (tag, concurrency_limit) VALUES ('database', 3), ('unused', 0);
        INSERT INTO concurrency_slot (limit_id, run_id, taken)
            SELECT concurrency_limit.id, task_run.id, '2030-01-01Z' FROM concurrency_limit, task_run
            WHERE tag = 'database';
        """
    )
    held = await deployment.fetch("SELECT limit_id, run_id, taken FROM concurrency_slot ORDER BY run_id")
    limits = await deployment.fetch("SELECT id, tag, concurrency_limit FROM concurrency_limit ORDER BY id")
    await database.migrate(engine)
    carried = await deployment.fetch("SELECT id, scope, key, concurrency_limit FROM concurrency_limit ORDER BY id")
    assert [tuple(row) for row in carried] == [(row["id"], "tag", row["tag"], row[2]) for row in limits]
    assert await deployment.fetch("SELECT limit_id, run_id, taken FROM concurrency_slot ORDER BY run_id") == held
    # They are used as before: a full limit is full, and what is deleted gives its slot back.
    async with deployment.worker(), deployment.client() as client:
        run = await client.create_task_run("load", tags=["database"])
        assert (await client.propose(run, State.running())).status == "WAIT"
        await deployment.execute(f"DELETE FROM task_run WHERE id = '{held[0]['run_id']}'")
        assert (await client.propose(run, State.running())).accepted
    await engine.dispose()


async def test_a_deleted_run_of_either_kind_frees_its_slots(deployment: Deployment) -> None:
    await deployment.execute(
        """
        INSERT INTO concurrency_limit (scope, key, concurrency_limit) VALUES ('tag', 'a', 9), ('tag', 'b', 9);
        INSERT INTO task_run (id, name, created, tags, policy)
            SELECT gen_random_uuid(), n::text, now(), '[]', '{}' FROM generate_series(1, 4) AS n;
        INSERT INTO flow_run (id, name, created, tags, policy)
            SELECT gen_random_uuid(), n::text, now(), '[]', '{}' FROM generate_series(1, 4) AS n;
        INSERT INTO concurrency_slot (limit_id, run_id, taken)
            SELECT concurrency_limit.id, run.id, now() FROM concurrency_limit,
                (SELECT id FROM task_run UNION ALL SELECT id FROM flow_run) AS run;
        DELETE FROM task_run WHERE name IN ('1', '2', '3');
        DELETE FROM flow_run WHERE name = '1';
        """
    )
    left = await deployment.fetch(
        """
        SELECT run.name, count(*) FROM concurrency_slot
        JOIN (SELECT id, 't' || name AS name FROM task_run UNION ALL SELECT id, 'f' || name FROM flow_run) AS run
            ON run.id = run_id
        GROUP BY run.name ORDER BY run.name
        """
    )
    assert [tuple(row) for row in left] == [("f2", 2), ("f3", 2), ("f4", 2), ("t4", 2)]
    assert await deployment.fetch("SELECT count(*) FROM concurrency_slot") == [(8,)]
    # Whatever the schema and the rights of whoever deletes.
    await deployment.execute("SET search_path = pg_catalog; DELETE FROM public.task_run")
    assert await deployment.fetch("SELECT count(*) FROM concurrency_slot") == [(6,)]
    await deployment.execute("TRUNCATE flow_run CASCADE")
    assert await deployment.fetch("SELECT count(*) FROM concurrency_slot") == [(0,)]


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
