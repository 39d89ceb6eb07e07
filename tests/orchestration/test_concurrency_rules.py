"""SecureTaskConcurrencySlots and ReleaseTaskConcurrencySlots: slots are held while RUNNING, and only then."""

from typing import Any
from uuid import UUID, uuid4

import pytest

from statewright import ProposedState, RunPolicy, SetStateStatus, State, StateType
from statewright.limits import LimitScope
from statewright_worker.orchestration import Engine, OrchestrationSettings, UnitOfWork
from statewright_worker.orchestration.core_policy import ReleaseTaskConcurrencySlots
from statewright_worker.orchestration.records import AnyRunRecord, LimitRecord, TaskRunRecord
from tests.orchestration.builders import (
    NOW,
    acting,
    engine_with,
    flow_run,
    limit_on,
    of_type,
    on_tag,
    propose,
    put,
    seconds,
    task_run,
    work_with,
)

FULL = "Concurrency limit for the {} tag has been reached"
ZERO = 'The concurrency limit on tag "{}" is 0 and will deadlock if the task tries to run again.'


def tagged_run(*limits: LimitRecord, **fields: Any) -> tuple[UnitOfWork, TaskRunRecord]:
    """Return a task run with the tags of the limits, and a world that knows them all."""
    run = task_run(tags=tuple(limit.key for limit in limits), **fields)
    return work_with(run, limits=limits), run


async def running_run(*limits: LimitRecord, **fields: Any) -> tuple[UnitOfWork, TaskRunRecord]:
    """Return a task run that is RUNNING and holds a slot of each limit."""
    work, run = tagged_run(*limits, **fields)
    assert (await propose(work, run, State.running())).status is SetStateStatus.ACCEPT
    return work, run


async def test_a_task_run_takes_a_slot_of_every_limit_on_its_tags() -> None:
    a, b, other = limit_on("a", 1), limit_on("b", 2), limit_on("other", 1)
    work, run = tagged_run(a, b)
    work.limits[on_tag("other")] = other
    verdict = await propose(work, run, State.running())
    assert verdict.status is SetStateStatus.ACCEPT
    assert (a.holders, b.holders, other.holders) == ({run.id}, {run.id}, set())
    assert work.slots_taken == {(a.id, run.id), (b.id, run.id)}


async def test_duplicate_tags_take_one_slot_and_tags_without_a_limit_none() -> None:
    limit = limit_on("db", 2)
    run = task_run(tags=("db", "free", "db"))
    work = work_with(run, limits=[limit])
    await propose(work, run, State.running())
    assert (limit.slots_held, limit.holders) == (1, {run.id})


@pytest.mark.parametrize("state_type", [t for t in StateType if t is not StateType.RUNNING])
async def test_only_running_takes_slots(state_type: StateType) -> None:
    limit = limit_on("db", 1)
    work, run = tagged_run(limit)
    await propose(work, run, of_type(state_type))
    assert run.state_type is state_type
    assert limit.holders == set()


async def test_a_full_limit_delays_by_thirty_seconds() -> None:
    limit = limit_on("db", 2, task_run(), task_run())
    work, run = tagged_run(limit)
    verdict = await propose(work, run, State.running())
    assert (verdict.status, verdict.delay_seconds) == (SetStateStatus.WAIT, 30)
    assert verdict.reason == FULL.format("db")
    assert (run.state, limit.slots_held) == (None, 2)


async def test_the_delay_of_a_full_limit_is_a_setting() -> None:
    work, run = tagged_run(limit_on("db", 1, task_run()))
    engine = Engine(settings=OrchestrationSettings(concurrency_slot_wait_seconds=7))
    assert (await propose(work, run, State.running(), engine=engine)).delay_seconds == 7


async def test_a_limit_of_zero_aborts() -> None:
    work, run = tagged_run(limit_on("db", 0))
    verdict = await propose(work, run, State.running())
    assert (verdict.status, verdict.reason) == (SetStateStatus.ABORT, ZERO.format("db"))
    assert run.state is None


