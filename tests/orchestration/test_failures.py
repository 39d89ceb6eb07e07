"""What happens when a rule raises or takes too long: an error that names it, and nothing else."""

import asyncio
import time
from contextlib import suppress
from copy import copy

import pytest

from statewright import SetStateStatus, State, StateType
from statewright_worker.orchestration import BaseUniversalTransform, OrchestrationContext, OrchestrationError
from statewright_worker.orchestration.core_policy import CacheInsertion, SecureTaskConcurrencySlots
from statewright_worker.orchestration.errors import RuleFailed, RunNotFound
from statewright_worker.orchestration.rules import BaseOrchestrationRule
from tests.deployment import HANGS_SECONDS
from tests.orchestration.builders import (
    Act,
    abort,
    acting,
    delay,
    engine_with,
    fail,
    flow_context,
    flow_run,
    limit_on,
    nothing,
    noting,
    propose,
    put,
    reject,
    task_run,
    types,
    work_with,
)

RULE_SECONDS = 0.5
"""What a rule may take here: more than a busy machine needs for one that does nothing."""
BLOCKING_SECONDS = 0.6


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
    with pytest.raises(RuleFailed, match=r"^Broken failed: KeyError: 'broken'$") as raised:
        await propose(work_with(run), run, State.running(), engine=engine)
    assert raised.value.rule == "Broken"
    assert isinstance(raised.value.__cause__, KeyError)


async def test_an_exception_in_a_cleanup_names_the_rule() -> None:
    run = flow_run()
    aborting = acting(lambda rule: rule.abort_transition("never"))
    engine = engine_with(acting(cleanup=fail, name="Broken"), aborting)
    with pytest.raises(RuleFailed, match="Broken failed"):
        await propose(work_with(run), run, State.running(), engine=engine)


async def test_a_rule_that_cannot_be_made_is_named_like_one_that_raises() -> None:
    run = flow_run()
    with pytest.raises(RuleFailed, match="Unmakeable failed: KeyError: 'broken'"):
        await propose(work_with(run), run, State.running(), engine=engine_with(Unmakeable))


async def test_a_rule_that_cannot_be_made_does_not_shift_the_blame() -> None:
    run = flow_run()
    with pytest.raises(RuleFailed, match="Unmakeable failed"):
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
    with pytest.raises(RunNotFound, match=str(stranger.id)) as raised:
        await propose(work_with(flow_run()), stranger, State.running())
    assert raised.value.run_id == stranger.id


async def test_the_rules_that_were_entered_clean_up_innermost_first() -> None:
    journal: list[str] = []
    run = flow_run()
    engine = engine_with(noting("A", journal), noting("B", journal), acting(fail), noting("C", journal))
    with pytest.raises(RuleFailed):
        await propose(work_with(run), run, State.running(), engine=engine)
    assert journal == ["A before", "B before", "B cleanup", "A cleanup"]


async def test_a_rule_that_fails_on_entry_cleans_up_first_of_all() -> None:
    journal: list[str] = []
    run = flow_run()
    engine = engine_with(noting("A", journal), noting("B", journal, before=fail), noting("C", journal))
    with pytest.raises(RuleFailed, match="B failed"):
        await propose(work_with(run), run, State.running(), engine=engine)
    assert journal == ["A before", "B before", "B cleanup", "A cleanup"]


@pytest.mark.parametrize("act", [abort, reject, delay])
async def test_a_rule_that_fails_after_it_has_decided_cleans_up_too(act: Act) -> None:
    async def decide_and_fail(rule: BaseOrchestrationRule) -> None:
        await act(rule)
        await fail(rule)

    journal: list[str] = []
    run = flow_run()
    rule = noting("A", journal, before=decide_and_fail, to_states={StateType.RUNNING})
    with pytest.raises(RuleFailed, match="A failed: KeyError"):
        await propose(work_with(run), run, State.running(), engine=engine_with(rule))
    assert journal == ["A before", "A cleanup"]


async def test_a_rule_that_fails_on_exit_cleans_up() -> None:
    journal: list[str] = []
    run = flow_run()
    engine = engine_with(noting("A", journal), noting("B", journal, after=fail), noting("C", journal))
    with pytest.raises(RuleFailed, match="B failed"):
        await propose(work_with(run), run, State.running(), engine=engine)
    assert journal[3:] == ["C after", "B after", "B cleanup", "A cleanup"]


async def test_a_cleanup_that_fails_is_not_tried_again() -> None:
    journal: list[str] = []
    run = flow_run()
    engine = engine_with(noting("A", journal, cleanup=fail), acting(reject))
    with pytest.raises(RuleFailed, match="A failed"):
        await propose(work_with(run), run, State.running(), engine=engine)
    assert journal == ["A before", "A cleanup"]


