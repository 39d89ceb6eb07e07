"""Subscribing under fire: named subscriptions whose members are killed and frozen, while Redis and PostgreSQL fail.

    python -m tests.faults.subscribing --seconds 60 --seed 5

While 20,000 transitions run, evenly over the time:

- the one member of the subscription `killed` is killed (SIGKILL) and started again, at random, by its name or another;
- of the three members of `shared`, one is frozen (SIGSTOP) for ten seconds and continued;
- half-way, everything in Redis is deleted;
- at the end, PostgreSQL goes back to a backup that was made before the last transitions, while all members run.

Then every event must have been handled at least once in each subscription, those of a run in order, and the same event
always under the same id; until one was frozen, each of the three must have handled within 20 % of a third; and somebody
in each subscription must have been told that the database went back. The exit status is 1 when something is wrong.
"""

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple
from uuid import UUID

import uvloop

from statewright import Client, NoAnswer, Overloaded, RedisUnavailable, State
from statewright.ids import IdSource
from statewright_worker.embedded import Servers, embedded_servers
from statewright_worker.migrating import migrate_database
from tests.deployment import HANGS_SECONDS, Deployment, _administer, _with_database, until
from tests.faults.waiting import answered

NAME: Final = "subscribing"
SUBSCRIBER: Final = Path(__file__).parent / "subscriber.py"
KILLED: Final = "killed"
SHARED: Final = "shared"
MEMBERS: Final = ("one", "two", "three")
STATES: Final = (State.pending(), State.running(), State.completed())
KILLED_EVERY: Final = (0.3, 2.5)
ASK_AGAIN_SECONDS: Final = 2.0
CHANGES_AFTER_BACKUP: Final = 60
HANDLED_SECONDS: Final = 120.0


class Handled(NamedTuple):
    """An event that a member has handled."""

    at: int
    member: str
    run: UUID
    place: tuple[int, int]
    event: UUID


