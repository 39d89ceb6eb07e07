"""Waiting under fire: producers park every RUNNING on a few limits while workers are killed at random.

    python -m tests.faults.waiting --seconds 60 --workers 3

Each run has three tags of five, whose limits are 1 to 5, and is COMPLETED as soon as its RUNNING is answered. Another
one takes its place until the time is over. Half-way everything in Redis is deleted, requests included, with `--flush`.

At the end the history is checked as `tests/faults/history.py` says; the exit status is 1 when something is wrong.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final, TypeVar
from uuid import UUID

import uvloop

from statewright import Client, NoAnswer, Overloaded, RedisUnavailable, State
from statewright.errors import Delivery
from statewright.ids import IdSource
from statewright_worker.embedded import embedded_servers
from statewright_worker.migrating import migrate_database
from tests.deployment import HANGS_SECONDS, Deployment, _administer, _with_database, until
from tests.faults.history import Found, audited, checked, watch

NAME: Final = "waiting"
LIMITS: Final = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
TAGS_EACH: Final = 3
PRIORITIES: Final = (0, 0, 0, 1, -1)
ASK_AGAIN_SECONDS: Final = 1.0
PARKED_SECONDS: Final = 10.0
"""After so long, a producer asks again: the answer to a parked proposal that Redis has lost comes by that alone."""
REFUSED_SECONDS: Final = 0.05
KILLED_EVERY: Final = (1.0, 2.0)
AUDITED_EVERY: Final = 0.5

Answer = TypeVar("Answer")


@dataclass
class Fire:
    """The load, and whom it has told what."""

    deployment: Deployment
    random: Random
    ends: float
    priorities: dict[UUID, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    answered: int = 0
    waited: list[float] = field(default_factory=list)
    kills: int = 0
    ids: IdSource = field(default_factory=IdSource)

    async def produce(self, runs_at_once: int) -> None:
        """Be one producer with so many runs at once."""
        async with self.deployment.client(answer_timeout=ASK_AGAIN_SECONDS) as client:
            await asyncio.gather(*(self._one_after_the_other(client) for _ in range(runs_at_once)))

    async def _one_after_the_other(self, client: Client) -> None:
        while True:
            await self._one(client)
            if time.monotonic() >= self.ends:
                return

    async def _one(self, client: Client) -> None:
        tags, priority = self.random.sample(sorted(LIMITS), TAGS_EACH), self.random.choice(PRIORITIES)
        key = str(self.ids.new())
        run = await answered(lambda: client.create_task_run("work", tags=tags, idempotency_key=key))
        self.priorities[run.id] = priority
        running, completed = self.ids.new(), self.ids.new()
        began = time.monotonic()
        park: dict[str, Any] = {"on_wait": "park", "priority": priority, "timeout": PARKED_SECONDS}
        verdict = await answered(lambda: client.propose(run, State.running(), proposal_id=running, **park))
        self.waited.append(time.monotonic() - began)
        if not verdict.accepted:
            self.errors.append(f"RUNNING was answered with {verdict}")
            return
        self.answered += 1
        verdict = await answered(lambda: client.propose(run, State.completed(), proposal_id=completed))
        if not verdict.accepted:
            self.errors.append(f"COMPLETED was answered with {verdict}")

    async def kill(self, workers: int) -> None:
        """Kill one of the workers now and then, and start another in its place."""
        processes = [self.deployment.spawn_worker() for _ in range(workers)]
        await self.deployment.announced()
        while time.monotonic() < self.ends:
            await asyncio.sleep(self.random.uniform(*KILLED_EVERY))
            victim = self.random.randrange(workers)
            processes[victim].kill()
            await asyncio.to_thread(processes[victim].wait, HANGS_SECONDS)
            processes[victim] = self.deployment.spawn_worker()
            self.kills += 1

    async def audit(self) -> None:
        """Look again and again whether everything fits together, until cancelled."""
        while True:
            self.errors += [f"the audit found {finding}" for finding in await audited(self.deployment)]
            await asyncio.sleep(AUDITED_EVERY)

    async def flush(self, after: float) -> None:
        """Delete everything in Redis."""
        await asyncio.sleep(after)
        await self.deployment.empty_redis()


async def answered(ask: Callable[[], Any]) -> Any:
    """Ask until there is an answer. Raises what the client says when nothing is heard for too long."""
    heard = time.monotonic()
    while True:
        try:
            return await ask()
        except (NoAnswer, RedisUnavailable, Overloaded) as error:
            if isinstance(error, NoAnswer) and error.delivery is Delivery.PARKED:
                heard = time.monotonic()
            if time.monotonic() - heard > HANGS_SECONDS:
                raise
            await asyncio.sleep(REFUSED_SECONDS)


async def rage(
    deployment: Deployment,
    *,
    seconds: float,
    workers: int = 3,
    producers: int = 8,
    runs: int = 200,
    seed: int = 1,
    flush: bool = False,
) -> tuple[Fire, Found]:
    """Let producers park RUNNING for so many seconds, and so many runs at once, while workers die; return what was
    found when all runs had come to their end."""
    await watch(deployment)
    fire = Fire(deployment, Random(seed), time.monotonic() + seconds)
    killing = asyncio.create_task(fire.kill(workers))
    await deployment.announced()
    async with deployment.client(answer_timeout=ASK_AGAIN_SECONDS) as client, AsyncExitStack() as stack:
        for tag, limit in LIMITS.items():
            await answered(lambda tag=tag, limit=limit: client.set_limit(tag, limit))  # type: ignore[misc]
        beside = [asyncio.create_task(fire.audit())]
        if flush:
            beside.append(asyncio.create_task(fire.flush(seconds / 2)))
        for task in beside:
            stack.callback(task.cancel)
        shares = [runs // producers] * producers
        await asyncio.gather(*(fire.produce(share) for share in shares))
        await killing
        await until(lambda: nothing_parked(deployment))
    return fire, await checked(deployment, fire.priorities)


async def nothing_parked(deployment: Deployment) -> bool:
    """Return whether every parked proposal was answered."""
    return not await deployment.fetch("SELECT FROM parked")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="how long workers are killed")
    parser.add_argument("--workers", type=int, default=3, help="worker processes")
    parser.add_argument("--producers", type=int, default=8, help="clients")
    parser.add_argument("--runs", type=int, default=200, help="task runs at once")
    parser.add_argument("--seed", type=int, default=1, help="of tags, priorities, and who is killed when")
    parser.add_argument("--flush", action="store_true", help="empty Redis half-way")
    given = parser.parse_args()
    logs = Path(tempfile.mkdtemp(prefix="statewright-waiting-logs-"))
    print(f"seed {given.seed}; the workers' logs are in {logs}", file=sys.stderr, flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="statewright-waiting-") as folder,
        embedded_servers(Path(folder)) as servers,
    ):
        deployment = Deployment(_with_database(servers.database_url, NAME), servers.redis_url, NAME, logs)

        async def run() -> tuple[Fire, Found]:
            await _administer(servers, f"CREATE DATABASE {NAME}")
            await migrate_database(deployment.database_url)
            try:
                return await rage(deployment, **vars(given))
            finally:
                deployment.stop_processes()

        fire, found = uvloop.run(run())
    problems = {**found.problems, "no producer was told anything wrong": fire.errors}
    waited = sorted(fire.waited)
    told = {
        "kills": fire.kills,
        "runs": len(fire.priorities),
        "verdicts of parked RUNNING": fire.answered,
        "starts in the history": found.starts,
        "waited, p50 and greatest, in seconds": [waited[len(waited) // 2], waited[-1]],
        "wrong": {check: {"number": len(wrong), "first": wrong[:5]} for check, wrong in problems.items()},
    }
    print(json.dumps(told, indent=2))
    return 1 if any(problems.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
