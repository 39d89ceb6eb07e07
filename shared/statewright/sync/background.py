"""A background loop: an event loop in a thread of its own, to which any thread hands work.

Much work that comes at once costs one wake-up of the loop: whoever finds it asleep wakes it, and the others rely on it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from threading import Thread, get_ident
from typing import Any, Final, Generic, ParamSpec, Protocol, TypeVar, cast

from statewright.client.home import forks
from statewright.errors import NotOpen
from statewright.sync.waiting import Waited, Wake

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

AT_A_TIME: Final = 500
"""So many arrive before the loop turns to its connections again."""
JOIN_SECONDS: Final = 5.0
CLOSED: Final = "the client was closed meanwhile"


class Arrival(Protocol):
    """What is handed to the loop: it arrives there, or is refused because the loop has ended."""

    def arrive(self) -> None:
        """Take effect, in the loop's thread. Raises nothing."""

    def refuse(self, why: NotOpen) -> None:
        """Fail for all that wait for it, in any thread."""


class BackgroundLoop:
    """An event loop in a daemon thread; every method but `start` may be called in any thread of its process."""

    def __init__(self, name: str) -> None:
        """Make a loop that runs once it is started, in a thread of that name."""
        self.loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._forks = forks()
        self._arriving: deque[Arrival] = deque()
        self._is_woken = False
        """Whether somebody has woken the loop, which has not looked yet."""
        self.told = 0
        """How many answers threads were told that have not come with anything since, as far as that is known."""
        self._has_ended = False
        self._calls: set[Call[Any]] = set()
        """Calls under way, which the loop's end ends."""
        self._kept: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        """Begin to run."""
        self._thread.start()

    @property
    def is_of_this_process(self) -> bool:
        """Whether it runs in this process, and not in one of which this was forked off."""
        return self._forks == forks()

    @property
    def has_ended(self) -> bool:
        """Whether it was stopped, and has ended."""
        return self._has_ended

    @property
    def is_here(self) -> bool:
        """Whether the caller runs in this loop."""
        return self._thread.ident == get_ident() and self.is_of_this_process

    def hand_over(self, arrival: Arrival) -> None:
        """Let it arrive in the loop, behind all that this thread has handed over before."""
        self._arriving.append(arrival)
        if self._has_ended:
            self._refuse_all()
        elif not self._is_woken:
            self._is_woken = True
            try:
                self.loop.call_soon_threadsafe(self._take_in)
            except RuntimeError:
                # The loop was closed just now.
                self._refuse_all()
            except BaseException:
                # Ctrl-C came in between: the next one wakes the loop.
                self._is_woken = False
                raise

    def run(
        self, do: Callable[Parameters, Awaitable[Result]], *arguments: Parameters.args, **named: Parameters.kwargs
    ) -> Result:
        """Return what `do` returns when it is awaited in the loop; whatever it raises is raised here.

        A caller that is interrupted cancels it. Raises NotOpen where the loop has ended, or in the loop itself.
        """
        self.check_that_one_may_wait()
        call = Call(self, do, arguments, named)
        try:
            self.hand_over(call)
            call.wait(None)
        except BaseException:
            call.cancel()
            raise
        return call.result()

    def begin(
        self, do: Callable[Parameters, Awaitable[object]], *arguments: Parameters.args, **named: Parameters.kwargs
    ) -> None:
        """Await what `do` returns in the loop, behind all that was handed over before; nobody hears of its end."""
        self.hand_over(Call(self, do, arguments, named))

    def call(self, do: Callable[Parameters, Result], *arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
        """Return what `do` returns when it is called in the loop; else as `run`."""

        async def awaited() -> Result:
            return do(*arguments, **named)

        return self.run(awaited)

    def keep(self, task: asyncio.Task[Any]) -> None:
        """Keep a task of the loop until it ends, also when nobody else does: the loop itself would not."""
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)

    def soon(self, do: Callable[[], object]) -> None:
        """Call `do` in the loop, unless that has ended."""
        if self.is_of_this_process:
            with suppress(RuntimeError):
                self.loop.call_soon_threadsafe(do)

    def check_that_one_may_wait(self) -> None:
        """Raise NotOpen where waiting would never end: in the loop's own thread, and in another process."""
        if not self.is_of_this_process:
            raise NotOpen("this was begun in another process, of which this one was forked off: begin it anew here")
        if self.is_here:
            raise NotOpen("nothing can be waited for in the client's own background thread: use another thread")

    def stop(self, *, wait: bool = True) -> None:
        """End the loop, with everything that is still under way in it; wait a few seconds for that."""
        self.soon(self.loop.stop)
        if wait and not self.is_here:
            self._thread.join(JOIN_SECONDS)

    def _take_in(self) -> None:
        arriving = self._arriving
        self._let_others_come()
        self._is_woken = False
        try:
            for _ in range(min(len(arriving), AT_A_TIME)):
                arriving.popleft().arrive()
        finally:
            if arriving and not self._is_woken:
                self._is_woken = True
                self.loop.call_soon(self._take_in)

    def _let_others_come(self) -> None:
        """Let threads that were just told their answers come with what follows, so that it leaves together.

        Each would be pushed alone otherwise, and decided in a transaction of its own. Nobody is waited for who takes
        longer than the interpreter takes to change threads.
        """
        came = 0
        while came < len(self._arriving) < self.told:
            came = len(self._arriving)
            time.sleep(0)
        # Where nobody came in between, the others have something else to do.
        self.told = max(self.told - len(self._arriving), 0) if came < len(self._arriving) else 0

    def _run(self) -> None:
        try:
            self.loop.run_forever()
        finally:
            try:
                self._cancel_all()
            finally:
                self.loop.close()
                self._has_ended = True
                self._refuse_all()

    def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.wait(tasks, timeout=JOIN_SECONDS / 2) if tasks else asyncio.sleep(0))

    def _refuse_all(self) -> None:
        with suppress(IndexError):
            while self._arriving:
                self._arriving.popleft().refuse(NotOpen(CLOSED))
        for call in list(self._calls):
            call.refuse(NotOpen(CLOSED))


