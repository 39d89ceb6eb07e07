"""What a rule can decide: reject, delay, abort, rename, and leave notes for later rules."""

import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from statewright import SetStateStatus, State, StateType
from statewright_worker.orchestration import OrchestrationError, UnitOfWork
from statewright_worker.orchestration.errors import RuleFailed
from statewright_worker.orchestration.records import FlowRunRecord
from statewright_worker.orchestration.rules import BaseOrchestrationRule
from statewright_worker.orchestration.sealing import MAX_DELAY_SECONDS
from tests.orchestration.builders import (
    IDS,
    NOW,
    Act,
    abort,
    acting,
    delay,
    engine_with,
    flow_context,
    flow_run,
    history,
    keep,
    propose,
    put,
    reject,
    rename,
    seconds,
    work_with,
    written,
)


async def pending_flow() -> tuple[UnitOfWork, FlowRunRecord]:
    run = flow_run()
    work = work_with(run)
    await put(work, run, State.pending())
    return work, run


async def test_a_transition_that_no_rule_objects_to_is_accepted_without_a_reason() -> None:
    work, run = await pending_flow()
    verdict = await propose(work, run, State.running(), engine=engine_with(acting()))
    assert verdict.status is SetStateStatus.ACCEPT
    assert (verdict.reason, verdict.delay_seconds) == (None, None)
    assert verdict.state is run.state


async def test_reject_writes_the_other_state_under_an_identity_and_date_of_its_own() -> None:
    work, run = await pending_flow()
    earlier = NOW - seconds(60)
    verdict = await propose(work, run, State.running(), entered=earlier, engine=engine_with(acting(reject)))
    assert (verdict.status, verdict.reason) == (SetStateStatus.REJECT, "not yet")
    assert verdict.state is run.state
    pending, postponed = history(work, run)
    assert (postponed.type, postponed.name, postponed.timestamp) == (StateType.SCHEDULED, "Postponed", NOW)
    assert postponed.state_details.scheduled_time == NOW
    assert postponed.id != pending.id


async def test_reject_writes_a_full_state_as_it_is_under_an_id_of_its_own() -> None:
    other = written(State.cancelled(), at=NOW - seconds(7))
    work, run = await pending_flow()
    rule = acting(lambda rule: rule.reject_transition(other, "cancelled"))
    verdict = await propose(work, run, State.running(), engine=engine_with(rule))
    assert verdict.state is not None
    assert (verdict.state.type, verdict.state.timestamp) == (StateType.CANCELLED, other.timestamp)
    assert verdict.state.id != other.id


async def test_reject_with_an_earlier_state_of_the_run_writes_it_anew() -> None:
    work, run = await pending_flow()
    [pending] = history(work, run)
    await put(work, run, State.running())
    rule = acting(lambda rule: rule.reject_transition(pending, "back"))
    verdict = await propose(work, run, State.completed(), engine=engine_with(rule))
    assert (verdict.status, run.state_type, run.state_count) == (SetStateStatus.REJECT, StateType.PENDING, 3)
    assert len({state.id for state in history(work, run)}) == 3


async def test_reject_with_the_current_state_writes_nothing_and_returns_it() -> None:
    work, run = await pending_flow()
    current = run.state
    rule = acting(lambda rule: rule.reject_transition(rule.context.initial_state, "stay"))
    verdict = await propose(work, run, State.running(), engine=engine_with(rule))
    assert (verdict.status, verdict.reason) == (SetStateStatus.REJECT, "stay")
    assert verdict.state is run.state is current
    assert len(history(work, run)) == 1


async def test_reject_with_the_current_state_changed_writes_the_changed_one() -> None:
    async def rest(rule: BaseOrchestrationRule) -> None:
        assert rule.context.initial_state is not None
        await rule.reject_transition(rule.context.initial_state.renamed("Resting"), "rest")

    work, run = await pending_flow()
    verdict = await propose(work, run, State.running(), engine=engine_with(acting(rest)))
    assert (verdict.status, run.state_name, run.state_count) == (SetStateStatus.REJECT, "Resting", 2)
    assert len({state.id for state in history(work, run)}) == 2


async def test_a_full_state_is_dated_no_later_than_now_and_scheduled_for_some_time() -> None:
    later = written(State.running(), at=NOW + seconds(7)).replaced(type=StateType.SCHEDULED)
    work, run = await pending_flow()
    rule = acting(lambda rule: rule.reject_transition(later, "later"))
    await propose(work, run, State.running(), engine=engine_with(rule))
    assert run.state is not None
    assert (run.state.timestamp, run.state.state_details.scheduled_time) == (NOW, NOW)


async def test_reject_without_a_state_writes_nothing_and_returns_the_current_one() -> None:
    work, run = await pending_flow()
    current = run.state
    verdict = await propose(work, run, State.running(), engine=engine_with(acting(keep)))
    assert (verdict.status, verdict.reason) == (SetStateStatus.REJECT, "stay")
    assert verdict.state is run.state is current
    assert len(history(work, run)) == 1


