"""The entry of the command `statewright`."""

import signal
import sys
from importlib.metadata import version

from statewright.errors import StatewrightError
from statewright_worker.cli.commands import ABOUT, BY_NAME, COMMANDS

INTERRUPTED = 130
"""The exit status of a command that was stopped with Ctrl-C, as shells expect it."""


def main() -> None:
    """Run the command line; an error that the user can cure ends in one sentence, not in a traceback."""
    if not sys.flags.safe_path:
        # A policy may be a module of the current folder. What is installed comes first.
        sys.path.append("")
    # Whatever ends the command unwinds it, so that embedded servers never outlive it.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        _run()
    except ModuleNotFoundError as error:
        sys.exit(f"statewright: {error.name} is not installed; {_cure(sys.argv[1:])}")
    except StatewrightError as error:
        sys.exit(f"statewright: {error}")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _run() -> None:
    try:
        from statewright_worker.cli.app import app
    except ModuleNotFoundError:
        if not _answered_without_extras(sys.argv[1:]):
            raise
    else:
        app(prog_name="statewright")


def _answered_without_extras(arguments: list[str]) -> bool:
    """Say what the base install can say: the help and the version. Return whether that was asked for."""
    if arguments == ["--version"]:
        print(f"statewright {version('statewright')}")  # noqa: T201
        return True
    if arguments not in ([], ["-h"], ["--help"]):
        return False
    lines = [f"  {command.name:<14} {command.help} [{command.extra}]" for command in COMMANDS]
    needs = "Each command needs what stands in brackets: pip install 'statewright[cli]', for example."
    print("\n".join(["Usage: statewright [--version] COMMAND …", "", ABOUT, "", *lines, "", needs]))  # noqa: T201
    return True


def _cure(arguments: list[str]) -> str:
    named = next((BY_NAME[argument] for argument in arguments if argument in BY_NAME), None)
    if named is None:
        return "the command line needs `pip install 'statewright[cli]'`"
    return f"`statewright {named.name}` needs `pip install 'statewright[{named.extra}]'`"


if __name__ == "__main__":
    main()
