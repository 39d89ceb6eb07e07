"""Blocks that an event loop's `async with` keeps, as plain context managers: a task in the loop stands for each."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from itertools import chain, islice
from typing import Any, Generic, TypeVar, cast

from pydantic import BaseModel

from statewright.errors import NotOpen
from statewright.sync.background import BackgroundLoop

Entered = TypeVar("Entered")
Item = TypeVar("Item")
Listed = TypeVar("Listed")


class Hosted(Generic[Entered]):
    """An async context manager whose block is somewhere else: one task in the loop enters it, and leaves it later."""

    def __init__(self, background: BackgroundLoop, manager: AbstractAsyncContextManager[Entered, bool | None]) -> None:
        """Take what is entered and left in the background loop."""
        self._background = background
        self._manager = manager
        self._task: asyncio.Task[bool] | None = None
        self._leave: asyncio.Future[BaseException | None] | None = None

    def enter(self) -> Entered:
        """Return what entering returns. Raises what it raises."""
        try:
            return self._background.run(self._enter)
        except BaseException:
            # The caller may have been interrupted, so the block will not begin.
            self._background.soon(self._give_up)
            raise

    def leave(self, error: BaseException | None) -> bool:
        """Leave, with what the block has raised; return whether that goes no further.

        Raises what leaving raises; what the block has raised comes first where the manager has ended before.
        """
        if not self._background.is_of_this_process:
            # The block is the parent's, which leaves it.
            return False
        traceback = None if error is None else error.__traceback__
        try:
            return self._background.run(self._end, error)
        except NotOpen:
            if not self._background.has_ended:
                raise
            # The client was closed, which has ended the block.
            return False
        finally:
            if error is not None:
                # It shows where the block raised it, and nothing of its way through the loop.
                error.__traceback__ = traceback

    async def _enter(self) -> Entered:
        loop = asyncio.get_running_loop()
        entered: asyncio.Future[Entered] = loop.create_future()
        self._leave = loop.create_future()
        self._task = asyncio.create_task(self._stand_for_the_block(entered, self._leave))
        self._background.keep(self._task)
        # Nobody may be there to leave the block.
        self._task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        both: tuple[asyncio.Future[Any], ...] = (entered, self._task)
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not entered.done():
            self._task.result()
        return entered.result()

    async def _stand_for_the_block(
        self, entered: "asyncio.Future[Entered]", leave: "asyncio.Future[BaseException | None]"
    ) -> bool:
        async with self._manager as manager:
            entered.set_result(manager)
            error = await leave
            if error is not None:
                raise error
            return False
        return True

    def _give_up(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _end(self, error: BaseException | None) -> bool:
        task, leave = self._task, self._leave
        if task is None or leave is None:
            raise NotOpen("a block ends after it has begun: use it within its `with`")
        if task.done() and error is not None:
            return False
        if not leave.done():
            # What ends a thread must not end the loop.
            leave.set_result(error if error is None or isinstance(error, Exception) else asyncio.CancelledError())
        await asyncio.wait((task,))
        if task.cancelled() or (error is not None and task.exception() is error):
            return False
        return task.result()


def each(background: BackgroundLoop, make: Callable[[], Iterator[Item]]) -> Iterator[Item]:
    """Return what an iterator of the loop's yields, each once it is asked for."""
    iterator = background.call(make)

    def step() -> tuple[Item, ...]:
        return tuple(islice(iterator, 1))

    # Each in the loop, and all until there is none.
    return chain.from_iterable(iter(lambda: background.call(step), ()))


def listed(given: Listed) -> Listed:
    """Return what a user gives to be iterated over, as a list unless it is one thing.

    The loop must not go through it: that may take its time, or belong to the user's thread.
    """
    if isinstance(given, str | list | tuple | BaseModel) or not isinstance(given, Iterable):
        return given
    return cast("Listed", list(given))
