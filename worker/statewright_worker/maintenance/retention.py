"""Retention: trees that are old enough are found, and their partitions are asked to delete them, some at a time.

A request for it goes into a partition's stream like any other. The rate is bounded from both sides: there is a pause
between two requests to the same partition, and none goes to one in which many requests wait.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime, timedelta
from typing import Final

import structlog

from statewright.errors import StatewrightError
from statewright.ids import partition_of
from statewright.protocol.requests import MAX_TREES_PRUNED, PruneRuns, encode
from statewright_worker.facts.old_trees import FORGOTTEN_AT_ONCE, LOOKED_AT, OldTree, OldTrees

PAUSE_SECONDS: Final = 0.25
"""Between two requests to the same partition."""
LOOK_AGAIN_SECONDS: Final = 5.0
"""When no tree was old enough, others may be after so long."""
RUNS_PER_REQUEST: Final = 100
"""How many runs a request deletes at most, unless a single tree has more: some milliseconds of its partition's time."""
DELETED_REMEMBERED: Final = timedelta(days=30)
"""For how long a deleted run is remembered where runs are kept for ever."""

Push = Callable[[int, bytes], Awaitable[bool]]
"""Pushes a request to a partition, and says whether it had room."""

log = structlog.get_logger()


class Retention:
    """Keeps a deployment small."""

    def __init__(self, trees: OldTrees, partitions: int, keep_seconds: float | None) -> None:
        """Take what finds old trees; without `keep_seconds`, runs are kept for ever."""
        self._trees = trees
        self._partitions = partitions
        self._keep = None if keep_seconds is None else timedelta(seconds=keep_seconds)
        self._clock = asyncio.get_running_loop().time

    async def work(self, push: Push, seconds: float) -> None:
        """Have old trees deleted, and forget what is older still, for so long at most. What fails is logged."""
        ends = self._clock() + seconds
        try:
            await self._forget(ends)
            while self._keep is not None and self._clock() < ends:
                if not await self._look_through(self._keep, push, ends):
                    await asyncio.sleep(max(min(LOOK_AGAIN_SECONDS, ends - self._clock()), 0))
                await self._forget(ends)
        except StatewrightError as error:
            log.warning("old runs stay for now", reason=str(error))

    async def _forget(self, ends: float) -> None:
        remembered = DELETED_REMEMBERED if self._keep is None else self._keep
        while self._clock() < ends:
            deleted = await self._trees.forget(pruned_before=remembered, answers_before=self._keep)
            if deleted < FORGOTTEN_AT_ONCE:
                return

    async def _look_through(self, keep: timedelta, push: Push, ends: float) -> bool:
        """Look through all trees once, as far as there is time, and return whether old ones were found."""
        since = await self._trees.begin(keep)
        waiting: dict[int, deque[OldTree]] = {}
        found, is_over = 0, False
        while self._clock() < ends and not (is_over and not any(waiting.values())):
            if not is_over and sum(map(len, waiting.values())) < LOOKED_AT:
                some = await self._trees.step(since)
                is_over = some is None
                for tree in some or ():
                    waiting.setdefault(partition_of(tree.run_id, self._partitions), deque()).append(tree)
                    found += 1
            if any(waiting.values()):
                await self._push_some(waiting, since, push)
                await asyncio.sleep(PAUSE_SECONDS)
        if found:
            log.info("old trees are deleted", trees=found, unchanged_since=since.isoformat(timespec="seconds"))
        return found > 0

    @staticmethod
    async def _push_some(waiting: dict[int, deque[OldTree]], since: datetime, push: Push) -> None:
        """Ask each partition to delete a portion of what waits for it; one that is busy is asked again later."""
        for partition, trees in waiting.items():
            portion = list(portion_of(trees))
            if portion:
                run_ids = tuple(tree.run_id for tree in portion)
                request = PruneRuns(partition=partition, run_ids=run_ids, unchanged_since=since)
                if not await push(partition, encode(request)):
                    trees.extendleft(reversed(portion))


def portion_of(trees: deque[OldTree]) -> Iterator[OldTree]:
    """Take the first of the trees out, as many as one request may name, and yield them."""
    runs = 0
    for number in range(min(len(trees), MAX_TREES_PRUNED)):
        runs += trees[0].runs
        if number and runs > RUNS_PER_REQUEST:
            return
        yield trees.popleft()
