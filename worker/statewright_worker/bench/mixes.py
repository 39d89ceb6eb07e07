"""The mixes: which task runs a benchmark makes, and what it proposes for each of them."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final, Generic, Protocol, TypeVar
from uuid import UUID

from statewright import ProposedState, RunPolicy, State, TaskRun, Verdict
from statewright.client.requests import OnWait
from statewright.client.sent import AboutRun
from statewright.ids import IdSource
from statewright_worker.bench.options import Load, Mix

TAGS: Final = tuple(f"statewright-bench-{number}" for number in range(8))
TAGS_PER_TASK: Final = 2
TASKS_PER_FLOW: Final = 10
LEASE_SECONDS: Final = 30.0
WAITING_FOR_ONE: Final = 8
KEYS_REMEMBERED: Final = 1_000
PREPARED_AT_A_TIME: Final = 2_000
NO_POLICY: Final = RunPolicy()
ONE_RETRY: Final = RunPolicy(retries=1, retry_delay=0)

States = Generator[ProposedState, Verdict, None]
"""Yields the states to propose for a task run. Each is answered with its verdict, on which the next one depends."""


@dataclass(frozen=True, slots=True)
class Task:
    """A task run that is to be made, and the states that will be proposed for it."""

    states: States
    tags: tuple[str, ...] = ()
    policy: RunPolicy = NO_POLICY
    on_wait: OnWait = "answer"
    """What becomes of its proposals when a limit is full."""


class Mixer:
    """Draws the task runs of a mix."""

    def __init__(self, mix: Mix, seed: int = 0) -> None:
        self._has_limits = mix in (Mix.LIMITS, Mix.FULL, Mix.PARK)
        self._on_wait: OnWait = "park" if mix is Mix.PARK else "answer"
        self._lease = LEASE_SECONDS if mix is Mix.LEASE else None
        self._caching = {Mix.CACHE: 1.0, Mix.FULL: 0.5}.get(mix, 0.0)
        self._failing = {Mix.FULL: 0.3}.get(mix, 0.0)
        self._random = Random(seed)
        self._ids = IdSource()
        self._keys: deque[str] = deque(maxlen=KEYS_REMEMBERED)

    def task(self) -> Task:
        """Return the next task run."""
        fails = self._random.random() < self._failing
        cache_key = self._cache_key() if self._random.random() < self._caching else None
        return Task(
            states=states(cache_key, fails=fails, on_cached=self._keys.append, lease=self._lease),
            tags=tuple(self._random.sample(TAGS, TAGS_PER_TASK)) if self._has_limits else (),
            policy=ONE_RETRY if fails else NO_POLICY,
            on_wait=self._on_wait,
        )

    def _cache_key(self) -> str:
        # Every other key has a cached result: these are the hits.
        if self._keys and self._random.random() < 0.5:  # noqa: PLR2004  # half of them
            return self._random.choice(self._keys)
        return f"statewright-bench-{self._ids.new().hex}"


def states(
    cache_key: str | None, *, fails: bool, on_cached: Callable[[str], object], lease: float | None = None
) -> States:
    """Yield PENDING, RUNNING and COMPLETED. One that fails first goes through FAILED and a second RUNNING.

    `on_cached` is told the key once a result is cached under it.
    """
    yield State.pending()
    # When it is not accepted, its result is cached or a limit is full. Either way, nothing more is proposed.
    verdict = yield State.running(cache_key=cache_key, lease=lease)
    if verdict.accepted and fails:
        yield State.failed(message="the first attempt of this task run fails")
        verdict = yield State.running(cache_key=cache_key)
    if not verdict.accepted:
        return
    verdict = yield State.completed(cache_key=cache_key)
    if cache_key is not None and verdict.accepted:
        on_cached(cache_key)


Creation = TypeVar("Creation", bound=AboutRun[TaskRun])
Created_co = TypeVar("Created_co", bound=AboutRun[TaskRun], covariant=True)


class Creates(Protocol[Created_co]):
    """A client, as far as it makes runs; what comes of a task run depends on which client it is."""

    def create_flow_run(self, name: str) -> AboutRun[Any]:
        """Make a flow run."""

    def create_task_run(self, name: str, *, flow_run: UUID, tags: Sequence[str], policy: RunPolicy) -> Created_co:
        """Make a task run."""


@dataclass(frozen=True, slots=True)
class Made(Generic[Creation]):
    """A task run, what will be proposed for it, and how many requests were sent just now in order to make it."""

    run: Creation
    task: Task
    requests: int


class Runs(Generic[Creation]):
    """Makes the runs of a mix: flow runs with several task runs each."""

    def __init__(self, client: Creates[Creation], mixer: Mixer) -> None:
        self._client = client
        self._mixer = mixer
        self._flow_run: UUID | None = None
        self._tasks_left = 0
        self._prepared: deque[Made[Creation]] = deque()

    def prepare(self, count: int) -> Iterator[list[Creation]]:
        """Create `count` task runs before the measurement, and yield some at a time for the caller to wait for."""
        while len(self._prepared) < count:
            made = [self._send() for _ in range(min(count - len(self._prepared), PREPARED_AT_A_TIME))]
            yield [one.run for one in made]
            self._prepared.extend(replace(one, requests=0) for one in made)

    def make(self) -> Made[Creation]:
        """Return a task run that was prepared, or else send the requests that make one.

        Their answers are not awaited: the first verdict comes after them anyway.
        """
        return self._prepared.popleft() if self._prepared else self._send()

    def _send(self) -> Made[Creation]:
        requests = 1
        if self._flow_run is None or self._tasks_left == 0:
            self._flow_run, self._tasks_left = self._client.create_flow_run("bench").run_id, TASKS_PER_FLOW
            requests = 2
        self._tasks_left -= 1
        task = self._mixer.task()
        run = self._client.create_task_run("bench", flow_run=self._flow_run, tags=task.tags, policy=task.policy)
        return Made(run, task, requests)


def limit_for(load: Load) -> int:
    """Return a limit for each tag that lets most task runs pass. A quarter carry the tag, few are RUNNING.

    In the mix that parks, most must wait for their turn.
    """
    passing = max(int(load.rate or load.concurrency) // len(TAGS), 2)
    return max(passing // WAITING_FOR_ONE, 2) if load.mix is Mix.PARK else passing
