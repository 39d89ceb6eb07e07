"""`statewright status`: on one page, whether all is well, what is stuck, and what waits for what."""

import asyncio
from collections.abc import Awaitable, Iterator, Sequence
from typing import Annotated, Any, Final, NamedTuple

import pendulum
import typer
from rich.console import Group, RenderableType
from rich.text import Text

from statewright import (
    Client,
    ConcurrencyLimit,
    DeadRequest,
    NoAnswer,
    NotPermitted,
    Overloaded,
    PartitionStatus,
    QueryFailed,
    QueryTooSlow,
    StateCount,
    StateType,
    SubscriptionStatus,
    WorkerStatus,
)
from statewright_worker.cli.asking import InJson, Watch, seconds_of, shown, with_client
from statewright_worker.cli.runs import AnyRun, counts_table, runs_table
from statewright_worker.cli.showing import Column, counted, ranges, seconds, table

OLD_SECONDS: Final = 5.0
"""So long a request may wait in a healthy deployment: a hold that is lost is taken over by then."""
LOOK_SECONDS: Final = 5.0
LAGGING: Final = 10_000
"""So many events a subscription may lie behind before it is said: it is what a partition keeps in Redis."""
SHOWN: Final = 5
MANY_LETTERS: Final = 100
TRAVELLING: Final = (StateType.PENDING, StateType.CANCELLING)
"""Types that a run passes through: whoever has proposed them is expected to go on."""


class Overview(NamedTuple):
    """What the page tells. What could not be looked at is None."""

    workers: list[WorkerStatus] | None
    partitions: list[PartitionStatus] | None
    limits: list[ConcurrencyLimit] | None
    subscriptions: list[SubscriptionStatus] | None
    counts: list[StateCount] | None
    stuck: Sequence[AnyRun] | None
    letters: int | None
    """How many dead letters there are, up to a bound in each partition; None where their reader is not permitted."""
    stuck_after: float

    def troubles(self) -> list[str]:
        """Return what is not as it should be, in sentences."""
        return [
            *_of_workers(self.workers),
            *_of_partitions(self.partitions),
            *_of_requests(self.limits, self.subscriptions),
            *_of_subscriptions(self.subscriptions or []),
            *_of_runs(self.stuck, self.stuck_after),
        ]

    def hints(self) -> list[str]:
        """Return what may be as it should be, and is good to know."""
        told = [
            f"{counted(limit.waiting, 'proposal')} {'waits' if limit.waiting == 1 else 'wait'} for the limit on"
            f" {limit.scope} {limit.key} ({limit.held} of {limit.concurrency_limit} held)"
            for limit in self.limits or []
            if limit.waiting
        ]
        told += [
            f"the subscription {one.name} has {counted(one.dead_letter_count, 'dead letter')}:"
            f" statewright subscriptions show {one.name}"
            for one in self.subscriptions or []
            if one.dead_letter_count
        ]
        if self.letters:
            told.append(f"{counted(self.letters, 'request')} could not be carried out: statewright dead-letters list")
        return told


def _of_workers(workers: list[WorkerStatus] | None) -> Iterator[str]:
    if workers is None:
        yield f"no worker answers queries within {LOOK_SECONDS:g} s: none is alive, or all are stuck"
        return
    for worker in workers:
        if not worker.seeks:
            yield f"worker {worker.worker} takes no partitions: its work gets nowhere; its log says why"
    versions = {worker.version for worker in workers}
    if len(versions) > 1:
        yield f"workers of different versions are at work: {', '.join(sorted(versions))}"


def _of_partitions(partitions: list[PartitionStatus] | None) -> Iterator[str]:
    if partitions is None:
        yield "partitions cannot be looked at: PostgreSQL does not answer queries"
        return
    unheld = [one.partition for one in partitions if one.worker is None]
    if unheld:
        yield f"nobody works on {_named(unheld)}"
    slow = [one for one in partitions if one.oldest_seconds > OLD_SECONDS]
    if slow:
        oldest = max(one.oldest_seconds for one in slow)
        yield f"requests have been waiting for up to {seconds(oldest)} in {_named([one.partition for one in slow])}"
    late = [one.partition for one in partitions if _late_seconds(one) > OLD_SECONDS]
    if late:
        yield f"what has come due is not carried out in {_named(late)}"


def _of_requests(limits: object, subscriptions: object) -> Iterator[str]:
    if limits is None or subscriptions is None:
        yield f"requests are not answered within {LOOK_SECONDS:g} s"


def _of_subscriptions(subscriptions: list[SubscriptionStatus]) -> Iterator[str]:
    for one in subscriptions:
        if one.lag and not one.member_count:
            yield f"the subscription {one.name} has no member, and lies {counted(one.lag, 'event')} behind"
        elif one.lag > LAGGING:
            yield f"the subscription {one.name} lies {counted(one.lag, 'event')} behind"


