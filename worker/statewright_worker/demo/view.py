"""How the demo looks: a live view in a terminal, plain lines elsewhere, and a summary at the end."""

import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
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
from statewright_worker.demo.journal import Answered, Heard, Journal, View
from statewright_worker.demo.story import DATABASE, DATABASE_SLOTS, Ending

FRAMES_PER_SECOND: Final = 8
RUNS_PER_ROW: Final = 3
MIN_LINES: Final = 3
MAX_LINES: Final = 16
WIDE: Final = 110
"""On a terminal of so many columns, verdicts and events stand side by side."""
OTHER_LINES: Final = 11
"""How many of the terminal's lines the runs, the counters and the frames take."""

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
    """Prints one line for each verdict and each event."""

    def show_verdict(self, answered: Answered) -> None:
        typer.echo(
            f"{answered.at:6.2f} s  {answered.verdict.status:<6}  {answered.run_name:<15}"
            f"  {answered.proposed.type:<9} -> {answered.outcome()}  ({answered.milliseconds:.1f} ms)"
        )

    def show_event(self, heard: Heard) -> None:
        event, run = heard.event, heard.event.data.resource
        typer.echo(
            f"{heard.at:6.2f} s  event   {run.name:<15}  {_came_from(event):<9} -> {run.state_name}"
            f"  (#{event.sequence} of partition {event.partition})"
        )


class LiveView:
    """Shows every run with its state, the newest verdicts and events, and counters.

    A thread of rich's own renders it. So rendering takes copies of what the demo changes meanwhile.
    """

    def __init__(self, console: Console) -> None:
        self._side_by_side = console.width >= WIDE
        room = console.height - OTHER_LINES
        lines = min(max(room if self._side_by_side else room // 2 - 1, MIN_LINES), MAX_LINES)
        self._verdicts: deque[Answered] = deque(maxlen=lines)
        self._events: deque[Heard] = deque(maxlen=lines)
        self._latest: dict[str, Event] = {}
        self._counts: Counter[SetStateStatus] = Counter()
        self._event_count = 0

    def show_verdict(self, answered: Answered) -> None:
        self._verdicts.append(answered)
        self._counts[answered.verdict.status] += 1

    def show_event(self, heard: Heard) -> None:
        self._events.append(heard)
        self._latest[heard.event.data.resource.name] = heard.event
        self._event_count += 1

    def render(self) -> RenderableType:
        """Return the view as it stands."""
        verdicts = _panel("verdicts", map(_verdict_line, tuple(self._verdicts)), self._verdicts.maxlen)
        events = _panel("events", map(_event_line, tuple(self._events)), self._events.maxlen)
        runs = _runs(tuple(self._latest.values()))
        if self._side_by_side:
            return Group(runs, _in_columns([(verdicts, events)], ratios=(5, 4)), self._counters())
        return Group(runs, verdicts, events, self._counters())

    def _counters(self) -> Text:
        parts = [(f" {status} {self._counts[status]} ", style) for status, style in STATUS_STYLES.items()]
        return Text.assemble(*parts, (f" events {self._event_count}", "magenta"))


def show_summary(journal: Journal, ending: Ending) -> None:
    """Print how often each verdict was given, what was heard, what remains, and how long verdicts took."""
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


def _runs(latest: Sequence[Event]) -> Panel:
    """Show every run with the state that its latest event told of."""
    cells = [_run_cell(event) for event in latest]
    rows = [cells[first : first + RUNS_PER_ROW] for first in range(0, len(cells), RUNS_PER_ROW)]
    in_use = sum(map(_holds_slot, latest))
    limit = Text(f"{DATABASE} {in_use}/{DATABASE_SLOTS}", "bold cyan" if in_use == DATABASE_SLOTS else "cyan")
    grid = _in_columns(rows, ratios=(1,) * RUNS_PER_ROW)
    return Panel(grid, title="runs", title_align="left", subtitle=limit, subtitle_align="right")


def _panel(title: str, lines: Iterable[Text], height: int | None) -> Panel:
    text = Text("\n", no_wrap=True, overflow="ellipsis").join(lines)
    return Panel(text, title=title, title_align="left", height=(height or 0) + 2)


def _in_columns(rows: Iterable[Iterable[RenderableType]], ratios: Iterable[int]) -> Table:
    grid = Table.grid(expand=True, padding=(0, 1, 0, 0))
    for ratio in ratios:
        grid.add_column(ratio=ratio, no_wrap=True, overflow="ellipsis")
    for row in rows:
        grid.add_row(*row)
    return grid


def _run_cell(event: Event) -> Text:
    run = event.data.resource
    style = STATE_STYLES.get(run.state_type, "")
    return Text.assemble(("● ", style), f"{run.name} ", (run.state_name, style))


def _verdict_line(answered: Answered) -> Text:
    status = answered.verdict.status
    return Text.assemble(
        (f"{status:<6} ", STATUS_STYLES[status]),
        f"{answered.run_name:<15} ",
        (f"{answered.milliseconds:6.1f} ms  {answered.proposed.type} → ", "dim"),
        answered.outcome(),
    )


def _event_line(heard: Heard) -> Text:
    run = heard.event.data.resource
    return Text.assemble(
        (f"{heard.event.sequence:>3} ", "magenta"),
        f"{run.name:<15} ",
        (f"{_came_from(heard.event)} → ", "dim"),
        (run.state_name, STATE_STYLES.get(run.state_type, "")),
    )


def _holds_slot(event: Event) -> bool:
    is_tagged = any(related.role == "tag" and related.id == DATABASE for related in event.data.related)
    return is_tagged and event.data.resource.state_type is StateType.RUNNING


def _came_from(event: Event) -> str:
    return event.data.intended.from_type or "new"
