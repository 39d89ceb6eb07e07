"""The storage alone: what a batch's transaction takes, by the batch's size, without Redis and without a worker."""

import argparse
import asyncio
import time
from collections import defaultdict
from datetime import datetime
from typing import Final
from uuid import UUID

from statewright import ProposedState, State
from statewright.ids import IdSource
from statewright.protocol.requests import Propose
from statewright_worker.bench.target import Target, embedded_target
from statewright_worker.facts.batch import Asked, Batch
from statewright_worker.orchestration.engine import Engine, Proposal
from statewright_worker.orchestration.records import TaskRunRecord
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.storage import database, statements
from statewright_worker.storage.transactions import Fence, Storage
from tests.benchmarks.harness import show

SIZES: Final = (1, 4, 16, 64, 256, 1_024)
STATES: Final = (State.pending(), State.running(), State.completed())
IDS: Final = IdSource()
ENGINE: Final = Engine()

Taken = dict[str, float]
"""Seconds by step."""


async def create(storage: Storage, fence: Fence, count: int) -> list[UUID]:
    """Create task runs in a batch of their own, which is not measured."""
    run_ids = [IDS.new() for _ in range(count)]
    asked = Asked()
    asked.runs.ids.update(run_ids)
    async with storage.transaction(fence.partition) as transaction:
        batch = Batch(transaction, fence)
        work = await batch.load(asked, IDS)
        for run_id in run_ids:
            work.create_run(TaskRunRecord(id=run_id, name="bench", created=work.now))
        await batch.write(work)
    return run_ids


async def transact(storage: Storage, fence: Fence, run_ids: list[UUID], state: ProposedState) -> Taken:
    """Let the runs enter the state in one batch, and return what each step took."""
    proposed = {IDS.new(): run_id for run_id in run_ids}
    asked = Asked()
    asked.runs.ids.update(run_ids)
    asked.ledger.request_ids.extend(proposed)
    for run_id in run_ids:
        propose = Propose(run_id=run_id, state=state)
        asked.foretell(propose, ENGINE.needs(propose))
    marks = [time.perf_counter()]
    async with storage.transaction(fence.partition) as transaction:
        batch = Batch(transaction, fence)
        marks.append(time.perf_counter())
        work = await batch.load(asked, IDS)
        marks.append(time.perf_counter())
        await decide(work, proposed, state, work.now)
        marks.append(time.perf_counter())
        await batch.write(work)
        marks.append(time.perf_counter())
    marks.append(time.perf_counter())
    steps = ("begin", "fence, lock and load", "decide", "write", "commit")
    return {step: after - before for step, before, after in zip(steps, marks, marks[1:], strict=False)}


async def decide(work: UnitOfWork, proposed: dict[UUID, UUID], state: ProposedState, now: datetime) -> None:
    for proposal_id, run_id in proposed.items():
        work.begin()
        work.record_verdict(await ENGINE.decide(Proposal(proposal_id, run_id, state, now), work))
        work.commit()


async def measure(target: Target, total: int) -> None:
    engine = database.create_engine(target.database_url or "", pool_size=2, settings=statements.BATCH_SETTINGS)
    try:
        storage = Storage(engine)
        await database.fix_partitions(engine, None, default=8)
        fence = (await storage.take_up(0)).fence
        rows = [await row(storage, fence, size, total) for size in SIZES]
        await storage.release(0)
    finally:
        await engine.dispose()
    await asyncio.to_thread(
        show,
        "The storage alone, milliseconds per batch",
        ["proposals in a batch", "begin", "fence, lock and load", "decide", "write", "commit", "transitions/s"],
        rows,
        target=target,
    )


async def row(storage: Storage, fence: Fence, size: int, total: int) -> list[object]:
    """Return the row of one batch size: the mean of each step, and how many transitions a second that makes."""
    taken: defaultdict[str, float] = defaultdict(float)
    rounds = max(total // (size * len(STATES)), 2)
    for _ in range(rounds):
        run_ids = await create(storage, fence, size)
        for state in STATES:
            for step, seconds in (await transact(storage, fence, run_ids, state)).items():
                taken[step] += seconds
    batches = rounds * len(STATES)
    return [size, *[f"{1_000 * seconds / batches:.2f}" for seconds in taken.values()], _rate(size, batches, taken)]


def _rate(size: int, batches: int, taken: Taken) -> float:
    return size * batches / sum(taken.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--total", type=int, default=3_000, help="transitions per batch size, about")
    total = parser.parse_args().total
    # No worker: the one partition is ours.
    with embedded_target(0) as target:
        asyncio.run(measure(target, total))


if __name__ == "__main__":
    main()
