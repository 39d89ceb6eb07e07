"""Watching a user's rules: finds one that holds up the worker, and does not blame it for the work of others."""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Any

Hook = Callable[..., Awaitable[object]]


class HeldUp(TimeoutError):
    """A rule ran for too long without giving way; nothing can interrupt that, so it shows only afterwards."""

    def __init__(self, seconds: float, allowed: float) -> None:
        super().__init__(
            f"it blocked the worker for {seconds:.3g} s, and may for {allowed:g} s; await what it waits for, or hand it"
            " to a thread with asyncio.to_thread"
        )


class Slices:
    """Awaits a hook, and measures the longest of the slices in which it ran without giving way.

    The time between the slices belongs to the rest of the worker, so the whole time would say nothing about the hook.
    """

    def __init__(self, hook: Awaitable[object]) -> None:
        self.longest = 0.0
        self._hook = hook

    def __await__(self) -> Generator[Any, Any, None]:
        clock = asyncio.get_running_loop().time
        steps: Any = self._hook.__await__()
        resume, argument = steps.send, None
        while True:
            started = clock()
            try:
                awaited = resume(argument)
            except StopIteration:
                return
            finally:
                self.longest = max(self.longest, clock() - started)
            try:
                yield awaited
            except BaseException as error:
                resume, argument = steps.throw, error
            else:
                resume, argument = steps.send, None


def watched(hook: Hook, allowed: float) -> Hook:
    """Return the hook, which notes on its rule's context when it ran for longer than `allowed` seconds at a stretch.

    It then raises HeldUp where it would have returned.
    """

    async def under_watch(rule: Any, *arguments: object) -> None:
        slices = Slices(hook(rule, *arguments))
        try:
            await slices
        finally:
            if slices.longest > allowed:
                rule.context.held_up = HeldUp(slices.longest, allowed)
        if slices.longest > allowed:
            raise rule.context.held_up

    return under_watch
