"""What a case needs of whatever it is carried out on: to create runs, to propose, to look."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from statewright.runs import RunHistory, RunPolicy
from statewright.states import ProposedState, StateType
from statewright.verdicts import Verdict


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """A run as it is stored, with its history and its own copies of what its state says."""

    history: RunHistory
    state_type: StateType | None
    state_name: str | None
    state_timestamp: datetime | None


@dataclass(frozen=True, slots=True)
class CachedState:
    """An entry of the cache, by which later runs find a completed state."""

    cache_key: str
    cache_expiration: datetime | None
    state_id: UUID
    task_run_id: UUID | None


class Subject(Protocol):
    """Carries out one case. Reads show all effects of every proposal that was answered before."""

    @property
    def clock_is_injected(self) -> bool:
        """Whether `set_clock` decides what time it is."""

    async def set_clock(self, moment: datetime) -> None:
        """Let the clock that decides stand at `moment`, if it is injected."""

    async def set_limit(self, tag: str, concurrency_limit: int) -> None:
        """Let at most so many task runs with `tag` be RUNNING."""

    async def create_flow_run(
        self, name: str, *, deployment_id: UUID | None, parent_task_run_id: UUID | None, policy: RunPolicy
    ) -> UUID:
        """Create a flow run and return its id."""

    async def create_task_run(
        self, name: str, *, flow_run_id: UUID | None, tags: Sequence[str], policy: RunPolicy
    ) -> UUID:
        """Create a task run and return its id."""

    async def propose(self, run_id: UUID, state: ProposedState, *, force: bool, api_version: str | None) -> Verdict:
        """Propose a state and return the verdict."""

    async def snapshots(self, run_ids: Collection[UUID]) -> dict[UUID, RunSnapshot]:
        """Return the runs as they are stored."""

    async def slots(self, tags: Collection[str]) -> dict[str, Collection[UUID]]:
        """Return for each limited tag the runs that hold a slot of it."""

    async def cache_entries(self, cache_keys: Collection[str]) -> list[CachedState]:
        """Return all that is cached under these keys, oldest first."""


class Host(Protocol):
    """Where cases are carried out: one subject per case, some of them at a time."""

    @property
    def name(self) -> str:
        """What reports call it."""

    @property
    def takes_informative_cases(self) -> bool:
        """Whether cases that need not agree are worth their time here."""

    @property
    def cases_at_a_time(self) -> int:
        """How many cases may run concurrently."""

    def subject(self) -> Subject:
        """Return the subject of one more case."""
