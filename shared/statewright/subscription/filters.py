"""Filters: which events a subscriber wants, tested where that costs least.

A filter on a run or a tree leaves one partition, and no other stream is read. Everything else is tested in the
subscriber's process, on the event's JSON, before a value is made of it: that is where nearly all of the time goes.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Final, TypeVar
from uuid import UUID

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import from_json, to_json

from statewright.events import Event
from statewright.ids import TAG_MASK, partition_of
from statewright.runs import RunKind
from statewright.states import StateType
from statewright.values import Name, Offered

MAX_WANTED: Final = 100
"""How many values of one kind a filter may name."""

Value = TypeVar("Value")


def _one_or_some(given: Any) -> Any:
    """Return a tuple of what may be one value, or any number of them."""
    if given is None or not isinstance(given, Iterable):
        return given
    return (given,) if isinstance(given, str) else tuple(given)


def _in_order(wanted: tuple[Any, ...]) -> tuple[Any, ...]:
    # Filters that want the same are equal, whatever the order in which it was said.
    return tuple(sorted(set(wanted)))


Wanted = Annotated[
    Annotated[tuple[Value, ...], Field(min_length=1, max_length=MAX_WANTED), AfterValidator(_in_order)] | None,
    BeforeValidator(_one_or_some),
]
"""Any of some values; None means all."""


class EventFilter(Offered):
    """Which events are wanted: those that fit every field that is given; of several values, one must fit."""

    kinds: Wanted[RunKind] = None
    """The kinds of the run."""
    run: UUID | None = None
    """The run itself."""
    tree: Annotated[int, Field(ge=0, le=TAG_MASK)] | None = None
    """The tag of the run's tree. There are 65,536 tags, so many trees have several with the same one, and events of all
    of these fit."""
    state_types: Wanted[StateType] = None
    """The type of the state that was entered."""
    state_names: Wanted[Name] = None
    """The name of that state."""
    tags: Wanted[Name] = None
    """The tags that the run has when the event is made."""

    def partitions(self, partitions: int) -> list[int]:
        """Return the partitions that can have such events, out of so many."""
        wanted = set(range(partitions))
        if self.run is not None:
            wanted &= {partition_of(self.run, partitions)}
        if self.tree is not None:
            wanted &= {self.tree % partitions}
        return sorted(wanted)


class Sieve:
    """Tests events against a filter."""

    def __init__(self, wanted: EventFilter) -> None:
        self._run = None if wanted.run is None else str(wanted.run)
        self._tree = wanted.tree
        self._kinds, self._types = wanted.kinds, wanted.state_types
        self._names, self._tags = wanted.state_names, wanted.tags
        runs = None if self._run is None else (self._run,)
        texts = [texts for texts in (runs, self._kinds, self._types, self._names, self._tags) if texts is not None]
        self._needles = [tuple(map(to_json, some)) for some in texts]
        self._lets_all_pass = not texts and self._tree is None

    def passes(self, body: bytes) -> bool:
        """Return whether an event, as JSON, is wanted."""
        if self._lets_all_pass:
            return True
        for needles in self._needles:
            for needle in needles:
                if needle in body:
                    break
            else:
                # A text without escapes stands in JSON just as it is. So where there is no escape at all, what is
                # wanted is not there, and nothing needs to be parsed.
                if b"\\" not in body:
                    return False
        return self._fits(from_json(body))

    def lets_pass(self, event: Event) -> bool:
        """Return whether an event is wanted."""
        if self._lets_all_pass:
            return True
        resource = event.data.resource
        tags = [related.id for related in event.data.related if related.role == "tag"]
        return self._fits_values(
            run=str(event.subject),
            tree=event.tree,
            kind=resource.kind,
            state_type=resource.state_type,
            state_name=resource.state_name,
            tags=tags,
        )

    def _fits(self, event: dict[str, Any]) -> bool:
        resource, related = event["data"]["resource"], event["data"].get("related", ())
        tags = [one["id"] for one in related if one["role"] == "tag"] if self._tags is not None else ()
        return self._fits_values(
            run=event["subject"],
            tree=event["tree"],
            kind=resource["kind"],
            state_type=resource["state_type"],
            state_name=resource["state_name"],
            tags=tags,
        )

    def _fits_values(
        self, *, run: str, tree: int, kind: str, state_type: str, state_name: str, tags: Iterable[str]
    ) -> bool:
        return (
            (self._run is None or run == self._run)
            and (self._tree is None or tree == self._tree)
            and (self._kinds is None or kind in self._kinds)
            and (self._types is None or state_type in self._types)
            and (self._names is None or state_name in self._names)
            and (self._tags is None or any(tag in self._tags for tag in tags))
        )
