"""How a proposal becomes a state: identity, name, moment and scheduled time; and one proposal after another."""

from datetime import datetime

import pytest
from packaging.version import Version

from statewright import SetStateStatus, State, StateDetails, StateType
from statewright_worker.orchestration import BaseOrchestrationRule, Proposal
from tests.orchestration.builders import (
    CORE,
    IDS,
    NOW,
    acting,
    dated,
    engine_with,
    flow_run,
    history,
    named,
    of_type,
    propose,
    put,
    seconds,
    task_run,
    types,
    work_with,
)

EARLIER, EARLIEST, LATER = NOW - seconds(1), NOW - seconds(3600), NOW + seconds(1)


@pytest.mark.parametrize(
    ("producers", "entered", "expected"),
    [
        (EARLIEST, EARLIER, EARLIEST),
        (None, EARLIER, EARLIER),
        (None, NOW, NOW),
        (None, LATER, NOW),
        (LATER, EARLIER, NOW),
        (EARLIER, LATER, EARLIER),
    ],
)
async def test_a_state_is_dated_by_its_producer_else_by_its_arrival_but_never_later_than_now(
    producers: datetime | None, entered: datetime, expected: datetime
) -> None:
    run = flow_run()
    proposed = State.running().model_copy(update={"timestamp": producers})
    verdict = await propose(work_with(run), run, proposed, entered=entered)
    assert verdict.state is not None
    assert verdict.state.timestamp == expected


@pytest.mark.parametrize("state_type", StateType)
async def test_a_state_without_a_name_is_called_by_its_type(state_type: StateType) -> None:
    run = flow_run()
    await propose(work_with(run), run, of_type(state_type), force=True)
    assert run.state_name == state_type.value.capitalize()


async def test_a_name_of_the_producers_own_is_kept() -> None:
    run = flow_run()
    await propose(work_with(run), run, named(State.pending(), "Submitting"))
    assert (run.state_type, run.state_name) == (StateType.PENDING, "Submitting")


async def test_scheduled_without_a_time_is_scheduled_for_now() -> None:
    run = flow_run()
    await propose(work_with(run), run, dated(State.scheduled(), EARLIEST), entered=EARLIER)
    assert run.state is not None
    assert run.state.state_details.scheduled_time == NOW


async def test_what_the_producer_says_is_written_as_it_is() -> None:
    run = task_run()
    details = StateDetails(cache_key="key", pause_key="lunch", untrackable_result=True, transition_id=IDS.new())
    proposed = State.completed(data={"a": [1, None]}, message="done").model_copy(update={"state_details": details})
    await propose(work_with(run), run, proposed)
    assert run.state is not None
    assert (run.state.data, run.state.message) == ({"a": [1, None]}, "done")
    assert run.state.state_details == details.model_copy(update={"task_run_id": run.id})


async def test_every_state_has_an_id_of_its_own() -> None:
    run = flow_run()
    work = work_with(run)
    await put(work, run, State.running(), State.running(), State.running())
    assert len({state.id for state in history(work, run)}) == 3


async def test_the_verdict_names_its_proposal_and_its_run() -> None:
    run = flow_run()
    proposal = Proposal(IDS.new(), run.id, State.running(), NOW)
    verdict = await CORE.decide(proposal, work_with(run))
    assert (verdict.proposal_id, verdict.run_id) == (proposal.id, run.id)
    assert verdict.accepted


async def test_two_proposals_for_one_run_are_decided_one_on_the_state_that_the_other_left() -> None:
    run = task_run()
    work = work_with(run)
    first = await propose(work, run, State.running())
    second = await propose(work, run, State.running())
    assert (first.status, second.status) == (SetStateStatus.ACCEPT, SetStateStatus.ABORT)
    assert first.state is second.state is run.state
    assert types(work, run) == [StateType.RUNNING]


async def test_the_verdict_on_an_accepted_proposal_says_which_rules_fired() -> None:
    run = task_run()
    verdict = await propose(work_with(run), run, State.running())
    assert verdict.rule_signature == (
        "CacheRetrieval",
        "PreventRedundantTransitions",
        "SecureTaskConcurrencySlots",
        "RenameReruns",
        "UpdateFlowRunTrackerOnTasks",
    )
    assert verdict.finalization_signature == verdict.rule_signature[::-1]


async def test_the_verdict_on_an_aborted_proposal_says_which_rule_aborted_it() -> None:
    run = flow_run()
    work = work_with(run)
    await put(work, run, State.completed())
    verdict = await propose(work, run, State.running())
    assert verdict.rule_signature == ("HandleFlowTerminalStateTransitions",)
    assert verdict.finalization_signature == verdict.rule_signature


@pytest.mark.parametrize(("api_version", "expected"), [(None, {}), ("0.8.2", {"api-version": Version("0.8.2")})])
async def test_rules_find_the_producers_api_version_among_the_parameters(
    api_version: str | None, expected: dict[str, object]
) -> None:
    seen: list[dict[str, object]] = []

    async def look(rule: BaseOrchestrationRule) -> None:
        seen.append(dict(rule.context.parameters))

    run = flow_run()
    await propose(work_with(run), run, State.running(), api_version=api_version, engine=engine_with(acting(look)))
    assert seen == [expected]
