"""What a producer without an event loop holds leases with: `keep_alive` for one run, an executor for many."""

import sys
from collections import deque
from collections.abc import Callable
from threading import ExceptHookArgs, Lock, Thread, current_thread, excepthook
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from statewright.client import leases as within_a_loop
from statewright.errors import LeaseLost
from statewright.states import ProposedState
from statewright.sync.background import BackgroundLoop
from statewright.sync.blocks import Hosted
from statewright.sync.sent import SentRun, under_way
from statewright.verdicts import Verdict


class KeepAlive:
    """Renews a run's lease while its block runs; `Client.keep_alive` makes one.

    When the run is no longer the block's own, `lost` says why, `check` raises it, and so does the end of the block. The
    block itself goes on until then, because nothing can cancel it: a long one should call `check` now and then.
    """

    def __init__(self, client: object, background: BackgroundLoop, kept: within_a_loop.KeepAlive) -> None:
        """Take a lease of the client, which lives at least as long."""
        self._client = client
        self._kept = kept
        self._block = Hosted(background, kept)

    @property
    def run_id(self) -> UUID:
        """The run whose lease is renewed."""
        return self._kept.run_id

    @property
    def lost(self) -> LeaseLost | None:
        """Why the lease was lost, None while it is kept."""
        return self._kept.lost

    def check(self) -> None:
        """Raise LeaseLost when the lease is lost."""
        if self.lost is not None:
            raise self.lost

    def __enter__(self) -> Self:
        """Begin; where nobody has said how long the lease is, wait for the first answer.

        Raises LeaseLost when that says that there is no such lease.
        """
        self._block.enter()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End. Raises LeaseLost when the lease was lost, unless the block itself has raised something."""
        self._block.leave(exc)
        if exc is None:
            self.check()


class Executor:
    """Holds many runs under one lease for each partition; `Client.executor` makes one.

        with client.executor("worker-7", lease=30, on_lost=stop) as executor:
            verdict = executor.propose(run, State.running()).answer()

    Its name must be its own: two processes with one name would hold each other's runs.
    """

    def __init__(self, client: object, background: BackgroundLoop, executor: within_a_loop.Executor) -> None:
        """Take an executor of the client, which lives at least as long."""
        self._client = client
        self._background = background
        self._executor = executor
        self._block = Hosted(background, executor)

    @property
    def name(self) -> str:
        """Its name."""
        return self._executor.name

    @property
    def runs(self) -> frozenset[UUID]:
        """The runs that it holds, as far as it has heard."""
        return self._background.call(lambda: self._executor.runs)

    def __enter__(self) -> Self:
        """Begin to hold runs."""
        self._block.enter()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Renew no more. What is still RUNNING is the caller's to end: it is CRASHED when the lease has ended."""
        self._block.leave(exc)

    def propose(self, run: Any, state: ProposedState, **options: Any) -> SentRun[Verdict]:
        """Propose a state as `Client.propose` does; RUNNING is held by this executor's lease from its verdict on.

        What ends a run that it holds should be proposed here as well; otherwise the run counts as lost. Raises NotOpen
        outside of the block.
        """
        return under_way(self._client, self._background.call(self._executor.propose, run, state, **options))


class Apart:
    """Calls a user's function in a thread of its own, once for each loss, one after the other.

    So the function may take its time and wait for answers, while the loop goes on.
    """

    def __init__(self, do: Callable[[LeaseLost], object]) -> None:
        self._do = do
        self._lost: deque[LeaseLost] = deque()
        self._lock = Lock()
        self._is_working = False

    def __call__(self, lost: LeaseLost) -> None:
        """Have it called, soon."""
        with self._lock:
            self._lost.append(lost)
            if not self._is_working:
                self._is_working = True
                Thread(target=self._work, name="statewright-on-lost", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._lost:
                    self._is_working = False
                    return
                lost = self._lost.popleft()
            try:
                self._do(lost)
            except Exception:
                # As if it had ended its thread; the next loss is told all the same.
                excepthook(ExceptHookArgs((*sys.exc_info(), current_thread())))
