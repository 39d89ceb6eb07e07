"""What commands have in common that ask a deployment: their options, their client, and the question before a change."""

import asyncio
import getpass
import inspect
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from functools import wraps
from typing import Annotated, Any, Final, NamedTuple, TypeVar, cast, get_type_hints
from uuid import UUID

import pendulum
import typer
from pendulum.parsing.exceptions import ParserError
from pydantic_core import from_json
from rich.console import Group, RenderableType
from rich.live import Live

from statewright import Client, ProposedState, RunFilters, RunKind, StateDetails, StateType
from statewright.settings import DEFAULT_REDIS_URL
from statewright.values import checked_actor, seconds_said
from statewright_worker.cli import showing
from statewright_worker.loop import run

WATCH_SECONDS: Final = 2.0
STOPPED: Final = 130
"""The exit status of a command that a signal ends, the same whichever signal it was."""

Answer = TypeVar("Answer")
Command = Callable[..., Coroutine[Any, Any, None]]

InJson = Annotated[bool, typer.Option("--json", help="Print one JSON object a line, for programs.")]
Watch = Annotated[bool, typer.Option("--watch", help=f"Show it anew every {WATCH_SECONDS:g} s, until Ctrl-C.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")]
RunId = Annotated[UUID, typer.Argument(metavar="RUN", help="The run's id.", show_default=False)]
ProposalId = Annotated[UUID, typer.Argument(metavar="PROPOSAL", help="The proposal's id.", show_default=False)]
ItsRun = Annotated[
    UUID | None, typer.Option("--run", metavar="RUN", help="Its run: then what is still under way is known, too.")
]


class _Connection(NamedTuple):
    """Where the deployment is; what is None is as the environment says, or the default."""

    redis_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="STATEWRIGHT_REDIS_URL",
            show_envvar=True,
            show_default=DEFAULT_REDIS_URL,
            rich_help_panel="Where",
        ),
    ] = None
    namespace: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            envvar="STATEWRIGHT_NAMESPACE",
            show_envvar=True,
            show_default="statewright",
            rich_help_panel="Where",
        ),
    ] = None
    answer_timeout: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            envvar="STATEWRIGHT_ANSWER_TIMEOUT",
            show_envvar=True,
            show_default="30s",
            help="How long to wait for each answer.",
            rich_help_panel="Where",
        ),
    ] = None
    actor: Annotated[
        str | None,
        typer.Option(
            metavar="WHO",
            envvar="STATEWRIGHT_ACTOR",
            show_envvar=True,
            show_default="your user and host",
            help="Who asks: it is kept with what is changed.",
            rich_help_panel="Where",
        ),
    ] = None


