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
    """What is governed."""
    name: str
    """What people read."""
    message: str | None = None
    """A text for people."""


class EventResource(Frozen):
    """The run that changed, as it stood right after the change."""

    kind: RunKind
    """Whether it is a flow run or a task run."""
    id: UUID
    """The run's id."""
    name: str
    """The run's name."""
    run_count: int
    """How often it has entered RUNNING."""
    state_type: StateType
    """The type of the state that was entered."""
    state_name: str
    """Its name."""
    state_message: str | None = None
    """Its message."""
    state_timestamp: Moment
    """When it was entered."""


class RelatedResource(Frozen):
    """Something that the run belongs to. The id is a UUID as text, or a tag's own text."""

    role: Literal["flow", "flow-run", "deployment", "parent-task-run", "tag"]
    """What it is to the run."""
    id: str
    """A UUID as text, or the tag."""


class Transition(Frozen):
    """The types that the change led from and to; `from_type` is None for a run's first state."""

    from_type: StateType | None = None
    """The type that was left; None for a run's first state."""
    to_type: StateType
    """The type that was entered."""


class Change(Frozen):
    """What an event tells of a change: the run, what it was in and what it is in now."""

    ordinal: int
    """The place of the state in the run's history: 1, 2, 3 … without gaps."""
    proposal_id: UUID | None = None
    """The proposal that caused it, also by way of a rule that let another run follow; None for a state that was written
    by a version that did not keep it."""
    actor: str | None = None
    """Who has made that proposal; None where nobody has said so."""
    follows: UUID | None = None
    """The event of the run's previous state, when that is less than five minutes older."""
    resource: EventResource
    """The run that changed."""
    related: tuple[RelatedResource, ...] = ()
    """What the run belongs to: its flow, deployment, flow run or parent task run, and each of its tags."""
    intended: Transition
    """The change, by types."""
    initial_state: EventState | None = None
    """The state that was left; None for a run's first state."""
    validated_state: EventState
    """The state that was entered."""


class _CloudEvent(Frozen):
    """The attributes of CloudEvents that every event has, and Statewright's own beside them."""

    specversion: Literal["1.0"] = "1.0"
    """The version of CloudEvents."""
    id: UUID
    """The same however often the event is published."""
    source: str
    """`urn:statewright:<namespace>`."""
    type: str
    """`statewright.<kind>.<state name>`, or `statewright.era.began`."""
    time: Moment
    """When it happened."""
    datacontenttype: Literal["application/json"] = "application/json"
    """What `data` is."""
    v: Literal[1] = 1
    """The version of the protocol."""
    partition: int
    """The partition in which it happened."""
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
    """The run that changed."""
    tree: int
    """The tag of the tree of runs, which names its partition: events of one tree are in order."""
    data: Change
    """What changed."""

    @property
    def run_id(self) -> UUID:
        """The run that changed."""
        return self.subject


class Undone(Frozen):
    """The events above `went_back_to` and up to `undone_up_to` told of changes that do not exist."""

    went_back_to: int
    """The last event whose change still exists."""
    undone_up_to: int
    """The last event whose change no longer exists."""


class Era(_CloudEvent):
    """PostgreSQL went back in time: it no longer has changes that events told of.

    What follows in the partition's stream belongs to the era `era`; `sequence` is this event's own place in it.
    """

    type: Literal["statewright.era.began"] = ERA_BEGAN
    data: Undone
    """Which events told of changes that no longer exist."""


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
