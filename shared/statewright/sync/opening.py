"""A client without an event loop: opened in each process that uses it, closed at the latest when that ends."""

import asyncio
import atexit
import copy
import os
import time
from threading import Event, Lock
from types import TracebackType
from typing import Any, Final, Self
from weakref import WeakSet, finalize

from statewright.client.home import forks
from statewright.errors import NotOpen
from statewright.sync.background import BackgroundLoop
from statewright.sync.crossing import CrossingClient
from statewright.sync.waiting import let_sleep

EXIT_SECONDS: Final = 5.0
"""How long the end of the interpreter waits for Redis to take what is still to be sent."""

_guard = Lock()
"""Held for a moment, while a process takes up a client that another one has left to it."""


def _renew_guard() -> None:
    global _guard  # noqa: PLW0603  # another thread may have held it when this process was forked off
    _guard = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_guard)


class Opening:
    """What a client is in one process: not open yet, open, or closed."""

    def __init__(self, *, is_closed: bool = False, is_the_parents: bool = False) -> None:
        self.forks = forks()
        self.lock = Lock()
        """Held while it is opened or closed."""
        self.client: CrossingClient | None = None
        self.is_closed = is_closed
        self.is_the_parents = is_the_parents
        """Whether the process of which this one was forked off has it open, under a name."""
        self.failures = 0
        """How often opening it has failed."""
        self.failure: BaseException | None = None
        self.abandoned: finalize[..., OpenedByUse] | None = None
        """What ends it when nobody has it any more."""


class OpenedByUse:
    """Opens a client in the process that uses it, when it is entered or first used there."""

    def __init__(self, template: CrossingClient) -> None:
        """Take a client that is never opened; those that are opened are copies of it."""
        self._template = template
        self._here = Opening()

    def __enter__(self) -> Self:
        """Connect.

        Raises ConfigurationError when no worker announces itself within `answer_timeout`, RedisUnavailable when Redis
        is away or refuses, and NotOpen when the client is open already.
        """
        here = self._in_this_process()
        with here.lock:
            if here.client is not None:
                raise NotOpen("the client is open already; make another one")
            self._open(here)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Disconnect, once Redis holds everything that was sent; workers carry out what is still unanswered.

        What Redis does not hold after `answer_timeout` seconds fails with NoAnswer, which says whether it was sent.
        """
        self.close()

    def close(self) -> None:
        """Disconnect as the end of its `with` does; to close it once more does nothing.

        Subscriptions end. A client that nobody closes is closed at the end of the interpreter, which waits 5 seconds
        for Redis at most. A process that ends without that (`os._exit`, or a worker of Celery's) should close it.
        """
        here = self._in_this_process()
        with here.lock:
            client, here.client, here.is_closed = here.client, None, True
            if client is not None:
                _open_ones.discard(client)
                if here.abandoned is not None:
                    here.abandoned.detach()
                try:
                    client.background.run(client.end)
                finally:
                    client.background.stop()

    def _opened(self) -> CrossingClient:
        """Return the client as it is open in this process; open it if it never was. Raises NotOpen when it is closed,
        and what entering it raises."""
        here = self._here
        client = here.client
        if client is not None and here.forks == forks():
            return client
        here = self._in_this_process()
        failures = here.failures
        with here.lock:
            if here.is_closed:
                raise NotOpen("the client is closed: use it within its `with`, or open it again")
            if here.client is None and here.is_the_parents:
                raise NotOpen(
                    f"the process of which this one was forked off has client {self._template.name!r} open, and one"
                    " client at a time has a name: give each process its own"
                )
            if here.failure is not None and here.failures > failures:
                # It failed while this thread waited for its turn.
                raise here.failure
            return here.client or self._open(here)

    def _in_this_process(self) -> Opening:
        with _guard:
            if self._here.forks != forks():
                # Its loop's thread has not come along. What it leaves must not be cleared away here: the connections
                # are the parent's.
                _left_behind.append(self._here)
                is_named = self._template.name is not None
                self._here = Opening(
                    is_closed=self._here.is_closed, is_the_parents=is_named and self._here.client is not None
                )
            return self._here

    def _open(self, here: Opening) -> CrossingClient:
        client = copy.copy(self._template)
        background = BackgroundLoop("statewright")
        background.start()
        try:
            background.run(client.begin, background)
        except BaseException as error:
            background.stop()
            here.failures, here.failure = here.failures + 1, error
            raise
        here.client, here.is_closed, here.failure = client, False, None
        _open_ones.add(client)
        # Who drops the client without closing it leaves a thread behind, which should end as well.
        here.abandoned = finalize(self, _abandon, client)
        here.abandoned.atexit = False
        return client


_left_behind: list[Any] = []
"""What the processes before this one have had open."""
_open_ones: WeakSet[CrossingClient] = WeakSet()


def _abandon(client: CrossingClient) -> None:
    background = client.background
    if not background.is_of_this_process:
        return

    async def end() -> None:
        try:
            await client.end()
        finally:
            background.stop(wait=False)

    # The thread may be any, the loop's own included, so nobody waits.
    background.begin(end)


def _close_at_exit() -> None:
    let_sleep()
    ends = time.monotonic() + EXIT_SECONDS
    for client in list(_open_ones):
        background = client.background
        if background.is_of_this_process:
            ended = Event()
            background.begin(_end_until, client, ends - time.monotonic(), ended)
            ended.wait(EXIT_SECONDS)
            background.stop()


async def _end_until(client: CrossingClient, seconds: float, ended: Event) -> None:
    try:
        async with asyncio.timeout(seconds):
            await client.end()
    finally:
        # Whatever went wrong, nobody is there to be told.
        ended.set()


atexit.register(_close_at_exit)
