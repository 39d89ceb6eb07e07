"""Where a client may be used, and what it is told when it is used elsewhere or wrongly."""

import asyncio
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from statewright import (
    Client,
    InvalidRequest,
    NotOpen,
    Proposal,
    ProposedState,
    RunNotFound,
    SetStateStatus,
    State,
    StatewrightError,
    Verdict,
)
from statewright.ids import IdSource
from tests.deployment import Deployment

ids = IdSource()

CALLS: dict[str, Callable[[Client], Any]] = {
    "create_flow_run": lambda client: client.create_flow_run("early"),
    "create_task_run": lambda client: client.create_task_run("early"),
    "propose": lambda client: client.propose(ids.new(), State.pending()),
    "read_run": lambda client: client.read_run(ids.new()),
    "set_limit": lambda client: client.set_limit("tag", 1),
    "read_limit": lambda client: client.read_limit("tag"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_client_says_that_it_is_not_open(deployment: Deployment, call: Callable[[Client], Any]) -> None:
    async with deployment.redis() as redis:
        await redis.set(deployment.channels.partitions, 2)
    client = deployment.client()
    with pytest.raises(NotOpen, match="not open yet: use it within `async with"):
        call(client)
    async with client:
        pass
    with pytest.raises(NotOpen, match="closed"):
        call(client)


async def test_a_client_that_is_not_open_has_no_subscriptions_and_no_partitions(deployment: Deployment) -> None:
    client = deployment.client()
    with pytest.raises(NotOpen):
        client.subscribe()
    with pytest.raises(NotOpen):
        await client.propose_many([(ids.new(), State.pending())])
    with pytest.raises(NotOpen):
        assert client.partitions


async def test_a_client_is_not_opened_twice_at_a_time_but_may_be_opened_again(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1):
        client = deployment.client()
        for name in ("first", "again"):
            async with client:
                with pytest.raises(NotOpen, match="open already"):
                    await client.__aenter__()
                assert (await client.create_flow_run(name)).name == name


async def test_a_client_belongs_to_its_event_loop(deployment: Deployment) -> None:
    async with deployment.redis() as redis:
        await redis.set(deployment.channels.partitions, 1)
    async with deployment.client() as client:
        pending = client.read_run(ids.new())

        async def elsewhere() -> None:
            with pytest.raises(NotOpen, match="in another event loop"):
                client.read_run(ids.new())
            with pytest.raises(NotOpen, match="another event loop"):
                await pending
            with pytest.raises(NotOpen, match="another event loop"):
                await pending.pushed()

        await asyncio.to_thread(asyncio.run, elsewhere())
        with pytest.raises(NotOpen, match="none is running here"):
            await asyncio.to_thread(client.read_run, ids.new())


async def test_a_process_that_was_forked_off_opens_a_client_of_its_own(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client, deployment.redis() as redis:
        unopened = deployment.client()
        await client.create_flow_run("parent's")
        told = [await asyncio.to_thread(in_a_child, lambda: asyncio.run(a_child_says(client, unopened))) for _ in "12"]
        assert (await client.create_flow_run("parent's still")).name == "parent's still"
        streams = [stream async for stream in redis.scan_iter(match=f"{deployment.namespace}:replies:*")]
    for says in told:
        refused, opened = says.split("|")
        assert "in another process" in refused
        assert opened == "child's"
    # Each reads a stream of its own.
    assert len(streams) == 3


async def a_child_says(parents: Client, unopened: Client) -> str:
    try:
        parents.read_run(ids.new())
    except NotOpen as error:
        refused = str(error)
    async with unopened as client:
        run = await client.create_flow_run("child's")
        return f"{refused}|{run.name}"


def in_a_child(do: Callable[[], str]) -> str:
    """Return what `do` returns in a process that is forked off."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(sending, do().encode())
        except BaseException as error:  # it is the child's last word
            os.write(sending, repr(error).encode())
        finally:
            os._exit(0)
    os.close(sending)
    with os.fdopen(receiving) as told:
        says = told.read()
    os.waitpid(child, 0)
    return says


async def test_ids_may_be_texts(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client:
        run = await client.create_flow_run("textual")
        task_run = await client.create_task_run("too", flow_run=str(run.id))
        subflow = await client.create_flow_run("also", parent_task_run=str(task_run.id))
        proposal_id = str(ids.new())
        proposed = client.propose(str(run.id), State.pending(), proposal_id=proposal_id)
        assert (await proposed).accepted
        assert proposed.request_id == UUID(proposal_id)
        assert (await client.read_run(str(subflow.id))).run == subflow


WRONG: dict[str, tuple[str, Callable[[Client], Any]]] = {
    "run": ("run", lambda client: client.propose("seven", State.pending())),
    "run to be read": ("run", lambda client: client.read_run(7)),  # type: ignore[call-overload]
    "no run": ("run", lambda client: client.read_run(None)),  # type: ignore[call-overload]
    "flow run": ("flow_run", lambda client: client.create_task_run("a", flow_run="")),
    "parent": ("parent_task_run", lambda client: client.create_flow_run("a", parent_task_run="x" * 1_000)),
    "proposal id": ("proposal_id", lambda client: client.propose(ids.new(), State.pending(), proposal_id="x")),
    "timeout": ("timeout", lambda client: client.propose(ids.new(), State.pending(), timeout=-1)),
    "no timeout": ("timeout", lambda client: client.propose(ids.new(), State.pending(), timeout=float("nan"))),
    "key": ("idempotency_key", lambda client: client.create_flow_run("a", idempotency_key=7)),  # type: ignore[arg-type]
    "tags": ("tags", lambda client: client.create_flow_run("a", tags=7)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize(("field", "call"), WRONG.values(), ids=WRONG)
async def test_a_wrong_argument_is_named(deployment: Deployment, field: str, call: Callable[[Client], Any]) -> None:
    async with deployment.redis() as redis:
        await redis.set(deployment.channels.partitions, 1)
        async with deployment.client() as client:
            with pytest.raises(InvalidRequest) as raised:
                call(client)
            assert raised.value.field == field
            assert len(str(raised.value)) < 300
        assert await redis.xlen(deployment.channels.proposals(0)) == 0


async def test_one_wrong_proposal_of_many_is_an_error_in_its_place(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        run = await client.create_flow_run("many")
        proposal_id = ids.new()
        wrong: list[Any] = [
            ("seven", State.pending()),
            7,
            (run,),
            (run, "RUNNING"),
            (run, State.pending(), 1, 2, 3, 4, 5),
        ]
        answers = await client.propose_many(
            [
                (run, State.pending()),
                *wrong,
                (ids.new(), State.pending()),
                Proposal(run, State.running(), proposal_id=proposal_id),
                Proposal(str(run.id), State.completed(), force=True, timeout=20),
            ]
        )
        again = await client.propose(run, State.running(), proposal_id=proposal_id)
    first, *refused, unknown, running, completed = answers
    assert [type(answer) for answer in refused] == [InvalidRequest] * len(wrong)
    assert isinstance(unknown, RunNotFound)
    assert [accepted(answer) for answer in (first, running, completed)] == [True, True, True]
    assert again == running


def accepted(answer: Verdict | StatewrightError) -> bool:
    assert isinstance(answer, Verdict), answer
    return answer.accepted


async def test_options_hold_for_all_proposals_that_have_none_of_their_own(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client:
        runs = [await client.create_flow_run(name) for name in ("forced", "not forced")]
        state: ProposedState = State.completed()
        await client.propose_many([(run, state) for run in runs])
        # What has ended stays as it is, unless that is forced.
        answers = await client.propose_many(
            [Proposal(runs[0], State.running()), Proposal(runs[1], State.running(), force=False)], force=True
        )
    assert [answer.status for answer in answers if isinstance(answer, Verdict)] == [
        SetStateStatus.ACCEPT,
        SetStateStatus.ABORT,
    ]


async def test_a_task_group_takes_answers(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client:
        run = client.create_flow_run("nightly")
        proposed = [
            client.propose(run, state, timeout=timedelta(minutes=1)) for state in (State.pending(), State.running())
        ]
        async with asyncio.TaskGroup() as group:
            created = group.create_task(run.answer())
            verdicts = [group.create_task(sent.answer()) for sent in proposed]
            history = group.create_task(client.read_run(run).answer())
        assert created.result().id == run.run_id
        assert [verdict.result().status for verdict in verdicts] == [SetStateStatus.ACCEPT, SetStateStatus.ACCEPT]
        assert [state.name for state in history.result().states] == ["Pending", "Running"]
        # Who awaits it as well gets the same answer.
        assert await run == created.result()
