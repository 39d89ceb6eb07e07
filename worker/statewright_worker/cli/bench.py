"""The benchmark: how many transitions a second a deployment decides, and how long a producer waits for a verdict."""

import asyncio
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import uvloop

from statewright import Client, ConfigurationError
from statewright_worker.cli.bench_drive import Measurement, drive
from statewright_worker.cli.bench_mixes import TAGS, limit_for
from statewright_worker.cli.bench_options import Load
from statewright_worker.cli.bench_plot import check_plot, draw
from statewright_worker.cli.bench_target import Target, embedded_target
from statewright_worker.cli.bench_view import progress, show_json, show_table

DEFAULT_WORKERS: Final = 1
INTERRUPTIONS: Final = (signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Options:
    """What `statewright bench` was called with. Without a URL of Redis it brings a deployment of its own."""

    load: Load
    producers: int = 1
    redis_url: str | None = None
    database_url: str | None = None
    workers: int | None = None
    in_json: bool = False
    plot: Path | None = None


def run_bench(options: Options) -> None:
    """Run the benchmark and show what came out of it. Raises ConfigurationError when the options contradict."""
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
    uvloop.run(_set_limits(target.redis_url, limit_for(options.load)))
    try:
        with progress(options.load) as show:
            measurement = drive(target, options.load, options.producers, show)
    finally:
        uvloop.run(_set_limits(target.redis_url, None))
    measurement.batch_sizes = uvloop.run(target.batch_sizes(measurement.opened, measurement.closed))
    return measurement


async def _set_limits(redis_url: str, concurrency_limit: int | None) -> None:
    """Set the limits on the benchmark's own tags, or remove them. Fails at once when no worker is there to do it."""
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
