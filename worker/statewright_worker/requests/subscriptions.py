"""Named subscriptions: made, read, reset and removed, and the word of their members."""

from typing import TypeVar

from statewright.ids import partition_of_subscription
from statewright.protocol.replies import (
    ErrorCode,
    ErrorReply,
    Reply,
    SettledReply,
    SubscriptionReply,
    SubscriptionsReply,
    SyncedReply,
)
from statewright.protocol.requests import (
    OpenSubscription,
    PartitionPosition,
    ReadSubscription,
    ReadSubscriptions,
    RemoveSubscription,
    ResetSubscription,
    SettleDeadLetters,
    SubscriptionRequest,
    SyncSubscription,
)
from statewright_worker.facts.base import PAGE_BYTES
from statewright_worker.facts.batch import Asked
from statewright_worker.orchestration.engine import Engine
from statewright_worker.orchestration.subscribing import MemberRecord, SubscriptionRecord, reference
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.requests.base import InBatch, Incoming, Kind, refusal

DEFAULT_TRIES = 5
MAX_MEMBERS = 256

AboutSubscription = TypeVar("AboutSubscription", bound=SubscriptionRequest)


class OfSubscription(Kind[AboutSubscription]):
    """A kind of request about one named subscription: it belongs to the partition of the name."""

    answer_bytes = PAGE_BYTES

    def place(self, request: AboutSubscription, partitions: int) -> tuple[str, int]:
        return "name", partition_of_subscription(request.name, partitions)

    def ask(self, request: AboutSubscription, asked: Asked, engine: Engine) -> None:
        asked.subscriptions.whole.add(request.name)


class OpenSubscriptionKind(OfSubscription[OpenSubscription]):
    """Makes a named subscription, unless there is one."""

    changes = True
    keeps_answer = True

    async def carry_out(self, request: OpenSubscription, incoming: Incoming, batch: InBatch) -> Reply:
        subscribing = batch.work.subscribing
        record = subscribing.known.get(request.name)
        if record is None:
            positions = _by_partition(request.positions)
            record = subscribing.create(request.name, request.filter, request.max_tries or DEFAULT_TRIES, positions)
        return _other_terms(record, request) or _summary(record, batch.work)


class ReadSubscriptionKind(OfSubscription[ReadSubscription]):
    """Reads a named subscription."""

    async def carry_out(self, request: ReadSubscription, incoming: Incoming, batch: InBatch) -> Reply:
        record = batch.work.subscribing.known.get(request.name)
        return SubscriptionReply(subscription=None if record is None else record.status(batch.work.subscribing.ends))


class RemoveSubscriptionKind(OfSubscription[RemoveSubscription]):
    """Removes a named subscription; its members are told with their next word."""

    changes = True
    keeps_answer = True

    async def carry_out(self, request: RemoveSubscription, incoming: Incoming, batch: InBatch) -> Reply:
        record = batch.work.subscribing.known.get(request.name)
        told = _summary(record, batch.work)
        if record is not None:
            batch.work.subscribing.remove(record)
        return told


class ResetSubscriptionKind(OfSubscription[ResetSubscription]):
    """Lets a named subscription go on elsewhere; its members drop what they have begun of the partitions."""

    changes = True
    keeps_answer = True

    async def carry_out(self, request: ResetSubscription, incoming: Incoming, batch: InBatch) -> Reply:
        record = batch.work.subscribing.known.get(request.name)
        if record is None:
            return _unknown(request.name)
        subscribing = batch.work.subscribing
        record.reset(_by_partition(request.positions), subscribing.ends, batch.work.now)
        subscribing.change(record, shares=True)
        return _summary(record, batch.work)


class SettleDeadLettersKind(OfSubscription[SettleDeadLetters]):
    """Lets dead letters be delivered again, by whoever has their shares, or drops them."""

    changes = True
    keeps_answer = True

    def ask(self, request: SettleDeadLetters, asked: Asked, engine: Engine) -> None:
        super().ask(request, asked, engine)
        asked.subscriptions.settling.add(request.name)

    async def carry_out(self, request: SettleDeadLetters, incoming: Incoming, batch: InBatch) -> Reply:
        subscribing = batch.work.subscribing
        record = subscribing.known.get(request.name)
        if record is None:
            return _unknown(request.name)
        wanted = None if request.event_ids is None else set(request.event_ids)
        letters = [letter for letter in record.dead_letters if wanted is None or letter.event_id in wanted]
        for letter in letters:
            subscribing.settle(record, letter, again=request.deliver_again)
        if letters:
            record.step(batch.work.now)
            subscribing.change(record)
        return SettledReply(count=len(letters))


class ReadSubscriptionsKind(Kind[ReadSubscriptions]):
    """Reads a page of all named subscriptions, as of the beginning of the batch."""

    answer_bytes = PAGE_BYTES

    def place(self, request: ReadSubscriptions, partitions: int) -> tuple[str, int]:
        return "partition", request.partition

    def ask(self, request: ReadSubscriptions, asked: Asked, engine: Engine) -> None:
        asked.subscriptions.pages.add(request.after)

    async def carry_out(self, request: ReadSubscriptions, incoming: Incoming, batch: InBatch) -> Reply:
        page = batch.work.subscribing.pages[request.after]
        return SubscriptionsReply(subscriptions=tuple(page.subscriptions), next=page.next)


