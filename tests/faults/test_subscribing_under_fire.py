"""Named subscriptions lose nothing while members are killed and frozen, Redis is emptied and PostgreSQL goes back."""

import asyncio
import subprocess
import time

from statewright import SubscriptionStatus
from statewright_worker.embedded import Servers
from tests.deployment import HANGS_SECONDS, Deployment, until
from tests.end_to_end.test_named_subscriptions import drive
from tests.faults.subscribing import SUBSCRIBER, rage

TOO_FEW_TO_BE_EVEN = "members with too much or too little"


async def test_every_event_is_handled_in_order_whatever_happens(deployment: Deployment, servers: Servers) -> None:
    found = await rage(deployment, servers, seconds=9, transitions=1_500, frozen_seconds=4)

    assert found.kills >= 3
    assert found.transitions == 1_500
    del found.problems[TOO_FEW_TO_BE_EVEN]
    assert found.problems == {check: [] for check in found.problems}


async def test_the_shares_of_a_member_that_dies_at_rest_go_to_another_within_ten_seconds(
    deployment: Deployment,
) -> None:
    file = deployment.folder / "handled.txt"
    async with deployment.worker(), deployment.client() as client, client.subscribe("resting", member="stays") as stays:
        reading = asyncio.ensure_future(anext(stays))
        mortal = deployment.spawn_worker(str(SUBSCRIBER), "resting", "mortal", str(file))

        async def both_rest() -> bool:
            rows = await deployment.fetch("SELECT seconds FROM subscription_member")
            return len(stays.shares) == 32 and [row["seconds"] for row in rows] == [7, 7]

        await until(both_rest)
        mortal.kill()
        killed = time.monotonic()

        async def alone() -> bool:
            return len(stays.shares) == 64

        await until(alone)
        assert time.monotonic() - killed < 10
        reading.cancel()


async def test_an_event_over_which_members_die_goes_to_the_dead_letters_and_no_other(deployment: Deployment) -> None:
    """They die before they have said that they got it, and whatever they had acknowledged in the last second is lost as
    well; nobody knows at first over which event it was."""
    async with deployment.worker(partitions=1), deployment.client() as client:
        async with client.subscribe("deadly", max_tries=3):
            pass
        await drive(client, 30)
        [deadly] = await drive(client, 1, name="deadly")
        await drive(client, 30)
        file = deployment.folder / "handled.txt"
        deaths = 0
        process: subprocess.Popen[bytes] | None = None

        async def status() -> SubscriptionStatus:
            told = await client.read_subscription("deadly")
            assert told is not None
            return told

        async def handled() -> bool:
            nonlocal deaths, process
            if process is None or process.poll() is not None:
                deaths += process is not None
                process = deployment.spawn_worker(str(SUBSCRIBER), "deadly", "one", str(file), DIES_OVER="deadly")
            return (await status()).lag == 0

        await until(handled, seconds=2 * HANGS_SECONDS)
        told = await status()
        history = await client.read_run(deadly)
        events = [state.id for state in history.states]
        assert [letter.event_id for letter in told.dead_letters] == events
        assert {letter.tries for letter in told.dead_letters} == {3}
        assert "died over it" in told.dead_letters[0].error
        assert deaths >= 3 * len(events)
        others = {line.split()[4] for line in file.read_text().splitlines()}
        assert len(others) == 180
        assert others.isdisjoint(map(str, events))
