"""The encoding of an event; `statewright.Event` describes and reads it.

It is in the worker and not beside the decoding, because every change of state is encoded, and orjson is fast: it takes
a third of pydantic's time for values of a declared form, and less than a tenth for others. The light client does
without orjson.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import orjson

from statewright.events import Era, truncated
from statewright.states import State
from statewright_worker.orchestration.records import AnyRunRecord, FlowRunRecord, StateChange

FOLLOWS_WITHIN: Final = timedelta(minutes=5)


def event_body(change: StateChange, partition: int, sequence: int, era: int = 0) -> bytes:
    """Return the event of a change as JSON."""
    run, state, previous = change.run, change.state, change.previous
    validated = _summary(state)
    event: dict[str, Any] = {
        "id": state.id,
        "event": f"{run.kind}.{state.name}",
        "occurred": state.timestamp,
        "partition": partition,
        "sequence": sequence,
        "resource": {
            "kind": run.kind,
            "id": run.id,
            "name": run.name,
            "run_count": change.run_count,
            "state_type": state.type,
            "state_name": state.name,
            "state_message": validated["message"],
            "state_timestamp": state.timestamp,
        },
        "related": _related(run),
        "intended": {"from_type": None if previous is None else previous.type, "to_type": state.type},
        "validated_state": validated,
    }
    if era:
        event["era"] = era
    if previous is not None:
        event["initial_state"] = _summary(previous)
        if abs(state.timestamp - previous.timestamp) < FOLLOWS_WITHIN:
            event["follows"] = previous.id
    return orjson.dumps(event, default=_plain)


def era_at(eras: Sequence[Era], sequence: int) -> int:
    """Return the number of the era to which an event belongs."""
    return max((era.era for era in eras if era.sequence <= sequence), default=0)


def _plain(value: object) -> str:
    # Ids from the database are of a subclass of UUID, which orjson does not encode by itself.
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} does not belong into an event")


def _summary(state: State) -> dict[str, Any]:
    return {"type": state.type, "name": state.name, "message": truncated(state.message)}


def _related(run: AnyRunRecord) -> list[dict[str, Any]]:
    belongs_to: tuple[tuple[str, UUID | None], ...]
    if isinstance(run, FlowRunRecord):
        belongs_to = (
            ("flow", run.flow_id),
            ("deployment", run.deployment_id),
            ("parent-task-run", run.parent_task_run_id),
        )
    else:
        belongs_to = (("flow-run", run.flow_run_id),)
    related: list[dict[str, Any]] = [{"role": role, "id": other} for role, other in belongs_to if other is not None]
    if run.tags:
        related += [{"role": "tag", "id": tag} for tag in sorted(set(run.tags))]
    return related
