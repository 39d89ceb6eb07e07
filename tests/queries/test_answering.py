"""Answering queries: whatever happens to them, proposals go on, and their asker is told."""

import asyncio
import json
from dataclasses import replace
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from statewright import Client, NoAnswer, QueryFailed, QueryTooSlow, State
from statewright_worker.storage import database
from statewright_worker.storage.errors import NotWritable, StorageError, TooSlow
from statewright_worker.storage.reading import READING_CONNECTIONS, Reading
from statewright_worker.streams import queries
from tests.deployment import Deployment, until
from tests.relays import by_way_of, relay, way_to

FAR_TOO_LONG = "SELECT pg_sleep(60)"


@pytest.fixture
async def locked(deployment: Deployment) -> Any:
    """Lock a table that queries for leases read, and that no proposal without a lease does."""
    connection = await asyncpg.connect(deployment.database_url)
    try:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("LOCK TABLE lease IN ACCESS EXCLUSIVE MODE")
        yield
        await transaction.rollback()
    finally:
        await connection.close()


async def test_queries_that_get_nowhere_hold_no_proposal_up(deployment: Deployment, locked: None) -> None:
    async with deployment.worker(), deployment.client() as client:
        stuck = [asyncio.create_task(client.find_runs(leased=True)) for _ in range(4 * READING_CONNECTIONS)]
        run = await client.create_flow_run("nightly")
        verdict = await client.propose(run, State.running())
        assert verdict.accepted
        assert not any(query.done() for query in stuck[1 + READING_CONNECTIONS :])
        for query in stuck:
            with pytest.raises(QueryFailed, match="lock timeout"):
                await query
        # And those after them are answered.
        assert [found.id for found in (await client.find_runs()).runs] == [run.id]


async def test_what_takes_too_long_is_given_up_and_says_what_helps(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with deployment.worker(), deployment.client() as client:
        monkeypatch.setattr("statewright_worker.queries.find_runs._AS_USUAL", FAR_TOO_LONG)
        with pytest.raises(QueryTooSlow, match=r"statement timeout.*state_types without COMPLETED, tags"):
            await client.find_runs()


async def test_reading_writes_nothing_and_ends(deployment: Deployment) -> None:
    engine = database.create_engine(deployment.workers_database_url, pool_size=1, pooled_transactions=True)
    reading = Reading(engine)
    try:
        with pytest.raises(TooSlow):
            async with reading.moment() as driver:
                await driver.execute(FAR_TOO_LONG)
        with pytest.raises(StorageError) as refused:
            async with reading.moment() as driver:
                await driver.execute("DELETE FROM flow_run")
        assert not isinstance(refused.value, NotWritable | TooSlow)
        async with reading.moment() as driver:
            assert await driver.fetchval("SELECT count(*) FROM flow_run") == 0
    finally:
        await engine.dispose()


async def test_without_postgresql_queries_fail_and_workers_are_still_told(deployment: Deployment) -> None:
    async with relay(way_to(deployment.database_url)) as made:
        by_relay = replace(deployment, pooler_url=by_way_of(made.port, deployment.database_url))
        async with by_relay.worker(transaction_pooler=False), deployment.client() as client:
            assert (await client.find_runs()).runs == ()
            made.silent = True
            with pytest.raises((QueryFailed, QueryTooSlow)):
                await client.find_runs()
            [worker] = await client.list_workers()
            assert worker.partitions or not worker.seeks
            made.silent = False
            made.close()
            await until(lambda: answered(client))


async def answered(client: Client) -> bool:
    try:
        return (await client.find_runs()).next is None
    except (QueryFailed, QueryTooSlow):
        return False


async def test_idle_connections_that_broke_are_made_anew_unseen(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await asyncio.gather(*(client.find_runs() for _ in range(2 * READING_CONNECTIONS)))
        await deployment.end_sessions()
        for _ in range(2 * READING_CONNECTIONS):
            assert (await client.find_runs()).runs == ()


async def test_queries_go_on_when_redis_has_lost_everything(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.list_workers()
        await deployment.empty_redis()
        await until(lambda: answered_soon(deployment))


async def answered_soon(deployment: Deployment) -> bool:
    async with deployment.redis() as redis:
        if not await redis.get(deployment.channels.partitions):
            return False
    async with deployment.client(answer_timeout=2) as client:
        try:
            return bool(await client.list_workers())
        except NoAnswer:
            return False


async def test_what_a_dead_worker_has_taken_is_answered_by_another(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "CLAIM_MILLISECONDS", 1)
    monkeypatch.setattr(queries, "CLAIM_SECONDS", 0.1)
    key = deployment.channels.queries
    async with deployment.redis() as redis:
        await redis.set(deployment.channels.partitions, 8)
        async with deployment.client() as client:
            asking = asyncio.create_task(client.find_runs())
            await until(lambda: redis.xlen(key))
            await redis.xgroup_create(key, queries.GROUP, 0)
            assert await redis.xreadgroup(queries.GROUP, queries.MEMBER, {key: ">"})
            async with deployment.worker():
                assert (await asking).runs == ()
                await until(lambda: is_empty(redis, key))


async def is_empty(redis: Any, key: str) -> bool:
    return bool(await redis.xlen(key) == 0)


async def test_a_query_whose_asker_has_gone_is_dropped_unanswered(deployment: Deployment) -> None:
    key, request_id = deployment.channels.queries, str(uuid4())
    async with deployment.redis() as redis:
        message = json.dumps({"type": "find_runs", "seconds": 0.001, "limit": 1})
        await redis.xadd(key, {"id": request_id, "reply_to": "gone", "message": message}, id="1-1")
        async with deployment.worker():
            await until(lambda: is_empty(redis, key))
        assert not await redis.exists(deployment.channels.replies("gone"))


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"type": "find_runs", "seconds": 30}, "limit"),
        ({"type": "find_runs", "seconds": 30, "limit": 1, "colour": "red"}, "colour"),
        ({"type": "steal_runs", "seconds": 30}, "type"),
        ({"type": "list_workers", "seconds": 30, "v": 7}, "v"),
    ],
)
async def test_a_malformed_query_is_answered_with_what_is_wrong(
    deployment: Deployment, message: dict[str, Any], field: str
) -> None:
    key, replies = deployment.channels.queries, deployment.channels.replies("stranger")
    async with deployment.redis() as redis, deployment.worker():
        await redis.xadd(key, {"id": str(uuid4()), "reply_to": "stranger", "message": json.dumps(message)})
        await until(lambda: redis.exists(replies))
        [(_, answers)] = await redis.xrange(replies)
        [body] = answers.values()
        told = json.loads(body)
        assert (told["type"], told["code"], told["field"]) == ("error", "invalid_message", field)
        await until(lambda: is_empty(redis, key))
        # It has no effect, so that nobody needs its letter.
        assert not [key async for key in redis.scan_iter(match=f"*{deployment.namespace}*dead-letters")]


async def test_many_queries_at_once_are_all_answered(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.worker(), deployment.client() as client:
        answers = await asyncio.gather(*(client.list_partitions() for _ in range(200)))
    assert {len(partitions) for partitions in answers} == {8}
