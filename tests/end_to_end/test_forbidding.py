"""What a deployment does not let producers do: it is refused before anything of it is done."""

from datetime import UTC, datetime, timedelta

import pytest

from statewright import ConfigurationError, Forbidden, State
from statewright.ids import IdSource
from tests.deployment import Deployment, until

ids = IdSource()


async def test_what_is_forbidden_is_refused_and_the_rest_is_done(deployment: Deployment) -> None:
    async with deployment.worker(forbid="force,set_limit"), deployment.client() as client:
        run = await client.create_flow_run("nightly", state=State.running())
        with pytest.raises(Forbidden, match="STATEWRIGHT_FORBID names 'force'") as forced:
            await client.propose(run, State.pending(), force=True)
        with pytest.raises(Forbidden, match="STATEWRIGHT_FORBID names 'set_limit'") as limited:
            await client.set_limit("database", 1)
        assert (await client.propose(run, State.completed())).accepted
        history = await client.read_run(run)
        limit = await client.read_limit("database")
    assert (forced.value.code, forced.value.field) == ("forbidden", "force")
    assert (limited.value.code, limited.value.field) == ("forbidden", "type")
    assert [state.name for state in history.states] == ["Running", "Completed"]
    assert limit is None


async def test_what_was_done_before_it_was_forbidden_keeps_its_answer(deployment: Deployment) -> None:
    proposal_id, refused_id = ids.new(), ids.new()
    async with deployment.worker(), deployment.client() as client:
        run = await client.create_flow_run("nightly", state=State.running())
        verdict = await client.propose(run, State.pending(), force=True, proposal_id=proposal_id)
    async with deployment.worker(forbid={"force"}), deployment.client() as client:
        assert await client.propose(run, State.pending(), force=True, proposal_id=proposal_id) == verdict
        with pytest.raises(Forbidden):
            await client.propose(run, State.running(), force=True, proposal_id=refused_id)
    async with deployment.worker(), deployment.client() as client:
        # A refusal is an answer for ever.
        with pytest.raises(Forbidden):
            await client.propose(run, State.running(), force=True, proposal_id=refused_id)


async def test_a_forbidden_heartbeat_renews_nothing(deployment: Deployment) -> None:
    async with deployment.worker(forbid="heartbeat"), deployment.client() as client:
        run = await client.create_flow_run("nightly")
        await client.propose(run, State.running(), lease=timedelta(minutes=5))
        [before] = await deployment.fetch("SELECT ends FROM lease")
        with pytest.raises(Forbidden):
            await client.heartbeat(run)
        assert await deployment.fetch("SELECT ends FROM lease") == [before]


async def test_the_engine_itself_may_do_what_producers_may_not(deployment: Deployment) -> None:
    async with deployment.worker(forbid="force"), deployment.client() as client:
        flow_run = await client.create_flow_run("nightly", state=State.running())
        task_run = await client.create_task_run("load", flow_run=flow_run, state=State.running())
        await client.propose(flow_run, State.cancelled(), cascade=True)

        async def has_followed() -> bool:
            return (await client.read_run(task_run, history=False)).state_name == "Cancelled"

        await until(has_followed)


def test_what_nobody_can_forbid_is_named(deployment: Deployment) -> None:
    with pytest.raises(
        ConfigurationError, match=r"STATEWRIGHT_FORBID: limits cannot be forbidden; what can is .*force"
    ):
        deployment.settings(forbid="limits, force")


async def test_what_is_old_enough_is_pruned_all_the_same(deployment: Deployment) -> None:
    forbidding = {"forbid": "prune_runs,force", "keep_runs": 86_400.0}
    async with deployment.worker(**forbidding), deployment.client() as client:
        old, young = [await client.create_flow_run(name, state=State.completed()) for name in ("old", "young")]
        running = await client.create_flow_run("running", state=State.running())
        for column in ("created", "state_timestamp"):
            await deployment.execute(f"UPDATE flow_run SET {column} = now() - interval '3 days' WHERE name = 'old'")
        with pytest.raises(Forbidden, match="unchanged_since"):
            await client.prune_runs([young], unchanged_since=datetime.now(UTC))
        pruned = await client.prune_runs([old, young], unchanged_since=datetime.now(UTC) - timedelta(days=2))
        assert (pruned.trees, pruned.runs) == (1, 1)
        with pytest.raises(Forbidden):
            await client.delete_run(running, force=True)
        assert await client.delete_run(young) == 1
