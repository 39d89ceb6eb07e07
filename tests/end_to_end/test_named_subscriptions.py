"""Named subscriptions: positions that last, members that share the work, deliveries that fail."""

import asyncio
import re
from collections import Counter, defaultdict
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest

from statewright import (
    Client,
    Event,
    InvalidRequest,
    MemberReplaced,
    NamedSubscription,
    NotOpen,
    State,
    SubscriptionConflict,
    SubscriptionNotFound,
)
from tests.deployment import HANGS_SECONDS, Deployment, until


async def drive(client: Client, runs: int, changes: int = 3, **made: Any) -> list[UUID]:
    """Let so many runs, each a tree of its own, change so often; return them."""
    created = [client.create_flow_run(**{"name": f"run {number}", **made}) for number in range(runs)]
    states = [State.pending(), State.running(), State.completed()]
    proposed = [client.propose(run, states[n % 3], force=True) for run in created for n in range(changes)]
    assert all(verdict.accepted for verdict in await asyncio.gather(*proposed))
    return [run.run_id for run in created]


async def take(events: NamedSubscription, number: int) -> list[Event]:
    """Return the next events, none of which is acknowledged."""
    async with asyncio.timeout(HANGS_SECONDS):
        return [await anext(events) for _ in range(number)]


async def handled(events: NamedSubscription, number: int) -> list[Event]:
    taken = []
    async with asyncio.timeout(HANGS_SECONDS):
        for _ in range(number):
            taken.append(await anext(events))
            await events.acknowledge(taken[-1])
    return taken


async def nothing_more(events: NamedSubscription, seconds: float = 0.5) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(events), seconds)


def places(events: list[Event]) -> list[tuple[int, int]]:
    return sorted((event.partition, event.sequence) for event in events)