@pytest.mark.parametrize("tags", [("free", "full"), ("full", "late")])
async def test_when_one_of_several_limits_is_full_nothing_is_taken(tags: tuple[str, str]) -> None:
    limits = [limit_on(tag, 1, *[task_run()] * (tag == "full")) for tag in tags]
    work, run = tagged_run(*limits)
    verdict = await propose(work, run, State.running())
    assert verdict.reason == FULL.format("full")
    assert not any(run.id in limit.holders for limit in limits)
    assert work.slots_taken == work.slots_released == set()


@pytest.mark.parametrize("tags", [("free", "zero"), ("a-zero", "free")])
async def test_when_one_of_several_limits_is_zero_nothing_is_taken(tags: tuple[str, str]) -> None:
    limits = [limit_on(tag, 1 if tag == "free" else 0) for tag in tags]
    work, run = tagged_run(*limits)
    assert (await propose(work, run, State.running())).status is SetStateStatus.ABORT
    assert all(limit.holders == set() for limit in limits)


async def test_of_several_obstacles_the_last_tag_in_ascending_order_decides() -> None:
    work, run = tagged_run(limit_on("b", 0), limit_on("a", 1, task_run()))
    verdict = await propose(work, run, State.running())
    assert (verdict.status, verdict.reason) == (SetStateStatus.ABORT, ZERO.format("b"))
    work, run = tagged_run(limit_on("b", 1, task_run()), limit_on("a", 0))
    verdict = await propose(work, run, State.running())
    assert (verdict.status, verdict.reason) == (SetStateStatus.WAIT, FULL.format("b"))


async def test_a_run_that_holds_its_slot_already_needs_no_other() -> None:
    limit = limit_on("db", 1)
    work, run = tagged_run(limit)
    limit.holders, limit.slots_held = {run.id}, 1
    assert (await propose(work, run, State.running())).status is SetStateStatus.ACCEPT
    assert (limit.slots_held, work.slots_taken) == (1, set())


async def test_the_runs_of_a_batch_see_each_others_slots() -> None:
    limit = limit_on("db", 2)
    runs = [task_run(tags=("db",)) for _ in range(3)]
    work = work_with(*runs, limits=[limit])
    statuses = [(await propose(work, run, State.running())).status for run in runs]
    assert statuses == [SetStateStatus.ACCEPT, SetStateStatus.ACCEPT, SetStateStatus.WAIT]


async def test_a_slot_is_given_back_when_a_later_rule_delays_the_transition() -> None:
    limit = limit_on("db", 1)
    work, run = tagged_run(limit)
    await put(work, run, State.scheduled(NOW + seconds(60)))
    verdict = await propose(work, run, State.running())
    assert (verdict.status, verdict.delay_seconds) == (SetStateStatus.WAIT, 60)
    assert {"SecureTaskConcurrencySlots", "WaitForScheduledTime"} <= set(verdict.rule_signature)
    assert "SecureTaskConcurrencySlots" not in verdict.finalization_signature
    assert (limit.slots_held, limit.holders, work.slots_taken) == (0, set(), set())


async def test_a_slot_that_was_held_before_is_kept_when_a_later_rule_delays_the_transition() -> None:
    limit, fresh = limit_on("db", 1), limit_on("fresh", 1)
    work, run = tagged_run(limit, fresh)
    await put(work, run, State.scheduled(NOW + seconds(60)))
    limit.holders, limit.slots_held = {run.id}, 1
    await propose(work, run, State.running())
    assert (limit.holders, fresh.holders) == ({run.id}, set())


async def test_force_takes_no_slot_and_asks_for_none() -> None:
    full = limit_on("db", 1, task_run())
    work, run = tagged_run(full)
    assert (await propose(work, run, State.running(), force=True)).status is SetStateStatus.ACCEPT
    assert run.id not in full.holders


async def test_tags_do_not_limit_flow_runs() -> None:
    run = flow_run(tags=("db",))
    limit = limit_on("db", 0)
    assert (await propose(work_with(run, limits=[limit]), run, State.running())).status is SetStateStatus.ACCEPT
    assert limit.holders == set()


