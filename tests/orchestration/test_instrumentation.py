"""Events: each change of state makes one, and what it says."""

import json
from typing import Any

import pytest

from statewright import Event, RunKind, RunPolicy, SetStateStatus, State, StateType
from tests.orchestration.builders import (
    IDS,
    NOW,
    dated,
    event_bodies,
    events,
    flow_run,
    named,
    propose,
    put,
    seconds,
    task_run,
    work_with,
)

MAKERS = pytest.mark.parametrize("make_run", [flow_run, task_run])


async def event_after(*ages: float) -> Event:
    """Return the last event of a flow run whose states are that many seconds old."""
    run = flow_run()
    work = work_with(run)
    for age in ages:
        await put(work, run, dated(State.pending(), NOW - seconds(age)))
    return events(work)[-1]


@MAKERS
async def test_an_event_tells_the_state_and_the_run(make_run: Any) -> None:
    run = make_run()
    work = work_with(run)
    await propose(work, run, named(dated(State.running(message="go"), NOW - seconds(1)), "Jogging"))
    (event,) = events(work)
    assert run.state is not None
    assert (event.id, event.time, event.type) == (run.state.id, NOW - seconds(1), f"statewright.{run.kind}.Jogging")
    assert (event.partition, event.sequence) == (3, 1)
    resource = event.data.resource
    assert (resource.kind, resource.id, resource.name, resource.run_count) == (run.kind, run.id, run.name, 1)
    assert (resource.state_type, resource.state_name, resource.state_message) == (StateType.RUNNING, "Jogging", "go")
    assert resource.state_timestamp == NOW - seconds(1)


@pytest.mark.parametrize(("make_run", "kind"), [(flow_run, "flow-run"), (task_run, "task-run")])
async def test_an_event_is_called_by_kind_and_state_name(make_run: Any, kind: str) -> None:
    run = make_run(run_count=0)
    work = work_with(run)
    await put(work, run, State.awaiting_retry(NOW), State.running())
    assert [event.type for event in events(work)] == [
        f"statewright.{kind}.AwaitingRetry",
        f"statewright.{kind}.Running",
    ]
    assert {event.data.resource.kind for event in events(work)} == {RunKind(kind)}


@pytest.mark.parametrize(
    ("name", "told"),
    [("Größer 100 %", "Größer 100 %"), ('a "b"\\', 'a "b"\\'), ("a\nb\x7fc\ufffed", "a\ufffdb\ufffdc\ufffdd")],
)
async def test_what_no_attribute_may_have_is_replaced_in_the_type_alone(name: str, told: str) -> None:
    run = flow_run()
    work = work_with(run)
    await propose(work, run, named(State.running(), name))
    [event] = events(work)
    assert (event.type, event.data.validated_state.name) == (f"statewright.flow-run.{told}", name)


async def test_an_event_names_the_proposal_that_caused_it_and_its_place_in_the_history() -> None:
    parent = task_run()
    subflow = flow_run(parent_task_run_id=parent.id)
    work = work_with(parent, subflow)
    verdicts = [await propose(work, subflow, state) for state in (State.running(), State.completed())]
    told = [(event.run_id, event.data.ordinal, event.data.proposal_id) for event in events(work)]
    assert told == [
        (run.id, ordinal, verdict.proposal_id)
        for ordinal, verdict in enumerate(verdicts, 1)
        for run in (subflow, parent)
    ]


async def test_an_event_says_where_it_belongs() -> None:
    run = flow_run()
    work = work_with(run)
    await put(work, run, State.running())
    body = json.loads(event_bodies(work)[0])
    del body["data"]
    assert run.state is not None
    assert body == {
        "specversion": "1.0",
        "id": str(run.state.id),
        "source": "urn:statewright:statewright",
        "type": "statewright.flow-run.Running",
        "subject": str(run.id),
        "time": run.state.timestamp.isoformat(),
        "datacontenttype": "application/json",
        "v": 1,
        "partition": 3,
        "sequence": "0000000000000000001",
        "era": 0,
        "tree": run.id.int % 65_536,
    }


async def test_the_first_event_of_a_run_comes_from_nothing() -> None:
    event = await event_after(0)
    assert (event.data.intended.from_type, event.data.intended.to_type) == (None, StateType.PENDING)
    assert (event.data.initial_state, event.data.follows) == (None, None)


async def test_a_later_event_tells_where_it_came_from() -> None:
    run = flow_run()
    work = work_with(run)
    await put(work, run, State.running(message="go"), named(State.failed(message="oops"), "Broken"))
    before, event = events(work)
    assert event.data.follows == before.id
    assert (event.data.intended.from_type, event.data.intended.to_type) == (StateType.RUNNING, StateType.FAILED)
    assert event.data.initial_state is not None
    told = [(state.type, state.name, state.message) for state in (event.data.initial_state, event.data.validated_state)]
    assert told == [(StateType.RUNNING, "Running", "go"), (StateType.FAILED, "Broken", "oops")]


async def test_a_rejected_transition_tells_what_was_written() -> None:
    run = flow_run(policy=RunPolicy(retries=1))
    work = work_with(run)
    await put(work, run, State.running())
    await propose(work, run, State.failed(message="oops"))
    event = events(work)[-1]
    assert event.data.intended.to_type is event.data.validated_state.type is StateType.SCHEDULED
    assert (event.type, event.data.validated_state.message) == ("statewright.flow-run.AwaitingRetry", "oops")


@pytest.mark.parametrize(
    ("older", "follows"), [(0, True), (299, True), (299.999999, True), (300, False), (301, False), (1e6, False)]
)
async def test_an_event_follows_another_that_is_less_than_five_minutes_older(older: float, follows: bool) -> None:
    event = await event_after(older, 0)
    assert (event.data.follows is not None) is follows


