"""What a partition's stream tells, once it was read: an event, as JSON or a value, or what stands in place of some."""

from collections.abc import Sequence
from typing import NamedTuple

from pydantic_core import from_json

from statewright.errors import EraBegan, EventsMissed
from statewright.events import Event
from statewright.subscription.filters import Sieve

What = bytes | Event | EventsMissed | EraBegan


class Told(NamedTuple):
    """What stands at one place of a partition's stream.

    It is an event, as JSON where it comes from the stream, or what must be told in place of some: `sequence` is then
    the place behind which reading goes on, which may lie before.
    """

    sequence: int
    what: What


class Stretch(NamedTuple):
    """A stretch of a partition's stream: everything in it behind `after` and up to `up_to`."""

    partition: int
    after: int
    told: Sequence[Told]
    up_to: int


def event_of(told: bytes | Event) -> Event:
    """Return the event that stands in a stream as JSON, or came as a value."""
    return told if isinstance(told, Event) else Event.model_validate_json(told, extra="ignore")


def tree_of(told: bytes | Event) -> int:
    """Return the tag of the tree whose run an event is about."""
    if isinstance(told, Event):
        return told.tree
    tree: int = from_json(told)["tree"]
    return tree


def wanted(told: Told, sieve: Sieve) -> bool:
    """Return whether it is to be handed out."""
    what = told.what
    if isinstance(what, bytes):
        return sieve.passes(what)
    return sieve.lets_pass(what) if isinstance(what, Event) else True