@pytest.mark.parametrize("pair", [(None, StateType.FAILED), (StateType.PENDING, StateType.RUNNING)])
async def test_a_rule_that_was_never_entered_has_nothing_to_clean_up(
    pair: tuple[StateType | None, StateType | None],
) -> None:
    journal: list[str] = []
    context = flow_context(None, State.running())
    with pytest.raises(KeyError):
        async with noting("A", journal, to_states={StateType.RUNNING})(context, *pair):
            raise KeyError("broken")
    assert journal == []


async def test_rules_that_have_finished_do_not_clean_up_when_an_outer_one_fails() -> None:
    journal: list[str] = []
    run = flow_run()
    engine = engine_with(noting("A", journal), acting(after=fail), noting("B", journal))
    with pytest.raises(RuleFailed):
        await propose(work_with(run), run, State.running(), engine=engine)
    assert journal == ["A before", "B before", "B after", "A cleanup"]


async def test_a_cleanup_that_fails_too_is_noted_and_stops_no_other() -> None:
    journal: list[str] = []
    run = flow_run()
    engine = engine_with(noting("A", journal), acting(cleanup=fail), acting(fail, name="First"))
    with pytest.raises(RuleFailed, match="First failed") as raised:
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
    with pytest.raises(RuleFailed):
        await propose(work, task, State.running(), engine=engine)
    with pytest.raises(RuleFailed):
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
    with pytest.raises(RuleFailed):
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
    with pytest.raises(RuleFailed):
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
    with pytest.raises(RuleFailed, match="IncrementRunTime failed: TypeError"):
        await propose(work, subflow, State.pending())
    assert subflow.state is None


async def test_a_rule_that_takes_too_long_is_an_error_and_is_undone() -> None:
    run = flow_run()
    work = work_with(run)
    engine = engine_with(acting(after=for_ever, name="Endless"), rule_timeout=RULE_SECONDS)
    with pytest.raises(RuleFailed, match=r"not done within 0\.5 s") as raised:
        await propose(work, run, State.running(), engine=engine)
    assert isinstance(raised.value.__cause__, TimeoutError)
    assert run.state is None
    assert work.state_changes == []


async def test_a_rule_that_takes_too_long_is_named() -> None:
    run = flow_run()
    engine = engine_with(acting(), acting(for_ever, name="Endless"), rule_timeout=RULE_SECONDS)
    with pytest.raises(RuleFailed) as raised:
        await propose(work_with(run), run, State.running(), engine=engine)
    assert raised.value.rule == "Endless"


async def test_the_rules_that_were_entered_clean_up_when_another_takes_too_long() -> None:
    journal: list[str] = []
    run = flow_run()
    engine = engine_with(noting("A", journal), acting(for_ever), rule_timeout=RULE_SECONDS)
    with pytest.raises(RuleFailed):
        await propose(work_with(run), run, State.running(), engine=engine)
    assert journal == ["A before", "A cleanup"]


async def test_a_rule_that_takes_too_long_cleans_up_itself() -> None:
    journal: list[str] = []
    run = flow_run()
    engine = engine_with(noting("A", journal), noting("B", journal, before=for_ever), rule_timeout=RULE_SECONDS)
    with pytest.raises(RuleFailed, match="B failed: TimeoutError"):
        await propose(work_with(run), run, State.running(), engine=engine)
    assert journal == ["A before", "B before", "B cleanup", "A cleanup"]


async def test_a_cleanup_that_takes_too_long_as_well_holds_nobody_up() -> None:
    run = flow_run()
    engine = engine_with(acting(cleanup=for_ever), acting(for_ever), rule_timeout=RULE_SECONDS)
    with pytest.raises(RuleFailed):
        async with asyncio.timeout(HANGS_SECONDS):
            await propose(work_with(run), run, State.running(), engine=engine)


async def test_a_rules_own_timeout_is_an_exception_like_any_other() -> None:
    async def impatient(rule: BaseOrchestrationRule) -> None:
        async with asyncio.timeout(0.001):
            await for_ever(rule)

    run = flow_run()
    engine = engine_with(acting(impatient, name="Impatient"), rule_timeout=60)
    with pytest.raises(RuleFailed, match="Impatient failed: TimeoutError"):
        await propose(work_with(run), run, State.running(), engine=engine)


async def test_a_rule_that_swallows_its_cancellation_is_found_out() -> None:
    async def stubborn(rule: BaseOrchestrationRule) -> None:
        with suppress(asyncio.CancelledError):
            await for_ever(rule)

    run = flow_run()
    work = work_with(run)
    engine = engine_with(acting(stubborn, name="Stubborn"), rule_timeout=RULE_SECONDS)
    with pytest.raises(RuleFailed, match=r"Stubborn failed: TimeoutError: not done within 0\.5 s"):
        await propose(work, run, State.running(), engine=engine)
    assert run.state is None


