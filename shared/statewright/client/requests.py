"""What a client sends: arguments are checked and become messages. No IO."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from types import EllipsisType
from typing import Any, Final, Literal, NamedTuple, TypeVar
from uuid import UUID

from pydantic import ValidationError

from statewright.client.sent import AboutRun
from statewright.errors import InvalidRequest, MessageTooLarge
from statewright.ids import IdSource, id_from_key, partition_of, tree_tag
from statewright.overview import DeadRequest
from statewright.protocol.requests import (
    MAX_RUNS_OF_HEARTBEAT,
    MAX_TREES_PRUNED,
    ONE_OF_THREE,
    CreateFlowRun,
    CreateTaskRun,
    DeleteRun,
    Explain,
    FindPosition,
    Heartbeat,
    OpenSubscription,
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
    encode,
)
from statewright.runs import Run, RunPolicy
from statewright.states import ProposedState, StateDetails
from statewright.subscription.filters import EventFilter
from statewright.subscription.positions import pairs_of
from statewright.subscription.status import DeadLetter
from statewright.values import MAX_IDEMPOTENCY_KEY_LENGTH, Duration, Frozen
from statewright.verdicts import Verdict

RunReference = UUID | str | Run | AboutRun[Any]
"""A run, its id (also as text), or a request about it that is still under way."""
LeaseReference = RunReference | Verdict
"""A run, or the verdict that let it be RUNNING: then that lease is meant, and no other that the run may have later."""

OnWait = Literal["answer", "park"]
"""What becomes of a proposal where the verdict would be WAIT."""

_NAME_OF_CLIENT: Final = re.compile(r"^[A-Za-z0-9_.-]{1,64}\Z")
MAX_TEXT_SHOWN: Final = 100
HEARTBEAT_BYTES: Final = 1_500
"""A heartbeat without runs is no larger than that, however long its executor's name."""
HEARTBEAT_BYTES_PER_RUN: Final = 80
"""Two ids, with quotes and commas."""

Message = TypeVar("Message", bound=Frozen)


class Pruned(NamedTuple):
    """How many trees were deleted, and how many runs these had in all."""

    trees: int
    runs: int


class Proposal(NamedTuple):
    """One of the proposals of `Client.propose_many`; what is None is as that call says for all of them."""

    run: RunReference
    state: ProposedState
    force: bool | None = None
    api_version: str | None = None
    proposal_id: UUID | str | None = None
    timeout: Duration | None = None
    on_wait: OnWait | None = None
    priority: int | None = None
    park_timeout: Duration | None = None
    cascade: bool | None = None


class Identity(NamedTuple):
    """What a producer says of the id of a run to be created: nothing, the id itself, or a key to which one belongs."""

    run_id: UUID | str | None
    idempotency_key: str | None
    partitions: int
    """How many partitions the deployment has."""


def create_flow_run(
    ids: IdSource,
    identity: Identity,
    name: str,
    *,
    flow_id: UUID | None,
    deployment_id: UUID | None,
    parent_task_run: RunReference | None,
    tags: Sequence[str],
    policy: RunPolicy | None,
    labels: Mapping[str, str] | None,
    state: ProposedState | None,
) -> CreateFlowRun:
    """Return the request for a flow run. Raises InvalidRequest."""
    parent_id = None if parent_task_run is None else id_of_run(parent_task_run, "parent_task_run")
    return checked(
        CreateFlowRun,
        run_id=_id_of_new_run(ids, identity, parent_id),
        name=name,
        flow_id=flow_id,
        deployment_id=deployment_id,
        parent_task_run_id=parent_id,
        tags=_tuple_of(tags),
        policy=policy or RunPolicy(),
        labels={} if labels is None else labels,
        state=state,
    )


def create_task_run(
    ids: IdSource,
    identity: Identity,
    name: str,
    *,
    flow_run: RunReference | None,
    task_key: str | None,
    tags: Sequence[str],
    policy: RunPolicy | None,
    labels: Mapping[str, str] | None,
    state: ProposedState | None,
) -> CreateTaskRun:
    """Return the request for a task run. Raises InvalidRequest."""
    flow_run_id = None if flow_run is None else id_of_run(flow_run, "flow_run")
    return checked(
        CreateTaskRun,
        run_id=_id_of_new_run(ids, identity, flow_run_id),
        name=name,
        flow_run_id=flow_run_id,
        task_key=task_key,
        tags=_tuple_of(tags),
        policy=policy or RunPolicy(),
        labels={} if labels is None else labels,
        state=state,
    )


