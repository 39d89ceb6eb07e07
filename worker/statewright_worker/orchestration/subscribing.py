"""Named subscriptions: who are their members, and which shares of the events each of them works on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

from statewright.ids import shares_per_partition
from statewright.protocol.replies import DeliveredAgain, OwnedShare
from statewright.protocol.requests import SILENT_SECONDS, ShareReference, Trial
from statewright.subscription.filters import EventFilter
from statewright.subscription.status import DeadLetter, MemberStatus, ShareStatus, SubscriptionStatus

ShareName = tuple[int, int]
"""A share: its partition, and its number within that."""

LETTERS_TOLD: Final = 100
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(slots=True)
class ShareRecord:
    """A share of a partition's events: how far it is, and whose it is."""

    partition: int
    share: int
    position: int
    owner: UUID | None = None
    """The instance of the member that works on it."""
    epoch: int = 0
    """The generation in which it was given to its owner: what is said of it in another one does not count."""
    trying: int | None = None
    """The next event, if it was tried in vain, or is suspected."""
    tries: int = 0
    trial: int = Trial.NONE
    suspect_up_to: int = 0
    """A member died over one of the next events, none of which is above this number."""

    @property
    def name(self) -> ShareName:
        """Which one it is."""
        return self.partition, self.share

    def free(self) -> None:
        """Take it from its owner."""
        self.owner = None
        if self.trial == Trial.ALONE:
            self.trial = Trial.AWAITED
        elif self.trial == Trial.WITH_OTHERS:
            self.trial = Trial.NONE

    def survive(self, end: int) -> None:
        """Take note that its owner has died, when the partition ended with this number.

        Perhaps it died over one of the next events. So the next owner says which it is about to try.
        """
        if self.trial == Trial.ALONE:
            self.tries += 1
        elif self.trial == Trial.WITH_OTHERS:
            self.trial = Trial.AWAITED
        self.suspect_up_to = max(self.suspect_up_to, end)


@dataclass(slots=True)
class MemberRecord:
    """A member, and when it was last heard of."""

    name: str
    instance: UUID
    joined: datetime
    seen: datetime
    seconds: float
    """After how long without a word it counts as dead."""

    @property
    def ends(self) -> datetime:
        """When that is."""
        return self.seen + timedelta(seconds=self.seconds)


class AgainRecord(NamedTuple):
    """A dead letter that is to be delivered again."""

    partition: int
    share: int
    sequence: int


