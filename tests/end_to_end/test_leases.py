"""Leases: whoever gives word keeps its runs, and whoever falls silent loses them, with their slots, within a second."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from statewright import Client, Event, InvalidRequest, LeaseLost, RunPolicy, State, StateType, Subscription, Verdict
from tests.deployment import HANGS_SECONDS, Deployment, until

HOUSE_POLICIES = "tests.end_to_end.house_policies"
LEASE = 1.0
PROMISED = 1.0
"""A silent run is ended within so many seconds of its lease's end."""


@asynccontextmanager
async def working(deployment: Deployment, **changes: Any) -> AsyncIterator[Client]:
    async with deployment.worker(**{"partitions": 2, **changes}), deployment.client() as client:
        yield client


async def running(client: Client, lease: float | None = LEASE, **more: Any) -> Verdict:
    """Return the verdict on RUNNING of a new task run."""
    run = client.create_task_run("work", **more)
    verdict = await client.propose(run, State.running(), lease=lease)
    assert verdict.accepted
    return verdict


async def work_on(
    client: Client,
    run: Any,
    lease: float | None = None,
    meanwhile: Callable[[], Awaitable[object]] | None = None,
) -> None:
    """Work for ever on the run, and keep its lease; what happens `meanwhile` is awaited within the block."""
    async with client.keep_alive(run, lease=lease):
        if meanwhile is not None:
            await meanwhile()
        await asyncio.sleep(HANGS_SECONDS)


async def event_of(events: Subscription, run_id: UUID, state_type: StateType) -> Event:
    async with asyncio.timeout(HANGS_SECONDS):
        while True:
            event = await anext(events)
            if event.run_id == run_id and event.data.resource.state_type == state_type:
                return event


async def crashes_of(events: Subscription, number: int) -> dict[UUID, Event]:
    """Return the events of so many crashes, by run."""
    crashed: dict[UUID, Event] = {}
    async with asyncio.timeout(HANGS_SECONDS):
        while len(crashed) < number:
            event = await anext(events)
            if event.data.resource.state_type == StateType.CRASHED:
                crashed[event.run_id] = event
    return crashed


async def rows(deployment: Deployment, table: str) -> int:
    [[number]] = await deployment.fetch(f"SELECT count(*) FROM {table}")
    return int(number)


async def test_a_silent_run_is_crashed_within_a_second_with_its_message_its_slot_and_its_event(
    deployment: Deployment,
) -> None:
    async with working(deployment) as client:
        await client.set_limit("database", 1)
        async with client.subscribe() as events:
            verdict = await running(client, tags=["database"])
            event = await event_of(events, verdict.run_id, StateType.CRASHED)
            history = await client.read_run(verdict.run_id)
            assert [state.type for state in history.states] == [StateType.RUNNING, StateType.CRASHED]
            began, ended = history.states
            assert (ended.message or "").startswith("The lease of 1 s ended at 20")
            assert (ended.message or "").endswith(" without a heartbeat.")
            assert event.id == ended.id
            assert timedelta(seconds=LEASE) <= ended.timestamp - began.timestamp
            [[took]] = await deployment.fetch(
                "SELECT v.decided - b.decided FROM verdict v, verdict b WHERE v.state_id = $1 AND b.state_id = $2",
                ended.id,
                began.id,
            )
            assert timedelta(seconds=LEASE) <= took <= timedelta(seconds=LEASE + PROMISED)
            limit = await client.read_limit("database")
            assert limit is not None
            assert (limit.held, limit.free) == (0, 1)
            assert await rows(deployment, "concurrency_slot") == 0
            assert await rows(deployment, "lease") == 0
            assert await rows(deployment, "timer") == 0


async def test_renewal_keeps_a_run_alive_past_its_lease(deployment: Deployment) -> None:
    async with working(deployment) as client, client.subscribe() as events:
        silent, kept = await running(client), await running(client)
        ends = time.monotonic() + 2.5 * LEASE
        while time.monotonic() < ends:
            assert await client.heartbeat(kept.run_id) == []
            await asyncio.sleep(LEASE / 5)
        await event_of(events, silent.run_id, StateType.CRASHED)
        assert (await client.read_run(kept.run_id)).run.state_type is StateType.RUNNING
        verdict = await client.propose(kept.run_id, State.completed())
        assert verdict.accepted
        assert await rows(deployment, "lease") == 0
        lost = await client.heartbeat([silent.run_id, kept.run_id])
    assert [(one.run_id, one.state_type) for one in lost] == [(silent.run_id, "CRASHED"), (kept.run_id, "COMPLETED")]
    assert "without a heartbeat" in str(lost[0])


