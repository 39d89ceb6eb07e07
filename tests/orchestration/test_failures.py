"""What happens when a rule raises or takes too long: an error that names it, and nothing else."""

import asyncio
from copy import copy

import pytest

from statewright import SetStateStatus, State, StateType
from statewright_worker.orchestration import OrchestrationError
from statewright_worker.orchestration.core_policy import CacheInsertion, SecureTaskConcurrencySlots
from statewright_worker.orchestration.errors import RuleError, RunMissing
from statewright_worker.orchestration.rules import BaseOrchestrationRule
from tests.orchestration.builders import (
    acting,
    engine_with,
    fail,
    flow_run,
    limit_on,
    noting,
    propose,
    put,
    task_run,
    types,
    work_with,
)


async def for_ever(rule: BaseOrchestrationRule) -> None:
    await asyncio.Event().wait()


class Unmakeable(BaseOrchestrationRule):
    """A rule that cannot even be made."""

    FROM_STATES = TO_STATES = frozenset({None, *StateType})

    def __init__(self, *_: object) -> None:
        raise KeyError("broken")


@pytest.mark.parametrize(
    "broken",
    [
        acting(fail, name="Broken"),
        acting(after=fail, name="Broken"),
    ],
)
async def test_an_exception_in_a_hook_names_the_rule(broken: type[BaseOrchestrationRule]) -> None:
    run = flow_run()
    engine = engine_with(acting(), broken, acting())
    with pytest.raises(RuleError, match=r"^Broken failed: KeyError: 'broken'$") as raised:
        await propose(work_with(run), run, State.running(), engine=engine)
    assert raised.value.rule == "Broken"
    assert isinstance(raised.value.__cause__, KeyError)


async def test_an_exception_in_a_cleanup_names_the_rule() -> None:
    run = flow_run()
    aborting = acting(lambda rule: rule.abort_transition("never"))
    engine = engine_with(acting(cleanup=fail, name="Broken"), aborting)
    with pytest.raises(RuleError, match="Broken failed"):
        await propose(work_with(run), run, State.running(), engine=engine)


async def test_a_rule_that_cannot_be_made_is_named_like_one_that_raises() -> None:
    run = flow_run()
    with pytest.raises(RuleError, match="Unmakeable failed: KeyError: 'broken'"):
        await propose(work_with(run), run, State.running(), engine=engine_with(Unmakeable))


async def test_a_rule_that_cannot_be_made_does_not_shift_the_blame() -> None:
    run = flow_run()
    with pytest.raises(RuleError, match="Unmakeable failed"):
        await propose(work_with(run), run, State.running(), engine=engine_with(acting(), Unmakeable))


async def test_an_orchestration_error_of_a_rule_passes_unchanged() -> None:
    error = OrchestrationError("this cannot be governed")

    async def refuse(rule: BaseOrchestrationRule) -> None:
        raise error

    run = flow_run()
    with pytest.raises(OrchestrationError) as raised:
        await propose(work_with(run), run, State.running(), engine=engine_with(acting(refuse)))
    assert raised.value is error


async def test_a_run_that_does_not_exist_is_missing() -> None:
    stranger = flow_run()
    with pytest.raises(RunMissing, match=str(stranger.id)) as raised:
        await propose(work_with(flow_run()), stranger, State.running())
    assert raised.value.run_id == stranger.id


async def test_the_rules_that_were_entered_clean_up_innermost_first() -> None:
    journal: list[str] = []
    run = flow_run()
    engine = engine_with(noting("A", journal), noting("B", journal), acting(fail), noting("C", journal))
    with pytest.raises(RuleError):
        await propose(work_with(run), run, State.running(), engine=engine)
    assert journal == ["A before", "B before", "B cleanup", "A cleanup"]


async def test_rules_that_have_finished_do_not_clean_up_when_an_outer_one_fails() -> None:
    journal: list[str] = []
    run = flow_run()
    engine = engine_with(noting("A", journal), acting(after=fail), noting("B", journal))
    with pytest.raises(RuleError):
        await propose(work_with(run), run, State.running(), engine=engine)
    assert journal == ["A before", "B before", "B after", "A cleanup"]


async def test_a_cleanup_that_fails_too_is_noted_and_stops_no_other() -> None:
    journal: list[str] = []
    run = flow_run()
    engine = engine_with(noting("A", journal), acting(cleanup=fail), acting(fail, name="First"))
    with pytest.raises(RuleError, match="First failed") as raised:
        await propose(work_with(run), run, State.running(), engine=engine)
    assert journal == ["A before", "A cleanup"]
    assert raised.value.__notes__ == ["while cleaning up: KeyError('broken')"]


