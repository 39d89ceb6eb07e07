"""Explanations: why a proposal was decided as it was, rule by rule, and what became of a run, moment by moment."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from statewright.limits import ConcurrencyLimit, LimitScope
from statewright.runs import FlowRun, TaskRun
from statewright.states import StateType
from statewright.values import Frozen, Json, Moment
from statewright.verdicts import SetStateStatus, Verdict


class RuleVerb(StrEnum):
    """What a rule may do to a transition."""

    REJECT = "reject"
    """It lets another state be written instead, or none."""
    WAIT = "wait"
    """It lets nothing be written, and the producer come back."""
    ABORT = "abort"
    """It lets nothing be written, and the run do nothing further."""
    RENAME = "rename"
    """It gives the proposed state another name."""


class BriefState(Frozen):
    """A state by its type and name."""

    type: StateType
    """What is governed."""
    name: str
    """What people read."""


class RuleDecision(Frozen):
    """What a rule has decided, and what was proposed from then on."""

    verb: RuleVerb
    """What it did."""
    reason: str | None = None
    """Why, in the rule's words."""
    delay_seconds: int | None = None
    """With `wait`, how long."""
    to: BriefState | None = None
    """What was proposed from then on; None where nothing was to be written any more."""


class RuleTrace(Frozen):
    """A rule's part in a decision."""

    rule: str
    """The rule's name."""
    entered: bool = True
    """Whether it took part. Otherwise it does not concern such a transition, or a rule before it had changed that."""
    fizzled: bool = False
    """Whether it took part in vain: another rule has changed the transition since."""
    decisions: tuple[RuleDecision, ...] = ()
    """What it decided, in order; the last one counts."""
    saw: dict[str, Json] = Field(default_factory=dict)
    """What it has looked at, where it has noted that."""


class Trace(Frozen):
    """What rules saw and decided, as it is kept with a verdict."""

    initial: BriefState | None = None
    """What the run was in; None before its first state, and where no rules are told."""
    intended: BriefState | None = None
    """What was proposed; None where no rules are told."""
    rules: tuple[RuleTrace, ...] = ()
    """The rules of the transition, in order."""
    is_cut: bool = False
    """Whether there was too much to keep: then what most rules saw is left out."""
    parked_since: Moment | None = None
    """Since when the proposal was parked before it was decided; None where it was not."""
    waited_for: str | None = None
    """Why it was parked last."""
    withdrawn_by: str | None = None
    """Who has withdrawn it, where they have said so."""


class TraceSource(StrEnum):
    """Where an explanation has the rules from."""

    RECORDED = "recorded"
    """It was kept what they saw and decided, because they did not accept the proposal."""
    SIGNATURES = "signatures"
    """The verdict's signatures say which rules took part. What they saw, and which others did not take part, is gone:
    it is not kept of what is accepted, nor was it by earlier versions."""
    NOW = "now"
    """The proposal was decided just now to see what would be, without any effect."""


class AwaitedLimit(Frozen):
    """A limit in whose queue a parked proposal stands."""

    limit: ConcurrencyLimit
    """The limit as it is now, with the first 10 of those that hold its slots."""
    before: int
    """How many wait for it before the proposal; of more than 10,000, this many."""


class Explanation(Frozen):
    """Why a proposal has its verdict, would have it now, or is parked."""

    proposal_id: UUID
    """The proposal; of `what_if`, the id of the question."""
    run_id: UUID
    """The run that it is about."""
    source: TraceSource
    """Where the rules are from."""
    actor: str | None = None
    """Who has made the proposal; None where nobody has said so."""
    verdict: Verdict | None = None
    """The verdict; None while the proposal is parked."""
    decided: Moment | None = None
    """When it was decided; None while it is parked."""
    trace: Trace
    """What the rules saw and decided; while the proposal is parked, when the reason for that was found."""
    parked_since: Moment | None = None
    """Since when it is parked; None where it is not."""
    reason: str | None = None
    """Why it is parked, or why it was not accepted as it was."""
    waits_for: tuple[AwaitedLimit, ...] = ()
    """The limits for which it waits now, while it is parked; it waits for a moment, or to be looked at, without one."""

    @property
    def validated(self) -> BriefState | None:
        """What the run was in after the decision; None where it had no state, and while the proposal is parked."""
        state = None if self.verdict is None else self.verdict.state
        return None if state is None else BriefState(type=state.type, name=state.name)


