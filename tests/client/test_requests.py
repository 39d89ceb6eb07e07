"""What a client sends is made without one: arguments become messages, or an error that names them."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from statewright import FlowRun, InvalidRequest, MessageTooLarge, RunPolicy, SetStateStatus, State, Verdict
from statewright.client import requests
from statewright.ids import IdSource, id_from_key, partition_of, tree_tag
from statewright.limits import LimitScope
from statewright.protocol.requests import (
    CreateFlowRun,
    CreateTaskRun,
    Heartbeat,
    ReadLimit,
    SetLimit,
    UpdateRun,
    request_from,
)
from statewright.values import MAX_LABEL_KEY_LENGTH, MAX_LABEL_LENGTH, MAX_LABELS
from tests.client.test_messages import NOW

ids = IdSource()
ID = UUID("01a200ef-06bf-7500-83c5-73e04725151e")
PARTITIONS = 8
UNSAID: dict[str, Any] = {"tags": (), "policy": None, "labels": None, "state": None}


def identity(run_id: Any = None, idempotency_key: Any = None) -> requests.Identity:
    return requests.Identity(run_id, idempotency_key, PARTITIONS)


def flow_run(run_id: Any = None, idempotency_key: Any = None, **said: Any) -> CreateFlowRun:
    unsaid = {**UNSAID, "flow_id": None, "deployment_id": None, "parent_task_run": None}
    return requests.create_flow_run(ids, identity(run_id, idempotency_key), "nightly", **{**unsaid, **said})


def task_run(run_id: Any = None, idempotency_key: Any = None, **said: Any) -> CreateTaskRun:
    unsaid = {**UNSAID, "flow_run": None, "task_key": None}
    return requests.create_task_run(ids, identity(run_id, idempotency_key), "load", **{**unsaid, **said})


def update(**said: Any) -> UpdateRun:
    return requests.update_run(ID, **{"name": None, "tags": None, "policy": None, **said})


def test_each_run_has_an_id_of_its_own_in_its_parents_tree() -> None:
    assert flow_run().run_id != flow_run().run_id
    assert tree_tag(flow_run(parent_task_run=ID).run_id) == tree_tag(task_run(flow_run=ID).run_id) == tree_tag(ID)


def test_a_key_has_one_id_within_its_parent() -> None:
    assert flow_run(idempotency_key="key").run_id == flow_run(idempotency_key="key").run_id == id_from_key("key")
    assert task_run(idempotency_key="key", flow_run=ID).run_id == id_from_key("key", ID)


@pytest.mark.parametrize("run_id", [ID, str(ID)], ids=["id", "text"])
def test_a_run_may_have_an_id_of_the_producers(run_id: Any) -> None:
    assert flow_run(run_id=run_id).run_id == task_run(run_id=run_id).run_id == ID


def test_a_run_id_belongs_to_the_partition_of_its_parent() -> None:
    beside = UUID(int=ids.new().int & ~0xFFFF | (tree_tag(ID) ^ PARTITIONS))
    assert partition_of(beside, PARTITIONS) == partition_of(ID, PARTITIONS)
    assert task_run(run_id=beside, flow_run=ID).run_id == flow_run(run_id=beside, parent_task_run=ID).run_id == beside
    elsewhere = UUID(int=beside.int ^ 1)
    for make in (
        lambda: task_run(run_id=elsewhere, flow_run=ID),
        lambda: flow_run(run_id=elsewhere, parent_task_run=ID),
    ):
        with pytest.raises(InvalidRequest, match=r"end in the same four hexadecimal digits .*\(151e\)") as raised:
            make()
        assert raised.value.field == "run_id"


def test_labels_are_as_many_and_as_long_as_is_accepted() -> None:
    most = {str(n).zfill(MAX_LABEL_KEY_LENGTH): "v" * MAX_LABEL_LENGTH for n in range(MAX_LABELS)}
    assert task_run(labels=most).labels == most
    assert flow_run(labels={"empty": ""}).labels == {"empty": ""}


def test_a_change_says_only_what_changes() -> None:
    assert update() == UpdateRun(run_id=ID)
    changed = update(name="n", tags=["etl"], policy=RunPolicy(retries=1))
    assert changed == UpdateRun(run_id=ID, name="n", tags=("etl",), policy=RunPolicy(retries=1))
    assert update(tags=[]).tags == ()


@pytest.mark.parametrize("named", [ID, str(ID), FlowRun(id=ID, name="nightly", created=NOW)], ids=["id", "text", "run"])
def test_a_run_may_be_named_by_itself_or_by_its_id(named: Any) -> None:
    assert requests.id_of_run(named) == requests.read_run(named).run_id == task_run(flow_run=named).flow_run_id == ID


def test_what_is_left_out_is_what_the_protocol_has() -> None:
    made = flow_run(tags=["etl"])
    assert (made.tags, made.policy, made.parent_task_run_id) == (("etl",), RunPolicy(), None)


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("tags", lambda: flow_run(tags="etl")),
        ("tags", lambda: flow_run(tags=7)),
        ("idempotency_key", lambda: flow_run(idempotency_key=7)),
        ("parent_task_run", lambda: flow_run(parent_task_run="no id")),
        ("run_id", lambda: flow_run(run_id="no id")),
        ("run_id", lambda: task_run(run_id=ID, idempotency_key="key")),
        ("state.type", lambda: flow_run(state={})),
        ("labels", lambda: flow_run(labels="team")),
        ("labels", lambda: task_run(labels=0)),
        ("labels.team", lambda: flow_run(labels={"team": 7})),
        ("labels.team", lambda: flow_run(labels={"team": "d" * (MAX_LABEL_LENGTH + 1)})),
        ("labels.team", lambda: flow_run(labels={"team": "\x00"})),
        ("labels..[key]", lambda: flow_run(labels={"": "data"})),
        ("labels.7.[key]", lambda: flow_run(labels={7: "data"})),
        (f"labels.{'k' * (MAX_LABEL_KEY_LENGTH + 1)}.[key]", lambda: flow_run(labels={"k" * 101: "data"})),
        ("labels", lambda: flow_run(labels={str(n): "" for n in range(MAX_LABELS + 1)})),
        ("run", lambda: requests.update_run("no id", name="n", tags=None, policy=None)),
        ("name", lambda: update(name="")),
        ("tags", lambda: update(tags="etl")),
        ("policy", lambda: update(policy=7)),
        ("history", lambda: requests.read_run(ID, history="later")),  # type: ignore[arg-type]
        ("flow_run", lambda: task_run(flow_run=7)),
        ("run", lambda: requests.propose("no id", State.pending(), force=False, api_version=None)),
        ("proposal_id", lambda: requests.id_of_proposal("no id")),
        ("concurrency_limit", lambda: requests.set_limit("tag", -1)),
        ("tag", lambda: requests.read_limit("")),
        ("name", lambda: requests.read_limit(None, name="")),
        ("tag", lambda: requests.read_limit(None)),
        ("name", lambda: requests.read_limit("tag", name="gpu")),
        ("deployment_id", lambda: requests.set_limit(None, 1, name="gpu", deployment_id=ID)),
        ("deployment_id", lambda: requests.set_limit(None, 1, deployment_id="no id")),
        ("concurrency_limit", lambda: requests.set_limit("tag", ...)),
        ("period", lambda: requests.set_limit("tag", None, period=1)),
        ("lease", lambda: requests.set_limit("tag", None, lease=1)),
        ("period_seconds", lambda: requests.set_limit("tag", 1, period=0)),
        ("lease_seconds", lambda: requests.set_limit("tag", 1, lease=-1)),
        ("limits", lambda: RunPolicy(limits=("gpu", "gpu"))),
        ("limits", lambda: RunPolicy(limits=tuple(map(str, range(101))))),
        ("proposals.3", lambda: requests.options_of(3, 7)),
    ],
)
def test_a_wrong_argument_is_named(field: str, make: Any) -> None:
    with pytest.raises(InvalidRequest) as raised:
        make()
    assert raised.value.field == field


def test_a_limit_is_named_by_what_it_is_on() -> None:
    made = requests.set_limit(None, 3, name="gpu", period=timedelta(minutes=1), lease=30)
    assert made == SetLimit(name="gpu", concurrency_limit=3, period_seconds=60, lease_seconds=30)
    assert made.limit == (LimitScope.NAME, "gpu")
    assert requests.read_limit(None, deployment_id=str(ID)).limit == (LimitScope.DEPLOYMENT, str(ID))
    assert requests.read_limit("db").limit == (LimitScope.TAG, "db")


def test_a_policy_keeps_the_order_of_the_limits_that_it_names_and_says_nothing_of_none() -> None:
    policy = RunPolicy(limits=("b", "a"))
    assert policy.limits == ("b", "a")
    assert RunPolicy.model_validate_json(policy.model_dump_json()) == policy
    assert "limits" not in RunPolicy().model_dump_json()


def test_a_request_is_as_long_as_is_accepted() -> None:
    message = requests.set_limit("tag", None)
    body = requests.body_of(message, 1_000)
    assert request_from(body) == message == SetLimit(tag="tag", concurrency_limit=None)
    assert requests.body_of(message, len(body)) == body
    with pytest.raises(MessageTooLarge):
        requests.body_of(message, len(body) - 1)
    assert requests.read_limit("tag") == ReadLimit(tag="tag")


def test_a_lease_and_its_executor_stand_in_the_details_of_running() -> None:
    terms: dict[str, Any] = {"force": False, "api_version": None}
    asked = requests.propose(ID, State.running(cache_key="key"), lease=timedelta(minutes=1), executor="e", **terms)
    details = asked.state.state_details
    assert (details.lease, details.executor, details.cache_key) == (60, "e", "key")
    assert requests.propose(ID, State.running(lease=5), **terms).state.state_details.lease == 5
    assert request_from(requests.body_of(asked, 10_000)) == asked


@pytest.mark.parametrize(
    ("field", "state", "wrong"),
    [
        ("lease", State.running(), {"lease": 0}),
        ("lease", State.running(), {"lease": 86_401}),
        ("lease", State.running(), {"lease": float("nan")}),
        ("lease", State.completed(), {"lease": 5}),
        ("executor", State.running(), {"executor": "e"}),
        ("executor", State.running(), {"lease": 5, "executor": ""}),
    ],
)
def test_what_is_no_lease_is_refused(field: str, state: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as raised:
        requests.propose(ID, state, force=False, api_version=None, **wrong)
    assert raised.value.field == field


def test_heartbeats_are_as_few_as_can_be() -> None:
    runs = [ids.new(tag=number % 2) for number in range(2_500)]
    made = requests.heartbeats(iter(runs), lambda run_id: run_id.int % 2, 1_000)
    assert [(beat.partition, len(beat.run_ids)) for beat in made] == [(0, 1_000), (0, 250), (1, 1_000), (1, 250)]
    assert [run_id for beat in made for run_id in beat.run_ids] == runs[::2] + runs[1::2]
    assert {beat.state_ids for beat in made} == {None}
    assert requests.heartbeats([], lambda _: 0, 1_000) == []
    [single] = requests.heartbeats(str(ID), lambda _: 3, 1_000)
    assert (single.partition, single.run_ids) == (3, (ID,))


def test_a_heartbeat_for_a_verdict_names_the_lease() -> None:
    state = State.running(lease=5).stamped(ids.new(), NOW, NOW)
    verdict = Verdict(proposal_id=ID, run_id=ID, status=SetStateStatus.ACCEPT, state=state)
    [beat] = requests.heartbeats([verdict, ID], lambda _: 0, 1_000)
    assert (beat.run_ids, beat.state_ids) == ((ID, ID), (state.id, None))
    assert request_from(requests.body_of(beat, 10_000)) == beat


@pytest.mark.parametrize("wrong", [7, None, ["no id"]])
def test_a_heartbeat_for_no_runs_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^runs"):
        requests.heartbeats(wrong, lambda _: 0, 1_000)


@pytest.mark.parametrize("most", [1_024, 5_000, 40_000, 1_048_576])
def test_a_heartbeat_is_no_larger_than_workers_accept(most: int) -> None:
    at_once = requests.runs_per_heartbeat(most)
    assert 1 <= at_once <= 1_000
    run_ids = tuple(ids.new() for _ in range(at_once))
    beat = Heartbeat(partition=1_023, run_ids=run_ids, state_ids=run_ids, executor="e" * 200, tell=True)
    assert requests.body_of(beat, most)
