"""Nemesis: replicas under steady load, at which one random fault after another strikes and is healed.

    python -m tests.faults.nemesis --minutes 20 --every 10 --workers 3

Each worker has links of its own to PostgreSQL and to Redis; the client that makes the load reaches Redis directly. The
load is one run after another in each partition, each step awaited and asked again under its id until it is answered. A
fault has been recovered from once every partition has answered a step that was begun after the fault was healed; what
strikes in an instant counts from the strike. "Nothing" is a fault as well: what it takes is what the load itself takes.

At the end PostgreSQL and the event streams are compared with the verdicts; the exit status is 1 when they differ.
"""

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Final, TypeVar
from uuid import UUID

import psutil
import uvloop
from redis.asyncio import Redis

from statewright import Client, NoAnswer, Overloaded, RedisUnavailable, State, StatewrightError
from statewright.ids import IdSource, id_from_key, partition_of
from statewright.protocol.channels import EVENT_BODY, sequence_of
from statewright_worker.embedded import Servers, embedded_servers
from statewright_worker.migrating import migrate_database
from tests.benchmarks.harness import show
from tests.deployment import HANGS_SECONDS, Deployment, _administer, _with_database, until
from tests.faults.network import Link, link_to

NAME: Final = "nemesis"
PATH: Final = (State.pending(), State.running(), State.completed())
PACE_SECONDS: Final = 0.02
"""Between two steps of a partition, so that the machine is not busy with the load alone."""
ASK_AGAIN_SECONDS: Final = 1.0
"""After so long without an answer, a step is asked for again: an answer that Redis has lost comes by that alone."""
REFUSED_SECONDS: Final = 0.05
HEALED_AFTER: Final = (1.0, 4.0)
REDIS_PAUSE_SECONDS: Final = 1.5
WARM_UP_SECONDS: Final = 3.0
LOOK_SECONDS: Final = 0.5
PROBLEMS_SHOWN: Final = 10
MEGABYTE: Final = 1_000_000

Answer = TypeVar("Answer")
clock = time.monotonic


@dataclass
class Replica:
    """A worker's place: its links stay, its process may be another one."""

    number: int
    deployment: Deployment
    postgresql: Link
    redis: Link
    process: "subprocess.Popen[bytes]" = field(init=False)
    started: int = 0

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        urls = {"STATEWRIGHT_DATABASE_URL": self.postgresql.url, "STATEWRIGHT_REDIS_URL": self.redis.url}
        self.process = self.deployment.spawn_worker(**urls)
        self.started += 1

    def die(self) -> None:
        """Kill the process and start another one, without a turn of the event loop in between."""
        self.process.kill()
        self.process.wait(HANGS_SECONDS)
        self.start()


@dataclass
class Stage:
    """What faults strike at; the connection to Redis is a direct one."""

    deployment: Deployment
    redis: Redis
    replicas: list[Replica]


# The faults: each strikes, yields, and heals.


@asynccontextmanager
async def nothing(stage: Stage, victim: Replica) -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def worker_killed(stage: Stage, victim: Replica) -> AsyncIterator[None]:
    victim.die()
    yield


@asynccontextmanager
async def worker_stopped(stage: Stage, victim: Replica) -> AsyncIterator[None]:
    victim.process.send_signal(signal.SIGSTOP)
    yield
    victim.process.send_signal(signal.SIGCONT)


@asynccontextmanager
async def postgresql_cut(stage: Stage, victim: Replica) -> AsyncIterator[None]:
    victim.postgresql.cut()
    yield


@asynccontextmanager
async def postgresql_silent(stage: Stage, victim: Replica) -> AsyncIterator[None]:
    victim.postgresql.fall_silent()
    yield
    victim.postgresql.speak_again()


@asynccontextmanager
async def redis_silent(stage: Stage, victim: Replica) -> AsyncIterator[None]:
    victim.redis.fall_silent()
    yield
    victim.redis.speak_again()


@asynccontextmanager
async def backends_terminated(stage: Stage, victim: Replica) -> AsyncIterator[None]:
    await stage.deployment.end_sessions()
    yield


@asynccontextmanager
async def postgresql_read_only(stage: Stage, victim: Replica) -> AsyncIterator[None]:
    async with stage.deployment.taking_no_writes():
        yield


@asynccontextmanager
async def redis_paused(stage: Stage, victim: Replica) -> AsyncIterator[None]:
    await stage.redis.client_pause(round(REDIS_PAUSE_SECONDS * 1_000))
    yield


