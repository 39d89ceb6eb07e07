"""`statewright dead-letters`: requests that could not be carried out."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Final
from uuid import UUID

import typer
from rich.console import Group, RenderableType

from statewright import Client, DeadRequest, Delivery, NoAnswer, Overloaded, RequestFailed, Verdict
from statewright_worker.cli.asking import DryRun, InJson, Yes, confirmed, with_client
from statewright_worker.cli.showing import Column, ago, counted, facts, moment, say, say_beside, say_json, status, table

PAGE: Final = 100
SAMPLE: Final = 20
"""How many letters are shown before something is done with many."""
BODIES: Final = 100
"""How many letters are dropped at once."""

dead_letters = typer.Typer(
    no_args_is_help=True, help="Look at requests that could not be carried out; send them again, or drop them."
)

Letters = Annotated[
    list[str] | None, typer.Argument(metavar="LETTER", help="The letters, as the list names them: 3/1764091000000-0.")
]
Partition = Annotated[int | None, typer.Option(metavar="NUMBER", help="Of this partition.")]
Reason = Annotated[str | None, typer.Option(metavar="TEXT", help="Whose reason has this text in it.")]
Field = Annotated[str | None, typer.Option(metavar="NAME", help="Where this field was to blame.")]
Type = Annotated[
    str | None, typer.Option("--type", metavar="TYPE", help="Requests of this type: propose, create_flow_run…")
]
Run = Annotated[UUID | None, typer.Option(metavar="RUN", help="About this run.")]
All = Annotated[bool, typer.Option("--all", help="All of them.")]

Wanted = Callable[[DeadRequest], bool]


@dead_letters.command("list")
@with_client
async def list_(
    client: Client,
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.")] = 50,
    partition: Partition = None,
    reason: Reason = None,
    field: Field = None,
    type_: Type = None,
    run: Run = None,
    in_json: InJson = False,
) -> None:
    """List dead letters, partition by partition, the oldest first. Needs the rights of an operator in Redis."""
    wanted = _wanted(reason, field, type_, run)
    found: list[DeadRequest] = []
    is_all = True
    async for letter in _matching(client, partition, wanted):
        if len(found) == limit:
            is_all = False
            break
        found.append(letter)
    if in_json:
        say_json(found)
    elif found:
        say(letters_table(found))
    else:
        say_beside("there is no such dead letter")
    if not is_all:
        say_beside("there are more: raise --limit, or say more exactly which")


@dead_letters.command()
@with_client
async def show(
    client: Client,
    letter: Annotated[str, typer.Argument(metavar="LETTER", help="As the list names it.", show_default=False)],
    *,
    in_json: InJson = False,
) -> None:
    """Show a dead letter with the beginning of its message. The exit status is 1 when there is no such letter."""
    found = await _named(client, letter)
    if in_json:
        say_json([found])
    else:
        say(_whole(found))


@dead_letters.command("send-again")
@with_client
async def send_again(
    client: Client,
    letter: Letters = None,
    *,
    partition: Partition = None,
    reason: Reason = None,
    field: Field = None,
    type_: Type = None,
    run: Run = None,
    everything: All = False,
    rate: Annotated[float, typer.Option(min=0.1, help="How many a second at most.")] = 50,
    dry_run: DryRun = False,
    yes: Yes = False,
    in_json: InJson = False,
) -> None:
    """Send requests again, each under an id of its own, and drop their letters. What is refused again is a new letter.

    Of a large message only the first 4,096 bytes are kept: that one cannot be sent again, and stays. It shows first
    what it would send, and asks. The exit status is 1 when something was not carried out.
    """
    chosen = await _chosen(client, letter, partition, _wanted(reason, field, type_, run), everything=everything)
    chosen = _only_whole(chosen)
    if not chosen:
        return
    _show_some(chosen, in_json=in_json, dry_run=dry_run)
    if dry_run:
        return
    confirmed(f"Send {counted(len(chosen), 'request')} again?", yes=yes)
    failed = 0
    pause = 1 / rate
    loop = asyncio.get_running_loop()
    for one in chosen:
        due = loop.time() + pause
        told = await _sent(client, one)
        failed += isinstance(told, RequestFailed)
        await client.drop_dead_requests([one])
        _tell(one, told, in_json=in_json)
        await asyncio.sleep(due - loop.time())
    if not in_json:
        say(f"{len(chosen) - failed:,} of {counted(len(chosen), 'request')} carried out")
    if failed:
        raise typer.Exit(1)


@dead_letters.command()
@with_client
async def drop(
    client: Client,
    letter: Letters = None,
    *,
    partition: Partition = None,
    reason: Reason = None,
    field: Field = None,
    type_: Type = None,
    run: Run = None,
    everything: All = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Drop dead letters. It shows first which, and asks."""
    chosen = await _chosen(client, letter, partition, _wanted(reason, field, type_, run), everything=everything)
    if not chosen:
        say_beside("there is no such dead letter")
        return
    _show_some(chosen, in_json=False, dry_run=dry_run)
    if dry_run:
        return
    confirmed(f"Drop {counted(len(chosen), 'dead letter')}?", yes=yes)
    dropped = 0
    for first in range(0, len(chosen), BODIES):
        dropped += await client.drop_dead_requests(chosen[first : first + BODIES])
    say(f"{counted(dropped, 'dead letter')} dropped")