async def test_a_renewal_that_comes_before_the_end_wins_and_counts_from_then(deployment: Deployment) -> None:
    async with working(deployment) as client, client.subscribe() as events:
        verdict = await running(client)
        await asyncio.sleep(0.8 * LEASE)
        assert await client.heartbeat(verdict) == []
        [[renewed_until]] = await deployment.fetch("SELECT ends FROM lease")
        event = await event_of(events, verdict.run_id, StateType.CRASHED)
    assert timedelta() <= event.time - renewed_until <= timedelta(seconds=PROMISED)


async def test_a_heartbeat_behind_the_end_of_its_run_in_one_batch_is_told_so(deployment: Deployment) -> None:
    async with working(deployment, partitions=1) as client:
        ended, taken, kept = [await running(client, lease=60) for _ in range(3)]
        client.propose(ended.run_id, State.completed())
        client.propose(taken.run_id, State.running(lease=60), force=True)
        begun = client.create_task_run("begun")
        client.propose(begun, State.running(lease=60))
        lost = await client.heartbeat([ended, taken, kept, begun])
        assert {one.run_id: one.state_type for one in lost} == {ended.run_id: "COMPLETED", taken.run_id: "RUNNING"}
        assert await rows(deployment, "lease") == 3
        assert await client.heartbeat(taken.run_id) == []


async def test_what_is_wrong_with_a_lease_is_refused_before_anything_is_sent(deployment: Deployment) -> None:
    async with working(deployment) as client:
        run = await client.create_flow_run("work")
        wrong: list[dict[str, Any]] = [{"lease": 0}, {"lease": 86_401}, {"executor": "w"}, {"lease": 1, "executor": ""}]
        for terms in wrong:
            with pytest.raises(InvalidRequest):
                client.propose(run, State.running(), **terms)
        with pytest.raises(InvalidRequest, match="only RUNNING has a lease, not COMPLETED"):
            client.propose(run, State.completed(), lease=1)
        with pytest.raises(InvalidRequest):
            client.executor("", lease=30)
        verdict = await client.propose(run, State.running(), lease=timedelta(minutes=1))
        assert verdict.state is not None
        assert verdict.state.state_details.lease == 60


async def test_a_missing_run_and_one_without_a_lease_are_lost(deployment: Deployment) -> None:
    async with working(deployment) as client:
        unleased = await running(client, lease=None)
        nobody = client.create_task_run("n").run_id
        stranger = UUID(int=nobody.int ^ 1 << 90)
        lost = {one.run_id: one.state_type for one in await client.heartbeat([unleased, nobody, stranger])}
        assert lost == {unleased.run_id: "RUNNING", nobody: None, stranger: None}
        with pytest.raises(LeaseLost, match="is Running now"):
            async with client.keep_alive(unleased.run_id):
                pass


async def test_keep_alive_renews_until_its_block_ends(deployment: Deployment) -> None:
    async with working(deployment) as client, client.subscribe() as events:
        verdict = await running(client)
        async with client.keep_alive(verdict.run_id) as alive:
            await asyncio.sleep(2.5 * LEASE)
        assert alive.lost is None
        await event_of(events, verdict.run_id, StateType.CRASHED)


@pytest.mark.parametrize("named", ["verdict", "run", "run and lease"])
async def test_keep_alive_tells_that_somebody_else_has_cancelled_the_run(deployment: Deployment, named: str) -> None:
    async with working(deployment) as client, deployment.client() as other:
        verdict = await running(client, lease=3)
        reference: Any = verdict if named == "verdict" else verdict.run_id
        cancelling = State.cancelled(message="not needed")
        with pytest.raises(LeaseLost, match="is Cancelled now: not needed") as told:
            await work_on(
                client,
                reference,
                lease=3 if named == "run and lease" else None,
                meanwhile=lambda: other.propose(verdict.run_id, cancelling),
            )
        assert (told.value.state_type, told.value.run_id) == ("CANCELLED", verdict.run_id)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0


async def test_keep_alive_tells_that_somebody_else_has_taken_the_run_over(deployment: Deployment) -> None:
    async with working(deployment) as client, deployment.client() as other:
        verdict = await running(client, lease=3)
        taking = State.running(lease=30)
        with pytest.raises(LeaseLost, match="is Running now"):
            await work_on(client, verdict.run_id, meanwhile=lambda: other.propose(verdict.run_id, taking, force=True))
        assert await other.heartbeat(verdict.run_id) == []


