"""Runs as queries find, count and nest them."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from statewright import Client, FlowRun, InvalidRequest, Place, RunKind, RunNotFound, RunTree, State, StateType, TaskRun
from tests.deployment import Deployment


async def names_of(client: Client, **filters: Any) -> set[str]:
    """Return the names of all runs that match, read in pages of two."""
    page = await client.find_runs(limit=2, **filters)
    runs = list(page.runs)
    while page.next is not None:
        page = await client.find_runs(limit=2, after=page.next, **filters)
        runs += page.runs
    assert [run.created for run in runs] == sorted((run.created for run in runs), reverse=True)
    assert len({run.id for run in runs}) == len(runs)
    assert sum(count.count for count in await client.count_runs(**filters)) == len(runs)
    return {run.name for run in runs}


async def test_every_filter_finds_what_it_says(deployment: Deployment) -> None:
    flow_id, deployment_id = uuid4(), uuid4()
    async with deployment.worker(), deployment.client() as client:
        nightly = await client.create_flow_run(
            "nightly_a", flow_id=flow_id, deployment_id=deployment_id, tags=["x", "y"], labels={"team": "data"}
        )
        hourly = await client.create_flow_run("nightlyxb", flow_id=flow_id, tags=["x"], idempotency_key="1")
        load = await client.create_task_run("load", flow_run=nightly, labels={"team": "data", "tier": "1"})
        call = await client.create_task_run("call", flow_run=nightly)
        sub = await client.create_flow_run("sub", parent_task_run=call)
        below = await client.create_task_run("below", flow_run=sub)
        started = await client.propose(nightly, State.running())
        leased = await client.propose(load, State.running(), lease=30)
        for run in (sub, hourly):
            await client.propose(run, State.running())
        await client.propose(sub, State.failed(message="it broke"))
        await client.propose(hourly, State.completed())
        await client.propose(below, State.pending())
        assert started.state is not None
        assert leased.state is not None

        everything = {"nightly_a", "nightlyxb", "load", "call", "sub", "below"}
        cases: list[tuple[dict[str, Any], set[str]]] = [
            ({}, everything),
            ({"kind": "flow-run"}, {"nightly_a", "nightlyxb", "sub"}),
            ({"kind": RunKind.TASK_RUN}, {"load", "call", "below"}),
            ({"state_types": ["RUNNING"]}, {"nightly_a", "load"}),
            ({"state_types": [StateType.RUNNING, StateType.FAILED]}, {"nightly_a", "load", "call", "sub"}),
            ({"state_types": ["COMPLETED", "PENDING"]}, {"nightlyxb", "below"}),
            ({"state_names": ["Failed", "Pending"]}, {"call", "sub", "below"}),
            ({"name": "nightly"}, {"nightly_a", "nightlyxb"}),
            ({"name": "nightly_"}, {"nightly_a"}),
            ({"name": "ightly"}, set()),
            ({"tags": ["x"]}, {"nightly_a", "nightlyxb"}),
            ({"tags": ["y", "x"]}, {"nightly_a"}),
            ({"labels": {"team": "data"}}, {"nightly_a", "load"}),
            ({"labels": {"team": "data", "tier": "1"}}, {"load"}),
            ({"flow_id": flow_id}, {"nightly_a", "nightlyxb"}),
            ({"flow_id": flow_id, "state_types": ["COMPLETED"]}, {"nightlyxb"}),
            ({"deployment_id": str(deployment_id)}, {"nightly_a"}),
            ({"parent": nightly}, {"load", "call"}),
            ({"parent": call}, {"sub"}),
            ({"tree": nightly}, {"nightly_a", "load", "call", "sub", "below"}),
            ({"tree": sub.id}, {"sub", "below"}),
            ({"tree": call, "kind": "task-run"}, {"call", "below"}),
            ({"created_after": load.created}, {"load", "call", "sub", "below"}),
            ({"created_before": load.created}, {"nightly_a", "nightlyxb"}),
            ({"started_after": leased.state.timestamp}, everything - {"nightly_a", "below"}),
            ({"started_before": leased.state.timestamp}, {"nightly_a"}),
            ({"ended_after": started.state.timestamp}, {"call", "sub", "nightlyxb"}),
            ({"ended_before": started.state.timestamp}, set()),
            ({"ended": True}, {"call", "sub", "nightlyxb"}),
            ({"ended": False}, everything - {"call", "sub", "nightlyxb"}),
            ({"ended": False, "state_types": ["FAILED"]}, set()),
            ({"leased": True}, {"load"}),
            ({"leased": False}, everything - {"load"}),
            ({"unchanged_for": 0}, everything),
            ({"unchanged_for": timedelta(hours=1)}, set()),
            ({"kind": "task-run", "flow_id": flow_id}, set()),
        ]
        for filters, expected in cases:
            assert await names_of(client, **filters) == expected, filters

        # Each is as it is everywhere else.
        [found] = (await client.find_runs(leased=True)).runs
        assert found == (await client.read_run(load)).run


async def test_many_runs_of_one_moment_come_once_each_in_pages(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        flow = await client.create_flow_run("flow")
        made = await asyncio.gather(*(client.create_task_run(f"{n}", flow_run=flow) for n in range(25)))
        assert await names_of(client, parent=flow) == {run.name for run in made}
        assert await names_of(client) == {run.name for run in made} | {"flow"}


async def test_large_runs_make_pages_shorter_and_none_is_left_out(deployment: Deployment) -> None:
    large = "x" * 150_000
    async with deployment.worker(), deployment.client() as client:
        for number in range(5):
            await client.propose(await client.create_flow_run(f"{number}"), State.completed(data=large))
        page = await client.find_runs()
        assert 1 <= len(page.runs) < 5
        assert all(run.state is not None and run.state.data == large for run in page.runs)
        assert await names_of(client) == {"0", "1", "2", "3", "4"}


async def test_counts_tell_kinds_and_states(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.create_flow_run("stateless")
        for name in ("a", "b"):
            await client.propose(await client.create_task_run(name), State.pending())
        counts = await client.count_runs()
    told = {(count.kind, count.state_type, count.state_name, count.count, count.or_more) for count in counts}
    assert told == {
        (RunKind.FLOW_RUN, None, None, 1, False),
        (RunKind.TASK_RUN, StateType.PENDING, "Pending", 2, False),
    }


def shape(tree: RunTree) -> dict[str, Any]:
    return {tree.run.name: [shape(below) for below in tree.below]}


async def test_a_tree_is_told_from_any_of_its_runs_on(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        root = await client.create_flow_run("root")
        first = await client.create_task_run("first", flow_run=root)
        await client.create_task_run("second", flow_run=root)
        sub = await client.create_flow_run("sub", parent_task_run=first)
        await client.create_task_run("leaf", flow_run=sub)
        tree, from_task, from_sub = [await client.tree(run) for run in (root, first.id, str(sub.id))]
        with pytest.raises(RunNotFound):
            await client.tree(uuid4())

    assert shape(tree) == {"root": [{"first": [{"sub": [{"leaf": []}]}]}, {"second": []}]}
    assert shape(from_task) == {"first": [{"sub": [{"leaf": []}]}]}
    assert shape(from_sub) == {"sub": [{"leaf": []}]}
    assert isinstance(tree.run, FlowRun)
    assert isinstance(tree.below[0].run, TaskRun)
    assert not tree.or_more
    assert not any(below.or_more for below in tree.below)


async def test_a_tree_beyond_the_bound_says_where_there_are_more(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        root = await client.create_flow_run("root")
        small = await client.create_task_run("small", flow_run=root)
        await deployment.execute(
            f"""
            INSERT INTO task_run (id, name, created, tags, policy, flow_run_id)
            SELECT gen_random_uuid(), 't', now(), '[]', '{{}}', '{root.id}' FROM generate_series(1, 2000)
            """
        )
        tree = await client.tree(root)
        page = await client.find_runs(parent=root, limit=1_000)

    assert tree.or_more
    assert 100 < len(tree.below) < 1_000
    assert tree.below[0].run.id == small.id
    assert page.next is not None


async def test_a_deep_tree_is_told_down_to_a_level(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        flow = root = await client.create_flow_run("0")
        deep: Any = None
        for _ in range(99):
            deep = [deep]
        for level in range(1, 20):
            task = await client.create_task_run("t", flow_run=flow)
            flow = await client.create_flow_run(f"{level}", parent_task_run=task)
            # Readers of JSON have a bound of their own.
            await client.propose(flow, State.completed(data=deep))
        tree = await client.tree(root)
    levels = 0
    while tree.below:
        assert not tree.or_more
        [tree] = tree.below
        levels += 1
    assert tree.or_more
    assert 30 < levels < 38


async def test_wrong_filters_are_refused_by_name(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        cases: list[tuple[str, dict[str, Any]]] = [
            ("state_types", {"state_types": "RUNNING"}),
            ("state_types.0", {"state_types": ["WALKING"]}),
            ("parent", {"parent": "nobody"}),
            ("unchanged_for", {"unchanged_for": -1}),
            ("limit", {"limit": 0}),
            ("created_after", {"created_after": "2026-03-01T08:00:00"}),
            ("colour", {"colour": "red"}),
        ]
        for field, filters in cases:
            with pytest.raises(InvalidRequest) as refused:
                await client.find_runs(**filters)
            assert refused.value.field == field


def test_a_page_ends_at_a_place_that_can_be_kept() -> None:
    place = Place.model_validate_json(f'{{"created": "2026-03-01T08:00:00Z", "id": "{UUID(int=1)}"}}')
    assert place.id == UUID(int=1)
    assert Place.model_validate_json(place.model_dump_json()) == place