# -- releasing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state_type",
    [
        StateType.COMPLETED,
        StateType.FAILED,
        StateType.CANCELLED,
        StateType.CRASHED,
        StateType.PAUSED,
        StateType.CANCELLING,
    ],
)
async def test_whatever_leaves_running_releases(state_type: StateType) -> None:
    a, b = limit_on("a", 1), limit_on("b", 3, task_run())
    work, run = await running_run(a, b)
    verdict = await propose(work, run, of_type(state_type))
    assert verdict.finalization_signature[0] == "ReleaseTaskConcurrencySlots"
    assert (a.slots_held, a.holders) == (0, set())
    assert (b.slots_held, run.id in b.holders) == (1, False)
    assert work.slots_taken == work.slots_released == set()


async def test_a_scheduled_retry_releases() -> None:
    limit = limit_on("db", 1)
    work, run = await running_run(limit, policy=RunPolicy(retries=1))
    verdict = await propose(work, run, State.failed())
    assert (verdict.status, run.state_name) == (SetStateStatus.REJECT, "AwaitingRetry")
    assert limit.holders == set()
    assert (await propose(work, run, State.running())).status is SetStateStatus.ACCEPT


@pytest.mark.parametrize("state_type", [t for t in StateType if t is not StateType.RUNNING])
async def test_a_forced_change_out_of_running_releases(state_type: StateType) -> None:
    limit = limit_on("db", 1)
    work, run = await running_run(limit)
    await propose(work, run, of_type(state_type), force=True)
    assert run.state_type is state_type
    assert limit.holders == set()


async def test_a_run_that_is_forced_to_run_while_it_runs_keeps_its_slots() -> None:
    limit = limit_on("db", 1)
    work, run = await running_run(limit)
    other = task_run(tags=("db",))
    work.runs[other.id] = other
    verdict = await propose(work, run, State.running(), force=True)
    assert (verdict.status, verdict.state) == (SetStateStatus.ACCEPT, run.state)
    assert (limit.slots_held, limit.holders) == (1, {run.id})
    assert (await propose(work, other, State.running())).status is SetStateStatus.WAIT
    await propose(work, run, State.running(), force=True)
    await propose(work, run, State.completed())
    assert limit.holders == set()
    assert (await propose(work, other, State.running())).status is SetStateStatus.ACCEPT


@pytest.mark.parametrize("rejected_with", [State.running(message="another"), None])
async def test_a_run_that_a_rule_keeps_running_keeps_its_slots(rejected_with: ProposedState | None) -> None:
    limit = limit_on("db", 1)
    work, run = await running_run(limit)
    keeping = acting(lambda rule: rule.reject_transition(rejected_with, "stay"))
    engine = engine_with(keeping, ReleaseTaskConcurrencySlots)
    assert (await propose(work, run, State.completed(), engine=engine)).status is SetStateStatus.REJECT
    assert (run.state_type, limit.holders) == (StateType.RUNNING, {run.id})


@pytest.mark.parametrize("proposed", [State.running(), State.pending(), State.scheduled()])
async def test_a_run_that_stays_running_keeps_its_slots(proposed: ProposedState) -> None:
    limit = limit_on("db", 1)
    work, run = await running_run(limit)
    assert (await propose(work, run, proposed)).status is SetStateStatus.ABORT
    assert limit.holders == {run.id}


async def test_a_subflow_that_moves_its_parent_out_of_running_releases_the_parents_slot() -> None:
    limit = limit_on("db", 1)
    work, parent = await running_run(limit)
    subflow = flow_run(parent_task_run_id=parent.id)
    work.runs[subflow.id] = subflow
    await propose(work, subflow, State.completed())
    assert (parent.state_type, limit.holders) == (StateType.COMPLETED, set())


