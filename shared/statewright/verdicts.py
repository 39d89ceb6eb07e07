"""Verdicts: the durable answers to proposals."""

from enum import StrEnum
from typing import Annotated
from uuid import UUID

from pydantic import Field

from statewright.states import State
from statewright.values import Frozen

MAX_DELAY_SECONDS = 2**31 - 1
"""The largest `integer` of PostgreSQL: 68 years."""


class SetStateStatus(StrEnum):
    """What became of a proposal."""

    ACCEPT = "ACCEPT"
    """The proposed state was written, perhaps under another name."""
    REJECT = "REJECT"
    """Another state was written instead, or the run stays as it is."""
    WAIT = "WAIT"
    """Nothing was written; propose again after `delay_seconds`."""
    ABORT = "ABORT"
    """Nothing was written, and this run should do nothing further."""


class Verdict(Frozen):
    """The one answer that a proposal has for ever, however often it is sent."""

    proposal_id: UUID
    """The proposal: the id of the request that made it."""
    run_id: UUID
    """The run that it is about."""
    status: SetStateStatus
    """What became of the proposal."""
    reason: str | None = None
    """Why, where it was not accepted as it was."""
    delay_seconds: Annotated[int, Field(ge=0, le=MAX_DELAY_SECONDS)] | None = None
    """With WAIT, how long to wait before proposing again; 68 years at most."""
    state: State | None = None
    """The run's state after the decision: the written one, or the unchanged current one."""
    rule_signature: tuple[str, ...] = ()
    """The rules that fired before the state was written, in order."""
    finalization_signature: tuple[str, ...] = ()
    """The rules that fired after the state was written, in order."""

    @property
    def accepted(self) -> bool:
        """Whether the proposed state was written."""
        return self.status is SetStateStatus.ACCEPT
