"""How commands show things: tables and pages for people, one JSON object a line for programs."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple, TypeVar

import pendulum
import typer
from pydantic import BaseModel
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from statewright import RunKind, SetStateStatus, State, StateType, Verdict

WIDE: Final = 120
"""From so many columns on, tables show what is good to know beside what is needed."""
UNBOUNDED: Final = 1_000_000
"""The width of what is no terminal: nothing is cut or wrapped for it."""
GAP: Final = 2

STATE_STYLES: Final = {
    StateType.SCHEDULED: "yellow",
    StateType.PENDING: "blue",
    StateType.RUNNING: "bold cyan",
    StateType.COMPLETED: "green",
    StateType.FAILED: "red",
    StateType.CANCELLED: "magenta",
    StateType.CRASHED: "bold red",
    StateType.PAUSED: "yellow",
    StateType.CANCELLING: "magenta",
}
STATUS_STYLES: Final = {
    SetStateStatus.ACCEPT: "green",
    SetStateStatus.REJECT: "yellow",
    SetStateStatus.WAIT: "cyan",
    SetStateStatus.ABORT: "red",
}
_KINDS: Final = {RunKind.FLOW_RUN: "flow", RunKind.TASK_RUN: "task"}
_MANY_MINUTES: Final = timedelta(hours=2)
_MANY_HOURS: Final = timedelta(days=2)

Row = TypeVar("Row")


class Column(NamedTuple):
    """A column of a table: its heading, and what a row has in it; None is shown as nothing."""

    heading: str
    cell: Callable[[Any], object]
    is_wide: bool = False
    """Whether it is shown where there is room alone."""
    is_whole: bool = False
    """Whether it is never wrapped: what is copied from the screen, and what is read at a glance."""
    is_number: bool = False


def console() -> Console:
    """Return the console of the standard output, which takes whatever there is where that is no terminal."""
    is_bounded = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, soft_wrap=False, width=None if is_bounded else UNBOUNDED)


def say(*shown: RenderableType, beside: bool = False) -> None:
    """Print what is for people; `beside` what standard output has, which is for programs then, on standard error."""
    terminal = console()
    if terminal.is_terminal and not beside:
        terminal.print(*shown, sep="\n")
        return
    with terminal.capture() as captured:
        terminal.print(*shown, sep="\n")
    # Tables are filled up with blanks, which are nothing to a pipe or a file; an empty one is nothing at all.
    if lines := "\n".join(line.rstrip() for line in captured.get().splitlines()):
        typer.echo(lines, err=beside)


def say_beside(words: str) -> None:
    """Print a sentence on standard error: what standard output has can be piped on."""
    typer.echo(words, err=True)


def say_json(values: Iterable[object]) -> None:
    """Print one JSON object a line."""
    for value in values:
        typer.echo(json_of(value))


def json_of(value: object) -> str:
    """Return the value as JSON in one line."""
    if isinstance(value, BaseModel):
        return value.model_dump_json()
    return json.dumps(value, default=_plain, ensure_ascii=False)


def _plain(value: object) -> object:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


def table(columns: Sequence[Column], rows: Iterable[Row], *, title: str = "") -> RenderableType:
    """Return the rows as a table, without what they all have nothing in, and without what there is no room for."""
    found = list(rows)
    is_wide = console().width >= WIDE
    shown = Table(
        box=None,
        pad_edge=False,
        padding=(0, GAP, 0, 0),
        header_style="dim",
        title=Text(title, "bold") if title else None,
        title_justify="left",
    )
    cells = [[_cell(column.cell(row)) for row in found] for column in columns]
    kept = [
        (column, texts)
        for column, texts in zip(columns, cells, strict=True)
        if (is_wide or not column.is_wide) and any(text.plain for text in texts)
    ]
    for column, _ in kept:
        shown.add_column(
            column.heading,
            justify="right" if column.is_number else "left",
            no_wrap=column.is_whole or column.is_number,
            overflow="fold",
        )
    for row in zip(*(texts for _, texts in kept), strict=True):
        shown.add_row(*row)
    return shown


def facts(about: Iterable[tuple[str, object]], *, title: RenderableType | None = None) -> RenderableType:
    """Return what is known of one thing: a name and a value a line, without those that are None or empty."""
    grid = Table.grid(padding=(0, GAP, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in about:
        text = _cell(value)
        if text.plain:
            grid.add_row(name, text)
    return grid if title is None else Group(title, Padding(grid, (0, 0, 0, GAP)))


def _cell(value: object) -> Text:
    if isinstance(value, Text):
        return value
    if value is None or value == "":
        return Text()
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, int):
        return Text(f"{value:,}")
    if isinstance(value, datetime):
        return Text(moment(value))
    return Text(str(value))


def state(type_: StateType | None, name: str | None) -> Text:
    """Return a state by its name, in the colour of its type; the type as well where the name does not say it."""
    if type_ is None:
        return Text("none", "dim")
    named = Text(name or type_.capitalize(), STATE_STYLES[type_])
    return named if named.plain.upper() == type_ else Text.assemble(named, (f" {type_}", "dim"))


def state_of(written: State | None) -> Text:
    """Return a written state as `state` does."""
    return state(None, None) if written is None else state(written.type, written.name)


def status(given: SetStateStatus) -> Text:
    """Return the status of a verdict in its colour."""
    return Text(given, STATUS_STYLES[given])


def verdict_lines(verdict: Verdict) -> RenderableType:
    """Return a verdict for people."""
    return facts(
        [
            ("verdict", status(verdict.status)),
            ("because", verdict.reason),
            ("again in", None if verdict.delay_seconds is None else seconds(verdict.delay_seconds)),
            ("run", verdict.run_id),
            ("state", state_of(verdict.state)),
            ("message", None if verdict.state is None else verdict.state.message),
            ("rules", " ".join(verdict.rule_signature)),
            ("proposal", verdict.proposal_id),
        ]
    )


def kind(of_run: RunKind) -> str:
    """Return the kind of a run in a word."""
    return _KINDS[of_run]


def ago(when: datetime | None) -> str | None:
    """Return how long ago a moment was, or how soon it is, in words."""
    return None if when is None else pendulum.instance(when).diff_for_humans()


def since(when: datetime | None) -> str | None:
    """Return for how long something has been so, in few words."""
    return None if when is None else seconds(max((pendulum.now() - pendulum.instance(when)).total_seconds(), 0))


def seconds(number: float | None) -> str | None:
    """Return a duration in its two greatest units at most."""
    if number is None:
        return None
    if number < 60:  # noqa: PLR2004
        return f"{number:.0f} s" if number >= 10 or number == int(number) else f"{number:.1f} s"  # noqa: PLR2004
    lasting = pendulum.duration(seconds=int(number))
    if lasting < _MANY_MINUTES:
        return f"{lasting.in_minutes()} min {lasting.remaining_seconds % 60} s".removesuffix(" 0 s")
    if lasting < _MANY_HOURS:
        return f"{lasting.in_hours()} h {lasting.minutes} min".removesuffix(" 0 min")
    return f"{lasting.in_days()} d {lasting.hours} h".removesuffix(" 0 h")


def moment(when: datetime) -> str:
    """Return the moment as whoever sits at the terminal reads it: by their own clock."""
    return pendulum.instance(when).in_timezone("local").format("YYYY-MM-DD HH:mm:ss Z")


def ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers in few characters, as 0-3,7."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number of things in words."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
