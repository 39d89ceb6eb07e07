"""`statewright explain`: why a proposal was decided as it was, or why it is parked."""

from collections.abc import Iterator

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from statewright import Client, Explanation
from statewright.explanations import AwaitedLimit, RuleTrace, TraceSource
from statewright_worker.cli.asking import InJson, ItsRun, ProposalId, with_client
from statewright_worker.cli.showing import (
    Column,
    ago,
    facts,
    json_of,
    moment,
    say,
    say_beside,
    say_json,
    seconds,
    state,
    state_of,
    status,
    table,
)

SOURCES = {
    TraceSource.RECORDED: "rules as they were noted down when it was decided",
    TraceSource.SIGNATURES: "rules that took part; what they saw is not kept of what is accepted",
    TraceSource.NOW: "rules as they would decide now; nothing was changed",
}


@with_client
async def explain(
    client: Client,
    proposal: ProposalId,
    *,
    run: ItsRun = None,
    in_json: InJson = False,
) -> None:
    """Say why a proposal was decided as it was, rule by rule, or why it is parked. Asking changes nothing.

    The exit status is 1 when it is not known, or was refused.
    """
    found = await client.explain(proposal, run=run)
    if found is None:
        say_beside(f"no proposal {proposal} is known{'' if run else '; name its --run if it may be under way'}")
        raise typer.Exit(1)
    tell(found, in_json=in_json)


def tell(found: Explanation, *, in_json: bool) -> None:
    """Show an explanation."""
    if in_json:
        say_json([found])
    else:
        say(explanation_lines(found))


def explanation_lines(found: Explanation) -> RenderableType:
    """Return an explanation for people."""
    verdict, trace = found.verdict, found.trace
    asked = None if trace.intended is None else state(trace.intended.type, trace.intended.name)
    left = None if trace.initial is None else state(trace.initial.type, trace.initial.name)
    entered = None if verdict is None else verdict.state
    about = facts(
        [
            ("verdict", Text("none yet: it is parked", "cyan") if verdict is None else status(verdict.status)),
            ("because", found.reason),
            ("again in", None if verdict is None else seconds(verdict.delay_seconds)),
            ("run", found.run_id),
            ("from", left),
            ("proposed", asked),
            ("state", None if entered is None else state_of(entered)),
            ("by", found.actor),
            ("decided", None if found.decided is None else f"{moment(found.decided)}, {ago(found.decided)}"),
            ("parked since", found.parked_since or trace.parked_since),
            ("waited for", trace.waited_for),
            ("withdrawn by", trace.withdrawn_by),
            ("proposal", None if found.source is TraceSource.NOW else found.proposal_id),
        ]
    )
    parts: list[RenderableType] = [about]
    if trace.rules:
        parts += ["", Text(SOURCES[found.source], "dim"), _rules_table(trace.rules)]
    if trace.is_cut:
        parts.append(Text("there was too much to keep: what most rules saw is left out", "dim"))
    if found.waits_for:
        parts += ["", _awaited_table(found.waits_for)]
    return Group(*parts)


def _rules_table(rules: tuple[RuleTrace, ...]) -> RenderableType:
    return table(
        [
            Column("RULE", lambda one: one.rule, is_whole=True),
            Column("DID", lambda one: "\n".join(_done(one))),
            Column("SAW", lambda one: "\n".join(f"{name}: {json_of(fact)}" for name, fact in one.saw.items())),
        ],
        rules,
    )


def _done(rule: RuleTrace) -> Iterator[str]:
    """Yield what a rule did, in a line each."""
    for decision in rule.decisions:
        delay = "" if decision.delay_seconds is None else f" {seconds(decision.delay_seconds)}"
        to = "" if decision.to is None else f" to {decision.to.name}"
        because = "" if decision.reason is None else f": {decision.reason}"
        yield f"{decision.verb}{delay}{to}{because}"
    if not rule.entered:
        yield "took no part"
    elif not rule.decisions:
        yield "let it be"
    elif rule.fizzled:
        yield "in vain: another rule changed the transition"


def _awaited_table(awaited: tuple[AwaitedLimit, ...]) -> RenderableType:
    return table(
        [
            Column("WAITS FOR", lambda one: f"{one.limit.scope} {one.limit.key}"),
            Column("HELD", lambda one: f"{one.limit.held} of {one.limit.concurrency_limit}"),
            Column("BEFORE IT", lambda one: one.before, is_number=True),
            Column("HELD BY", lambda one: "\n".join(str(holder.run_id) for holder in one.limit.holders), is_whole=True),
        ],
        awaited,
    )