@dataclass
class Found:
    """What the members have written down, compared with PostgreSQL."""

    transitions: int = 0
    kills: int = 0
    handled: dict[str, int] = field(default_factory=dict)
    doubled: dict[str, int] = field(default_factory=dict)
    evenly: dict[str, float] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Fire:
    """The load, and who listens."""

    deployment: Deployment
    random: Random
    transitions: int
    seconds: float
    frozen_seconds: float
    began: float = field(default_factory=time.monotonic)
    ids: IdSource = field(default_factory=IdSource)
    kills: int = 0
    done: int = 0
    frozen_at: int = 0
    files: dict[str, dict[str, Path]] = field(default_factory=lambda: defaultdict(dict))
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    # -- members -----------------------------------------------------------------------------------------------------

    def start(self, subscription: str, member: str) -> None:
        """Start a member's process."""
        file = self.files[subscription].setdefault(member, self.deployment.folder / f"{subscription}-{member}.txt")
        self.processes[member] = self.deployment.spawn_worker(str(SUBSCRIBER), subscription, member, str(file))

    async def kill(self, ends: float) -> None:
        """Kill the member of `killed` now and then, and start it again, sometimes under another name."""
        member = "mortal-0"
        self.start(KILLED, member)
        while time.monotonic() < ends:
            await asyncio.sleep(self.random.uniform(*KILLED_EVERY))
            self.processes[member].kill()
            await asyncio.to_thread(self.processes[member].wait, HANGS_SECONDS)
            self.kills += 1
            if self.random.random() < 0.3:
                member = f"mortal-{self.kills}"
            self.start(KILLED, member)

    async def freeze(self, after: float) -> None:
        """Freeze one member of `shared` for some seconds."""
        await asyncio.sleep(after)
        self.frozen_at = time.monotonic_ns()
        process = self.processes[self.random.choice(MEMBERS)]
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(self.frozen_seconds)
        process.send_signal(signal.SIGCONT)

    async def flush(self, after: float) -> None:
        """Delete everything in Redis."""
        await asyncio.sleep(after)
        await self.deployment.empty_redis()

    # -- the load ----------------------------------------------------------------------------------------------------

    async def drive(self, client: Client, transitions: int, seconds: float) -> None:
        """Make so many transitions, evenly over some seconds."""
        began, sent = time.monotonic(), 0
        driving = set()
        while sent < transitions:
            due = min(int((time.monotonic() - began) / seconds * transitions) + 1, transitions)
            while sent < due:
                driving.add(asyncio.create_task(self._one(client, min(len(STATES), transitions - sent))))
                sent += len(STATES)
            await asyncio.sleep(0.01)
        await asyncio.gather(*driving)

    async def _one(self, client: Client, changes: int) -> None:
        key = str(self.ids.new())
        run = await answered(lambda: client.create_flow_run("driven", idempotency_key=key))
        for state in STATES[:changes]:
            proposal = self.ids.new()
            verdict = await answered(partial(client.propose, run, state, proposal_id=proposal))
            assert verdict.accepted, verdict
            self.done += 1

    async def caught_up(self, client: Client) -> None:
        """Wait until both subscriptions have handled everything."""

        async def no_lag() -> bool:
            try:
                told = [await client.read_subscription(name) for name in (KILLED, SHARED)]
            except (NoAnswer, RedisUnavailable, Overloaded):
                return False
            return all(one is not None and one.lag == 0 for one in told)

        await until(no_lag, seconds=HANDLED_SECONDS)

    # -- PostgreSQL goes back ----------------------------------------------------------------------------------------

    async def go_back(self, servers: Servers, client: Client) -> None:
        """Let PostgreSQL lose the last transitions, which everybody has heard of."""
        name = self.deployment.namespace
        await self._stop_workers()
        await _administer(servers, f"CREATE DATABASE {name}_backup TEMPLATE {name}")
        self._start_workers()
        await self.drive(client, CHANGES_AFTER_BACKUP, 1.0)
        await self.caught_up(client)
        await self._stop_workers()
        await _administer(servers, f"DROP DATABASE {name} WITH (FORCE)")
        await _administer(servers, f"ALTER DATABASE {name}_backup RENAME TO {name}")
        self._start_workers()
        await self.drive(client, CHANGES_AFTER_BACKUP, 1.0)
        await self.caught_up(client)

    def _start_workers(self) -> None:
        for number in range(2):
            self.processes[f"worker-{number}"] = self.deployment.spawn_worker()

    async def _stop_workers(self) -> None:
        for name in ("worker-0", "worker-1"):
            self.processes[name].kill()
            await asyncio.to_thread(self.processes[name].wait, HANGS_SECONDS)
        await self.deployment.end_sessions()

    # -- what was handled --------------------------------------------------------------------------------------------

    def handled(self, subscription: str) -> list[Handled]:
        """Return what the members of a subscription have handled, in the order of time."""
        lines = [(member, line.split()) for member, line in self._lines(subscription)]
        return sorted(
            Handled(int(words[0]), member, UUID(words[1]), (int(words[2]), int(words[3])), UUID(words[4]))
            for member, words in lines
            if words[1] != "told"
        )

    def told(self, subscription: str) -> list[str]:
        """Return what the members were told in place of events."""
        return [line for _, line in self._lines(subscription) if " told " in line]

    def _lines(self, subscription: str) -> Iterable[tuple[str, str]]:
        for member, file in self.files[subscription].items():
            for line in file.read_text().splitlines() if file.exists() else ():
                yield member, line


async def rage(
    deployment: Deployment,
    servers: Servers,
    *,
    seconds: float,
    transitions: int = 20_000,
    frozen_seconds: float = 10.0,
    seed: int = 1,
) -> Found:
    """Let everything happen, and return what was found at the end."""
    fire = Fire(deployment, Random(seed), transitions, seconds, frozen_seconds)
    fire._start_workers()
    await deployment.announced()
    async with deployment.client(answer_timeout=ASK_AGAIN_SECONDS) as client, AsyncExitStack() as stack:
        for member in MEMBERS:
            fire.start(SHARED, member)
        killing = asyncio.create_task(fire.kill(time.monotonic() + seconds))
        await until(lambda: _all_there(client))
        beside = [fire.freeze(seconds / 3), fire.flush(seconds / 2)]
        tasks = [asyncio.create_task(one) for one in beside]
        for task in tasks:
            stack.callback(task.cancel)
        await fire.drive(client, transitions, seconds)
        await asyncio.gather(killing, *tasks)
        await fire.caught_up(client)
        before = {name: fire.handled(name) for name in (KILLED, SHARED)}
        kept = await _history(deployment)
        await fire.go_back(servers, client)
        after = await _history(deployment)
    return _compared(fire, before, kept, after)