def update_run(
    run: RunReference, *, name: str | None, tags: Sequence[str] | None, policy: RunPolicy | None
) -> UpdateRun:
    """Return the request that a run be changed. Raises InvalidRequest."""
    tags_or_none = None if tags is None else _tuple_of(tags)
    return checked(UpdateRun, run_id=id_of_run(run), name=name, tags=tags_or_none, policy=policy)


def propose(
    run: RunReference,
    state: ProposedState,
    *,
    force: bool,
    api_version: str | None,
    lease: Duration | None = None,
    executor: str | None = None,
    on_wait: OnWait = "answer",
    priority: int = 0,
    park_timeout: Duration | None = None,
    cascade: bool = False,
) -> Propose:
    """Return the request that a run enter a state. Raises InvalidRequest."""
    if lease is not None or executor is not None:
        state = _leased(state, lease, executor)
    # What goes without saying is not said: checking and sending it would cost every proposal.
    said: dict[str, object] = {}
    if force is not False:
        said["force"] = force
    if api_version is not None:
        said["api_version"] = api_version
    if on_wait != "answer":
        said["on_wait"] = on_wait
    if priority != 0:
        said["priority"] = priority
    if cascade is not False:
        said["cascade"] = cascade
    if park_timeout is not None:
        said["park_seconds"] = seconds_of(park_timeout, "park_timeout")
    return checked(Propose, run_id=id_of_run(run), state=state, **said)


def withdraw(partition: int, proposal_id: UUID) -> Withdraw:
    """Return the request that a parked proposal of the partition be withdrawn."""
    return Withdraw(partition=partition, proposal_id=proposal_id)


def read_verdict(partition: int, proposal_id: UUID, run_id: UUID | None) -> ReadVerdict:
    """Return the request for what is known of a proposal."""
    return ReadVerdict(partition=partition, proposal_id=proposal_id, run_id=run_id)


def runs_per_heartbeat(max_message_bytes: int) -> int:
    """Return how many runs a heartbeat may name, so that it is no larger than workers accept."""
    named = (max_message_bytes - HEARTBEAT_BYTES) // HEARTBEAT_BYTES_PER_RUN
    return max(min(named, MAX_RUNS_OF_HEARTBEAT), 1)


def heartbeats(
    runs: LeaseReference | Iterable[LeaseReference], partition_of: Callable[[UUID], int], at_once: int
) -> list[Heartbeat]:
    """Return the requests that renew the leases of a run or of many, `at_once` of a partition at most in each.

    Raises InvalidRequest.
    """
    named = [runs] if isinstance(runs, UUID | str | Run | AboutRun | Verdict) else list(_each(runs))
    by_partition: dict[int, list[tuple[UUID, UUID | None]]] = {}
    for number, run in enumerate(named):
        held = lease_of(run, f"runs.{number}")
        by_partition.setdefault(partition_of(held[0]), []).append(held)
    return [
        Heartbeat(partition=partition, run_ids=tuple(run_ids), state_ids=tuple(state_ids) if any(state_ids) else None)
        for partition, held_there in by_partition.items()
        for start in range(0, len(held_there), at_once)
        for run_ids, state_ids in [zip(*held_there[start : start + at_once], strict=True)]
    ]


def lease_of(run: LeaseReference, argument: str = "run") -> tuple[UUID, UUID | None]:
    """Return the run that is meant, and the state that its lease belongs to, None where that is not known.

    Raises InvalidRequest, naming the argument, where no run is meant.
    """
    if isinstance(run, Verdict):
        return run.run_id, None if run.state is None else run.state.id
    return id_of_run(run, argument), None


def lease_seconds(lease: Duration) -> float:
    """Return how many seconds a lease has. Raises InvalidRequest for what is none."""
    return StateDetails(lease=lease).lease or 0.0


def delete_run(run: RunReference, *, force: bool) -> DeleteRun:
    """Return the request that a run be deleted with all that is below it. Raises InvalidRequest."""
    return checked(DeleteRun, run_id=id_of_run(run), force=force)


