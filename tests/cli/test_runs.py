"""`statewright runs`, `propose` and `verdict`: runs are found, shown, proposed for, cancelled and deleted by hand."""

import pytest

from statewright import NoAnswer, RunNotFound, State, StateType
from tests.cli.asking import asked, lines
from tests.deployment import Deployment


async def test_runs_are_found_counted_and_shown(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        flow = await client.create_flow_run(
            "nightly", tags=["etl"], labels={"team": "data"}, state=State.running(), run_id=None
        )
        task = await client.create_task_run("load", flow_run=flow, state=State.pending(message="soon"))
        await client.create_flow_run("hourly")
        found = await lines(deployment, "runs", "list", "--state", "running", "--state", "pending")
        assert [run["id"] for run in found] == [str(task.id), str(flow.id)]
        for chosen in (("--tag", "etl"), ("--label", "team=data"), ("--name", "night"), ("--created-after", "1h")):
            assert str(flow.id) in [run["id"] for run in await lines(deployment, "runs", "list", *chosen)]
        assert await lines(deployment, "runs", "list", "--unchanged-for", "1h") == []
        newest = await asked(deployment, "runs", "list", "-n", 1)
        assert ("hourly" in newest.stdout, "go on with --after" in newest.stderr) == (True, True)
        after = newest.stderr.split()[-1]
        assert [run["name"] for run in await lines(deployment, "runs", "list", "--after", after)] == ["load", "nightly"]
        counts = await lines(deployment, "runs", "list", "--count")
        assert {(one["kind"], one["state_name"]): one["count"] for one in counts} == {
            ("flow-run", "Running"): 1,
            ("flow-run", None): 1,
            ("task-run", "Pending"): 1,
        }
        table = (await asked(deployment, "runs", "list", COLUMNS="80")).stdout
        assert all(len(line) <= 80 for line in table.splitlines())
        assert all(words in table for words in (str(flow.id), "nightly", "Running", str(task.id), "Pending"))
        shown = (await asked(deployment, "runs", "show", task.id)).stdout
        assert all(words in shown for words in ("load", "task-run", str(flow.id), "Pending", "soon"))
        [history] = await lines(deployment, "runs", "show", task.id)
        assert [state["type"] for state in history["states"]] == ["PENDING"]
        tree = (await asked(deployment, "runs", "tree", flow.id)).stdout
        assert tree.index("nightly") < tree.index("load") < tree.index(str(task.id))
        below = await lines(deployment, "runs", "tree", flow.id)
        assert [(run["depth"], run["name"]) for run in below] == [(0, "nightly"), (1, "load")]


async def test_what_is_wrong_is_said_in_a_sentence(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client:
        missing = client._ids.new()
        refused = await asked(deployment, "runs", "show", missing)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith(f"statewright: there is no run {missing}")
        assert refused.stderr.count("\n") == 1
        for wrong in (
            ("--created-after", "soon"),
            ("--unchanged-for", "long"),
            ("--label", "team"),
            ("--state", "gone"),
        ):
            told = await asked(deployment, "runs", "list", *wrong)
            assert (told.returncode, wrong[0] in told.stderr or "state" in told.stderr) == (2, True)
    nowhere = await asked(deployment, "runs", "list", "--redis-url", "redis://127.0.0.1:1/0")
    assert (nowhere.returncode, nowhere.stderr.startswith("statewright: cannot reach Redis")) == (1, True)


async def test_states_are_proposed_and_the_exit_status_says_the_verdict(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit("db", 1)
        first, second = [await client.create_task_run(name, tags=["db"]) for name in ("first", "second")]
        undecided = await asked(deployment, "propose", first.id, "running", said="n\n")
        assert (undecided.returncode, "first is none. Propose RUNNING?" in undecided.stderr) == (1, True)
        assert (await client.read_run(first)).states == ()
        accepted = await asked(deployment, "propose", first.id, "running", "--message", "by hand", said="y\n")
        assert (accepted.returncode, "ACCEPT" in accepted.stdout) == (0, True)
        [verdict] = await lines(deployment, "propose", second.id, "RUNNING", "--yes")
        assert (verdict["status"], verdict["delay_seconds"]) == ("WAIT", 30)
        waiting = await asked(deployment, "verdict", verdict["proposal_id"])
        assert (waiting.returncode, "db" in waiting.stdout) == (4, True)
        aborted = await asked(deployment, "propose", first.id, "pending", "--yes")
        assert (aborted.returncode, "ABORT" in aborted.stdout) == (5, True)
        parked = client.propose(second, State.running(), on_wait="park", timeout=0.1)
        with pytest.raises(NoAnswer):
            await parked
        shown = await asked(deployment, "verdict", parked.request_id, "--run", second.id)
        assert (shown.returncode, "it is parked" in shown.stdout) == (6, True)
        done = await asked(deployment, "propose", first.id, "completed", "--data", '{"rows": 3}', "--yes")
        assert done.returncode == 0
        assert (await client.read_run(first)).states[-1].data == {"rows": 3}
        unknown = await asked(deployment, "verdict", second.id)
        assert (unknown.returncode, unknown.stderr.startswith("no proposal")) == (1, True)


async def test_runs_are_cancelled_once_it_was_shown_which(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        flow = await client.create_flow_run("nightly", tags=["etl"], state=State.running())
        task = await client.create_task_run("load", flow_run=flow, state=State.pending())
        over = await client.create_flow_run("yesterday", tags=["etl"], state=State.completed())
        meant = await asked(deployment, "runs", "cancel", "--tag", "etl", "--dry-run")
        assert [str(run.id) in meant.stdout for run in (flow, over)] == [True, False]
        for said in ("n\n", ""):
            assert (await asked(deployment, "runs", "cancel", "--tag", "etl", said=said)).returncode == 1
        assert (await client.read_run(flow, history=False)).state_type is StateType.RUNNING
        done = await asked(deployment, "runs", "cancel", "--tag", "etl", "--message", "not today", "--yes")
        assert (done.returncode, "1 of 1 run cancelled" in done.stdout) == (0, True)
        states = [(await client.read_run(run, history=False)).state for run in (flow, task)]
        assert [state and state.type for state in states] == [StateType.CANCELLED] * 2
        again = await asked(deployment, "runs", "cancel", over.id, "--yes")
        assert (again.returncode, "0 of 1 run cancelled" in again.stdout, "yesterday" in again.stderr) == (
            1,
            True,
            True,
        )
        assert (await asked(deployment, "runs", "cancel")).returncode == 2
        assert (await asked(deployment, "runs", "cancel", flow.id, "--tag", "etl")).returncode == 2
        [gone] = await lines(deployment, "runs", "list", "--state", "cancelled", "--kind", "task-run")
        assert gone["id"] == str(task.id)


async def test_runs_are_deleted_with_what_is_below(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        flow = await client.create_flow_run("nightly", state=State.running())
        await client.create_task_run("load", flow_run=flow)
        refused = await asked(deployment, "runs", "delete", flow.id, "--yes")
        assert (refused.returncode, "load" in refused.stdout, "Traceback" in refused.stderr) == (1, True, False)
        assert (await asked(deployment, "runs", "delete", flow.id, "--force")).returncode == 1
        done = await asked(deployment, "runs", "delete", flow.id, "--force", "--yes")
        assert (done.returncode, "2 runs deleted" in done.stdout) == (0, True)
        with pytest.raises(RunNotFound):
            await client.read_run(flow)
