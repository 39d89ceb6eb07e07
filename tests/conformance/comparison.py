"""The comparison: two worlds flattened to paths, and each path that differs a mismatch of some level."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from tests.conformance.cases import Step

World = dict[str, Any]
"""What a step leaves behind, in the notation of the recording: the answer, every run, the slots, new cache entries."""

COMPARED: Final[tuple[str, ...]] = (
    "status", "reason", "delay_s", "returned", "state", "run", "history", "others", "slots", "cache_added",
)  # fmt: skip

ONLY_IN_ENGINE_3: Final = frozenset({"resuming", "pause_keys", "retry_type", "has_deployment_lease"})
"""What the later engine keeps on a run or a state by rules that the default policies do not have."""

FULL_LIMIT: Final = "Concurrency limit for the "
FULL_LIMIT_DELAY_SECONDS: Final = 30
"""How long a full limit lets a producer wait is a setting: 30 s by default here and in engine 2, 10 s in engine 3."""

TOLERANCE: Final = 1e-6


class Absent:
    """Stands for a path that one of the worlds does not have."""

    def __repr__(self) -> str:
        return "nothing"


ABSENT: Final = Absent()


class Level(StrEnum):
    """How deep a mismatch goes."""

    DECISION = "decision"
    BOOKKEEPING = "bookkeeping"
    WORDING = "wording"
    PROTOCOL = "protocol"


_LEVELS: Final = {
    "status": Level.DECISION,
    "delay_s": Level.DECISION,
    "history": Level.DECISION,
    "state/type": Level.DECISION,
    "state/name": Level.DECISION,
    "reason": Level.WORDING,
    "returned": Level.PROTOCOL,
}


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One field in which a step came out differently."""

    path: str
    recorded: object
    observed: object

    @property
    def level(self) -> Level:
        """How deep it goes; a path counts for what its beginning says."""
        if self.path in _LEVELS:
            return _LEVELS[self.path]
        return _LEVELS.get(self.path.partition("/")[0], Level.BOOKKEEPING)

    def __str__(self) -> str:
        return f"{self.path}: recorded {self.recorded!r}, observed {self.observed!r}"


def compare(step: Step, observed: World, runs_before: World, seconds_run: float | None) -> list[Mismatch]:
    """Return where the world after a step differs from the recorded one.

    `runs_before` is every other run as observed before the step: those that the recording does not name must not have
    changed. `seconds_run` is for how long the case has been running, None where its clock is injected: by a clock that
    runs, what derives from it is not compared, and delays are shorter by the time that has passed.
    """
    recorded = {key: step.expect[key] for key in COMPARED if key in step.expect}
    if (recorded["reason"] or "").startswith(FULL_LIMIT):
        recorded["delay_s"] = FULL_LIMIT_DELAY_SECONDS
    elif seconds_run is not None and _is_left_of(recorded["delay_s"], observed["delay_s"], seconds_run):
        recorded["delay_s"] = observed["delay_s"]
    # Most runs stay as they are in most steps; only those that change, or should, are worth flattening.
    named, seen = recorded["others"], observed["others"]
    moved = named.keys() | {label for label, run in seen.items() if run != runs_before[label]}
    recorded["others"] = {label: named.get(label, runs_before[label]) for label in moved}
    observed = observed | {"others": {label: seen[label] for label in moved}}
    left, right = _flattened(recorded), _flattened({key: observed[key] for key in recorded})
    skipped = frozenset() if seconds_run is None else step.clocked
    return [
        Mismatch(path, left.get(path, ABSENT), right.get(path, ABSENT))
        for path in sorted((left.keys() | right.keys()) - skipped)
        if not _same(left.get(path, ABSENT), right.get(path, ABSENT))
    ]


def _is_left_of(delay: int | None, observed: int | None, seconds_run: float) -> bool:
    """Whether a delay of whole seconds, rounded down, is what so many seconds leave of the recorded one."""
    return delay is not None and observed is not None and delay - 1 - seconds_run < observed <= delay


def _flattened(world: World) -> dict[str, Any]:
    return dict(_leaves(world, ()))


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested objects; what a state carries as data, and every list, is one leaf."""
    if isinstance(value, dict) and path[-2:] != ("state", "data"):
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    elif not _says_nothing(value, path):
        yield "/".join(path), value


def _says_nothing(value: Any, path: tuple[str, ...]) -> bool:
    """Whether the leaf equals a missing one: details that are not set, fields that are not compared."""
    return path[-1] in ONLY_IN_ENGINE_3 or ("details" in path and value in (None, False))


def _same(recorded: Any, observed: Any) -> bool:
    if isinstance(recorded, bool) or isinstance(observed, bool):
        return recorded is observed
    if isinstance(recorded, int | float) and isinstance(observed, int | float):
        return abs(recorded - observed) <= TOLERANCE
    if isinstance(recorded, list) and isinstance(observed, list):
        return len(recorded) == len(observed) and all(map(_same, recorded, observed))
    if isinstance(recorded, dict) and isinstance(observed, dict):
        return recorded.keys() == observed.keys() and all(_same(recorded[key], observed[key]) for key in recorded)
    return bool(recorded == observed)
