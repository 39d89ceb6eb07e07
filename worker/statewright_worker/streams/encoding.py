"""The encoding of events; `statewright.events` describes and reads them.

It is in the worker and not beside the decoding, because every change of state is encoded, and orjson is fast: it takes
a third of pydantic's time for values of a declared form, and less than a tenth for others. The light client does
without orjson.
"""

import re
from collections.abc import Sequence
from datetime import timedelta
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

import orjson

from statewright.events import ERA_BEGAN, SEQUENCE_DIGITS, source_of, truncated
from statewright.ids import id_from_key, tree_tag
from statewright.protocol.requests import PROTOCOL_VERSION
from statewright.states import State
from statewright_worker.orchestration.records import AnyRunRecord, EraRecord, FlowRunRecord, StateChange

FOLLOWS_WITHIN: Final = timedelta(minutes=5)
TYPES_REMEMBERED: Final = 1_024
_NO_CHARACTERS: Final = "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
_NOT_IN_A_TYPE: Final = re.compile(f"[\x00-\x1f\x7f-\x9f\ufdd0-\ufdef{_NO_CHARACTERS}]")
"""What CloudEvents allows in no attribute."""


class EventEncoding:
    """Makes events of what happens in one partition.

    What all of them share, and what those of a type share, is encoded once.
    """

    def __init__(self, namespace: str, partition: int) -> None:
        self._partition = partition
        self._shared: dict[str, Any] = {
            "specversion": "1.0",
            "source": source_of(namespace),
            "datacontenttype": "application/json",
            "v": PROTOCOL_VERSION,
            "partition": partition,
        }
        self._head_of_a_change = lru_cache(TYPES_REMEMBERED)(
            lambda kind, name, era: self._head(_NOT_IN_A_TYPE.sub("\ufffd", f"statewright.{kind}.{name}"), era)
        )

    def change(self, change: StateChange, sequence: int, era: int = 0) -> bytes:
        """Return the event of a change as JSON."""
        run, state = change.run, change.state
        run_id = str(run.id)
        event = {
            "id": state.id,
            "subject": run_id,
            "time": state.timestamp,
            "tree": tree_tag(run.id),
            "data": _data(change, run_id),
        }
        return _joined(self._head_of_a_change(run.kind, state.name, era), sequence, event)

    def era(self, begun: EraRecord) -> bytes:
        """Return the event of the beginning of an era as JSON."""
        event = {
            # Made of its place, so that it is the same however often it is published.
            "id": id_from_key(f"era {self._partition} {begun.sequence}"),
            "time": begun.noticed,
            "data": {"went_back_to": begun.went_back_to, "undone_up_to": begun.undone_up_to},
        }
        return _joined(self._head(ERA_BEGAN, begun.era), begun.sequence, event)

    def _head(self, event_type: str, era: int) -> bytes:
        return orjson.dumps({**self._shared, "era": era, "type": event_type})[:-1]


def era_at(eras: Sequence[EraRecord], sequence: int) -> int:
    """Return the number of the era to which an event belongs."""
    return max((era.era for era in eras if era.sequence <= sequence), default=0)


def _joined(head: bytes, sequence: int, event: dict[str, Any]) -> bytes:
    return b'%b,"sequence":"%0*d",%b' % (head, SEQUENCE_DIGITS, sequence, orjson.dumps(event, default=_plain)[1:])


def _data(change: StateChange, run_id: str) -> dict[str, Any]:
    run, state, previous = change.run, change.state, change.previous
    validated = _summary(state)
    data: dict[str, Any] = {
        "ordinal": change.ordinal,
        "proposal_id": change.proposal_id,
        "resource": {
            "kind": run.kind,
            "id": run_id,
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
    if change.actor is not None:
        data["actor"] = change.actor
    if previous is not None:
        data["initial_state"] = _summary(previous)
        if abs(state.timestamp - previous.timestamp) < FOLLOWS_WITHIN:
            data["follows"] = previous.id
    return data


def _summary(state: State) -> dict[str, Any]:
    return {"type": state.type, "name": state.name, "message": truncated(state.message)}


def _related(run: AnyRunRecord) -> list[dict[str, Any]]:
    if isinstance(run, FlowRunRecord):
        belongs_to: tuple[tuple[str, UUID | None], ...] = (
            ("flow", run.flow_id),
            ("deployment", run.deployment_id),
            ("parent-task-run", run.parent_task_run_id),
        )
        related: list[dict[str, Any]] = [{"role": role, "id": other} for role, other in belongs_to if other is not None]
    else:
        related = [] if run.flow_run_id is None else [{"role": "flow-run", "id": run.flow_run_id}]
    if run.tags:
        related += [{"role": "tag", "id": tag} for tag in sorted(set(run.tags))]
    return related


def _plain(value: object) -> str:
    # Ids from the database are of a subclass of UUID, which orjson does not encode by itself.
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} does not belong into an event")