async def test_what_was_acknowledged_is_not_delivered_again_and_everything_else_is(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        async with client.subscribe("billing") as events:
            await drive(client, 10)
            first = await handled(events, 12)
            in_hand = await take(events, 5)
        async with client.subscribe("billing") as events:
            again = await handled(events, 18)
            await nothing_more(events)
        assert set(places(in_hand)) <= set(places(again))
        assert len({*places(first), *places(again)}) == 30
        told = await client.read_subscription("billing")
        assert told is not None
        assert (told.lag, told.member_count, told.max_tries) == (0, 0, 5)


async def test_events_of_a_run_come_in_order(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client, client.subscribe("ordered") as events:
        await drive(client, 20)
        by_run = defaultdict(list)
        for event in await handled(events, 60):
            by_run[event.data.resource.id].append(event.data.resource.state_name)
        assert all(names == ["Pending", "Running", "Completed"] for names in by_run.values())


async def test_three_members_share_the_events(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client, AsyncExitStack() as stack:
        members = [await stack.enter_async_context(client.subscribe("shared", member=name)) for name in "abc"]

        async def even() -> bool:
            return sorted(len(member.shares) for member in members) == [21, 21, 22]

        await until(even)
        counted: Counter[str] = Counter()
        handled_by: dict[UUID, set[str]] = defaultdict(set)

        async def work(events: NamedSubscription) -> None:
            async for event in events:
                counted[events.member] += 1
                handled_by[event.data.resource.id].add(events.member)
                await events.acknowledge(event)

        working = [asyncio.create_task(work(member)) for member in members]
        await drive(client, 300)

        async def done() -> bool:
            return counted.total() == 900

        await until(done)
        for task in working:
            task.cancel()
        assert all(len(names) == 1 for names in handled_by.values())
        assert max(counted.values()) < 1.5 * min(counted.values())
        told = await client.read_subscription("shared")
        assert told is not None
        assert sorted((member.name, member.shares) for member in told.members) == [
            (member.member, len(member.shares)) for member in members
        ]


async def test_the_shares_of_a_member_that_leaves_go_to_the_others(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client, client.subscribe("left") as stays:
        async with client.subscribe("left") as leaves:

            async def shared() -> bool:
                return len(stays.shares) == len(leaves.shares) == 32

            await until(shared)
            await drive(client, 10)

        async def alone() -> bool:
            return len(stays.shares) == 64

        await until(alone)
        assert len(await handled(stays, 30)) == 30


async def test_a_member_at_rest_gives_word_every_three_seconds_until_it_has_something_in_hand(
    deployment: Deployment,
) -> None:
    async def heard() -> tuple[datetime, float]:
        [row] = await deployment.fetch("SELECT seen, seconds FROM subscription_member")
        return row["seen"], row["seconds"]

    async with deployment.worker(), deployment.client() as client, client.subscribe("resting") as events:
        reading = asyncio.ensure_future(anext(events))
        words: list[datetime] = []

        async def has_rested() -> bool:
            seen, seconds = await heard()
            if seconds == 7 and seen not in words:
                words.append(seen)
            return len(words) == 4

        await until(has_rested)
        # The first rest may be shorter, so that members of a machine rest together.
        assert all(later - sooner > timedelta(seconds=2) for sooner, later in pairwise(words[1:]))
        assert len(events.shares) == 64

        await drive(client, 1, changes=1)
        event = await asyncio.wait_for(reading, HANGS_SECONDS)
        in_hand = [datetime.now(UTC)]

        async def is_awake() -> bool:
            seen, seconds = await heard()
            if seconds == 3 and seen > in_hand[-1]:
                in_hand.append(seen)
            return len(in_hand) == 4

        await until(is_awake)
        assert all(later - sooner < timedelta(seconds=2) for sooner, later in pairwise(in_hand))
        await events.acknowledge(event)

        async def is_done() -> bool:
            told = await client.read_subscription("resting")
            return told is not None and told.lag == 0 and (await heard())[1] == 7

        await until(is_done)


async def test_another_filter_under_a_name_is_refused(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        async with client.subscribe("filtered", state_types=["FAILED", "CRASHED"], tags="etl"):
            pass
        async with client.subscribe("filtered", state_types=("CRASHED", "FAILED"), tags=["etl"]):
            pass
        for other, field in (
            ({}, "filter"),
            ({"tags": "etl"}, "filter"),
            ({"state_types": ["FAILED", "CRASHED"], "tags": "etl", "max_tries": 2}, "max_tries"),
        ):
            with pytest.raises(SubscriptionConflict, match="'filtered' exists with") as refused:
                async with client.subscribe("filtered", **other):
                    pass
            assert refused.value.field == field


async def test_positions_pass_over_what_the_filter_does_not_let_through(deployment: Deployment) -> None:
    async with (
        deployment.worker(),
        deployment.client() as client,
        client.subscribe("failures", state_names="Completed") as events,
    ):
        await drive(client, 10)
        assert {event.data.resource.state_name for event in await handled(events, 10)} == {"Completed"}
        await drive(client, 10, changes=2)

        async def caught_up() -> bool:
            reading = asyncio.ensure_future(anext(events))
            await asyncio.wait({reading}, timeout=0.1)
            assert not reading.done()
            reading.cancel()
            told = await client.read_subscription("failures")
            return told is not None and told.lag == 0

        await until(caught_up)


async def test_what_fails_is_tried_again_and_then_goes_to_the_dead_letters(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client:
        async with client.subscribe("tries", max_tries=2) as events:
            await drive(client, 1)
            [pending] = await take(events, 1)
            assert await events.refuse(pending, ValueError("no such customer"))
            # What comes behind it waits.
            [again] = await take(events, 1)
            assert again == pending
            assert await events.refuse(again, ValueError("still none"))
            rest = await handled(events, 2)
            assert [event.data.resource.state_name for event in rest] == ["Running", "Completed"]
            await events.flush()
        told = await client.read_subscription("tries")
        assert told is not None
        [letter] = told.dead_letters
        assert (letter.event_id, letter.tries, letter.error) == (pending.id, 2, "ValueError: still none")
        assert (told.dead_letter_count, told.lag) == (1, 0)


async def test_dead_letters_are_delivered_again_or_dropped(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client:
        async with client.subscribe("again", max_tries=1) as events:
            await drive(client, 3, changes=1)
            dead = await take(events, 3)
            for event in dead:
                await events.refuse(event, "not today")
            await events.flush()

            async def stored() -> bool:
                told = await client.read_subscription("again")
                return told is not None and told.dead_letter_count == 3

            await until(stored)
            assert await client.drop_dead_letters("again", [dead[0].id]) == 1
            assert await client.retry_dead_letters("again") == 2
            retried = await take(events, 2)
            assert places(retried) == places(dead[1:])
            await events.acknowledge(retried[0])
            await events.refuse(retried[1], "not tomorrow either")
            await events.flush()
            await drive(client, 1, changes=1)
            await handled(events, 1)
            await nothing_more(events)
        told = await client.read_subscription("again")
        assert told is not None
        assert [(letter.event_id, letter.error, letter.again) for letter in told.dead_letters] == [
            (retried[1].id, "not tomorrow either", False)
        ]


async def test_a_subscription_that_is_removed_tells_its_members(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        async with client.subscribe("removed") as events:
            assert [told.name for told in await client.list_subscriptions()] == ["removed"]
            assert (await client.remove_subscription("removed")) is not None
            with pytest.raises(SubscriptionNotFound):
                await asyncio.wait_for(anext(events), HANGS_SECONDS)
        assert await client.remove_subscription("removed") is None
        assert await client.read_subscription("removed") is None
        assert await client.list_subscriptions() == []
        with pytest.raises(SubscriptionNotFound):
            await client.retry_dead_letters("removed")


async def test_a_subscription_that_is_reset_goes_on_there(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client, client.subscribe("reset") as events:
        await drive(client, 2)
        assert len(await handled(events, 6)) == 6
        await events.flush()
        assert (await client.reset_subscription("reset", {0: 4})).lag == 2
        assert sorted(event.sequence for event in await handled(events, 2)) == [5, 6]
        assert (await client.reset_subscription("reset", "beginning")).lag == 6
        assert sorted(event.sequence for event in await handled(events, 6)) == [1, 2, 3, 4, 5, 6]
        await nothing_more(events)


async def test_a_process_that_joins_under_a_members_name_takes_its_place(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client, client.subscribe("replaced", member="one") as events:
        await drive(client, 4)
        [first, *_] = await take(events, 4)
        async with client.subscribe("replaced", member="one") as successor:
            assert len(successor.shares) == 64
            with pytest.raises(MemberReplaced, match="'one'"):
                await asyncio.wait_for(take(events, 100), HANGS_SECONDS)
            assert not await events.acknowledge(first)
            assert len(await handled(successor, 12)) == 12


@pytest.mark.parametrize("since", ["beginning", "moment", "positions"])
async def test_a_new_one_begins_where_it_is_told_and_an_old_one_goes_on(deployment: Deployment, since: str) -> None:
    async with deployment.worker(partitions=2), deployment.client() as client:
        await drive(client, 4)
        between = datetime.now(UTC)
        await drive(client, 4)
        from_where: Any = {"beginning": "beginning", "moment": between, "positions": {0: 0}}[since]
        async with client.subscribe("new", since=from_where) as events:
            number = {"beginning": 24, "moment": 12, "positions": 24}[since]
            taken = await handled(events, number)
            assert len(set(places(taken))) == number
            await nothing_more(events)
        async with client.subscribe("new", since="beginning") as events:
            await nothing_more(events)


async def test_no_more_events_are_in_flight_than_allowed(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client, client.subscribe("few", in_flight=3) as events:
        await drive(client, 5)
        taken = await take(events, 3)
        await nothing_more(events)
        await events.acknowledge(*taken)
        assert len(await take(events, 3)) == 3


async def test_what_is_asked_for_wrongly_is_refused(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        for wrong, field in (
            ({"name": ""}, "name"),
            ({"name": "x" * 201}, "name"),
            ({"name": "x", "member": ""}, "member"),
            ({"name": "x", "max_tries": 0}, "max_tries"),
            ({"name": "x", "in_flight": 0}, "in_flight"),
            ({"name": "x", "kinds": []}, "kinds"),
            ({"name": "x", "kinds": "run"}, "kinds.0"),
        ):
            with pytest.raises(InvalidRequest) as refused:
                client.subscribe(**wrong)
            assert refused.value.field == field
        events = client.subscribe("x")
        with pytest.raises(NotOpen):
            await anext(events)


@pytest.mark.parametrize(("argument", "given"), [("member", "m"), ("max_tries", 3), ("in_flight", 100)])
async def test_what_needs_a_name_is_refused_without_one(deployment: Deployment, argument: str, given: Any) -> None:
    async with deployment.worker(), deployment.client() as client:
        fix = f'subscribe under one, as in subscribe("billing", {argument}={given!r}), or leave it out'
        with pytest.raises(InvalidRequest, match=re.escape(fix)) as refused:
            client.subscribe(**{argument: given})
        assert refused.value.field == argument


async def test_events_go_on_after_redis_was_emptied(deployment: Deployment) -> None:
    async with (
        deployment.worker(),
        deployment.client(answer_timeout=5) as client,
        client.subscribe("emptied") as events,
    ):
        await drive(client, 5)
        first = await handled(events, 10)
        await deployment.empty_redis()
        rest = await handled(events, 5)
        await drive(client, 5)
        more = await handled(events, 15)
        assert len(set(places([*first, *rest, *more]))) == 30
