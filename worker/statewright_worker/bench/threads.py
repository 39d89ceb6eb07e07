"""The closed loop without an event loop: threads share a client, and each keeps its part of the task runs in flight."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from statewright import StatewrightError, Verdict
from statewright.sync import AsAnswered, Client, SentProposal
from statewright_worker.bench.mixes import Mixer, Runs
from statewright_worker.bench.options import Load
from statewright_worker.bench.samples import Journal, Samples
from statewright_worker.bench.steps import Step, first_step, following


class Threads:
    """Puts a load on a deployment, from several threads."""

    def __init__(self, client: Client, load: Load, count: int) -> None:
        self._load = load
        self._loops = [
            _Loop(client, Runs(client, Mixer(load.mix, number)), part)
            for number, part in enumerate(load.shared_by(count))
            if part.concurrency
        ]

    def prepare(self) -> None:
        """Create the task runs that are to be there before the load begins."""
        for loop in self._loops:
            loop.prepare()

    def run(
        self, clock: Callable[[], float], begins: float, tell: Callable[[int], object], tell_seconds: float
    ) -> Samples:
        """Run the loops from `begins` on, and return what they have measured; `tell` is told how many answers came."""
        opens = begins + self._load.warm_up
        journals = [Journal(self._load.seconds, opens, clock) for _ in self._loops]
        with ThreadPoolExecutor(len(self._loops)) as pool:
            running: set[Future[None]] = {
                pool.submit(loop.run, journal, clock, begins, opens + self._load.seconds)
                for loop, journal in zip(self._loops, journals, strict=True)
            }
            while wait(running, timeout=tell_seconds).not_done:
                tell(sum(len(journal.samples.answered) for journal in journals))
        for ended in running:
            ended.result()
        return Samples.together(self._load.seconds, (journal.samples for journal in journals))


class _Loop:
    """One thread's part."""

    def __init__(self, client: Client, runs: Runs[Any], load: Load) -> None:
        self._client = client
        self._runs = runs
        self._load = load

    def prepare(self) -> None:
        for created in self._runs.prepare(self._load.prepared):
            for run in created:
                run.answer()

    def run(self, journal: Journal, clock: Callable[[], float], begins: float, ends: float) -> None:
        time.sleep(max(begins - clock(), 0))
        under_way: AsAnswered[SentProposal[Verdict]] = AsAnswered()
        asked: dict[SentProposal[Verdict], tuple[float, Step]] = {}

        def ask(step: Step) -> None:
            moment = clock()
            sent = self._client.propose(step.run_id, step.state, on_wait=step.on_wait)
            asked[sent] = moment, step
            under_way.add(sent)

        for _ in range(self._load.concurrency):
            ask(first_step(self._runs, journal))
        for sent in under_way:
            moment, step = asked.pop(sent)
            next_step: Step | None = None
            try:
                verdict = sent.answer()
            except StatewrightError as error:
                journal.failed(moment, error)
            else:
                journal.answered(moment, verdict.status)
                next_step = following(step, verdict)
            if clock() < ends:
                ask(next_step or first_step(self._runs, journal))
            elif next_step is not None and next_step.on_wait == "park":
                # Parked proposals may wait for its slots: they must be answered.
                ask(next_step)