@asynccontextmanager
async def redis_clients_killed(stage: Stage, victim: Replica) -> AsyncIterator[None]:
    await stage.redis.client_kill_filter(_type="normal", skipme=True)
    yield


@asynccontextmanager
async def redis_full(stage: Stage, victim: Replica) -> AsyncIterator[None]:
    await stage.redis.config_set("maxmemory", 1)
    yield
    await stage.redis.config_set("maxmemory", 0)


@asynccontextmanager
async def redis_emptied(stage: Stage, victim: Replica) -> AsyncIterator[None]:
    """Delete everything but the requests: if they were lost, only the client's timeout would be measured."""
    keys = [key async for key in stage.redis.scan_iter(match=f"*{NAME}*", count=1_000)]
    await stage.redis.delete(*(key for key in keys if not key.endswith(b":proposals")))
    yield


@asynccontextmanager
async def redis_flushed(stage: Stage, victim: Replica) -> AsyncIterator[None]:
    await stage.redis.flushall()
    yield


@dataclass(frozen=True)
class Fault:
    name: str
    strikes: Callable[[Stage, Replica], AbstractAsyncContextManager[None]]
    lasts: tuple[float, float] | None = None
    """Between which numbers of seconds; None for what strikes in an instant."""


FAULTS: Final = (
    Fault("nothing", nothing),
    Fault("a worker killed and restarted", worker_killed),
    Fault("a worker stopped (SIGSTOP)", worker_stopped, HEALED_AFTER),
    Fault("one worker's connections to PostgreSQL cut", postgresql_cut),
    Fault("one worker's link to PostgreSQL silent", postgresql_silent, HEALED_AFTER),
    Fault("one worker's link to Redis silent", redis_silent, HEALED_AFTER),
    Fault("all PostgreSQL backends terminated", backends_terminated),
    Fault("PostgreSQL read-only", postgresql_read_only, HEALED_AFTER),
    Fault("Redis paused", redis_paused, (REDIS_PAUSE_SECONDS, REDIS_PAUSE_SECONDS)),
    Fault("all Redis clients killed", redis_clients_killed),
    Fault("Redis full (maxmemory)", redis_full, HEALED_AFTER),
    Fault("Redis emptied, but for requests", redis_emptied),
)
FLUSH: Final = Fault("Redis flushed", redis_flushed)


@dataclass
class Outcome:
    """What became of one fault, in seconds."""

    fault: Fault
    recovery: float
    silences: dict[int, float] = field(default_factory=dict)
    """Per partition the longest time between two answers, from the strike until the next one."""