async def test_keep_alive_gives_up_when_nobody_answers(deployment: Deployment) -> None:
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(AsyncExitStack())
        await worker.enter_async_context(deployment.worker(partitions=1))
        client = await stack.enter_async_context(deployment.client())
        verdict = await running(client)
        await worker.aclose()
        began = time.monotonic()
        with pytest.raises(LeaseLost, match="no heartbeat was answered"):
            await work_on(client, verdict)
        assert time.monotonic() - began == pytest.approx(LEASE, abs=0.5)


async def test_being_cancelled_from_elsewhere_is_no_loss(deployment: Deployment) -> None:
    async with working(deployment) as client:
        verdict = await running(client, lease=30)

        task = asyncio.create_task(work_on(client, verdict))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_forced_running_is_leased_too_and_a_forced_end_ends_the_lease(deployment: Deployment) -> None:
    async with working(deployment) as client:
        run = await client.create_task_run("work")
        await client.propose(run, State.running(), force=True, lease=60)
        assert await rows(deployment, "lease") == 1
        await client.propose(run, State.running(), force=True)
        assert (await rows(deployment, "lease"), await rows(deployment, "timer")) == (0, 0)


async def test_the_policy_may_retry_what_has_crashed_and_the_late_one_meets_the_rules(deployment: Deployment) -> None:
    policy = f"{HOUSE_POLICIES}:RetryingFlowPolicy"
    async with working(deployment, flow_policy=policy) as client, client.subscribe() as events:
        run = await client.create_flow_run("retry", policy=RunPolicy(retries=1))
        await client.propose(run, State.running(), lease=LEASE)
        event = await event_of(events, run.id, StateType.SCHEDULED)
        assert event.data.resource.state_name == "AwaitingRetry"
        assert "without a heartbeat" in (event.data.resource.state_message or "")
        again = await client.propose(run, State.running(), lease=60)
        assert again.accepted
        assert await client.heartbeat(again) == []


@pytest.mark.parametrize("name", ["raise", "stay", "slow sql"])
async def test_what_the_rules_would_keep_is_crashed_by_force(deployment: Deployment, name: str) -> None:
    policy = f"{HOUSE_POLICIES}:RetryingFlowPolicy"
    async with (
        working(deployment, partitions=1, flow_policy=policy, rule_timeout=0.5) as client,
        client.subscribe() as events,
    ):
        run = await client.create_flow_run(name)
        await client.propose(run, State.running(), lease=LEASE)
        event = await event_of(events, run.id, StateType.CRASHED)
        assert "without a heartbeat" in (event.data.resource.state_message or "")
        assert (await rows(deployment, "lease"), await rows(deployment, "timer")) == (0, 0)


async def test_a_subflow_has_the_lease_and_its_parent_task_only_follows(deployment: Deployment) -> None:
    async with working(deployment) as client, client.subscribe() as events:
        parent = client.create_task_run("parent", flow_run=client.create_flow_run("flow"))
        subflow = client.create_flow_run("subflow", parent_task_run=parent)
        await client.propose(subflow, State.running(), lease=LEASE)
        assert await rows(deployment, "lease") == 1
        await event_of(events, parent.run_id, StateType.CRASHED)


async def test_when_an_executor_dies_all_its_runs_end(deployment: Deployment) -> None:
    async with working(deployment) as client, client.subscribe() as events:
        runs = [await client.create_task_run("work") for _ in range(300)]
        # An executor that never gives word, and one that does.
        verdicts = await asyncio.gather(
            *(client.propose(run, State.running(), lease=2, executor="dead") for run in runs)
        )
        assert all(verdict.accepted for verdict in verdicts)
        async with client.executor("alive", lease=2) as alive:
            kept = [await client.create_task_run("kept") for _ in range(4)]
            await asyncio.gather(*(alive.propose(run, State.running()) for run in kept))
            crashed = await crashes_of(events, len(runs))
            assert alive.runs == {run.id for run in kept}
            assert {(await client.read_run(run)).run.state_type for run in kept} == {StateType.RUNNING}
            began = {verdict.run_id: verdict.state.timestamp for verdict in verdicts if verdict.state}
        assert set(crashed) == {run.id for run in runs}
        last = max(began.values())
        # Noticed in time; how long it takes to end so many is up to the machine.
        assert min(event.time for event in crashed.values()) - last <= timedelta(seconds=2 + PROMISED)
        assert all("of executor dead" in (event.data.resource.state_message or "") for event in crashed.values())
        assert [row["name"] for row in await deployment.fetch("SELECT DISTINCT name FROM executor")] == ["alive"]