def prune_runs(
    runs: Iterable[RunReference], unchanged_since: datetime, partition_of: Callable[[UUID], int]
) -> list[PruneRuns]:
    """Return the requests that the trees of these runs be deleted, if they are over and were not changed since then.

    Raises InvalidRequest.
    """
    by_partition: dict[int, list[UUID]] = {}
    for number, run in enumerate(_each(runs)):
        run_id = id_of_run(run, f"runs.{number}")
        by_partition.setdefault(partition_of(run_id), []).append(run_id)
    return [
        checked(
            PruneRuns,
            partition=partition,
            run_ids=tuple(run_ids[first : first + MAX_TREES_PRUNED]),
            unchanged_since=unchanged_since,
        )
        for partition, run_ids in by_partition.items()
        for first in range(0, len(run_ids), MAX_TREES_PRUNED)
    ]


def read_run(run: RunReference, *, after: int = 0, history: bool = True) -> ReadRun:
    """Return the request for a run, and for its history behind an ordinal. Raises InvalidRequest."""
    return checked(ReadRun, run_id=id_of_run(run), after=after, history=history)


def what_if(
    run: RunReference,
    state: ProposedState,
    *,
    force: bool,
    api_version: str | None,
    lease: Duration | None,
    executor: str | None,
    priority: int,
) -> WhatIf:
    """Return the question which verdict a proposal would get. Raises InvalidRequest."""
    if lease is not None or executor is not None:
        state = _leased(state, lease, executor)
    return checked(
        WhatIf, run_id=id_of_run(run), state=state, force=force, api_version=api_version, priority=priority or None
    )


def explain(partition: int, proposal_id: UUID, run_id: UUID | None) -> Explain:
    """Return the question why a proposal was decided as it was."""
    return Explain(partition=partition, proposal_id=proposal_id, run_id=run_id)


def read_timeline(run: RunReference, after: TimelineCursor | None = None) -> ReadTimeline:
    """Return the request for what happened to a run, behind a place. Raises InvalidRequest."""
    return ReadTimeline(run_id=id_of_run(run), after=TimelineCursor() if after is None else after)


def read_events(partition: int, after: int) -> ReadEvents:
    """Return the request for a partition's events behind a position."""
    return ReadEvents(partition=partition, after=after)


def find_position(partition: int, since: datetime | None) -> FindPosition:
    """Return the request for the position before a partition's first change that is not older than a moment."""
    return FindPosition(partition=partition, since=since)


def event_filter(*, run: RunReference | None, tree: RunReference | int | None, **wanted: Any) -> EventFilter:
    """Return which events are wanted; of a tree, any of its runs may be named, or its tag. Raises InvalidRequest."""
    return EventFilter(
        run=None if run is None else id_of_run(run),
        tree=tree if tree is None or isinstance(tree, int) else tree_tag(id_of_run(tree, "tree")),
        **wanted,
    )


def open_subscription(name: str, wanted: EventFilter, max_tries: int | None) -> OpenSubscription:
    """Return the request that a named subscription exist. Raises InvalidRequest."""
    return checked(OpenSubscription, name=name, filter=wanted, max_tries=max_tries)


def join_subscription(name: str, member: str, instance: UUID) -> SyncSubscription:
    """Return the first word of a member. Raises InvalidRequest."""
    return checked(SyncSubscription, name=name, member=member, instance=instance, joins=True)


def read_subscription(name: str) -> ReadSubscription:
    """Return the request for a named subscription. Raises InvalidRequest."""
    return checked(ReadSubscription, name=name)


def read_subscriptions(partition: int, after: str) -> ReadSubscriptions:
    """Return the request for the named subscriptions behind a name."""
    return ReadSubscriptions(partition=partition, after=after)


def remove_subscription(name: str) -> RemoveSubscription:
    """Return the request that a named subscription be removed. Raises InvalidRequest."""
    return checked(RemoveSubscription, name=name)


def reset_subscription(name: str, positions: Mapping[int, int]) -> ResetSubscription:
    """Return the request that a named subscription go on behind these positions. Raises InvalidRequest."""
    return checked(ResetSubscription, name=name, positions=pairs_of(positions))


