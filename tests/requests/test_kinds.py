"""Every message has a kind, and a kind says where its requests belong and what they ask for."""

from datetime import UTC, datetime
from typing import Any, get_args
from uuid import UUID

import pytest
from pydantic import ValidationError

from statewright import State
from statewright.ids import IdSource, partition_of, partition_of_subscription, partition_of_tag
from statewright.limits import LimitName, LimitScope
from statewright.protocol.requests import (
    CreateFlowRun,
    CreateTaskRun,
    DeleteRun,
    Explain,
    FindPosition,
    Heartbeat,
    OpenSubscription,
    PartitionPosition,
    Propose,
    PruneRuns,
    ReadEvents,
    ReadLimit,
    ReadLimits,
    ReadRun,
    ReadSubscription,
    ReadSubscriptions,
    ReadTimeline,
    ReadVerdict,
    RemoveSubscription,
    Request,
    ResetSubscription,
    SetLimit,
    SettleDeadLetters,
    SyncSubscription,
    TimelineCursor,
    UpdateRun,
    WhatIf,
    Withdraw,
)
from statewright_worker.facts.batch import Asked
from statewright_worker.facts.ledger import as_created, first_proposal
from statewright_worker.orchestration import Engine
from statewright_worker.requests.answering import asked_by
from statewright_worker.requests.base import Incoming
from statewright_worker.requests.kinds import kind_of
from statewright_worker.streams.proposals import Entry

ids = IdSource()
RUN, OTHER = ids.new(), ids.new()
LIMIT = LimitName(LimitScope.TAG, "database")
PARTITIONS = 7
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)

EVERY: list[Any] = [
    Propose(run_id=RUN, state=State.running()),
    CreateFlowRun(run_id=RUN, name="f", parent_task_run_id=OTHER),
    CreateTaskRun(run_id=RUN, name="t", flow_run_id=OTHER),
    UpdateRun(run_id=RUN, tags=("database",)),
    ReadRun(run_id=RUN, after=3),
    ReadEvents(partition=3, after=5),
    SetLimit(tag="database", concurrency_limit=1),
    ReadLimit(tag="database"),
    Withdraw(partition=3, proposal_id=OTHER),
    Heartbeat(partition=partition_of(RUN, PARTITIONS), run_ids=(RUN,)),
    ReadLimits(partition=3, after=5),
    DeleteRun(run_id=RUN),
    PruneRuns(
        partition=partition_of(RUN, PARTITIONS), run_ids=(RUN,), unchanged_since=datetime(2030, 1, 1, tzinfo=UTC)
    ),
    ReadVerdict(partition=3, proposal_id=OTHER),
    FindPosition(partition=3, since=NOON),
    OpenSubscription(name="billing"),
    SyncSubscription(name="billing", member="one", instance=OTHER),
    ReadSubscription(name="billing"),
    RemoveSubscription(name="billing"),
    ResetSubscription(name="billing", positions=(PartitionPosition(partition=3, position=5),)),
    SettleDeadLetters(name="billing", deliver_again=True),
    ReadSubscriptions(partition=3),
    WhatIf(run_id=RUN, state=State.running(cache_key="asked")),
    Explain(partition=3, proposal_id=OTHER),
    ReadTimeline(run_id=RUN, after=TimelineCursor(ordinal=7)),
]
OF_SUBSCRIPTION = {request.type for request in EVERY if request.type.endswith(("_subscription", "_letters"))}


@pytest.mark.parametrize("request_", EVERY)
def test_a_proposal_alone_is_answered_with_a_verdict(request_: Any) -> None:
    assert kind_of(request_).decides_on(request_) == (RUN if isinstance(request_, Propose) else None)


def incoming(request: Any, entry: str = "1-0") -> Incoming:
    return Incoming(Entry(entry, {}), ids.new(), None, request, 0)


def asked(*requests: Incoming, condemned: frozenset[str] = frozenset()) -> Asked:
    return asked_by(requests, Engine(), condemned)


def test_every_message_has_a_kind() -> None:
    messages = get_args(get_args(Request)[0])
    assert {type(request) for request in EVERY} == set(messages)
    assert all(kind_of(request) for request in EVERY)


@pytest.mark.parametrize("request_", EVERY, ids=lambda request: request.type)
def test_a_request_belongs_to_the_partition_of_what_it_is_about(request_: Any) -> None:
    expected = {
        "read_events": ("partition", 3),
        "withdraw": ("partition", 3),
        "heartbeat": ("partition", partition_of(RUN, PARTITIONS)),
        "prune_runs": ("partition", partition_of(RUN, PARTITIONS)),
        "read_limits": ("partition", 3),
        "read_verdict": ("partition", 3),
        "explain": ("partition", 3),
        "find_position": ("partition", 3),
        "read_subscriptions": ("partition", 3),
        **dict.fromkeys(OF_SUBSCRIPTION, ("name", partition_of_subscription("billing", PARTITIONS))),
        "set_limit": ("tag", partition_of_tag("database", PARTITIONS)),
        "read_limit": ("tag", partition_of_tag("database", PARTITIONS)),
    }.get(request_.type, ("run_id", partition_of(RUN, PARTITIONS)))
    assert kind_of(request_).place(request_, PARTITIONS) == expected


