"""Holders: each partition has one, a worker takes its share, and whoever takes over knows how the last one went."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, closing

from statewright_worker.streams.holders import HOLD_MILLISECONDS, Holders, Look
from tests.deployment import Deployment
from tests.end_to_end.own_redis import OwnRedis, own_redis

PARTITIONS = 4
NONE: frozenset[int] = frozenset()


@asynccontextmanager
async def workers(deployment: Deployment) -> AsyncIterator[tuple[OwnRedis, Callable[[str], Holders]]]:
    """A Redis of the test's own, and what makes the holders as a worker of some name sees them."""
    async with own_redis(deployment) as own:
        with ExitStack() as stack:

            def seen_by(worker: str) -> Holders:
                return stack.enter_context(
                    closing(Holders(deployment.redis_url, deployment.channels, PARTITIONS, worker, "{}"))
                )

            yield own, seen_by


async def test_a_worker_alone_takes_everything_and_gives_up_what_is_more_than_its_share(deployment: Deployment) -> None:
    async with workers(deployment) as (own, seen_by):
        one, other = seen_by("one"), seen_by("other")
        assert one.look(NONE, seeks=True) == Look(4, NONE, frozenset({0, 1, 2, 3}), NONE)
        assert other.look(NONE, seeks=True) == Look(2, NONE, NONE, NONE)
        assert one.look({0, 1, 2, 3}, seeks=True) == Look(2, NONE, NONE, NONE)
        one.release({2, 3})
        assert other.look(NONE, seeks=True) == Look(2, NONE, frozenset({2, 3}), NONE)
        held = await deployment.holders(own.redis)
        assert held == {0: b"one", 1: b"one", 2: b"other", 3: b"other"}
        assert await own.redis.get(deployment.channels.partitions) == b"4"


async def test_a_worker_that_leaves_counts_for_no_share_any_more(deployment: Deployment) -> None:
    async with workers(deployment) as (_, seen_by):
        one, other = seen_by("one"), seen_by("other")
        other.look(NONE, seeks=True)
        assert one.look(NONE, seeks=True).share == 2
        other.leave()
        assert one.look(NONE, seeks=True).share == 4


async def test_one_that_seeks_nothing_keeps_what_it_has_and_counts_for_no_share(deployment: Deployment) -> None:
    async with workers(deployment) as (_, seen_by):
        one, other = seen_by("one"), seen_by("other")
        one.look(NONE, seeks=True)
        one.release({3})
        assert one.look({0, 1, 2}, seeks=False) == Look(4, NONE, NONE, NONE)
        assert other.look(NONE, seeks=True) == Look(4, NONE, frozenset({3}), NONE)


async def test_what_nobody_has_renewed_is_told_apart_from_what_was_given_back(deployment: Deployment) -> None:
    async with workers(deployment) as (_, seen_by):
        one, other = seen_by("one"), seen_by("other")
        one.look(NONE, seeks=True)
        one.release({0})
        _wait_until_holds_run_out()
        assert other.look(NONE, seeks=True) == Look(4, NONE, frozenset({0}), frozenset({1, 2, 3}))
        # The worker that was silent learns that it holds nothing any more, and takes nothing from others.
        assert one.look({1, 2, 3}, seeks=True) == Look(2, frozenset({1, 2, 3}), NONE, NONE)
        one.release({1, 2, 3})
        assert other.look({0, 1, 2, 3}, seeks=True).lost == NONE


def _wait_until_holds_run_out() -> None:
    time.sleep(HOLD_MILLISECONDS / 1_000 + 0.1)


async def test_a_full_redis_renews_holds_and_gives_new_ones(deployment: Deployment) -> None:
    async with workers(deployment) as (own, seen_by):
        await own.redis.config_set("maxmemory", 1)
        one = seen_by("one")
        everything = frozenset(range(PARTITIONS))
        assert one.look(NONE, seeks=True).taken == everything
        assert one.look(everything, seeks=True).lost == NONE
