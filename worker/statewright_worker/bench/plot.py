"""The picture of a benchmark: how latencies are distributed, and the throughput over time."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from statewright import ConfigurationError
from statewright_worker.bench.drive import Measurement
from statewright_worker.bench.options import Load

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INTERVALS: Final = 40
BINS: Final = 80
INCHES: Final = (11, 4.2)
DOTS_PER_INCH: Final = 130
COLOUR: Final = "#2f6fab"
MARKS: Final = {"p50": "#1b7f4b", "p95": "#c77800", "p99": "#b3261e"}


def check_plot(path: Path) -> None:
    """Raise ConfigurationError when no picture can be drawn into `path`; better now than after the measurement."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ConfigurationError(
            "--plot needs matplotlib, which is not installed; run `pip install 'statewright[worker,bench]'`"
        ) from None
    if path.suffix != ".png":
        raise ConfigurationError(f"--plot writes a PNG, so its file must end in .png, unlike {path}")
    if not path.absolute().parent.is_dir():
        raise ConfigurationError(f"--plot cannot write {path}: there is no such folder")


def draw(load: Load, measurement: Measurement, path: Path) -> None:
    """Draw what was measured into `path`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(load.description)
    _draw_latencies(left, measurement)
    _draw_throughput(right, load, measurement)
    figure.savefig(path, dpi=DOTS_PER_INCH)


def _draw_latencies(axes: "Axes", measurement: Measurement) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    latencies = measurement.samples.latencies()
    axes.set_title("propose to verdict")
    axes.set_xlabel("milliseconds")
    axes.set_ylabel("proposals")
    axes.set_xscale("log")
    if not latencies:
        return
    lowest, highest = max(latencies[0], 0.01), max(latencies[-1], 0.02)
    growth = (highest / lowest) ** (1 / BINS)
    axes.hist(latencies, bins=[lowest * growth**number for number in range(BINS + 1)], color=COLOUR)
    percentiles = measurement.samples.percentiles()
    for name, colour in MARKS.items():
        if name in percentiles:
            axes.axvline(percentiles[name], color=colour, label=f"{name} {percentiles[name]:.1f} ms")
    axes.legend()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_throughput(axes: "Axes", load: Load, measurement: Measurement) -> None:
    width = load.seconds / INTERVALS
    throughput = measurement.samples.throughput(width)
    axes.set_title("throughput")
    axes.set_xlabel("seconds")
    axes.set_ylabel("transitions/s")
    axes.plot([width * (number + 0.5) for number in range(len(throughput))], throughput, color=COLOUR)
    axes.set_ylim(bottom=0)
