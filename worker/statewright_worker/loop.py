"""The event loop that commands run on: uvloop's where it is installed, asyncio's own elsewhere."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end on a new event loop, and return its result. Ctrl-C cancels it."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(work)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes a loop of uvloop's, or None, which stands for asyncio's own, where uvloop is missing."""
    try:
        import uvloop  # it does not exist for Windows
    except ModuleNotFoundError:
        return None
    return uvloop.new_event_loop
