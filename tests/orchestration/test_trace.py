"""The trace: which rules took part, what they saw and decided; small, and without what states carry."""

from datetime import timedelta
from typing import Any, ClassVar
from uuid import UUID

import pytest

from statewright import State, StateType
from statewright.explanations import RuleVerb, Trace
from statewright.limits import LimitScope
from statewright.states import ProposedState
from statewright_worker.orchestration import (
    BaseOrchestrationPolicy,
    BaseOrchestrationRule,
    BaseUniversalTransform,
    Engine,
    Proposal,
    UnitOfWork,
)
from statewright_worker.orchestration.policies import Governing
from statewright_worker.orchestration.records import Queued
from statewright_worker.orchestration.rules.base import ALL_ORCHESTRATION_STATES
from statewright_worker.orchestration.trace import MAX_TRACE_BYTES, fact
from tests.orchestration.builders import IDS, NOW, flow_run, limit_on, task_run, work_with, written


class Rule(BaseOrchestrationRule):
    FROM_STATES = ALL_ORCHESTRATION_STATES
    TO_STATES = ALL_ORCHESTRATION_STATES


class Bystander(Rule):
    """Looks, and lets things be."""

    async def before_transition(self, initial_state: Any, proposed_state: Any, context: Any) -> None:
        self.saw(proposed=proposed_state, nothing=None)


class Renames(Rule):
    async def before_transition(self, initial_state: Any, proposed_state: Any, context: Any) -> None:
        await self.rename_state("Renamed")


class RejectsToPending(Rule):
    TO_STATES = frozenset({StateType.RUNNING})

    async def before_transition(self, initial_state: Any, proposed_state: Any, context: Any) -> None:
        pending = ProposedState(type=StateType.PENDING, data={"secret": "s3cr3t"})
        self.saw(hour=3, instead=pending)
        await self.reject_transition(pending, "Not yet.")


class AbortsPending(Rule):
    TO_STATES = frozenset({StateType.PENDING})

    async def before_transition(self, initial_state: Any, proposed_state: Any, context: Any) -> None:
        await self.abort_transition("Never.")


class Listens(BaseUniversalTransform):
    async def before_transition(self, context: Any) -> None:
        context.parameters["listened"] = True


class SaysMuch(Rule):
    """Says more than a trace may hold, a hundred times."""

    said: ClassVar[str] = "x" * 10_000

    async def before_transition(self, initial_state: Any, proposed_state: Any, context: Any) -> None:
        for n in range(100):
            self.saw(**{f"fact_{n}": [self.said] * 100})
        await self.abort_transition(self.said)


async def traced(
    *rules: Governing, state: ProposedState | None = None, is_what_if: bool = False
) -> tuple[Trace | None, str | None]:
    """Return the trace of a proposal that these rules govern, and the text of it."""

    class Policy(BaseOrchestrationPolicy):
        @staticmethod
        def priority() -> list[Governing]:
            return list(rules)

    run = flow_run(state=written(State.scheduled()), state_type=StateType.SCHEDULED)
    work = work_with(run)
    work.begin()
    proposed = State.running() if state is None else state
    await Engine(Policy, Policy).decide(Proposal(IDS.new(), run.id, proposed, NOW, is_what_if=is_what_if), work)
    return None if work.trace is None else Trace.model_validate_json(work.trace), work.trace


def told(trace: Trace | None) -> list[tuple[str, bool, bool, list[RuleVerb]]]:
    assert trace is not None
    return [
        (rule.rule, rule.entered, rule.fizzled, [decision.verb for decision in rule.decisions]) for rule in trace.rules
    ]


async def test_what_is_accepted_has_no_trace() -> None:
    assert await traced(Bystander, Renames) == (None, None)


async def test_of_a_question_there_is_a_trace_in_any_case() -> None:
    trace, _ = await traced(Bystander, Renames, is_what_if=True)
    assert told(trace) == [("Bystander", True, False, []), ("Renames", True, False, [RuleVerb.RENAME])]


