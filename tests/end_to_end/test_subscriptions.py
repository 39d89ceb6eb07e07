"""A subscription that goes on from where it was: nothing is skipped in silence, and nothing that passes ends it."""

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import pendulum
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
    NotOpen,
    RedisUnavailable,
    State,
    Subscription,
)
from statewright import connection as connecting
from statewright.connection import connection_pool
from statewright.events import AnyEvent
from statewright.ids import IdSource, partition_of
from statewright.protocol.channels import EVENT_BODY
from statewright.states import StateType
from statewright.subscription import stream, unnamed
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
        async with client.subscribe(since={0: 1}) as events:
            assert await sequences(events, changes - 1) == list(range(2, changes + 1))
            await drive(client, 3)
            assert await sequences(events, 3) == [changes + 1, changes + 2, changes + 3]
            assert events.positions == {0: changes + 3}


async def test_a_subscriber_that_is_too_slow_for_the_stream_misses_nothing(deployment: Deployment) -> None:
    async with (
        deployment.worker(partitions=1),
        deployment.client() as client,
        deployment.redis() as redis,
        client.subscribe() as events,
    ):
        for last in (5, 10):
            await drive(client, 5)
            await published(deployment, redis, last)
            await redis.xtrim(deployment.channels.events(0), maxlen=1, approximate=False)
        assert await sequences(events, 10) == list(range(1, 11))


async def test_positions_that_were_json_are_taken(deployment: Deployment) -> None:
    async with deployment.worker(partitions=2), deployment.client() as client, client.subscribe() as events:
        await drive(client, 4)
        await sequences(events, 2)
        kept = json.loads(json.dumps(events.positions))
        async with client.subscribe(since=kept) as again:
            assert [str(partition) for partition in again.positions] == list(kept)
            assert await sequences(again, 2) == [3, 4]


