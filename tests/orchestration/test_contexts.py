"""The context of a transition: what it tells, what its copies protect, and rules used on their own."""

from contextlib import AsyncExitStack
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from statewright import RunPolicy, SetStateStatus, State, StateType
from statewright_worker.orchestration import (
    ALL_ORCHESTRATION_STATES,
    BaseOrchestrationRule,
    FlowOrchestrationContext,
    Proposal,
    TaskOrchestrationContext,
)
from tests.orchestration.builders import (
    IDS,
    NOW,
    acting,
    engine_with,
    flow_context,
    flow_run,
    noting,
    propose,
    put,
    reject,
    task_run,
    work_with,
    written,
)

PENDING_TO_RUNNING = (StateType.PENDING, StateType.RUNNING)


async def test_a_rule_governs_a_context_on_its_own() -> None:
    journal: list[str] = []
    context = flow_context(State.pending(), State.running())
    async with noting("Alone", journal)(context, *PENDING_TO_RUNNING) as entered:
        assert entered is context
        await context.validate_proposed_state()
    assert journal == ["Alone before", "Alone after"]
    assert context.rule_signature == context.finalization_signature == ["Alone"]


async def test_rules_govern_a_context_together_on_an_exit_stack() -> None:
    journal: list[str] = []
    context = flow_context(State.pending(), State.running())
    rules = [noting("A", journal), acting(reject), noting("B", journal)]
    async with AsyncExitStack() as stack:
        for rule in rules:
            await stack.enter_async_context(rule(context, *PENDING_TO_RUNNING))
        await context.validate_proposed_state()
    assert context.validated_state_type is StateType.SCHEDULED
    assert journal == ["A before", "A cleanup"]


async def test_an_exception_within_a_lone_rule_makes_it_clean_up() -> None:
    journal: list[str] = []
    context = flow_context(State.pending(), State.running())
    with pytest.raises(KeyError):
        async with noting("Alone", journal)(context, *PENDING_TO_RUNNING):
            raise KeyError("broken")
    assert journal == ["Alone before", "Alone cleanup"]


async def test_validating_writes_the_proposed_state_to_the_run() -> None:
    context = flow_context(State.pending(), State.running())
    proposed = context.proposed_state
    await context.validate_proposed_state()
    assert context.validated
    assert context.run.state is context.validated_state is proposed
    assert context.validated_state_type is StateType.RUNNING


async def test_validating_a_nullified_transition_takes_the_current_state() -> None:
    context = flow_context(State.pending(), State.running())
    context.proposed_state = None
    await context.validate_proposed_state()
    assert context.validated
    assert context.validated_state is context.initial_state is context.run.state
    assert context.unit_of_work.state_changes == []


async def test_the_types_of_absent_states_are_none() -> None:
    context = flow_context(None, State.running())
    assert context.initial_state_type is None
    assert context.proposed_state_type is StateType.RUNNING
    assert context.validated_state_type is None
    context.proposed_state = None
    assert context.proposed_state_type is None


async def test_a_safe_copy_is_equal_and_of_the_same_form() -> None:
    context = flow_context(State.pending(), State.running())
    context.parameters["key"] = "value"
    copy = context.safe_copy()
    assert type(copy) is FlowOrchestrationContext
    assert copy == context
    assert copy is not context


async def test_changes_to_a_safe_copy_do_not_reach_the_context() -> None:
    context = flow_context(State.pending(), State.running())
    before = context.safe_copy()
    copy = context.safe_copy()
    copy.proposed_state = copy.initial_state = copy.validated_state = None
    copy.response_status = SetStateStatus.ABORT
    copy.parameters["key"] = "value"
    copy.rule_signature.append("Rule")
    copy.finalization_signature.append("Rule")
    assert context == before


async def test_the_entry_and_exit_contexts_are_made_of_safe_copies() -> None:
    context = flow_context(State.pending(), State.running())
    initial, proposed, copy = context.entry_context()
    assert (initial, proposed) == (context.initial_state, context.proposed_state)
    assert copy is not context
    await context.validate_proposed_state()
    initial, validated, copy = context.exit_context()
    assert (initial, validated) == (context.initial_state, context.validated_state)
    assert copy is not context


