"""The event loop in which an object was made, and whether the caller runs in it."""

import asyncio
import os
from threading import get_ident

_forks = 0
"""How many forks lie between this process and the one that imported this first."""


def _count_fork() -> None:
    global _forks  # noqa: PLW0603  # of the whole process
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


def forks() -> int:
    """Return a number that differs between this process and any that it is forked off, or that is forked off it."""
    return _forks


class Home:
    """The event loop that ran when this was made.

    Each request asks whether it runs here. `asyncio.get_running_loop` would answer that, but before Python 3.12 it asks
    the system for the id of the process each time, which takes as long as encoding a request.
    """

    __slots__ = ("_forks", "_thread", "loop")

    def __init__(self) -> None:
        """Raises RuntimeError when no event loop is running."""
        self.loop = asyncio.get_running_loop()
        self._thread = get_ident()
        self._forks = _forks

    def is_here(self) -> bool:
        """Return whether the caller runs in this event loop, and in the process in which it was started."""
        return self._forks == _forks and self._thread == get_ident() and self.loop.is_running()