async def test_reject_without_a_state_of_a_run_without_one_is_an_error_that_names_the_rule() -> None:
    run = flow_run()
    work = work_with(run)
    with pytest.raises(OrchestrationError, match="Keeping rejected a run's first state without naming another"):
        await propose(work, run, State.running(), engine=engine_with(acting(keep, name="Keeping")))
    assert run.state is None
    assert work.state_changes == []


async def test_delay_writes_nothing_and_says_when_to_come_back() -> None:
    work, run = await pending_flow()
    current = run.state
    verdict = await propose(work, run, State.running(), engine=engine_with(acting(delay)))
    assert (verdict.status, verdict.reason, verdict.delay_seconds) == (SetStateStatus.WAIT, "later", 5)
    assert verdict.state is run.state is current
    assert len(history(work, run)) == 1


@pytest.mark.parametrize(
    ("asked", "told"), [(0, 0), (2.9, 2), (86_400.0, 86_400), (10**12, MAX_DELAY_SECONDS), (10**400, MAX_DELAY_SECONDS)]
)
async def test_a_delay_is_told_in_whole_seconds_and_ten_years_at_most(asked: float, told: int) -> None:
    work, run = await pending_flow()
    rule = acting(lambda rule: rule.delay_transition(asked, "later"))
    verdict = await propose(work, run, State.running(), engine=engine_with(rule))
    assert (verdict.status, verdict.delay_seconds) == (SetStateStatus.WAIT, told)


@pytest.mark.parametrize("asked", [-1, -0.5, math.nan, math.inf, -math.inf, "5", None, True, seconds(5)])
async def test_a_delay_that_is_none_is_an_error_that_names_the_rule(asked: Any) -> None:
    work, run = await pending_flow()
    rule = acting(lambda rule: rule.delay_transition(asked, "later"), name="Delaying")
    with pytest.raises(RuleFailed, match=r"Delaying failed: ValueError: the delay that it gave is .*; give seconds"):
        await propose(work, run, State.running(), engine=engine_with(rule))
    assert len(history(work, run)) == 1


@pytest.mark.parametrize("text", [5, None])
@pytest.mark.parametrize("method", ["abort_transition", "delay_transition", "reject_transition"])
async def test_a_reason_that_cannot_be_told_is_an_error_that_names_the_rule(method: str, text: Any) -> None:
    first = {"abort_transition": (), "delay_transition": (5,), "reject_transition": (State.pending(),)}[method]
    work, run = await pending_flow()
    rule = acting(lambda rule: getattr(rule, method)(*first, text), name="Mumbling")
    with pytest.raises(RuleFailed, match="Mumbling failed: ValueError: the reason that it gave is not valid"):
        await propose(work, run, State.running(), engine=engine_with(rule))


async def test_a_reason_is_escaped_and_cut_where_it_could_not_be_told() -> None:
    work, run = await pending_flow()
    rule = acting(lambda rule: rule.abort_transition("NUL \x00" + "x" * 1_000_000), name="Mumbling")
    reason = (await propose(work, run, State.running(), engine=engine_with(rule))).reason
    assert reason is not None
    assert reason.startswith("NUL \\u0000xxx")
    assert len(reason) < 1_000_000


@pytest.mark.parametrize("text", ["NUL \x00", 5, None, "x" * 1_000_001])
async def test_a_name_that_no_state_can_have_is_an_error_that_names_the_rule(text: Any) -> None:
    work, run = await pending_flow()
    rule = acting(lambda rule: rule.rename_state(text), name="Naming")
    with pytest.raises(RuleFailed, match="Naming failed: ValueError: the name that it gave the state is not valid"):
        await propose(work, run, State.running(), engine=engine_with(rule))


async def test_abort_writes_nothing() -> None:
    work, run = await pending_flow()
    current = run.state
    verdict = await propose(work, run, State.running(), engine=engine_with(acting(abort)))
    assert (verdict.status, verdict.reason, verdict.delay_seconds) == (SetStateStatus.ABORT, "never", None)
    assert verdict.state is run.state is current
    assert len(history(work, run)) == 1


@pytest.mark.parametrize("act", [delay, abort])
async def test_the_verdict_on_a_first_state_that_is_not_written_has_no_state(act: Act) -> None:
    run = flow_run()
    work = work_with(run)
    verdict = await propose(work, run, State.running(), engine=engine_with(acting(act)))
    assert verdict.state is None
    assert run.state is None


@pytest.mark.parametrize("first", [reject, keep, delay, abort])
@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (reject, (SetStateStatus.REJECT, "not yet", None, "Postponed")),
        (keep, (SetStateStatus.REJECT, "stay", None, "Pending")),
        (delay, (SetStateStatus.WAIT, "later", 5, "Pending")),
        (abort, (SetStateStatus.ABORT, "never", None, "Pending")),
    ],
)
async def test_a_later_decision_in_the_same_hook_replaces_the_earlier_one(
    first: Act, last: Act, expected: tuple[object, ...]
) -> None:
    async def both(rule: BaseOrchestrationRule) -> None:
        await first(rule)
        await last(rule)

    work, run = await pending_flow()
    verdict = await propose(work, run, State.running(), engine=engine_with(acting(both)))
    assert (verdict.status, verdict.reason, verdict.delay_seconds, run.state_name) == expected


