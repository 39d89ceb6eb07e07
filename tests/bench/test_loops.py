"""What a loop sends, whatever the machine does meanwhile."""

import asyncio
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from statewright import ProposedState, SetStateStatus, Verdict
from statewright.ids import IdSource
from statewright_worker.bench.loops import Loops
from statewright_worker.bench.mixes import Made, Task, states
from statewright_worker.bench.options import Load, Mix
from statewright_worker.bench.samples import Journal

IDS = IdSource()


class Accepting:
    """A client all of whose proposals are accepted at once."""

    async def propose(self, run_id: UUID, state: ProposedState, *, on_wait: str) -> Verdict:
        return Verdict(proposal_id=IDS.new(), run_id=run_id, status=SetStateStatus.ACCEPT)


class NewRuns:
    """Makes a new task run each time."""

    def make(self) -> Made[Any]:
        run: Any = SimpleNamespace(run_id=IDS.new())
        return Made(run, Task(states(None, fails=False, on_cached=print)), requests=1)


async def test_an_open_loop_that_begins_late_catches_up() -> None:
    clock = asyncio.get_running_loop().time
    client: Any = Accepting()
    runs: Any = NewRuns()
    load = Load(Mix.PLAIN, seconds=0.5, warm_up=0, rate=100)
    # It should have begun half of its time ago.
    begins = clock() - 0.25
    journal = Journal(load.seconds, begins, clock)
    await Loops(client, runs, load, journal, clock=clock, begins=begins, ends=begins + 0.5).run()
    assert journal.samples.statuses == {"ACCEPT": 50}
    assert journal.samples.latencies()[-1] > 200
