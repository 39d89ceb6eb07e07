"""`statewright subscriptions`: named subscriptions, how far they lag, and what they could not deliver."""

from typing import Annotated, Any
from uuid import UUID

import typer
from rich.console import Group, RenderableType

from statewright import Client, ShareStatus, SubscriptionStatus
from statewright_worker.cli.asking import DryRun, InJson, Watch, Yes, confirmed, moment_said, shown, with_client
from statewright_worker.cli.showing import (
    Column,
    ago,
    counted,
    facts,
    json_of,
    moment,
    say,
    say_beside,
    say_json,
    table,
)

subscriptions = typer.Typer(
    no_args_is_help=True, help="Look at named subscriptions, how far they lag, and what they could not deliver."
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The subscription's name.", show_default=False)]
Events = Annotated[
    list[UUID] | None, typer.Argument(metavar="EVENT", help="The ids of the events; by default all of them.")
]


@subscriptions.command("list")
@with_client
async def list_(client: Client, *, watch: Watch = False, in_json: InJson = False) -> None:
    """List all named subscriptions: how many events lie behind their positions, members, dead letters."""
    found = await shown(client.list_subscriptions, subscriptions_table, list, in_json=in_json, watch=watch)
    if not found:
        say_beside("there is no named subscription")


@subscriptions.command()
@with_client
async def show(client: Client, name: Name, *, watch: Watch = False, in_json: InJson = False) -> None:
    """Show a named subscription: its members, its lag in each partition, and its first 100 dead letters.

    The exit status is 1 when there is no such subscription.
    """
    await shown(lambda: _read(client, name), _whole, lambda one: [one], in_json=in_json, watch=watch)


@subscriptions.command("send-again")
@with_client
async def send_again(
    client: Client, name: Name, event: Events = None, *, dry_run: DryRun = False, yes: Yes = False
) -> None:
    """Deliver dead letters of a named subscription again. It shows them first, and asks."""
    if await _meant(client, name, event, dry_run=dry_run):
        confirmed("Deliver them again?", yes=yes)
        typer.echo(f"{counted(await client.retry_dead_letters(name, event), 'event')} will be delivered again")


@subscriptions.command()
@with_client
async def drop(client: Client, name: Name, event: Events = None, *, dry_run: DryRun = False, yes: Yes = False) -> None:
    """Drop dead letters of a named subscription. It shows them first, and asks."""
    if await _meant(client, name, event, dry_run=dry_run):
        confirmed("Drop them?", yes=yes)
        typer.echo(f"{counted(await client.drop_dead_letters(name, event), 'dead letter')} dropped")


@subscriptions.command()
@with_client
async def reset(
    client: Client,
    name: Name,
    since: Annotated[
        str,
        typer.Argument(
            metavar="SINCE", help="beginning, end, 2h (ago), 2026-11-21 or 2026-11-21T08:00+01:00.", show_default=False
        ),
    ],
    *,
    yes: Yes = False,
    in_json: InJson = False,
) -> None:
    """Let a named subscription go on elsewhere; its members drop what they have not acknowledged. It asks first."""
    start: Any = None if since == "end" else "beginning" if since == "beginning" else moment_said(since, "SINCE")
    if not yes:
        say(subscriptions_table([await _read(client, name)]))
        confirmed(f"Let it go on {'at the end' if start is None else f'from {start}'}?", yes=yes)
    told = await client.reset_subscription(name, start)
    if in_json:
        say_json([told])
    else:
        say(subscriptions_table([told]))


@subscriptions.command()
@with_client
async def remove(client: Client, name: Name, *, yes: Yes = False) -> None:
    """Remove a named subscription with its positions and dead letters. It shows it, and asks."""
    if not yes:
        say(subscriptions_table([await _read(client, name)]))
        confirmed("Remove it? Where it was in the events is forgotten then", yes=yes)
    if await client.remove_subscription(name) is None:
        _missing(name)
    typer.echo(f"the subscription {name!r} is removed")


def subscriptions_table(found: list[SubscriptionStatus]) -> RenderableType:
    """Return named subscriptions as a table."""
    return table(
        [
            Column("SUBSCRIPTION", lambda one: one.name),
            Column("LAG", lambda one: one.lag, is_number=True),
            Column("MEMBERS", lambda one: one.member_count, is_number=True),
            Column("DEAD LETTERS", lambda one: one.dead_letter_count, is_number=True),
            Column("TRIES", lambda one: one.max_tries, is_wide=True, is_number=True),
            Column("CREATED", lambda one: ago(one.created), is_wide=True),
            Column("FILTER", lambda one: _filter(one) or "all events", is_wide=True),
        ],
        found,
    )


async def _read(client: Client, name: str) -> SubscriptionStatus:
    return await client.read_subscription(name) or _missing(name)


def _missing(name: str) -> SubscriptionStatus:
    say_beside(f"there is no subscription {name!r}")
    raise typer.Exit(1)


async def _meant(client: Client, name: str, events: list[UUID] | None, *, dry_run: bool) -> bool:
    """Show which dead letters are meant, and return whether something is to be done with them."""
    found = await _read(client, name)
    wanted = None if events is None else set(events)
    letters = [letter for letter in found.dead_letters if wanted is None or letter.event_id in wanted]
    if not letters and not events:
        say_beside("there are no dead letters")
        return False
    if letters:
        say(_letters_table(found.replaced(dead_letters=tuple(letters))))
    if not events and found.dead_letter_count > len(letters):
        say_beside(f"and {found.dead_letter_count - len(letters):,} more")
    return not dry_run


def _filter(one: SubscriptionStatus) -> str:
    said = one.filter.model_dump(mode="json", exclude_defaults=True)
    return " ".join(f"{field}={','.join(value) if isinstance(value, list) else value}" for field, value in said.items())


def _whole(one: SubscriptionStatus) -> RenderableType:
    parts: list[RenderableType] = [
        facts(
            [
                ("subscription", one.name),
                ("lag", one.lag),
                ("filter", _filter(one) or "all events"),
                ("created", f"{moment(one.created)}, {ago(one.created)}"),
                ("tries", one.max_tries),
                ("dead letters", one.dead_letter_count),
                ("positions", json_of(one.positions)),
            ]
        )
    ]
    if one.members:
        parts += ["", _members_table(one)]
    behind = [share for share in one.shares if share.lag or share.tries]
    if behind:
        parts += ["", _shares_table(behind)]
    if one.dead_letters:
        parts += ["", _letters_table(one)]
    return Group(*parts)


def _members_table(one: SubscriptionStatus) -> RenderableType:
    return table(
        [
            Column("MEMBER", lambda member: member.name),
            Column("SHARES", lambda member: member.shares, is_number=True),
            Column("JOINED", lambda member: ago(member.joined)),
            Column("SEEN", lambda member: ago(member.seen)),
        ],
        one.members,
    )


def _shares_table(behind: list[ShareStatus]) -> RenderableType:
    return table(
        [
            Column("PARTITION", lambda share: share.partition, is_number=True),
            Column("SHARE", lambda share: share.share, is_number=True),
            Column("POSITION", lambda share: share.position, is_number=True),
            Column("LAG", lambda share: share.lag, is_number=True),
            Column("FAILED TRIES", lambda share: share.tries or None, is_number=True),
            Column("MEMBER", lambda share: share.member or "nobody"),
        ],
        behind,
    )


def _letters_table(one: SubscriptionStatus) -> RenderableType:
    return table(
        [
            Column("EVENT", lambda letter: letter.event_id, is_whole=True),
            Column("PARTITION", lambda letter: letter.partition, is_wide=True, is_number=True),
            Column("NUMBER", lambda letter: letter.sequence, is_wide=True, is_number=True),
            Column("FAILED", lambda letter: ago(letter.at)),
            Column("TRIES", lambda letter: letter.tries, is_number=True),
            Column("ERROR", lambda letter: letter.error),
            Column("", lambda letter: "being delivered again" if letter.again else ""),
        ],
        one.dead_letters,
    )