async def test_a_rule_whose_own_work_is_cancelled_does_not_end_the_worker() -> None:
    async def awaiting_what_is_cancelled(rule: BaseOrchestrationRule) -> None:
        work = asyncio.ensure_future(for_ever(rule))
        work.cancel()
        await work

    journal: list[str] = []
    run = flow_run()
    engine = engine_with(noting("A", journal, before=awaiting_what_is_cancelled), rule_timeout=60)
    with pytest.raises(RuleFailed, match="A failed: CancelledError"):
        await propose(work_with(run), run, State.running(), engine=engine)
    assert journal == ["A before", "A cleanup"]


async def test_who_ends_the_worker_ends_the_rule_and_it_cleans_up() -> None:
    journal: list[str] = []
    run, begun = flow_run(), asyncio.Event()

    async def begin(rule: BaseOrchestrationRule) -> None:
        begun.set()
        await for_ever(rule)

    engine = engine_with(noting("A", journal, before=begin), rule_timeout=60)
    deciding = asyncio.ensure_future(propose(work_with(run), run, State.running(), engine=engine))
    await begun.wait()
    deciding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await deciding
    assert journal == ["A before", "A cleanup"]


# -- blocking ----------------------------------------------------------------------------------------------------------


async def block(rule: BaseOrchestrationRule) -> None:
    time.sleep(BLOCKING_SECONDS)  # noqa: ASYNC251  # what a rule must not do


async def block_and_fail(rule: BaseOrchestrationRule) -> None:
    await block(rule)
    await fail(rule)


async def block_and_wait(rule: BaseOrchestrationRule) -> None:
    await block(rule)
    await for_ever(rule)


async def wait_and_block(rule: BaseOrchestrationRule) -> None:
    await asyncio.sleep(0)
    await block(rule)


BLOCKED = r"^Blocking failed: HeldUp: it blocked the worker for [\d.]+ s, and may for 0\.5 s; .*asyncio\.to_thread$"


@pytest.mark.parametrize("act", [block, block_and_fail, block_and_wait, wait_and_block])
@pytest.mark.parametrize("hook", ["before", "after"])
async def test_a_rule_that_blocks_the_worker_is_found_out(act: Act, hook: str) -> None:
    journal: list[str] = []
    run = flow_run()
    before, after = (act, nothing) if hook == "before" else (nothing, act)
    rules = noting("A", journal), noting("Blocking", journal, before=before, after=after), noting("C", journal)
    work = work_with(run)
    with pytest.raises(RuleFailed, match=BLOCKED) as raised:
        await propose(work, run, State.running(), engine=engine_with(*rules, rule_timeout=RULE_SECONDS))
    assert (raised.value.blocked, raised.value.rule) == (True, "Blocking")
    assert raised.value.__cause__ is not None
    assert journal[-2:] == ["Blocking cleanup", "A cleanup"]
    assert (run.state, work.state_changes) == (None, [])


async def test_a_cleanup_that_blocks_the_worker_is_found_out() -> None:
    run = flow_run()
    engine = engine_with(acting(cleanup=block), acting(fail, name="First"), rule_timeout=RULE_SECONDS)
    with pytest.raises(RuleFailed, match="First failed: KeyError") as raised:
        await propose(work_with(run), run, State.running(), engine=engine)
    assert raised.value.blocked


async def test_a_transform_of_a_users_own_that_blocks_the_worker_is_found_out() -> None:
    class Blocking(BaseUniversalTransform):
        async def before_transition(self, context: OrchestrationContext) -> None:
            time.sleep(BLOCKING_SECONDS)  # noqa: ASYNC251  # what a transform must not do

    run = flow_run()
    with pytest.raises(RuleFailed, match=BLOCKED):
        await propose(work_with(run), run, State.running(), engine=engine_with(Blocking, rule_timeout=RULE_SECONDS))


async def test_a_rule_that_waits_while_others_block_the_worker_is_not_blamed_for_it() -> None:
    async def wait(rule: BaseOrchestrationRule) -> None:
        asyncio.get_running_loop().call_soon(time.sleep, BLOCKING_SECONDS)
        await asyncio.sleep(0)

    run = flow_run()
    engine = engine_with(acting(wait), acting(fail), rule_timeout=RULE_SECONDS)
    with pytest.raises(RuleFailed) as raised:
        await propose(work_with(run), run, State.running(), engine=engine)
    assert not raised.value.blocked


async def test_an_engine_governs_again_after_a_timeout() -> None:
    run = flow_run()
    work = work_with(run)
    engine = engine_with(acting(for_ever, to_states={StateType.RUNNING}), rule_timeout=RULE_SECONDS)
    with pytest.raises(RuleFailed):
        await propose(work, run, State.running(), engine=engine)
    verdict = await propose(work, run, State.pending(), engine=engine)
    assert verdict.status is SetStateStatus.ACCEPT
