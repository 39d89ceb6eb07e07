"""Why a proposal was decided as it was, or is parked, and what would be: asking changes nothing."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from statewright import ProposedState, RuleFailed, RunNotFound, State, StateType
from statewright.explanations import Explanation, RuleTrace, RuleVerb, TraceSource
from statewright.ids import IdSource
from statewright.runs import RunPolicy
from tests.deployment import Deployment, until

ids = IdSource()
POLICY = f"{__package__}.house_policies:HouseFlowPolicy"


def part(explanation: Explanation | None, rule: str) -> RuleTrace:
    assert explanation is not None
    [found] = [one for one in explanation.trace.rules if one.rule == rule]
    return found


def parts(explanation: Explanation | None) -> dict[str, str]:
    assert explanation is not None
    return {
        one.rule: "not entered" if not one.entered else "fizzled" if one.fizzled else "stayed"
        for one in explanation.trace.rules
    }


async def everything(deployment: Deployment) -> list[Any]:
    """Return all rows of all tables but the partitions' epochs."""
    tables = await deployment.fetch(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'partition'"
    )
    return [
        (table["tablename"], sorted(map(repr, await deployment.fetch(f"SELECT * FROM {table['tablename']}"))))
        for table in sorted(tables)
    ]


async def test_a_full_limit_is_explained_with_its_numbers(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client(actor="scheduler-3") as client:
        await client.set_limit("database", 1)
        first, second = [await client.create_task_run(name, tags=["database"]) for name in ("first", "second")]
        await client.propose(first, State.running())
        verdict = await client.propose(second, State.running())
        explained = await client.explain(verdict.proposal_id)
        in_its_lane = await client.explain(str(verdict.proposal_id), run=second)

    assert explained == in_its_lane
    assert explained is not None
    assert (explained.source, explained.verdict, explained.actor) == (TraceSource.RECORDED, verdict, "scheduler-3")
    assert explained.trace.initial is None
    assert explained.trace.intended is not None
    assert (explained.trace.intended.name, explained.validated) == ("Running", None)
    secured = part(explained, "SecureTaskConcurrencySlots")
    [decision] = secured.decisions
    assert (decision.verb, decision.delay_seconds, decision.to) == (RuleVerb.WAIT, 30, None)
    assert decision.reason == verdict.reason
    limit = {"on": "tag", "key": "database", "concurrency_limit": 1, "held": 1, "free": 0, "before": 0}
    assert secured.saw == {"limits": [limit]}
    # Those before it have fizzled, because it has changed the transition, which those behind it do not enter.
    told = parts(explained)
    assert told["PreventRedundantTransitions"] == "fizzled"
    assert told["SecureTaskConcurrencySlots"] == "stayed"
    assert told["RenameReruns"] == "not entered"


async def test_each_default_rule_says_what_it_saw(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        retried = await client.create_task_run("retried", policy=RunPolicy(retries=2, retry_delay=60))
        await client.propose(retried, State.running())
        rejected = await client.propose(retried, State.failed(data={"secret": "s3cr3t"}))
        early = await client.propose(retried, State.running())
        done = await client.create_task_run("done", state=State.completed(cache_key="k"))
        again = await client.propose(done, State.running())
        cached_run = await client.create_task_run("cached")
        cached = await client.propose(cached_run, State.running(cache_key="k"))
        told = {
            name: await client.explain(verdict.proposal_id)
            for name, verdict in {"retry": rejected, "early": early, "done": again, "cached": cached}.items()
        }

    retry = part(told["retry"], "RetryFailedTasks")
    assert retry.saw["run_count"] == 1
    assert retry.saw["retries"] == 2
    [decision] = retry.decisions
    assert decision.to is not None
    assert (decision.verb, decision.to.name) == (RuleVerb.REJECT, "AwaitingRetry")
    assert "s3cr3t" not in str(told["retry"] and told["retry"].trace)
    scheduled = part(told["early"], "WaitForScheduledTime")
    assert scheduled.saw["scheduled_time"] == str(retry.saw["retry_at"])
    [aborted] = part(told["done"], "HandleTaskTerminalStateTransitions").decisions
    assert (aborted.verb, aborted.reason) == (RuleVerb.ABORT, "This run has already terminated.")
    hit = part(told["cached"], "CacheRetrieval")
    assert hit.saw["cache_key"] == "k"
    assert hit.saw["of_task_run"] == str(done.id)
    assert told["cached"] is not None
    assert told["cached"].validated is not None
    assert told["cached"].validated.name == "Cached"


async def test_what_was_accepted_is_explained_by_its_signatures(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client:
        run = await client.create_task_run("load", state=State.pending())
        # In the batch of the proposal, and later.
        sent = client.propose(run, State.running())
        at_once, verdict = await asyncio.gather(client.explain(sent.request_id), sent)
        later = await client.explain(verdict.proposal_id)
        [[traces]] = await deployment.fetch("SELECT count(trace) FROM verdict")

    assert at_once == later
    assert later is not None
    assert later.source is TraceSource.SIGNATURES
    assert tuple(rule.rule for rule in later.trace.rules) == verdict.rule_signature
    assert later.trace.initial is not None
    assert later.trace.intended == later.validated
    assert (later.trace.initial.name, later.trace.intended and later.trace.intended.name) == ("Pending", "Running")
    assert traces == 0


async def test_what_was_refused_or_is_unknown_is_not_explained(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        missing = client.propose(ids.new(), State.running())
        with pytest.raises(RunNotFound):
            await missing
        with pytest.raises(RunNotFound) as told:
            await client.explain(missing.request_id)
        assert told.value.request_id == missing.request_id
        limited = client.set_limit("database", 1)
        await limited
        assert await client.explain(limited.request_id) is None
        assert await client.explain(ids.new()) is None


async def test_a_parked_proposal_says_for_what_it_waits_and_who_is_before_it(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.client(actor="scheduler-3") as client:
        await client.set_limit("database", 1)
        runs = [await client.create_task_run(str(n), tags=["database"]) for n in range(4)]
        await client.propose(runs[0], State.running(), lease=60)
        parked = [client.propose(run, State.running(), on_wait="park") for run in runs[1:3]]
        # The last one is explained in the batch that parks it.
        last = client.propose(runs[3], State.running(), on_wait="park")
        at_once, _ = await asyncio.gather(client.explain(last.request_id, run=runs[3]), last.until_parked())
        told = [await client.explain(one.request_id) for one in (*parked, last)]
        await client.withdraw(parked[0])
        await client.propose(runs[0], State.completed())
        assert (await parked[1]).accepted
        withdrawn, accepted = [await client.explain(one.request_id) for one in parked]
        await client.withdraw(last)

    for n, explained in enumerate(told):
        assert explained is not None
        assert explained.verdict is None
        assert explained.actor == "scheduler-3"
        assert explained.reason == "Concurrency limit for the database tag has been reached"
        [waits] = explained.waits_for
        assert (waits.before, waits.limit.key, waits.limit.free) == (n, "database", 0)
        [holder] = waits.limit.holders
        assert holder.run_id == runs[0].id
        assert part(explained, "SecureTaskConcurrencySlots").decisions[0].verb is RuleVerb.WAIT
    assert at_once is not None
    assert [waits.before for waits in at_once.waits_for] == [2]
    assert withdrawn is not None
    assert accepted is not None
    assert withdrawn.trace.withdrawn_by == "scheduler-3"
    for explained, before in ((withdrawn, told[0]), (accepted, told[1])):
        assert before is not None
        assert explained.trace.parked_since == before.parked_since
        assert explained.trace.waited_for == before.reason


async def test_what_would_be_decided_is_told_and_nothing_else_happens(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.client(actor="scheduler-3") as client:
        await client.set_limit("database", 1)
        await client.set_limit(name="mail", concurrency_limit=5, period=60)
        policy = RunPolicy(limits=("mail",), retries=1)
        first = await client.create_task_run("first", tags=["database"], policy=policy)
        second = await client.create_task_run("second", tags=["database"])
        await client.propose(first, State.running())
        waiting = client.propose(second, State.running(), on_wait="park")
        await waiting.until_parked()
        third = await client.create_task_run("third", tags=["database"])
        flow_run = await client.create_flow_run("nightly", state=State.running())
        async with deployment.redis() as redis:
            before = await everything(deployment), await redis.xlen(deployment.channels.events(0))
            full = await client.what_if(third, State.running())
            ends = await client.what_if(first, State.completed(data={"rows": 1}))
            retried = await client.what_if(first, State.failed())
            forced = await client.what_if(third, State.running(), force=True)
            paused = await client.what_if(flow_run, State.paused(timeout_at=datetime.now(UTC) + timedelta(seconds=1)))
            leased = await client.what_if(flow_run, State.running(), lease=1, force=True)
            after = await everything(deployment), await redis.xlen(deployment.channels.events(0))
        assert after == before
        with pytest.raises(RunNotFound):
            await client.what_if(ids.new(), State.running())
        # What was asked was nothing but a question: whoever proposes it in earnest gets its verdict.
        real = await client.propose(third, State.running())
        await client.withdraw(waiting)

    assert all(told.source is TraceSource.NOW for told in (full, ends, retried, forced, paused, leased))
    assert full.verdict is not None
    assert (full.verdict.status, full.verdict.reason) == (real.status, real.reason)
    assert full.actor == "scheduler-3"
    limit: dict[str, Any] = {"on": "tag", "key": "database", "concurrency_limit": 1, "held": 1, "free": 0, "before": 1}
    assert part(full, "SecureTaskConcurrencySlots").saw == {"limits": [limit]}
    assert ends.verdict is not None
    assert ends.verdict.accepted
    assert ends.validated is not None
    assert ends.validated.type is StateType.COMPLETED
    assert retried.verdict is not None
    assert retried.verdict.status == "REJECT"
    assert part(retried, "RetryFailedTasks").saw["retries"] == 1
    assert all(told.verdict is not None and told.verdict.accepted for told in (forced, paused, leased))


async def test_a_question_in_the_midst_of_proposals_sees_them_and_changes_none(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client:
        await client.set_limit("database", 1)
        first, second = [await client.create_task_run(name, tags=["database"]) for name in ("first", "second")]
        would, ran, would_wait, ended, would_run = await asyncio.gather(
            client.what_if(second, State.running()),
            client.propose(first, State.running()),
            client.what_if(second, State.running()),
            client.propose(first, State.completed()),
            client.what_if(second, State.running()),
        )
        verdict = await client.propose(second, State.running())
    asked = [told.verdict and told.verdict.status for told in (would, would_wait, would_run)]
    assert asked == ["ACCEPT", "WAIT", "ACCEPT"]
    assert ran.accepted
    assert ended.accepted
    assert verdict.accepted


async def test_what_a_users_rules_write_for_a_question_is_undone(deployment: Deployment) -> None:
    await deployment.execute("CREATE TABLE budget AS SELECT 1 AS amount")
    async with deployment.worker(flow_policy=POLICY, rule_timeout=0.3, partitions=1), deployment.client() as client:
        run = await client.create_flow_run("one")
        told = await client.what_if(run, ProposedState(type=StateType.RUNNING, data={"secret": "kept"}))
        assert told.verdict is not None
        assert told.verdict.accepted
        assert part(told, "SpendBudget").saw == {"left": 0}
        assert [row["amount"] for row in await deployment.fetch("SELECT amount FROM budget")] == [1]
        for name in ("raise", "bad sql", "slow sql"):
            failing = await client.create_flow_run(name)
            with pytest.raises(RuleFailed):
                await client.what_if(failing, State.running())
        assert (await client.propose(run, State.running())).accepted
        assert [row["amount"] for row in await deployment.fetch("SELECT amount FROM budget")] == [0]
        poor = await client.create_flow_run("poor")
        refused = await client.propose(poor, State.running())
        explained = await client.explain(refused.proposal_id)
    assert part(explained, "SpendBudget").saw == {"left": -1}
    assert parts(explained)["Misbehave"] == "not entered"


async def test_a_timeline_tells_everything_in_order(deployment: Deployment) -> None:
    async with (
        deployment.worker(partitions=1),
        deployment.client(actor="scheduler-3") as client,
        deployment.client(actor="worker-7") as worker,
    ):
        await client.set_limit("database", 1)
        holder = await client.create_task_run("holder", tags=["database"])
        run = await client.create_task_run("load", tags=["database"], policy=RunPolicy(retries=1))
        await client.propose(holder, State.running())
        await client.propose(run, State.pending())
        await client.propose(run, State.running())
        parked = client.propose(run, State.running(), lease=60, on_wait="park")
        await parked.until_parked()
        waiting = await client.timeline(run)
        await client.propose(holder, State.completed())
        assert (await parked).accepted
        running = await client.timeline(run)
        await worker.propose(run, State.failed())
        await worker.propose(run, State.running())
        # In the batch of the last proposal.
        _, told = await asyncio.gather(worker.propose(run, State.completed()), client.timeline(run))
        again = await client.timeline(run)
        with pytest.raises(RunNotFound):
            await client.timeline(ids.new())

    kinds = [entry.kind for entry in told.entries]
    assert kinds == [
        *("verdict", "state"),
        *("verdict", "wait"),
        *("verdict", "state", "lease"),
        *("verdict", "state"),
        *("verdict", "state"),
        *("verdict", "state"),
    ]
    assert again.entries == told.entries
    assert [entry.at for entry in told.entries] == sorted(entry.at for entry in told.entries)
    states = [entry for entry in told.entries if entry.kind == "state"]
    assert [state.name for state in states] == ["Pending", "Running", "AwaitingRetry", "Retrying", "Completed"]
    assert [state.actor for state in states] == ["scheduler-3"] * 2 + ["worker-7"] * 3
    assert [state.until for state in states] == [*(state.at for state in states[1:]), None]
    assert all(state.duration is not None and state.duration >= timedelta() for state in states[:-1])
    verdicts = [entry.status for entry in told.entries if entry.kind == "verdict"]
    assert verdicts == ["ACCEPT", "WAIT", "ACCEPT", "REJECT", "ACCEPT", "ACCEPT"]
    [wait] = [entry for entry in told.entries if entry.kind == "wait"]
    assert (wait.proposal_id, wait.until) == (parked.request_id, states[1].at)
    assert wait.reason == "Concurrency limit for the database tag has been reached"
    [lease] = [entry for entry in told.entries if entry.kind == "lease"]
    assert (lease.seconds, lease.at, lease.until, lease.ends) == (60, states[1].at, states[2].at, None)
    [still] = [entry for entry in waiting.entries if entry.kind == "wait"]
    assert (still.at, still.until) == (wait.at, None)
    [slot] = [entry for entry in running.entries if entry.kind == "slot"]
    assert (slot.scope, slot.key, slot.at) == ("tag", "database", states[1].at)
    [held] = [entry for entry in running.entries if entry.kind == "lease"]
    assert held.ends is not None
    assert held.ends - held.at == timedelta(seconds=60)


async def test_a_long_timeline_comes_in_pages_and_is_whole(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client:
        run = await client.create_flow_run("nightly", state=State.running())
        proposed = [
            state
            for _ in range(130)
            for state in (State.paused(), State.running(), State.scheduled(datetime.now(UTC)), State.pending())
        ]
        verdicts = await asyncio.gather(*(client.propose(run, state) for state in proposed))
        told = await client.timeline(run)
        history = await client.read_run(run)
    states = [entry for entry in told.entries if entry.kind == "state"]
    assert [state.state_id for state in states] == [state.id for state in history.states]
    assert [state.until for state in states] == [*(state.at for state in states[1:]), None]
    answered = [entry.proposal_id for entry in told.entries if entry.kind == "verdict"]
    assert len(answered) == len(set(answered)) == len(verdicts) + 1
    assert {verdict.proposal_id for verdict in verdicts} <= set(answered)
    assert sum(not verdict.accepted for verdict in verdicts) > 100


async def test_a_lease_that_ends_is_told_with_who_has_ended_the_run(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        run = await client.create_flow_run("leased")
        await client.propose(run, State.running(), lease=0.2)

        async def has_crashed() -> bool:
            return (await client.read_run(run, history=False)).state_name == "Crashed"

        await until(has_crashed)
        told = await client.timeline(run)
    crashed = told.entries[-1]
    assert (crashed.kind, crashed.kind == "state" and crashed.actor) == ("state", "statewright")
    [lease] = [entry for entry in told.entries if entry.kind == "lease"]
    assert lease.until == crashed.at