def letters_table(found: list[DeadRequest]) -> RenderableType:
    """Return dead letters as a table."""
    return table(
        [
            Column("LETTER", _name, is_whole=True),
            Column("PUSHED", lambda letter: ago(letter.at)),
            Column("REQUEST", lambda letter: letter.type),
            Column("RUN", lambda letter: letter.run_id, is_wide=True, is_whole=True),
            Column("FIELD", lambda letter: letter.field, is_wide=True),
            Column("REASON", lambda letter: letter.reason),
            Column("", lambda letter: "" if letter.is_whole else "cut", is_whole=True),
        ],
        found,
    )


def _name(letter: DeadRequest) -> str:
    return f"{letter.partition}/{letter.entry}"


def _whole(letter: DeadRequest) -> RenderableType:
    about = facts(
        [
            ("letter", _name(letter)),
            ("pushed", f"{moment(letter.at)}, {ago(letter.at)}"),
            ("reason", letter.reason),
            ("field", letter.field),
            ("request", letter.request_id),
            ("type", letter.type),
            ("run", letter.run_id),
            ("answer to", letter.reply_to),
            (
                "size",
                f"{letter.size:,} bytes{'' if letter.is_whole else '; the rest is lost, so it cannot be sent again'}",
            ),
        ]
    )
    return Group(about, "", letter.message)


def _wanted(reason: str | None, field: str | None, type_: str | None, run: UUID | None) -> Wanted | None:
    """Return what tells which letters are meant; None when nothing was said."""
    if all(said is None for said in (reason, field, type_, run)):
        return None

    def wanted(letter: DeadRequest) -> bool:
        return (
            (reason is None or reason.casefold() in letter.reason.casefold())
            and (field is None or field == letter.field)
            and (type_ is None or type_ == letter.type)
            and (run is None or str(run) == letter.run_id)
        )

    return wanted


async def _matching(client: Client, partition: int | None, wanted: Wanted | None) -> AsyncIterator[DeadRequest]:
    for number in range(client.partitions) if partition is None else [partition]:
        after: str | None = None
        while page := await client.list_dead_requests(number, limit=PAGE, after=after):
            for letter in page:
                if wanted is None or wanted(letter):
                    yield letter
            after = page[-1].entry


async def _chosen(
    client: Client, names: list[str] | None, partition: int | None, wanted: Wanted | None, *, everything: bool
) -> list[DeadRequest]:
    """Return the letters that are named, or all that match. There are no more than Redis keeps."""
    says_which = partition is not None or wanted is not None
    if [bool(names), says_which, everything].count(True) != 1:
        raise typer.BadParameter("name the letters, or say by filters which are meant, or --all", param_hint="LETTER")
    if names:
        return [await _named(client, name) for name in names]
    return [letter async for letter in _matching(client, partition, wanted)]


async def _named(client: Client, name: str) -> DeadRequest:
    partition, _, entry = name.partition("/")
    milliseconds, _, number = entry.partition("-")
    if not (partition.isdecimal() and milliseconds.isdecimal() and number.isdecimal()):
        raise typer.BadParameter(f"is written like 3/1764091000000-0, not {name!r}", param_hint="LETTER")
    after = _before(int(milliseconds), int(number))
    for letter in await client.list_dead_requests(int(partition), limit=1, after=after):
        if letter.entry == entry:
            return letter
    say_beside(f"there is no dead letter {name}")
    raise typer.Exit(1)


def _before(milliseconds: int, number: int) -> str | None:
    """Return the greatest id below an entry's; None when there is none."""
    if number:
        return f"{milliseconds}-{number - 1}"
    return f"{milliseconds - 1}-{2**64 - 1}" if milliseconds else None


def _only_whole(chosen: list[DeadRequest]) -> list[DeadRequest]:
    whole = [letter for letter in chosen if letter.is_whole]
    if cut := len(chosen) - len(whole):
        say_beside(
            f"{counted(cut, 'letter')} cannot be sent again: of a message the first 4,096 bytes alone are kept; its"
            " producer must send it"
        )
    if not whole:
        say_beside("there is nothing that can be sent again")
    return whole


def _show_some(chosen: list[DeadRequest], *, in_json: bool, dry_run: bool) -> None:
    if in_json and dry_run:
        say_json(chosen)
        return
    say(letters_table(chosen[:SAMPLE]), beside=in_json)
    if len(chosen) > SAMPLE:
        say_beside(f"and {len(chosen) - SAMPLE:,} more")


async def _sent(client: Client, letter: DeadRequest) -> Verdict | str | RequestFailed:
    try:
        return await client.send_again(letter) or "carried out"
    except Overloaded:
        # Nobody has looked at it.
        raise
    except RequestFailed as refused:
        return refused
    except NoAnswer as unanswered:
        if unanswered.delivery is Delivery.PARKED:
            return "parked"
        raise


def _tell(letter: DeadRequest, told: Verdict | str | RequestFailed, *, in_json: bool) -> None:
    if in_json:
        answer: Any = {"error": str(told)} if isinstance(told, RequestFailed) else {"answer": told}
        say_json([{"letter": _name(letter), **answer}])
    else:
        what = status(told.status) if isinstance(told, Verdict) else str(told)
        say(facts([(_name(letter), what)]))
