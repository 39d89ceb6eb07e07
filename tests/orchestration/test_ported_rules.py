"""Rules written to the documented API: their copies, what they hand back, their policies, and what they look up."""

import asyncio
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import orjson
import pytest
from pydantic_core import to_json

from statewright import ProposedState, RunPolicy, SetStateStatus, State, StateDetails, StateType, Verdict
from statewright_worker.orchestration import BaseOrchestrationPolicy, Engine, UnitOfWork
from statewright_worker.orchestration.contexts import (
    StateAbortDetails,
    StateAcceptDetails,
    StateRejectDetails,
    StateResponseDetails,
    StateWaitDetails,
)
from statewright_worker.orchestration.core_policy import (
    CacheInsertion,
    CoreFlowPolicy,
    ReleaseTaskConcurrencySlots,
    RetryFailedFlows,
)
from statewright_worker.orchestration.errors import RuleFailed
from statewright_worker.orchestration.policies import Governing
from statewright_worker.orchestration.records import FlowRunRecord
from statewright_worker.orchestration.rules import (
    ALL_ORCHESTRATION_STATES,
    BaseOrchestrationRule,
    BaseUniversalTransform,
    FlowOrchestrationContext,
    OrchestrationContext,
    TaskOrchestrationContext,
)
from statewright_worker.orchestration.sealing import FrozenDict, FrozenList
from tests.orchestration.builders import (
    NOW,
    acting,
    engine_with,
    fail,
    flow_context,
    flow_run,
    history,
    limit_on,
    policy_of,
    propose,
    put,
    seconds,
    task_run,
    work_with,
)

Hook = Callable[[Any, Any, Any, Any], Any]
DATA: Any = {"rows": [1, {"deep": True}], "kept": "yes"}


async def idle(rule: Any, initial: Any, state: Any, context: Any) -> None:
    """What a hook does that does nothing."""


def hooked(before: Hook = idle, after: Hook = idle, cleanup: Hook = idle) -> type[BaseOrchestrationRule]:
    """Return a rule class whose hooks see what they are given."""

    class Hooked(BaseOrchestrationRule):
        FROM_STATES = TO_STATES = ALL_ORCHESTRATION_STATES

        async def before_transition(self, initial_state: Any, proposed_state: Any, context: Any) -> None:
            await before(self, initial_state, proposed_state, context)

        async def after_transition(self, initial_state: Any, validated_state: Any, context: Any) -> None:
            await after(self, initial_state, validated_state, context)

        async def cleanup(self, initial_state: Any, validated_state: Any, context: Any) -> None:
            await cleanup(self, initial_state, validated_state, context)

    return Hooked


async def flow_in(state: ProposedState) -> tuple[UnitOfWork, FlowRunRecord]:
    run = flow_run()
    work = work_with(run)
    await put(work, run, state)
    return work, run


async def governed(before: Hook = idle, after: Hook = idle) -> tuple[UnitOfWork, FlowRunRecord, Verdict]:
    """Let a rule with the hooks govern a flow run's way from RUNNING to COMPLETED, both with data."""
    work, run = await flow_in(ProposedState(type=StateType.RUNNING, data=deepcopy(DATA)))
    proposed = State.completed(data=deepcopy(DATA))
    verdict = await propose(work, run, proposed, engine=engine_with(acting(), hooked(before, after), acting()))
    assert proposed.data == DATA
    return work, run, verdict


# -- copies ------------------------------------------------------------------------------------------------------------


async def spoil(rule: Any, initial: Any, state: Any, context: Any) -> None:
    """Change everything that a hook is given, except for the run."""
    for each in (initial, state, context.initial_state, context.proposed_state, context.validated_state):
        if each is not None:
            each.data["rows"][1]["deep"] = False
            each.data["new"] = 1
            each.state_details.cache_key = "spoiled"
            each.type, each.name, each.timestamp = StateType.CRASHED, "Spoiled", NOW - seconds(9)
    context.parameters["new"] = 1


