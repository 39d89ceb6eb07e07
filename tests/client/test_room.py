"""What a client knows of a partition's backlog: when it asks, and whom it lets in."""

import pytest

from statewright.room import KNOWN_SECONDS, NEWS_BYTES, NEWS_REQUESTS, NEWS_SECONDS, Backlog, Bound

BOUND = Bound(requests=1_000, size=10_000_000)


def known(requests: int, size: int, now: float = 0.0) -> Backlog:
    backlog = Backlog(BOUND)
    backlog.learn([requests, size], now)
    return backlog


def test_a_backlog_of_which_nothing_is_known_is_doubtful() -> None:
    assert Backlog(BOUND).is_doubtful(1, 1, now=0.0)


@pytest.mark.parametrize(
    ("backlog", "doubtful"),
    [(known(499, 100), False), (known(500, 100), True), (known(10, 4_999_900), False), (known(10, 5_000_000), True)],
)
def test_below_half_of_the_bound_nobody_asks_before_sending(backlog: Backlog, doubtful: bool) -> None:
    assert backlog.is_doubtful(1, 100, now=0.0) is doubtful


def test_what_was_sent_since_counts() -> None:
    backlog = known(100, 100)
    backlog.count(400, 1_000)
    assert backlog.is_doubtful(1, 1, now=0.0)
    assert not backlog.is_doubtful(0, 0, now=0.0)
    assert backlog.is_old(now=0.0)


def test_knowledge_ages() -> None:
    backlog = known(0, 0)
    assert not backlog.is_old(now=NEWS_SECONDS)
    assert backlog.is_old(now=NEWS_SECONDS + 0.1)
    assert not backlog.is_doubtful(1, 1, now=KNOWN_SECONDS)
    assert backlog.is_doubtful(1, 1, now=KNOWN_SECONDS + 0.1)


@pytest.mark.parametrize(("requests", "size"), [(NEWS_REQUESTS + 1, 0), (1, NEWS_BYTES + 1)])
def test_much_that_was_sent_makes_knowledge_old(requests: int, size: int) -> None:
    backlog = known(0, 0)
    backlog.count(NEWS_REQUESTS, NEWS_BYTES)
    assert not backlog.is_old(now=0.0)
    backlog.count(requests, size)
    assert backlog.is_old(now=0.0)


def test_there_is_room_up_to_the_bound_and_for_one_where_there_is_nothing() -> None:
    assert known(999, 100).has_room(1)
    assert not known(1_000, 100).has_room(1)
    assert known(1, 9_999_999).has_room(1)
    assert not known(1, 9_999_999).has_room(2)
    empty = known(0, 9_000)
    assert empty.has_room(20_000_000)
    empty.count(1, 20_000_000)
    assert not empty.has_room(1)
