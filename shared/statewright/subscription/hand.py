"""What a member of a named subscription has in hand: its shares, what may be handed out of them, and when. No IO."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from itertools import count
from typing import Any, Final

from statewright.errors import EraBegan, EventsMissed
from statewright.events import Event
from statewright.ids import share_of, shares_per_partition
from statewright.protocol.replies import OwnedShare
from statewright.protocol.requests import MAX_FAILED_AT_ONCE, ShareEvent, ShareReference, SyncSubscription, Trial
from statewright.subscription.filters import Sieve
from statewright.subscription.shares import CLEARED_SECONDS, Item, Room, Share
from statewright.subscription.told import Stretch, Told, event_of, tree_of, wanted

WAITING_BYTES: Final = 32 * 1024 * 1024
"""How many bytes of events wait to be handed out, at most, about."""

ShareName = tuple[int, int]


class Hand:
    """The shares of a member. Times are those of the event loop's clock."""

    def __init__(self, sieve: Sieve, partitions: int, most: int, hurry: Callable[[], object]) -> None:
        """Hand out what the sieve lets through, `most` events at a time; `hurry` is called when the engine must hear of
        something soon."""
        self.shares: dict[ShareName, Share] = {}
        self.errors: deque[Exception] = deque()
        """What is to be raised at once, in no share's order."""
        self.in_hand = 0
        """How many events were handed out, of which nothing was said since."""
        self._sieve = sieve
        self._partitions = partitions
        self._shares_each = shares_per_partition(partitions)
        self._most = most
        self._hurry = hurry
        self._room = Room(WAITING_BYTES)
        self._ready: deque[Share] = deque()
        """Shares that may have something to hand out."""
        self._due: list[tuple[float, int, Share]] = []
        """When refused events are to be tried again."""
        self._numbers = count()
        self._handed_out_at = 0.0
        """When something was handed out last."""
        self._on_trial: deque[Share] = deque()
        """Shares whose next events are to be tried alone."""
        self._alone: tuple[Share, Item] | None = None
        """The event that is tried alone."""
        self._told: dict[tuple[int, int], int] = {}
        """What has been raised, of each partition: up to which place."""
        self._raised: tuple[Share, Item] | None = None
        """What was raised last, which is done with when the next event is asked for."""

    # -- handing out -------------------------------------------------------------------------------------------------

    def next(self, now: float) -> Event | None:
        """Return the next event that may be handed out now, None without one. Raises what stands in place of some."""
        if self._raised is not None:
            share, raised = self._raised
            self._raised = None
            self._acknowledge(share, raised.sequence)
        while self._due and self._due[0][0] <= now:
            self._look_at(heappop(self._due)[2])
        if self._alone is not None or self._on_trial:
            event = self._hand_out_alone(now)
            if event is not None or self._alone is not None or self._on_trial:
                return event
        while self._ready and not self.is_full:
            share = self._ready[0]
            item = share.next(now) if self._is_ours(share) else None
            if item is None:
                self._ready.popleft()
                share.is_ready = False
                self._await(share)
                continue
            self._ready.rotate(-1)
            if (event := self._handed_out(share, item, now)) is not None:
                return event
        return None

    def _handed_out(self, share: Share, item: Item, now: float) -> Event | None:
        """Take note that something is handed out, and return it. Raises it, where it stands in place of events."""
        what = item.what
        event = event_of(what) if isinstance(what, bytes | Event) else None
        share.hand_out(item, event, now)
        self.in_hand += 1
        self._handed_out_at = now
        if isinstance(what, EventsMissed | EraBegan):
            self._raise(share, item, what)
        return event

    def _hand_out_alone(self, now: float) -> Event | None:
        """Return the next event over which a member may have died, once nothing else is in hand, None without one.

        Nothing else is handed out until it is done with, or has been in hand for so long that it is not the one.
        """
        if self._alone is not None:
            share, item = self._alone
            if self._is_ours(share) and item.in_hand and now - item.handed_out < CLEARED_SECONDS:
                return None
            item.trial, self._alone = Trial.NONE, None
        while self._on_trial:
            share = self._on_trial[0]
            if not self._is_ours(share) or not share.awaits_trial:
                self._on_trial.popleft()
                self._look_at(share)
                continue
            if self.in_hand and now - self._handed_out_at < CLEARED_SECONDS:
                return None
            alone = share.next_alone()
            if alone is not None:
                event = self._handed_out(share, alone, now)
                self._alone = (share, alone)
                return event
            if share.awaits_trial:
                self._hurry()
                return None
        return None

    def _raise(self, share: Share, item: Item, what: EventsMissed | EraBegan) -> None:
        """Raise what stands in place of some events, unless another share of the partition has met it before."""
        key = share.partition, what.era if isinstance(what, EraBegan) else -1
        if self._told.get(key, 0) >= item.sequence:
            self._acknowledge(share, item.sequence)
            return
        self._told[key] = item.sequence
        self._raised = (share, item)
        raise what

    def _await(self, share: Share) -> None:
        """See that a share is looked at again when what it waits for has come."""
        if share.wants_word:
            self._hurry()
        if share.awaits_trial and share not in self._on_trial:
            self._on_trial.append(share)
        if share.due is not None:
            heappush(self._due, (share.due, next(self._numbers), share))

    def _look_at(self, share: Share) -> None:
        if not share.is_ready:
            share.is_ready = True
            self._ready.append(share)

    def acknowledge(self, event: Event) -> bool:
        """Take note that an event was handled; return whether it was in hand."""
        return self._acknowledge(self._share_of(event), event.sequence)

    def refuse(self, event: Event, error: str, now: float) -> bool:
        """Take note that an event has failed; return whether it was in hand."""
        share = self._share_of(event)
        if share is None or not share.refuse(event.sequence, error, now):
            return False
        self.in_hand -= 1
        self._look_at(share)
        return True

    def look_again(self) -> None:
        """Look at every share for the next event: time may have cleared some."""
        for share in self.shares.values():
            self._look_at(share)

    @property
    def is_full(self) -> bool:
        """Whether no more may be handed out until something is said of what was."""
        return self.in_hand >= self._most

    @property
    def is_idle(self) -> bool:
        """Whether nothing is handed out or waits, and every share is kept."""
        return all(share.is_idle for share in self.shares.values())

    @property
    def due(self) -> float | None:
        """When a refused event is to be tried again, by the event loop's clock."""
        return self._due[0][0] if self._due else None

    def _acknowledge(self, share: Share | None, sequence: int) -> bool:
        if share is None or not share.acknowledge(sequence):
            return False
        self.in_hand -= 1
        self._look_at(share)
        if share.leaves_at is not None and not share.in_hand:
            self._hurry()
        return True

    def _share_of(self, event: Event) -> Share | None:
        number = share_of(event.tree, self._partitions, self._shares_each)
        return self.shares.get((event.partition, number))

    def _is_ours(self, share: Share) -> bool:
        return self.shares.get((share.partition, share.number)) is share

    # -- taking what was read ----------------------------------------------------------------------------------------

    def take(self, stretch: Stretch) -> None:
        """Give what was read to the shares that it belongs to, as far as they have room for it."""
        taking = {
            number: share
            for (partition, number), share in self.shares.items()
            if partition == stretch.partition and share.has_room and share.read >= stretch.after
        }
        for told in stretch.told:
            what = told.what
            if isinstance(what, EventsMissed) and told.sequence < what.first:
                self._go_back(stretch.partition, told.sequence, what)
            elif isinstance(what, EventsMissed | EraBegan):
                for number, share in list(taking.items()):
                    self._give(taking, number, share, told)
            elif wanted(told, self._sieve):
                number = share_of(tree_of(what), self._partitions, self._shares_each)
                if number in taking:
                    self._give(taking, number, taking[number], told)
        for share in taking.values():
            share.read = max(share.read, stretch.up_to)

    def _give(self, taking: dict[int, Share], number: int, share: Share, told: Told) -> None:
        if told.sequence <= share.read:
            return
        if share.has_room:
            share.take(told.sequence, told.what)
            self._look_at(share)
        else:
            # It reads on from here when it has room again.
            share.read = told.sequence - 1
            del taking[number]

    def _go_back(self, partition: int, up_to: int, missed: EventsMissed) -> None:
        for share in self.shares.values():
            if share.partition == partition:
                before = share.in_hand
                share.go_back(up_to)
                self.in_hand -= before - share.in_hand
        self._told = {key: told for key, told in self._told.items() if key[0] != partition}
        self.errors.append(missed)

    # -- what the engine says, and hears -----------------------------------------------------------------------------

    def change(self, shares: Iterable[OwnedShare], max_tries: int) -> tuple[int, int]:
        """Work on these shares and no others; return how many were lost, and how many events of them were in hand."""
        owned = {(told.partition, told.share): told for told in shares}
        lost = [share for name, share in self.shares.items() if name not in owned or owned[name].epoch != share.epoch]
        in_hand = sum(share.in_hand for share in lost)
        for share in lost:
            self._drop(share)
        for name, told in owned.items():
            if name not in self.shares:
                self.shares[name] = Share(told, max_tries, self._room)
        self.look_again()
        return len(lost), in_hand

    def give_back(self, asked: Iterable[ShareReference], by: float) -> None:
        """Take nothing new of these shares, and keep all others; give them back at that time at the latest."""
        names = {(given.partition, given.share) for given in asked}
        for name, share in self.shares.items():
            if name not in names:
                share.leaves_at = None
            elif share.leaves_at is None:
                share.leaves_at = by
            if share.leaves_at is not None and not share.in_hand:
                self._hurry()
        self.look_again()

    def deliver_again(self, letters: Iterable[ShareEvent]) -> None:
        """Take note of dead letters that are to be delivered again."""
        for letter in letters:
            if (share := self._meant(letter)) is not None:
                share.deliver_again(letter.sequence)

    def found(self, share: Share, sequence: int, event: Event | None) -> None:
        """Take the event of such a dead letter, None where it no longer exists."""
        share.found(sequence, event)
        self._look_at(share)

    def word(self, now: float) -> dict[str, Any]:
        """Return what the engine has not heard yet of the shares, as fields of a member's word."""
        shares = list(self.shares.values())
        acknowledged = [(share, share.acknowledged()) for share in shares]
        return {
            "acknowledged": tuple(said for share, said in acknowledged if said != share.said),
            "given_back": tuple(
                share.reference
                for share in shares
                if share.leaves_at is not None and (not share.in_hand or share.leaves_at <= now)
            ),
            "failed": _first(share.failed() for share in shares),
            "dealt_with": _first(share.dealt_with() for share in shares),
        }

    def _drop(self, share: Share) -> None:
        if self._is_ours(share):
            self.in_hand -= share.in_hand
            share.go_back(-1)
            del self.shares[share.partition, share.number]

    def _meant(self, said: ShareReference) -> Share | None:
        """Return the share that is meant, if it is still the member's in that epoch."""
        share = self.shares.get((said.partition, said.share))
        return share if share is not None and share.epoch == said.epoch else None

    def take_note_of(self, word: SyncSubscription) -> None:
        """Take note that the engine has heard this."""
        for said in word.acknowledged:
            if (share := self._meant(said)) is not None:
                share.heard(said)
        for failed in word.failed:
            if (share := self._meant(failed)) is not None:
                share.stored(failed)
        for letter in word.dealt_with:
            if (share := self._meant(letter)) is not None:
                share.settled(letter)
        for given in word.given_back:
            if (share := self._meant(given)) is not None:
                self._drop(share)


def _first(some: Iterable[Sequence[Any]]) -> tuple[Any, ...]:
    """Return as many of what shares have to say as a message takes; the next one says the rest."""
    every = [one for said in some for one in said]
    return tuple(every[:MAX_FAILED_AT_ONCE])
