"""A share in a member's hand: in order, up to where everything is done, and never an innocent event passed over."""

from datetime import UTC, datetime
from uuid import UUID

from statewright import StateType
from statewright.protocol.replies import OwnedShare
from statewright.protocol.requests import Trial
from statewright.subscription.shares import BACKOFF_SECONDS, CLEARED_SECONDS, WAITING_AT_MOST, Item, Room, Share
from tests.events import entered

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def body(sequence: int) -> bytes:
    event = entered(UUID(int=1), StateType.RUNNING, state_id=UUID(int=sequence), time=NOW, sequence=sequence)
    return event.model_dump_json().encode()


def share(position: int = 0, *, max_tries: int = 3, room: int = 2**20, **told: int) -> Share:
    owned = OwnedShare(partition=0, share=0, epoch=7, position=position, **told)
    return Share(owned, max_tries, Room(room))


def handed_out(one: Share, now: float = 0.0) -> Item | None:
    item = one.next(now)
    if item is not None:
        one.hand_out(item, None, now)
    return item


def filled(*sequences: int, **told: int) -> Share:
    one = share(**told)
    for sequence in sequences:
        one.take(sequence, body(sequence))
    return one


def said(one: Share) -> tuple[int, int | None, int, Trial]:
    word = one.acknowledged()
    return word.position, word.trying, word.tries, word.trial


def hear(one: Share) -> None:
    one.heard(one.acknowledged())


def test_the_position_is_that_before_the_first_event_that_is_not_done() -> None:
    one = filled(3, 5, 9)
    one.read = 12
    assert said(one)[0] == 2
    for _ in range(3):
        assert handed_out(one)
    assert one.acknowledge(5)
    assert said(one)[0] == 2
    assert one.acknowledge(3)
    assert said(one)[0] == 8
    assert one.acknowledge(9)
    assert said(one)[0] == 12


def test_only_what_is_in_hand_can_be_acknowledged_and_only_once() -> None:
    one = filled(1, 2)
    assert not one.acknowledge(1)
    assert handed_out(one)
    assert one.acknowledge(1)
    assert not one.acknowledge(1)
    assert not one.refuse(2, "no", 0.0)


def test_a_refused_event_comes_again_after_a_pause_and_before_all_others() -> None:
    one = filled(1, 2, 3)
    first = handed_out(one)
    assert first is not None
    assert one.refuse(1, "no", now=10.0)
    assert said(one) == (0, 1, 1, Trial.NONE)
    assert one.next(10.0) is None
    assert one.due == 10.0 + BACKOFF_SECONDS
    assert handed_out(one, 10.0 + BACKOFF_SECONDS) is first
    assert one.refuse(1, "no", now=20.0)
    assert one.due == 20.0 + 2 * BACKOFF_SECONDS


def test_what_has_failed_too_often_is_done_with_once_the_engine_has_it() -> None:
    one = filled(1, 2, max_tries=1)
    item = one.next(0.0)
    assert item is not None
    event = entered(UUID(int=1), StateType.RUNNING, state_id=UUID(int=1), time=NOW, sequence=1)
    one.hand_out(item, event, 0.0)
    assert one.refuse(1, "x" * 10_000, 0.0)
    [failed] = one.failed()
    assert (failed.sequence, failed.event_id, failed.tries) == (1, UUID(int=1), 1)
    assert len(failed.error) < 2_100
    assert (one.wants_word, one.next(0.0), said(one)[0]) == (True, None, 0)
    one.stored(failed)
    assert (one.wants_word, said(one)[0]) == (False, 1)
    assert handed_out(one)


def test_a_share_takes_no_more_than_it_has_room_for() -> None:
    one = share()
    for sequence in range(1, WAITING_AT_MOST + 1):
        assert one.has_room
        one.take(sequence, body(sequence))
    assert not one.has_room
    for _ in range(WAITING_AT_MOST // 2 - 1):
        handed_out(one)
    assert not one.has_room
    handed_out(one)
    assert one.has_room
    large = share(room=1)
    assert large.has_room
    large.take(1, body(1))
    assert not large.has_room
    handed_out(large)
    assert large.has_room


def test_after_a_death_events_are_tried_one_at_a_time_and_the_engine_hears_which() -> None:
    one = filled(1, 2, 3, suspect_up_to=2)
    assert one.next(0.0) is None
    assert one.wants_word
    assert said(one) == (0, 1, 0, Trial.WITH_OTHERS)
    hear(one)
    assert handed_out(one)
    assert one.next(0.0) is None
    assert one.acknowledge(1)
    assert one.next(0.0) is None
    assert said(one) == (1, 2, 0, Trial.WITH_OTHERS)
    hear(one)
    assert handed_out(one)
    # Whoever has one in hand for so long does not die over it.
    third = handed_out(one, CLEARED_SECONDS)
    assert third is not None
    assert third.sequence == 3


def test_one_that_is_to_be_tried_alone_waits_for_its_owner_to_do_so() -> None:
    one = filled(1, 2, suspect_up_to=2, trying=1, tries=1, trial=Trial.AWAITED)
    assert one.next(0.0) is None
    assert one.awaits_trial
    assert one.next_alone() is None
    assert said(one) == (0, 1, 1, Trial.ALONE)
    hear(one)
    item = one.next_alone()
    assert item is not None
    one.hand_out(item, None, 0.0)
    assert one.acknowledge(1)
    assert not one.awaits_trial


def test_one_over_which_members_have_died_too_often_is_not_tried_again() -> None:
    one = filled(1, 2, trying=1, tries=3, trial=Trial.AWAITED)
    assert one.next(0.0) is None
    [failed] = one.failed()
    assert (failed.sequence, failed.tries) == (1, 3)
    assert "died over it" in failed.error


def test_a_share_that_is_given_back_hands_nothing_out() -> None:
    one = filled(1, 2)
    assert handed_out(one)
    one.leaves_at = 30.0
    assert one.next(0.0) is None
    assert one.acknowledge(1)
    assert said(one)[0] == 1


def test_when_the_database_went_back_what_no_longer_exists_is_forgotten() -> None:
    one = filled(1, 5, 9)
    assert handed_out(one)
    assert handed_out(one)
    one.go_back(3)
    assert said(one)[0] == 0
    assert one.in_hand == 1
    assert one.acknowledge(1)
    assert said(one)[0] == 3
    assert one.next(0.0) is None


def test_a_dead_letter_comes_again_before_all_others_and_moves_no_position() -> None:
    one = filled(7, position=5)
    one.deliver_again(2)
    assert one.unknown() == [2]
    event = entered(UUID(int=1), StateType.RUNNING, state_id=UUID(int=2), time=NOW, sequence=2)
    one.found(2, event)
    item = handed_out(one)
    assert item is not None
    assert item.sequence == 2
    assert handed_out(one)
    assert one.acknowledge(2)
    assert [letter.sequence for letter in one.dealt_with()] == [2]
    assert said(one)[0] == 6
    one.settled(one.dealt_with()[0])
    assert one.dealt_with() == []


def test_a_dead_letter_whose_event_no_longer_exists_is_dealt_with() -> None:
    one = share(position=5)
    one.deliver_again(2)
    one.found(2, None)
    assert [letter.sequence for letter in one.dealt_with()] == [2]