async def test_everything_that_the_proposal_did_is_undone() -> None:
    task = task_run(tags=("db",))
    limit = limit_on("db", 1)
    work = work_with(task, limits=[limit])
    await put(work, task, State.scheduled())
    before, state = copy(task), task.state
    engine = engine_with(acting(after=fail), SecureTaskConcurrencySlots, CacheInsertion)
    with pytest.raises(RuleError):
        await propose(work, task, State.running(), engine=engine)
    with pytest.raises(RuleError):
        await propose(work, task, State.completed(cache_key="key"), engine=engine)
    assert task == before
    assert task.state is state
    assert (limit.slots_held, limit.holders, work.slots_taken, work.slots_released) == (0, set(), set(), set())
    assert (work.cached_state("key"), work.cache_added, types(work, task)) == (None, [], [StateType.SCHEDULED])


async def test_the_transitions_that_it_brought_about_are_undone_with_it() -> None:
    flow = flow_run()
    parent = task_run(flow)
    subflow = flow_run(parent_task_run_id=parent.id)
    work = work_with(flow, parent, subflow)
    before = copy(parent)
    with pytest.raises(RuleError):
        await propose(work, subflow, State.running(), engine=engine_with(acting(after=fail)))
    assert parent == before
    assert work.state_changes == []


async def test_the_neighbours_of_a_failing_proposal_are_not_touched() -> None:
    class OnlyRunning(BaseOrchestrationRule):
        FROM_STATES = frozenset({None, *StateType})
        TO_STATES = frozenset({StateType.RUNNING})
        before_transition = fail  # type: ignore[assignment]  # any awaitable that raises will do

    run = flow_run()
    work, engine = work_with(run), engine_with(OnlyRunning)
    await propose(work, run, State.pending(), engine=engine)
    with pytest.raises(RuleError):
        await propose(work, run, State.running(), engine=engine)
    verdict = await propose(work, run, State.completed(), engine=engine)
    assert verdict.status is SetStateStatus.ACCEPT
    assert types(work, run) == [StateType.PENDING, StateType.COMPLETED]


async def test_a_failure_in_a_transition_that_was_brought_about_names_what_failed() -> None:
    parent = task_run()
    subflow = flow_run(parent_task_run_id=parent.id)
    work = work_with(parent, subflow)
    await put(work, parent, State.running())
    parent.total_run_time = None  # type: ignore[assignment]  # what no transform can add to
    with pytest.raises(RuleError, match="IncrementRunTime failed: TypeError"):
        await propose(work, subflow, State.pending())
    assert subflow.state is None


async def test_a_rule_that_takes_too_long_is_an_error_and_is_undone() -> None:
    run = flow_run()
    work = work_with(run)
    engine = engine_with(acting(after=for_ever, name="Endless"), rule_timeout=0.001)
    with pytest.raises(RuleError, match=r"not done within 0\.001 s") as raised:
        await propose(work, run, State.running(), engine=engine)
    assert isinstance(raised.value.__cause__, TimeoutError)
    assert run.state is None
    assert work.state_changes == []


async def test_a_rule_that_takes_too_long_is_named() -> None:
    run = flow_run()
    engine = engine_with(acting(), acting(for_ever, name="Endless"), rule_timeout=0.001)
    with pytest.raises(RuleError) as raised:
        await propose(work_with(run), run, State.running(), engine=engine)
    assert raised.value.rule == "Endless"


async def test_the_rules_that_were_entered_clean_up_when_another_takes_too_long() -> None:
    journal: list[str] = []
    run = flow_run()
    engine = engine_with(noting("A", journal), acting(for_ever), rule_timeout=0.001)
    with pytest.raises(RuleError):
        await propose(work_with(run), run, State.running(), engine=engine)
    assert journal == ["A before", "A cleanup"]


async def test_a_cleanup_that_takes_too_long_as_well_holds_nobody_up() -> None:
    run = flow_run()
    engine = engine_with(acting(cleanup=for_ever), acting(for_ever), rule_timeout=0.001)
    with pytest.raises(RuleError):
        async with asyncio.timeout(10):
            await propose(work_with(run), run, State.running(), engine=engine)


async def test_a_rules_own_timeout_is_an_exception_like_any_other() -> None:
    async def impatient(rule: BaseOrchestrationRule) -> None:
        async with asyncio.timeout(0.001):
            await for_ever(rule)

    run = flow_run()
    engine = engine_with(acting(impatient, name="Impatient"), rule_timeout=60)
    with pytest.raises(RuleError, match="Impatient failed: TimeoutError"):
        await propose(work_with(run), run, State.running(), engine=engine)


async def test_an_engine_governs_again_after_a_timeout() -> None:
    run = flow_run()
    work = work_with(run)
    engine = engine_with(acting(for_ever, to_states={StateType.RUNNING}), rule_timeout=0.001)
    with pytest.raises(RuleError):
        await propose(work, run, State.running(), engine=engine)
    verdict = await propose(work, run, State.pending(), engine=engine)
    assert verdict.status is SetStateStatus.ACCEPT
