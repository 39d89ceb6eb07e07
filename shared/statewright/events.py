"""State-change events: published once, in order, replayable."""

from typing import Literal
from uuid import UUID

from statewright import values
from statewright.runs import RunKind
from statewright.states import StateType
from statewright.values import Frozen, Moment

TRUNCATE_MESSAGES_AT = 100_000


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


class Event(Frozen):
    """One change of state. `id` is the id of the state that was entered."""

    id: UUID
    event: str
    """`<kind>.<state name>`, as in `task-run.Completed`."""
    occurred: Moment
    partition: int
    sequence: int
    """Position in its partition: 1, 2, 3 … without gaps, shared with its eras; also the id of its stream entry."""
    era: int = 0
    """How often PostgreSQL had gone back in time before this change."""
    follows: UUID | None = None
    """The event of the run's previous state, when that is less than five minutes older."""
    resource: EventResource
    related: tuple[RelatedResource, ...] = ()
    intended: Transition
    initial_state: EventState | None = None
    validated_state: EventState


class Era(Frozen):
    """PostgreSQL went back in time: it no longer has changes that events told of.

    The events above `went_back_to` and up to `undone_up_to` told of changes that do not exist. What follows in the
    partition's stream belongs to the era `era`; `sequence` is this entry's own place in it.
    """

    partition: int
    sequence: int
    era: int
    went_back_to: int
    undone_up_to: int


def truncated(message: str | None) -> str | None:
    """Return `message` as an event tells it: one of more than 100,000 characters is cut in its middle, with a note."""
    return None if message is None else values.truncated(message, TRUNCATE_MESSAGES_AT)
