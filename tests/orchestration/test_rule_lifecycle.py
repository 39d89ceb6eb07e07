"""When a rule's hooks run: entry and exit, invalid rules, fizzled rules, nullified transitions."""

from typing import Any

import pytest

from statewright import State, StateType
from statewright_worker.orchestration import ALL_ORCHESTRATION_STATES
from statewright_worker.orchestration.rules import BaseOrchestrationRule
from tests.orchestration.builders import (
    Act,
    abort,
    acting,
    delay,
    engine_with,
    flow_context,
    flow_run,
    keep,
    noting,
    propose,
    put,
    reject,
    rename,
    work_with,
    written,
)

TYPES_ONLY = ALL_ORCHESTRATION_STATES - {None}
"""TO_STATES of a rule that does not govern nullified transitions."""


NULLIFYING = pytest.mark.parametrize("act", [delay, abort, keep])
CHANGING = pytest.mark.parametrize("act", [delay, abort, keep, reject])


async def journal_of(act: Act) -> list[str]:
    """Return what a rule before and a rule after the acting one note of SCHEDULED to RUNNING."""
    journal: list[str] = []
    run = flow_run()
    work = work_with(run)
    await put(work, run, State.scheduled())
    engine = engine_with(noting("Outer", journal), acting(act), noting("Inner", journal))
    await propose(work, run, State.running(), engine=engine)
    return journal


async def test_rules_are_entered_in_order_and_left_in_exactly_the_reverse_order() -> None:
    journal: list[str] = []
    run = flow_run()
    engine = engine_with(*(noting(name, journal) for name in "ABC"))
    await propose(work_with(run), run, State.running(), engine=engine)
    assert journal == ["A before", "B before", "C before", "C after", "B after", "A after"]


async def test_the_signatures_list_entries_in_order_and_exits_in_reverse() -> None:
    run = flow_run()
    engine = engine_with(*(acting(name=name) for name in "ABC"))
    verdict = await propose(work_with(run), run, State.running(), engine=engine)
    assert verdict.rule_signature == ("A", "B", "C")
    assert verdict.finalization_signature == ("C", "B", "A")


async def test_the_same_rule_twice_in_a_policy_fires_twice() -> None:
    run = flow_run()
    rule = acting(name="Twice")
    verdict = await propose(work_with(run), run, State.running(), engine=engine_with(rule, rule))
    assert verdict.rule_signature == verdict.finalization_signature == ("Twice", "Twice")


async def test_the_state_is_written_between_the_entries_and_the_exits() -> None:
    seen: list[object] = []

    async def look(rule: BaseOrchestrationRule) -> None:
        seen.append(rule.context.run.state)
        seen.append(rule.context.validated_state)

    run = flow_run()
    engine = engine_with(acting(look, after=look))
    verdict = await propose(work_with(run), run, State.running(), engine=engine)
    assert seen == [None, None, verdict.state, verdict.state]


async def test_the_bookkeeping_lies_inside_every_rule() -> None:
    seen: list[tuple[StateType | None, int]] = []

    async def look(rule: BaseOrchestrationRule) -> None:
        seen.append((rule.context.run.state_type, rule.context.run.run_count))

    run = flow_run()
    await propose(work_with(run), run, State.running(), engine=engine_with(acting(look, after=look)))
    assert seen == [(None, 0), (StateType.RUNNING, 1)]


class Looking(BaseOrchestrationRule):
    """Renames the state, and keeps the states that its hooks are given."""

    FROM_STATES = TO_STATES = ALL_ORCHESTRATION_STATES

    async def before_transition(self, initial_state: Any, proposed_state: Any, context: Any) -> None:
        self.before = initial_state, proposed_state
        await self.rename_state("Walking")

    async def after_transition(self, initial_state: Any, validated_state: Any, context: Any) -> None:
        self.after = initial_state, validated_state


async def test_the_hooks_get_the_initial_and_the_proposed_and_then_the_validated_state() -> None:
    context = flow_context(State.pending(), State.running())
    initial, proposed = context.initial_state, context.proposed_state
    rule = Looking(context, StateType.PENDING, StateType.RUNNING)
    async with rule:
        await context.validate_proposed_state()
    assert rule.before == (initial, proposed)
    assert rule.after == (initial, context.validated_state)
    assert context.validated_state is not None
    assert (initial and initial.name, context.validated_state.name) == ("Pending", "Walking")