class SyncSubscriptionKind(OfSubscription[SyncSubscription]):
    """Takes a member's word, and tells it what to do. The ledger keeps nothing of it: said twice, it counts once.

    What it says of its shares was written when the batch was loaded.
    """

    def ask(self, request: SyncSubscription, asked: Asked, engine: Engine) -> None:
        asked.subscriptions.syncs.setdefault(request.name, []).append(request)

    async def carry_out(self, request: SyncSubscription, incoming: Incoming, batch: InBatch) -> Reply:
        work = batch.work
        record = work.subscribing.known.get(request.name)
        if record is None:
            return _unknown(request.name)
        member = record.members.get(request.member)
        if member is not None and member.instance != request.instance and not request.joins:
            return SyncedReply(generation=record.generation, is_replaced=True)
        if member is None and len(record.members) >= MAX_MEMBERS:
            return refusal(
                ErrorCode.SUBSCRIPTION_CONFLICT,
                "member",
                f"member: the subscription {record.name!r} has {MAX_MEMBERS} members, and takes no more",
            )
        if request.leaves:
            _leave(record, request, work)
            return SyncedReply(generation=record.generation)
        _hear(record, request, work)
        _bury(record, work)
        _take_back(record, request)
        if record.shares:
            before = record.generation, record.is_settled
            record.rebalance(work.now)
            if (record.generation, record.is_settled) != before:
                work.subscribing.change(record, shares=record.generation != before[0])
        return _what_to_do(record, request)


def _hear(record: SubscriptionRecord, request: SyncSubscription, work: UnitOfWork) -> None:
    for spared in record.spared(work.now):
        work.subscribing.hear(record, spared)
    member = record.members.get(request.member)
    if member is not None and member.instance != request.instance:
        # It was started anew, and so did not end in order.
        _end(record, member, work)
        member = None
    if member is None:
        member = MemberRecord(request.member, request.instance, work.now, work.now, request.seconds)
        work.subscribing.change(record)
    member.seen, member.seconds = work.now, request.seconds
    work.subscribing.hear(record, member)


def _bury(record: SubscriptionRecord, work: UnitOfWork) -> None:
    for member in record.dead(work.now):
        # A request of the same batch may be its word, which came as late as this one.
        if member.instance not in work.subscribing.speaking:
            _end(record, member, work)
            work.subscribing.let_go(record, member)
            work.subscribing.change(record)


def _end(record: SubscriptionRecord, member: MemberRecord, work: UnitOfWork) -> None:
    work.subscribing.put_back(record, member.instance)
    record.lose(member.instance, work.subscribing.ends)


def _leave(record: SubscriptionRecord, request: SyncSubscription, work: UnitOfWork) -> None:
    member = record.members.get(request.member)
    if member is not None:
        record.lose(member.instance, None)
        work.subscribing.let_go(record, member)
        record.rebalance(work.now)
        work.subscribing.change(record, shares=True)


def _take_back(record: SubscriptionRecord, request: SyncSubscription) -> None:
    for given in request.given_back:
        share = record.shares.get((given.partition, given.share))
        if share is not None and share.owner == request.instance and share.epoch == given.epoch:
            share.free()


def _what_to_do(record: SubscriptionRecord, request: SyncSubscription) -> SyncedReply:
    is_news = record.generation != request.generation
    excess = [] if record.is_settled else record.excess_of(request.instance)
    return SyncedReply(
        generation=record.generation,
        is_settled=record.is_settled,
        shares=record.owned_by(request.instance) if is_news else None,
        give_back=tuple(map(reference, excess)),
        again=record.again_for(request.instance) if is_news else (),
    )


def _other_terms(record: SubscriptionRecord, request: OpenSubscription) -> ErrorReply | None:
    if record.filter != request.filter:
        ours, theirs = (wanted.model_dump_json(exclude_none=True) for wanted in (record.filter, request.filter))
        return _conflict(record.name, "filter", ours, theirs)
    if request.max_tries not in (None, record.max_tries):
        return _conflict(record.name, "max_tries", str(record.max_tries), str(request.max_tries))
    return None


def _conflict(name: str, field: str, ours: str, theirs: str) -> ErrorReply:
    return refusal(
        ErrorCode.SUBSCRIPTION_CONFLICT,
        field,
        f"{field}: the subscription {name!r} exists with {ours[:1_000]}, and was asked for with {theirs[:1_000]};"
        " ask for the same, take another name, or remove the subscription first",
    )


def _unknown(name: str) -> ErrorReply:
    return refusal(ErrorCode.SUBSCRIPTION_NOT_FOUND, "name", f"name: there is no subscription {name!r}")


def _summary(record: SubscriptionRecord | None, work: UnitOfWork) -> SubscriptionReply:
    # The ledger keeps it, so it tells no more than a list does.
    return SubscriptionReply(subscription=None if record is None else record.summary(work.subscribing.ends))


def _by_partition(positions: tuple[PartitionPosition, ...]) -> dict[int, int]:
    return {one.partition: one.position for one in positions}
