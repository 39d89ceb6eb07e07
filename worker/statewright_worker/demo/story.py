"""The story that the demo tells: a producer and a subscriber of one flow run, through the public client alone."""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from statewright import (
    TERMINAL_STATES,
    Client,
    ConcurrencyLimit,
    Event,
    FlowRun,
    ProposedState,
    RunHistory,
    RunPolicy,
    SetStateStatus,
    State,
    Subscription,
    TaskRun,
    Verdict,
)
from statewright.runs import Run
from statewright_worker.demo.journal import Journal

DATABASE: Final = "database"
DATABASE_SLOTS: Final = 2
SUMMARY_KEY: Final = "summary-of-the-day"
EVENTS_TIMEOUT_SECONDS: Final = 10.0
NEVER_RETRIED: Final = RunPolicy()


@dataclass(frozen=True, slots=True)
class Task:
    """One task of the flow, and how it behaves."""

    name: str
    tags: tuple[str, ...] = ()
    policy: RunPolicy = NEVER_RETRIED
    cache_key: str | None = None
    starts_in: timedelta | None = None
    failures: int = 0
    """How many attempts fail before one succeeds."""
    work_seconds: float = 0.06

    def first_state(self) -> ProposedState:
        """Return the state in which the task's run begins."""
        return State.scheduled(datetime.now(UTC) + self.starts_in) if self.starts_in else State.pending()

    async def work(self, attempt: int) -> ProposedState:
        """Do what the task is there for, and return the state in which this attempt ends."""
        await asyncio.sleep(self.work_seconds)
        if attempt <= self.failures:
            return State.failed(message="the exchange did not answer")
        return State.completed(data={"rows": 1_000}, cache_key=self.cache_key)


# The tasks of a stage run concurrently; the next stage begins when all of them have ended.
STAGES: Final = (
    (
        Task("load-customers", tags=(DATABASE,), work_seconds=0.09),
        Task("load-orders", tags=(DATABASE,), work_seconds=0.07),
        Task("load-invoices", tags=(DATABASE,), work_seconds=0.05),
        Task("load-payments", tags=(DATABASE,), work_seconds=0.08),
        Task("load-stock", tags=(DATABASE,), work_seconds=0.04),
        Task("fetch-rates", policy=RunPolicy(retries=1, retry_delay=2.5), failures=1),
    ),
    (
        Task("summarise", cache_key=SUMMARY_KEY),
        Task("draw-charts", work_seconds=0.09),
        Task("resize-photos", work_seconds=0.03),
    ),
    (
        Task("summarise-again", cache_key=SUMMARY_KEY),
        Task("archive", tags=(DATABASE,)),
        Task("send-report", starts_in=timedelta(seconds=3.5)),
    ),
)


@dataclass(frozen=True, slots=True)
class Ending:
    """How things stand when the story is over, as read back through the client."""

    histories: list[RunHistory]
    """The history of the flow run comes first, those of its task runs follow."""
    limit: ConcurrencyLimit | None


async def tell_story(redis_url: str, journal: Journal) -> Ending:
    """Run a flow and listen to its events at the same time, until the last event is heard; return how things stand."""
    # It subscribes before anything happens: what is published from here on is heard, however late it is read.
    async with Client(redis_url) as client, client.subscribe() as subscription:
        flow_run = await client.create_flow_run("nightly-report", tags=["demo"])
        listening = asyncio.create_task(listen(subscription, flow_run.id, journal))
        try:
            task_runs = await Producer(client, journal).run_flow(flow_run)
            # An event that never comes is no error here: `check` finds that it is missing from a history's events.
            with suppress(TimeoutError):
                await asyncio.wait_for(listening, EVENTS_TIMEOUT_SECONDS)
        finally:
            listening.cancel()
        histories = await asyncio.gather(*[client.read_run(run) for run in (flow_run, *task_runs)])
        return Ending(histories, await client.read_limit(DATABASE))


async def listen(subscription: Subscription, flow_run_id: UUID, journal: Journal) -> None:
    """Take down every event until the flow run has ended. The last events of its task runs come before that."""
    async for event in subscription:
        journal.heard(event)
        if event.run_id == flow_run_id and _is_last(event):
            return


class Producer:
    """Runs a flow: proposes every state, and abides by the verdicts."""

    def __init__(self, client: Client, journal: Journal) -> None:
        self._client = client
        self._journal = journal

    async def run_flow(self, flow_run: FlowRun) -> list[TaskRun]:
        """Run the flow, stage by stage, and return the task runs."""
        await self._client.set_limit(DATABASE, DATABASE_SLOTS)
        await self._propose(flow_run, State.pending())
        await self._propose(flow_run, State.running())
        task_runs: list[TaskRun] = []
        for stage in STAGES:
            task_runs += await asyncio.gather(*[self._run_task(flow_run, task) for task in stage])
        # As if somebody had missed that this run has ended: the verdict is ABORT.
        await self._propose(task_runs[0], State.running())
        await self._propose(flow_run, State.completed())
        return task_runs

    async def _run_task(self, flow_run: FlowRun, task: Task) -> TaskRun:
        run = await self._client.create_task_run(task.name, flow_run=flow_run, tags=task.tags, policy=task.policy)
        await self._propose(run, task.first_state())
        attempt = 0
        # When it is not accepted, there is nothing to do, for example because its result is cached.
        while (await self._enter_running(run, task)).accepted:
            attempt += 1
            ended = await self._propose(run, await task.work(attempt))
            if ended.accepted:
                break
            # FAILED was rejected, and the run awaits its retry: once more.
        return run

    async def _enter_running(self, run: TaskRun, task: Task) -> Verdict:
        """Propose RUNNING until the verdict is not WAIT, with the pauses that it asks for, and return it."""
        while True:
            verdict = await self._propose(run, State.running(cache_key=task.cache_key))
            if verdict.status is not SetStateStatus.WAIT:
                return verdict
            await asyncio.sleep(verdict.delay_seconds or 0)

    async def _propose(self, run: Run, state: ProposedState) -> Verdict:
        asked = time.perf_counter()
        verdict = await self._client.propose(run, state)
        self._journal.answered(run, state, verdict, time.perf_counter() - asked)
        return verdict


def _is_last(event: Event) -> bool:
    return event.data.resource.state_type in TERMINAL_STATES