class Call(Waited, Generic[Result]):
    """A coroutine that runs in the loop, while a thread waits for what it returns."""

    __slots__ = ("_arguments", "_background", "_do", "_error", "_named", "_result", "_task", "is_done", "wakes")

    def __init__(
        self,
        background: BackgroundLoop,
        do: Callable[..., Awaitable[Result]],
        arguments: tuple[Any, ...],
        named: dict[str, Any],
    ) -> None:
        self.is_done = False
        self.wakes: list[Wake] = []
        self._background = background
        self._do, self._arguments, self._named = do, arguments, named
        self._task: asyncio.Task[Result] | None = None
        self._result: Result | None = None
        self._error: BaseException | None = None

    def arrive(self) -> None:
        """Begin, unless it was cancelled before."""
        if not self.is_done:
            self._background._calls.add(self)
            self._task = self._background.loop.create_task(self._awaited())

    def refuse(self, why: NotOpen) -> None:
        """End with an error."""
        if not self.is_done:
            self._error = why
            self.end()

    def cancel(self) -> None:
        """Cancel it; nobody waits for it any more."""
        self.refuse(NotOpen(CLOSED))
        self._background.soon(self._cancel_here)

    def result(self) -> Result:
        """Return what it returned, or raise what it raised."""
        if self._error is not None:
            try:
                raise self._error
            finally:
                # The traceback leads here: without this, both would live until the next look for garbage.
                self._error = None
        return cast("Result", self._result)

    async def _awaited(self) -> Result:  # type: ignore[return]  # its task is not asked
        try:
            self._result = await self._do(*self._arguments, **self._named)
        except asyncio.CancelledError:
            self.refuse(NotOpen(CLOSED))
            raise
        except Exception as error:
            self._error = error
        finally:
            self._background._calls.discard(self)
            if not self.is_done:
                self.end()

    def _cancel_here(self) -> None:
        if self._task is not None:
            self._task.cancel()
