"""Translation between a recording's labels and seconds and the ids and moments of the subject that replays it."""

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

from statewright.runs import TaskRun
from statewright.states import ProposedState, State, StateDetails
from tests.conformance.cases import RecordedState
from tests.conformance.subject import CachedState, RunSnapshot

IDS: Final = {
    "flow_run": "flow_run_id",
    "task_run": "task_run_id",
    "child_flow_run": "child_flow_run_id",
    "transition_id": "transition_id",
    "task_parameters_id": "task_parameters_id",
}
MOMENTS: Final = {
    "scheduled_at_s": "scheduled_time",
    "cache_expires_at_s": "cache_expiration",
    "pause_timeout_at_s": "pause_timeout",
}
PLAIN: Final = ("untrackable_result", "pause_reschedule", "pause_key", "refresh_cache", "retriable", "deferred")

_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Notation:
    """One case's names for things.

    Tags and cache keys get the case's `scope` in front, so that cases which share a database do not meet.
    """

    def __init__(self, epoch: datetime, scope: str) -> None:
        self.epoch = epoch
        self._scope = scope
        self._ids: dict[str, UUID] = {}
        self._labels: dict[UUID, str] = {}

    # -- from the recording to the subject -----------------------------------------------------------------------------

    def assign(self, label: str, identity: UUID) -> None:
        """Let the label stand for this id."""
        self._ids[label] = identity
        self._labels[identity] = label

    def id_of(self, label: str) -> UUID:
        """Return the id that the label stands for; a label not met before gets a new one."""
        if label not in self._ids:
            self.assign(label, uuid4())
        return self._ids[label]

    def moment(self, seconds: float) -> datetime:
        """Return the moment so many seconds after the epoch."""
        return self.epoch + timedelta(microseconds=round(seconds * 1_000_000))

    def scoped(self, name: str) -> str:
        """Return a tag or a cache key as the subject knows it."""
        return self._scope + name

    def proposed(self, state: RecordedState) -> ProposedState:
        """Return the proposed state as the subject takes it."""
        return ProposedState(
            type=state.type,
            name=state.name,
            timestamp=self.moment(state.at_s),
            message=state.message,
            data=state.data,
            state_details=self._proposed_details(state.details),
        )

    def _proposed_details(self, recorded: dict[str, Any]) -> StateDetails:
        given = {key: value for key, value in recorded.items() if value is not None}
        fields = _translated(given, IDS, self.id_of) | _translated(given, MOMENTS, self.moment)
        if "cache_key" in given:
            # An empty key stays empty: whether it may be is for the subject to say.
            fields["cache_key"] = given["cache_key"] and self.scoped(given["cache_key"])
        return StateDetails(**fields, **{key: given[key] for key in PLAIN if key in given})

    # -- from the subject to the recording -----------------------------------------------------------------------------

    def label(self, identity: UUID | None) -> str | None:
        """Return the label of an id; one that the case does not know stands for itself."""
        return None if identity is None else self._labels.get(identity, str(identity))

    def seconds(self, moment: datetime | None) -> float | None:
        """Return how many seconds after the epoch the moment lies."""
        return None if moment is None else (moment - self.epoch) / timedelta(seconds=1)

    def unscoped(self, text: str | None) -> str | None:
        """Return a tag, a cache key or a text that names one as the recording has it."""
        return None if text is None else text.replace(self._scope, "")

    def reason(self, text: str | None) -> str | None:
        """Return a verdict's reason with labels in braces for ids."""
        unscoped = self.unscoped(text)
        return None if unscoped is None else _UUID.sub(lambda found: f"{{{self.label(UUID(found[0]))}}}", unscoped)

    def state(self, state: State | None) -> dict[str, Any] | None:
        """Return a written state as the recording has it."""
        if state is None:
            return None
        named = {"type": str(state.type), "name": state.name, "message": state.message, "data": state.data}
        return named | {"at_s": self.seconds(state.timestamp), "details": self._details(state.state_details)}

    def _details(self, details: StateDetails) -> dict[str, Any]:
        given = details.model_dump(exclude_none=True)
        recorded = _translated(given, {field: key for key, field in IDS.items()}, self.label)
        recorded |= _translated(given, {field: key for key, field in MOMENTS.items()}, self.seconds)
        recorded |= {key: given[key] for key in PLAIN if key in given}
        return recorded | ({"cache_key": self.unscoped(details.cache_key)} if details.cache_key is not None else {})

    def run(self, snapshot: RunSnapshot) -> dict[str, Any]:
        """Return a run's record as the recording has it: state, columns, history."""
        run = snapshot.history.run
        columns = {
            "state_type": None if snapshot.state_type is None else str(snapshot.state_type),
            "state_name": snapshot.state_name,
            "state_at_s": self.seconds(snapshot.state_timestamp),
            "run_count": run.run_count,
            "expected_start_at_s": self.seconds(run.expected_start_time),
            "next_scheduled_start_at_s": self.seconds(run.next_scheduled_start_time),
            "start_at_s": self.seconds(run.start_time),
            "end_at_s": self.seconds(run.end_time),
            "total_run_time_s": run.total_run_time.total_seconds(),
        }
        if isinstance(run, TaskRun):
            columns["flow_run_run_count"] = run.flow_run_run_count
        history = [str(state.type) for state in snapshot.history.states]
        return {"state": self.state(run.state), "run": columns, "history": history}

    def cached(self, entry: CachedState) -> dict[str, Any]:
        """Return a cache entry as the recording has it."""
        expires = self.seconds(entry.cache_expiration)
        task_run = self.label(entry.task_run_id)
        return {"cache_key": self.unscoped(entry.cache_key), "expires_at_s": expires, "task_run": task_run}


def _translated(given: dict[str, Any], names: dict[str, str], translate: Callable[[Any], Any]) -> dict[str, Any]:
    """Return the values under the first names, translated, under the second ones."""
    return {new: translate(given[old]) for old, new in names.items() if old in given}
