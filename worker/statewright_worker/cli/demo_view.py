"""How the demo looks: a live view in a terminal, plain lines elsewhere, and a summary at the end."""

import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import typer
from rich.box import ROUNDED
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from statewright import Event, SetStateStatus, StateType
from statewright_worker.cli.demo_journal import Answered, Heard, Journal, View
from statewright_worker.cli.demo_story import DATABASE, DATABASE_SLOTS, Ending

FRAMES_PER_SECOND: Final = 12
RUNS_PER_ROW: Final = 3
MAX_LINES: Final = 14
MIN_LINES: Final = 3
# What the runs' panel, the counters and the frames take of the terminal's height.
OTHER_LINES: Final = 12

STATUS_STYLES: Final = {
    SetStateStatus.ACCEPT: "green",
    SetStateStatus.REJECT: "yellow",
    SetStateStatus.WAIT: "cyan",
    SetStateStatus.ABORT: "red",
}
STATE_STYLES: Final = {
    StateType.SCHEDULED: "yellow",
    StateType.PENDING: "blue",
    StateType.RUNNING: "bold cyan",
    StateType.COMPLETED: "green",
    StateType.FAILED: "red",
}


@contextmanager
def open_view() -> Iterator[View]:
    """Yield the live view when standard output is a terminal, the plain one otherwise."""
    console = Console()
    if not sys.stdout.isatty() or console.is_dumb_terminal:
        yield PlainView()
        return
    view = LiveView(console)
    with Live(get_renderable=view.render, console=console, refresh_per_second=FRAMES_PER_SECOND):
        yield view


class PlainView:
    """One line for each verdict and each event."""

    def show_verdict(self, answered: Answered) -> None:
        typer.echo(
            f"{answered.at:6.2f} s  {answered.verdict.status:<6}  {answered.run_name:<15}"
            f"  {answered.proposed.type:<9} -> {answered.outcome()}  ({answered.milliseconds:.1f} ms)"
        )

    def show_event(self, heard: Heard) -> None:
        event, run = heard.event, heard.event.resource
        typer.echo(
            f"{heard.at:6.2f} s  event   {run.name:<15}  {_came_from(event):<9} -> {run.state_name}"
            f"  (#{event.sequence} of partition {event.partition})"
        )


class LiveView:
    """Every run with its state, the newest verdicts and events, and counters.

    It is rendered from a thread of rich's own, so rendering takes copies of what the demo goes on changing.
    """

    def __init__(self, console: Console) -> None:
        self._lines = min(max(console.height - OTHER_LINES, MIN_LINES), MAX_LINES)
        self._verdicts: deque[Answered] = deque(maxlen=self._lines)
        self._events: deque[Heard] = deque(maxlen=self._lines)
        self._latest: dict[str, Event] = {}
        self._counts: Counter[SetStateStatus] = Counter()
        self._event_count = 0

    def show_verdict(self, answered: Answered) -> None:
        self._verdicts.append(answered)
        self._counts[answered.verdict.status] += 1

    def show_event(self, heard: Heard) -> None:
        self._events.append(heard)
        self._latest[heard.event.resource.name] = heard.event
        self._event_count += 1

    def render(self) -> RenderableType:
        """Return the view as it stands."""
        news = Table.grid(expand=True)
        news.add_column(ratio=5)
        news.add_column(ratio=4)
        news.add_row(
            self._panel("verdicts", map(_verdict_row, tuple(self._verdicts))),
            self._panel("events", map(_event_row, tuple(self._events))),
        )
        return Group(self._runs(tuple(self._latest.values())), news, self._counters())

    def _runs(self, latest: tuple[Event, ...]) -> Panel:
        grid = Table.grid(expand=True)
        for _ in range(RUNS_PER_ROW):
            grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        for first in range(0, len(latest), RUNS_PER_ROW):
            grid.add_row(*map(_run_cell, latest[first : first + RUNS_PER_ROW]))
        in_use = sum(map(_holds_slot, latest))
        limit = f"[{'bold ' if in_use == DATABASE_SLOTS else ''}cyan]{DATABASE} {in_use}/{DATABASE_SLOTS}"
        return Panel(grid, title="runs", title_align="left", subtitle=limit, subtitle_align="right", box=ROUNDED)

    def _panel(self, title: str, rows: Iterable[tuple[RenderableType, ...]]) -> Panel:
        table = Table.grid(padding=(0, 1), expand=True)
        for row in rows:
            table.add_row(*row)
        for column in table.columns:
            column.no_wrap, column.overflow = True, "ellipsis"
        if table.columns:
            table.columns[-1].ratio = 1
        return Panel(table, title=title, title_align="left", box=ROUNDED, height=self._lines + 2)

    def _counters(self) -> Text:
        parts = [(f" {status} {self._counts[status]} ", style) for status, style in STATUS_STYLES.items()]
        return Text.assemble(*parts, (f" events {self._event_count}", "magenta"))


def show_summary(journal: Journal, ending: Ending) -> None:
    """Print what came of it."""
    table = Table(title="Summary", box=ROUNDED, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for status, style in STATUS_STYLES.items():
        table.add_row(f"verdicts [{style}]{status}[/]", str(journal.verdicts[status]))
    table.add_section()
    table.add_row("events received", str(journal.events))
    table.add_row("states in the histories", str(sum(len(history.states) for history in ending.histories)))
    table.add_row("task runs", str(len(ending.histories) - 1))
    table.add_row(f"slots of {DATABASE!r} still held", str(len(ending.limit.active_slots) if ending.limit else 0))
    table.add_section()
    for name, milliseconds in journal.percentiles().items():
        table.add_row(f"propose to verdict, {name}", f"{milliseconds:.1f} ms")
    Console().print(table)


def _run_cell(event: Event) -> Text:
    run = event.resource
    style = STATE_STYLES.get(run.state_type, "")
    return Text.assemble(("● ", style), f"{run.name} ", (run.state_name, style))


def _verdict_row(answered: Answered) -> tuple[RenderableType, ...]:
    status = answered.verdict.status
    what = Text.assemble((f"{answered.proposed.type} → ", "dim"), answered.outcome())
    return (
        Text(status, STATUS_STYLES[status]),
        Text(answered.run_name),
        Text(f"{answered.milliseconds:.1f}", "dim"),
        what,
    )


def _event_row(heard: Heard) -> tuple[RenderableType, ...]:
    event = heard.event
    state = (event.resource.state_name, STATE_STYLES.get(event.resource.state_type, ""))
    change = Text.assemble((f"{_came_from(event)} → ", "dim"), state)
    return Text(f"#{event.sequence}", "magenta"), Text(event.resource.name), change


def _holds_slot(event: Event) -> bool:
    is_tagged = any(related.role == "tag" and related.id == DATABASE for related in event.related)
    return is_tagged and event.resource.state_type is StateType.RUNNING


def _came_from(event: Event) -> str:
    return event.intended.from_type or "new"