@pytest.mark.parametrize("act", [reject, keep, delay, abort, rename])
async def test_nothing_can_be_decided_after_validation(act: Act) -> None:
    work, run = await pending_flow()
    with pytest.raises(RuleFailed, match=r"Tardy failed: RuntimeError: .*already validated") as raised:
        await propose(work, run, State.running(), engine=engine_with(acting(after=act, name="Tardy")))
    assert isinstance(raised.value.__cause__, RuntimeError)
    assert run.state_name == "Pending"


@pytest.mark.parametrize("act", [reject, delay, abort, rename])
async def test_nothing_can_be_decided_after_validation_even_when_there_was_nothing_to_write(act: Act) -> None:
    context = flow_context(None, State.running())
    rule = acting(abort)(context, None, StateType.RUNNING)
    async with rule:
        await context.validate_proposed_state()
        assert context.validated_state is None
        with pytest.raises(RuntimeError, match="already validated"):
            await act(rule)


async def test_a_first_state_cannot_be_rejected_without_another_after_validation_either() -> None:
    context = flow_context(None, State.running())
    rule = acting()(context, None, StateType.RUNNING)
    async with rule:
        await context.validate_proposed_state()
        with pytest.raises(RuntimeError, match="already validated"):
            await keep(rule)


@pytest.mark.parametrize("act", [reject, delay, abort])
async def test_a_decision_changes_the_context_at_once(act: Act) -> None:
    context = flow_context(State.pending(), State.running())
    async with acting(act)(context, StateType.PENDING, StateType.RUNNING):
        assert context.proposed_state_type is (StateType.SCHEDULED if act is reject else None)
        assert context.response_status is not SetStateStatus.ACCEPT


async def test_rename_changes_the_name_and_nothing_else() -> None:
    context = flow_context(State.pending(), State.running(message="on foot"))
    original = context.proposed_state
    assert original is not None
    async with acting(rename)(context, StateType.PENDING, StateType.RUNNING):
        assert context.proposed_state == original.model_copy(update={"name": "Walking"})
        assert context.response_status is SetStateStatus.ACCEPT
    assert original.name == "Running"


async def test_a_later_rule_sees_the_new_name() -> None:
    names: list[str] = []

    async def look(rule: BaseOrchestrationRule) -> None:
        names.append(rule.context.proposed_state.name if rule.context.proposed_state else "")

    work, run = await pending_flow()
    verdict = await propose(work, run, State.running(), engine=engine_with(acting(look), acting(rename), acting(look)))
    assert names == ["Running", "Walking"]
    assert verdict.status is SetStateStatus.ACCEPT
    assert run.state_name == "Walking"


@pytest.mark.parametrize("act", [delay, abort])
async def test_renaming_a_nullified_transition_changes_nothing(act: Act) -> None:
    async def both(rule: BaseOrchestrationRule) -> None:
        await act(rule)
        await rename(rule)

    work, run = await pending_flow()
    verdict = await propose(work, run, State.running(), engine=engine_with(acting(both)))
    assert verdict.status in (SetStateStatus.WAIT, SetStateStatus.ABORT)
    assert run.state_name == "Pending"


async def test_renaming_after_a_rejection_names_the_state_that_is_written() -> None:
    async def both(rule: BaseOrchestrationRule) -> None:
        await reject(rule)
        await rename(rule)

    work, run = await pending_flow()
    await propose(work, run, State.running(), engine=engine_with(acting(both)))
    assert (run.state_type, run.state_name) == (StateType.SCHEDULED, "Walking")


async def test_parameters_reach_the_rules_that_come_after() -> None:
    seen: list[object] = []

    def look(sink: list[object]) -> Callable[[BaseOrchestrationRule], Awaitable[None]]:
        async def into(rule: BaseOrchestrationRule) -> None:
            sink.append(rule.context.parameters.get("answer"))

        return into

    leaving = acting(lambda rule: rule.update_context_parameters("answer", 42))
    work, run = await pending_flow()
    engine = engine_with(acting(look(seen), after=look(seen)), leaving, acting(look(seen)))
    await propose(work, run, State.running(), engine=engine)
    assert seen == [None, 42, 42]


async def test_parameters_of_one_transition_do_not_reach_the_next() -> None:
    seen: list[dict[str, object]] = []

    async def look_and_leave(rule: BaseOrchestrationRule) -> None:
        seen.append(dict(rule.context.parameters))
        await rule.update_context_parameters("key", IDS.new())

    work, run = await pending_flow()
    engine = engine_with(acting(look_and_leave))
    await propose(work, run, State.running(), engine=engine)
    await propose(work, run, State.completed(), engine=engine)
    assert seen == [{}, {}]
