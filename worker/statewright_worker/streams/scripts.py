"""Lua scripts: what Redis must do as one step."""

from statewright.connection import Argument, Command


def script_command(script: str, keys: list[str], *arguments: Argument) -> Command:
    """Return the command that runs a script."""
    return ("EVAL", script, len(keys), *keys, *arguments)
