"""The demo: two workers govern a flow run on embedded servers in a temporary folder, while you watch."""

import asyncio
import signal
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Self, TypeVar

import typer

from statewright import StateType, StatewrightError
from statewright_worker.demo.deployment import deployment
from statewright_worker.demo.journal import Journal
from statewright_worker.demo.story import Ending, tell_story
from statewright_worker.demo.view import open_view, show_summary
from statewright_worker.loop import run

REPLICAS: Final = 2
INTERRUPTIONS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED_STATUS: Final = 130

Result = TypeVar("Result")


class DemoFailed(StatewrightError):
    """The demo has not gone as promised; the text says where."""


def run_demo() -> None:
    """Run the demo to its end, and leave nothing behind.

    Raises DemoFailed when a promise was not kept, ConfigurationError when the servers do not start, and typer.Exit when
    it was interrupted.
    """
    with (
        Interruption() as interruption,
        tempfile.TemporaryDirectory(prefix="statewright-demo-") as folder,
        deployment(Path(folder), REPLICAS) as redis_url,
    ):
        with open_view() as view:
            journal = Journal(view)
            ending = interruption.run(lambda: tell_story(redis_url, journal))
        show_summary(journal, ending)
        check(journal, ending)


def check(journal: Journal, ending: Ending) -> None:
    """Raise DemoFailed unless every run has completed, every event was heard and every slot was given back."""
    for history in ending.histories:
        if history.run.state_type is not StateType.COMPLETED:
            raise DemoFailed(f"{history.run.name} ended as {history.run.state_name} instead of Completed")
        if not journal.agrees_with(history):
            raise DemoFailed(f"the events of {history.run.name} are not its history")
    if ending.limit is None or ending.limit.active_slots:
        raise DemoFailed(f"a slot is still held: {ending.limit}")


class Interruption:
    """Takes Ctrl-C, SIGTERM and a closed terminal for a wish to stop.

    The story ends at once. What starts or stops servers is not interrupted, so that nothing is left behind; then
    typer.Exit is raised.
    """

    def __init__(self) -> None:
        self._requested = False
        self._stop_story: Callable[[], object] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in INTERRUPTIONS:
            self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._requested:
            raise typer.Exit(INTERRUPTED_STATUS)

    def run(self, story: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Run `story` to its end, and return its result. Raises CancelledError when it is interrupted."""
        return run(self._interruptible(story))

    async def _interruptible(self, story: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        telling = asyncio.create_task(story())
        loop = asyncio.get_running_loop()
        self._stop_story = lambda: loop.call_soon_threadsafe(telling.cancel)
        if self._requested:
            telling.cancel()
        try:
            return await telling
        finally:
            self._stop_story = None

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        self._requested = True
        if self._stop_story is not None:
            self._stop_story()
