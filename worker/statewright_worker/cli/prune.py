"""`statewright prune`: delete old trees by hand."""

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Annotated, Final, NamedTuple

import typer

from statewright import Client, ConfigurationError
from statewright.client.requests import Pruned
from statewright.values import seconds_said
from statewright_worker.cli.asking import DryRun, InJson, Yes, confirmed
from statewright_worker.cli.showing import counted, moment, say, say_json
from statewright_worker.facts.old_trees import OldTrees
from statewright_worker.loop import run
from statewright_worker.maintenance.retention import portion_of
from statewright_worker.settings import WorkerSettings
from statewright_worker.storage.database import check_schema, create_engine

QUERY_SECONDS: Final = 60.0

OlderThan = Annotated[
    str | None,
    typer.Option(help="How long ago a tree last changed, as 30d, 12h or P30D; by default STATEWRIGHT_KEEP_RUNS."),
]


class Found(NamedTuple):
    """What is old enough: how many trees and runs, and since when they have not changed."""

    trees: int
    runs: int
    unchanged_since: datetime


def prune(*, older_than: OlderThan = None, dry_run: DryRun = False, yes: Yes = False, in_json: InJson = False) -> None:
    """Delete the trees whose runs have all come to an end, and of which none has changed for so long.

    Needs STATEWRIGHT_DATABASE_URL and STATEWRIGHT_REDIS_URL, and workers that delete them. It shows first what it would
    delete, and asks. The exit status is 1 when it was told not to.
    """
    settings = WorkerSettings.load()
    keep = _duration(older_than, settings)
    found = run(_find(settings, keep))
    told = {"trees": found.trees, "runs": found.runs, "unchanged_since": found.unchanged_since.isoformat()}
    if in_json and dry_run:
        say_json([{"found": told}])
    else:
        trees, runs = counted(found.trees, "tree"), counted(found.runs, "run")
        since = moment(found.unchanged_since)
        say(f"{trees} with {runs} in all, over and unchanged since {since}", beside=in_json)
    if dry_run or not (found.trees or in_json):
        return
    pruned = Pruned(0, 0)
    if found.trees:
        confirmed("Delete them, with all their history?", yes=yes)
        pruned = run(_prune(settings, found.unchanged_since))
    if in_json:
        say_json([{"found": told, "deleted": pruned._asdict()}])
    else:
        say(f"{counted(pruned.trees, 'tree')} with {counted(pruned.runs, 'run')} deleted")


def _duration(older_than: str | None, settings: WorkerSettings) -> timedelta:
    if older_than is not None:
        seconds = seconds_said(older_than)
        if isinstance(seconds, str) or seconds < 0:
            raise ConfigurationError(f"--older-than: must be a duration like 30d, 12h or P30D, not {older_than!r}")
        return timedelta(seconds=seconds)
    if settings.keep_runs is None:
        raise ConfigurationError("--older-than must say how old: STATEWRIGHT_KEEP_RUNS is not set")
    return timedelta(seconds=settings.keep_runs)


async def _find(settings: WorkerSettings, keep: timedelta) -> Found:
    count = runs = 0
    async with _old_trees(settings) as trees:
        since = await trees.begin(keep)
        while (some := await trees.step(since)) is not None:
            count += len(some)
            runs += sum(tree.runs for tree in some)
    return Found(count, runs, since)


async def _prune(settings: WorkerSettings, since: datetime) -> Pruned:
    pruned = Pruned(0, 0)
    client = Client(settings.redis_url.get_secret_value(), namespace=settings.namespace)
    async with client, _old_trees(settings) as trees:
        while (some := await trees.step(since)) is not None:
            waiting = deque(some)
            # One portion at a time, so that what else the workers have to do comes in between.
            while waiting:
                portion = [tree.run_id for tree in portion_of(waiting)]
                done = await client.prune_runs(portion, unchanged_since=since)
                pruned = Pruned(pruned.trees + done.trees, pruned.runs + done.runs)
    return pruned


@asynccontextmanager
async def _old_trees(settings: WorkerSettings) -> AsyncIterator[OldTrees]:
    engine = create_engine(
        settings.database_url.get_secret_value(),
        pool_size=0,
        pooled_transactions=settings.transaction_pooler,
        application="prune",
        command_timeout=QUERY_SECONDS,
    )
    try:
        await check_schema(engine)
        yield OldTrees(engine)
    finally:
        await engine.dispose()