async def test_a_subflow_that_enters_running_leaves_its_running_parent_the_slot() -> None:
    limit = limit_on("db", 1)
    work, parent = await running_run(limit)
    subflow, other = flow_run(parent_task_run_id=parent.id), task_run(tags=("db",))
    work.runs |= {subflow.id: subflow, other.id: other}
    assert (await propose(work, subflow, State.running())).status is SetStateStatus.ACCEPT
    assert (parent.state_count, parent.state_type, limit.holders) == (2, StateType.RUNNING, {parent.id})
    assert (await propose(work, other, State.running())).status is SetStateStatus.WAIT
    await propose(work, subflow, State.completed())
    assert limit.holders == set()


async def test_a_released_slot_serves_the_next_run_of_the_same_batch() -> None:
    limit = limit_on("db", 1)
    work, run = await running_run(limit)
    waiting = task_run(tags=("db",))
    work.runs[waiting.id] = waiting
    assert (await propose(work, waiting, State.running())).status is SetStateStatus.WAIT
    await propose(work, run, State.completed())
    assert (await propose(work, waiting, State.running())).status is SetStateStatus.ACCEPT
    assert limit.holders == {waiting.id}


async def test_leaving_running_without_a_slot_releases_nobody_elses() -> None:
    holder = task_run()
    limit = limit_on("db", 1, holder)
    work, run = tagged_run(limit)
    await put(work, run, State.running())
    await propose(work, run, State.completed())
    assert (limit.slots_held, limit.holders) == (1, {holder.id})


async def test_a_transition_that_was_aborted_names_no_release() -> None:
    work, run = await running_run(limit_on("a", 1))
    aborted = await propose(work, run, State.running())
    assert aborted.status is SetStateStatus.ABORT
    assert "ReleaseTaskConcurrencySlots" not in (*aborted.rule_signature, *aborted.finalization_signature)
    assert work.limits[on_tag("a")].holders == {run.id}


# -- limits of every scope ---------------------------------------------------------------------------------------------


def named(key: str, concurrency_limit: int, *holders: AnyRunRecord, **terms: Any) -> LimitRecord:
    return limit_on(key, concurrency_limit, *holders, scope=LimitScope.NAME, **terms)


def of_deployment(key: object, concurrency_limit: int, *holders: AnyRunRecord) -> LimitRecord:
    return limit_on(str(key), concurrency_limit, *holders, scope=LimitScope.DEPLOYMENT)


def asking_for(*names: str) -> RunPolicy:
    return RunPolicy(limits=names)


@pytest.mark.parametrize("make", [flow_run, task_run])
async def test_a_run_of_either_kind_takes_a_slot_of_each_limit_that_its_policy_names(make: Any) -> None:
    gpu, licence, other = named("gpu", 1), named("licence", 2), named("other", 1)
    run = make(policy=asking_for("licence", "gpu", "unlimited"))
    work = work_with(run, limits=[gpu, licence, other])
    verdict = await propose(work, run, State.running())
    assert verdict.status is SetStateStatus.ACCEPT
    assert [limit.holders for limit in (gpu, licence, other)] == [{run.id}, {run.id}, set()]
    await propose(work, run, State.completed())
    assert work.slots_taken == work.slots_released == gpu.holders == licence.holders == set()


async def test_a_named_limit_serves_runs_of_both_kinds() -> None:
    gpu = named("gpu", 1)
    flow, task = flow_run(policy=asking_for("gpu")), task_run(policy=asking_for("gpu"))
    work = work_with(flow, task, limits=[gpu])
    assert (await propose(work, flow, State.running())).status is SetStateStatus.ACCEPT
    verdict = await propose(work, task, State.running())
    assert (verdict.status, verdict.delay_seconds) == (SetStateStatus.WAIT, 30)
    assert verdict.reason == 'Concurrency limit "gpu" has been reached'
    await propose(work, flow, State.failed(), force=True)
    assert (await propose(work, task, State.running())).status is SetStateStatus.ACCEPT


