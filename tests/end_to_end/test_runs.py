"""What a producer says of a run: its id, its first state and its labels when it is made, and what is changed later."""

import asyncio
from typing import Any
from uuid import UUID

import pytest

from statewright import (
    FlowRun,
    InvalidRequest,
    RuleFailed,
    RunConflict,
    RunNotFound,
    RunPolicy,
    SetStateStatus,
    State,
    StateType,
    TaskRun,
)
from statewright.ids import IdSource, partition_of
from tests.deployment import Deployment
from tests.end_to_end.test_ledger import Resender

ids = IdSource()
LABELS = {"team": "data", "ä": "", "commit": "4f2a"}


async def rows(deployment: Deployment, table: str) -> int:
    [row] = await deployment.fetch(f"SELECT count(*) AS rows FROM {table}")
    return int(row["rows"])


# -- a first state -----------------------------------------------------------------------------------------------------


async def test_a_run_is_made_with_its_first_state(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client, client.subscribe() as events:
        flow_run = await client.create_flow_run("nightly", state=State.scheduled(name="Late"))
        task_run = await client.create_task_run("load", flow_run=flow_run, state=State.pending())
        told = [(await anext(events)).type, (await anext(events)).type]
        assert (await client.propose(flow_run, State.running())).accepted

    assert flow_run.state is not None
    assert (flow_run.state_type, flow_run.state_name) == (StateType.SCHEDULED, "Late")
    assert flow_run.next_scheduled_start_time == flow_run.state.state_details.scheduled_time
    assert task_run.state_type is StateType.PENDING
    assert told == ["statewright.flow-run.Late", "statewright.task-run.Pending"]


async def test_a_first_state_is_governed_like_a_proposal(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit("database", 1)
        # In one partition, and so in order; in one batch, most likely, where the second must see the slot taken.
        flow_run = client.create_flow_run("nightly")
        first, second = await asyncio.gather(
            *(
                client.create_task_run("load", flow_run=flow_run, tags=["database"], state=State.running())
                for _ in range(2)
            )
        )
        limit = await client.read_limit("database")
        verdict = await client.propose(second, State.running())

    assert (first.state_type, first.run_count) == (StateType.RUNNING, 1)
    assert limit is not None
    assert limit.active_slots == (first.id,)
    # The policy has not accepted it: the run is there, and has no state.
    assert (second.state, second.run_count) == (None, 0)
    assert verdict.status is SetStateStatus.WAIT


async def test_a_first_state_that_is_replaced_is_answered_as_it_was_written(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        cached = await client.create_task_run("load", state=State.running(cache_key="k"))
        await client.propose(cached, State.completed(data=7, cache_key="k"))
        taken = await client.create_task_run("load", state=State.running(cache_key="k"))
        assert (await client.read_run(taken)).states == (taken.state,)
    assert taken.state is not None
    assert (taken.state_name, taken.state.data) == ("Cached", 7)


async def test_the_first_state_of_a_subflow_is_mirrored(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        flow_run = client.create_flow_run("outer")
        parent = client.create_task_run("subflow", flow_run=flow_run)
        subflow = await client.create_flow_run("inner", parent_task_run=parent, state=State.running())
        mirrored = await client.read_run(parent, history=False)
    assert subflow.state_type is mirrored.state_type is StateType.RUNNING


async def test_a_creation_that_is_sent_twice_writes_one_state(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client, deployment.redis() as redis:
        resender = Resender(redis, deployment)
        run_id, request = ids.new(), ids.new()
        message = {"type": "create_flow_run", "run_id": str(run_id), "name": "n", "state": {"type": "PENDING"}}
        partition = partition_of(run_id, client.partitions)
        first = await resender.push(partition, request, **message)
        await client.propose(run_id, State.running())
        again = await resender.push(partition, request, **message)
        other = await resender.push(partition, ids.new(), **message)
        states = (await client.read_run(run_id)).states

    assert (first["run"]["state"]["type"], first["created"]) == ("PENDING", True)
    assert [state.type for state in states] == ["PENDING", "RUNNING"]
    assert again == other
    assert (again["run"]["state"]["type"], again["created"]) == ("RUNNING", False)
    assert await rows(deployment, "verdict") == 2


async def test_two_equal_creations_in_one_batch_write_one_state(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        sent = [
            client.create_flow_run("nightly", idempotency_key="1", labels={"a": "b"}, state=State.pending())
            for _ in range(2)
        ]
        runs = await asyncio.gather(*sent)
        assert runs[0] == runs[1]
        assert [one.created for one in sent] == [True, False]
    assert await rows(deployment, "flow_run_state") == 1


async def test_a_first_state_means_nothing_for_a_run_that_exists(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.create_flow_run("nightly", idempotency_key="1")
        again = await client.create_flow_run("nightly", idempotency_key="1", state=State.pending())
    assert again.state is None


async def test_a_run_that_is_made_anew_after_its_deletion_keeps_its_one_verdict(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:

        async def made() -> FlowRun:
            run = await client.create_flow_run("nightly", idempotency_key="1", state=State.pending())
            await client.update_run(run, name="another")
            return run

        first = await made()
        await deployment.execute("DELETE FROM flow_run_state; DELETE FROM flow_run")
        second = await made()
        renamed = await client.create_flow_run("another", idempotency_key="1")
    assert first.state_type is StateType.PENDING
    assert second.state is None
    # What the ledger keeps of the run that was deleted is not this run's content.
    assert renamed.id == first.id == second.id


async def test_when_a_rule_fails_nothing_is_made(deployment: Deployment) -> None:
    await deployment.execute("CREATE TABLE budget (amount integer); INSERT INTO budget VALUES (3)")
    policy = "tests.end_to_end.house_policies:HouseFlowPolicy"
    async with deployment.worker(flow_policy=policy), deployment.client() as client:
        fine = client.create_flow_run("fine", state=State.running())
        sent = client.create_flow_run("raise", state=State.running(), labels=LABELS)
        late = client.propose(sent, State.pending())
        with pytest.raises(RuleFailed, match="by design"):
            await sent
        with pytest.raises(RuleFailed):
            _ = sent.created
        with pytest.raises(RunNotFound):
            await late
        assert (await fine).state_type is StateType.RUNNING
        assert [row["amount"] for row in await deployment.fetch("SELECT amount FROM budget")] == [2]
    assert await rows(deployment, "flow_run") == await rows(deployment, "flow_run_state") == 1


# -- whether it is new, and its id -------------------------------------------------------------------------------------


async def test_a_creation_says_whether_the_run_is_new(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        flow_run = client.create_flow_run("nightly", idempotency_key="1")
        with pytest.raises(asyncio.InvalidStateError, match="await"):
            _ = flow_run.created
        again = client.create_flow_run("nightly", idempotency_key="1")
        task_run = client.create_task_run("load", flow_run=flow_run)
        assert await flow_run == await again
        await task_run
        assert (flow_run.created, again.created, task_run.created) == (True, False, True)


async def test_a_run_has_the_id_that_its_producer_gives_it(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        run_id = ids.new()
        flow_run = await client.create_flow_run("nightly", run_id=run_id)
        again = client.create_flow_run("nightly", run_id=str(run_id))
        assert await again == flow_run
        beside = ids.new(tag=run_id.int & 0xFFFF)
        task_run = await client.create_task_run("load", flow_run=flow_run, run_id=beside)
        with pytest.raises(RunConflict) as refused:
            await client.create_flow_run("another", run_id=run_id)

    assert (flow_run.id, again.created, task_run.id) == (run_id, False, beside)
    assert refused.value.field == "name"


async def test_a_run_id_in_another_partition_than_its_parents_is_refused(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        flow_run = await client.create_flow_run("nightly")
        elsewhere = UUID(int=flow_run.id.int ^ 1)
        for make in (
            lambda: client.create_task_run("load", flow_run=flow_run, run_id=elsewhere),
            lambda: client.create_flow_run("inner", parent_task_run=flow_run.id, run_id=elsewhere),
            lambda: client.create_flow_run("nightly", run_id=elsewhere, idempotency_key="1"),
        ):
            with pytest.raises(InvalidRequest) as refused:
                make()
            assert refused.value.field == "run_id"


# -- labels ------------------------------------------------------------------------------------------------------------


async def test_labels_are_read_back(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        flow_run = await client.create_flow_run("nightly", labels=LABELS)
        task_run = await client.create_task_run("load", flow_run=flow_run, labels=LABELS)
        verdict = await client.propose(flow_run, State.running())
        plain = await client.create_flow_run("plain")
        for run in (flow_run, task_run):
            assert (await client.read_run(run)).run.labels == LABELS
            assert (await client.read_run(run, history=False)).labels == LABELS
            assert (await client.update_run(run, policy=RunPolicy(retries=1))).labels == LABELS
    assert verdict.accepted
    assert flow_run.labels == task_run.labels == LABELS
    assert plain.labels == {}
    assert len({flow_run, task_run, plain}) == 3


async def test_labels_are_content(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        run = await client.create_flow_run("nightly", labels=LABELS, idempotency_key="1")
        # The order of the labels says nothing.
        again = await client.create_flow_run("nightly", labels=dict(reversed(LABELS.items())), idempotency_key="1")
        with pytest.raises(RunConflict) as refused:
            await client.create_flow_run("nightly", labels={**LABELS, "team": "web"}, idempotency_key="1")
    assert run == again
    assert refused.value.field == "labels"


@pytest.mark.parametrize(
    ("labels", "field"),
    [({"team": 7}, "labels.team"), ({"team": "x" * 256}, "labels.team"), ({"": "x"}, "labels..[key]"), (7, "labels")],
    ids=repr,
)
async def test_wrong_labels_are_refused_by_their_name(deployment: Deployment, labels: Any, field: str) -> None:
    async with deployment.worker(), deployment.client() as client, deployment.redis() as redis:
        with pytest.raises(InvalidRequest) as refused:
            client.create_flow_run("nightly", labels=labels)
        run_id = ids.new()
        message = {"type": "create_flow_run", "run_id": str(run_id), "name": "n", "labels": labels}
        partition = partition_of(run_id, client.partitions)
        answer = await Resender(redis, deployment).push(partition, ids.new(), **message)
    assert refused.value.field == field
    assert (answer["code"], answer["field"]) == ("invalid_message", field)


# -- changing a run ----------------------------------------------------------------------------------------------------


async def test_a_policy_that_is_learnt_later_governs_from_then_on(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        run = await client.create_flow_run("nightly", state=State.running())
        changed, failed = await asyncio.gather(
            client.update_run(run, policy=RunPolicy(retries=1, retry_delay=60)), client.propose(run, State.failed())
        )
        read = (await client.read_run(run)).run
    assert changed.policy == read.policy == RunPolicy(retries=1, retry_delay=60)
    assert (failed.status, read.state_name) == (SetStateStatus.REJECT, "AwaitingRetry")


async def test_everything_may_be_sent_in_one_go(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        run = client.create_task_run("load", state=State.running())
        client.update_run(run, policy=RunPolicy(retries=1), name="loaded")
        failed = await client.propose(run, State.failed())
        read = await client.read_run(run, history=False)
    assert failed.status is SetStateStatus.REJECT
    assert (read.name, read.policy.retries, read.state_name) == ("loaded", 1, "AwaitingRetry")


async def test_a_name_and_tags_are_changed_with_a_state_of_the_same_batch(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        runs = [await client.create_flow_run("old", tags=["a"]), await client.create_task_run("old", tags=["a"])]
        async with client.subscribe() as events:
            for run in runs:
                changed, verdict, read = await asyncio.gather(
                    client.update_run(run, name="new", tags=["b", "c"]),
                    client.propose(run, State.running()),
                    client.read_run(run, history=False),
                )
                assert (changed.name, changed.tags, changed.state) == ("new", ("b", "c"), None)
                assert (read.name, read.tags, read.state) == ("new", ("b", "c"), verdict.state)
                assert await client.read_run(run, history=False) == read
                event = await anext(events)
                assert (event.data.resource.name, {related.id for related in event.data.related}) >= ("new", {"b", "c"})
                only_named = await client.update_run(run, name="newer")
                assert (only_named.name, only_named.tags) == ("newer", ("b", "c"))


async def test_the_limits_of_new_tags_hold_within_the_same_batch(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit("database", 1)
        holder = await client.create_task_run("load", tags=["database"], state=State.running())
        run = await client.create_task_run("load")
        _, waiting = await asyncio.gather(
            client.update_run(run, tags=["database"]), client.propose(run, State.running())
        )
        await client.propose(holder, State.completed())
        admitted = await client.propose(run, State.running())
        held = await client.read_limit("database")
        await client.propose(run, State.completed())
        freed = await client.read_limit("database")

    assert (waiting.status, admitted.status) == (SetStateStatus.WAIT, SetStateStatus.ACCEPT)
    assert held is not None
    assert freed is not None
    assert (held.active_slots, freed.active_slots) == ((run.id,), ())


async def test_tags_stay_while_the_run_is_running(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit("database", 1)
        run = await client.create_task_run(
            "load", tags=["database"], policy=RunPolicy(retries=1, retry_delay=60), state=State.running()
        )
        with pytest.raises(RunConflict, match="RUNNING, and may hold slots by its tags; change them before") as refused:
            await client.update_run(run, tags=[], name="new")
        kept = await client.read_run(run, history=False)
        renamed = await client.update_run(run, name="new")
        await client.propose(run, State.failed())
        freed = await client.update_run(run, tags=[])
        limit = await client.read_limit("database")

    assert refused.value.field == "tags"
    assert (kept.name, kept.tags) == ("load", ("database",))
    assert (renamed.name, renamed.tags, freed.tags) == ("new", ("database",), ())
    assert limit is not None
    assert limit.active_slots == ()


async def test_named_limits_stay_while_the_run_is_running(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit(name="gpu", concurrency_limit=1)
        limited = RunPolicy(limits=("gpu",))
        run = await client.create_flow_run("nightly", policy=limited, state=State.running())
        with pytest.raises(RunConflict, match=r"give the new policy the same ones \(gpu\)") as refused:
            await client.update_run(run, policy=RunPolicy(retries=1))
        learnt = await client.update_run(run, policy=RunPolicy(retries=1, limits=("gpu",)))
        await client.propose(run, State.failed())
        freed = await client.update_run(run, policy=RunPolicy(retries=1))

    assert refused.value.field == "policy.limits"
    assert (learnt.policy.limits, freed.policy.limits) == (("gpu",), ())


async def test_named_limits_that_are_given_later_hold_within_the_same_batch(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit(name="gpu", concurrency_limit=1)
        limited = RunPolicy(limits=("gpu",))
        await client.create_flow_run("holder", policy=limited, state=State.running())
        run = await client.create_flow_run("nightly")
        _, waiting = await asyncio.gather(client.update_run(run, policy=limited), client.propose(run, State.running()))
    assert waiting.status is SetStateStatus.WAIT


async def test_a_parked_proposal_is_decided_when_its_run_asks_for_the_full_limit_no_more(
    deployment: Deployment,
) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.set_limit("database", 1)
        await client.create_task_run("holder", tags=["database"], state=State.running())
        run = await client.create_task_run("load", tags=["database"])
        parked = client.propose(run, State.running(), on_wait="park")
        changed = await client.update_run(run, tags=[])
        verdict = await asyncio.wait_for(parked.answer(), 20)
    assert changed.state is None
    assert verdict.accepted


async def test_nothing_changes_after_a_terminal_state(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        run = await client.create_flow_run("nightly", state=State.running())
        await client.propose(run, State.completed())
        changes: dict[str, Any] = {"name": "new", "tags": ["new"], "policy": RunPolicy(retries=1)}
        for field, value in changes.items():
            with pytest.raises(RunConflict, match=f"{field}: .* is COMPLETED") as refused:
                await client.update_run(run, **{field: value})
            assert refused.value.field == field
        read = await client.read_run(run, history=False)
    assert (read.name, read.tags, read.policy) == ("nightly", (), RunPolicy())


async def test_a_run_that_does_not_exist_is_not_changed(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        with pytest.raises(RunNotFound) as refused:
            await client.update_run(ids.new(), name="new")
    assert refused.value.field == "run_id"


async def test_the_marks_of_pausing_stay(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        marked = RunPolicy(retries=1, pause_keys=frozenset({"lunch"}), resuming=True)
        run = await client.create_flow_run("nightly", policy=marked)
        changed = await client.update_run(run, policy=RunPolicy(retry_delay=5))
    assert changed.policy == RunPolicy(retry_delay=5, pause_keys=frozenset({"lunch"}), resuming=True)


async def test_a_change_has_one_answer_for_ever(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client, deployment.redis() as redis:
        resender = Resender(redis, deployment)
        run = await client.create_flow_run("nightly")
        partition = partition_of(run.id, client.partitions)
        request, refused = ids.new(), ids.new()
        message = {"type": "update_run", "run_id": str(run.id), "name": "first", "policy": {"retries": 1}}
        first = await resender.push(partition, request, **message)
        await client.update_run(run, name="second")
        assert await resender.push(partition, request, **message) == first
        other = await resender.push(partition, request, **{**message, "name": "third"})
        await client.propose(run, State.cancelled())
        conflict = await resender.push(partition, refused, **message)
        assert await resender.push(partition, refused, **message) == conflict
        read = await client.read_run(run, history=False)

    assert (first["run"]["name"], first["created"]) == ("first", False)
    assert (other["code"], conflict["code"]) == ("proposal_conflict", "run_conflict")
    assert (read.name, read.policy.retries) == ("second", 1)


async def test_a_changed_run_is_still_what_its_key_made(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:

        def make(**changed: Any) -> Any:
            content: dict[str, Any] = {"tags": ["a"], "policy": RunPolicy(retries=1), "labels": LABELS, **changed}
            return client.create_flow_run("nightly", idempotency_key="1", **content)

        # Once in the batch that makes and changes it, and once in later ones.
        made, _, again = await asyncio.gather(make(), client.update_run(make(), name="new", tags=["b"]), make())
        run = await client.update_run(made, policy=RunPolicy(retries=2))
        sent = make()
        assert await sent == run
        assert not sent.created
        with pytest.raises(RunConflict) as refused:
            await make(tags=["b"])

    assert (again.id, again.name) == (made.id, "new")
    assert (run.name, run.tags, run.policy.retries, run.labels) == ("new", ("b",), 2, LABELS)
    assert refused.value.field == "tags"


# -- reading a run alone -----------------------------------------------------------------------------------------------


async def test_a_run_is_read_alone(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        flow_run = client.create_flow_run("nightly", state=State.pending())
        task_run = client.create_task_run("load", flow_run=flow_run)
        running = client.propose(flow_run, State.running())
        alone: FlowRun | TaskRun = await client.read_run(flow_run, history=False)
        with_history = await client.read_run(flow_run)
        task = await client.read_run(task_run, history=False)
        with pytest.raises(RunNotFound):
            await client.read_run(ids.new(), history=False)

    assert isinstance(alone, FlowRun)
    assert isinstance(task, TaskRun)
    assert alone.state == (await running).state
    assert alone == with_history.run
    assert len(with_history.states) == 2


async def test_a_reading_that_says_no_more_than_the_run_has_the_history(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client, deployment.redis() as redis:
        run = await client.create_flow_run("nightly", state=State.pending())
        answer = await Resender(redis, deployment).push(
            partition_of(run.id, client.partitions), ids.new(), type="read_run", run_id=str(run.id)
        )
    assert [state["type"] for state in answer["history"]["states"]] == ["PENDING"]
