"""One proposal, one verdict, one effect: with many replicas, many producers and many repetitions."""

import asyncio
from collections import defaultdict
from uuid import UUID

import pytest

from statewright import (
    Client,
    Event,
    ProposalConflict,
    ProposedState,
    RunPolicy,
    SetStateStatus,
    State,
    Subscription,
    Verdict,
)
from statewright.ids import IdSource
from tests.deployment import Deployment

ids = IdSource()

RUNS = 200
PRODUCERS = 4
REPLICAS = 4
PATH = (State.pending(), State.running(), State.running(), State.completed(), State.running())


async def drive(client: Client, runs: int) -> dict[UUID, list[Verdict]]:
    """Drive runs along a path with redundant and forbidden steps, all at once; return their verdicts."""

    async def one() -> tuple[UUID, list[Verdict]]:
        run_id = (await client.create_flow_run("driven")).id
        return run_id, [await client.propose(run_id, state) for state in PATH]

    return dict(await asyncio.gather(*(one() for _ in range(runs))))


async def collect(events: Subscription, count: int) -> dict[UUID, list[Event]]:
    by_run: dict[UUID, list[Event]] = defaultdict(list)
    for _ in range(count):
        event = await anext(events)
        by_run[event.run_id].append(event)
    return by_run


async def test_four_replicas_answer_two_hundred_runs_exactly_once_and_in_order(deployment: Deployment) -> None:
    for _ in range(REPLICAS):
        deployment.spawn_worker()
    async with deployment.client(answer_timeout=60) as subscriber, subscriber.subscribe() as events:
        clients = [await deployment.client(answer_timeout=60).__aenter__() for _ in range(PRODUCERS)]
        driven = await asyncio.gather(*(drive(client, RUNS // PRODUCERS) for client in clients))
        told = await collect(events, RUNS * 3)
        verdicts = {run: given for part in driven for run, given in part.items()}
        histories = {run: await subscriber.read_run(run) for run in verdicts}
        for client in clients:
            await client.__aexit__(None, None, None)

    statuses = [[verdict.status for verdict in given] for given in verdicts.values()]
    assert statuses == [["ACCEPT", "ACCEPT", "ABORT", "ACCEPT", "ABORT"]] * RUNS
    for run, history in histories.items():
        assert [event.id for event in told[run]] == [state.id for state in history.states]
        assert [event.sequence for event in told[run]] == sorted(event.sequence for event in told[run])
    [[ledger]] = await deployment.fetch("SELECT count(*) FROM verdict")
    assert ledger == RUNS * len(PATH)


@pytest.mark.parametrize(
    ("before", "state", "status"),
    [
        ([], State.pending(), SetStateStatus.ACCEPT),
        ([State.running()], State.failed(), SetStateStatus.REJECT),
        ([State.running(), State.failed()], State.running(), SetStateStatus.WAIT),
        ([State.running(), State.completed()], State.running(), SetStateStatus.ABORT),
    ],
    ids=["accept", "reject", "wait", "abort"],
)
async def test_a_proposal_sent_five_times_has_one_effect_and_five_equal_verdicts(
    deployment: Deployment, before: list[ProposedState], state: ProposedState, status: SetStateStatus
) -> None:
    async with deployment.worker(), deployment.client() as one, deployment.client() as other:
        run = await one.create_task_run("repeated", policy=RunPolicy(retries=1, retry_delay=3_600))
        for earlier in before:
            await one.propose(run, earlier)
        states_before = len((await one.read_run(run)).states)
        proposal = ids.new()
        at_once = await asyncio.gather(
            *(client.propose(run, state, proposal_id=proposal) for client in (one, other, one))
        )
        later = [await client.propose(run, state, proposal_id=proposal) for client in (other, one)]
        history = await one.read_run(run)

    assert [verdict.status for verdict in at_once] == [status] * 3
    assert {verdict.model_dump_json() for verdict in [*at_once, *later]} == {at_once[0].model_dump_json()}
    written = 1 if status in (SetStateStatus.ACCEPT, SetStateStatus.REJECT) else 0
    assert len(history.states) == states_before + written


async def test_a_proposal_id_cannot_be_used_for_another_run(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        runs = [await client.create_flow_run("one"), await client.create_flow_run("other")]
        proposal = ids.new()
        await client.propose(runs[0], State.pending(), proposal_id=proposal)
        with pytest.raises(ProposalConflict, match="another content"):
            await client.propose(runs[1], State.pending(), proposal_id=proposal)


async def test_runs_whose_ids_were_made_elsewhere_are_governed_all_the_same(deployment: Deployment) -> None:
    """Their partitions differ from their tree's, so that only the row locks keep them apart."""
    async with deployment.worker(), deployment.client() as client:
        flow_run = await client.create_flow_run("outer")
        parents = [await client.create_task_run("p", flow_run=flow_run) for _ in range(20)]
        await deployment.execute(
            "UPDATE flow_run SET id = gen_random_uuid(); UPDATE task_run SET flow_run_id = (SELECT id FROM flow_run)"
        )
        [[moved]] = await deployment.fetch("SELECT id FROM flow_run")
        runs = [moved, *(parent.id for parent in parents)]
        steps = [State.pending(), State.running(), State.completed()]
        verdicts = await asyncio.gather(*(client.propose(run, step) for step in steps for run in runs))
    assert all(verdict.accepted for verdict in verdicts)
