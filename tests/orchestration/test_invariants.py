"""What holds after any sequence of proposals to a tree of runs, forced or not, from any producer at any time."""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from statewright import ProposedState, RunPolicy, SetStateStatus, State, StateDetails, StateType, Verdict
from statewright_worker.orchestration import Proposal, UnitOfWork
from statewright_worker.orchestration.records import AnyRunRecord, StateChange, TaskRunRecord
from tests.orchestration.builders import CORE, IDS, NOW, flow_run, limit_on, propose, seconds, task_run, work_with

TAGS: Final = ("a", "b")
OLD_VERSIONS: Final = ("0.8.2",)
SEQUENCES: Final = settings(max_examples=50, deadline=None, database=None, derandomize=True)


@dataclass(frozen=True)
class Step:
    """One proposal, and how many seconds pass before it."""

    run: str
    state: ProposedState
    force: bool
    api_version: str | None
    passing: float


@dataclass
class World:
    """A flow run with tasks, one of which is the parent of a subflow with a task of its own; and a task outside."""

    work: UnitOfWork
    runs: dict[str, AnyRunRecord]
    slots_due: set[UUID] = field(default_factory=set)
    """The task runs that are RUNNING and asked for it: by a proposal of their own that was not forced."""
    counted_anew: set[UUID] = field(default_factory=set)
    """RUNNING states that a task run re-entered because its flow run is retried: its run count starts at 1 there."""
    counts_cleared: set[UUID] = field(default_factory=set)
    """AwaitingRetry states that an old producer's flow retry brought about: the run count is 0 from there on."""

    def changes(self, run: AnyRunRecord) -> list[StateChange]:
        return [change for change in self.work.state_changes if change.run is run]

    def note(self, step: Step, change: StateChange) -> None:
        """Note what the specification says of a change, seen from the proposal that brought it about."""
        proposed = self.runs[step.run]
        if not change.state.is_running():
            self.slots_due.discard(change.run.id)
        if change.run is proposed:
            if change.state.is_running() and not step.force and isinstance(proposed, TaskRunRecord):
                self.slots_due.add(proposed.id)
                if change.previous is not None and change.previous.is_final():
                    self.counted_anew.add(change.state.id)
        elif isinstance(change.run, TaskRunRecord) and change.run.flow_run_id == proposed.id:
            assert step.api_version in OLD_VERSIONS
            self.counts_cleared.add(change.state.id)

    def snapshot(self) -> tuple[object, ...]:
        """Return everything that a proposal could change."""
        work = self.work
        return (
            {name: copy(run) for name, run in self.runs.items()},
            [(limit.slots_held, set(limit.holders)) for limit in work.limits.values()],
            {key: list(entries) for key, entries in work.cache.items() if entries},
            (set(work.slots_taken), set(work.slots_released), len(work.state_changes), len(work.cache_added)),
        )


# -- what is generated -------------------------------------------------------------------------------------------------


def moments(*offsets: float) -> st.SearchStrategy[datetime | None]:
    """Generate no moment, or one that is so many seconds from NOW."""
    return st.sampled_from([None, *(NOW + seconds(offset) for offset in offsets)])