class _Filters(NamedTuple):
    """Which runs are meant: those that match all that is given."""

    kind: Annotated[
        RunKind | None, typer.Option(metavar="KIND", help="flow-run or task-run.", rich_help_panel="Which runs")
    ] = None
    state: Annotated[
        list[StateType] | None,
        typer.Option(
            case_sensitive=False,
            metavar="TYPE",
            help=f"In a state of this type; of one of several: {', '.join(StateType)}.",
            rich_help_panel="Which runs",
        ),
    ] = None
    state_name: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="In a state of this name; of one of several.", rich_help_panel="Which runs"),
    ] = None
    name: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Whose name begins so.", rich_help_panel="Which runs")
    ] = None
    tag: Annotated[
        list[str] | None,
        typer.Option(metavar="TAG", help="With this tag; with all of several.", rich_help_panel="Which runs"),
    ] = None
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="With this label; with all of several.", rich_help_panel="Which runs"),
    ] = None
    flow: Annotated[UUID | None, typer.Option(metavar="ID", help="Of this flow.", rich_help_panel="Which runs")] = None
    deployment: Annotated[
        UUID | None, typer.Option(metavar="ID", help="Of this deployment.", rich_help_panel="Which runs")
    ] = None
    parent: Annotated[
        UUID | None, typer.Option(metavar="RUN", help="Directly below this run.", rich_help_panel="Which runs")
    ] = None
    tree: Annotated[
        UUID | None, typer.Option(metavar="RUN", help="This run, and all below it.", rich_help_panel="Which runs")
    ] = None
    created_after: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN", help="2h (ago), 2026-11-21 or 2026-11-21T08:00+01:00.", rich_help_panel="Which runs"
        ),
    ] = None
    created_before: Annotated[str | None, typer.Option(metavar="WHEN", rich_help_panel="Which runs")] = None
    started_after: Annotated[str | None, typer.Option(metavar="WHEN", rich_help_panel="Which runs")] = None
    started_before: Annotated[str | None, typer.Option(metavar="WHEN", rich_help_panel="Which runs")] = None
    ended_after: Annotated[str | None, typer.Option(metavar="WHEN", rich_help_panel="Which runs")] = None
    ended_before: Annotated[str | None, typer.Option(metavar="WHEN", rich_help_panel="Which runs")] = None
    ended: Annotated[
        bool | None,
        typer.Option("--ended/--not-ended", help="Come to an end, or not.", rich_help_panel="Which runs"),
    ] = None
    leased: Annotated[
        bool | None,
        typer.Option("--leased/--not-leased", help="Held by a lease, or not.", rich_help_panel="Which runs"),
    ] = None
    unchanged_for: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION", help="In their state for longer than that: 30s, 2h, 7d.", rich_help_panel="Which runs"
        ),
    ] = None

    def chosen(self) -> RunFilters:
        """Return the filters as the client takes them. Raises typer.BadParameter."""
        chosen: RunFilters = {
            "kind": self.kind,
            "state_types": self.state or None,
            "state_names": self.state_name or None,
            "name": self.name,
            "tags": self.tag or None,
            "labels": labels_said(self.label),
            "flow_id": self.flow,
            "deployment_id": self.deployment,
            "parent": self.parent,
            "tree": self.tree,
            "created_after": moment_said(self.created_after, "--created-after"),
            "created_before": moment_said(self.created_before, "--created-before"),
            "started_after": moment_said(self.started_after, "--started-after"),
            "started_before": moment_said(self.started_before, "--started-before"),
            "ended_after": moment_said(self.ended_after, "--ended-after"),
            "ended_before": moment_said(self.ended_before, "--ended-before"),
            "ended": self.ended,
            "leased": self.leased,
            "unchanged_for": seconds_of(self.unchanged_for, "--unchanged-for"),
        }
        # Only what was given, so that it can be told whether anything was.
        return {name: value for name, value in chosen.items() if value is not None}  # type: ignore[return-value]


class _Proposed(NamedTuple):
    """What is proposed for a run."""

    state: Annotated[
        StateType,
        typer.Argument(case_sensitive=False, metavar="STATE", help=", ".join(StateType), show_default=False),
    ] = cast("StateType", ...)
    name: Annotated[str | None, typer.Option(help="The state's name, if it is not that of its type.")] = None
    message: Annotated[str | None, typer.Option(help="A text for people.")] = None
    data: Annotated[str | None, typer.Option(metavar="JSON", help="What belongs to the state.")] = None
    at: Annotated[
        str | None, typer.Option(metavar="WHEN", help="SCHEDULED for this moment: 2026-11-21T08:00+01:00.")
    ] = None
    lease: Annotated[
        str | None, typer.Option(metavar="DURATION", help="How long RUNNING is good without a heartbeat.")
    ] = None
    executor: Annotated[str | None, typer.Option(help="Whose heartbeats renew the lease.")] = None
    force: Annotated[bool, typer.Option("--force", help="Apply the minimal policy alone.")] = False

    def chosen(self) -> dict[str, Any]:
        """Return it as arguments of the client. Raises typer.BadParameter."""
        state = ProposedState(
            type=self.state,
            name=self.name,
            message=self.message,
            data=_json_said(self.data, "--data"),
            state_details=StateDetails(scheduled_time=moment_said(self.at, "--at")),
        )
        lease = seconds_of(self.lease, "--lease")
        return {"state": state, "lease": lease, "executor": self.executor, "force": self.force}


_GROUPS: Final[dict[str, Any]] = {"filters": _Filters, "proposed": _Proposed}
"""Options that several commands have, by the argument that takes what they choose."""


def with_client(command: Command) -> Callable[..., None]:
    """Return the command as typer takes it: its first argument is a client, which is opened for it out of options of
    its own. Arguments that _GROUPS names become options as well."""
    parameters = inspect.signature(command).parameters
    groups = {name: group for name, group in _GROUPS.items() if name in parameters}

    @wraps(command)
    def call(**given: Any) -> None:
        where = _Connection(**_taken(_Connection, given))
        for name, group in groups.items():
            given[name] = group(**_taken(group, given)).chosen()
        timeout = seconds_of(where.answer_timeout, "--answer-timeout")
        actor = where.actor or _whoever_is_logged_in()
        client = Client(where.redis_url, namespace=where.namespace, answer_timeout=timeout, actor=actor)
        try:
            run(_called(command, client, given))
        except asyncio.CancelledError:
            raise typer.Exit(STOPPED) from None

    hints = get_type_hints(command, include_extras=True)
    own = [parameter for parameter in list(parameters.values())[1:] if parameter.name not in groups]
    added = [parameter for group in (*groups.values(), _Connection) for parameter in _parameters_of(group)]
    signature = inspect.Signature([parameter.replace(annotation=hints[parameter.name]) for parameter in own] + added)
    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in signature.parameters.values()}
    return call


