"""Waiting for the servers: a worker that is started before them starts when they are there."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from statewright.errors import ConfigurationError, StatewrightError

FIRST_PAUSE_SECONDS: Final = 0.05
LONGEST_PAUSE_SECONDS: Final = 1.0
CHECK_SECONDS: Final = 15.0

Result = TypeVar("Result")


class ServerAway(StatewrightError):
    """A server is not there, yet or for now; asking again later may help without another setting."""


async def when_there(
    check: Callable[[], Awaitable[Result]],
    seconds: float,
    say: Callable[[str], object],
    *,
    check_seconds: float = CHECK_SECONDS,
) -> Result:
    """Return what `check` returns as soon as it no longer raises ServerAway; call `say` once with what is missing.

    Raises ConfigurationError when it still does so after `seconds`. It is asked once at least, and has `check_seconds`
    each time.
    """
    clock = asyncio.get_running_loop().time
    deadline, pause, said = clock() + seconds, FIRST_PAUSE_SECONDS, False
    while True:
        problem = "a server does not answer"
        try:
            async with asyncio.timeout(check_seconds):
                return await check()
        except ServerAway as away:
            problem = str(away)
        except TimeoutError:
            pass
        if clock() >= deadline:
            raise ConfigurationError(f"{problem}; given up after {seconds:g} s (STATEWRIGHT_STARTUP_TIMEOUT)")
        if not said:
            say(f"{problem}; trying again for up to {seconds:g} s")
            said = True
        await asyncio.sleep(min(pause, max(deadline - clock(), 0)))
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