LIKELY: Final = [StateType.RUNNING] * 6 + [StateType.SCHEDULED, StateType.FAILED] * 2 + [StateType.COMPLETED]
DETAILS: Final = st.builds(
    StateDetails,
    scheduled_time=moments(-60, 60, 600),
    cache_key=st.sampled_from([None, "x"]),
    cache_expiration=moments(60, 600, 3600),
)
STATES: Final = st.builds(
    ProposedState,
    type=st.sampled_from([*LIKELY, *StateType]),
    name=st.sampled_from([None, None, "AwaitingRetry", "Special"]),
    timestamp=moments(-3600, -30, 0, 30, 3600),
    state_details=DETAILS,
)
RUNS: Final = ("flow", "task", "other task", "parent", "subflow", "subtask", "outside")
STEPS: Final = st.lists(
    st.builds(
        Step,
        run=st.sampled_from([*RUNS, "flow", "subflow"]),
        state=STATES,
        force=st.sampled_from([False, False, True]),
        api_version=st.sampled_from([None, *OLD_VERSIONS]),
        passing=st.sampled_from([0, 0.5, 5, 60]),
    ),
    min_size=20,
    max_size=40,
)
POLICIES: Final = st.builds(
    RunPolicy, retries=st.sampled_from([5, 1, 0, None]), retry_delay=st.sampled_from([None, 0, 5, (1, 30)])
)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Generate a world whose runs have some tags and policies, and whose tags have limits or not."""

    def tags() -> tuple[str, ...]:
        return draw(st.sampled_from([("a",), ("b",), ("a", "b"), ("b", "b"), ()]))

    flow = flow_run(policy=draw(POLICIES), deployment_id=draw(st.sampled_from([None, IDS.new()])))
    task, other = (task_run(flow, policy=draw(POLICIES), tags=tags()) for _ in range(2))
    parent = task_run(flow, policy=draw(POLICIES), tags=tags())
    subflow = flow_run(parent_task_run_id=parent.id, policy=draw(POLICIES))
    subtask = task_run(subflow, policy=draw(POLICIES), tags=tags())
    outside = task_run(policy=draw(POLICIES), tags=tags())
    runs: list[AnyRunRecord] = [flow, task, other, parent, subflow, subtask, outside]
    allowed = {tag: draw(st.sampled_from([1, 2, None, 0])) for tag in TAGS}
    limits = [limit_on(tag, number) for tag, number in allowed.items() if number is not None]
    return World(work_with(*runs, limits=limits), dict(zip(RUNS, runs, strict=True)))


# -- what must hold of every run ---------------------------------------------------------------------------------------


def the_history_is_contiguous_and_ends_in_the_current_state(world: World, run: AnyRunRecord) -> None:
    changes = world.changes(run)
    states = [change.state for change in changes]
    assert [change.ordinal for change in changes] == list(range(1, len(changes) + 1))
    assert [change.previous for change in changes] == [None, *states][: len(states)]
    assert run.state is (states[-1] if states else None)
    assert run.state_count == len(states)


def the_run_carries_its_states_type_name_and_timestamp(world: World, run: AnyRunRecord) -> None:
    state = run.state
    expected = (state.type, state.name, state.timestamp) if state else (None, None, None)
    assert (run.state_type, run.state_name, run.state_timestamp) == expected


def the_run_count_is_the_number_of_entries_into_running(world: World, run: AnyRunRecord) -> None:
    """Two documented rules begin the count of a task run anew: its own re-entry out of an end when its flow run is
    retried, and an old producer's retry of its flow run."""
    count = 0
    for change in world.changes(run):
        if change.state.is_running():
            count = 1 if change.state.id in world.counted_anew else count + 1
        elif change.state.id in world.counts_cleared:
            count = 0
    assert run.run_count == count


def the_run_time_is_what_lies_between_entering_and_leaving_running(world: World, run: AnyRunRecord) -> None:
    """It may be negative: producers date their states, and may date them backwards."""
    times = [
        change.state.timestamp - change.previous.timestamp
        for change in world.changes(run)
        if change.previous is not None and change.previous.is_running()
    ]
    assert run.total_run_time == sum(times, timedelta())


def the_start_time_is_that_of_the_first_running_state(world: World, run: AnyRunRecord) -> None:
    running = [change.state.timestamp for change in world.changes(run) if change.state.is_running()]
    assert run.start_time == (running[0] if running else None)


def the_end_time_is_that_of_the_first_of_the_terminal_states_it_is_in(world: World, run: AnyRunRecord) -> None:
    """Set only while the run is in a terminal state, and only if it ever ran."""
    end = None
    started = False
    for change in world.changes(run):
        started = started or change.state.is_running()
        if not change.state.is_final():
            end = None
        elif started and end is None:
            end = change.state.timestamp
    assert run.end_time == end


def the_next_scheduled_start_stands_while_scheduled_and_only_then(world: World, run: AnyRunRecord) -> None:
    scheduled = run.state is not None and run.state.is_scheduled()
    assert (run.next_scheduled_start_time is not None) is scheduled
    if run.state is not None and scheduled:
        assert run.next_scheduled_start_time == run.state.state_details.scheduled_time


def the_expected_start_comes_from_the_first_state(world: World, run: AnyRunRecord) -> None:
    changes = world.changes(run)
    first = changes[0].state if changes else None
    scheduled = first.state_details.scheduled_time if first and first.is_scheduled() else None
    assert run.expected_start_time == (scheduled or (first.timestamp if first else None))


def no_state_is_dated_later_than_now(world: World, run: AnyRunRecord) -> None:
    assert all(change.state.timestamp <= world.work.now for change in world.changes(run))


def every_state_refers_to_its_run(world: World, run: AnyRunRecord) -> None:
    for change in world.changes(run):
        details = change.state.state_details
        assert run.id == (details.task_run_id if isinstance(run, TaskRunRecord) else details.flow_run_id)


OF_A_RUN: Final[list[Callable[[World, AnyRunRecord], None]]] = [
    the_history_is_contiguous_and_ends_in_the_current_state,
    the_run_carries_its_states_type_name_and_timestamp,
    the_run_count_is_the_number_of_entries_into_running,
    the_run_time_is_what_lies_between_entering_and_leaving_running,
    the_start_time_is_that_of_the_first_running_state,
    the_end_time_is_that_of_the_first_of_the_terminal_states_it_is_in,
    the_next_scheduled_start_stands_while_scheduled_and_only_then,
    the_expected_start_comes_from_the_first_state,
    no_state_is_dated_later_than_now,
    every_state_refers_to_its_run,
]


