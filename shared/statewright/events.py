"""Events: every change of a run's state, published once, in order, replayable. On the wire they are CloudEvents 1.0."""

from typing import Annotated, Final, Literal
from uuid import UUID

from pydantic import Field, PlainSerializer, TypeAdapter, WithJsonSchema

from statewright import values
from statewright.runs import RunKind
from statewright.states import StateType
from statewright.values import MAX_POSITION, Frozen, Moment

TRUNCATE_MESSAGES_AT = 100_000
SEQUENCE_DIGITS: Final = 19
ERA_BEGAN: Final = "statewright.era.began"

Sequence = Annotated[
    int,
    Field(ge=1, le=MAX_POSITION),
    PlainSerializer(lambda number: f"{number:0{SEQUENCE_DIGITS}d}", return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": f"^[0-9]{{{SEQUENCE_DIGITS}}}$"}),
]
"""A number of an event within its partition; on the wire a text of 19 digits, so that texts sort like numbers."""


class EventState(Frozen):
    """A state as an event tells of it: no data, and a long message cut in its middle."""

    type: StateType
    name: str
    message: str | None = None


class EventResource(Frozen):
    """The run that changed, as it stood right after the change."""

    kind: RunKind
    id: UUID
    name: str
    run_count: int
    state_type: StateType
    state_name: str
    state_message: str | None = None
    state_timestamp: Moment


class RelatedResource(Frozen):
    """Something that the run belongs to. The id is a UUID as text, or a tag's own text."""

    role: Literal["flow", "flow-run", "deployment", "parent-task-run", "tag"]
    id: str


class Transition(Frozen):
    """The types that the change led from and to; `from_type` is None for a run's first state."""

    from_type: StateType | None = None
    to_type: StateType


class Change(Frozen):
    """What an event tells of a change: the run, what it was in and what it is in now."""

    ordinal: int
    """The place of the state in the run's history: 1, 2, 3 … without gaps."""
    proposal_id: UUID | None = None
    """The proposal that caused it, also by way of a rule that let another run follow; None for a state that was written
    by a version that did not keep it."""
    follows: UUID | None = None
    """The event of the run's previous state, when that is less than five minutes older."""
    resource: EventResource
    related: tuple[RelatedResource, ...] = ()
    intended: Transition
    initial_state: EventState | None = None
    validated_state: EventState


class _CloudEvent(Frozen):
    """The attributes of CloudEvents that every event has, and Statewright's own beside them."""

    specversion: Literal["1.0"] = "1.0"
    id: UUID
    source: str
    """`urn:statewright:<namespace>`."""
    type: str
    time: Moment
    datacontenttype: Literal["application/json"] = "application/json"
    v: Literal[1] = 1
    """The version of the protocol."""
    partition: int
    sequence: Sequence
    """Its place in its partition, shared by changes and eras; also the id of its entry, as `<sequence>-0`."""
    era: int = 0
    """How often PostgreSQL had gone back in time before this event."""


class Event(_CloudEvent):
    """One change of state. `id` is the id of the state that was entered, `time` the moment at which it was.

    `type` is `statewright.<kind>.<state name>`, as in `statewright.task-run.Completed`. A character of the name that
    CloudEvents does not allow is U+FFFD there; `data` has the name itself.
    """

    subject: UUID
    tree: int
    """The tag of the tree of runs, which names its partition: events of one tree are in order."""
    data: Change

    @property
    def run_id(self) -> UUID:
        """The run that changed."""
        return self.subject


class Undone(Frozen):
    """The events above `went_back_to` and up to `undone_up_to` told of changes that do not exist."""

    went_back_to: int
    undone_up_to: int


class Era(_CloudEvent):
    """PostgreSQL went back in time: it no longer has changes that events told of.

    What follows in the partition's stream belongs to the era `era`; `sequence` is this event's own place in it.
    """

    type: Literal["statewright.era.began"] = ERA_BEGAN
    data: Undone


AnyEvent = Event | Era
"""What a partition's stream tells."""
# Changes are tried first, because nearly all are changes, and an era has no subject.
_EVENT: Final[TypeAdapter[AnyEvent]] = TypeAdapter(Annotated[AnyEvent, Field(union_mode="left_to_right")])


def event_from(body: bytes) -> AnyEvent:
    """Return the event that a JSON body carries; fields that are not known are ignored. Raises ValidationError."""
    return _EVENT.validate_json(body, extra="ignore")


def source_of(namespace: str) -> str:
    """Return the `source` of a namespace's events."""
    return f"urn:statewright:{namespace}"


def truncated(message: str | None) -> str | None:
    """Return `message` as an event tells it: one of more than 100,000 characters is cut in its middle, with a note."""
    return None if message is None else values.truncated(message, TRUNCATE_MESSAGES_AT)
