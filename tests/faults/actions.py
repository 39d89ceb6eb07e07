"""Random actions on a few runs and limits: what producers, executors and operators may do, in any order.

    python -m tests.faults.actions --examples 1000 --replicas 3

Each example has its own runs and limits. Nobody waits for an answer before the next action, except where an action says
so. At the end of each example, its history is checked, and everything parked must be answered once no limit is left.
"""

import argparse
import asyncio
import sys
import tempfile
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Final
from uuid import UUID

import uvloop
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from statewright import Client, NoAnswer, RunPolicy, State, StatewrightError
from statewright.ids import IdSource
from statewright_worker.embedded import embedded_servers
from statewright_worker.migrating import migrate_database
from tests.deployment import HANGS_SECONDS, Deployment, _administer, _with_database, until
from tests.faults.history import OVERDUE, WAITING_FOR_NOTHING, checked, watch

NAME: Final = "actions"
QUIET_SECONDS: Final = 15
"""After so long without an action, nobody may wait where there is room."""
FLOW_RUNS: Final = 3
RUNS: Final = 9
IDS: Final = IdSource()
ENDS: Final = {
    "completed": State.completed(),
    "failed": State.failed(),
    "crashed": State.crashed(),
    "cancelled": State.cancelled(),
}

Action = tuple[Any, ...]
_RUN = st.integers(0, RUNS - 1)
_PRIORITY = st.sampled_from([0, 0, 0, 1, -1])
_PARK: Final = st.tuples(
    st.just("park"), _RUN, _PRIORITY, st.sampled_from([None, None, None, 0.2]), st.sampled_from([None, None, 0.5, 60.0])
)
ACTIONS: Final = st.lists(
    st.one_of(
        _PARK,
        _PARK,
        st.tuples(st.just("run"), _RUN, st.sampled_from([None, None, 0.5])),
        st.tuples(st.just("force"), _RUN),
        st.tuples(st.just("end"), _RUN, st.sampled_from(sorted(ENDS)), st.booleans()),
        st.tuples(st.just("end"), _RUN, st.sampled_from(sorted(ENDS)), st.just(False)),
        st.tuples(st.just("schedule"), _RUN),
        st.tuples(
            st.just("limit"),
            st.integers(0, 3),
            st.sampled_from([None, 0, 1, 1, 2, 3]),
            st.sampled_from([None, None, 0.5]),
        ),
        st.tuples(st.just("withdraw"), st.integers(0, 20)),
        st.tuples(st.just("delete"), _RUN),
        st.tuples(st.just("heartbeat"), _RUN),
        st.tuples(st.just("tag"), _RUN, st.sampled_from(["", "a", "b", "ab"])),
        st.tuples(st.just("wait"), st.sampled_from([0.0, 0.02, 0.3])),
        st.tuples(st.just("settle")),
    ),
    min_size=4,
    max_size=30,
)