async def test_a_flow_run_takes_a_slot_of_its_deployments_limit() -> None:
    deployment = uuid4()
    limit, other = of_deployment(deployment, 1), of_deployment(uuid4(), 1)
    first, second = (flow_run(deployment_id=deployment) for _ in range(2))
    work = work_with(first, second, limits=[limit, other])
    accepted = await propose(work, first, State.running())
    assert accepted.rule_signature == ("PreventRedundantTransitions", "SecureFlowConcurrencySlots")
    assert accepted.finalization_signature == ("SecureFlowConcurrencySlots", "PreventRedundantTransitions")
    waiting = await propose(work, second, State.running())
    assert (waiting.status, waiting.reason) == (
        SetStateStatus.WAIT,
        f"Concurrency limit for the deployment {deployment} has been reached",
    )
    completed = await propose(work, first, State.completed())
    assert completed.finalization_signature == ("ReleaseFlowConcurrencySlots",)
    assert (limit.holders, other.holders) == (set(), set())


async def test_tags_and_deployments_limit_the_kind_of_run_that_they_are_for() -> None:
    deployment = uuid4()
    limits = [limit_on("db", 0), limit_on(str(deployment), 0), named("db", 0), of_deployment("db", 0)]
    flow, task = flow_run(tags=("db",), deployment_id=deployment), task_run(tags=("x",))
    work = work_with(flow, task, limits=limits)
    for run in (flow, task):
        verdict = await propose(work, run, State.running())
        assert verdict.status is SetStateStatus.ACCEPT
        assert not any("FlowConcurrency" in rule for rule in verdict.rule_signature)


@pytest.mark.parametrize(
    ("limit", "run", "reason"),
    [
        (
            named("gpu", 0),
            task_run(policy=asking_for("gpu")),
            'The concurrency limit "gpu" is 0 and will deadlock if the task tries to run again.',
        ),
        (
            named("gpu", 0),
            flow_run(policy=asking_for("gpu")),
            'The concurrency limit "gpu" is 0 and will deadlock if the flow tries to run again.',
        ),
        (
            of_deployment(UUID(int=7), 0),
            flow_run(deployment_id=UUID(int=7)),
            f"The concurrency limit on deployment {UUID(int=7)} is 0 and will deadlock if the flow tries to run again.",
        ),
    ],
)
async def test_a_limit_of_zero_aborts_whatever_it_is_on(limit: LimitRecord, run: AnyRunRecord, reason: str) -> None:
    verdict = await propose(work_with(run, limits=[limit]), run, State.running())
    assert (verdict.status, verdict.reason) == (SetStateStatus.ABORT, reason)


async def test_limits_of_several_scopes_are_all_or_nothing() -> None:
    deployment = uuid4()
    mine, full = of_deployment(deployment, 1), named("gpu", 1, task_run())
    run = flow_run(deployment_id=deployment, policy=asking_for("gpu"))
    work = work_with(run, limits=[mine, full])
    assert (await propose(work, run, State.running())).status is SetStateStatus.WAIT
    assert (mine.holders, work.slots_taken) == (set(), set())


@pytest.mark.parametrize("force", [False, True])
async def test_slots_are_given_back_under_a_policy_without_the_rule(force: bool) -> None:
    limit = limit_on("db", 1)
    work, run = await running_run(limit)
    verdict = await propose(work, run, State.completed(), engine=engine_with(), force=force)
    assert verdict.status is SetStateStatus.ACCEPT
    assert limit.holders == set()


def test_which_limits_a_run_asks_for() -> None:
    deployment = uuid4()
    flow = flow_run(tags=("db",), deployment_id=deployment, policy=asking_for("gpu", "a"))
    task = task_run(tags=("z", "db", "z"), policy=asking_for("gpu"))
    assert flow.limit_names() == (
        (LimitScope.DEPLOYMENT, str(deployment)),
        (LimitScope.NAME, "a"),
        (LimitScope.NAME, "gpu"),
    )
    assert task.limit_names() == ((LimitScope.TAG, "db"), (LimitScope.TAG, "z"), (LimitScope.NAME, "gpu"))
    assert flow_run().limit_names() == task_run().limit_names() == ()