@pytest.mark.parametrize("hooks", [(spoil, idle), (idle, spoil), (spoil, spoil)])
async def test_what_a_hook_changes_in_its_copies_has_no_effect(hooks: tuple[Hook, Hook]) -> None:
    work, run, verdict = await governed(*hooks)
    assert (verdict.status, verdict.rule_signature) == (SetStateStatus.ACCEPT, ("Acting", "Hooked", "Acting"))
    assert verdict.finalization_signature == verdict.rule_signature
    assert [state.type for state in history(work, run)] == [StateType.RUNNING, StateType.COMPLETED]
    for state in history(work, run):
        assert (state.data, state.state_details.cache_key, state.timestamp) == (DATA, None, NOW)


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize(
    "reach",
    [
        lambda rule, context: rule.context.initial_state,
        lambda rule, context: rule.context.proposed_state,
        lambda rule, context: context.run.state,
    ],
)
@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(new=1),
        lambda data: data.pop("kept"),
        lambda data: data["rows"].append(3),
        lambda data: data["rows"][1].clear(),
    ],
)
async def test_the_data_of_what_the_engine_keeps_cannot_be_changed(
    where: str, reach: Callable[[Any, Any], Any], change: Callable[[Any], None]
) -> None:
    async def meddle(rule: Any, initial: Any, state: Any, context: Any) -> None:
        with pytest.raises(TypeError, match="cannot be changed; change a copy"):
            change(reach(rule, context).data)

    work, run, _ = await governed(*((meddle, idle) if where == "before" else (idle, meddle)))
    assert [state.data for state in history(work, run)] == [DATA, DATA]


async def test_frozen_data_is_encoded_and_copied_like_any_other() -> None:
    kept: list[Any] = []

    async def look(rule: Any, initial: Any, state: Any, context: Any) -> None:
        kept.append(rule.context.proposed_state.data)

    await governed(look)
    [data] = kept
    assert (type(data), type(data["rows"])) == (FrozenDict, FrozenList)
    assert orjson.loads(orjson.dumps(data)) == orjson.loads(to_json(data)) == DATA
    copied = deepcopy(data)
    copied["rows"][1]["deep"] = 7
    assert data == DATA


async def test_the_state_of_a_task_runs_flow_run_cannot_be_changed_either() -> None:
    async def meddle(rule: Any, initial: Any, state: Any, context: Any) -> None:
        (await context.flow_run()).state.data["new"] = 1

    work, flow = await flow_in(ProposedState(type=StateType.RUNNING, data=deepcopy(DATA)))
    task = task_run(flow)
    work.runs[task.id] = task
    with pytest.raises(RuleFailed, match="cannot be changed"):
        await propose(work, task, State.running(), engine=engine_with(hooked(meddle)))


async def test_what_a_hook_writes_to_the_run_is_kept() -> None:
    async def begin_anew(rule: Any, initial: Any, state: Any, context: Any) -> None:
        context.run.run_count = 41

    work, run = await flow_in(State.pending())
    await propose(work, run, State.running(), engine=engine_with(hooked(begin_anew)))
    assert run.run_count == 42


# -- what a rule hands back --------------------------------------------------------------------------------------------


async def test_a_changed_copy_can_be_handed_back() -> None:
    handed: list[Any] = []

    async def fail_instead(rule: Any, initial: Any, state: Any, context: Any) -> None:
        other = state.model_copy()
        other.type = StateType.FAILED
        other.name = "Failed"
        other.message = "not good enough"
        other.data["rows"] = [2]
        other.state_details.cache_key = "key"
        handed.append(other)
        await rule.reject_transition(other, "no")
        other.data["rows"].append("later")
        other.state_details.cache_key = "later"

    _, run, verdict = await governed(fail_instead)
    assert (verdict.status, verdict.reason, verdict.state) == (SetStateStatus.REJECT, "no", run.state)
    assert run.state is not None
    assert type(run.state) is State
    assert type(run.state.state_details) is StateDetails
    assert (run.state.type, run.state.name, run.state.message) == (StateType.FAILED, "Failed", "not good enough")
    assert (run.state.data, run.state.state_details.cache_key) == ({**DATA, "rows": [2]}, "key")
    assert run.state.id == handed[0].id


async def test_a_proposed_state_that_is_handed_back_is_a_copy_as_well() -> None:
    data = deepcopy(DATA)

    async def fail_instead(rule: Any, initial: Any, state: Any, context: Any) -> None:
        await rule.reject_transition(State.failed(data=data).replaced(data=data), "no")

    async def change_it(rule: Any, initial: Any, state: Any, context: Any) -> None:
        data["new"] = 1

    _, run, _ = await governed(fail_instead, change_it)
    assert run.state is not None
    assert run.state.data == DATA