class Example:
    """One example: its runs and limits, and what was asked for."""

    def __init__(self, deployment: Deployment, client: Client, number: int) -> None:
        self.deployment = deployment
        self.client = client
        self.limits: list[dict[str, Any]] = [
            {"tag": f"a{number}"},
            {"tag": f"b{number}"},
            {"name": f"n{number}"},
            {"deployment_id": IDS.new()},
        ]
        self.runs: list[UUID] = []
        self.sent: list[asyncio.Future[Any]] = []
        self.parked: list[tuple[Any, asyncio.Future[Any]]] = []
        self.forced: list[asyncio.Future[Any]] = []
        self.priorities: dict[UUID, int] = {}

    async def prepare(self) -> None:
        """Create the runs: some task runs with tags, some of a flow run, some flow runs; each limit is 1 at first."""
        for limit in self.limits:
            await self.client.set_limit(**limit, concurrency_limit=1)
        a, b, name, of = (next(iter(limit.values())) for limit in self.limits)
        policy = RunPolicy(limits=(name,))
        flow = await self.client.create_flow_run("flow", policy=policy, deployment_id=of)
        made: list[Any] = [
            self.client.create_flow_run("flow", deployment_id=of),
            self.client.create_flow_run("flow", deployment_id=of, policy=policy),
            self.client.create_task_run("task", flow_run=flow, tags=[a]),
            self.client.create_task_run("task", flow_run=flow, tags=[a, b]),
            self.client.create_task_run("task", tags=[a]),
            self.client.create_task_run("task", tags=[b, a], policy=policy),
            self.client.create_task_run("task", tags=[b]),
            self.client.create_task_run("task", policy=policy),
        ]
        self.runs = [flow.id, *[(await run).id for run in made]]
        assert len(self.runs) == RUNS

    async def act(self, action: Action) -> None:
        """Do one thing."""
        name, *arguments = action
        await getattr(self, f"_{name}")(*arguments)

    async def _run(self, run: int, lease: float | None) -> None:
        self._send(self.client.propose(self.runs[run], State.running(), lease=lease))

    async def _force(self, run: int) -> None:
        self.forced.append(self._send(self.client.propose(self.runs[run], State.running(), force=True)))

    async def _end(self, run: int, how: str, cascade: bool) -> None:
        leads = cascade and how in ("cancelled", "crashed")
        self._send(self.client.propose(self.runs[run], ENDS[how], cascade=leads))

    async def _schedule(self, run: int) -> None:
        at = datetime.now(UTC) + timedelta(seconds=0.3)
        self._send(self.client.propose(self.runs[run], State.scheduled(at), force=True))

    async def _limit(self, which: int, number: int | None, period: float | None) -> None:
        self._send(
            self.client.set_limit(**self.limits[which], concurrency_limit=number, period=period if number else None)
        )

    async def _withdraw(self, which: int) -> None:
        if self.parked:
            self.sent.append(asyncio.ensure_future(self.client.withdraw(self.parked[which % len(self.parked)][0])))

    async def _delete(self, run: int) -> None:
        table = "flow_run" if run < FLOW_RUNS else "task_run"
        await self.deployment.execute(f"DELETE FROM {table} WHERE id = '{self.runs[run]}'")

    async def _tag(self, run: int, tags: str) -> None:
        # Refused while the run is RUNNING, or at its end.
        chosen = [limit["tag"] for limit in self.limits if limit.get("tag", "-")[0] in tags]
        self._send(self.client.update_run(self.runs[run], tags=chosen))

    async def _heartbeat(self, run: int) -> None:
        self.sent.append(asyncio.ensure_future(self.client.heartbeat(self.runs[run])))

    async def _wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def _send(self, sent: Any) -> "asyncio.Future[Any]":
        answer: asyncio.Future[Any] = asyncio.ensure_future(sent.answer())
        self.sent.append(answer)
        return answer

    async def _park(self, run: int, priority: int, timeout: float | None, lease: float | None) -> None:
        run_id = self.runs[run]
        self.priorities[run_id] = max(priority, self.priorities.get(run_id, 0))
        options: dict[str, Any] = {"priority": priority, "park_timeout": timeout, "lease": lease}
        sent = self.client.propose(run_id, State.running(), on_wait="park", **options)
        self.parked.append((sent, asyncio.ensure_future(sent.answer())))

    async def _settle(self) -> None:
        for answer in await asyncio.gather(*self.sent, return_exceptions=True):
            # The run may have been deleted.
            assert not isinstance(answer, BaseException) or isinstance(answer, StatewrightError), answer

    async def end(self) -> None:
        """Check the history, remove every limit, and check that everything parked is answered."""
        await self._settle()
        await asyncio.gather(*(sent.until_parked() for sent, _ in self.parked), return_exceptions=True)
        await self._until_quiet()
        forced = [answer.result() for answer in self.forced if answer.exception() is None]
        states = [verdict.state.id for verdict in forced if verdict.state is not None]
        await self._check(states)
        await asyncio.gather(*(self.client.set_limit(**limit, concurrency_limit=None) for limit in self.limits))
        async with asyncio.timeout(HANGS_SECONDS):
            answers = await asyncio.gather(*(answer for _, answer in self.parked), return_exceptions=True)
        unanswered = [answer for answer in answers if isinstance(answer, NoAnswer)]
        assert not unanswered, unanswered
        await until(self._is_empty)
        await self._check(states)

    async def forget(self) -> None:
        """Leave nothing to the next example, so that a failing one can be made smaller."""
        for answer in (*self.sent, *(answer for _, answer in self.parked)):
            answer.cancel()
        runs = ", ".join(f"'{run}'" for run in self.runs)
        await asyncio.gather(*(self.client.set_limit(**limit, concurrency_limit=None) for limit in self.limits))
        await self.deployment.execute(f"DELETE FROM parked WHERE run_id IN ({runs})")

    async def _check(self, forced: list[UUID]) -> None:
        found = await checked(self.deployment, self.priorities, forced)
        wrong = {check: problems for check, problems in found.problems.items() if problems}
        assert not wrong, wrong

    async def _until_quiet(self) -> None:
        try:
            await until(self._is_quiet, seconds=QUIET_SECONDS)
        except TimeoutError:
            # What is wrong stands in the checks.
            return

    async def _is_quiet(self) -> bool:
        return not await self.deployment.fetch(f"{WAITING_FOR_NOTHING} UNION ALL {OVERDUE}")

    async def _is_empty(self) -> bool:
        return not await self.deployment.fetch("SELECT FROM parked UNION ALL SELECT FROM waiter")