@pytest.mark.parametrize("request_", EVERY, ids=lambda request: request.type)
def test_what_changes_something_is_looked_up_in_the_ledger(request_: Any) -> None:
    one = incoming(request_)
    changes = request_.type in {
        "propose",
        "create_flow_run",
        "create_task_run",
        "update_run",
        "set_limit",
        "withdraw",
        "delete_run",
        "open_subscription",
        "remove_subscription",
        "reset_subscription",
        "settle_dead_letters",
    }
    assert kind_of(request_).changes is changes
    own = [as_created(RUN)] * (request_.type == "update_run")
    assert asked(one).ledger.request_ids == [one.id] * changes + own


def test_what_is_condemned_asks_for_its_answer_alone() -> None:
    fine, refused = incoming(EVERY[0], "1-0"), incoming(EVERY[1], "2-0")
    wanted = asked(fine, refused, condemned=frozenset({"2-0"}))
    assert wanted.ledger.request_ids == [fine.id, refused.id]
    assert wanted.runs.ids == {RUN}


def test_requests_ask_for_runs_histories_events_and_limits() -> None:
    def runs(request: Any) -> set[UUID]:
        return asked(incoming(request)).runs.ids

    named = [{RUN}, {RUN, OTHER}, {RUN, OTHER}, {RUN}, {RUN}, *[set()] * 6, {RUN}, *[set()] * 10, {RUN}, set(), {RUN}]
    assert [runs(request) for request in EVERY] == named
    wanted = asked(*map(incoming, EVERY))
    assert wanted.histories.pages == {(RUN, 3), (RUN, 7)}
    assert wanted.cache._keys == {"asked"}
    assert wanted.explained.proposal_ids == {OTHER}
    assert (wanted.changes.after, wanted.changes.since) == ({5}, {NOON})
    assert (wanted.limits.read, wanted.limits.to_set) == ({LIMIT}, {LIMIT: [1]})
    assert (wanted.limits.to_remove, wanted.limits.pages) == (set(), {5})
    assert wanted.inquiries.proposal_ids == {OTHER}
    assert (wanted.subscriptions.whole, wanted.subscriptions.settling) == ({"billing"}, {"billing"})
    [syncing] = [request for request in EVERY if request.type == "sync_subscription"]
    assert wanted.subscriptions.syncs == {"billing": [syncing]}
    assert wanted.subscriptions.pages == {""}
    removing = asked(incoming(SetLimit(tag="database", concurrency_limit=None)))
    assert (removing.limits.read, removing.limits.to_set) == ({LIMIT}, {})
    assert removing.limits.to_remove == {LIMIT}


def test_labels_are_asked_for_where_an_answer_tells_them() -> None:
    labelled = [asked(incoming(request)).runs.labelled for request in EVERY]
    assert labelled == [set(), {RUN}, {RUN}, {RUN}, {RUN}, *[set()] * 19, {RUN}]


def test_a_run_that_is_read_alone_asks_for_no_history() -> None:
    assert asked(incoming(ReadRun(run_id=RUN, history=False))).histories.pages == set()


def test_a_first_state_asks_for_what_a_proposal_asks_for() -> None:
    state = State.running(cache_key="k")
    created = asked(incoming(CreateTaskRun(run_id=RUN, name="t", tags=("database",), state=state)))
    proposed = asked(incoming(Propose(run_id=RUN, state=state)))
    assert created.cache._keys == proposed.cache._keys == {"k"}
    assert created.limits._proposed == proposed.limits._proposed
    assert created.ledger.request_ids[1:] == [first_proposal(RUN)]


def test_a_deletion_asks_for_its_tree_and_shares_no_transaction() -> None:
    wanted = asked(*[incoming(request) for request in EVERY if kind_of(request).is_alone])
    assert wanted.deletions.trees == {RUN: False}
    assert asked(incoming(DeleteRun(run_id=RUN, force=True))).deletions.trees == {RUN: True}
    assert {type(request) for request in EVERY if kind_of(request).is_alone} == {DeleteRun, PruneRuns}


def test_trees_that_are_pruned_are_of_one_partition() -> None:
    here = partition_of(RUN, PARTITIONS)
    stranger = next(run_id for run_id in iter(ids.new, None) if partition_of(run_id, PARTITIONS) != here)
    mixed = PruneRuns(partition=here, run_ids=(RUN, stranger), unchanged_since=datetime(2030, 1, 1, tzinfo=UTC))
    assert kind_of(mixed).place(mixed, PARTITIONS) == ("run_ids", partition_of(stranger, PARTITIONS))


def test_a_heartbeat_names_runs_of_one_partition() -> None:
    here = partition_of(RUN, PARTITIONS)
    stranger = next(run_id for run_id in iter(ids.new, None) if partition_of(run_id, PARTITIONS) != here)
    mixed = Heartbeat(partition=here, run_ids=(RUN, stranger))
    assert kind_of(mixed).place(mixed, PARTITIONS) == ("run_ids", partition_of(stranger, PARTITIONS))
    of_executor = Heartbeat(partition=3, executor="e")
    assert kind_of(of_executor).place(of_executor, PARTITIONS) == ("partition", 3)


@pytest.mark.parametrize("wrong", [{}, {"run_ids": (RUN,), "state_ids": ()}, {"run_ids": (RUN,) * 1_001}])
def test_a_heartbeat_for_nobody_or_for_too_many_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Heartbeat(partition=0, **wrong)
