"""What a producer holds leases with: `keep_alive` for one run, an executor for many."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from statewright.client.heart import Heart, Kept
from statewright.client.sent import SentRun
from statewright.errors import LeaseLost, NotOpen
from statewright.states import ProposedState
from statewright.verdicts import Verdict


class KeepAlive:
    """Renews a run's lease while its block runs; `Client.keep_alive` makes one.

    When the run is no longer the block's own, the block is cancelled, and LeaseLost is raised in its place, as
    `asyncio.timeout` does with TimeoutError.
    """

    def __init__(self, heart: Heart, kept: Kept) -> None:
        """Take the lease, as far as it is known."""
        self._heart = heart
        self._kept = kept
        kept.lost, kept.learnt = self._take_loss, self._take_answer
        self._known: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self.lost: LeaseLost | None = None
        """Why the lease was lost, None while it is kept."""

    @property
    def run_id(self) -> UUID:
        """The run whose lease is renewed."""
        return self._kept.run_id

    async def __aenter__(self) -> Self:
        """Begin; where nobody has said how long the lease is, wait for the first answer.

        Raises LeaseLost when that says that there is no such lease.
        """
        waits = self._kept.seconds is None
        self._heart.keep(self._kept)
        if waits:
            try:
                await self._known
            except asyncio.CancelledError:
                self._heart.drop(self._kept)
                raise
            if self.lost is not None:
                raise self.lost
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # a coroutine that awaits runs in a task
        self._task, self._cancelling = task, task.cancelling()
        if self.lost is not None:
            task.cancel()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End. Raises LeaseLost when the block was cancelled because the lease was lost."""
        task, self._task = self._task, None
        self._heart.drop(self._kept)
        if self.lost is None or task is None:
            return
        if (
            task.uncancel() <= self._cancelling
            and exc_type is not None
            and issubclass(exc_type, asyncio.CancelledError)
        ):
            raise self.lost from exc

    def _take_loss(self, why: LeaseLost) -> None:
        self.lost = why
        self._take_answer()
        if self._task is not None:
            self._task.cancel()

    def _take_answer(self) -> None:
        if not self._known.done():
            self._known.set_result(None)


class Executor:
    """Holds many runs under one lease for each partition; `Client.executor` makes one.

        async with client.executor("worker-7", lease=30, on_lost=stop) as executor:
            verdict = await executor.propose(run, State.running())

    Its name must be its own: two processes with one name would hold each other's runs.
    """

    def __init__(
        self,
        name: str,
        seconds: float,
        on_lost: Callable[[LeaseLost], object] | None,
        *,
        heart: Heart,
        propose: Callable[..., SentRun[Verdict]],
        partition_of: Callable[[UUID], int],
    ) -> None:
        """Take the name, the lease in seconds, and what is called with each run that is lost."""
        self.name = name
        self._seconds = seconds
        self._on_lost = on_lost
        self._heart = heart
        self._propose = propose
        self._partition_of = partition_of
        self._is_open = False
        self._held: dict[UUID, Kept] = {}
        self._asked: set[SentRun[Verdict]] = set()
        """Proposals whose verdicts are still to come, each kept so that somebody waits for it."""

    @property
    def runs(self) -> frozenset[UUID]:
        """The runs that it holds, as far as it has heard."""
        return frozenset(self._held)

    async def __aenter__(self) -> Self:
        """Begin to hold runs."""
        self._is_open = True
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Renew no more. What is still RUNNING is the caller's to end: it is CRASHED when the lease has ended."""
        self._is_open = False
        self._asked.clear()
        for kept in self._held.values():
            self._heart.drop(kept)
        self._held.clear()

    def propose(self, run: Any, state: ProposedState, **options: Any) -> SentRun[Verdict]:
        """Propose a state as `Client.propose` does; RUNNING is held by this executor's lease from its verdict on.

        What ends a run that it holds should be proposed here as well; otherwise the run counts as lost. Raises NotOpen
        outside of the block.
        """
        if not self._is_open:
            raise NotOpen("an executor proposes within its `async with`")
        if state.is_running():
            options |= {"lease": self._seconds, "executor": self.name}
        sent, sent_at = self._propose(run, state, **options), asyncio.get_running_loop().time()
        self._asked.add(sent)

        def take(verdict: Verdict | None) -> None:
            self._asked.discard(sent)
            if verdict is not None and self._is_open:
                self._take(verdict, sent_at)

        sent.when_answered(take)
        return sent

    def _take(self, verdict: Verdict, sent_at: float) -> None:
        run_id, state = verdict.run_id, verdict.state
        held = self._held.pop(run_id, None)
        if held is not None:
            self._heart.drop(held)
        if state is None or not state.is_running() or state.state_details.executor != self.name:
            return
        kept = Kept(run_id, self._partition_of(run_id), self.name, state.id, self._seconds, self._lose)
        self._held[run_id] = kept
        # The lease began when the engine decided, which was later.
        self._heart.keep(kept, since=sent_at)

    def _lose(self, why: LeaseLost) -> None:
        self._held.pop(why.run_id, None)
        if self._on_lost is not None:
            # Not within the heart, which must go on whatever is raised.
            asyncio.get_running_loop().call_soon(self._on_lost, why)