class _Entry(Frozen):
    at: Moment
    """When it happened or began, by the database's clock."""

    @property
    def duration(self) -> timedelta | None:
        """How long it lasted; None for what lasts, and for a moment."""
        until: datetime | None = getattr(self, "until", None)
        return None if until is None else until - self.at


class StateEntry(_Entry):
    """A state that the run has entered."""

    kind: Literal["state"] = "state"
    state_id: UUID
    """The state's id."""
    ordinal: int
    """Its place in the run's history: 1, 2, 3 … without gaps."""
    type: StateType
    """What is governed."""
    name: str
    """What people read."""
    timestamp: Moment
    """When it was entered, as the producer has said."""
    message: str | None = None
    """The beginning and the end of its message."""
    until: Moment | None = None
    """When the run has left it; None for the current state."""
    proposal_id: UUID | None = None
    """The proposal that has caused it, perhaps one for another run; None where that was not kept."""
    actor: str | None = None
    """Who has made that proposal."""


class VerdictEntry(_Entry):
    """A verdict on a proposal for the run."""

    kind: Literal["verdict"] = "verdict"
    proposal_id: UUID
    """The proposal."""
    status: SetStateStatus
    """What became of it."""
    reason: str | None = None
    """Why, where it was not accepted as it was."""
    delay_seconds: int | None = None
    """With WAIT, how long to wait."""
    actor: str | None = None
    """Who has made the proposal."""


class WaitEntry(_Entry):
    """A time in which a proposal for the run was parked."""

    kind: Literal["wait"] = "wait"
    proposal_id: UUID
    """The proposal."""
    reason: str | None = None
    """Why it was parked last."""
    until: Moment | None = None
    """When it was decided; None while it is parked."""
    actor: str | None = None
    """Who has made it."""


class SlotEntry(_Entry):
    """A slot that the run holds now. Which slots it held before is not kept: those of its limits, while it was
    RUNNING."""

    kind: Literal["slot"] = "slot"
    scope: LimitScope
    """What the limit is on."""
    key: str
    """The tag, the name, or the deployment's id."""


class LeaseEntry(_Entry):
    """A lease by which the run was RUNNING."""

    kind: Literal["lease"] = "lease"
    state_id: UUID
    """The state RUNNING that it belongs to."""
    seconds: float
    """For how long each heartbeat renews it."""
    executor: str | None = None
    """Whose heartbeats renew it, if not the run's own."""
    until: Moment | None = None
    """When the run has left that state; None for a lease that is held."""
    ends: Moment | None = None
    """Until when it is good without a heartbeat, while it is held."""


AnyEntry = StateEntry | VerdictEntry | WaitEntry | SlotEntry | LeaseEntry
TimelineEntry = Annotated[AnyEntry, Field(discriminator="kind")]
"""Something that happened to a run."""


def in_order(entries: Iterable[AnyEntry]) -> tuple[AnyEntry, ...]:
    """Return the entries by their moments; those of one moment stay as they are."""
    return tuple(sorted(entries, key=lambda entry: entry.at))


class Timeline(Frozen):
    """What happened to a run, in order."""

    run: Annotated[FlowRun | TaskRun, Field(discriminator="kind")]
    """The run as it is now."""
    now: Moment
    """The database's clock when it was read: what has no end yet lasts up to now."""
    entries: tuple[TimelineEntry, ...]
    """States, verdicts, waits, slots and leases, by the moments at which they happened or began."""