@dataclass(slots=True)
class SubscriptionRecord:
    """A named subscription. Its shares are at hand only where something may change about them."""

    name: str
    filter: EventFilter
    max_tries: int
    created: datetime
    generation: int
    """Rises with every change that members must hear of. It is made of the clock, so that a database that goes back in
    time does not repeat one."""
    is_settled: bool = True
    """Whether every share is where it belongs."""
    members: dict[str, MemberRecord] = field(default_factory=dict)
    shares: dict[ShareName, ShareRecord] = field(default_factory=dict)
    again: list[AgainRecord] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    dead_letter_count: int = 0

    def step(self, now: datetime) -> int:
        """Begin another generation, and return its number."""
        self.generation = max(self.generation + 1, (now - _EPOCH) // _MICROSECOND)
        return self.generation

    def spared(self, now: datetime) -> list[MemberRecord]:
        """Return the members that get another chance: all of them, when nobody was heard of for so long that each would
        be dead. The engine itself may have been away."""
        spared = list(self.members.values())
        if any(member.ends >= now for member in spared):
            return []
        for member in spared:
            member.seen, member.seconds = now, SILENT_SECONDS
        return spared

    def dead(self, now: datetime) -> list[MemberRecord]:
        """Return the members that were not heard of for too long."""
        return [member for member in self.members.values() if member.ends < now]

    def lose(self, instance: UUID, ends: dict[int, int] | None) -> None:
        """Take all shares from a member: one that has died, where the `ends` of the partitions are given, else one that
        has given them back."""
        for share in self.shares_of(instance):
            if ends is not None:
                share.survive(ends.get(share.partition, 0))
            share.free()

    def shares_of(self, instance: UUID) -> list[ShareRecord]:
        """Return the shares of a member, in order."""
        return [self.shares[name] for name in sorted(self.shares) if self.shares[name].owner == instance]

    def rebalance(self, now: datetime) -> None:
        """Give every free share to a member that has too few, so that few partitions are read by several."""
        quotas = self._quotas()
        free = [share for share in self.shares.values() if share.owner is None]
        owned = {instance: self.shares_of(instance) for instance in quotas}
        epoch = None
        for share in sorted(free, key=lambda share: share.name):
            needy = [instance for instance, quota in quotas.items() if len(owned[instance]) < quota]
            if not needy:
                break
            epoch = epoch or self.step(now)
            to = max(needy, key=lambda instance: self._fit(share, owned[instance], quotas[instance]))
            share.owner, share.epoch = to, epoch
            owned[to].append(share)
        self.is_settled = not self.members or not any(
            len(owned[instance]) > quota for instance, quota in quotas.items()
        )

    def excess_of(self, instance: UUID) -> list[ShareRecord]:
        """Return the shares that a member is to give back. While it gives some back, the others stay the same."""
        owned = self.shares_of(instance)
        return owned[self._quotas().get(instance, 0) :]

    def owned_by(self, instance: UUID) -> tuple[OwnedShare, ...]:
        """Return the shares of a member as it is told them."""
        return tuple(
            OwnedShare(
                partition=share.partition,
                share=share.share,
                epoch=share.epoch,
                position=share.position,
                trying=share.trying,
                tries=share.tries,
                trial=Trial(share.trial),
                suspect_up_to=share.suspect_up_to if share.suspect_up_to > share.position else 0,
            )
            for share in self.shares_of(instance)
        )

    def again_for(self, instance: UUID) -> tuple[DeliveredAgain, ...]:
        """Return the dead letters that a member is to deliver again."""
        epochs = {share.name: share.epoch for share in self.shares_of(instance)}
        return tuple(
            DeliveredAgain(partition=one.partition, share=one.share, epoch=epoch, sequence=one.sequence)
            for one in self.again
            if (epoch := epochs.get((one.partition, one.share))) is not None
        )

    def reset(self, positions: dict[int, int], ends: dict[int, int], now: datetime) -> None:
        """Let the shares of these partitions go on behind other positions; what was said of them counts no more."""
        epoch = self.step(now)
        for share in self.shares.values():
            if share.partition in positions:
                share.position = min(positions[share.partition], ends[share.partition])
                share.epoch = epoch
                share.trying, share.tries, share.trial, share.suspect_up_to = None, 0, Trial.NONE, 0

    def _quotas(self) -> dict[UUID, int]:
        """Return how many shares each member is to have. Those that have most keep one more than the others."""
        if not self.members:
            return {}
        at_least, more = divmod(len(self.shares), len(self.members))
        in_order = sorted(self.members.values(), key=lambda member: (member.joined, member.name))
        have = {member.instance: len(self.shares_of(member.instance)) for member in in_order}
        in_order.sort(key=lambda member: -have[member.instance])
        return {member.instance: at_least + (rank < more) for rank, member in enumerate(in_order)}

    @staticmethod
    def _fit(share: ShareRecord, owned: Iterable[ShareRecord], quota: int) -> tuple[int, int]:
        others = list(owned)
        return sum(other.partition == share.partition for other in others), quota - len(others)

    def summary(self, ends: dict[int, int]) -> SubscriptionStatus:
        """Return the subscription as a list of them tells it, when partitions end with these numbers."""
        behind: dict[int, int] = {}
        for share in self.shares.values():
            lag = max(ends.get(share.partition, 0) - share.position, 0)
            behind[share.partition] = max(lag, behind.get(share.partition, 0))
        return SubscriptionStatus(
            name=self.name,
            filter=self.filter,
            max_tries=self.max_tries,
            created=self.created,
            lag=sum(behind.values()),
            member_count=len(self.members),
            dead_letter_count=self.dead_letter_count,
        )

    def status(self, ends: dict[int, int]) -> SubscriptionStatus:
        """Return the subscription as it is told to whoever reads it."""
        names = {member.instance: member.name for member in self.members.values()}
        return self.summary(ends).replaced(
            shares=tuple(
                ShareStatus(
                    partition=share.partition,
                    share=share.share,
                    position=share.position,
                    lag=max(ends.get(share.partition, 0) - share.position, 0),
                    member=None if share.owner is None else names.get(share.owner),
                    tries=share.tries,
                )
                for _, share in sorted(self.shares.items())
            ),
            members=tuple(
                MemberStatus(
                    name=member.name,
                    joined=member.joined,
                    seen=member.seen,
                    shares=len(self.shares_of(member.instance)),
                )
                for _, member in sorted(self.members.items())
            ),
            dead_letters=tuple(self.dead_letters[:LETTERS_TOLD]),
        )


class SubscriptionPage(NamedTuple):
    """Named subscriptions in order, and where to read on; None when there are no more."""

    subscriptions: Sequence[SubscriptionStatus]
    next: str | None


class Subscribing:
    """The named subscriptions of a batch, and what it changes about them. A part of the unit of work."""

    def __init__(self, now: datetime) -> None:
        """Take the batch's clock."""
        self._now = now
        self.speaking: set[UUID] = set()
        """Instances of members whose word is among the batch's requests."""
        self.known: dict[str, SubscriptionRecord] = {}
        self.ends: dict[int, int] = {}
        """With which number each partition ends, where a batch needs that of all of them."""
        self.pages: dict[str, SubscriptionPage] = {}
        self.has_changed = False
        self.changed: set[str] = set()
        """Subscriptions that are new, or whose own row changes."""
        self.removed: set[str] = set()
        self.reborn: set[str] = set()
        """Those that were removed and made anew: their rows stay, with other values, and no dead letter stays."""
        self._former: dict[str, list[str]] = {}
        """Who were members of the removed ones."""
        self.members_heard: set[tuple[str, str]] = set()
        self.members_gone: set[tuple[str, str]] = set()
        self.shares_changed: set[str] = set()
        """Subscriptions whose shares are written."""
        self.letters_settled: dict[tuple[str, int, int], bool] = {}
        """Dead letters by subscription, partition and number, and whether they are delivered again, or dropped."""
        self.letters_put_back: set[tuple[str, int, int]] = set()
        """Those that are not delivered again after all."""

    def create(self, name: str, wanted: EventFilter, max_tries: int, positions: dict[int, int]) -> SubscriptionRecord:
        """Make a subscription; partitions without a position begin where they end now."""
        record = SubscriptionRecord(name, wanted, max_tries, self._now, 0)
        record.step(self._now)
        each = shares_per_partition(len(self.ends))
        for partition in wanted.partitions(len(self.ends)):
            end = self.ends[partition]
            for share in range(each):
                position = min(positions.get(partition, end), end)
                record.shares[partition, share] = ShareRecord(partition, share, position)
        self.known[name] = record
        if name in self.removed:
            self.removed.discard(name)
            self.reborn.add(name)
            self.members_gone |= {(name, member) for member in self._former.pop(name)}
        self.change(record, shares=True)
        return record

    def remove(self, record: SubscriptionRecord) -> None:
        """Remove the subscription with everything of it."""
        del self.known[record.name]
        self._former[record.name] = [*record.members]
        for named in (self.changed, self.shares_changed, self.reborn):
            named.discard(record.name)
        self.members_heard = {heard for heard in self.members_heard if heard[0] != record.name}
        self.members_gone = {gone for gone in self.members_gone if gone[0] != record.name}
        self.removed.add(record.name)
        self.has_changed = True

    def change(self, record: SubscriptionRecord, *, shares: bool = False) -> None:
        """Take note that the subscription's row is to be written, and its shares."""
        self.has_changed = True
        self.changed.add(record.name)
        if shares:
            self.shares_changed.add(record.name)

    def hear(self, record: SubscriptionRecord, member: MemberRecord) -> None:
        """Take note that a member lives."""
        self.has_changed = True
        record.members[member.name] = member
        self.members_heard.add((record.name, member.name))
        self.members_gone.discard((record.name, member.name))

    def let_go(self, record: SubscriptionRecord, member: MemberRecord) -> None:
        """Take note that a member is gone. Its shares must be free already."""
        self.has_changed = True
        del record.members[member.name]
        self.members_heard.discard((record.name, member.name))
        self.members_gone.add((record.name, member.name))

    def settle(self, record: SubscriptionRecord, letter: DeadLetter, *, again: bool) -> None:
        """Let a dead letter be delivered again, or drop it."""
        self.has_changed = True
        self.letters_settled[record.name, letter.partition, letter.sequence] = again
        if again:
            record.again.append(AgainRecord(letter.partition, letter.share, letter.sequence))

    def put_back(self, record: SubscriptionRecord, instance: UUID) -> None:
        """Let no dead letter be delivered again by the successors of a member that has died: it may be the one."""
        shares = {share.name for share in record.shares_of(instance)}
        back = [one for one in record.again if (one.partition, one.share) in shares]
        self.letters_put_back |= {(record.name, one.partition, one.sequence) for one in back}
        record.again = [one for one in record.again if one not in back]


def reference(share: ShareRecord) -> ShareReference:
    """Return the share as its owner knows it."""
    return ShareReference(partition=share.partition, share=share.share, epoch=share.epoch)
