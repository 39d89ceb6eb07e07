"""What a rule may ask the unit of work for beside the runs of its transition. Rules declare it, because it is loaded
for the whole batch before anything is decided."""

from enum import StrEnum, auto
from typing import NamedTuple

from statewright.runs import RunKind
from statewright.states import StateType


class Fact(StrEnum):
    """A fact that a rule declares in its NEEDS."""

    LIMITS = auto()
    """The limits on the run's tags: `unit_of_work.limits_on`."""
    SLOTS = auto()
    """The limits of which the run takes a slot each while it is RUNNING: `unit_of_work.limits_of`."""
    CACHED_STATE = auto()
    """The state that is cached under the proposal's key: `unit_of_work.cached_state`."""
    FAILED_TASK_RUNS = auto()
    """The flow run's failed task runs: `unit_of_work.failed_task_runs`."""


class Need(NamedTuple):
    """A fact that the rules of a kind of run may ask for, when the run is in one of the types.

    If the type does not matter, `from_types` is ALL_ORCHESTRATION_STATES itself.
    """

    fact: Fact
    kind: RunKind
    from_types: frozenset[StateType | None]
