"""Waiting for the servers: a worker that is started before them starts when they are there."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from statewright.errors import ConfigurationError, StatewrightError

FIRST_PAUSE_SECONDS: Final = 0.05
LONGEST_PAUSE_SECONDS: Final = 1.0

Result = TypeVar("Result")


class ServerAway(StatewrightError):
    """A server is not there: not yet, or not now; asking again later may help, as long as the settings stay."""


async def when_there(check: Callable[[], Awaitable[Result]], seconds: float, say: Callable[[str], object]) -> Result:
    """Return what `check` returns, as soon as it raises ServerAway no more; `say` is told once that it does.

    Raises ConfigurationError when it still does so, or has not ended, after `seconds`.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    pause, problem = FIRST_PAUSE_SECONDS, ""
    try:
        async with asyncio.timeout_at(deadline):
            while True:
                try:
                    return await check()
                except ServerAway as away:
                    if not problem:
                        say(f"{away}; trying again for up to {seconds:g} s")
                    problem = str(away)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
    except TimeoutError:
        raise ConfigurationError(
            f"{problem or 'a server does not answer'}; given up after {seconds:g} s (STATEWRIGHT_STARTUP_TIMEOUT)"
        ) from None
