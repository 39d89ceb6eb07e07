"""How universal transforms differ from rules: they fire on everything, and on the real thing."""

import pytest

from statewright import SetStateStatus, State, StateType
from statewright_worker.orchestration import BaseUniversalTransform, OrchestrationContext
from statewright_worker.orchestration.errors import RuleFailed
from tests.orchestration.builders import (
    Act,
    abort,
    acting,
    delay,
    engine_with,
    fail,
    flow_context,
    flow_run,
    keep,
    noting_transform,
    propose,
    put,
    work_with,
)


async def test_a_transform_fires_before_and_after_the_write_without_signing() -> None:
    journal: list[str] = []
    run = flow_run()
    engine = engine_with(noting_transform("Book", journal))
    verdict = await propose(work_with(run), run, State.running(), engine=engine)
    assert journal == ["Book before", "Book after"]
    assert verdict.rule_signature == verdict.finalization_signature == ()


async def test_transforms_nest_like_rules() -> None:
    journal: list[str] = []
    run = flow_run()
    engine = engine_with(noting_transform("A", journal), noting_transform("B", journal))
    await propose(work_with(run), run, State.running(), engine=engine)
    assert journal == ["A before", "B before", "B after", "A after"]


@pytest.mark.parametrize("act", [delay, abort, keep])
async def test_a_transform_fires_on_a_nullified_transition_and_can_tell(act: Act) -> None:
    journal: list[str] = []
    run = flow_run()
    work = work_with(run)
    await put(work, run, State.pending())
    engine = engine_with(acting(act), noting_transform("Book", journal))
    await propose(work, run, State.running(), engine=engine)
    assert journal == ["Book before nothing", "Book after nothing"]


async def test_a_transform_outside_of_the_nullifying_rule_learns_of_it_on_its_way_out() -> None:
    journal: list[str] = []
    run = flow_run()
    engine = engine_with(noting_transform("Book", journal), acting(abort))
    await propose(work_with(run), run, State.running(), engine=engine)
    assert journal == ["Book before", "Book after nothing"]


async def test_a_transform_fires_on_a_rejected_transition() -> None:
    journal: list[str] = []
    run = flow_run()
    rejecting = acting(lambda rule: rule.reject_transition(State.pending(), "not yet"))
    await propose(
        work_with(run), run, State.running(), engine=engine_with(rejecting, noting_transform("Book", journal))
    )
    assert journal == ["Book before", "Book after"]


async def test_a_transform_works_on_the_real_context() -> None:
    class Renaming(BaseUniversalTransform):
        async def before_transition(self, context: OrchestrationContext) -> None:
            assert context is self.context
            assert context.proposed_state is not None
            context.proposed_state = context.proposed_state.renamed("Walking")

        async def after_transition(self, context: OrchestrationContext) -> None:
            assert context is self.context
            context.response_status = SetStateStatus.REJECT

    run = flow_run()
    verdict = await propose(work_with(run), run, State.running(), engine=engine_with(Renaming))
    assert verdict.status is SetStateStatus.REJECT
    assert run.state_name == "Walking"


async def test_an_exception_before_the_write_skips_the_after_hooks_of_transforms() -> None:
    journal: list[str] = []
    run = flow_run()
    engine = engine_with(noting_transform("Outer", journal), acting(fail), noting_transform("Inner", journal))
    with pytest.raises(RuleFailed):
        await propose(work_with(run), run, State.running(), engine=engine)
    assert journal == ["Outer before"]


async def test_an_exception_after_the_write_skips_the_after_hooks_that_were_still_to_come() -> None:
    journal: list[str] = []
    run = flow_run()
    engine = engine_with(noting_transform("Outer", journal), acting(after=fail), noting_transform("Inner", journal))
    with pytest.raises(RuleFailed):
        await propose(work_with(run), run, State.running(), engine=engine)
    assert journal == ["Outer before", "Inner before", "Inner after"]


async def test_an_exception_in_a_transform_names_the_transform() -> None:
    class Torn(BaseUniversalTransform):
        async def before_transition(self, context: OrchestrationContext) -> None:
            raise KeyError("page")

    run = flow_run()
    with pytest.raises(RuleFailed, match="Torn failed: KeyError: 'page'") as raised:
        await propose(work_with(run), run, State.running(), engine=engine_with(Torn))
    assert raised.value.rule == "Torn"


async def test_a_transform_can_be_used_alone_and_asked_for_an_exception() -> None:
    context = flow_context(State.pending(), State.running())
    transform = noting_transform("Book", [])(context, StateType.PENDING, StateType.RUNNING)
    assert (transform.from_state_type, transform.to_state_type) == (StateType.PENDING, StateType.RUNNING)
    async with transform as entered:
        assert entered is context
        assert not transform.nullified_transition()
    assert not transform.exception_in_transition()
    with pytest.raises(KeyError):
        async with transform:
            raise KeyError("broken")
    assert transform.exception_in_transition()


async def test_a_transform_fires_even_for_a_pair_that_is_not_the_contexts() -> None:
    journal: list[str] = []
    context = flow_context(State.pending(), State.running())
    async with noting_transform("Book", journal)(context, None, StateType.FAILED):
        pass
    assert journal == ["Book before", "Book after"]