async def test_the_current_state_handed_back_unchanged_writes_nothing() -> None:
    async def stay(rule: Any, initial: Any, state: Any, context: Any) -> None:
        await rule.reject_transition(initial.model_copy(), "stay")

    work, run, verdict = await governed(stay)
    assert (verdict.status, verdict.reason, len(history(work, run))) == (SetStateStatus.REJECT, "stay", 1)
    assert verdict.state is run.state


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("type", "FLYING", "type: "),
        ("name", "", "name: "),
        ("name", "NUL \x00", "name: "),
        ("message", 5, "message: "),
        ("data", {"when": {1, 2}}, "data"),
        ("data", {"NUL": "\x00"}, "data"),
        ("data", [float("nan")], "data"),
        ("timestamp", None, "timestamp: "),
        ("state_details", None, "state_details: "),
        ("state_details", {"cache_key": "NUL \x00"}, "state_details.cache_key: "),
    ],
)
async def test_a_state_that_is_not_valid_is_an_error_that_names_the_rule(field: str, value: Any, told: str) -> None:
    async def break_it(rule: Any, initial: Any, state: Any, context: Any) -> None:
        setattr(state, field, value)
        await rule.reject_transition(state, "no")

    expected = f"^Hooked failed: ValueError: the state that it made is not valid: {told}"
    with pytest.raises(RuleFailed, match=expected) as raised:
        await governed(break_it)
    assert "\n" not in str(raised.value)


async def test_what_is_no_state_at_all_is_an_error_that_names_the_rule() -> None:
    async def fail_instead(rule: Any, initial: Any, state: Any, context: Any) -> None:
        await rule.reject_transition("FAILED", "no")

    with pytest.raises(RuleFailed, match="Hooked failed: ValueError: a str is no state; give a State"):
        await governed(fail_instead)


async def test_a_state_that_is_forced_on_another_run_is_a_copy_too() -> None:
    task = task_run()
    data = deepcopy(DATA)

    async def force(rule: Any, initial: Any, state: Any, context: Any) -> None:
        await context.force_state(task, State.failed().replaced(data=data))
        data["new"] = 1

    work, run = await flow_in(State.pending())
    work.runs[task.id] = task
    await propose(work, run, State.running(), engine=engine_with(hooked(after=force)))
    assert task.state is not None
    assert task.state.data == DATA


# -- rules made out of built-in ones -----------------------------------------------------------------------------------


async def test_a_rule_made_out_of_a_built_in_one_works_like_it() -> None:
    class Release(ReleaseTaskConcurrencySlots):
        """Ours."""

    class Insert(CacheInsertion):
        """Ours."""

    class Retry(RetryFailedFlows):
        """Ours."""

    task, flow = task_run(tags=("db",)), flow_run(policy=RunPolicy(retries=1))
    limit = limit_on("db", 1)
    work = work_with(task, flow, limits=[limit])
    await propose(work, task, State.running())
    await put(work, flow, State.running())
    engine = engine_with(Insert, Retry, Release)
    kept = await propose(work, task, State.running(), engine=engine)
    assert (kept.status, limit.holders) == (SetStateStatus.ACCEPT, {task.id})
    await propose(work, task, State.completed(cache_key="key", data=deepcopy(DATA)), engine=engine)
    await propose(work, flow, State.failed(), engine=engine)
    assert limit.holders == set()
    assert work.cached_state("key") is task.state
    assert flow.state_name == "AwaitingRetry"


# -- policies ----------------------------------------------------------------------------------------------------------


async def test_a_policy_adds_to_the_one_that_it_derives_from() -> None:
    first, last = acting(name="First"), acting(name="Last")

    class House(CoreFlowPolicy):
        @classmethod
        def priority(cls) -> list[Governing]:
            return [first, *super().priority(), last]

    class Annex(BaseOrchestrationPolicy):
        @classmethod
        def priority(cls) -> list[Governing]:
            return super().priority() + [last]  # noqa: RUF005  # as the documentation writes it

    run, other = flow_run(), flow_run()
    work = work_with(run, other)
    verdict = await propose(work, run, State.pending(), engine=Engine(flow_policy=House))
    assert verdict.rule_signature == ("First", "PreventRedundantTransitions", "Last")
    verdict = await propose(work, other, State.pending(), engine=Engine(flow_policy=Annex))
    assert verdict.rule_signature == ("Last",)


def changeable(rules: list[Governing], rule_timeout: float = 60) -> Engine:
    class Changeable(BaseOrchestrationPolicy):
        @staticmethod
        def priority() -> list[Governing]:
            return rules

    return Engine(flow_policy=Changeable, rule_timeout=rule_timeout)


async def test_a_policy_is_asked_at_each_transition() -> None:
    rules: list[Governing] = []
    engine, run = changeable(rules), flow_run()
    work = work_with(run)
    signatures = []
    for change in (
        list,
        lambda: rules.append(acting(name="New")),
        lambda: rules.insert(0, acting(name="Newer")),
        rules.clear,
    ):
        change()
        signatures.append((await propose(work, run, State.running(), engine=engine)).rule_signature)
        await put(work, run, State.pending())
    assert signatures == [(), ("New",), ("Newer", "New"), ()]


