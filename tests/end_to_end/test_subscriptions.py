"""A subscription that goes on from where it was: nothing is skipped in silence, and nothing that passes ends it."""

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from statewright import (
    Client,
    EraBegan,
    Event,
    EventsMissed,
    InvalidRequest,
    NoAnswer,
    RedisUnavailable,
    State,
    Subscription,
)
from statewright import subscription as subscribing
from statewright.connection import connection_pool
from statewright.events import AnyEvent
from statewright.protocol.channels import EVENT_BODY
from statewright.states import StateType
from tests.deployment import HANGS_SECONDS, Deployment, until
from tests.end_to_end.black_hole import black_hole
from tests.end_to_end.test_access import user_of, users
from tests.end_to_end.waiting import waiting
from tests.events import entered, era_began

NOW = datetime(2030, 1, 1, tzinfo=UTC)
MORE_THAN_A_PAGE = 260


async def drive(client: Client, changes: int) -> None:
    """Make so many changes of state in one tree."""
    run = client.create_flow_run("driven")
    states = [State.pending(), State.running()]
    verdicts = await asyncio.gather(*(client.propose(run, states[n % 2], force=True) for n in range(changes)))
    assert all(verdict.accepted for verdict in verdicts)


async def sequences(events: Subscription, count: int) -> list[int]:
    async with asyncio.timeout(HANGS_SECONDS):
        return [(await anext(events)).sequence for _ in range(count)]


async def missed(events: Subscription) -> tuple[int, int, int]:
    async with asyncio.timeout(HANGS_SECONDS):
        with pytest.raises(EventsMissed) as raised:
            await anext(events)
    return raised.value.partition, raised.value.first, raised.value.last


async def published(deployment: Deployment, redis: Redis, sequence: int) -> None:
    """Wait until partition 0 has told so many events."""

    async def told() -> bool:
        newest = await redis.xrevrange(deployment.channels.events(0), count=1)
        return bool(newest) and newest[0][0] == f"{sequence}-0".encode()

    await until(told)


async def tell(redis: Redis, deployment: Deployment, *told: AnyEvent) -> None:
    """Put entries into partition 0's stream, as its drain does."""
    for one in told:
        await redis.xadd(deployment.channels.events(0), {EVENT_BODY: one.model_dump_json()}, id=f"{one.sequence}-0")


def event(sequence: int, era: int = 0) -> Event:
    state_id = UUID(int=sequence)
    return entered(UUID(int=1), StateType.RUNNING, state_id=state_id, time=NOW, sequence=sequence, era=era)


# -- what Redis no longer keeps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [6, MORE_THAN_A_PAGE])
@pytest.mark.parametrize("kept", [0, 2])
async def test_what_the_stream_no_longer_has_comes_from_postgresql(
    deployment: Deployment, changes: int, kept: int
) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client, deployment.redis() as redis:
        await drive(client, changes)
        await published(deployment, redis, changes)
        if kept:
            await redis.xtrim(deployment.channels.events(0), maxlen=kept, approximate=False)
        else:
            await redis.delete(deployment.channels.events(0))
        events = await client.subscribe(since={0: 1})
        assert await sequences(events, changes - 1) == list(range(2, changes + 1))
        await drive(client, 3)
        assert await sequences(events, 3) == [changes + 1, changes + 2, changes + 3]
        assert events.positions == {0: changes + 3}