# -- invalid -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("from_states", "to_states"),
    [
        ({StateType.RUNNING}, {StateType.RUNNING}),
        ({None}, {StateType.PENDING}),
        ({None}, set()),
        (set(), {StateType.RUNNING}),
        ({None}, {None}),
    ],
)
async def test_a_rule_whose_states_do_not_contain_the_pair_does_nothing(
    from_states: set[StateType | None], to_states: set[StateType | None]
) -> None:
    journal: list[str] = []
    rule = noting("Elsewhere", journal, from_states=from_states, to_states=to_states)
    context = flow_context(None, State.running())
    async with rule(context, None, StateType.RUNNING):
        await context.validate_proposed_state()
    assert journal == []
    assert context.rule_signature == context.finalization_signature == []


@pytest.mark.parametrize("pair", [(None, StateType.RUNNING), (StateType.PENDING, StateType.FAILED)])
async def test_a_rule_made_for_another_transition_than_the_contexts_is_invalid(
    pair: tuple[StateType | None, StateType | None],
) -> None:
    journal: list[str] = []
    context = flow_context(State.pending(), State.running())
    rule = noting("Stranger", journal)(context, *pair)
    assert await rule.invalid()
    async with rule:
        await context.validate_proposed_state()
    assert journal == []
    assert not await rule.fizzled()


async def test_a_rule_that_does_not_govern_the_pair_has_not_fizzled_when_the_transition_changes() -> None:
    context = flow_context(State.pending(), State.running())
    rule = acting(from_states={StateType.FAILED})(context, StateType.PENDING, StateType.RUNNING)
    async with rule:
        context.proposed_state = None
        assert await rule.invalid()
        assert not await rule.fizzled()


async def test_a_rule_that_was_invalid_on_entry_stays_so_even_when_the_transition_comes_to_fit() -> None:
    journal: list[str] = []
    context = flow_context(State.pending(), State.running())
    rule = noting("Stranger", journal)(context, StateType.PENDING, StateType.FAILED)
    async with rule:
        context.proposed_state = written(State.failed())
        await context.validate_proposed_state()
    assert journal == []


@CHANGING
async def test_rules_after_one_that_changes_the_transition_are_invalid(act: Act) -> None:
    assert not [note for note in await journal_of(act) if note.startswith("Inner")]


# -- fizzled -----------------------------------------------------------------------------------------------------------


@CHANGING
async def test_a_rule_before_one_that_changes_the_transition_fizzles_and_cleans_up(act: Act) -> None:
    assert await journal_of(act) == ["Outer before", "Outer cleanup"]


async def test_a_fizzled_rule_is_signed_on_entry_but_not_on_exit() -> None:
    run = flow_run()
    engine = engine_with(acting(name="Fizzling"), acting(reject, name="Rejecting"))
    verdict = await propose(work_with(run), run, State.running(), engine=engine)
    assert verdict.rule_signature == ("Fizzling", "Rejecting")
    assert verdict.finalization_signature == ("Rejecting",)


async def test_a_rule_can_be_asked_whether_it_has_fizzled() -> None:
    context = flow_context(State.pending(), State.running())
    pair = (StateType.PENDING, StateType.RUNNING)
    fizzling, rejecting = acting()(context, *pair), acting(reject)(context, *pair)
    async with fizzling, rejecting:
        assert await fizzling.fizzled()
        assert not await rejecting.fizzled()
        assert not await fizzling.invalid()


async def test_renaming_neither_fizzles_nor_invalidates_other_rules() -> None:
    journal = await journal_of(rename)
    assert journal == ["Outer before", "Inner before", "Inner after", "Outer after"]


async def test_rejecting_in_favour_of_another_state_of_the_same_type_fizzles_nobody() -> None:
    async def another(rule: BaseOrchestrationRule) -> None:
        await rule.reject_transition(State.running(message="another"), "another")

    assert await journal_of(another) == ["Outer before", "Inner before", "Inner after", "Outer after"]


