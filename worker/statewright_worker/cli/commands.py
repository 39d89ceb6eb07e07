"""What commands there are, in the order in which the help lists them: known without importing any of them."""

from typing import Final, NamedTuple


class Command(NamedTuple):
    """A command, which stands in the module of its name."""

    name: str
    help: str
    extra: str
    """What must be installed: `pip install 'statewright[…]'`."""

    @property
    def module(self) -> str:
        """The name of its module and, within it, of what is run."""
        return self.name.replace("-", "_")


COMMANDS: Final = (
    Command("status", "Say on one page whether all is well, what is stuck, and what waits for what.", "cli"),
    Command("runs", "Find runs, look at them, cancel and delete them.", "cli"),
    Command("propose", "Propose a state for a run, and show the verdict.", "cli"),
    Command("verdict", "Show what became of a proposal.", "cli"),
    Command("explain", "Say why a proposal was decided as it was, rule by rule, or why it is parked.", "cli"),
    Command("what-if", "Say which verdict a proposal would get now, without any effect.", "cli"),
    Command("events", "Show changes of states as they happen.", "cli"),
    Command("limits", "Look at limits, and change them.", "cli"),
    Command("workers", "List the workers that are alive, and the partitions that each holds.", "cli"),
    Command("partitions", "List the partitions: what waits in each, and who works on it.", "cli"),
    Command("subscriptions", "Look at named subscriptions, how far they lag, and what they could not deliver.", "cli"),
    Command("dead-letters", "Look at requests that could not be carried out; send them again, or drop them.", "cli"),
    Command("worker", "Run one worker replica until SIGTERM or Ctrl-C.", "worker"),
    Command("migrate", "Bring the database of STATEWRIGHT_DATABASE_URL to the newest schema.", "worker"),
    Command("check", "Say whether all that is kept fits together, in PostgreSQL and in Redis.", "worker"),
    Command("prune", "Delete old trees of runs that are over, by hand.", "worker"),
    Command("dev", "Run embedded servers and a worker in the foreground.", "worker,embedded"),
    Command("demo", "Watch two workers govern a flow run, on embedded servers.", "worker,embedded"),
    Command("bench", "Measure how fast a deployment decides.", "worker"),
)
BY_NAME: Final = {command.name: command for command in COMMANDS}

ABOUT: Final = "Govern the state transitions of workflow runs: proposals in through Redis, verdicts and events out."
STATUSES: Final = (
    "Exit status: 0 when it is done, 1 when it failed or was refused (the last line says why), 2 when the command line"
    " is wrong, 130 when it was stopped with Ctrl-C; the help of a command says where it has others."
)