async def _all_there(client: Client) -> bool:
    """Return whether the members have joined, and each of the three has its part."""
    told = [await client.read_subscription(name) for name in (KILLED, SHARED)]
    if any(one is None for one in told):
        return False
    shares = [member.shares for one in told if one is not None for member in one.members]
    return len(shares) == 1 + len(MEMBERS) and 0 not in shares


async def _history(deployment: Deployment) -> dict[tuple[int, int], UUID]:
    rows = await deployment.fetch("SELECT id, partition, sequence FROM flow_run_state")
    return {(row["partition"], row["sequence"]): row["id"] for row in rows}


def _compared(
    fire: Fire,
    before: dict[str, list[Handled]],
    kept: dict[tuple[int, int], UUID],
    after: dict[tuple[int, int], UUID],
) -> Found:
    found = Found(transitions=len(kept), kills=fire.kills)
    for name in (KILLED, SHARED):
        everything = fire.handled(name)
        found.handled[name] = len(before[name])
        found.doubled[name] = len(before[name]) - len({one.place for one in before[name]})
        problems = {
            "events that nobody has handled": _missing(everything, {**kept, **after}),
            "events out of order": _out_of_order(everything),
            "events under several ids": _under_several_ids(everything),
            "nobody was told that the database went back": [] if fire.told(name) else [name],
        }
        for check, wrong in problems.items():
            found.problems.setdefault(check, []).extend(f"{name}: {one}" for one in wrong)
    # From when all three had their shares, until one was frozen.
    together = [one for one in before[SHARED] if one.at < fire.frozen_at]
    for member in MEMBERS:
        found.evenly[member] = sum(one.member == member for one in together) * len(MEMBERS) / max(len(together), 1)
    uneven = [f"{member} has {part:.2f} of a third" for member, part in found.evenly.items() if not 0.8 <= part <= 1.2]
    found.problems["members with too much or too little"] = uneven
    return found


def _missing(handled: list[Handled], history: dict[tuple[int, int], UUID]) -> list[str]:
    ids = {one.event for one in handled}
    return [f"{place}" for place, event in history.items() if event not in ids]


def _out_of_order(handled: list[Handled]) -> list[str]:
    """Return the events that were handled before one of their run that comes before them."""
    first: dict[UUID, dict[UUID, tuple[int, tuple[int, int]]]] = defaultdict(dict)
    for one in handled:
        first[one.run].setdefault(one.event, (one.at, one.place))
    wrong = []
    for run, events in first.items():
        in_time = [place for _, place in sorted(events.values())]
        if in_time != sorted(in_time):
            wrong.append(f"run {run}: {in_time}")
    return wrong


def _under_several_ids(handled: list[Handled]) -> list[str]:
    ids: dict[tuple[int, int], set[UUID]] = defaultdict(set)
    for one in handled:
        ids[one.place].add(one.event)
    return [f"{place}: {sorted(map(str, events))}" for place, events in ids.items() if len(events) > 1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="how long the transitions take")
    parser.add_argument("--transitions", type=int, default=20_000, help="how many there are")
    parser.add_argument("--seed", type=int, default=1, help="of who is killed, and when")
    given = parser.parse_args()
    logs = Path(tempfile.mkdtemp(prefix="statewright-subscribing-"))
    print(f"seed {given.seed}; logs, and what the members have handled, are in {logs}", file=sys.stderr, flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="statewright-subscribing-") as folder,
        embedded_servers(Path(folder)) as servers,
    ):
        deployment = Deployment(_with_database(servers.database_url, NAME), servers.redis_url, NAME, logs)

        async def run() -> Found:
            await _administer(servers, f"CREATE DATABASE {NAME}")
            await migrate_database(deployment.database_url)
            try:
                return await rage(deployment, servers, **vars(given))
            finally:
                deployment.stop_processes()

        found = uvloop.run(run())
    told: dict[str, Any] = {
        "transitions": found.transitions,
        "kills": found.kills,
        "events handled": found.handled,
        "of these, again": found.doubled,
        "parts of a third": {member: round(part, 3) for member, part in found.evenly.items()},
        "wrong": {check: {"number": len(wrong), "first": wrong[:5]} for check, wrong in found.problems.items()},
    }
    print(json.dumps(told, indent=2))
    return 1 if any(found.problems.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
