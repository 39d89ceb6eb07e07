"""Positions: from where a subscription reads."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Literal

from pydantic import TypeAdapter, ValidationError

from statewright.errors import InvalidRequest
from statewright.protocol.requests import PartitionPosition
from statewright.values import MAX_POSITION, Moment

BEGINNING: Final = "beginning"

Positions = Mapping[int, int]
"""The number of the last event that was handed out, by partition."""
Since = Positions | Mapping[str, int] | datetime | Literal["beginning"] | None
"""From where to read: None is from now on; positions may have been JSON, whose keys are texts."""
Start = dict[int, int] | datetime | Literal["beginning"] | None
"""The same, once it was checked."""

_MOMENT: Final[TypeAdapter[datetime]] = TypeAdapter(Moment)


def start_from(since: Any, partitions: int) -> Start:
    """Return from where to read. Raises InvalidRequest for what names no partition, no position and no moment."""
    if since is None:
        return None
    if isinstance(since, datetime):
        try:
            return _MOMENT.validate_python(since)
        except ValidationError as error:
            raise InvalidRequest("since", error.errors()[0]["msg"]) from None
    if since == BEGINNING:
        return BEGINNING
    if isinstance(since, Mapping):
        return positions_from(since, partitions)
    raise InvalidRequest(
        "since",
        "must be a position per partition, as in {0: 17}, a moment (a datetime with a zone) or 'beginning', not"
        f" {since!r:.100}",
    )


def pairs_of(positions: Positions) -> tuple[PartitionPosition, ...]:
    """Return positions as messages carry them."""
    return tuple(PartitionPosition(partition=p, position=position) for p, position in sorted(positions.items()))


def positions_from(since: Mapping[Any, Any], partitions: int) -> dict[int, int]:
    """Return positions as a subscriber has kept them, perhaps as JSON, whose keys are texts.

    Raises InvalidRequest for what names no partition or no position.
    """
    positions: dict[int, int] = {}
    for named, position in since.items():
        partition = _partition_from(named, partitions)
        if partition in positions:
            raise InvalidRequest(f"since.{partition}", "names this partition twice, as a number and as a text")
        if type(position) is not int or not 0 <= position <= MAX_POSITION:
            raise InvalidRequest(f"since.{partition}", f"must be the number of an event, or 0, not {position!r:.100}")
        positions[partition] = position
    return positions


def _partition_from(named: object, partitions: int) -> int:
    if isinstance(named, str) and named.isascii() and named.isdecimal() and str(int(named[:10])) == named:
        named = int(named)
    if type(named) is not int or not 0 <= named < partitions:
        problem = f"names no partition: this deployment has {partitions}, from 0 to {partitions - 1}"
        raise InvalidRequest(f"since.{named!s:.100}", problem)
    return named
