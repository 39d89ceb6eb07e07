"""Explaining: what a batch has read to explain proposals and tell timelines. A part of the unit of work."""

from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from statewright.explanations import AwaitedLimit, BriefState, SlotEntry, WaitEntry
from statewright.protocol.requests import TimelineCursor
from statewright_worker.orchestration.records import LedgerEntry


@dataclass(slots=True)
class Moments:
    """A page of what beside its states has happened to a run, as of the beginning of the batch."""

    decided: dict[UUID, LedgerEntry] = field(default_factory=dict)
    """The verdicts that have caused the states of the page."""
    refused: list[LedgerEntry] = field(default_factory=list)
    """Verdicts on proposals for the run that were not accepted, in order."""
    are_more_refused: bool = False
    """Whether there are later ones."""
    next_at: datetime | None = None
    """When the state behind those of the page was entered; None where there is none."""
    waits: dict[UUID, WaitEntry] = field(default_factory=dict)
    """Proposals for the run that are parked."""
    slots: dict[int, SlotEntry] = field(default_factory=dict)
    """The slots that it holds, by the limits' ids."""
    lease: tuple[UUID, datetime] | None = None
    """The state of its lease, and until when that is good."""


class Explaining:
    """What is known of proposals and runs that somebody asks about, as of the beginning of the batch."""

    def __init__(self) -> None:
        self.awaited: dict[UUID, list[AwaitedLimit]] = {}
        """The limits for which parked proposals wait."""
        self.left: dict[UUID, BriefState] = {}
        """The states that accepted proposals have ended."""
        self.moments: dict[tuple[UUID, TimelineCursor], Moments] = {}
        """Pages of timelines, by run and by where the page begins."""