class Examples:
    """Runs examples one after the other against one deployment."""

    def __init__(self, deployment: Deployment, client: Client) -> None:
        self._deployment = deployment
        self._client = client
        self._numbers = count()

    async def run(self, actions: list[Action]) -> None:
        """Run one example. Raises AssertionError when something is wrong."""
        await self._deployment.execute("TRUNCATE written")
        example = Example(self._deployment, self._client, next(self._numbers))
        await example.prepare()
        try:
            for action in actions:
                await example.act(action)
            await example.end()
        finally:
            await example.forget()


async def try_examples(deployment: Deployment, *, examples: int, replicas: int, start: int | None = None) -> None:
    """Try so many examples against so many replicas in this process. Raises what the first failing one raises, when it
    is as small as can be found; without `start` they are the same ones each time."""
    loop = asyncio.get_running_loop()
    await watch(deployment)
    async with AsyncExitStack() as stack:
        for _ in range(replicas):
            await stack.enter_async_context(deployment.worker())
        client = await stack.enter_async_context(deployment.client())
        tried = Examples(deployment, client)

        # The examples that shrink a failing one take seconds each, so few of them are tried.
        phases = (Phase.explicit, Phase.generate, Phase.shrink)
        within = settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=start is None,
            phases=phases,
            suppress_health_check=list(HealthCheck),
        )

        @within
        @given(ACTIONS)
        def each(actions: list[Action]) -> None:
            asyncio.run_coroutine_threadsafe(tried.run(actions), loop).result()

        await asyncio.to_thread(each if start is None else seed(start)(each))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1_000, help="how many examples are tried")
    parser.add_argument("--replicas", type=int, default=3, help="replicas in this process")
    parser.add_argument("--seed", type=int, default=Random().randrange(10**6), help="of the examples")
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", file=sys.stderr, flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="statewright-actions-") as folder,
        embedded_servers(Path(folder)) as servers,
    ):
        deployment = Deployment(_with_database(servers.database_url, NAME), servers.redis_url, NAME, Path(folder))

        async def run() -> None:
            await _administer(servers, f"CREATE DATABASE {NAME}")
            await migrate_database(deployment.database_url)
            await try_examples(deployment, examples=chosen.examples, replicas=chosen.replicas, start=chosen.seed)

        uvloop.run(run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