class Load:
    """The load on one partition, and when it was answered."""

    def __init__(self, client: Client, partition: int, stop: asyncio.Event) -> None:
        self.partition = partition
        self.told: dict[UUID, list[UUID]] = {}
        """The states of each run, as the verdicts told them."""
        self.verdicts = 0
        self.asked_again: Counter[str] = Counter()
        self.errors: list[str] = []
        self.recovered: float | None = None
        self._client = client
        self._stop = stop
        self._ids = IdSource()
        self._last = clock()
        self._longest = 0.0
        self._since = float("inf")
        self._fault = "the start"

    def struck(self, fault: str) -> None:
        """Begin to measure the silence of this fault."""
        self._fault = fault
        self._longest, self._since, self.recovered = 0.0, float("inf"), None

    def healed(self, moment: float) -> None:
        """From `moment` on, the answer to a new step means that the partition has recovered."""
        self._since = moment

    def silence(self) -> float:
        return max(self._longest, clock() - self._last)

    async def drive(self) -> None:
        keys = (f"tree {n}" for n in count())
        key = next(key for key in keys if partition_of(id_from_key(key), self._client.partitions) == self.partition)
        flow = await self._answered(lambda: self._client.create_flow_run("driven", idempotency_key=key))
        for number in count():
            if self._stop.is_set():
                return
            try:
                await self._drive_run(flow.id, f"task {number}")
            except StatewrightError as error:
                self._note_error(f"{type(error).__name__}: {error}")

    async def _drive_run(self, flow: UUID, name: str) -> None:
        run = await self._answered(lambda: self._client.create_task_run(name, flow_run=flow, idempotency_key=name))
        told = self.told[run.id] = []
        for state in PATH:
            await asyncio.sleep(PACE_SECONDS)
            proposal_id = self._ids.new()
            verdict = await self._propose(run.id, state, proposal_id)
            self.verdicts += 1
            if verdict.accepted and verdict.proposal_id == proposal_id and verdict.state.type is state.type:
                told.append(verdict.state.id)
            else:
                self._note_error(f"{state.type} was answered with {verdict}")

    async def _propose(self, run: UUID, state: Any, proposal_id: UUID) -> Any:
        return await self._answered(lambda: self._client.propose(run, state, proposal_id=proposal_id))

    async def _answered(self, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """Ask until there is an answer. Raises what the client says when there is none after HANGS_SECONDS."""
        began = clock()
        while True:
            try:
                answer = await ask()
            except (NoAnswer, RedisUnavailable, Overloaded) as error:
                self.asked_again[type(error).__name__] += 1
                if clock() - began > HANGS_SECONDS:
                    raise
                await asyncio.sleep(REFUSED_SECONDS)
            else:
                self._note(began)
                return answer

    def _note_error(self, problem: str) -> None:
        self.errors.append(f"after {self._fault}, partition {self.partition}: {problem}")

    def _note(self, began: float) -> None:
        now = clock()
        self._longest, self._last = max(self._longest, now - self._last), now
        if self.recovered is None and began >= self._since:
            self.recovered = now


class Nemesis:
    """Strikes, heals, and measures how long the loads need."""

    def __init__(self, stage: Stage, loads: list[Load], seed: int, faults: Iterable[Fault]) -> None:
        self.outcomes: list[Outcome] = []
        self.errors: list[str] = []
        self._stage = stage
        self._loads = loads
        self._random = Random(seed)
        self._next = self._in_random_order(list(faults))

    def _in_random_order(self, faults: list[Fault]) -> Iterator[Fault]:
        # Each as often as the others, so that a short time shows them all.
        while True:
            yield from self._random.sample(faults, len(faults))

    async def rage(self, seconds: float, every: float) -> None:
        """Strike every so often, but not before the fault before is recovered from."""
        ends = clock() + seconds
        while (begun := clock()) + every <= ends:
            await self._strike(next(self._next), self._random.choice(self._stage.replicas))
            await asyncio.sleep(max(0.0, begun + every - clock()))
            self.outcomes[-1].silences = {load.partition: load.silence() for load in self._loads}

    async def _strike(self, fault: Fault, victim: Replica) -> None:
        for load in self._loads:
            load.struck(fault.name)
        since = clock()
        async with fault.strikes(self._stage, victim):
            if fault.lasts:
                await asyncio.sleep(self._random.uniform(*fault.lasts))
        if fault.lasts:
            since = clock()
        for load in self._loads:
            load.healed(since)
        recovery = await self._recovery(fault, since)
        self.outcomes.append(Outcome(fault, recovery))
        print(f"{fault.name} (worker {victim.number}): {recovery:.2f} s", file=sys.stderr, flush=True)

    async def _recovery(self, fault: Fault, since: float) -> float:
        async def recovered() -> bool:
            return all(load.recovered is not None for load in self._loads)

        with suppress(TimeoutError):
            await until(recovered)
        missing = [load.partition for load in self._loads if load.recovered is None]
        if missing:
            self.errors.append(f"{fault.name}: partitions {missing} were silent for {HANGS_SECONDS} s after it")
        return max((load.recovered or clock()) - since for load in self._loads)


async def watch(replicas: list[Replica], errors: list[str]) -> None:
    """Note and restart workers that end by themselves: none may."""
    while True:
        for replica in replicas:
            if (status := replica.process.poll()) is not None:
                errors.append(f"worker {replica.number} ended by itself with status {status}")
                replica.start()
        await asyncio.sleep(LOOK_SECONDS)


async def sizes(stage: Stage) -> dict[str, int]:
    """Return the megabytes of each process, and how many connections the servers have."""
    redis: dict[str, Any] = await stage.redis.info()
    pids = {f"worker {replica.number}, MB": replica.process.pid for replica in stage.replicas}
    pids["Redis, MB"] = redis["process_id"]
    [[backends]] = await stage.deployment.fetch("SELECT count(*) FROM pg_stat_activity WHERE datname = $1", NAME)
    counted = {"connections to PostgreSQL": backends, "connections to Redis": redis["connected_clients"]}
    return {name: psutil.Process(pid).memory_info().rss // MEGABYTE for name, pid in pids.items()} | counted


# The checks: each returns what is wrong.


async def settled(stage: Stage, partitions: int) -> list[str]:
    """Wait until nothing is left to be answered or published."""
    channels = stage.deployment.channels

    async def done() -> bool:
        rows = await stage.deployment.fetch("SELECT id, sequence FROM partition ORDER BY id")
        for partition, sequence in rows:
            newest = await stage.redis.xrevrange(channels.events(partition), count=1)
            if (sequence_of(newest[0][0]) if newest else 0) != sequence:
                return False
        return not any([await stage.redis.xlen(channels.proposals(partition)) for partition in range(partitions)])

    try:
        await until(done)
    except TimeoutError:
        return [f"requests or events were still under way {HANGS_SECONDS} s after the load had ended"]
    return []


async def histories(stage: Stage, loads: list[Load]) -> list[str]:
    """Compare each run's history with the verdicts that it was given."""
    written: dict[UUID, list[UUID]] = defaultdict(list)
    for run, state in await stage.deployment.fetch("SELECT run_id, id FROM task_run_state ORDER BY run_id, ordinal"):
        written[UUID(str(run))].append(UUID(str(state)))
    told = {run: states for load in loads for run, states in load.told.items()}
    wrong = [run for run in told.keys() | written.keys() if told.get(run, []) != written.get(run, [])]
    problems = [f"run {run}: was told {told.get(run)}, has {written.get(run)}" for run in wrong]
    [[runs]] = await stage.deployment.fetch("SELECT count(*) FROM task_run")
    return problems + ([f"{runs} task runs exist, {len(told)} were made"] if runs != len(told) else [])


async def ledger(stage: Stage, loads: list[Load]) -> list[str]:
    """Compare the ledger's size with the number of proposals that were answered."""
    [[entries]] = await stage.deployment.fetch("SELECT count(*) FROM verdict")
    answered = sum(load.verdicts for load in loads)
    return [] if entries == answered else [f"the ledger has {entries} verdicts, {answered} proposals were answered"]


async def events(stage: Stage, partitions: int) -> list[str]:
    """Compare what the event streams have with the history: no gap, no duplicate, each the change of its number."""
    changes: dict[int, dict[int, str]] = defaultdict(dict)
    # Flow runs stay without a state.
    for partition, sequence, state in await stage.deployment.fetch(
        "SELECT partition, sequence, id FROM task_run_state"
    ):
        changes[partition][sequence] = str(state)
    problems = []
    for partition in range(partitions):
        expected = changes[partition]
        if sorted(expected) != list(range(1, len(expected) + 1)):
            problems.append(f"partition {partition}: the numbers of its changes have gaps")
        entries = await stage.redis.xrange(stage.deployment.channels.events(partition))
        numbers = [sequence_of(entry_id) for entry_id, _ in entries]
        if numbers != list(range(len(expected) - len(numbers) + 1, len(expected) + 1)):
            problems.append(f"partition {partition}: {_broken(numbers)}; the newest change is {len(expected)}")
        problems += [
            f"partition {partition}: event {number} is {fields}, not change {expected.get(number)}"
            for number, (_, fields) in zip(numbers, entries, strict=True)
            if json.loads(fields.get(EVENT_BODY, b"{}")).get("id") != expected.get(number)
        ]
    return problems


def _broken(numbers: list[int]) -> str:
    breaks = [(one, other) for one, other in pairwise(numbers) if other != one + 1]
    return f"its {len(numbers)} events are {numbers[:1]} to {numbers[-1:]} with breaks {breaks[:5]}"


async def dead_letters(stage: Stage, partitions: int) -> list[str]:
    """Every request was a good one."""
    channels = stage.deployment.channels
    counts = {partition: await stage.redis.xlen(channels.dead_letters(partition)) for partition in range(partitions)}
    return [f"partition {partition} has {letters} dead letters" for partition, letters in counts.items() if letters]


Checks = dict[str, list[str]]


async def checked(stage: Stage, loads: list[Load], client: Client) -> Checks:
    return {
        "everything is answered and published in the end": await settled(stage, client.partitions),
        "each run's history is what its verdicts told": await histories(stage, loads),
        "the ledger has one verdict for each proposal": await ledger(stage, loads),
        "event streams have no gap and no duplicate": await events(stage, client.partitions),
        "no request became a dead letter": await dead_letters(stage, client.partitions),
    }


# The report.


def recoveries(outcomes: list[Outcome]) -> Iterator[list[object]]:
    by_name: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_name[outcome.fault.name].append(outcome)
    for name, those in sorted(by_name.items()):
        seconds = [outcome.recovery for outcome in those]
        silences = [silence for outcome in those for silence in outcome.silences.values()]
        yield [name, len(those), *(f"{number:.2f}" for number in (max(seconds), median(seconds), max(silences)))]


def longest_silences(outcomes: list[Outcome]) -> Iterator[list[object]]:
    for partition in sorted(outcomes[0].silences):
        worst = max(outcomes, key=lambda outcome: outcome.silences[partition])
        yield [partition, f"{worst.silences[partition]:.2f}", worst.fault.name]


def tell(nemesis: Nemesis, loads: list[Load], before: dict[str, int], after: dict[str, int], checks: Checks) -> None:
    outcomes = nemesis.outcomes
    if outcomes:
        header = ["fault", "count", "longest recovery, s", "median recovery, s", "longest silence, s"]
        show("Faults", header, recoveries(outcomes))
        header = ["partition", "longest silence, s", "of which fault"]
        show("Partitions", header, longest_silences(outcomes))
    show("Sizes", ["", "at the start", "at the end"], [[name, before[name], after[name]] for name in before])
    asked_again = sum((load.asked_again for load in loads), Counter[str]())
    counted = {"verdicts": sum(load.verdicts for load in loads), "runs": sum(len(load.told) for load in loads)}
    show("Answers", ["", "count"], [*counted.items(), *((f"asked again: {k}", n) for k, n in asked_again.items())])
    show("Checks", ["", "wrong"], [[name, len(problems)] for name, problems in checks.items()])
    for name, problems in checks.items():
        for problem in problems[:PROBLEMS_SHOWN]:
            print(f"\n{name}: {problem}")


async def run(given: argparse.Namespace, deployment: Deployment) -> bool:
    """Return whether all was well."""
    await migrate_database(deployment.database_url, startup_seconds=HANGS_SECONDS)
    async with AsyncExitStack() as stack:
        stack.callback(deployment.stop_processes)
        redis = await stack.enter_async_context(deployment.redis())
        replicas = [await _replica(stack, deployment, number) for number in range(1, given.workers + 1)]
        stage = Stage(deployment, redis, replicas)
        await deployment.announced()
        client = await stack.enter_async_context(deployment.client(answer_timeout=ASK_AGAIN_SECONDS))
        stop = asyncio.Event()
        loads = [Load(client, partition, stop) for partition in range(client.partitions)]
        nemesis = Nemesis(stage, loads, given.seed, [*FAULTS, *([FLUSH] if given.flush else [])])
        watching = asyncio.create_task(watch(replicas, nemesis.errors))
        driving = asyncio.gather(*(load.drive() for load in loads))
        await asyncio.sleep(WARM_UP_SECONDS)
        before = await sizes(stage)
        await nemesis.rage(60 * given.minutes, given.every)
        after = await sizes(stage)
        stop.set()
        await asyncio.wait_for(driving, 2 * len(PATH) * HANGS_SECONDS)
        checks = await checked(stage, loads, client)
        watching.cancel()
        checks["no error was told"] = [*nemesis.errors, *(error for load in loads for error in load.errors)]
    tell(nemesis, loads, before, after, checks)
    return not any(checks.values())


async def _replica(stack: AsyncExitStack, deployment: Deployment, number: int) -> Replica:
    postgresql = await stack.enter_async_context(link_to(deployment.database_url))
    redis = await stack.enter_async_context(link_to(deployment.redis_url))
    return Replica(number, deployment, postgresql, redis)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20, help="how long faults strike")
    parser.add_argument("--every", type=float, default=10, help="seconds from one strike to the next")
    parser.add_argument("--workers", type=int, default=3, help="replicas")
    parser.add_argument("--seed", type=int, default=1, help="of the order of faults and of whom they strike")
    parser.add_argument("--flush", action="store_true", help="empty all of Redis as well, requests included")
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop", help="the script's event loop")
    given = parser.parse_args()
    logs = Path(tempfile.mkdtemp(prefix="statewright-nemesis-logs-"))
    print(f"seed {given.seed}; the workers' logs are in {logs}", file=sys.stderr, flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="statewright-nemesis-") as folder,
        embedded_servers(Path(folder)) as servers,
    ):
        url = _with_database(servers.database_url, NAME)
        deployment = Deployment(url, servers.redis_url, NAME, logs)
        start = uvloop.run if given.loop == "uvloop" else asyncio.run
        return 0 if start(_on(servers, given, deployment)) else 1


async def _on(servers: Servers, given: argparse.Namespace, deployment: Deployment) -> bool:
    await _administer(servers, f"CREATE DATABASE {NAME}")
    return await run(given, deployment)


if __name__ == "__main__":
    sys.exit(main())