async def test_a_subscriber_that_is_too_slow_for_the_stream_misses_nothing(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client, deployment.redis() as redis:
        events = await client.subscribe()
        for last in (5, 10):
            await drive(client, 5)
            await published(deployment, redis, last)
            await redis.xtrim(deployment.channels.events(0), maxlen=1, approximate=False)
        assert await sequences(events, 10) == list(range(1, 11))


async def test_positions_that_were_json_are_taken(deployment: Deployment) -> None:
    async with deployment.worker(partitions=2), deployment.client() as client:
        events = await client.subscribe()
        await drive(client, 4)
        await sequences(events, 2)
        kept = json.loads(json.dumps(events.positions))
        again = await client.subscribe(since=kept)
        assert [str(partition) for partition in again.positions] == list(kept)
        assert await sequences(again, 2) == [3, 4]


async def test_a_partition_that_is_left_out_is_read_from_its_oldest_kept_event(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client, deployment.redis() as redis:
        await drive(client, 6)
        await published(deployment, redis, 6)
        await redis.xtrim(deployment.channels.events(0), maxlen=2, approximate=False)
        events = await client.subscribe(since={})
        assert events.positions == {0: 4}
        assert await sequences(events, 2) == [5, 6]


@pytest.mark.parametrize(
    ("since", "field"),
    [
        ({8: 0}, "since.8"),
        ({"8": 0}, "since.8"),
        ({-1: 0}, "since.-1"),
        ({"-1": 0}, "since.-1"),
        ({"one": 0}, "since.one"),
        ({"01": 0}, "since.01"),
        ({"1.0": 0}, "since.1.0"),
        ({1.0: 0}, "since.1.0"),
        ({True: 0}, "since.True"),
        ({None: 0}, "since.None"),
        ({0: 1, "0": 1}, "since.0"),
        ({0: -1}, "since.0"),
        ({0: 1.0}, "since.0"),
        ({0: "1"}, "since.0"),
        ({0: True}, "since.0"),
        ({0: None}, "since.0"),
        ({0: 2**63}, "since.0"),
        ([1, 2], "since"),
        (17, "since"),
    ],
)
async def test_a_position_that_names_no_partition_or_no_event_is_refused(
    deployment: Deployment, since: Any, field: str
) -> None:
    async with deployment.redis() as redis:
        await redis.set(deployment.channels.partitions, 8)
    async with deployment.client() as client:
        with pytest.raises(InvalidRequest) as refused:
            await client.subscribe(since=since)
    assert refused.value.field == field


# -- what nobody has any more ------------------------------------------------------------------------------------------


async def test_events_that_no_longer_exist_are_missed_by_their_numbers(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client, deployment.redis() as redis:
        await drive(client, 9)
        await published(deployment, redis, 9)
        await deployment.execute("DELETE FROM flow_run_state WHERE sequence IN (2, 3, 5)")
        await redis.xtrim(deployment.channels.events(0), maxlen=2, approximate=False)
        events = await client.subscribe(since={0: 1})
        assert await missed(events) == (0, 2, 3)
        assert events.positions == {0: 3}
        assert await sequences(events, 1) == [4]
        assert await missed(events) == (0, 5, 5)
        assert await sequences(events, 4) == [6, 7, 8, 9]


async def test_without_an_answer_the_position_stays_and_it_can_be_asked_again(deployment: Deployment) -> None:
    async with deployment.redis() as redis:
        await redis.set(deployment.channels.partitions, 1)
        await tell(redis, deployment, event(6), event(7))
        async with deployment.client() as client:
            with waiting(client, 0.2):
                events = await client.subscribe(since={0: 2})
                for _ in range(2):
                    with pytest.raises(NoAnswer):
                        await anext(events)
                    assert events.positions == {0: 2}


async def test_a_position_ahead_of_a_database_that_went_back_is_told(deployment: Deployment) -> None:
    """Redis is empty as well, so that nothing else tells of it."""
    async with deployment.worker(partitions=1), deployment.client() as client:
        events = await client.subscribe(since={0: 5_000})
        run = await client.create_flow_run("one")
        assert (await client.propose(run, State.pending())).accepted
        with pytest.raises(EventsMissed):
            await anext(events)
        assert events.positions[0] <= 1
        assert (await client.propose(run, State.running())).accepted
        told = [(await anext(events)).type]
        if told == ["statewright.flow-run.Pending"]:
            told = [(await anext(events)).type]
        assert told == ["statewright.flow-run.Running"]


async def test_a_subscriber_that_may_not_ask_misses_the_gap_and_goes_on(deployment: Deployment) -> None:
    async with users(deployment) as urls, deployment.redis() as redis:
        await redis.set(deployment.channels.partitions, 2)
        await tell(redis, deployment, event(6), event(7))
        async with Client(urls["subscriber"], namespace=deployment.namespace, answer_timeout=HANGS_SECONDS) as client:
            with waiting(client, 1):
                events = await client.subscribe(since={0: 2, 1: 0})
            assert await missed(events) == (0, 3, 5)
            assert await sequences(events, 2) == [6, 7]


async def test_a_member_may_ask_for_events_but_not_write_any(deployment: Deployment) -> None:
    async with users(deployment) as urls, deployment.redis() as redis:
        if "member" not in urls:
            pytest.skip("Redis grants to read some keys and to write others from version 7 on")
        async with (
            deployment.worker(partitions=1),
            deployment.client() as producer,
            Client(urls["member"], namespace=deployment.namespace) as client,
        ):
            await drive(producer, 6)
            await published(deployment, redis, 6)
            await redis.xtrim(deployment.channels.events(0), maxlen=2, approximate=False)
            events = await client.subscribe(since={0: 1})
            assert await sequences(events, 5) == [2, 3, 4, 5, 6]
        member = Redis(connection_pool=connection_pool(urls["member"]))
        with pytest.raises(NoPermissionError):
            await member.xadd(deployment.channels.events(0), {"a": "b"})
        await member.aclose(close_connection_pool=True)


# -- eras --------------------------------------------------------------------------------------------------------------


async def test_an_era_is_told_once_and_what_follows_goes_on(deployment: Deployment) -> None:
    era = era_began(6, 1, went_back_to=3, time=NOW)
    async with deployment.redis() as redis:
        await redis.set(deployment.channels.partitions, 1)
        await tell(redis, deployment, event(4), event(5), era, event(7, era=1))
        async with deployment.client() as client:
            events = await client.subscribe(since={0: 4})
            assert await sequences(events, 1) == [5]
            with pytest.raises(EraBegan, match="went back in time") as began:
                await anext(events)
            assert events.positions == {0: 6}
            assert await sequences(events, 1) == [7]
    told = began.value
    assert (told.partition, told.sequence, told.era, told.went_back_to, told.undone_up_to) == (0, 6, 1, 3, 5)


async def test_events_that_an_era_has_undone_are_not_missed(deployment: Deployment) -> None:
    era = era_began(6, 1, went_back_to=3, time=NOW)
    async with deployment.redis() as redis:
        await redis.set(deployment.channels.partitions, 1)
        await tell(redis, deployment, era, event(7, era=1))
        async with deployment.client() as client:
            events = await client.subscribe(since={0: 4})
            with pytest.raises(EraBegan):
                await anext(events)
            assert await sequences(events, 1) == [7]


# -- what passes -------------------------------------------------------------------------------------------------------


async def blocked(redis: Redis, user: str) -> list[int]:
    """Return the connections of a user that wait for entries."""
    lines: str = (await redis.execute_command("CLIENT", "LIST")).decode()  # type: ignore[no-untyped-call]
    clients = [dict(part.partition("=")[::2] for part in line.split()) for line in lines.splitlines()]
    return [int(one["id"]) for one in clients if one["user"] == user and one["cmd"] == "xread" and "b" in one["flags"]]


async def until_blocked(redis: Redis, user: str) -> int:
    """Wait until the user's subscription waits for events; return its connection."""
    await until(lambda: blocked(redis, user))
    [connection] = await blocked(redis, user)
    return connection


async def refuse(redis: Redis, commands: Sequence[Any]) -> None:
    assert await redis.execute_command(*commands)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("how", ["UNBLOCKED", "NOPERM", "cut"])
async def test_what_passes_ends_no_subscription(deployment: Deployment, how: str) -> None:
    async with users(deployment) as urls, deployment.redis() as redis:
        await redis.set(deployment.channels.partitions, 1)
        user = user_of(urls["subscriber"])
        async with Client(urls["subscriber"], namespace=deployment.namespace, answer_timeout=HANGS_SECONDS) as client:
            events = await client.subscribe()
            waits = asyncio.create_task(sequences(events, 1))
            connection = await until_blocked(redis, user)
            if how == "UNBLOCKED":
                await refuse(redis, ("CLIENT", "UNBLOCK", connection, "ERROR"))
            elif how == "cut":
                await refuse(redis, ("CLIENT", "KILL", "ID", connection))
            else:
                await refuse(redis, ("ACL", "SETUSER", user, "-xread"))
                await refuse(redis, ("CLIENT", "UNBLOCK", connection))
                await until(lambda: refusals(redis, user))
                await refuse(redis, ("ACL", "SETUSER", user, "+xread"))
            await until_blocked(redis, user)
            await tell(redis, deployment, event(1))
            assert await waits == [1]


async def refusals(redis: Redis, user: str) -> list[Any]:
    """Return what the user was refused."""
    log: list[Any] = await redis.execute_command("ACL", "LOG")  # type: ignore[no-untyped-call]
    return [entry for entry in log if user.encode() in _flat(entry)]


def _flat(entry: Any) -> list[Any]:
    return [*entry, *entry.values()] if isinstance(entry, dict) else list(entry)


async def test_a_refusal_that_does_not_pass_is_told_and_iterating_can_go_on(deployment: Deployment) -> None:
    async with users(deployment) as urls, deployment.redis() as redis:
        await redis.set(deployment.channels.partitions, 1)
        user = user_of(urls["subscriber"])
        async with Client(urls["subscriber"], namespace=deployment.namespace, answer_timeout=HANGS_SECONDS) as client:
            with waiting(client, 0.3):
                events = await client.subscribe()
            await refuse(redis, ("ACL", "SETUSER", user, "-xread"))
            with pytest.raises(RedisUnavailable, match="refuses to tell events"):
                await anext(events)
            await refuse(redis, ("ACL", "SETUSER", user, "+xread"))
            await tell(redis, deployment, event(1))
            assert await sequences(events, 1) == [1]


async def test_a_connection_that_dies_in_silence_is_noticed(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribing, "BLOCK_MILLISECONDS", 100)
    monkeypatch.setattr(subscribing, "READ_SECONDS", 0.3)
    async with black_hole(deployment.redis_url) as hole, deployment.redis() as redis:
        await redis.set(deployment.channels.partitions, 1)
        async with Client(hole.url, namespace=deployment.namespace) as client:
            events = await client.subscribe()
            waits = asyncio.create_task(sequences(events, 1))
            hole.swallow()
            await tell(redis, deployment, event(1))
            hole.reopen()
            assert await waits == [1]


async def test_whoever_stops_waiting_loses_nothing(deployment: Deployment) -> None:
    async with deployment.redis() as redis:
        await redis.set(deployment.channels.partitions, 1)
        async with deployment.client() as client:
            events = await client.subscribe()
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(events), 0.05)
            await tell(redis, deployment, event(1), event(2))
            assert sorted(await asyncio.gather(sequences(events, 1), sequences(events, 1))) == [[1], [2]]
            await events.close()
            await tell(redis, deployment, event(3))
            assert await sequences(events, 1) == [3]