@CHANGING
async def test_a_rule_that_changes_the_transition_itself_does_not_fizzle(act: Act) -> None:
    journal: list[str] = []
    run = flow_run()
    work = work_with(run)
    await put(work, run, State.scheduled())
    verdict = await propose(work, run, State.running(), engine=engine_with(noting("Acting", journal, before=act)))
    assert journal == ["Acting before", "Acting after"]
    assert verdict.finalization_signature == ("Acting",)


async def test_a_rule_that_rejects_to_a_type_outside_its_to_states_runs_no_further_hook() -> None:
    journal: list[str] = []
    run = flow_run()
    rule = noting("Rejecting", journal, before=reject, to_states={StateType.RUNNING})
    verdict = await propose(work_with(run), run, State.running(), engine=engine_with(rule))
    assert journal == ["Rejecting before"]
    assert verdict.rule_signature == ("Rejecting",)
    assert verdict.finalization_signature == ()


# -- nullified ---------------------------------------------------------------------------------------------------------


@NULLIFYING
async def test_a_rule_that_nullifies_and_governs_none_finishes(act: Act) -> None:
    journal: list[str] = []
    context = flow_context(State.pending(), State.running())
    rule = noting("Nullifying", journal, before=act, to_states={StateType.RUNNING, None})
    async with rule(context, StateType.PENDING, StateType.RUNNING):
        await context.validate_proposed_state()
    assert journal == ["Nullifying before", "Nullifying after"]


@NULLIFYING
async def test_a_rule_that_nullifies_and_does_not_govern_none_runs_no_further_hook(act: Act) -> None:
    journal: list[str] = []
    context = flow_context(State.pending(), State.running())
    rule = noting("Nullifying", journal, before=act, to_states=TYPES_ONLY)
    async with rule(context, StateType.PENDING, StateType.RUNNING):
        await context.validate_proposed_state()
    assert journal == ["Nullifying before"]
    assert context.finalization_signature == []


@NULLIFYING
async def test_a_rule_whose_transition_another_one_nullified_cleans_up_whatever_its_to_states(act: Act) -> None:
    journal: list[str] = []
    run = flow_run()
    work = work_with(run)
    await put(work, run, State.scheduled())
    engine = engine_with(noting("Outer", journal, to_states=TYPES_ONLY), acting(act))
    await propose(work, run, State.running(), engine=engine)
    assert journal == ["Outer before", "Outer cleanup"]


# -- questions that a rule answers itself ------------------------------------------------------------------------------


def answering(question: str, answer: bool, journal: list[str]) -> type[BaseOrchestrationRule]:
    """Return a rule class that answers one of the questions about itself, and notes its hooks."""

    async def answer_it(self: BaseOrchestrationRule) -> bool:
        return answer

    return type("Answering", (noting("Answering", journal),), {question: answer_it})


@pytest.mark.parametrize(
    ("question", "answer", "journal"),
    [
        ("invalid", True, []),
        ("invalid", False, ["Answering before", "Answering after"]),
        ("fizzled", True, ["Answering before", "Answering cleanup"]),
        ("fizzled", False, ["Answering before", "Answering after"]),
        ("invalid_transition", True, []),
        ("invalid_transition", False, ["Answering before", "Answering after"]),
    ],
)
async def test_a_rule_may_answer_itself_whether_it_is_invalid_or_has_fizzled(
    question: str, answer: bool, journal: list[str]
) -> None:
    noted: list[str] = []
    run = flow_run()
    verdict = await propose(
        work_with(run), run, State.running(), engine=engine_with(answering(question, answer, noted))
    )
    assert noted == journal
    assert verdict.rule_signature == (("Answering",) if journal else ())


async def test_a_rule_that_says_it_has_not_fizzled_finishes_though_the_transition_changed() -> None:
    noted: list[str] = []
    run = flow_run()
    engine = engine_with(answering("fizzled", False, noted), acting(reject))
    verdict = await propose(work_with(run), run, State.running(), engine=engine)
    assert noted == ["Answering before", "Answering after"]
    assert verdict.finalization_signature == ("Acting", "Answering")


async def test_a_rule_that_says_it_is_valid_is_entered_though_the_transition_changed() -> None:
    noted: list[str] = []
    run = flow_run()
    engine = engine_with(acting(reject), answering("invalid", False, noted))
    await propose(work_with(run), run, State.running(), engine=engine)
    assert noted == ["Answering before", "Answering cleanup"]
