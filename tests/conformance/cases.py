"""Recorded cases as values: what FORMAT.md describes, read from JSON Lines."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from statewright.runs import RunPolicy
from statewright.states import StateType

SUPPORTED_POLICIES: Final = frozenset({"core", "minimal"})


class Recorded(BaseModel):
    """A part of a recording. Keys that only inform people are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class RecordedLimit(Recorded):
    """A concurrency limit that exists before the first step, with nobody holding a slot."""

    tag: str
    concurrency_limit: int


class RecordedRun(Recorded):
    """A run that exists before the first step, without any state."""

    kind: Literal["flow", "task"]
    deployment: bool = False
    parent_task_run: str | None = None
    flow_run: str | None = None
    tags: tuple[str, ...] = ()
    retries: int | None = None
    retry_delay_s: float | tuple[float, ...] | None = None
    resuming: bool = False

    @property
    def policy(self) -> RunPolicy:
        """The run's own policy."""
        return RunPolicy(retries=self.retries, retry_delay=self.retry_delay_s, resuming=self.resuming)

    @property
    def belongs_to(self) -> str | None:
        """The label of the run that must exist before this one."""
        return self.flow_run or self.parent_task_run


class RecordedState(Recorded):
    """A state as it was proposed; its details are the keys that are not named here."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: StateType
    at_s: float
    name: str | None = None
    message: str | None = None
    data: Any = None

    @property
    def details(self) -> dict[str, Any]:
        """The state's details in the notation of the recording."""
        return self.model_extra or {}


class Step(Recorded):
    """One proposal, and what the recorded engine made of it."""

    run: str
    policy: str
    force: bool
    api_version: str | None = None
    clock_s: float
    propose: RecordedState | None
    expect: dict[str, Any]
    clocked: frozenset[str] = frozenset()

    @property
    def under_minimal_policy(self) -> bool:
        """Whether only the minimal policy governs: the recorded engine names it, here a proposal is forced."""
        return self.force or self.policy == "minimal"

    def unsupported(self) -> str | None:
        """Return what the default policies cannot express about this step, None when they can express it all."""
        if self.propose is None:
            return "null proposal"
        if self.propose.details.get("deferred"):
            return "policy background"
        return None if self.policy in SUPPORTED_POLICIES else f"policy {self.policy}"


class Case(Recorded):
    """A short life of a few runs, step by step."""

    id: str
    oracle: str
    topic: str
    needs_clock: bool
    agrees_with_orion: bool | None = None
    limits: tuple[RecordedLimit, ...]
    deployment: dict[str, Any] | None = None
    runs: dict[str, RecordedRun]
    steps: Annotated[tuple[Step, ...], Field(min_length=1)]

    @property
    def is_required(self) -> bool:
        """Whether the default policies must do the same: all that engine 2 did, and what engine 3 does alike."""
        return self.oracle.startswith("prefect 2.") or self.agrees_with_orion is True

    @property
    def binds_wording(self) -> bool:
        """Whether reasons must read as recorded: those of engine 2 do, engine 3 words them differently."""
        return self.oracle.startswith("prefect 2.")

    def unsupported(self) -> str | None:
        """Return what the default policies cannot express about this case, None when they can express it all."""
        if self.deployment is not None:
            return "limited deployment"
        return next((reason for step in self.steps if (reason := step.unsupported())), None)


def read_cases(path: Path) -> Iterator[Case]:
    """Read the cases of a file, gzipped or not, in order."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        yield from (Case.model_validate_json(line) for line in lines if line.strip())