def settle_dead_letters(
    name: str, letters: Iterable[DeadLetter | UUID | str] | None, *, deliver_again: bool
) -> SettleDeadLetters:
    """Return the request that dead letters, or all of them, be delivered again or dropped. Raises InvalidRequest."""
    event_ids = None
    if letters is not None:
        event_ids = tuple(
            letter.event_id if isinstance(letter, DeadLetter) else _uuid_of(letter, "letters") for letter in letters
        )
    return checked(SettleDeadLetters, name=name, deliver_again=deliver_again, event_ids=event_ids)


def set_limit(
    tag: str | None,
    concurrency_limit: int | EllipsisType | None,
    *,
    name: str | None = None,
    deployment_id: UUID | str | None = None,
    period: Duration | None = None,
    lease: Duration | None = None,
) -> SetLimit:
    """Return the request that there be a limit on one of the three, or none. Raises InvalidRequest."""
    if concurrency_limit is ...:
        raise InvalidRequest("concurrency_limit", "must be given; None removes the limit")
    if concurrency_limit is None:
        for argument, given in {"period": period, "lease": lease}.items():
            if given is not None:
                raise InvalidRequest(argument, "a limit that is removed, because concurrency_limit is None, has none")
    named = _name_of(tag, name, deployment_id)
    return checked(SetLimit, **named, concurrency_limit=concurrency_limit, period_seconds=period, lease_seconds=lease)


def read_limit(tag: str | None, *, name: str | None = None, deployment_id: UUID | str | None = None) -> ReadLimit:
    """Return the request for the limit on one of the three. Raises InvalidRequest."""
    return checked(ReadLimit, **_name_of(tag, name, deployment_id))


def read_limits(partition: int, after: int) -> ReadLimits:
    """Return the request for the limits behind a place."""
    return ReadLimits(partition=partition, after=after)


def _name_of(tag: str | None, name: str | None, deployment_id: UUID | str | None) -> dict[str, object]:
    limit = {"tag": tag, "name": name, "deployment_id": deployment_id}
    given = [argument for argument, value in limit.items() if value is not None]
    if len(given) != 1:
        raise InvalidRequest(given[-1] if given else "tag", ONE_OF_THREE)
    if deployment_id is not None:
        return {"deployment_id": _uuid_of(deployment_id, "deployment_id")}
    return {given[0]: limit[given[0]]}


def options_of(number: int, proposal: Any) -> dict[str, Any]:
    """Return what the proposal of that number says for itself. Raises InvalidRequest for what is no proposal."""
    try:
        given = Proposal(*proposal)
    except TypeError:
        raise InvalidRequest(
            f"proposals.{number}", f"must be a Proposal or a pair of a run and a state, not {_shown(proposal)}"
        ) from None
    return {name: value for name, value in given._asdict().items() if value is not None}


def body_of(message: Request, most: int) -> bytes:
    """Return the request as JSON. Raises MessageTooLarge where that takes more than `most` bytes."""
    return within(encode(message), most)


def within(body: bytes, most: int) -> bytes:
    """Return the body of a message. Raises MessageTooLarge where it has more than `most` bytes."""
    if len(body) > most:
        raise MessageTooLarge(len(body), most)
    return body


def id_of_run(run: RunReference, argument: str = "run") -> UUID:
    """Return the id of the run that is meant. Raises InvalidRequest, naming the argument, where none is."""
    if isinstance(run, AboutRun):
        return run.run_id
    return run.id if isinstance(run, Run) else _uuid_of(run, argument)


def name_of_client(name: str) -> str:
    """Return the name of a client. Raises InvalidRequest for what is none."""
    if isinstance(name, str) and _NAME_OF_CLIENT.match(name):
        return name
    raise InvalidRequest("name", f"must be 1 to 64 letters, digits, '_', '.' or '-', not {_shown(name)}")


def id_of_proposal(proposal_id: UUID | str) -> UUID:
    """Return the id that a proposal was given. Raises InvalidRequest for what is none."""
    return _uuid_of(proposal_id, "proposal_id")


def seconds_of(timeout: Duration, argument: str = "timeout") -> float:
    """Return the seconds of a timeout. Raises InvalidRequest, naming the argument, unless they are 0 or more."""
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if isinstance(seconds, int | float) and seconds >= 0:
        return seconds
    raise InvalidRequest(argument, f"must be 0 seconds or more, not {_shown(timeout)}")


