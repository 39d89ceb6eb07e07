"""`statewright explain`, `what-if` and `runs timeline`: why it was decided so, what would be, and what has happened."""

from statewright import State
from tests.cli.asking import asked, lines
from tests.deployment import Deployment


async def test_a_verdict_a_question_and_a_run_are_explained(deployment: Deployment) -> None:
    async with deployment.worker(partitions=2), deployment.client(actor="scheduler-3") as client:
        await client.set_limit("database", 1)
        first, second = [await client.create_task_run(name, tags=["database"]) for name in ("first", "second")]
        await client.propose(first, State.running(), lease=10_800, executor="host-1")
        waits = await client.propose(second, State.running())

        page = (await asked(deployment, "explain", waits.proposal_id)).stdout
        for words in ("WAIT", "scheduler-3", "SecureTaskConcurrencySlots", "database tag", "took no part"):
            assert words in page
        [told] = await lines(deployment, "explain", waits.proposal_id)
        assert (told["source"], told["actor"], told["run_id"]) == ("recorded", "scheduler-3", str(second.id))

        asks = await asked(deployment, "what-if", second.id, "running")
        assert (asks.returncode, "nothing was changed" in asks.stdout) == (4, True)
        forced = await asked(deployment, "what-if", second.id, "running", "--force")
        assert (forced.returncode, "ACCEPT" in forced.stdout) == (0, True)
        assert (await client.read_run(second)).states == ()

        parked = client.propose(second, State.running(), on_wait="park")
        assert await parked.until_parked() is not None
        page = (await asked(deployment, "explain", parked.request_id)).stdout
        for words in ("it is parked", "tag database", "1 of 1", str(first.id)):
            assert words in page

        by_hand = await asked(deployment, "propose", first.id, "completed", "--yes", "--actor", "night shift")
        assert by_hand.returncode == 0
        assert (await parked).accepted
        told = await lines(deployment, "runs", "timeline", first.id)
        assert {entry["kind"] for entry in told} == {"verdict", "state", "lease"}
        assert [entry["actor"] for entry in told if entry["kind"] == "state"] == ["scheduler-3", "night shift"]
        page = (await asked(deployment, "runs", "timeline", first.id)).stdout
        assert all(words in page for words in ("Running", "Completed", "of 3 h by host-1", "night shift"))
        page = (await asked(deployment, "runs", "timeline", second.id)).stdout
        assert all(words in page for words in ("wait", "slot", "tag database"))


async def test_what_is_not_known_is_said(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client:
        unknown = client._ids.new()
        told = await asked(deployment, "explain", unknown)
        assert (told.returncode, told.stdout) == (1, "")
        assert told.stderr.startswith(f"no proposal {unknown} is known")
        for command in (("what-if", unknown, "running"), ("runs", "timeline", unknown)):
            told = await asked(deployment, *command)
            assert (told.returncode, told.stderr.count("\n")) == (1, 1)
            assert f"there is no run {unknown}" in told.stderr