def _of_runs(stuck: Sequence[AnyRun] | None, stuck_after: float) -> Iterator[str]:
    if stuck is None:
        yield "runs cannot be looked at: PostgreSQL does not answer queries"
    elif stuck:
        yield f"runs have been {' or '.join(TRAVELLING)} for longer than {seconds(stuck_after)}"


def _named(partitions: Sequence[int]) -> str:
    return f"partition{'' if len(partitions) == 1 else 's'} {ranges(partitions)}"


@with_client
async def status(
    client: Client,
    *,
    stuck_after: Annotated[
        str, typer.Option(metavar="DURATION", help="A run that is PENDING or CANCELLING for so long is stuck.")
    ] = "10m",
    watch: Watch = False,
    in_json: InJson = False,
) -> None:
    """Say on one page whether all is well, what is stuck, and what waits for what.

    The exit status is 1 when something is not as it should be; then the first lines say what.
    """
    after = seconds_of(stuck_after, "--stuck-after") or 0.0
    found = await shown(lambda: _look(client, after), _page, _in_json, in_json=in_json, watch=watch)
    if found.troubles():
        raise typer.Exit(1)


async def _look(client: Client, stuck_after: float) -> Overview:
    # First what counts requests, then what makes some itself.
    workers, partitions = await _each(client.list_workers(), client.list_partitions())
    limits, subscriptions, counts, stuck, letters = await _each(
        client.list_limits(),
        client.list_subscriptions(),
        client.count_runs(),
        client.find_runs(state_types=TRAVELLING, unchanged_for=stuck_after, limit=SHOWN),
        _count_letters(client),
    )
    stuck_runs = None if stuck is None else stuck.runs
    return Overview(workers, partitions, limits, subscriptions, counts, stuck_runs, letters, stuck_after)


async def _each(*looks: Awaitable[Any]) -> list[Any]:
    return await asyncio.gather(*map(_or_none, looks))


async def _or_none(looking: Awaitable[Any]) -> Any:
    """Return what is found; None where nobody can say, or not soon: who asks for the status may be in a hurry."""
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            return await looking
    except (QueryFailed, QueryTooSlow, NoAnswer, Overloaded, TimeoutError):
        return None


async def _count_letters(client: Client) -> int | None:
    try:
        found: list[list[DeadRequest]] = [
            await client.list_dead_requests(partition, limit=MANY_LETTERS) for partition in range(client.partitions)
        ]
    except NotPermitted:
        return None
    return sum(map(len, found))


def _late_seconds(one: PartitionStatus) -> float:
    """Return for how many seconds the oldest timer has been due."""
    return (pendulum.now() - pendulum.instance(one.next_due)).total_seconds() if one.due and one.next_due else 0.0


def _page(found: Overview) -> RenderableType:
    troubles = found.troubles()
    verdict = Text("not all is well", "bold red") if troubles else Text("all is well", "bold green")
    lines: list[RenderableType] = [verdict, *(Text(f"  {line}", "red") for line in troubles)]
    lines += [Text(f"  {line}", "yellow") for line in found.hints()]
    lines += ["", ", ".join(_numbers(found))]
    if found.counts:
        lines += ["", counts_table(found.counts)]
    waited_for = [limit for limit in found.limits or [] if limit.waiting]
    if waited_for:
        lines += ["", _waited_for_table(waited_for[:SHOWN])]
    if found.stuck:
        lines += ["", runs_table(found.stuck)]
    return Group(*lines)


def _numbers(found: Overview) -> Iterator[str]:
    if found.workers is not None:
        yield counted(len(found.workers), "worker")
    if found.partitions is not None:
        yield counted(len(found.partitions), "partition")
        yield counted(sum(one.backlog for one in found.partitions), "unanswered request")
        yield counted(sum(one.parked for one in found.partitions), "parked proposal")


def _waited_for_table(limits: list[ConcurrencyLimit]) -> RenderableType:
    return table(
        [
            Column("LIMIT ON", lambda limit: limit.scope),
            Column("KEY", lambda limit: limit.key),
            Column("SLOTS", lambda limit: limit.concurrency_limit, is_number=True),
            Column("HELD", lambda limit: limit.held, is_number=True),
            Column("WAITING", lambda limit: limit.waiting, is_number=True),
        ],
        limits,
    )


def _in_json(found: Overview) -> list[Any]:
    troubles = found.troubles()
    told = {
        "is_well": not troubles,
        "troubles": troubles,
        "hints": found.hints(),
        "workers": None if found.workers is None else len(found.workers),
        "partitions": None if found.partitions is None else len(found.partitions),
        "backlog": sum(one.backlog for one in found.partitions or []),
        "oldest_seconds": max((one.oldest_seconds for one in found.partitions or []), default=0.0),
        "parked": sum(one.parked for one in found.partitions or []),
        "dead_letters": found.letters,
        "runs": found.counts,
        "stuck": found.stuck,
    }
    return [told]
