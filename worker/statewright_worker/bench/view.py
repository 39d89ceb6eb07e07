"""How a benchmark looks: a progress bar while it runs, then a table, or JSON for machines."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from statistics import median
from typing import Any, Final

from rich.box import ROUNDED
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from statewright_worker.bench.drive import Measurement, ShowProgress
from statewright_worker.bench.options import Load

INTERVAL_SECONDS: Final = 1.0


@contextmanager
def progress(load: Load) -> Iterator[ShowProgress]:
    """Yield a function that shows the progress on standard error, because standard output is for the result."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[answered]:,} verdicts"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("warming up", total=load.warm_up + load.seconds, answered=0)

        def show(elapsed: float, answered: int) -> None:
            phase = "warming up" if elapsed < load.warm_up else "measuring "
            bar.update(task, description=phase, completed=max(elapsed, 0), answered=answered)

        yield show


def show_json(load: Load, measurement: Measurement) -> None:
    """Print what was measured as one JSON object."""
    Console().print_json(data=as_json(load, measurement))


def show_table(load: Load, measurement: Measurement) -> None:
    """Print what was measured as tables."""
    told = as_json(load, measurement)
    console = Console(highlight=False)
    console.print(_results(load, told))
    console.print(_processes(told))


def as_json(load: Load, measurement: Measurement) -> dict[str, Any]:
    """Return what was measured, as an object that JSON can hold."""
    samples = measurement.samples
    transitions = samples.transitions()
    return {
        "statewright": version("statewright"),
        "python": platform.python_version(),
        "mix": str(load.mix),
        "loop": "closed" if load.rate is None else "open",
        "concurrency": load.concurrency if load.rate is None else None,
        "rate": load.rate,
        "client": load.client,
        "threads": load.threads,
        "seconds": load.seconds,
        "warm_up": load.warm_up,
        "transitions": transitions,
        "transitions_per_second": round(transitions / load.seconds, 1),
        "requests_per_second": round((transitions + samples.created) / load.seconds, 1),
        "latency_ms": {name: round(value, 3) for name, value in samples.percentiles().items()},
        "verdicts": dict(samples.statuses),
        "errors": dict(samples.errors),
        "batch_size": _batch_sizes(measurement.batch_sizes),
        "processes": [
            {"name": u.name, "cpu_percent": round(u.cpu_percent, 1), "memory_mb": round(u.memory_megabytes, 1)}
            for u in measurement.usages
        ],
        "transitions_per_interval": samples.throughput(INTERVAL_SECONDS),
    }


def _batch_sizes(sizes: list[int]) -> dict[str, float] | None:
    return {"p50": median(sizes), "max": max(sizes), "batches": len(sizes)} if sizes else None


def _results(load: Load, told: dict[str, Any]) -> Table:
    table = Table(title=load.description, box=ROUNDED, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("[bold]transitions/s[/]", f"[bold]{told['transitions_per_second']:,.0f}[/]")
    table.add_row("requests/s, with the creation of runs", f"{told['requests_per_second']:,.0f}")
    table.add_section()
    for name, milliseconds in told["latency_ms"].items():
        table.add_row(f"propose to verdict, {name}", f"{milliseconds:,.1f} ms")
    table.add_section()
    for status, count in sorted(told["verdicts"].items()):
        table.add_row(f"verdicts {status}", f"{count:,}")
    for error, count in sorted(told["errors"].items()):
        table.add_row(f"[red]errors {error}[/]", f"[red]{count:,}[/]")
    if not told["errors"]:
        table.add_row("errors", "0")
    if told["batch_size"]:
        table.add_section()
        table.add_row("verdicts in a batch, p50", f"{told['batch_size']['p50']:,.0f}")
        table.add_row("verdicts in a batch, max", f"{told['batch_size']['max']:,}")
    return table


def _processes(told: dict[str, Any]) -> Table:
    table = Table(box=ROUNDED)
    table.add_column("process")
    table.add_column("CPU", justify="right")
    table.add_column("memory", justify="right")
    for process in told["processes"]:
        table.add_row(process["name"], f"{process['cpu_percent']:.0f} %", f"{process['memory_mb']:,.0f} MB")
    return table
