"""The feed: keeps a partition's event stream equal to the history in PostgreSQL."""

from collections.abc import Sequence

import structlog

from statewright_worker.facts.changes import changes_between
from statewright_worker.orchestration.records import EraRecord, StateChange
from statewright_worker.storage.transactions import Fence, Storage, TakenUp
from statewright_worker.streams.encoding import era_at
from statewright_worker.streams.events import Appended, Events, SequencedEvent

log = structlog.get_logger()


class Feed:
    """Compares the stream with PostgreSQL, and appends what the stream lacks, page by page.

    Requests are answered meanwhile: while the stream is behind, batches publish no events of their own.
    """

    def __init__(self, storage: Storage, events: Events, taken_up: TakenUp) -> None:
        self._storage = storage
        self._events = events
        self._fence: Fence = taken_up.fence
        self._era = taken_up.era
        self._eras: Sequence[EraRecord] = ()
        self.committed = taken_up.sequence
        """The last sequence number in PostgreSQL."""
        self._ends_with: int | None = None
        """The last sequence number in the stream; None when it is not known."""
        self._brought = 0
        """Up to this sequence number, the stream has every event that still exists."""

    @property
    def is_behind(self) -> bool:
        """Whether there are events that are not in the stream."""
        return self._ends_with is None or self._brought < self.committed

    @property
    def ends_with(self) -> int | None:
        """The sequence number with which the stream ends, None when it is not known."""
        return self._ends_with

    async def begin(self) -> None:
        """Look at where the stream ends; when it is ahead of PostgreSQL, begin a new era.

        Raises as Events and Storage do.
        """
        if self._era:
            self._eras = await self._storage.eras(self._fence.partition)
        await self._look()

    async def went_back(self, sequence: int) -> None:
        """Begin a new era, because PostgreSQL has gone back to `sequence`. Raises as Storage does."""
        published = max(self.committed, self._ends_with or 0)
        begun = await self._storage.begin_era(self._fence, sequence, published)
        if begun is not None:
            log.error(
                "PostgreSQL went back in time: events that were published are not so any more, and a new era begins",
                partition=self._fence.partition,
                era=begun.era,
                went_back_to=sequence,
                undone_up_to=published,
            )
            self._eras = [*self._eras, begun]
            self._brought, self.committed = published, begun.sequence

    def events_of(self, changes: Sequence[StateChange], follows: int) -> list[SequencedEvent]:
        """Return the events of a batch's changes, the first of which has the number behind `follows`."""
        encode, era = self._events.encoding.change, self._eras[-1].era if self._eras else 0
        return [
            SequencedEvent(sequence, encode(change, sequence, era))
            for sequence, change in enumerate(changes, follows + 1)
        ]

    def read_back(self, changes: Sequence[tuple[int, StateChange]], after: int, up_to: int) -> list[SequencedEvent]:
        """Return the events of changes that were read from PostgreSQL, and the eras among them above `after`, up to
        `up_to`, in order."""
        encoding, eras = self._events.encoding, self._eras
        told = [
            SequencedEvent(sequence, encoding.change(change, sequence, era_at(eras, sequence)))
            for sequence, change in changes
        ]
        begun = [era for era in eras if after < era.sequence <= up_to]
        return sorted([*told, *(SequencedEvent(era.sequence, encoding.era(era)) for era in begun)])

    def wrote(self, up_to: int) -> None:
        """Take note that a batch was committed whose last sequence number is `up_to`."""
        self.committed = up_to

    async def appended(self, appended: Appended) -> None:
        """Take note whether the events that were sent are in the stream."""
        if appended.done:
            self._ends_with = self._brought = appended.ends_with or 0
        else:
            await self._found(appended.ends_with)

    async def bring_some(self) -> None:
        """Append the next events from PostgreSQL, as far back as the stream keeps them.

        Raises as Storage and Events do.
        """
        if self._ends_with is None:
            await self._look()
        if self._ends_with is None or not self.is_behind:
            return
        after = max(self._brought, self.committed - self._events.kept)
        page = await changes_between(self._storage, self._fence.partition, after, self.committed)
        up_to = page.up_to
        events = self.read_back(page.changes, after, up_to)
        self._tell_of_gap(events, max(after, page.pruned_up_to), up_to)
        if events:
            appended = await self._events.append(self._ends_with, events)
            if not appended.done:
                await self._found(appended.ends_with)
                return
            self._ends_with = appended.ends_with
        self._brought = up_to

    async def _look(self) -> None:
        await self._found(await self._events.newest())

    async def _found(self, ends_with: int | None) -> None:
        self._ends_with = ends_with
        if ends_with is None:
            return
        self._brought = ends_with
        if ends_with > self.committed:
            await self.went_back(self.committed)

    def _tell_of_gap(self, events: Sequence[SequencedEvent], after: int, up_to: int) -> None:
        """Log which events above `after` cannot be published, because their states were deleted from PostgreSQL."""
        told = sum(event.sequence > after for event in events)
        missing = up_to - after - told - sum(_shared(begun, after, up_to) for begun in self._eras)
        if missing > 0:
            log.warning(
                "events are gone: their states were deleted from PostgreSQL",
                partition=self._fence.partition,
                after=after,
                up_to=up_to,
                missing=missing,
            )


def _shared(begun: EraRecord, after: int, up_to: int) -> int:
    """Return how many of the numbers above `after`, up to `up_to`, belong to events that the era has undone."""
    return max(min(up_to, begun.undone_up_to) - max(after, begun.went_back_to), 0)
