"""What a client knows of a partition's backlog: when it asks, and which requests it sends."""

import pytest

from statewright.client.room import KNOWN_SECONDS, NEWS_BYTES, NEWS_REQUESTS, NEWS_SECONDS, Backlog, Bound

BOUND = Bound(requests=1_000, size=10_000_000)


def known(requests: int, size: int) -> Backlog:
    backlog = Backlog(BOUND)
    backlog.learn([requests, size], 0.0)
    return backlog


def test_a_backlog_of_which_nothing_is_known_is_asked_about_before_anything_is_sent() -> None:
    backlog = Backlog(BOUND)
    assert backlog.count(1, 0.0)
    assert backlog.is_doubtful(0.0)


@pytest.mark.parametrize(
    ("backlog", "doubtful"),
    [(known(499, 100), False), (known(500, 100), True), (known(10, 4_999_900), False), (known(10, 5_000_000), True)],
)
def test_below_half_of_the_bound_nobody_asks_before_sending(backlog: Backlog, doubtful: bool) -> None:
    assert backlog.count(100, 0.0) is doubtful
    assert backlog.is_doubtful(0.0) is doubtful


def test_knowledge_ages() -> None:
    backlog = known(0, 0)
    assert not backlog.count(1, NEWS_SECONDS)
    assert backlog.count(1, NEWS_SECONDS + 0.1)
    assert not backlog.is_doubtful(KNOWN_SECONDS)
    assert backlog.is_doubtful(KNOWN_SECONDS + 0.1)


@pytest.mark.parametrize(("count", "size"), [(NEWS_REQUESTS, 0), (1, NEWS_BYTES)])
def test_after_much_that_was_sent_it_is_asked_about_anew_behind_a_push(count: int, size: int) -> None:
    backlog = known(0, 0)
    assert not any(backlog.count(size, 0.0) for _ in range(count))
    assert backlog.count(1, 0.0)
    assert not backlog.is_doubtful(0.0)
    backlog.learn([300, 1_000], 0.0)
    assert not backlog.count(1, 0.0)


def test_there_is_room_up_to_the_bound_and_for_one_where_there_is_nothing() -> None:
    assert known(999, 100).has_room(1)
    assert not known(1_000, 100).has_room(1)
    assert known(1, 9_999_999).has_room(1)
    assert not known(1, 9_999_999).has_room(2)
    empty = known(0, 9_000)
    assert empty.has_room(20_000_000)
    empty.count(20_000_000, 0.0)
    assert not empty.has_room(1)
