"""The command line: its commands, put together. Each is imported when it is run, and none for the help."""

from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from statewright_worker.cli.commands import ABOUT, BY_NAME, COMMANDS, STATUSES


class _Commands(TyperGroup):
    """Knows every command's name and first line, and imports the one that is run."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = BY_NAME.get(args[0]) if args else None
        if known is not None:
            self.commands[known.name] = _imported(known.module, known.name)
        return super().resolve_command(ctx, args)


def _imported(module: str, name: str) -> Any:
    found = getattr(import_module(f"statewright_worker.cli.{module}"), module)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        alone.command(name)(found)
        found = alone
    command = get_command(found)
    command.name = name
    return command


def _nothing() -> None:
    """Stand for a command that was not imported."""


app = typer.Typer(
    cls=_Commands,
    name="statewright",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in COMMANDS:
    app.command(command.name, help=command.help)(_nothing)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"statewright {version('statewright')}")
        raise typer.Exit


@app.callback(help=f"{ABOUT}\n\n{STATUSES}")
def _with_options(
    *,
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Say which version this is.")
    ] = False,
) -> None:
    pass