async def test_who_decides_stays_those_before_fizzle_and_those_behind_are_not_entered() -> None:
    trace, text = await traced(Bystander, Listens, RejectsToPending, Renames)
    assert told(trace) == [
        ("Bystander", True, True, []),
        ("RejectsToPending", True, False, [RuleVerb.REJECT]),
        ("Renames", False, False, []),
    ]
    assert trace is not None
    assert trace.initial is not None
    assert trace.intended is not None
    assert (trace.initial.name, trace.intended.name) == ("Scheduled", "Running")
    [bystander, decider, _] = trace.rules
    assert bystander.saw == {"proposed": {"type": "RUNNING", "name": "Running"}, "nothing": None}
    assert decider.saw == {"hour": 3, "instead": {"type": "PENDING", "name": "Pending"}}
    [decision] = decider.decisions
    assert decision.to is not None
    assert (decision.reason, decision.to.name) == ("Not yet.", "Pending")
    assert "s3cr3t" not in (text or "")


async def test_a_trace_is_bounded_and_keeps_what_was_decided() -> None:
    trace, text = await traced(SaysMuch)
    assert text is not None
    assert len(text) <= MAX_TRACE_BYTES
    assert trace is not None
    assert trace.is_cut
    [part] = trace.rules
    assert [decision.verb for decision in part.decisions] == [RuleVerb.ABORT]


async def test_many_full_limits_fit() -> None:
    others = [task_run() for _ in range(100)]
    names = [f"limit {n} {'x' * 180}" for n in range(100)]
    run = task_run(tags=tuple(names))
    limits = [limit_on(name, 1, other) for name, other in zip(names, others, strict=True)]
    work = work_with(run, *others, limits=limits)
    work.begin()
    verdict = await Engine().decide(Proposal(IDS.new(), run.id, State.running(), NOW), work)
    assert verdict.status == "WAIT"
    assert work.trace is not None
    assert len(work.trace.encode()) <= MAX_TRACE_BYTES
    assert Trace.model_validate_json(work.trace).rules


@pytest.mark.parametrize(
    ("value", "small"),
    [
        (None, None),
        (True, True),
        (7, 7),
        (2**80, "<int>"),
        (0.5, 0.5),
        (float("nan"), "nan"),
        ("a\x00b\ud800", "a\\u0000b\\ud800"),
        ("x" * 300, "x" * 200 + "…"),
        (timedelta(minutes=1), 60.0),
        (NOW, NOW),
        (UUID(int=1), UUID(int=1)),
        (LimitScope.TAG, "tag"),
        (State.completed(data={"secret": 1}), {"type": "COMPLETED", "name": "Completed"}),
        ({"a": [1, (2, {3})]}, {"a": [1, [2, "<set>"]]}),
        (range(3), "<range>"),
        (object(), "<object>"),
        ([0] * 100, [0] * 10),
    ],
)
def test_a_fact_is_small_and_can_be_stored(value: object, small: object) -> None:
    assert fact(value) == small


async def test_a_question_that_is_rolled_back_has_no_place_in_a_queue() -> None:
    other, run = task_run(), task_run(tags=("database",))
    queue = [Queued(IDS.new(), partition=0, priority=0, ticket=1)]
    work = work_with(run, other, limits=[limit_on("database", 2, other, queue=queue)])
    fields = dict(vars(run))
    for state in (State.running(), State.completed()):
        work.begin()
        await Engine().decide(Proposal(IDS.new(), run.id, state, NOW, is_what_if=True), work)
        work.roll_back()
    assert vars(run) == fields
    # The first proposal of the batch has the first ticket.
    first = work.waiting.turn_of(IDS.new(), 0)
    assert first == UnitOfWork(NOW, IDS).waiting.turn_of(IDS.new(), 0)
    assert not work.waiting.has_changed
    assert not work.waiting.touched_limits
    assert (work.state_changes, work.slots_taken, work.slots_released, work.changed_runs) == ([], set(), set(), {})
