"""The command line: its commands, put together."""

import typer

from statewright_worker.cli.bench import bench
from statewright_worker.cli.demo import demo
from statewright_worker.cli.dev import dev
from statewright_worker.cli.limits import limits
from statewright_worker.cli.migrate import migrate
from statewright_worker.cli.prune import prune
from statewright_worker.cli.worker import worker

app = typer.Typer(
    name="statewright",
    help="Govern the state transitions of workflow runs: proposals in through Redis, verdicts and events out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# In the order in which the help lists them.
for command in (worker, migrate, prune, dev, demo, bench):
    app.command()(command)
app.add_typer(limits, name="limits")