@pytest.mark.parametrize(("newer", "follows"), [(299, True), (300, False)])
async def test_timestamps_that_run_backwards_are_as_far_apart(newer: float, follows: bool) -> None:
    event = await event_after(0, newer)
    assert (event.data.follows is not None) is follows


async def test_an_event_follows_the_state_right_before_it() -> None:
    run = flow_run()
    work = work_with(run)
    await put(work, run, State.pending(), State.running(), State.completed())
    first, second, third = events(work)
    assert (second.data.follows, third.data.follows) == (first.id, second.id)


# -- related resources -------------------------------------------------------------------------------------------------


async def test_a_flow_run_is_related_to_its_flow_deployment_parent_and_each_tag_once() -> None:
    parent = task_run()
    run = flow_run(flow_id=IDS.new(), deployment_id=IDS.new(), parent_task_run_id=parent.id, tags=("b", "a", "b", "a"))
    work = work_with(parent, run)
    await propose(work, run, State.running())
    related = [(other.role, other.id) for other in events(work)[0].data.related]
    assert sorted(related) == sorted(
        [
            ("flow", str(run.flow_id)),
            ("deployment", str(run.deployment_id)),
            ("parent-task-run", str(parent.id)),
            ("tag", "a"),
            ("tag", "b"),
        ]
    )


async def test_a_task_run_is_related_to_its_flow_run_and_each_tag_once() -> None:
    flow = flow_run()
    run = task_run(flow, tags=("a", "a"))
    work = work_with(flow, run)
    await propose(work, run, State.running())
    assert [(other.role, other.id) for other in events(work)[0].data.related] == [
        ("flow-run", str(flow.id)),
        ("tag", "a"),
    ]


@MAKERS
async def test_a_run_that_belongs_to_nothing_is_related_to_nothing(make_run: Any) -> None:
    run = make_run()
    work = work_with(run)
    await propose(work, run, State.running())
    assert events(work)[0].data.related == ()


# -- which changes make events -----------------------------------------------------------------------------------------


@MAKERS
async def test_forced_changes_are_events_too(make_run: Any) -> None:
    run = make_run()
    work = work_with(run)
    await propose(work, run, State.running(), force=True)
    assert [(event.type, event.data.resource.run_count) for event in events(work)] == [
        (f"statewright.{run.kind}.Running", 1)
    ]


@MAKERS
async def test_a_proposal_that_writes_nothing_makes_no_event(make_run: Any) -> None:
    run = make_run()
    work = work_with(run)
    await put(work, run, State.completed())
    assert (await propose(work, run, State.running())).status is SetStateStatus.ABORT
    assert len(events(work)) == 1


async def test_a_subflows_change_makes_an_event_for_it_and_then_one_for_its_parent() -> None:
    parent = task_run()
    subflow = flow_run(parent_task_run_id=parent.id)
    work = work_with(parent, subflow)
    await propose(work, subflow, State.running())
    told = [(event.type, event.run_id, event.data.resource.run_count) for event in events(work)]
    assert told == [("statewright.flow-run.Running", subflow.id, 1), ("statewright.task-run.Running", parent.id, 1)]


@MAKERS
async def test_an_event_keeps_the_run_count_of_its_own_change(make_run: Any) -> None:
    run = make_run()
    work = work_with(run)
    await put(work, run, State.running(), State.failed(), State.running())
    assert [event.data.resource.run_count for event in events(work)] == [1, 1, 2]


async def test_an_event_tells_no_data() -> None:
    run = flow_run()
    work = work_with(run)
    await propose(work, run, State.completed(data={"secret": "value"}))
    assert b"secret" not in event_bodies(work)[0]


async def test_an_events_body_is_plain_json() -> None:
    run = flow_run(tags=("großes Büro",))
    work = work_with(run)
    await propose(work, run, State.running(message='„Gänge" \U0001f3c3\n'))
    body = json.loads(event_bodies(work)[0])
    assert body["data"]["resource"]["state_message"] == '„Gänge" \U0001f3c3\n'
    assert body["data"]["related"] == [{"role": "tag", "id": "großes Büro"}]


# -- long messages -----------------------------------------------------------------------------------------------------


async def told_of(message: str) -> list[str | None]:
    """Return what two events tell, in every place, of a message: as the state entered and as the one left."""
    run = flow_run()
    work = work_with(run)
    await put(work, run, State.running(message=message), State.completed())
    entered, left = events(work)
    assert left.data.initial_state is not None
    return [entered.data.resource.state_message, entered.data.validated_state.message, left.data.initial_state.message]


@pytest.mark.parametrize("length", [0, 1, 99_999, 100_000, 100_040])
async def test_a_message_of_about_100_000_characters_is_told_in_full(length: int) -> None:
    message = "ä" * length
    assert await told_of(message) == [message] * 3


@pytest.mark.parametrize("left_out", [41, 150_000])
async def test_a_longer_message_is_cut_in_the_middle_with_a_note(left_out: int) -> None:
    message = "ä" * 50_000 + "x" * left_out + "ö" * 50_000
    for told in await told_of(message):
        assert told is not None
        assert told.startswith("ä" * 50_000)
        assert told.endswith("ö" * 50_000)
        note = told[50_000:-50_000]
        assert str(left_out) in note
        assert "x" not in note
        assert len(note) < 100


async def test_the_state_itself_keeps_its_whole_message() -> None:
    run = flow_run()
    await put(work_with(run), run, State.running(message="x" * 200_000))
    assert run.state is not None
    assert run.state.message == "x" * 200_000
