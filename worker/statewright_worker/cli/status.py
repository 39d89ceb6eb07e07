"""`statewright status`: on one page, whether all is well, what is stuck, and what waits for what."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final, NamedTuple

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from statewright import (
    Client,
    ConcurrencyLimit,
    DeadRequest,
    NoAnswer,
    NotPermitted,
    PartitionStatus,
    QueryFailed,
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
LAGGING: Final = 10_000
"""So many events a subscription may lie behind before it is said: it is what a partition keeps in Redis."""
SHOWN: Final = 5
MANY_LETTERS: Final = 100
TRAVELLING: Final = (StateType.PENDING, StateType.CANCELLING)
"""Types that a run passes through: whoever has proposed them is expected to go on."""


class Overview(NamedTuple):
    """What the page tells. What could not be looked at is None."""

    workers: list[WorkerStatus]
    partitions: list[PartitionStatus]
    limits: list[ConcurrencyLimit]
    subscriptions: list[SubscriptionStatus]
    counts: list[StateCount] | None
    stuck: Sequence[AnyRun] | None
    letters: int | None
    """How many dead letters there are, up to a bound in each partition; None where their reader is not permitted."""
    stuck_after: float

    def troubles(self) -> list[str]:
        """Return what is not as it should be, in sentences."""
        return [*self._of_workers(), *self._of_partitions(), *self._of_subscriptions(), *self._of_runs()]

    def hints(self) -> list[str]:
        """Return what may be as it should be, and is good to know."""
        return [
            *(
                f"{counted(limit.waiting, 'proposal')} {'waits' if limit.waiting == 1 else 'wait'} for the limit on"
                f" {limit.scope} {limit.key} ({limit.held} of {limit.concurrency_limit} held)"
                for limit in self.limits
                if limit.waiting
            ),
            *(
                f"the subscription {one.name} has {counted(one.dead_letter_count, 'dead letter')}: statewright"
                f" subscriptions show {one.name}"
                for one in self.subscriptions
                if one.dead_letter_count
            ),
            *(
                [f"{counted(self.letters, 'request')} could not be carried out: statewright dead-letters list"]
                if self.letters
                else []
            ),
        ]

    def _of_workers(self) -> Iterator[str]:
        for worker in self.workers:
            if not worker.seeks:
                yield f"worker {worker.worker} takes no partitions: its work gets nowhere; its log says why"
        versions = {worker.version for worker in self.workers}
        if len(versions) > 1:
            yield f"workers of different versions are at work: {', '.join(sorted(versions))}"

    def _of_partitions(self) -> Iterator[str]:
        unheld = [one.partition for one in self.partitions if one.worker is None]
        if unheld:
            yield f"nobody works on partition {ranges(unheld)}"
        slow = [one for one in self.partitions if one.oldest_seconds > OLD_SECONDS]
        if slow:
            oldest = max(slow, key=lambda one: one.oldest_seconds)
            yield (
                f"requests have been waiting for up to {seconds(oldest.oldest_seconds)} in partition"
                f" {ranges([one.partition for one in slow])}; statewright partitions shows where"
            )
        late = [
            one.partition for one in self.partitions if (since_seconds := _late(one)) and since_seconds > OLD_SECONDS
        ]
        if late:
            yield f"timers are due and not carried out in partition {ranges(late)}"

    def _of_subscriptions(self) -> Iterator[str]:
        for one in self.subscriptions:
            if one.lag and not one.member_count:
                yield f"the subscription {one.name} has no member, and lies {counted(one.lag, 'event')} behind"
            elif one.lag > LAGGING:
                yield f"the subscription {one.name} lies {counted(one.lag, 'event')} behind"

    def _of_runs(self) -> Iterator[str]:
        if self.counts is None or self.stuck is None:
            yield "runs cannot be looked at: PostgreSQL does not answer queries"
        elif self.stuck:
            types = " or ".join(TRAVELLING)
            yield f"runs have been {types} for longer than {seconds(self.stuck_after)}"


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
    async with asyncio.TaskGroup() as group:
        workers = group.create_task(client.list_workers())
        partitions = group.create_task(client.list_partitions())
        limits = group.create_task(client.list_limits())
        subscriptions = group.create_task(client.list_subscriptions())
        counts = group.create_task(_or_none(client.count_runs()))
        stuck = group.create_task(
            _or_none(client.find_runs(state_types=TRAVELLING, unchanged_for=stuck_after, limit=SHOWN))
        )
        letters = group.create_task(_count_letters(client))
    page = stuck.result()
    return Overview(
        workers.result(),
        partitions.result(),
        limits.result(),
        subscriptions.result(),
        counts.result(),
        None if page is None else page.runs,
        letters.result(),
        stuck_after,
    )


async def _or_none(asked: Any) -> Any:
    try:
        return await asked
    except (QueryFailed, NoAnswer):
        return None


async def _count_letters(client: Client) -> int | None:
    try:
        found: list[list[DeadRequest]] = [
            await client.list_dead_requests(partition, limit=MANY_LETTERS) for partition in range(client.partitions)
        ]
    except NotPermitted:
        return None
    return sum(map(len, found))


def _late(one: PartitionStatus) -> float:
    """Return for how many seconds the oldest timer has been due."""
    import pendulum

    return (pendulum.now() - pendulum.instance(one.next_due)).total_seconds() if one.due and one.next_due else 0.0


def _page(found: Overview) -> RenderableType:
    troubles = found.troubles()
    verdict = Text("not all is well", "bold red") if troubles else Text("all is well", "bold green")
    lines: list[RenderableType] = [verdict, *(Text(f"  {line}", "red") for line in troubles)]
    lines += [Text(f"  {line}", "yellow") for line in found.hints()]
    backlog = sum(one.backlog for one in found.partitions)
    parked = sum(one.parked for one in found.partitions)
    lines += [
        "",
        f"{counted(len(found.workers), 'worker')}, {counted(len(found.partitions), 'partition')},"
        f" {counted(backlog, 'unanswered request')}, {counted(parked, 'parked proposal')}",
    ]
    if found.counts:
        lines += ["", counts_table(found.counts)]
    waited_for = [limit for limit in found.limits if limit.waiting]
    if waited_for:
        lines += ["", _waited_for_table(waited_for[:SHOWN])]
    if found.stuck:
        lines += ["", runs_table(found.stuck)]
    return Group(*lines)


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
        "workers": len(found.workers),
        "partitions": len(found.partitions),
        "backlog": sum(one.backlog for one in found.partitions),
        "oldest_seconds": max((one.oldest_seconds for one in found.partitions), default=0.0),
        "parked": sum(one.parked for one in found.partitions),
        "dead_letters": found.letters,
        "runs": found.counts,
        "stuck": found.stuck,
    }
    return [told]
