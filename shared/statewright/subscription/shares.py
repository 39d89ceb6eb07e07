"""A share in a member's hand: which of its events wait, which are handled, and up to where all are done. No IO."""

from collections import deque
from typing import Final

from statewright.events import Event
from statewright.protocol.replies import OwnedShare
from statewright.protocol.requests import AcknowledgedShare, FailedEvent, ShareEvent, ShareReference, Trial
from statewright.subscription.told import What, event_of
from statewright.values import truncated

WAITING_AT_MOST: Final = 100
"""How many events of a share wait to be handed out, at most; it takes more when half of them are gone."""
SUSPECTED: Final = 100
"""How many events of a share are on trial after a member has died over one of them, at most."""
CLEARED_SECONDS: Final = 5.0
"""A member that has had an event in hand for so long, and lives, does not die over it."""
BACKOFF_SECONDS: Final = 0.5
BACKOFF_SECONDS_AT_MOST: Final = 30.0
"""How long a refused event waits for its next try: twice as long each time."""
ERROR_CHARACTERS: Final = 2_000


class Item:
    """What stands at one place of a share, until it is done with."""

    __slots__ = (
        "again",
        "due",
        "error",
        "event",
        "handed_out",
        "in_hand",
        "is_noted",
        "sequence",
        "trial",
        "tries",
        "what",
    )

    def __init__(self, sequence: int, what: What, *, again: bool = False) -> None:
        self.sequence = sequence
        self.what = what
        self.again = again
        """Whether it is a dead letter that is delivered again."""
        self.event: Event | None = None
        """The event, once it was handed out."""
        self.in_hand = False
        """Whether it was handed out, and nothing was said of it since."""
        self.handed_out = 0.0
        """When it was, by the event loop's clock."""
        self.trial = Trial.NONE
        self.is_noted = False
        """Whether the engine knows of its trial."""
        self.tries = 0
        """How often it has failed."""
        self.error = ""
        self.due = 0.0
        """When it is to be tried again, by the event loop's clock."""

    @property
    def size(self) -> int:
        """How many bytes it takes, about, while it waits."""
        return len(self.what) if isinstance(self.what, bytes) else 1_000


class Room:
    """How many bytes all shares of a member may keep waiting."""

    def __init__(self, most: int) -> None:
        self.left = most