async def test_what_a_rule_does_to_its_copy_of_the_context_has_no_effect() -> None:
    class Meddling(BaseOrchestrationRule):
        FROM_STATES = TO_STATES = ALL_ORCHESTRATION_STATES

        async def before_transition(self, initial_state: Any, proposed_state: Any, context: Any) -> None:
            context.proposed_state = None
            context.response_status = SetStateStatus.ABORT
            context.rule_signature.clear()

        async def after_transition(self, initial_state: Any, validated_state: Any, context: Any) -> None:
            context.validated_state = None

    run = flow_run()
    verdict = await propose(work_with(run), run, State.running(), engine=engine_with(acting(), Meddling))
    assert verdict.status is SetStateStatus.ACCEPT
    assert verdict.state is run.state is not None
    assert verdict.rule_signature == ("Acting", "Meddling")


async def test_the_copies_share_the_run() -> None:
    context = flow_context(State.pending(), State.running())
    assert context.safe_copy().run is context.run


@pytest.mark.parametrize("frozen", [State.running(), written(State.running()), State.running().state_details])
def test_states_and_their_details_cannot_be_changed(frozen: Any) -> None:
    for field in type(frozen).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(frozen, field, None)


async def test_a_flow_runs_context_knows_the_flow_run_and_no_task_run() -> None:
    context = flow_context(None, State.running())
    assert await context.flow_run() is context.run
    assert await context.task_run() is None


async def test_a_task_runs_context_knows_the_task_run_and_its_flow_run() -> None:
    flow = flow_run()
    task = task_run(flow)
    context = TaskOrchestrationContext(run=task, unit_of_work=work_with(flow, task), proposed_state=None)
    assert await context.task_run() is task
    assert await context.flow_run() is flow


@pytest.mark.parametrize(
    ("make_run", "form"), [(flow_run, FlowOrchestrationContext), (task_run, TaskOrchestrationContext)]
)
async def test_an_engine_governs_each_kind_of_run_in_a_context_of_its_own_form(make_run: Any, form: type) -> None:
    seen: list[tuple[type, object]] = []

    class Looking(BaseOrchestrationRule):
        FROM_STATES = TO_STATES = ALL_ORCHESTRATION_STATES

        async def before_transition(self, initial_state: Any, proposed_state: Any, context: Any) -> None:
            seen.append((type(context), await context.task_run() or await context.flow_run()))

    run = make_run()
    await propose(work_with(run), run, State.running(), engine=engine_with(Looking))
    assert seen == [(form, run)]


@pytest.mark.parametrize("task", [task_run(), task_run(flow_run())])
async def test_a_task_run_outside_of_a_flow_or_of_an_unknown_one_has_no_flow_run(task: Any) -> None:
    context = TaskOrchestrationContext(run=task, unit_of_work=work_with(task), proposed_state=None)
    assert await context.flow_run() is None


async def test_the_run_settings_are_the_runs_own_policy() -> None:
    context = flow_context(None, State.running())
    context.run.policy = RunPolicy(retries=7)
    assert context.run_settings is context.run.policy


async def test_a_context_without_a_database_has_no_session() -> None:
    assert flow_context(None, State.running()).session is None


async def test_a_context_without_an_engine_cannot_bring_about_other_transitions() -> None:
    context = flow_context(None, State.running())
    with pytest.raises(RuntimeError, match="without an engine"):
        await context.force_state(task_run(), State.pending())


async def test_a_rules_session_is_the_one_that_the_drain_lends() -> None:
    lent, seen = AsyncSession(), []

    class Lending:
        def open(self) -> AsyncSession:
            return lent

    class Reading(BaseOrchestrationRule):
        FROM_STATES = TO_STATES = ALL_ORCHESTRATION_STATES

        async def before_transition(self, initial_state: Any, proposed_state: Any, context: Any) -> None:
            seen.append(context.session)

    run = flow_run()
    proposal = Proposal(IDS.new(), run.id, State.running(), NOW)
    await engine_with(Reading).decide(proposal, work_with(run), Lending())
    assert seen == [lent]


async def test_a_rule_can_bring_about_the_transition_of_another_run() -> None:
    flow = flow_run()
    task = task_run(flow)

    class Cascading(BaseOrchestrationRule):
        FROM_STATES = TO_STATES = ALL_ORCHESTRATION_STATES

        async def after_transition(self, initial_state: Any, validated_state: Any, context: Any) -> None:
            await context.force_state(task, State.cancelled())

    work = work_with(flow, task)
    await put(work, task, State.running())
    await propose(work, flow, State.cancelled(), engine=engine_with(Cascading))
    assert (task.state_type, task.end_time) == (StateType.CANCELLED, NOW)
    assert [change.run for change in work.state_changes] == [task, flow, task]
