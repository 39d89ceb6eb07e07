"""The benchmark: how many transitions a second a deployment decides, and how long a producer waits for a verdict."""

import asyncio
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

from statewright import Client, ConfigurationError
from statewright_worker.bench.drive import Measurement, drive
from statewright_worker.bench.mixes import TAGS, limit_for
from statewright_worker.bench.options import DEFAULT_WORKERS, Options
from statewright_worker.bench.plot import check_plot, draw
from statewright_worker.bench.target import Target, embedded_target
from statewright_worker.bench.view import progress, show_json, show_table
from statewright_worker.loop import run

INTERRUPTIONS: Final = (signal.SIGTERM, signal.SIGHUP)


def run_bench(options: Options) -> None:
    """Run the benchmark, and print the result.

    Raises ConfigurationError when the options contradict each other or nobody answers, and BenchFailed when a producer
    gives up.
    """
    if options.plot is not None:
        check_plot(options.plot)
    with _interruptible(), _target(options) as target:
        measurement = _measure(options, target)
    if options.plot is not None:
        draw(options.load, measurement, options.plot)
    show = show_json if options.in_json else show_table
    show(options.load, measurement)


def _target(options: Options) -> AbstractContextManager[Target]:
    if options.redis_url is None:
        if options.database_url is not None:
            raise ConfigurationError(
                "STATEWRIGHT_DATABASE_URL is set but STATEWRIGHT_REDIS_URL is not: set both to measure that deployment,"
                " or neither to measure an embedded one"
            )
        return embedded_target(options.workers or DEFAULT_WORKERS)
    if options.workers is not None:
        raise ConfigurationError(
            "--workers is for the embedded deployment, and a URL of Redis is given; start workers of your own with"
            " `statewright worker`"
        )
    return nullcontext(Target(options.redis_url, options.database_url))


def _measure(options: Options, target: Target) -> Measurement:
    run(_set_limits(target.redis_url, limit_for(options.load)))
    try:
        with progress(options.load) as show:
            measurement = drive(target, options.load, options.producers, show)
    finally:
        run(_set_limits(target.redis_url, None))
    measurement.batch_sizes = run(target.batch_sizes(measurement.opened, measurement.closed))
    return measurement


async def _set_limits(redis_url: str, concurrency_limit: int | None) -> None:
    """Set the limits on the benchmark's own tags, or remove them.

    Raises ConfigurationError when no worker announces itself.
    """
    async with Client(redis_url) as client:
        await asyncio.gather(*[client.set_limit(tag, concurrency_limit) for tag in TAGS])


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end the benchmark as Ctrl-C does: in order, with nothing left behind."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before: Mapping[int, Callable[..., Any] | int | None] = {n: signal.signal(n, interrupt) for n in INTERRUPTIONS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
