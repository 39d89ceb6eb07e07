"""The comparison sees every kind of difference, and nothing where it must not look."""

from typing import Any

import pytest

from tests.conformance.cases import Step
from tests.conformance.comparison import Level, Mismatch, World, compare

RUN: World = {
    "state": {"type": "RUNNING", "name": "Running", "data": {"n": 1}, "at_s": 2, "details": {"flow_run": "F1"}},
    "run": {"run_count": 1, "start_at_s": 2},
    "history": ["PENDING", "RUNNING"],
}
ANSWER: World = {
    "status": "ACCEPT",
    "reason": None,
    "delay_s": None,
    "returned": {"type": "RUNNING", "name": "Running"},
    "slots": {"db": ["T1"]},
    "cache_added": [],
}
OTHERS: World = {"T9": RUN | {"history": ["RUNNING"]}}
OBSERVED: World = ANSWER | RUN | {"others": OTHERS}


def step(clocked: frozenset[str] = frozenset(), **expect: Any) -> Step:
    """Return a step that expects what is OBSERVED, save what is given."""
    recorded = ANSWER | RUN | {"others": {}} | expect
    return Step(run="T1", policy="core", force=False, clock_s=2, propose=None, expect=recorded, clocked=clocked)


def mismatches(recorded: Step, seconds_run: float | None = None, **observed: Any) -> list[Mismatch]:
    """Return where OBSERVED, save what is given, differs from the recording."""
    return compare(recorded, OBSERVED | observed, OTHERS, seconds_run)


def test_equal_worlds_have_no_mismatch() -> None:
    assert mismatches(step()) == []


@pytest.mark.parametrize(
    ("field", "value", "path", "level"),
    [
        ("status", "ABORT", "status", Level.DECISION),
        ("reason", "why", "reason", Level.WORDING),
        ("delay_s", 30, "delay_s", Level.DECISION),
        ("returned", {"type": "RUNNING", "name": "Rerunning"}, "returned/name", Level.PROTOCOL),
        ("state", RUN["state"] | {"name": "Retrying"}, "state/name", Level.DECISION),
        ("state", RUN["state"] | {"data": {"n": 2}}, "state/data", Level.BOOKKEEPING),
        ("state", RUN["state"] | {"details": {}}, "state/details/flow_run", Level.BOOKKEEPING),
        ("run", {"run_count": 2, "start_at_s": 2}, "run/run_count", Level.BOOKKEEPING),
        ("history", ["RUNNING"], "history", Level.DECISION),
        ("slots", {"db": []}, "slots/db", Level.BOOKKEEPING),
        ("cache_added", [{"cache_key": "k"}], "cache_added", Level.BOOKKEEPING),
    ],
)
def test_a_difference_in_any_field_is_a_mismatch_of_its_level(field: str, value: Any, path: str, level: Level) -> None:
    assert [(found.path, found.level) for found in mismatches(step(**{field: value}))] == [(path, level)]


def test_another_run_must_not_change_unless_the_recording_names_it() -> None:
    changed = {"T9": OTHERS["T9"] | {"run": {"run_count": 2, "start_at_s": 2}}}
    assert [found.path for found in mismatches(step(), others=changed)] == ["others/T9/run/run_count"]
    assert mismatches(step(others=changed), others=changed) == []


def test_another_run_must_change_when_the_recording_names_it() -> None:
    named = {"T9": OTHERS["T9"] | {"history": ["RUNNING", "FAILED"]}}
    assert [found.path for found in mismatches(step(others=named))] == ["others/T9/history"]


def test_what_derives_from_the_clock_counts_only_when_the_clock_is_injected() -> None:
    recorded = step(frozenset({"run/start_at_s"}), run={"run_count": 1, "start_at_s": 1.5})
    assert [found.path for found in mismatches(recorded)] == ["run/start_at_s"]
    assert mismatches(recorded, seconds_run=0) == []


@pytest.mark.parametrize(("seconds_run", "delays"), [(None, {30}), (0, {30}), (0.5, {29, 30}), (2, {28, 29, 30})])
def test_a_clock_that_runs_shortens_delays_by_the_time_that_has_passed(
    seconds_run: float | None, delays: set[int]
) -> None:
    recorded = step(status="WAIT", delay_s=30)
    accepted = {d for d in range(25, 35) if not mismatches(recorded, seconds_run, status="WAIT", delay_s=d)}
    assert accepted == delays


def test_details_that_are_not_set_equal_missing_ones() -> None:
    details = {"flow_run": "F1", "cache_key": None, "pause_reschedule": False}
    assert mismatches(step(state=RUN["state"] | {"details": details})) == []


def test_numbers_are_equal_within_a_microsecond_and_never_to_truth_values() -> None:
    assert mismatches(step(run={"run_count": 1.0, "start_at_s": 2.0000005})) == []
    assert [found.path for found in mismatches(step(run={"run_count": True, "start_at_s": 2}))] == ["run/run_count"]
    assert [found.path for found in mismatches(step(state=RUN["state"] | {"data": {"n": True}}))] == ["state/data"]


def test_the_wait_for_a_full_limit_is_the_setting_of_this_engine() -> None:
    full: dict[str, Any] = {"status": "WAIT", "reason": "Concurrency limit for the db tag has been reached"}
    recorded = step(**full, delay_s=10)
    assert mismatches(recorded, **full, delay_s=30) == []
    assert [found.path for found in mismatches(recorded, **full, delay_s=10)] == ["delay_s"]
