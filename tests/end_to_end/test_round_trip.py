"""What a producer and a subscriber see, through the public client, Redis, a worker and PostgreSQL."""

import asyncio
import math
import time
from datetime import UTC, datetime, timedelta

import pytest

from statewright import (
    ConfigurationError,
    InvalidRequest,
    MessageTooLarge,
    NoAnswer,
    PartitionCountMismatch,
    RunConflict,
    RunNotFound,
    RunPolicy,
    SetStateStatus,
    State,
    StateType,
)
from statewright.ids import IdSource
from statewright_worker.replica import run_replica
from tests.deployment import Deployment

ids = IdSource()


async def test_a_proposal_is_answered_recorded_and_told(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client, client.subscribe() as events:
        run = await client.create_flow_run("nightly", tags=["b", "a", "b"])
        verdict = await client.propose(run, State.running(message="here we go"))
        history = await client.read_run(run)
        event = await anext(events)

    assert verdict.accepted
    assert verdict.rule_signature == ("PreventRedundantTransitions",)
    assert history.states == (verdict.state,)
    assert history.run.run_count == 1
    assert verdict.state is not None
    assert (event.id, event.type, event.sequence) == (verdict.state.id, "statewright.flow-run.Running", 1)
    assert event.data.resource.state_message == "here we go"
    assert [related.id for related in event.data.related] == ["a", "b"]


async def test_create_propose_and_read_may_be_sent_in_one_go(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        created = client.create_flow_run("nightly")
        pending, early, running, late = await asyncio.gather(
            client.propose(created, State.pending()),
            client.read_run(created),
            client.propose(created, State.running()),
            client.read_run(created),
        )

    assert early.states == (pending.state,)
    assert late.states == (pending.state, running.state)


async def test_a_long_history_is_read_whole_and_as_it_was(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        run = client.create_flow_run("nightly")
        big = State.completed(data="x" * 20_000)
        states = [big if n % 2 else State.running() for n in range(130)]
        sent = [client.propose(run, state, force=True) for state in states]
        reading = client.read_run(run)
        # Sent before the further pages are asked for: it does not belong to what was read.
        await client.propose(run, State.cancelled(), force=True)
        history = await reading
        again = await reading
        entered = [(await verdict).state for verdict in sent]

    assert list(history.states) == entered
    assert history.run.state == entered[-1]
    assert again == history


async def test_what_nobody_awaits_takes_effect_all_the_same(deployment: Deployment) -> None:
    async with deployment.worker():
        async with deployment.client() as client:
            run = client.create_flow_run("nightly")
            client.propose(run, State.pending())
        async with deployment.client() as client:
            history = await client.read_run(run)
    assert [state.name for state in history.states] == ["Pending"]


async def test_many_proposals_get_a_verdict_or_an_error_each(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        run = await client.create_flow_run("nightly")
        nobody = ids.new()
        answers = await client.propose_many(
            [(run, State.pending()), (nobody, State.pending()), (run, State.running()), (run, State.pending())]
        )

    assert [type(answer).__name__ for answer in answers] == ["Verdict", "RunNotFound", "Verdict", "Verdict"]
    assert [getattr(answer, "status", None) for answer in answers] == ["ACCEPT", None, "ACCEPT", "ABORT"]


async def test_a_failed_task_waits_for_its_retry_and_runs_again(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        flow_run = await client.create_flow_run("nightly")
        task_run = await client.create_task_run("load", flow_run=flow_run, policy=RunPolicy(retries=1, retry_delay=60))
        await client.propose(task_run, State.running())
        began = time.monotonic()
        failed = await client.propose(task_run, State.failed(message="boom", data={"at": 3}))
        too_early = await client.propose(task_run, State.running())
        took = time.monotonic() - began
        forced = await client.propose(task_run, State.running(), force=True)

    assert failed.status is SetStateStatus.REJECT
    assert failed.state is not None
    assert (failed.state.name, failed.state.message, failed.state.data) == ("AwaitingRetry", "boom", {"at": 3})
    assert too_early.status is SetStateStatus.WAIT
    # The verdict tells whole seconds, rounded down, of what is left of the 60 when it is decided.
    assert too_early.delay_seconds is not None
    assert 59 - math.ceil(took) <= too_early.delay_seconds <= 59
    assert too_early.state == failed.state
    assert forced.accepted


async def test_a_full_limit_delays_and_a_freed_slot_admits(deployment: Deployment) -> None:
    async with deployment.worker(concurrency_slot_wait_seconds=7), deployment.client() as client:
        await client.set_limit("database", 1)
        first, second = [await client.create_task_run("load", tags=["database"]) for _ in range(2)]
        assert (await client.propose(first, State.running())).accepted
        delayed = await client.propose(second, State.running())
        held = await client.read_limit("database")
        await client.propose(first, State.completed())
        admitted = await client.propose(second, State.running())

    assert (delayed.status, delayed.delay_seconds) == (SetStateStatus.WAIT, 7)
    assert held is not None
    assert held.active_slots == (first.id,)
    assert admitted.accepted


async def test_a_limit_is_changed_and_removed_in_the_order_of_the_requests(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        answers = await asyncio.gather(
            client.read_limit("database"),
            client.set_limit("database", 3),
            client.set_limit("database", 5),
            client.read_limit("database"),
            client.set_limit("database", None),
            client.read_limit("database"),
        )

    assert [limit.concurrency_limit if limit else None for limit in answers] == [None, 3, 5, 5, None, None]


async def test_removing_a_limit_frees_the_slots_of_the_runs_that_wait(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit("database", 1)
        first, second = [await client.create_task_run("load", tags=["database"]) for _ in range(2)]
        await client.propose(first, State.running())
        await client.set_limit("database", None)
        assert (await client.propose(second, State.running())).accepted
    assert await deployment.fetch("SELECT * FROM concurrency_slot") == []


async def test_a_cached_result_is_taken_instead_of_running(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        first, second = [await client.create_task_run("load") for _ in range(2)]
        await client.propose(first, State.running(cache_key="k"))
        await client.propose(first, State.completed(data=[1, None, {"a": "ä"}], cache_key="k"))
        taken = await client.propose(second, State.running(cache_key="k"))

    assert taken.status is SetStateStatus.REJECT
    assert taken.state is not None
    assert (taken.state.type, taken.state.name) == (StateType.COMPLETED, "Cached")
    assert taken.state.data == [1, None, {"a": "ä"}]


async def test_a_subflow_and_its_parent_task_run_change_together(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client, client.subscribe() as events:
        flow_run = await client.create_flow_run("outer")
        parent = await client.create_task_run("subflow", flow_run=flow_run)
        subflow = await client.create_flow_run("inner", parent_task_run=parent)
        await client.propose(subflow, State.running())
        mirrored = (await client.read_run(parent)).run.state
        told = [await anext(events), await anext(events)]

    assert mirrored is not None
    assert mirrored.type is StateType.RUNNING
    assert mirrored.state_details.child_flow_run_id == subflow.id
    assert [event.run_id for event in told] == [subflow.id, parent.id]
    assert len({event.partition for event in told}) == 1


async def test_the_same_idempotency_key_creates_one_run(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client, deployment.client() as other:
        runs = [await c.create_flow_run("nightly", idempotency_key="2026-11-22") for c in (client, other)]
        tasks = [await c.create_task_run("load", flow_run=runs[0], idempotency_key="1") for c in (client, other)]
    assert runs[0] == runs[1]
    assert tasks[0] == tasks[1]
    assert len(await deployment.fetch("SELECT id FROM flow_run")) == 1


async def test_the_timestamp_is_the_producers_but_never_in_the_future(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        run = await client.create_flow_run("nightly")
        past = datetime(2020, 1, 2, tzinfo=UTC)
        early = await client.propose(run, State.pending().model_copy(update={"timestamp": past}))
        future = datetime.now(UTC) + timedelta(days=1)
        late = await client.propose(run, State.running().model_copy(update={"timestamp": future}))
        unstamped = await client.propose(run, State.completed())

    stamps = [verdict.state.timestamp for verdict in (early, late, unstamped) if verdict.state]
    assert stamps[0] == past
    assert stamps[1] < future - timedelta(hours=23)
    assert stamps[1] - timedelta(minutes=1) < stamps[2] <= datetime.now(UTC) + timedelta(minutes=1)


async def test_errors_say_what_is_wrong(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client(max_message_bytes=2_000) as client:
        nobody = ids.new()
        with pytest.raises(RunNotFound, match=str(nobody)) as missing:
            await client.propose(nobody, State.pending())
        assert missing.value.field == "run_id"
        with pytest.raises(RunNotFound):
            await client.read_run(nobody)
        with pytest.raises(RunConflict, match="no flow-run"):
            await client.create_task_run("load", flow_run=nobody)
        with pytest.raises(MessageTooLarge, match="at most 2000"):
            client.propose(nobody, State.completed(data="x" * 3_000))
        with pytest.raises(InvalidRequest, match=r"tags\.1"):
            client.create_flow_run("nightly", tags=["fine", ""])
        with pytest.raises(InvalidRequest, match="tags"):
            client.create_flow_run("nightly", tags="database")
        with pytest.raises(InvalidRequest, match="idempotency_key: has 2001 characters"):
            client.create_flow_run("nightly", idempotency_key="k" * 2_001)


async def test_a_client_or_worker_with_another_partition_count_is_told_so(deployment: Deployment) -> None:
    async with deployment.worker(partitions=4):
        async with deployment.client() as client:
            assert client.partitions == 4
        with pytest.raises(PartitionCountMismatch, match="STATEWRIGHT_PARTITIONS=4"):
            await deployment.client(partitions=8).__aenter__()
        with pytest.raises(PartitionCountMismatch, match="STATEWRIGHT_PARTITIONS=4"):
            await run_replica(deployment.settings(partitions=16), asyncio.Event())


async def test_without_a_worker_nobody_answers_and_asking_again_is_safe(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        run = await client.create_flow_run("nightly")
    async with deployment.client() as client:
        with pytest.raises(NoAnswer, match="safe") as unanswered:
            await client.propose(run, State.pending(), timeout=0.1)
        async with deployment.worker():
            again = await client.propose(run, State.pending(), proposal_id=unanswered.value.proposal_id)
        assert again.accepted
    assert len(await deployment.fetch("SELECT id FROM flow_run_state")) == 1


async def test_a_worker_without_a_schema_says_which_command_makes_one(deployment: Deployment) -> None:
    await deployment.execute("DROP TABLE alembic_version")
    with pytest.raises(ConfigurationError, match="statewright migrate"):
        await run_replica(deployment.settings(), asyncio.Event())
