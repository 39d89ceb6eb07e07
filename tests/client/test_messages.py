"""The wire protocol: every message survives the wire, and what it does not know it refuses by name."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from statewright import (
    ConcurrencyLimit,
    FlowRun,
    InvalidRequest,
    LimitScope,
    ProposedState,
    RunHistory,
    RunKind,
    RunPolicy,
    SetStateStatus,
    SlotHolder,
    State,
    StateDetails,
    StateType,
    TaskRun,
    Verdict,
    Waiter,
)
from statewright.protocol.replies import (
    REPLY,
    DeletedReply,
    ErrorCode,
    ErrorReply,
    EventsReply,
    HeartbeatReply,
    HistoryReply,
    KnownReply,
    LimitReply,
    LimitsReply,
    LostRun,
    OwnedShare,
    ParkedReply,
    PositionReply,
    RenewedLease,
    Reply,
    RunReply,
    SettledReply,
    SubscriptionReply,
    SubscriptionsReply,
    SyncedReply,
    VerdictReply,
)
from statewright.protocol.requests import (
    REQUEST,
    AcknowledgedShare,
    CreateFlowRun,
    CreateTaskRun,
    DeleteRun,
    FailedEvent,
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
    ReadVerdict,
    RemoveSubscription,
    Request,
    ResetSubscription,
    SetLimit,
    SettleDeadLetters,
    ShareEvent,
    ShareReference,
    SyncSubscription,
    UpdateRun,
    encode,
)
from statewright.subscription.filters import EventFilter
from statewright.subscription.status import DeadLetter, MemberStatus, ShareStatus, SubscriptionStatus
from statewright.values import MAX_JSON_DEPTH
from tests.events import entered, era_began

ID = UUID("01a200ef-06bf-7500-83c5-73e04725151e")
NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
EXAMPLES = settings(max_examples=60, deadline=None, database=None, derandomize=True)

# -- what is generated -------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=20)
NAMES = TEXTS.filter(bool)
IDS = st.uuids()
MOMENTS = st.datetimes(timezones=st.just(UTC))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
DELAYS = st.floats(0, 1e6)
POLICIES = st.builds(
    RunPolicy,
    retries=st.none() | st.integers(0, 100),
    retry_delay=st.none() | DELAYS | st.lists(DELAYS, max_size=3).map(tuple),
    pause_keys=st.frozensets(NAMES, max_size=2),
    resuming=st.booleans(),
)
DETAILS = st.builds(
    StateDetails,
    scheduled_time=st.none() | MOMENTS,
    cache_key=st.none() | NAMES,
    cache_expiration=st.none() | MOMENTS,
    pause_reschedule=st.booleans(),
    refresh_cache=st.none() | st.booleans(),
    transition_id=st.none() | IDS,
    lease=st.floats(0.001, 86_400),
    executor=st.none() | NAMES,
)
STATES = st.builds(
    ProposedState,
    type=st.sampled_from(StateType),
    name=st.none() | NAMES,
    timestamp=st.none() | MOMENTS,
    message=st.none() | TEXTS,
    data=JSON,
    state_details=DETAILS,
)
POSITIONS = st.integers(0, 2**63 - 1)
TAGS = st.lists(NAMES, max_size=3).map(tuple)
LABELS = st.dictionaries(NAMES, TEXTS, max_size=3)
FILTERS = st.builds(
    EventFilter,
    kinds=st.none() | st.lists(st.sampled_from(RunKind), min_size=1, max_size=2),
    run=st.none() | IDS,
    tree=st.none() | st.integers(0, 65_535),
    state_names=st.none() | st.lists(NAMES, min_size=1, max_size=3),
)
PLACE = st.builds(PartitionPosition, partition=st.integers(0, 1_023), position=POSITIONS)
PLACES = st.lists(PLACE, max_size=2).map(tuple)
SHARE = {"partition": st.integers(0, 1_023), "share": st.integers(0, 63), "epoch": POSITIONS}
TRIES = st.integers(0, 1_000)
REQUESTS = {
    CreateFlowRun: st.builds(
        CreateFlowRun, name=NAMES, tags=TAGS, policy=POLICIES, labels=LABELS, state=st.none() | STATES, flow_id=IDS
    ),
    CreateTaskRun: st.builds(
        CreateTaskRun, name=NAMES, tags=TAGS, policy=POLICIES, labels=LABELS, state=st.none() | STATES, task_key=NAMES
    ),
    UpdateRun: st.builds(UpdateRun, name=st.none() | NAMES, tags=st.none() | TAGS, policy=st.none() | POLICIES),
    DeleteRun: st.builds(DeleteRun, force=st.booleans()),
    PruneRuns: st.builds(
        PruneRuns,
        partition=st.integers(0, 1_023),
        run_ids=st.lists(IDS, min_size=1, max_size=3).map(tuple),
        unchanged_since=MOMENTS,
    ),
    Propose: st.builds(Propose, state=STATES, force=st.booleans(), api_version=st.sampled_from([None, "0.8.2", "3"])),
    ReadRun: st.builds(ReadRun, after=POSITIONS, history=st.booleans()),
    Heartbeat: st.lists(st.tuples(IDS, st.none() | IDS), min_size=1, max_size=3).flatmap(
        lambda held: st.builds(
            Heartbeat,
            partition=st.integers(0, 1_023),
            run_ids=st.just(tuple(run_id for run_id, _ in held)),
            state_ids=st.sampled_from([None, tuple(state_id for _, state_id in held)]),
            executor=st.none() | NAMES,
            tell=st.booleans(),
        )
    ),
    FindPosition: st.builds(FindPosition, partition=st.integers(0, 1_023), since=st.none() | MOMENTS),
    OpenSubscription: st.builds(
        OpenSubscription, name=NAMES, filter=FILTERS, max_tries=st.none() | st.integers(1, 1_000), positions=PLACES
    ),
    SyncSubscription: st.builds(
        SyncSubscription,
        name=NAMES,
        member=NAMES,
        joins=st.booleans(),
        leaves=st.booleans(),
        seconds=st.floats(1, 60),
        generation=POSITIONS,
        acknowledged=st.lists(
            st.builds(AcknowledgedShare, **SHARE, position=POSITIONS, trying=st.none() | POSITIONS, tries=TRIES),
            max_size=2,
        ).map(tuple),
        given_back=st.lists(st.builds(ShareReference, **SHARE), max_size=2).map(tuple),
        failed=st.lists(st.builds(FailedEvent, **SHARE, sequence=POSITIONS, error=TEXTS, tries=TRIES), max_size=2).map(
            tuple
        ),
        dealt_with=st.lists(st.builds(ShareEvent, **SHARE, sequence=POSITIONS), max_size=2).map(tuple),
    ),
    ReadSubscription: st.builds(ReadSubscription, name=NAMES),
    RemoveSubscription: st.builds(RemoveSubscription, name=NAMES),
    ResetSubscription: st.builds(ResetSubscription, name=NAMES, positions=st.tuples(PLACE)),
    SettleDeadLetters: st.builds(
        SettleDeadLetters, name=NAMES, event_ids=st.none() | st.lists(IDS, max_size=2).map(tuple)
    ),
    ReadSubscriptions: st.builds(ReadSubscriptions, partition=st.integers(0, 1_023), after=TEXTS),
    ReadEvents: st.builds(ReadEvents, partition=st.integers(0, 1_023), after=POSITIONS),
    SetLimit: st.builds(SetLimit, tag=NAMES, concurrency_limit=st.none() | st.integers(0, 1_000_000))
    | st.builds(
        SetLimit,
        name=NAMES,
        concurrency_limit=st.integers(0, 1_000_000),
        period_seconds=st.none() | st.floats(0.001, 1e8),
        lease_seconds=st.none() | st.floats(0.001, 86_400),
    ),
    ReadLimit: st.builds(ReadLimit, tag=NAMES) | st.builds(ReadLimit, deployment_id=IDS),
    ReadLimits: st.builds(ReadLimits, partition=st.integers(0, 1_023), after=POSITIONS),
    ReadVerdict: st.builds(ReadVerdict, partition=st.integers(0, 1_023)),
}

RUNNING = State.running().stamped(ID, NOW, NOW)
FLOW_RUN = FlowRun(id=ID, name="nightly", created=NOW, state=RUNNING, policy=RunPolicy(retry_delay=(1, 2)))
TASK_RUN = TaskRun(id=ID, name="load", created=NOW, tags=("db",), start_time=NOW, labels={"team": "data"})
EVENT = entered(ID, StateType.RUNNING, state_id=ID, time=NOW, partition=3, sequence=17, era=1)
ERA = era_began(16, 1, went_back_to=9, time=NOW, partition=3)
SUBSCRIPTION = SubscriptionStatus(
    name="billing",
    filter=EventFilter(tags=("etl",)),
    max_tries=3,
    created=NOW,
    lag=18,
    member_count=1,
    dead_letter_count=1,
    shares=(ShareStatus(partition=0, share=1, position=41, lag=18, member="host-1"),),
    members=(MemberStatus(name="host-1", joined=NOW, seen=NOW, shares=64),),
    dead_letters=(DeadLetter(partition=0, share=1, sequence=41, event_id=ID, error="no", tries=3, at=NOW),),
)
REPLIES: list[Reply] = [
    VerdictReply(verdict=Verdict(proposal_id=ID, run_id=ID, status=SetStateStatus.ACCEPT, state=RUNNING)),
    VerdictReply(
        verdict=Verdict(proposal_id=ID, run_id=ID, status=SetStateStatus.WAIT, delay_seconds=5, rule_signature=("A",))
    ),
    RunReply(run=FLOW_RUN),
    RunReply(run=TASK_RUN, created=True),
    HistoryReply(history=RunHistory(run=FLOW_RUN, states=(RUNNING, RUNNING))),
    LimitReply(
        limit=ConcurrencyLimit(
            scope=LimitScope.TAG,
            key="db",
            concurrency_limit=1,
            period_seconds=0.5,
            lease_seconds=30,
            free=0,
            held=1,
            holders=(SlotHolder(run_id=ID, kind=RunKind.TASK_RUN, name="load", since=NOW, lease_ends=NOW),),
            waiting=1,
            waiters=(Waiter(proposal_id=ID, run_id=ID, name="load", priority=-1, since=NOW),),
        )
    ),
    LimitsReply(limits=(ConcurrencyLimit(scope=LimitScope.NAME, key="gpu", concurrency_limit=1, free=1),), next=7),
    LimitsReply(limits=()),
    HistoryReply(history=RunHistory(run=FLOW_RUN, states=(RUNNING,)), next=1),
    EventsReply(events=(ERA, EVENT), up_to=17),
    EventsReply(events=(), up_to=17, pruned_up_to=16),
    DeletedReply(trees=1, runs=13),
    LimitReply(limit=None),
    HeartbeatReply(
        lost=(LostRun(run_id=ID), LostRun(run_id=ID, state_type=StateType.CRASHED, state_name="Crashed", executor="e")),
        leases=(RenewedLease(run_id=ID, state_id=ID, seconds=1.5),),
    ),
    PositionReply(position=41),
    SyncedReply(generation=7, shares=(OwnedShare(partition=0, share=1, epoch=7, position=41),)),
    SyncedReply(generation=7),
    SubscriptionReply(subscription=SUBSCRIPTION),
    SubscriptionReply(subscription=None),
    SubscriptionsReply(subscriptions=(SUBSCRIPTION,), next="billing"),
    SettledReply(count=2),
    ErrorReply(code=ErrorCode.INVALID_MESSAGE, message="no", field="state.type"),
    KnownReply(
        proposal_id=ID,
        reply=VerdictReply(verdict=Verdict(proposal_id=ID, run_id=ID, status=SetStateStatus.ACCEPT, state=RUNNING)),
    ),
    KnownReply(proposal_id=ID, reply=ParkedReply(proposal_id=ID, run_id=ID, since=NOW, reason="full")),
    KnownReply(proposal_id=ID, reply=ErrorReply(code=ErrorCode.RUN_NOT_FOUND, message="no", field="run_id")),
    KnownReply(proposal_id=ID),
]


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def blamed(message: bytes) -> list[str]:
    """Return the fields that a refused request is refused for."""
    with pytest.raises(ValidationError) as raised:
        REQUEST.validate_json(message)
    return [".".join(map(str, problem["loc"])) for problem in raised.value.errors()]


# -- round trips -------------------------------------------------------------------------------------------------------


@EXAMPLES
@given(st.one_of(*REQUESTS.values()))
def test_every_request_survives_the_wire(request: Request) -> None:
    read = REQUEST.validate_json(encode(request))
    assert type(read) is type(request)
    assert read == request


@pytest.mark.parametrize("kind", REQUESTS)
def test_every_kind_of_request_says_its_type_and_the_version(kind: Any) -> None:
    fields = kind.model_fields
    assert fields["v"].default == 1
    assert REQUEST.json_schema()["discriminator"]["mapping"][fields["type"].default].endswith(kind.__name__)


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: reply.type)
def test_every_reply_survives_the_wire(reply: Reply) -> None:
    assert REPLY.validate_json(reply.model_dump_json()) == reply
    assert REPLY.validate_json(reply.model_dump_json(exclude_none=True)) == reply


@EXAMPLES
@given(STATES)
def test_every_written_state_survives_the_wire_within_its_verdict(proposed: ProposedState) -> None:
    state = proposed.stamped(ID, NOW, NOW)
    reply = VerdictReply(verdict=Verdict(proposal_id=ID, run_id=ID, status=SetStateStatus.ACCEPT, state=state))
    assert REPLY.validate_json(reply.model_dump_json()) == reply


def nested(depth: int) -> Any:
    data: Any = 0
    for _ in range(depth):
        data = [data]
    return data


@pytest.mark.parametrize("depth", [1, MAX_JSON_DEPTH - 1])
def test_data_that_can_be_proposed_can_also_be_read(depth: int) -> None:
    request = Propose(run_id=ID, state=State.completed(data=nested(depth)))
    assert REQUEST.validate_json(encode(request)) == request
    state = request.state.stamped(ID, NOW, NOW)
    run = FLOW_RUN.model_copy(update={"state": state})
    verdict = Verdict(proposal_id=ID, run_id=ID, status=SetStateStatus.ACCEPT, state=state)
    for reply in (VerdictReply(verdict=verdict), HistoryReply(history=RunHistory(run=run, states=(state,)))):
        assert REPLY.validate_json(reply.model_dump_json()) == reply


def test_data_that_is_nested_too_deep_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="nested deeper than 100 levels"):
        State.completed(data=nested(MAX_JSON_DEPTH))


# -- what is left out --------------------------------------------------------------------------------------------------


def test_what_is_none_is_left_out() -> None:
    read = json.loads(encode(Propose(run_id=ID, state=State.running())))
    assert set(read) == {"v", "type", "run_id", "state", "force"}
    assert set(read["state"]) == {"type", "state_details"}
    assert None not in read["state"]["state_details"].values()


def test_none_within_data_is_kept() -> None:
    data: Any = {"a": None, "b": [None, {"c": None}]}
    assert json.loads(encode(Propose(run_id=ID, state=State.completed(data=data))))["state"]["data"] == data


def test_a_change_that_is_none_is_left_out_and_one_that_is_empty_is_not() -> None:
    assert json.loads(encode(UpdateRun(run_id=ID, tags=()))) == {
        "v": 1,
        "type": "update_run",
        "run_id": str(ID),
        "tags": [],
    }


def test_none_is_the_message_where_a_limit_is_removed() -> None:
    assert json.loads(encode(SetLimit(tag="db", concurrency_limit=None)))["concurrency_limit"] is None


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"type": "read_run", "run_id": str(ID), "colour": 1}, "read_run.colour"),
        ({"type": "propose", "run_id": str(ID), "state": {"type": "RUNNING", "colour": 1}}, "propose.state.colour"),
        (
            {"type": "propose", "run_id": str(ID), "state": {"type": "RUNNING", "state_details": {"x": 1}}},
            "propose.state.state_details.x",
        ),
        (
            {"type": "create_flow_run", "run_id": str(ID), "name": "n", "flow_run_id": str(ID)},
            "create_flow_run.flow_run_id",
        ),
    ],
)
def test_an_unknown_field_is_refused_by_its_name(fields: dict[str, Any], expected: str) -> None:
    assert blamed(body(**fields)) == [expected]


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version_is_refused_by_its_field(version: object) -> None:
    assert blamed(body(v=version, type="read_run", run_id=str(ID))) == ["read_run.v"]


@pytest.mark.parametrize("fields", [{"type": "start_run"}, {"type": None}, {}])
def test_an_unknown_type_is_refused_as_such(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="type") as raised:
        REQUEST.validate_json(body(run_id=str(ID), **fields))
    assert {problem["type"] for problem in raised.value.errors()} <= {"union_tag_invalid", "union_tag_not_found"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"type": "read_run"}, "read_run.run_id"),
        ({"type": "read_run", "run_id": "7"}, "read_run.run_id"),
        ({"type": "read_run", "run_id": str(ID), "after": -1}, "read_run.after"),
        ({"type": "read_events", "after": 0}, "read_events.partition"),
        ({"type": "read_events", "partition": 1_024, "after": 0}, "read_events.partition"),
        ({"type": "read_events", "partition": 0, "after": 2**63}, "read_events.after"),
        ({"type": "propose", "run_id": str(ID)}, "propose.state"),
        ({"type": "propose", "run_id": str(ID), "state": {"type": "WALKING"}}, "propose.state.type"),
        ({"type": "propose", "run_id": str(ID), "state": {"type": "FAILED", "data": ["\x00"]}}, "propose.state.data"),
        ({"type": "create_flow_run", "run_id": str(ID), "name": ""}, "create_flow_run.name"),
        ({"type": "create_task_run", "run_id": str(ID), "name": "n", "tags": ["t"] * 101}, "create_task_run.tags"),
        ({"type": "create_task_run", "run_id": str(ID), "name": "n", "labels": ["a"]}, "create_task_run.labels"),
        ({"type": "create_task_run", "run_id": str(ID), "name": "n", "labels": {"a": 7}}, "create_task_run.labels.a"),
        ({"type": "create_flow_run", "run_id": str(ID), "name": "n", "state": {}}, "create_flow_run.state.type"),
        ({"type": "update_run"}, "update_run.run_id"),
        ({"type": "update_run", "run_id": str(ID), "name": ""}, "update_run.name"),
        ({"type": "update_run", "run_id": str(ID), "tags": ["t"] * 101}, "update_run.tags"),
        ({"type": "update_run", "run_id": str(ID), "policy": {"retries": -1}}, "update_run.policy.retries"),
        ({"type": "update_run", "run_id": str(ID), "labels": {}}, "update_run.labels"),
        ({"type": "read_run", "run_id": str(ID), "history": "later"}, "read_run.history"),
        ({"type": "set_limit", "tag": "db"}, "set_limit.concurrency_limit"),
        ({"type": "set_limit", "tag": "db", "concurrency_limit": 1, "period_seconds": 0}, "set_limit.period_seconds"),
        ({"type": "set_limit", "tag": "db", "concurrency_limit": 1, "lease_seconds": -1}, "set_limit.lease_seconds"),
        ({"type": "set_limit", "concurrency_limit": 1}, "set_limit"),
        ({"type": "set_limit", "tag": "db", "concurrency_limit": None, "period_seconds": 1}, "set_limit"),
        ({"type": "read_limit", "tag": "db", "name": "gpu"}, "read_limit"),
        ({"type": "read_limits", "partition": 1_024}, "read_limits.partition"),
        ({"type": "set_limit", "tag": "db", "concurrency_limit": -1}, "set_limit.concurrency_limit"),
        ({"type": "read_limit", "tag": "x" * 201}, "read_limit.tag"),
    ],
)
def test_a_wrong_or_missing_field_is_refused_by_its_name(fields: dict[str, Any], expected: str) -> None:
    assert blamed(body(**fields)) == [expected]


@pytest.mark.parametrize("api_version", ["", "v1", "0.8.3\n", "1.2.3.4.5", "0.8.", "12345", "1.0a1", "-1"])
def test_an_api_version_is_up_to_four_numbers(api_version: str) -> None:
    fields = {"type": "propose", "run_id": str(ID), "state": {"type": "RUNNING"}, "api_version": api_version}
    assert blamed(body(**fields)) == ["propose.api_version"]


@pytest.mark.parametrize("message", [b"", b"{", b"[]", b"null", b"\xff", b'"propose"', b"{" * 1_000])
def test_what_is_no_json_object_is_refused(message: bytes) -> None:
    with pytest.raises(ValidationError):
        REQUEST.validate_json(message)