# -- what must hold of the whole ---------------------------------------------------------------------------------------


def slots_are_held_by_the_runs_that_are_running_and_no_more_than_allowed(world: World) -> None:
    """A run that was forced into RUNNING, or brought there by its subflow, never asked for a slot and takes none; one
    that has its slots keeps them for as long as it is RUNNING, whatever happens to it there."""
    for limit in world.work.limits.values():
        entitled = {run.id for run in world.runs.values() if limit.key in run.tags and run.id in world.slots_due}
        assert all(run.state_type is StateType.RUNNING for run in world.runs.values() if run.id in entitled)
        assert limit.holders == entitled
        assert limit.slots_held == len(entitled) <= limit.concurrency_limit


def the_slots_to_be_written_are_the_difference_to_the_beginning(world: World) -> None:
    work = world.work
    held = {(limit.id, holder) for limit in work.limits.values() for holder in limit.holders}
    assert (work.slots_taken, work.slots_released) == (held, set())


def whatever_is_cached_was_written_as_completed(world: World) -> None:
    written = {change.state.id for change in world.work.state_changes if change.state.is_completed()}
    assert {entry.state.id for entry in world.work.cache_added} <= written
    assert all(entry.state.state_details.cache_key == entry.cache_key for entry in world.work.cache_added)


OF_THE_WHOLE: Final[list[Callable[[World], None]]] = [
    slots_are_held_by_the_runs_that_are_running_and_no_more_than_allowed,
    the_slots_to_be_written_are_the_difference_to_the_beginning,
    whatever_is_cached_was_written_as_completed,
]


def the_verdict_tells_what_became_of_the_run(
    world: World, step: Step, verdict: Verdict, current: State | None, written: int
) -> None:
    run = world.runs[step.run]
    assert verdict.state is run.state
    assert (verdict.delay_seconds is not None) is (verdict.status is SetStateStatus.WAIT)
    if verdict.status in (SetStateStatus.WAIT, SetStateStatus.ABORT):
        assert run.state is current
        assert written == 0
    else:
        assert run.state is not current
        accepted = run.state_type is step.state.type
        assert accepted is (verdict.status is SetStateStatus.ACCEPT)
    if step.force:
        assert verdict.status is SetStateStatus.ACCEPT


def the_parent_task_run_follows_its_subflow(world: World, new: list[StateChange]) -> None:
    parent, subflow = world.runs["parent"], world.runs["subflow"]
    entered = [change.state for change in new if change.run is subflow]
    followed = [change.state for change in new if change.run is parent]
    if entered:
        assert [(state.type, state.name) for state in followed] == [(state.type, state.name) for state in entered]
        assert all(state.state_details.child_flow_run_id == subflow.id for state in followed)


# -- the properties ----------------------------------------------------------------------------------------------------


@SEQUENCES
@given(worlds(), STEPS)
async def test_any_sequence_of_proposals_leaves_the_books_in_order(world: World, steps: list[Step]) -> None:
    for step in steps:
        world.work.now += seconds(step.passing)
        run, before, known = world.runs[step.run], world.snapshot(), len(world.work.state_changes)
        current = run.state
        verdict = await propose(world.work, run, step.state, force=step.force, api_version=step.api_version)
        new = world.work.state_changes[known:]
        for change in new:
            world.note(step, change)
        for change in new:
            holds_of(world, change.run)
        the_verdict_tells_what_became_of_the_run(world, step, verdict, current, len(new))
        the_parent_task_run_follows_its_subflow(world, new)
        if not new:
            assert world.snapshot() == before
        for check in OF_THE_WHOLE:
            check(world)
    for each in world.runs.values():
        holds_of(world, each)


@SEQUENCES
@given(worlds(), STEPS)
async def test_any_proposal_can_be_undone_and_decided_again_with_the_same_outcome(
    world: World, steps: list[Step]
) -> None:
    for step in steps:
        world.work.now += seconds(step.passing)
        run, before = world.runs[step.run], world.snapshot()
        world.work.begin()
        proposal = Proposal(IDS.new(), run.id, step.state, world.work.now, step.force, step.api_version)
        undone = await CORE.decide(proposal, world.work)
        world.work.roll_back()
        assert world.snapshot() == before
        kept = await propose(world.work, run, step.state, force=step.force, api_version=step.api_version)
        identity = {"proposal_id", "state"}
        assert kept.model_dump(exclude=identity) == undone.model_dump(exclude=identity)
        assert without_id(kept.state) == without_id(undone.state)


def holds_of(world: World, run: AnyRunRecord) -> None:
    for check in OF_A_RUN:
        check(world, run)


def without_id(state: State | None) -> dict[str, object] | None:
    return state.model_dump(exclude={"id"}) if state else None
