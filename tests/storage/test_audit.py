"""The audit finds each thing that does not fit together, and nothing else."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from statewright import RunPolicy, State
from statewright.ids import IdSource
from statewright_worker.storage import database
from statewright_worker.storage.audit import Finding, FindingKind, audit
from tests.deployment import Deployment

ids = IdSource()


@pytest.fixture
async def engine(deployment: Deployment) -> AsyncIterator[AsyncEngine]:
    engine = database.create_engine(deployment.database_url, pool_size=1)
    yield engine
    await engine.dispose()


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


def told(findings: list[Finding]) -> list[tuple[FindingKind, str | None]]:
    return [(finding.kind, finding.limit) for finding in findings if finding.is_wrong]


async def test_a_deployment_at_work_fits_together(busy: Deployment, engine: AsyncEngine) -> None:
    [information] = await audit(engine)
    assert (information.kind, information.limit) == (FindingKind.RUNNING_WITHOUT_A_SLOT, "tag db")
    [[forced]] = await busy.fetch("SELECT id FROM task_run WHERE name = 'forced'")
    assert (information.run_id, information.is_wrong) == (forced, False)


async def test_a_limit_that_was_lowered_is_told_and_not_wrong(busy: Deployment, engine: AsyncEngine) -> None:
    await busy.execute("UPDATE concurrency_limit SET concurrency_limit = 0 WHERE key = 'gpu'")
    over = [finding for finding in await audit(engine) if finding.kind is FindingKind.OVER_THE_LIMIT]
    assert [(finding.limit, finding.is_wrong) for finding in over] == [("name gpu", False)]


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (
            "INSERT INTO concurrency_slot (limit_id, run_id, taken)"
            " SELECT id, gen_random_uuid(), now() FROM concurrency_limit WHERE key = 'mail'",
            [(FindingKind.SLOT_WITHOUT_RUN, "tag mail")],
        ),
        (
            "UPDATE task_run SET state_type = 'COMPLETED' WHERE name = 'load'",
            [(FindingKind.SLOT_OF_A_RUN_THAT_IS_NOT_RUNNING, "tag db")],
        ),
        (
            "INSERT INTO waiter (limit_id, proposal_id, run_id, partition, priority, ticket, since)"
            " SELECT id, gen_random_uuid(), gen_random_uuid(), 0, 0, 1, now() FROM concurrency_limit WHERE key = 'db'",
            [(FindingKind.WAITER_THAT_IS_NOT_PARKED, "tag db")],
        ),
        (
            "WITH decided AS (SELECT proposal_id, run_id FROM verdict LIMIT 1), kept AS ("
            " INSERT INTO parked"
            " (proposal_id, partition, run_id, digest, message, entry_id, since, priority, ticket, decided)"
            " SELECT proposal_id, 0, run_id, 0, '', '1-0', now(), 0, 1, true FROM decided)"
            " INSERT INTO waiter (limit_id, proposal_id, run_id, partition, priority, ticket, since)"
            " SELECT id, proposal_id, run_id, 0, 0, 1, now() FROM concurrency_limit, decided WHERE key = 'db'",
            [(FindingKind.WAITER_THAT_IS_DECIDED, "tag db")],
        ),
        (
            "INSERT INTO lease (run_id, partition, state_id, seconds, ends) SELECT id, 0, id, 5, now() FROM task_run",
            [(FindingKind.LEASE_OF_A_RUN_THAT_IS_NOT_RUNNING, None)],
        ),
        (
            "INSERT INTO lease (run_id, partition, state_id, seconds, ends)"
            " VALUES (gen_random_uuid(), 0, gen_random_uuid(), 5, now())",
            [(FindingKind.LEASE_OF_A_RUN_THAT_IS_NOT_RUNNING, None)],
        ),
        (
            "UPDATE flow_run_state SET state_details = state_details || '{\"lease\": 5}'",
            [(FindingKind.RUNNING_WITHOUT_ITS_LEASE, None)],
        ),
    ],
)
async def test_whatever_does_not_fit_is_found(
    busy: Deployment, engine: AsyncEngine, spoil: str, found: list[tuple[FindingKind, str | None]]
) -> None:
    await busy.fetch(spoil)
    assert told(await audit(engine)) == found
