"""The two loops: in the closed one, task runs await their verdicts; the open one sends at a fixed rate regardless."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from statewright import Client, StatewrightError
from statewright_worker.bench.mixes import Runs
from statewright_worker.bench.options import Load
from statewright_worker.bench.samples import Journal
from statewright_worker.bench.steps import Step, first_step, following

TICK_SECONDS: Final = 0.001


class Loops:
    """Puts a load on a deployment between the moments `begins` and `ends` of the clock."""

    def __init__(
        self,
        client: Client,
        runs: Runs[Any],
        load: Load,
        journal: Journal,
        *,
        clock: Callable[[], float],
        begins: float,
        ends: float,
    ) -> None:
        self._client = client
        self._runs = runs
        self._load = load
        self._journal = journal
        self._clock = clock
        self._begins = begins
        self._ends = ends
        self._ready: deque[Step] = deque()
        self._asking: set[asyncio.Task[None]] = set()
        self._is_over = False
        """Whether an open loop begins nothing any more."""

    async def run(self) -> None:
        """Wait for the beginning, run the loop that the load asks for, and wait for its last answers."""
        await asyncio.sleep(max(self._begins - self._clock(), 0))
        if self._load.rate is None:
            await asyncio.gather(*[self._propose_in_turn() for _ in range(self._load.concurrency)])
        else:
            await self._open(self._load.rate)

    async def _propose_in_turn(self) -> None:
        step: Step | None = None
        while self._clock() < self._ends:
            step = await self._propose(step or self._first_step(), asked=self._clock())
        await self._end(step)

    async def _end(self, step: Step | None) -> None:
        """Let a task run come to its end whose slots parked proposals may wait for: they must be answered."""
        while step is not None and step.on_wait == "park":
            step = await self._propose(step, asked=self._clock())

    async def _open(self, rate: float) -> None:
        # Everything counts from when it should have happened: a producer that begins late or sends late catches up, and
        # its delay is part of the latency.
        begins, sent = self._begins, 0
        last = round((self._ends - begins) * rate)
        while sent < last:
            due = min(int((self._clock() - begins) * rate) + 1, last)
            for number in range(sent, due):
                self._ask(self._ready.popleft() if self._ready else self._first_step(), begins + number / rate)
            sent = due
            await asyncio.sleep(max(begins + sent / rate - self._clock(), TICK_SECONDS))
        self._is_over = True
        await asyncio.gather(*self._asking, *map(self._end, self._ready))

    def _ask(self, step: Step, asked: float) -> None:
        asking = asyncio.create_task(self._propose_for_later(step, asked))
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)

    async def _propose_for_later(self, step: Step, asked: float) -> None:
        following = await self._propose(step, asked)
        if self._is_over:
            await self._end(following)
        elif following is not None:
            self._ready.append(following)

    def _first_step(self) -> Step:
        return first_step(self._runs, self._journal)

    async def _propose(self, step: Step, asked: float) -> Step | None:
        """Propose, take down the answer, and return the task run's next step, or None when it has none."""
        try:
            verdict = await self._client.propose(step.run_id, step.state, on_wait=step.on_wait)
        except StatewrightError as error:
            self._journal.failed(asked, error)
            return None
        self._journal.answered(asked, verdict.status)
        return following(step, verdict)
