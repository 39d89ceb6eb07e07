"""`statewright status`, `workers`, `partitions`, `subscriptions` and `events`: what is going on, at a glance."""

import asyncio
import json
import signal
import subprocess

from statewright import State
from tests.cli.asking import asked, lines, where
from tests.cli.test_commands import COMMAND, environment
from tests.deployment import HANGS_SECONDS, Deployment


async def test_workers_and_partitions_are_listed(deployment: Deployment) -> None:
    async with deployment.worker(partitions=2), deployment.client() as client:
        await deployment.is_held()
        run = await client.create_flow_run("nightly", state=State.running())
        [worker] = await lines(deployment, "workers")
        assert worker["partitions"] == [0, 1]
        table = (await asked(deployment, "workers")).stdout
        assert all(words in table for words in ("WORKER", worker["worker"], worker["version"], "0-1"))
        listed = await lines(deployment, "partitions")
        assert [(one["partition"], one["worker"]) for one in listed] == [(0, worker["worker"]), (1, worker["worker"])]
        assert sum(one["sequence"] for one in listed) == len((await client.read_run(run)).states)
        assert worker["worker"] in (await asked(deployment, "partitions")).stdout


async def test_the_status_says_what_waits_and_what_is_stuck(deployment: Deployment) -> None:
    async with deployment.worker(partitions=2), deployment.client() as client:
        await deployment.is_held()
        well = await asked(deployment, "status")
        assert (well.returncode, well.stdout.splitlines()[0]) == (0, "all is well")
        await client.set_limit("db", 1)
        first, second = [await client.create_task_run(name, tags=["db"], state=State.pending()) for name in "ab"]
        await client.propose(first, State.running())
        parked = client.propose(second, State.running(), on_wait="park")
        assert await parked.until_parked() is not None
        [told] = await lines(deployment, "status", "--stuck-after", "0")
        assert (told["is_well"], told["parked"], told["workers"]) == (False, 1, 1)
        assert [run["id"] for run in told["stuck"]] == [str(second.id)]
        assert any("wait" in hint and "db" in hint for hint in told["hints"])
        page = await asked(deployment, "status", "--stuck-after", "0")
        assert (page.returncode, page.stdout.splitlines()[0]) == (1, "not all is well")
        assert str(second.id) in page.stdout
        assert await client.withdraw(parked)


async def test_the_status_says_that_no_worker_is_there(deployment: Deployment) -> None:
    async with deployment.worker(partitions=2):
        pass
    away = await asked(deployment, "status")
    assert (away.returncode, "no worker answers queries" in away.stdout) == (1, True)


async def test_subscriptions_are_listed_shown_reset_and_removed(deployment: Deployment) -> None:
    async with deployment.worker(partitions=2), deployment.client() as client:
        async with client.subscribe("billing", since="beginning", max_tries=1, member="b-1") as member:
            run = await client.create_flow_run("nightly", state=State.running())
            delivery = await anext(member)
            await member.refuse(delivery, "no such account")
        [listed] = await lines(deployment, "subscriptions", "list")
        assert (listed["name"], listed["lag"] >= 0) == ("billing", True)
        assert "billing" in (await asked(deployment, "subscriptions", "list")).stdout
        [shown] = await lines(deployment, "subscriptions", "show", "billing")
        [letter] = shown["dead_letters"]
        assert letter["error"].endswith("no such account")
        page = (await asked(deployment, "subscriptions", "show", "billing")).stdout
        assert all(words in page for words in ("billing", "no such account", letter["event_id"]))
        dry = await asked(deployment, "subscriptions", "drop", "billing", "--dry-run")
        assert (dry.returncode, letter["event_id"] in dry.stdout) == (0, True)
        dropped = await asked(deployment, "subscriptions", "drop", "billing", letter["event_id"], "--yes")
        assert dropped.stdout.endswith("1 dead letter dropped\n")
        await client.propose(run, State.completed())
        [reset] = await lines(deployment, "subscriptions", "reset", "billing", "beginning", "--yes")
        assert reset["lag"] == 2
        assert (await asked(deployment, "subscriptions", "remove", "billing")).returncode == 1
        assert (await asked(deployment, "subscriptions", "remove", "billing", "--yes")).returncode == 0
        missing = await asked(deployment, "subscriptions", "show", "billing")
        assert (missing.returncode, missing.stderr) == (1, "there is no subscription 'billing'\n")


async def test_events_are_followed_and_filtered(deployment: Deployment) -> None:
    async with deployment.worker(partitions=2), deployment.client() as client:
        flow = await client.create_flow_run("nightly", tags=["etl"], state=State.running())
        await client.create_flow_run("hourly", state=State.running())
        await client.propose(flow, State.completed())
        every = await asked(deployment, "events", "--since", "beginning", "-n", 3)
        assert [every.stdout.count(words) for words in ("nightly", "hourly", "Completed")] == [2, 1, 1]
        of_run = await lines(deployment, "events", "--since", "1h", "-n", 2, "--run", flow.id)
        assert [event["type"].split(".")[-1] for event in of_run] == ["Running", "Completed"]
        [ended] = await lines(
            deployment, "events", "--since", "beginning", "-n", 1, "--tag", "etl", "--state", "completed"
        )
        assert ended["subject"] == str(flow.id)


async def test_what_is_watched_is_shown_again_until_it_is_stopped(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1):
        await deployment.is_held()
        for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 130)):
            watching = await asyncio.to_thread(
                subprocess.Popen,
                [*COMMAND, "workers", "--json", "--watch"],
                env=environment(PYTHONUNBUFFERED="1", **where(deployment)),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            with watching:
                try:
                    assert watching.stdout
                    for _ in range(2):
                        line = await asyncio.to_thread(watching.stdout.readline)
                        assert json.loads(line)["partitions"] == [0]
                    watching.send_signal(number)
                    _, errors = await asyncio.to_thread(watching.communicate, timeout=HANGS_SECONDS)
                    assert (watching.returncode, errors.decode()) == (status, "")
                finally:
                    watching.kill()