async def test_a_partition_that_is_left_out_is_read_from_its_oldest_kept_event(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client, deployment.redis() as redis:
        await drive(client, 6)
        await published(deployment, redis, 6)
        await redis.xtrim(deployment.channels.events(0), maxlen=2, approximate=False)
        async with client.subscribe(since={}) as events:
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
            client.subscribe(since=since)
    assert refused.value.field == field


# -- what nobody has any more ------------------------------------------------------------------------------------------


async def test_events_that_no_longer_exist_are_missed_by_their_numbers(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client, deployment.redis() as redis:
        await drive(client, 9)
        await published(deployment, redis, 9)
        await deployment.execute("DELETE FROM flow_run_state WHERE sequence IN (2, 3, 5)")
        await redis.xtrim(deployment.channels.events(0), maxlen=2, approximate=False)
        async with client.subscribe(since={0: 1}) as events:
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
                async with client.subscribe(since={0: 2}) as events:
                    for _ in range(2):
                        with pytest.raises(NoAnswer):
                            await anext(events)
                        assert events.positions == {0: 2}


async def test_a_position_ahead_of_a_database_that_went_back_is_told(deployment: Deployment) -> None:
    """Redis is empty as well, so that nothing else tells of it."""
    async with (
        deployment.worker(partitions=1),
        deployment.client() as client,
        client.subscribe(since={0: 5_000}) as events,
    ):
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
                subscription = client.subscribe(since={0: 2, 1: 0})
            async with subscription as events:
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
            async with client.subscribe(since={0: 1}) as events:
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
        async with deployment.client() as client, client.subscribe(since={0: 4}) as events:
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
        async with deployment.client() as client, client.subscribe(since={0: 4}) as events:
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
async def test_what_passes_ends_no_subscription(
    deployment: Deployment, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine, a right may be missing for longer than a moment.
    monkeypatch.setattr(connecting, "RIGHTS_SECONDS", HANGS_SECONDS)
    async with users(deployment) as urls, deployment.redis() as redis:
        await redis.set(deployment.channels.partitions, 1)
        user = user_of(urls["subscriber"])
        async with (
            Client(urls["subscriber"], namespace=deployment.namespace, answer_timeout=HANGS_SECONDS) as client,
            client.subscribe() as events,
        ):
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
                subscription = client.subscribe()
            async with subscription as events:
                await refuse(redis, ("ACL", "SETUSER", user, "-xread"))
                with pytest.raises(RedisUnavailable, match="refuses to tell events"):
                    await anext(events)
                await refuse(redis, ("ACL", "SETUSER", user, "+xread"))
                await tell(redis, deployment, event(1))
                assert await sequences(events, 1) == [1]


async def test_a_connection_that_dies_in_silence_is_noticed(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unnamed, "BLOCK_MILLISECONDS", 100)
    monkeypatch.setattr(stream, "EXCHANGE_SECONDS", 0.2)
    async with black_hole(deployment.redis_url) as hole, deployment.redis() as redis:
        await redis.set(deployment.channels.partitions, 1)
        async with Client(hole.url, namespace=deployment.namespace) as client, client.subscribe() as events:
            waits = asyncio.create_task(sequences(events, 1))
            hole.swallow()
            await tell(redis, deployment, event(1))
            hole.reopen()
            assert await waits == [1]


async def test_whoever_stops_waiting_loses_nothing(deployment: Deployment) -> None:
    async with deployment.redis() as redis:
        await redis.set(deployment.channels.partitions, 1)
        async with deployment.client() as client, client.subscribe() as events:
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(events), 0.05)
            await tell(redis, deployment, event(1), event(2))
            assert sorted(await asyncio.gather(sequences(events, 1), sequences(events, 1))) == [[1], [2]]
            await tell(redis, deployment, event(3))
        with pytest.raises(NotOpen):
            await anext(events)
        async with deployment.client() as client, client.subscribe(since=events.positions) as events:
            assert await sequences(events, 1) == [3]


async def test_a_subscription_is_read_within_its_block_and_entered_once(deployment: Deployment) -> None:
    async with deployment.redis() as redis:
        await redis.set(deployment.channels.partitions, 1)
    async with deployment.client() as client:
        events = client.subscribe()
        with pytest.raises(NotOpen):
            await anext(events)
        async with events:
            pass
        with pytest.raises(NotOpen):
            async with events:
                pass


# -- from a moment on ------------------------------------------------------------------------------------------------


async def test_a_subscription_begins_at_a_moment_or_at_the_beginning(deployment: Deployment) -> None:
    async with deployment.worker(partitions=2), deployment.client() as client, deployment.redis() as redis:
        for number in range(6):
            await client.create_flow_run(f"early {number}", state=State.pending())
        between = datetime.now(UTC)
        for number in range(6):
            await client.create_flow_run(f"late {number}", state=State.pending())
        # From PostgreSQL alone.
        await redis.delete(*(deployment.channels.events(partition) for partition in range(2)))
        cases: list[tuple[Any, int]] = [(between, 6), ("beginning", 12), (pendulum.instance(between), 6)]
        for since, number in cases:
            async with client.subscribe(since=since) as events:
                names = {(await anext(events)).data.resource.name for _ in range(number)}
            assert len(names) == number
            assert number == 12 or all(name.startswith("late") for name in names)
        async with client.subscribe(since=datetime.now(UTC)) as events, client.subscribe() as now:
            assert events.positions == now.positions or sum(events.positions.values()) == 12


async def test_the_beginning_is_the_first_event_that_still_exists(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client, deployment.redis() as redis:
        await drive(client, 9)
        await deployment.execute("DELETE FROM flow_run_state WHERE sequence <= 4")
        await redis.delete(deployment.channels.events(0))
        async with client.subscribe(since="beginning") as events:
            assert events.positions == {0: 4}
            assert await sequences(events, 5) == [5, 6, 7, 8, 9]


async def test_a_moment_is_found_among_partitions_that_were_busy_or_quiet(deployment: Deployment) -> None:
    """By the history of 20,000 changes, of which partition 1 has two: what one costs does not depend on the other."""
    async with deployment.worker(partitions=2), deployment.client() as client:
        ids = IdSource(clock=iter(range(1_000_000_000, 1_000_020_001)).__next__)
        rows = [(ids.new(), 0 if number else 1, number) for number in range(20_000)]
        connection = await asyncpg.connect(deployment.database_url)
        await connection.execute(
            "INSERT INTO flow_run (id, name, created, tags, policy) VALUES ($1, 'f', now(), '[]', '{}')", UUID(int=0)
        )
        await connection.executemany(
            "INSERT INTO flow_run_state (id, run_id, ordinal, type, name, timestamp, state_details, run_count,"
            " partition, sequence) VALUES ($1, $2, $4, 'RUNNING', 'Running', now(), '{}', 0, $3, $5)",
            [(state_id, UUID(int=0), partition, number, max(number, 1)) for state_id, partition, number in rows],
        )
        await connection.execute("UPDATE partition SET sequence = CASE id WHEN 0 THEN 19999 ELSE 1 END")
        await connection.close()
        for second, expected in (
            (0, {0: 0, 1: 0}),
            (1, {0: 0, 1: 1}),
            (12_345, {0: 12_344, 1: 1}),
            (30_000, {0: 19_999, 1: 1}),
        ):
            moment = datetime.fromtimestamp(1_000_000_000 + second, UTC)
            async with client.subscribe(since=moment) as events:
                assert events.positions == expected, second


@pytest.mark.parametrize("since", [NOW.replace(tzinfo=None), "yesterday", 1.5, {"0": "1"}])
async def test_what_is_no_moment_is_refused(deployment: Deployment, since: Any) -> None:
    async with deployment.redis() as redis:
        await redis.set(deployment.channels.partitions, 1)
    async with deployment.client() as client:
        with pytest.raises(InvalidRequest, match="since"):
            client.subscribe(since=since)


# -- filters -----------------------------------------------------------------------------------------------------------


async def test_only_what_fits_the_filter_is_told_and_positions_pass_over_the_rest(deployment: Deployment) -> None:
    async with deployment.worker(partitions=4), deployment.client() as client:
        flow_run = await client.create_flow_run("flow", tags=["nightly"])
        tasks = [await client.create_task_run(name, flow_run=flow_run, tags=["etl"]) for name in ("one", "two")]
        other = await client.create_task_run("other", tags=["etl"])
        subscriptions = {
            "kinds": client.subscribe(since={}, kinds="flow-run"),
            "run": client.subscribe(since={}, run=tasks[0]),
            "tree": client.subscribe(since={}, tree=flow_run),
            "state_types": client.subscribe(since={}, state_types=["COMPLETED", "FAILED"]),
            "state_names": client.subscribe(since={}, state_names="Late"),
            "tags": client.subscribe(since={}, tags=["etl", "unheard of"]),
            "both": client.subscribe(since={}, tags="etl", state_types="RUNNING"),
        }
        for run in (flow_run, *tasks, other):
            await client.propose(run, State.running())
        await client.propose(tasks[1], State.completed())
        await client.propose(other, State.scheduled(name="Late"), force=True)
        last = await client.create_task_run("last", tags=["etl"], state=State.running())
        told: dict[str, list[str]] = {}
        for name, subscription in subscriptions.items():
            told[name] = []
            async with subscription as events:
                with suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        async for event in events:
                            told[name].append(f"{event.data.resource.name} {event.data.resource.state_name}")
                read = {"run", "tree"} & {name}
                expected = {partition_of(flow_run.id, 4)} if read else set(range(4))
                assert events.positions.keys() == expected
                if partition_of(last.id, 4) in expected:
                    newest = await deployment.fetch(
                        "SELECT sequence FROM partition WHERE id = $1", partition_of(last.id, 4)
                    )
                    assert events.positions[partition_of(last.id, 4)] == newest[0]["sequence"]
        everything = sorted(
            [
                "flow Running",
                "one Running",
                "two Running",
                "two Completed",
                "other Running",
                "other Late",
                "last Running",
            ]
        )
        assert sorted(told["kinds"]) == ["flow Running"]
        assert told["run"] == ["one Running"]
        assert told["tree"] == ["flow Running", "one Running", "two Running", "two Completed"]
        assert told["state_types"] == ["two Completed"]
        assert told["state_names"] == ["other Late"]
        assert sorted(told["tags"]) == sorted(set(everything) - {"flow Running"})
        assert sorted(told["both"]) == ["last Running", "one Running", "other Running", "two Running"]


# -- both servers back in time -----------------------------------------------------------------------------------------


async def test_a_live_subscriber_hears_when_the_database_went_back_and_redis_was_emptied_at_once(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No stream tells of it, and the next events have numbers that the subscriber has passed."""
    monkeypatch.setattr(stream, "QUIET_SECONDS", 0.2)
    monkeypatch.setattr(unnamed, "BLOCK_MILLISECONDS", 100)
    async with deployment.redis() as redis:
        await redis.set(deployment.channels.partitions, 1)
        async with deployment.client() as client, client.subscribe() as events:
            async with deployment.worker(partitions=1):
                await drive(client, 9)
                assert await sequences(events, 9) == list(range(1, 10))
            await deployment.execute("DELETE FROM flow_run_state WHERE sequence > 4; UPDATE partition SET sequence = 4")
            await redis.delete(deployment.channels.events(0))
            async with deployment.worker():
                assert await missed(events) == (0, 5, 9)
                assert events.positions == {0: 4}
                await drive(client, 1)
                assert await sequences(events, 1) == [5]