class Share:
    """A share of a partition's events, as its owner works on it.

    It hands its events out in order. While one waits for another try, none behind it is handed out.
    """

    def __init__(self, told: OwnedShare, max_tries: int, room: Room) -> None:
        """Take what the engine says of it."""
        self.partition, self.number, self.epoch = told.partition, told.share, told.epoch
        self.read = told.position
        """Everything of the share up to this number was taken, or is not wanted."""
        self.is_fresh = True
        """Whether nothing was read for it yet."""
        self.leaves_at: float | None = None
        """When it is given back at the latest, by the event loop's clock; None while it is kept."""
        self.is_ready = False
        """Whether its owner looks at it for the next event."""
        self.said: AcknowledgedShare | None = None
        """What the engine has heard of it last."""
        self._trying, self._tries, self._trial = told.trying, told.tries, told.trial
        self._suspect_up_to, self._suspected = told.suspect_up_to, SUSPECTED
        self._max_tries = max_tries
        self._room = room
        self._is_full = False
        self._undone: dict[int, Item] = {}
        """What was taken and is not done with, in order."""
        self._waiting: deque[Item] = deque()
        """Those that were never handed out."""
        self._refused: list[Item] = []
        """Those that wait for another try."""
        self._failed: list[Item] = []
        """Those that have failed too often, of which the engine must hear."""
        self._again: dict[int, Item | None] = {}
        """Dead letters to be delivered again; None until it is known what they are."""
        self._dealt_with: list[int] = []
        """Those of them that were handled."""

    # -- taking ------------------------------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether it takes more events."""
        if self._is_full and len(self._waiting) <= WAITING_AT_MOST // 2:
            self._is_full = False
        return not self._is_full and self._room.left > 0 and self.leaves_at is None

    def take(self, sequence: int, what: What) -> None:
        """Take what comes next."""
        item = Item(sequence, what)
        if sequence == self._trying:
            item.tries, item.error = self._tries, "a member of the subscription died over it, each time"
            if self._trial >= Trial.AWAITED:
                item.trial = Trial.AWAITED
        self.read = sequence
        self._undone[sequence] = item
        self._waiting.append(item)
        self._room.left -= item.size
        self._is_full = len(self._waiting) >= WAITING_AT_MOST

    def go_back(self, up_to: int) -> None:
        """Forget everything above this number: the database went back in time."""
        for item in [item for item in self._undone.values() if item.sequence > up_to]:
            self._forget(item)
        self.read = min(self.read, up_to)

    def deliver_again(self, sequence: int) -> None:
        """Take note of a dead letter that is to be delivered again."""
        if sequence not in self._dealt_with:
            self._again.setdefault(sequence, None)

    def unknown(self) -> list[int]:
        """Return the dead letters of which it is not known what they are."""
        return [sequence for sequence, item in self._again.items() if item is None]

    def found(self, sequence: int, event: Event | None) -> None:
        """Take a dead letter's event, None where it no longer exists."""
        if event is None:
            del self._again[sequence]
            self._dealt_with.append(sequence)
        else:
            self._again[sequence] = Item(sequence, event, again=True)

    # -- handing out -------------------------------------------------------------------------------------------------

    def next(self, now: float) -> Item | None:
        """Return what is to be handed out next, None when nothing can be now. `hand_out` says that it was."""
        if self._failed or self.leaves_at is not None:
            return None
        if self._refused:
            first = min(self._refused, key=lambda item: (item.again, item.sequence))
            return first if first.due <= now else None
        for again in self._again.values():
            if again is not None and not again.in_hand:
                return again
        return self._first_waiting(now) if self._waiting else None

    def _first_waiting(self, now: float) -> Item | None:
        first = self._waiting[0]
        if first.tries >= self._max_tries:
            self._waiting.popleft()
            self._room.left += first.size
            if isinstance(first.what, bytes | Event):
                first.event = event_of(first.what)
            self._failed.append(first)
            return None
        if first.trial >= Trial.AWAITED:
            return None
        if self._is_suspect(first):
            if self._holds_up(now):
                return None
            first.trial = Trial.WITH_OTHERS
            if not first.is_noted:
                return None
        return first

    @property
    def awaits_trial(self) -> bool:
        """Whether its next event is to be tried alone."""
        is_free = not self._failed and not self._refused and self.leaves_at is None
        return is_free and bool(self._waiting) and self._waiting[0].trial >= Trial.AWAITED

    def next_alone(self) -> Item | None:
        """Return the event that is to be tried alone, None as long as the engine does not know."""
        first = self._first_waiting(0.0) if self._waiting[0].tries >= self._max_tries else self._waiting[0]
        if first is None:
            return None
        if first.trial is not Trial.ALONE:
            first.trial, first.is_noted = Trial.ALONE, False
        return first if first.is_noted else None

    def _holds_up(self, now: float) -> bool:
        """Whether an event was handed out so recently that it may still be the one."""
        return any(item.in_hand and now - item.handed_out < CLEARED_SECONDS for item in self._undone.values())

    def hand_out(self, item: Item, event: Event | None, now: float) -> None:
        """Take note that it was handed out."""
        if item in self._refused:
            self._refused.remove(item)
        elif not item.again:
            if self._is_suspect(item):
                self._suspected -= 1
            self._waiting.popleft()
            self._room.left += item.size
        item.in_hand, item.event, item.handed_out = True, event, now

    @property
    def in_hand(self) -> int:
        """How many of its events were handed out, and nothing was said of them since."""
        return sum(item.in_hand for item in self._items())

    @property
    def is_idle(self) -> bool:
        """Whether all that was taken is done with, and it is kept."""
        return not self._undone and not self._again and self.leaves_at is None

    @property
    def due(self) -> float | None:
        """When a refused event is to be tried again, by the event loop's clock."""
        return min((item.due for item in self._refused), default=None)

    def acknowledge(self, sequence: int) -> bool:
        """Take note that an event was handled; return whether it was in hand."""
        item = self._in_hand(sequence)
        if item is None:
            return False
        if item.again:
            self._dealt_with.append(sequence)
            del self._again[sequence]
        else:
            del self._undone[sequence]
        item.in_hand = False
        return True

    def refuse(self, sequence: int, error: str, now: float) -> bool:
        """Take note that an event has failed; return whether it was in hand."""
        item = self._in_hand(sequence)
        if item is None:
            return False
        item.in_hand, item.trial = False, Trial.NONE
        item.tries += 1
        item.error = truncated(error, ERROR_CHARACTERS)
        if item.tries >= self._max_tries:
            self._failed.append(item)
        else:
            item.due = now + min(BACKOFF_SECONDS * 2 ** (item.tries - 1), BACKOFF_SECONDS_AT_MOST)
            self._refused.append(item)
        return True

    # -- what the engine hears ---------------------------------------------------------------------------------------

    @property
    def reference(self) -> ShareReference:
        """The share as the engine knows it."""
        return ShareReference(**self._name())

    @property
    def wants_word(self) -> bool:
        """Whether it waits for the engine to hear something."""
        if self._failed or self._dealt_with:
            return True
        first = self._waiting[0] if self._waiting and self.leaves_at is None else None
        return first is not None and first.trial in (Trial.WITH_OTHERS, Trial.ALONE) and not first.is_noted

    def acknowledged(self) -> AcknowledgedShare:
        """Return up to where it is done, and what is next, if that was tried in vain or is about to be tried alone."""
        first = next(iter(self._undone.values()), None)
        if first is None:
            return AcknowledgedShare(**self._name(), position=self.read)
        position = first.sequence - 1
        if first.tries or first.trial:
            tried = {"trying": first.sequence, "tries": first.tries, "trial": first.trial}
            return AcknowledgedShare(**self._name(), position=position, **tried)
        return AcknowledgedShare(**self._name(), position=position)

    def failed(self) -> list[FailedEvent]:
        """Return the events that have failed too often."""
        return [
            FailedEvent(
                **self._name(),
                sequence=item.sequence,
                event_id=item.event.id,
                error=item.error,
                tries=item.tries,
            )
            for item in self._failed
            if item.event is not None
        ]

    def dealt_with(self) -> list[ShareEvent]:
        """Return the dead letters that were delivered again and handled."""
        return [ShareEvent(**self._name(), sequence=sequence) for sequence in self._dealt_with]

    def heard(self, said: AcknowledgedShare) -> None:
        """Take note that the engine has heard this."""
        self.said = said
        first = next(iter(self._undone.values()), None)
        if first is not None and first.sequence == said.trying and first.trial == said.trial:
            first.is_noted = True

    def stored(self, failed: FailedEvent) -> None:
        """Take note that an event stands in the dead letters: it is done with."""
        for item in [item for item in self._failed if item.sequence == failed.sequence]:
            self._failed.remove(item)
            self._forget(item)

    def settled(self, letter: ShareEvent) -> None:
        """Take note that a dead letter is gone."""
        if letter.sequence in self._dealt_with:
            self._dealt_with.remove(letter.sequence)

    # ----------------------------------------------------------------------------------------------------------------

    def _name(self) -> dict[str, int]:
        return {"partition": self.partition, "share": self.number, "epoch": self.epoch}

    def _items(self) -> list[Item]:
        return [*self._undone.values(), *(item for item in self._again.values() if item is not None)]

    def _in_hand(self, sequence: int) -> Item | None:
        for item in (self._undone.get(sequence), self._again.get(sequence)):
            if item is not None and item.in_hand:
                return item
        return None

    def _is_suspect(self, item: Item) -> bool:
        return self._suspected > 0 and item.sequence <= self._suspect_up_to

    def _forget(self, item: Item) -> None:
        if item.again:
            self._again.pop(item.sequence, None)
            return
        self._undone.pop(item.sequence, None)
        if item in self._waiting:
            self._waiting.remove(item)
            self._room.left += item.size
        if item in self._refused:
            self._refused.remove(item)
        item.in_hand = False
