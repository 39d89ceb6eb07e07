"""Rules of a user's own: what they write is kept with their proposal or undone with it, and harms no neighbour."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

from statewright import (
    Client,
    FlowRun,
    ProposedState,
    RuleFailed,
    SetStateStatus,
    State,
    StateType,
    Verdict,
)
from tests.deployment import Deployment

POLICY = f"{__package__}.house_policies:HouseFlowPolicy"


@asynccontextmanager
async def house(deployment: Deployment, budget: int) -> AsyncIterator[Client]:
    await deployment.execute(f"CREATE TABLE budget AS SELECT {budget} AS amount")
    async with deployment.worker(flow_policy=POLICY, rule_timeout=0.3, partitions=1), deployment.client() as client:
        yield client


async def budget_left(deployment: Deployment) -> int:
    [[amount]] = await deployment.fetch("SELECT amount FROM budget")
    return int(amount)


async def run_named(client: Client, *names: str) -> list[FlowRun]:
    return [await client.create_flow_run(name) for name in names]


async def test_a_rule_reads_and_writes_the_users_own_table(deployment: Deployment) -> None:
    async with house(deployment, budget=2) as client:
        runs = await run_named(client, "one", "two", "three")
        verdicts = await asyncio.gather(*(client.propose(run, State.running()) for run in runs))
    assert [verdict.status for verdict in verdicts] == ["ACCEPT", "ACCEPT", "ABORT"]
    assert verdicts[2].reason == "The budget is spent."
    assert await budget_left(deployment) == 0


async def test_a_rule_that_fizzles_after_it_wrote_cleans_up(deployment: Deployment) -> None:
    async with house(deployment, budget=2) as client:
        [run] = await run_named(client, "fizzle")
        verdict = await client.propose(run, State.running())
    assert (verdict.status, verdict.state and verdict.state.name) == (SetStateStatus.REJECT, "Pending")
    assert await budget_left(deployment) == 2


async def test_a_rule_that_rejects_with_the_current_state_leaves_the_run_in_it(deployment: Deployment) -> None:
    async with house(deployment, budget=2) as client:
        [run] = await run_named(client, "stay")
        pending = await client.propose(run, State.pending())
        verdict = await client.propose(run, State.running())
        history = await client.read_run(run)
    assert (verdict.status, verdict.reason, verdict.state) == (SetStateStatus.REJECT, "Not now.", pending.state)
    assert history.states == (pending.state,)


@pytest.mark.parametrize(("name", "stored"), [("copy", {"rows": [1]}), ("spoil", {"secret": "kept"})])
async def test_what_a_rule_changes_in_its_copies_is_not_stored(
    deployment: Deployment, name: str, stored: object
) -> None:
    proposed = ProposedState(type=StateType.RUNNING, data={"secret": "kept"})
    async with house(deployment, budget=2) as client:
        [run] = await run_named(client, name)
        verdict = await client.propose(run, proposed)
        history = await client.read_run(run)
    assert [state.data for state in history.states] == [stored]
    assert history.states[-1] == verdict.state


async def test_a_rule_finds_the_limits_that_it_declares(deployment: Deployment) -> None:
    policy = f"{__package__}.house_policies:ConsiderateFlowPolicy"
    async with deployment.worker(flow_policy=policy), deployment.client() as client:
        await client.set_limit("database", 1)
        holder = await client.create_task_run("load", tags=["database"])
        await client.propose(holder, State.running())
        early = await client.create_flow_run("early", tags=["free", "database"])
        # Created and proposed at once: a run that its own batch makes is looked at too.
        late = client.create_flow_run("late", tags=["database"])
        refused = await asyncio.gather(
            client.propose(early, State.pending()), client.propose(late.run_id, State.pending())
        )
        await client.propose(holder, State.completed())
        admitted = await client.propose(early, State.pending())
    assert [(verdict.status, verdict.reason) for verdict in refused] == [("ABORT", "database is in use by 1.")] * 2
    assert admitted.accepted


async def test_a_run_that_is_due_at_the_end_of_time_is_told_to_wait_ten_years(deployment: Deployment) -> None:
    async with house(deployment, budget=2) as client:
        [run] = await run_named(client, "patient")
        await client.propose(run, State.scheduled(datetime(9999, 12, 31, tzinfo=UTC)))
        verdict = await client.propose(run, State.running())
    assert (verdict.status, verdict.delay_seconds) == (SetStateStatus.WAIT, 10 * 365 * 86_400)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("raise", "Misbehave failed: ZeroDivisionError: by design"),
        ("slow", "Misbehave failed: TimeoutError: not done within 0.3 s"),
        ("bad sql", "Misbehave failed: ProgrammingError"),
        ("slow sql", "Misbehave failed: TimeoutError: not done within 0.3 s"),
    ],
)
async def test_a_rule_that_fails_undoes_its_proposal_alone(deployment: Deployment, name: str, told: str) -> None:
    async with house(deployment, budget=5) as client:
        before, failing, after = await run_named(client, "before", name, "after")
        answers = await asyncio.gather(
            *(client.propose(run, State.running()) for run in (before, failing, after)), return_exceptions=True
        )
        history = await client.read_run(failing)
        # Nothing was decided, so the same id can be proposed again: this time by force, without the rule.
        forced = await client.propose(failing, State.running(), force=True)

    assert isinstance(answers[1], RuleFailed)
    assert told in str(answers[1])
    assert [isinstance(answer, Verdict) and answer.accepted for answer in answers] == [True, False, True]
    assert history.states == ()
    assert forced.accepted
    assert await budget_left(deployment) == 3