async def test_an_executor_learns_what_it_has_lost_and_lets_go_of_what_it_has_ended(deployment: Deployment) -> None:
    async with working(deployment) as client, deployment.client() as other:
        lost: list[LeaseLost] = []
        async with client.executor("w", lease=1, on_lost=lost.append) as executor:
            mine, cancelled, taken = [await client.create_task_run("work") for _ in range(3)]
            for run in (mine, cancelled, taken):
                await executor.propose(run, State.running())
            await executor.propose(mine, State.completed())
            assert executor.runs == {cancelled.id, taken.id}
            await other.propose(cancelled, State.cancelled())
            await other.propose(taken, State.running(), force=True, lease=60, executor="other")

            async def told() -> bool:
                return len(lost) == 2

            await until(told)
            assert executor.runs == frozenset()
        assert {one.run_id: (one.state_type, one.executor) for one in lost} == {
            cancelled.id: ("CANCELLED", None),
            taken.id: ("RUNNING", "other"),
        }


async def test_a_frozen_executor_that_comes_back_is_refused_and_told_why(deployment: Deployment) -> None:
    async with working(deployment) as client, client.subscribe() as events:
        runs = [await client.create_task_run("work") for _ in range(3)]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.end_to_end.leased_process",
            "frozen",
            "1",
            *(str(run.id) for run in runs),
            env={**os.environ, **deployment.variables},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            assert await process.stdout.readline() == b"holds 3\n"
            process.send_signal(signal.SIGSTOP)
            await crashes_of(events, len(runs))
            process.send_signal(signal.SIGCONT)
            told = [(await process.stdout.readline()).decode().split(maxsplit=2) for _ in runs]
            assert {line[1] for line in told} == {str(run.id) for run in runs}
            process.stdin.write(f"{runs[0].id}\n".encode())
            verdict = (await process.stdout.readline()).decode()
            assert verdict.startswith("verdict ABORT")
            assert "The lease of 1 s of executor frozen ended at" in verdict
        finally:
            process.kill()
            await process.wait()


async def test_leases_outlive_a_killed_worker(deployment: Deployment) -> None:
    first = deployment.spawn_worker(STATEWRIGHT_PARTITIONS="2")
    async with deployment.client() as client:
        await deployment.answering()
        deployment.spawn_worker()
        async with client.subscribe() as events:
            silent, kept = await running(client, lease=3), await running(client, lease=6)
            async with client.keep_alive(kept):
                first.kill()
                event = await event_of(events, silent.run_id, StateType.CRASHED)
                assert (await client.read_run(kept.run_id)).run.state_type is StateType.RUNNING
            assert silent.state is not None
            assert event.time - silent.state.timestamp <= timedelta(seconds=3 + 2 + PROMISED)


async def test_leases_outlive_an_emptied_redis(deployment: Deployment) -> None:
    async with working(deployment) as client:
        silent, kept = await running(client, lease=3), await running(client, lease=6)
        async with client.keep_alive(kept):
            await deployment.empty_redis()

            async def crashed() -> bool:
                [[state]] = await deployment.fetch("SELECT state_type FROM task_run WHERE id = $1", silent.run_id)
                return bool(state == "CRASHED")

            await until(crashed, seconds=3 + 2 + PROMISED)
            assert (await client.read_run(kept.run_id)).run.state_type is StateType.RUNNING


async def test_a_limit_gives_its_lease_to_runs_that_ask_for_none(deployment: Deployment) -> None:
    async with working(deployment) as client:
        await client.set_limit("short", 3, lease=LEASE)
        await client.set_limit("long", 3, lease=600)
        async with client.subscribe() as events:
            by_default = await running(client, lease=None, tags=["long", "short"])
            own = await running(client, lease=60, tags=["short"])
            assert by_default.state is not None
            assert own.state is not None
            assert (by_default.state.state_details.lease, own.state.state_details.lease) == (LEASE, 60)
            event = await event_of(events, by_default.run_id, StateType.CRASHED)
            assert "The lease of 1 s ended" in (event.data.resource.state_message or "")
            limit = await client.read_limit("short")
            assert limit is not None
            assert [holder.run_id for holder in limit.holders] == [own.run_id]
            assert limit.holders[0].lease_ends is not None


async def test_a_lease_goes_with_its_run(deployment: Deployment) -> None:
    async with working(deployment) as client:
        verdict = await running(client, lease=3_600)
        await deployment.execute(f"DELETE FROM task_run WHERE id = '{verdict.run_id}'")
        left = await deployment.fetch("SELECT FROM lease")

    assert not left