async def test_a_rule_that_a_policy_takes_up_later_is_bounded_in_time() -> None:
    rules: list[Governing] = []
    engine, run = changeable(rules, rule_timeout=0.1), flow_run()
    work = work_with(run)
    await propose(work, run, State.running(), engine=engine)
    rules.append(acting(lambda rule: asyncio.sleep(3_600), name="Slow"))
    with pytest.raises(RuleFailed, match="Slow failed: TimeoutError"):
        await propose(work, run, State.running(), engine=engine)


@pytest.mark.parametrize(
    ("answer", "told"), [(None, "TypeError"), ([None], "AttributeError"), ([int], "AttributeError")]
)
async def test_a_policy_that_does_not_list_rules_is_an_error_that_names_it(answer: Any, told: str) -> None:
    class Broken(BaseOrchestrationPolicy):
        @staticmethod
        def priority() -> list[Governing]:
            return answer  # type: ignore[no-any-return]  # what a policy must not return

    run = flow_run()
    with pytest.raises(RuleFailed, match=f"Broken failed: {told}") as raised:
        await propose(work_with(run), run, State.running(), engine=Engine(flow_policy=Broken))
    assert raised.value.__cause__ is not None


async def test_a_policy_may_choose_the_rules_itself() -> None:
    class Choosing(BaseOrchestrationPolicy):
        @staticmethod
        def priority() -> list[Governing]:
            return [acting(fail)]

        @classmethod
        def compile_transition_rules(
            cls, from_state: StateType | None = None, to_state: StateType | None = None
        ) -> list[Governing]:
            return [acting(name=f"From{from_state}To{to_state}")]

    run = flow_run()
    verdict = await propose(work_with(run), run, State.running(), engine=Engine(flow_policy=Choosing))
    assert verdict.rule_signature == ("FromNoneToRUNNING",)


# -- hooks that come later ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", ["before_transition", "after_transition", "cleanup"])
@pytest.mark.parametrize("on", ["class", "instance"])
async def test_a_hook_that_is_added_later_is_called(hook: str, on: str) -> None:
    called: list[str] = []

    class Bare(BaseOrchestrationRule):
        FROM_STATES = TO_STATES = ALL_ORCHESTRATION_STATES

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            if on == "instance":
                setattr(self, hook, note)

    async def note(*arguments: Any) -> None:
        called.append(hook)

    run = flow_run()
    work = work_with(run)
    outcome = [acting(lambda rule: rule.abort_transition("never"))] if hook == "cleanup" else []
    engine = engine_with(Bare, *outcome, rule_timeout=60)
    if on == "class":
        await propose(work, run, State.running(), engine=engine)
        assert called == []
        setattr(Bare, hook, note)
    await propose(work, run, State.running(), engine=engine)
    assert called == [hook]


@pytest.mark.parametrize("hook", ["before_transition", "after_transition"])
async def test_a_transforms_hook_that_is_added_later_is_called(hook: str) -> None:
    called: list[str] = []

    class Bare(BaseUniversalTransform):
        """Does nothing yet."""

    async def note(self: Any, context: Any) -> None:
        called.append(hook)

    run = flow_run()
    work, engine = work_with(run), engine_with(Bare)
    await propose(work, run, State.running(), engine=engine)
    setattr(Bare, hook, note)
    await propose(work, run, State.running(), engine=engine)
    assert called == [hook]


# -- what is looked up -------------------------------------------------------------------------------------------------


def test_the_contexts_are_found_where_the_documentation_has_them() -> None:
    assert issubclass(FlowOrchestrationContext, OrchestrationContext)
    assert issubclass(TaskOrchestrationContext, OrchestrationContext)


def test_the_details_of_an_answer_tell_their_type() -> None:
    details: list[StateResponseDetails] = [
        StateAcceptDetails(),
        StateRejectDetails("r"),
        StateAbortDetails("r"),
        StateWaitDetails(5, "r"),
    ]
    assert [each.type for each in details] == ["accept_details", "reject_details", "abort_details", "wait_details"]
    context = flow_context(None, State.running())
    assert context.response_details.type == "accept_details"


def test_the_rules_of_a_policy_may_be_named_in_lists() -> None:
    listed = acting(from_states=[None, StateType.PENDING], to_states=[StateType.RUNNING])
    assert policy_of(listed).compile_transition_rules(None, StateType.RUNNING) == [listed]