def _whoever_is_logged_in() -> str | None:
    """Return the user and the host as an actor, None where nobody can say who that is."""
    try:
        return checked_actor(f"{getpass.getuser()}@{socket.gethostname()}")
    except (OSError, KeyError, ValueError):
        # In a container a user may have a number alone.
        return None


def _taken(group: Any, given: dict[str, Any]) -> dict[str, Any]:
    return {name: given.pop(name) for name in group._fields}


def _parameters_of(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[name])
        for name, default in group._field_defaults.items()
    ]


async def _called(command: Command, client: Client, given: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    task = cast("asyncio.Task[None]", asyncio.current_task())
    for number in (signal.SIGTERM, signal.SIGHUP):
        # As asyncio does for Ctrl-C: what is under way is unwound, wherever it is.
        loop.add_signal_handler(number, task.cancel)
    async with client:
        await command(client, **given)


async def shown(
    look: Callable[[], Awaitable[Answer]],
    for_people: Callable[[Answer], RenderableType],
    for_programs: Callable[[Answer], list[Any]],
    *,
    in_json: bool,
    watch: bool = False,
) -> Answer:
    """Show what `look` finds, with `watch` again and again until Ctrl-C, and return it."""
    if not watch:
        found = await look()
        _show(found, for_people, for_programs, in_json)
        return found
    terminal = showing.console()
    if in_json or not terminal.is_terminal:
        while True:
            _show(await look(), for_people, for_programs, in_json)
            await asyncio.sleep(WATCH_SECONDS)
    with Live(console=terminal, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            found = await look()
            live.update(Group(for_people(found), f"[dim]{pendulum.now():HH:mm:ss}, Ctrl-C ends it[/]"), refresh=True)
            await asyncio.sleep(WATCH_SECONDS)


def _show(found: Answer, for_people: Any, for_programs: Any, in_json: bool) -> None:
    if in_json:
        showing.say_json(for_programs(found))
    else:
        showing.say(for_people(found))


def confirmed(question: str, *, yes: bool) -> None:
    """Return when it may be done: it was said with --yes, or to the question. Otherwise raise typer.Exit(1)."""
    if yes:
        return
    try:
        said = typer.confirm(question, err=True)
    except typer.Abort:
        showing.say_beside("\nnobody has said yes: nothing is changed; --yes does not ask")
        raise typer.Exit(1) from None
    if not said:
        showing.say_beside("nothing is changed")
        raise typer.Exit(1)


def seconds_of(text: str | None, option: str) -> float | None:
    """Return the seconds of a duration like 30s, 2h or 7d. Raises typer.BadParameter."""
    if text is None:
        return None
    said = seconds_said(text)
    if isinstance(said, str) or said < 0:
        raise typer.BadParameter(f"must be a duration like 30s, 2h or 7d, not {text!r}", param_hint=option)
    return said


def moment_said(text: str | None, option: str) -> datetime | None:
    """Return the moment that was so long ago, or is written out; without a zone, by the clock of the terminal.

    Raises typer.BadParameter.
    """
    if text is None:
        return None
    said = seconds_said(text) if text[-1:].isalpha() and text[:1].isdigit() else text
    if isinstance(said, float):
        return pendulum.now("UTC").subtract(seconds=said)
    try:
        moment = pendulum.parse(text, tz="local")
    except (ParserError, ValueError):
        moment = None
    if not isinstance(moment, datetime):
        raise typer.BadParameter(
            f"must be like 2h (so long ago), 2026-11-21 or 2026-11-21T08:00+01:00, not {text!r}", param_hint=option
        )
    return moment


def _json_said(text: str | None, option: str) -> Any:
    """Return what a text in JSON says. Raises typer.BadParameter."""
    try:
        return None if text is None else from_json(text)
    except ValueError as error:
        raise typer.BadParameter(f"must be JSON: {error}", param_hint=option) from None


def labels_said(labels: list[str] | None) -> dict[str, str] | None:
    """Return labels written as KEY=VALUE. Raises typer.BadParameter."""
    pairs = [label.partition("=") for label in labels or ()]
    for key, equals, _ in pairs:
        if not (key and equals):
            raise typer.BadParameter(f"must be written KEY=VALUE, not {key!r}", param_hint="--label")
    return {key: value for key, _, value in pairs} or None
