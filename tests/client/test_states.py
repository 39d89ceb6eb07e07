"""States: how they are proposed, what they become, and what can be asked of them."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from statewright import TERMINAL_STATES, ProposedState, State, StateDetails, StateType

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
ID = UUID("01a200ef-06bf-7500-83c5-73e04725151e")
QUESTIONS = {
    StateType.SCHEDULED: "is_scheduled",
    StateType.PENDING: "is_pending",
    StateType.RUNNING: "is_running",
    StateType.COMPLETED: "is_completed",
    StateType.FAILED: "is_failed",
    StateType.CANCELLED: "is_cancelled",
    StateType.CRASHED: "is_crashed",
    StateType.PAUSED: "is_paused",
    StateType.CANCELLING: "is_cancelling",
}


@pytest.mark.parametrize("state_type", StateType)
def test_exactly_the_question_for_its_type_is_answered_with_yes(state_type: StateType) -> None:
    proposed = ProposedState(type=state_type)
    for state in (proposed, proposed.stamped(ID, NOW, NOW)):
        assert {other for other, question in QUESTIONS.items() if getattr(state, question)()} == {state_type}
        assert state.is_final() is (state_type in TERMINAL_STATES)


@pytest.mark.parametrize(
    ("proposed", "expected"),
    [
        (State.scheduled(NOW, name="Late", message="m"), (StateType.SCHEDULED, "Late", "m", None)),
        (State.awaiting_retry(NOW, message="m", data=1), (StateType.SCHEDULED, "AwaitingRetry", "m", 1)),
        (State.pending(message="m"), (StateType.PENDING, None, "m", None)),
        (State.running(message="m"), (StateType.RUNNING, None, "m", None)),
        (State.completed(message="m", data=[1]), (StateType.COMPLETED, None, "m", [1])),
        (State.failed(message="m", data={}), (StateType.FAILED, None, "m", {})),
        (State.cancelled(message="m"), (StateType.CANCELLED, None, "m", None)),
        (State.crashed(message="m"), (StateType.CRASHED, None, "m", None)),
        (State.paused(message="m"), (StateType.PAUSED, None, "m", None)),
    ],
)
def test_each_constructor_proposes_what_it_is_called(proposed: ProposedState, expected: tuple[object, ...]) -> None:
    assert (proposed.type, proposed.name, proposed.message, proposed.data) == expected


@pytest.mark.parametrize(
    ("proposed", "details"),
    [
        (State.scheduled(NOW), StateDetails(scheduled_time=NOW)),
        (State.awaiting_retry(NOW), StateDetails(scheduled_time=NOW)),
        (State.running(cache_key="key"), StateDetails(cache_key="key")),
        (State.completed(cache_key="k", cache_expiration=NOW), StateDetails(cache_key="k", cache_expiration=NOW)),
        (State.paused(timeout_at=NOW), StateDetails(pause_timeout=NOW)),
        (State.failed(), StateDetails()),
    ],
)
def test_each_constructor_puts_its_arguments_into_the_details(proposed: ProposedState, details: StateDetails) -> None:
    assert proposed.state_details == details


@pytest.mark.parametrize("state_type", StateType)
def test_stamping_gives_identity_moment_and_the_types_name(state_type: StateType) -> None:
    state = ProposedState(type=state_type).stamped(ID, NOW - timedelta(seconds=1), NOW)
    assert (state.id, state.timestamp) == (ID, NOW - timedelta(seconds=1))
    assert state.name == state_type.value.capitalize()


def test_stamping_keeps_everything_else() -> None:
    proposed = ProposedState(
        type=StateType.COMPLETED, name="Done", message="m", data=[1], state_details=StateDetails(cache_key="key")
    )
    state = proposed.stamped(ID, NOW, NOW)
    assert state.as_proposed() == proposed


def test_stamping_schedules_for_now_what_is_scheduled_for_no_time_and_nothing_else() -> None:
    assert State.scheduled().stamped(ID, NOW, NOW).state_details.scheduled_time == NOW
    later = NOW + timedelta(seconds=5)
    assert State.scheduled(later).stamped(ID, NOW, NOW).state_details.scheduled_time == later
    assert State.pending().stamped(ID, NOW, NOW).state_details.scheduled_time is None


def test_renaming_and_new_details_make_another_state() -> None:
    state = State.running(cache_key="key").stamped(ID, NOW, NOW)
    other = state.renamed("Jogging").with_details(task_run_id=ID)
    assert (other.id, other.type, other.timestamp) == (state.id, state.type, state.timestamp)
    assert (other.name, other.state_details) == ("Jogging", StateDetails(cache_key="key", task_run_id=ID))
    assert (state.name, state.state_details) == ("Running", StateDetails(cache_key="key"))


def test_a_state_type_reads_and_prints_as_its_plain_value() -> None:
    assert f"{StateType.RUNNING}" == str(StateType.RUNNING) == "RUNNING"
    assert StateType("RUNNING") is StateType.RUNNING
    assert len(StateType) == 9
