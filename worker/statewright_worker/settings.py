"""The settings of a worker: read once, from arguments or from `STATEWRIGHT_*`, and frozen."""

import importlib
import traceback
from datetime import timedelta
from typing import Annotated, Any, Final, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from statewright.errors import ConfigurationError
from statewright.protocol.requests import CAN_BE_FORBIDDEN, PruneRuns
from statewright.settings import ClientSettings
from statewright.values import TAKES_DURATIONS
from statewright_worker.orchestration.policies import BaseOrchestrationPolicy

DEFAULT_PARTITIONS = 8

PolicyName = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]

PRUNE: Final = PruneRuns.model_fields["type"].default


class WorkerSettings(ClientSettings):
    """What a worker must know. Durations are seconds, also where they are given as such; sizes are bytes."""

    database_url: SecretStr
    transaction_pooler: bool = False
    """Whether a transaction-mode pooler such as PgBouncer stands before PostgreSQL."""
    startup_timeout: Annotated[float, Field(ge=0, le=86_400), TAKES_DURATIONS] = 60.0
    """How long a worker that is started before its servers waits for them."""
    batch_size: Annotated[int, Field(ge=1, le=10_000)] = 256
    concurrency_slot_wait_seconds: Annotated[int, Field(ge=1, le=86_400), TAKES_DURATIONS] = 30
    """How long a producer is told to wait when a limit is full."""
    max_parked: Annotated[int, Field(ge=0)] = 100_000
    """How many proposals of each partition may be parked; what is beyond is told to WAIT."""
    forbid: Annotated[frozenset[str], NoDecode] = frozenset()
    """What producers may not do: types of requests, such as set_limit, and force; in the environment with commas."""
    events_kept: Annotated[int, Field(ge=1)] = 10_000
    """How many events each partition's stream keeps, about."""
    events_bytes: Annotated[int, Field(ge=65_536)] = 33_554_432
    """How much memory each partition's events may take in Redis, about."""
    replies_kept: Annotated[int, Field(ge=1)] = 4_096
    """How many entries a reply stream keeps, about, that its client does not delete."""
    reply_seconds: Annotated[int, Field(ge=1), TAKES_DURATIONS] = 600
    """How long a reply stream stays after its last answer."""
    dead_letters_kept: Annotated[int, Field(ge=1)] = 1_000
    """How many dead letters each partition keeps, about."""
    dead_letter_seconds: Annotated[int, Field(ge=1), TAKES_DURATIONS] = 2_592_000
    """How long a partition's dead letters stay after the last one."""
    keep_runs: Annotated[float, Field(ge=1, le=3_153_600_000), TAKES_DURATIONS] | None = None
    """How long a tree whose runs have all come to an end is kept after its last change; None keeps it for ever."""
    flow_policy: PolicyName = "statewright_worker.orchestration.core_policy:CoreFlowPolicy"
    task_policy: PolicyName = "statewright_worker.orchestration.core_policy:CoreTaskPolicy"
    rule_timeout: Annotated[float, Field(gt=0, le=2), TAKES_DURATIONS] = 1.0
    """How long the rules of one proposal may take together; then it fails, and its neighbours go on."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["console", "json"] = "console"

    @field_validator("forbid", mode="before")
    @classmethod
    def _names_what_can_be_forbidden(cls, forbid: Any) -> Any:
        named = [name.strip() for name in forbid.split(",")] if isinstance(forbid, str) else list(forbid)
        unknown = sorted({name for name in named if name} - CAN_BE_FORBIDDEN)
        if unknown:
            known = ", ".join(sorted(CAN_BE_FORBIDDEN))
            raise ValueError(f"{', '.join(unknown)} cannot be forbidden; what can is {known}")
        return frozenset(name for name in named if name)

    @property
    def forbidden(self) -> frozenset[str]:
        """What producers may not do at all. Where runs are kept for some time, the maintenance prunes older ones by the
        same request as producers, so that one is not among it."""
        return self.forbid if self.keep_runs is None else self.forbid - {PRUNE}

    @property
    def prunes_after(self) -> timedelta | None:
        """How long trees must be unchanged that producers may prune all the same: they are pruned anyhow."""
        return timedelta(seconds=self.keep_runs) if self.keep_runs is not None and PRUNE in self.forbid else None


def load_policy(name: str, variable: str) -> type[BaseOrchestrationPolicy]:
    """Return the policy class that `name` ("package.module:Class") says.

    Raises ConfigurationError, naming the environment variable, when there is no such policy.
    """
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's module raises
        raise ConfigurationError(f"{variable}: cannot load {name!r}: {_cause(error, module_name)}") from error
    policy = getattr(module, class_name, None)
    if policy is None:
        raise ConfigurationError(f"{variable}: cannot load {name!r}: {module.__file__} has no {class_name}")
    if not (isinstance(policy, type) and issubclass(policy, BaseOrchestrationPolicy)):
        raise ConfigurationError(f"{variable}: {name!r} is not a subclass of BaseOrchestrationPolicy")
    return policy


def _cause(error: Exception, module_name: str) -> str:
    """Return what has failed: finding the module, or something inside it, and then where."""
    if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
        return f"{error}; neither what is installed nor the current folder has it"
    said = f"{type(error).__name__}: {error}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    inside = [frame for frame in frames if frame.filename != __file__]
    return f"{said} ({inside[-1].filename}, line {inside[-1].lineno})" if inside else said
