"""The audit finds each thing that does not fit together, and nothing else."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from statewright import RunPolicy, State
from statewright.ids import IdSource
from statewright_worker.audit.audit import CHECKS, Report
from tests.deployment import Deployment

ids = IdSource()


@pytest.fixture
async def busy(deployment: Deployment) -> Deployment:
    """A deployment in which one run holds three limits, another one waits, and a third runs by force."""
    async with deployment.worker(), deployment.client() as client:
        nightly = ids.new()
        await client.set_limit("db", 1)
        await client.set_limit(name="gpu", concurrency_limit=1)
        await client.set_limit(deployment_id=nightly, concurrency_limit=1)
        await client.set_limit("mail", 1, period=60)
        policy = RunPolicy(limits=("gpu",))
        flow = await client.create_flow_run("nightly", deployment_id=nightly, policy=policy)
        task = await client.create_task_run("load", tags=["db", "db", "mail"])
        for run in (flow, task):
            assert (await client.propose(run, State.running())).accepted
        waiting = await client.create_task_run("waits", tags=["db"], policy=policy)
        assert (await client.propose(waiting, State.running())).status == "WAIT"
        forced = await client.create_task_run("forced", tags=["db", "unlimited"])
        await client.propose(forced, State.running(), force=True)
    return deployment


def told(report: Report) -> list[tuple[str, str | None]]:
    return [(finding.check, finding.subject) for finding in report.findings if finding.is_wrong]


async def test_a_deployment_at_work_fits_together(busy: Deployment) -> None:
    report = await busy.audited()
    [information] = report.findings
    assert (information.check, information.subject) == ("RUNNING without a slot", "tag db")
    [[forced]] = await busy.fetch("SELECT id FROM task_run WHERE name = 'forced'")
    assert (information.run_id, information.is_wrong) == (forced, False)
    assert report.is_clean


async def test_a_limit_that_was_lowered_is_told_and_not_wrong(busy: Deployment) -> None:
    await busy.execute("UPDATE concurrency_limit SET concurrency_limit = 0 WHERE key = 'gpu'")
    over = [finding for finding in (await busy.audited()).findings if finding.check == "over the limit"]
    assert [(finding.subject, finding.is_wrong) for finding in over] == [("name gpu", False)]


# Each with a check that finds it; another one may find something, too.
SPOILT = [
    (
        "slot without a run",
        "tag mail",
        "INSERT INTO concurrency_slot (limit_id, run_id, taken)"
        " SELECT id, gen_random_uuid(), now() FROM concurrency_limit WHERE key = 'mail'",
    ),
    (
        "slot of a run that is not RUNNING",
        "tag db",
        "UPDATE task_run SET state_type = 'COMPLETED' WHERE name = 'load'",
    ),
    (
        "waiter that is not parked",
        "tag db",
        "INSERT INTO waiter (limit_id, proposal_id, run_id, partition, priority, ticket, since)"
        " SELECT id, gen_random_uuid(), gen_random_uuid(), 0, 0, 1, now() FROM concurrency_limit WHERE key = 'db'",
    ),
    (
        "waiter that is decided",
        "tag db",
        "WITH decided AS (SELECT proposal_id, run_id FROM verdict LIMIT 1), kept AS ("
        " INSERT INTO parked"
        " (proposal_id, partition, run_id, digest, message, entry_id, since, priority, ticket, decided)"
        " SELECT proposal_id, 0, run_id, 0, '', '1-0', now(), 0, 1, true FROM decided)"
        " INSERT INTO waiter (limit_id, proposal_id, run_id, partition, priority, ticket, since)"
        " SELECT id, proposal_id, run_id, 0, 0, 1, now() FROM concurrency_limit, decided WHERE key = 'db'",
    ),
    (
        "lease of a run that is not RUNNING",
        None,
        "INSERT INTO lease (run_id, partition, state_id, seconds, ends) SELECT id, 0, id, 5, now() FROM task_run",
    ),
    (
        "lease of a run that is not RUNNING",
        None,
        "INSERT INTO lease (run_id, partition, state_id, seconds, ends)"
        " VALUES (gen_random_uuid(), 0, gen_random_uuid(), 5, now())",
    ),
    (
        "RUNNING without its lease",
        None,
        "UPDATE flow_run_state SET state_details = state_details || '{\"lease\": 5}'",
    ),
    (
        "lease that nothing ends",
        None,
        "INSERT INTO lease (run_id, partition, state_id, seconds, ends)"
        " SELECT id, 0, state_id, 5, now() FROM task_run WHERE name = 'load'",
    ),
    (
        "lease that nothing ends",
        None,
        "INSERT INTO lease (run_id, partition, state_id, seconds, ends, executor)"
        " SELECT id, 0, state_id, 5, now(), 'gone' FROM task_run WHERE name = 'load'",
    ),
    (
        "timer of no run",
        "partition 1",
        "INSERT INTO timer (kind, id, partition, due) VALUES ('pause', gen_random_uuid(), 1, now())",
    ),
    (
        "parked proposal of no run",
        "partition 0",
        "INSERT INTO parked (proposal_id, partition, run_id, digest, message, entry_id, since, priority, ticket)"
        " VALUES (gen_random_uuid(), 0, gen_random_uuid(), 0, '', '1-0', now(), 0, 1)",
    ),
    (
        "decided proposal that stays parked",
        "partition 0",
        "INSERT INTO parked"
        " (proposal_id, partition, run_id, digest, message, entry_id, since, priority, ticket, decided)"
        " SELECT gen_random_uuid(), 0, id, 0, '', '1-0', now(), 0, 1, true FROM flow_run",
    ),
    ("history with a gap", None, "UPDATE task_run SET state_count = 7 WHERE name = 'load'"),
    ("history with a gap", None, "UPDATE flow_run_state SET ordinal = 3"),
    ("run that is not in its last state", None, "UPDATE flow_run SET state_name = 'Idle'"),
    ("run that is not in its last state", None, "UPDATE task_run SET state_id = NULL WHERE name = 'load'"),
    ("history out of order", None, "UPDATE flow_run_state SET previous_state_id = gen_random_uuid()"),
    ("history without a run", None, "DELETE FROM flow_run"),
    ("number of two events", "partition 0", "UPDATE {all_states} SET partition = 0, sequence = 1"),
    ("numbers without events", "partition {of_flow}", "UPDATE partition SET sequence = sequence + 1"),
    ("numbers without events", "partition {of_flow}", "DELETE FROM flow_run_state"),
    ("number that was not reached", "partition {of_flow}", "UPDATE partition SET sequence = 0"),
    ("verdict without its state", None, "DELETE FROM flow_run_state"),
    ("verdict without a run", None, "DELETE FROM flow_run"),
    ("state without its verdict", None, "DELETE FROM verdict WHERE status = 'ACCEPT'"),
    (
        "cached state that is gone",
        None,
        "INSERT INTO task_run_state_cache (cache_key, task_run_state_id, created)"
        " VALUES ('k', gen_random_uuid(), now())",
    ),
    (
        "deleted run that is there",
        None,
        "INSERT INTO pruned (run_id, tree, partition, pruned, is_left) SELECT id, id, 0, now(), false FROM flow_run",
    ),
    ("stream ahead of the database", "partition {of_flow}", "UPDATE partition SET sequence = 0"),
    ("event without its change", "partition {of_flow}", "DELETE FROM flow_run_state"),
    ("event of another change", "partition {of_flow}", "UPDATE flow_run_state SET id = gen_random_uuid()"),
]


@pytest.mark.parametrize(("check", "subject", "spoil"), SPOILT)
async def test_whatever_does_not_fit_is_found(busy: Deployment, check: str, subject: str | None, spoil: str) -> None:
    [[of_flow]] = await busy.fetch("SELECT partition FROM flow_run_state")
    if "{all_states}" in spoil:
        # The one state of the flow run gets the place of one of a task run.
        place = "SELECT partition, sequence FROM task_run_state LIMIT 1"
        spoil = f"UPDATE flow_run_state SET (partition, sequence) = ({place})"
        [[of, _]] = await busy.fetch(place)
        subject = f"partition {of}"
    await busy.fetch(spoil)
    report = await busy.audited()
    assert (check, subject and subject.format(of_flow=of_flow)) in told(report)
    assert not report.is_clean


def test_each_check_is_seen_to_find_something() -> None:
    elsewhere = {"over the limit", "RUNNING without a slot", "subscription ahead of its partition"}
    assert {check.name for check in CHECKS} - elsewhere <= {name for name, _, _ in SPOILT}


async def test_a_change_whose_event_is_missing_in_the_stream_is_found(busy: Deployment) -> None:
    async with busy.worker(), busy.client() as client, busy.redis() as redis:
        run = await client.create_flow_run("hourly")
        for state in (State.pending(), State.running(), State.completed()):
            await client.propose(run, state)
        [[partition, number]] = await busy.fetch("SELECT partition, sequence FROM flow_run_state WHERE ordinal = 2")
        assert await redis.xdel(busy.channels.events(partition), f"{number}-0")
        assert told(await busy.audited()) == [("change without its event", f"partition {partition}")]


async def test_a_subscription_ahead_of_its_partition_is_found(busy: Deployment) -> None:
    async with busy.worker(), busy.client() as client:
        async with client.subscribe("billing", since="beginning"):
            pass
        assert (await busy.audited()).is_clean
        await busy.execute("UPDATE subscription_share SET position = 100 WHERE partition = 0")
        assert ("subscription ahead of its partition", "subscription billing") in told(await busy.audited())


async def test_what_is_found_is_bounded_and_counted(busy: Deployment) -> None:
    await busy.execute(
        "INSERT INTO timer (kind, id, partition, due)"
        " SELECT 'pause', gen_random_uuid(), 0, now() FROM generate_series(1, 250)"
    )
    report = await busy.audited()
    assert (told(report).count(("timer of no run", "partition 0")), report.untold) == (100, 150)


async def test_deletions_leave_everything_fitting_together(busy: Deployment) -> None:
    async with busy.worker(), busy.client() as client:
        flow = await client.create_flow_run("old")
        task = await client.create_task_run("below", flow_run=flow)
        for run in (task, flow):
            await client.propose(run, State.running())
            await client.propose(run, State.completed())
        kept = await client.create_flow_run("kept", state=State.completed())
        assert await client.delete_run(task) == 1
        done = await client.prune_runs([flow, kept], unchanged_since=datetime.now(UTC) + timedelta(hours=1))
        assert done.runs == 2
        assert (await busy.audited()).is_clean


async def test_a_busy_deployment_gives_no_false_alarm(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit("db", 2)
        audits = 0

        async def work(number: int) -> None:
            while audits < 10:
                flow = await client.create_flow_run(f"flow-{number}", state=State.running())
                tasks = [await client.create_task_run("load", flow_run=flow, tags=["db"]) for _ in range(3)]
                waiting = [client.propose(task, State.running(), on_wait="park", lease=30) for task in tasks]
                for task, sent in zip(tasks, waiting, strict=True):
                    assert (await sent).accepted
                    await client.propose(task, State.completed())
                await client.propose(flow, State.cancelled(), cascade=True)
                if number % 2:
                    await client.delete_run(flow)

        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(work(number))
            while audits < 10:
                assert told(await deployment.audited()) == []
                audits += 1
        assert told(await deployment.audited()) == []
