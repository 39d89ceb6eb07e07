"""The entry of the command `statewright`."""

import signal
import sys

from statewright.errors import StatewrightError

INTERRUPTED = 130
"""The exit status of a command that was stopped with Ctrl-C, as shells expect it."""


def main() -> None:
    """Run the command line; an error that the user can cure ends in one sentence, not in a traceback."""
    try:
        from statewright_worker.cli.app import app
    except ModuleNotFoundError as error:
        sys.exit(
            f"statewright: {error.name} is not installed; the command needs"
            " `pip install 'statewright[worker]'`, and `[worker,embedded]` to bring its own servers"
        )
    if not sys.flags.safe_path:
        # A policy may be a module of the current folder. What is installed comes first.
        sys.path.append("")
    # Whatever ends the command unwinds it, so that embedded servers never outlive it.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        app()
    except StatewrightError as error:
        sys.exit(f"statewright: {error}")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
