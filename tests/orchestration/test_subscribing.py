"""Who works on which shares: evenly, in few partitions each, and with as few changes as possible."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from statewright import EventFilter
from statewright.protocol.requests import Trial
from statewright_worker.orchestration.subscribing import MemberRecord, ShareRecord, Subscribing, SubscriptionRecord

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def subscription(partitions: int = 8) -> SubscriptionRecord:
    subscribing = Subscribing(NOW)
    subscribing.ends = dict.fromkeys(range(partitions), 100)
    return subscribing.create("billing", EventFilter(), 5, {0: 17, 1: 1_000})


def join(record: SubscriptionRecord, number: int, seconds: float = 3) -> UUID:
    instance = UUID(int=number)
    joined = NOW + timedelta(seconds=number)
    record.members[f"member {number}"] = MemberRecord(f"member {number}", instance, joined, NOW, seconds)
    record.rebalance(NOW)
    return instance


def settle(record: SubscriptionRecord) -> int:
    """Let members give back what they are asked for, until nobody is; return how many shares have moved."""
    moved = 0
    while not record.is_settled:
        for member in record.members.values():
            if excess := record.excess_of(member.instance):
                excess[0].free()
                moved += 1
                record.rebalance(NOW)
                break
    return moved


def counts(record: SubscriptionRecord) -> list[int]:
    return [len(record.shares_of(member.instance)) for member in record.members.values()]


@pytest.mark.parametrize(("partitions", "shares"), [(1, 64), (3, 66), (8, 64), (64, 64), (100, 100)])
def test_there_are_at_least_64_shares(partitions: int, shares: int) -> None:
    assert len(subscription(partitions).shares) == shares


def test_a_new_one_begins_where_it_is_told_but_not_behind_the_end() -> None:
    shares = subscription().shares
    assert [shares[partition, 0].position for partition in range(3)] == [17, 100, 100]


@pytest.mark.parametrize("members", range(1, 10))
def test_members_have_the_same_number_of_shares_but_for_one(members: int) -> None:
    record = subscription()
    for number in range(members):
        join(record, number)
        settle(record)
    assert max(counts(record)) - min(counts(record)) <= 1
    assert sum(counts(record)) == 64
    # Most partitions are read by one member only.
    readers = {(share.partition, share.owner) for share in record.shares.values()}
    assert len(readers) <= 8 + 2 * members


def test_only_as_many_shares_move_as_must() -> None:
    record = subscription()
    join(record, 0)
    assert settle(record) == 0
    join(record, 1)
    assert settle(record) == 32
    join(record, 2)
    assert settle(record) == 21
    gone = record.members.pop("member 1")
    before = {share.name: share.owner for share in record.shares.values()}
    record.lose(gone.instance, None)
    record.rebalance(NOW)
    assert record.is_settled
    assert counts(record) == [32, 32]
    assert all(
        share.owner == before[share.name] for share in record.shares.values() if before[share.name] != UUID(int=1)
    )


def test_what_is_to_be_given_back_stays_the_same_while_it_is_given_back() -> None:
    record = subscription()
    first = join(record, 0)
    join(record, 1)
    asked = [share.name for share in record.excess_of(first)]
    record.shares[asked[0]].free()
    record.rebalance(NOW)
    assert [share.name for share in record.excess_of(first)] == asked[1:]


def test_a_share_that_changes_hands_has_another_epoch() -> None:
    record = subscription()
    first = join(record, 0)
    epochs = {share.epoch for share in record.shares.values()}
    record.lose(first, None)
    record.rebalance(NOW)
    assert epochs.isdisjoint(share.epoch for share in record.shares.values())


def test_a_generation_is_made_of_the_clock_and_rises_even_when_the_clock_does_not() -> None:
    record = subscription()
    first = record.generation
    assert first == 1_893_456_000_000_000
    assert record.step(NOW) == first + 1
    assert record.step(NOW - timedelta(days=1)) == first + 2
    assert record.step(NOW + timedelta(seconds=1)) == first + 1_000_000


def test_nobody_is_dead_when_nobody_was_heard_of() -> None:
    record = subscription()
    join(record, 0)
    join(record, 1, seconds=5)
    soon, later = NOW + timedelta(seconds=4), NOW + timedelta(seconds=10)
    assert record.spared(soon) == []
    assert [member.name for member in record.dead(soon)] == ["member 0"]
    assert len(record.spared(later)) == 2
    assert record.dead(later) == []


def test_a_death_is_counted_for_what_was_tried_alone() -> None:
    def after(trial: Trial) -> tuple[int, int, int]:
        share = ShareRecord(0, 0, 10, trying=11, tries=1, trial=trial)
        share.survive(50)
        share.free()
        return share.tries, share.trial, share.suspect_up_to

    assert after(Trial.NONE) == (1, Trial.NONE, 50)
    assert after(Trial.WITH_OTHERS) == (1, Trial.AWAITED, 50)
    assert after(Trial.AWAITED) == (1, Trial.AWAITED, 50)
    assert after(Trial.ALONE) == (2, Trial.AWAITED, 50)


def test_what_a_member_on_trial_gives_back_is_not_counted() -> None:
    def given_back(trial: Trial) -> int:
        share = ShareRecord(0, 0, 10, trying=11, tries=1, trial=trial)
        share.free()
        assert share.tries == 1
        return share.trial

    assert given_back(Trial.WITH_OTHERS) == Trial.NONE
    assert given_back(Trial.ALONE) == Trial.AWAITED


def test_one_that_is_reset_drops_what_was_said_of_it() -> None:
    record = subscription()
    join(record, 0)
    record.shares[0, 0].trying, record.shares[0, 0].tries = 18, 2
    record.reset({0: 3}, {0: 100}, NOW)
    share: ShareRecord = record.shares[0, 0]
    assert tried(share) == (3, None, 0)
    assert record.shares[1, 0].position == 100


def tried(share: ShareRecord) -> tuple[int, int | None, int]:
    return share.position, share.trying, share.tries


def test_the_lag_is_that_of_the_hindmost_share_of_each_partition() -> None:
    record = subscription(2)
    record.shares[0, 3].position = 7
    record.shares[0, 4].position = 90
    told = record.status({0: 100, 1: 130})
    assert told.lag == 93 + 30
    assert told.positions == {0: 7, 1: 100}


def test_one_that_is_removed_and_made_anew_in_a_batch_has_nothing_of_the_old_one() -> None:
    subscribing = Subscribing(NOW)
    subscribing.ends = {0: 5}
    record = subscription(1)
    subscribing.known["billing"] = record
    join(record, 0)
    subscribing.remove(record)
    assert subscribing.removed == {"billing"}
    subscribing.create("billing", EventFilter(), 5, {})
    assert (subscribing.removed, subscribing.reborn) == (set(), {"billing"})
    assert subscribing.members_gone == {("billing", "member 0")}
    assert subscribing.known["billing"].members == {}