def at_least_one(number: int, argument: str) -> int:
    """Return the number. Raises InvalidRequest, naming the argument, unless it is 1 or more."""
    if isinstance(number, int) and number >= 1:
        return number
    raise InvalidRequest(argument, f"must be 1 or more, not {_shown(number)}")


def a_partition(partition: int, partitions: int) -> int:
    """Return the partition. Raises InvalidRequest unless the deployment, which has so many, has it."""
    if isinstance(partition, int) and 0 <= partition < partitions:
        return partition
    raise InvalidRequest("partition", f"must be one of 0 to {partitions - 1}, not {_shown(partition)}")


def body_of_letter(letter: DeadRequest) -> bytes:
    """Return the message of a dead letter. Raises InvalidRequest where the letter has not all of it."""
    if letter.is_whole:
        return letter.message.encode()
    raise InvalidRequest(
        "letter",
        f"the message had {letter.size} bytes, of which its beginning alone is kept; so it cannot be sent again, and"
        " its producer must do that",
    )


def _leased(state: ProposedState, lease: Duration | None, executor: str | None) -> ProposedState:
    if not state.is_running():
        raise InvalidRequest("lease", f"only RUNNING has a lease, not {state.type}")
    terms = {"lease": lease, "executor": executor}
    given = {name: term for name, term in terms.items() if term is not None}
    return state.replaced(state_details=StateDetails(**{**state.state_details.__dict__, **given}))


def _each(runs: Any) -> Iterable[Any]:
    if isinstance(runs, Iterable):
        return runs
    raise InvalidRequest("runs", f"must be a run or some runs, not {_shown(runs)}")


def _id_of_new_run(ids: IdSource, identity: Identity, parent_id: UUID | None) -> UUID:
    key = identity.idempotency_key
    if identity.run_id is not None:
        if key is not None:
            raise InvalidRequest("run_id", "cannot be given together with an idempotency_key, which makes the run's id")
        return _id_beside(parent_id, _uuid_of(identity.run_id, "run_id"), identity.partitions)
    if key is not None:
        if not isinstance(key, str):
            raise InvalidRequest("idempotency_key", f"must be a text, not {_shown(key)}")
        if (length := len(key)) > MAX_IDEMPOTENCY_KEY_LENGTH:
            problem = f"has {length} characters, at most {MAX_IDEMPOTENCY_KEY_LENGTH} are accepted"
            raise InvalidRequest("idempotency_key", problem)
        return id_from_key(key, parent_id)
    return ids.new(tag=None if parent_id is None else tree_tag(parent_id))


def _id_beside(parent_id: UUID | None, run_id: UUID, partitions: int) -> UUID:
    """Return the run's id when it belongs to the partition of its parent, with which it shares the order of effects."""
    if parent_id is not None:
        its_own, its_parents = partition_of(run_id, partitions), partition_of(parent_id, partitions)
        if its_own != its_parents:
            raise InvalidRequest(
                "run_id",
                f"{run_id} belongs to partition {its_own}, and its parent {parent_id} to partition {its_parents}; let"
                f" it end in the same four hexadecimal digits as its parent's id ({tree_tag(parent_id):04x}), or leave"
                " it out and give an idempotency_key",
            )
    return run_id


def _tuple_of(tags: Sequence[str]) -> object:
    # A text is a sequence of texts as well; left as it is, it is refused with a sentence, like what is none.
    return tuple(tags) if isinstance(tags, Iterable) and not isinstance(tags, str) else tags


def _uuid_of(value: UUID | str, argument: str) -> UUID:
    if isinstance(value, UUID):
        return value
    try:
        return UUID(value)
    except (ValueError, AttributeError, TypeError):
        raise InvalidRequest(argument, f"must be an id (a UUID, also as text), not {_shown(value)}") from None


def _shown(value: object) -> str:
    return repr(value)[:MAX_TEXT_SHOWN]


def checked(message: Callable[..., Message], **fields: Any) -> Message:
    """Return the message with these fields. Raises InvalidRequest, naming the field, where one is wrong."""
    try:
        return message(**fields)
    except ValidationError as error:
        raise InvalidRequest(error) from None
