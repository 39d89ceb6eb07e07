"""Waiting in a thread for what the background loop does."""

from _thread import allocate_lock
from collections.abc import Callable
from contextlib import suppress
from threading import TIMEOUT_MAX

Wake = Callable[[], object]

_is_over = False
"""Whether the interpreter is about to end, so that the threads which still wait are not to be woken."""


def let_sleep() -> None:
    """Wake nobody from now on: whoever waits in the interpreter's last moment ends with it, in silence."""
    global _is_over  # noqa: PLW0603  # of the whole process
    _is_over = True


class Waited:
    """What threads wait for and one thread ends. Nothing is locked: each step is one that Python does undivided.

    A subclass has the slots `is_done`, which begins as False, and `wakes`, which begins as an empty list.
    """

    __slots__ = ()

    is_done: bool
    wakes: list[Wake]
    """What is called once when it is done, each by whoever takes it out of the list."""

    def end(self) -> None:
        """Wake all who wait; nobody waits from now on."""
        self.is_done = True  # type: ignore[misc]  # the subclass has the slot
        self.wake()

    def wake(self) -> None:
        """Wake all who wait now."""
        if self.wakes and not _is_over:
            with suppress(IndexError):
                while True:
                    self.wakes.pop()()

    def when_done(self, wake: Wake) -> None:
        """Call `wake` once: now where it is done, else from the thread that ends it."""
        self.wakes.append(wake)
        # It may have ended in between. Who gets the call out of the list makes it.
        if self.is_done and self.forget(wake):
            wake()

    def forget(self, wake: Wake) -> bool:
        """Take a call back; return False when it was made already."""
        try:
            self.wakes.remove(wake)
        except ValueError:
            return False
        return True

    def wait(self, seconds: float | None) -> bool:
        """Return whether it is done; wait for that at most so many seconds, or without end."""
        if self.is_done:
            return True
        lock = allocate_lock()
        lock.acquire()
        wake = lock.release
        self.when_done(wake)
        try:
            lock.acquire(timeout=-1 if seconds is None else min(seconds, TIMEOUT_MAX))
        finally:
            self.forget(wake)
        return self.is_done
