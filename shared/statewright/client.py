"""The client: create runs, propose states, read, set limits and subscribe, through Redis alone."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from uuid import UUID

from pydantic import ValidationError
from redis.asyncio import Redis
from tenacity import AsyncRetrying, RetryError, retry_if_result, stop_after_delay, wait_fixed

from statewright.channels import REQUEST_ID, REQUEST_MESSAGE, REQUEST_REPLY_TO, Channels
from statewright.connection import DROPPED, connection_pool
from statewright.errors import (
    ConfigurationError,
    InvalidRequest,
    MessageTooLarge,
    PartitionCountMismatch,
    RedisUnavailable,
    StatewrightError,
)
from statewright.ids import IdSource, id_from_key, partition_of, partition_of_tag, tree_tag
from statewright.inbox import Inbox
from statewright.messages import (
    CreateFlowRun,
    CreateTaskRun,
    EventsReply,
    LimitRequest,
    Propose,
    ReadEvents,
    ReadLimit,
    ReadRun,
    Request,
    RunRequest,
    SetLimit,
    encode,
)
from statewright.outbox import Outbox
from statewright.pending import Answer, Pending, PendingRun, Sent
from statewright.runs import ConcurrencyLimit, FlowRun, Run, RunHistory, RunPolicy, TaskRun
from statewright.settings import ClientSettings
from statewright.states import ProposedState
from statewright.subscription import Subscription, positions_from
from statewright.verdicts import Verdict

RunReference = UUID | Run | PendingRun[Any]
"""A run, its id, or a request about it that is still under way."""

PARTITIONS_TIMEOUT_SECONDS: Final = 10.0
PARTITIONS_POLL_SECONDS: Final = 0.05

Message = TypeVar("Message", bound=Request)


class Client:
    """A producer's and a subscriber's view of a deployment; one pool of connections to Redis, nothing else.

    Every request is sent at once and in order, and returns a `Pending`: await it for the answer. What is sent to one
    tree of runs takes effect in the order of the calls, so nothing needs to be awaited in between.

        async with Client() as client:
            run = await client.create_flow_run("nightly")
            verdict = await client.propose(run, State.running())

    Requests raise `MessageTooLarge` before anything is sent. Awaiting an answer raises `NoAnswer` after the timeout,
    `RequestFailed` and its subclasses when the engine refuses, and `RedisUnavailable` when Redis does.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        namespace: str | None = None,
        partitions: int | None = None,
        answer_timeout: float | None = None,
        max_message_bytes: int | None = None,
        ids: IdSource | None = None,
    ) -> None:
        """Take what is given, and the rest from `STATEWRIGHT_*`; raises ConfigurationError on a wrong setting."""
        self._settings = ClientSettings.load(
            redis_url=redis_url,
            namespace=namespace,
            partitions=partitions,
            answer_timeout=answer_timeout,
            max_message_bytes=max_message_bytes,
        )
        self._ids = ids or IdSource()
        self._channels = Channels(self._settings.namespace)
        self._name = self._ids.new().hex
        self._partitions = 0

    async def __aenter__(self) -> Self:
        """Connect. Raises ConfigurationError when no worker has ever run, RedisUnavailable when Redis is away."""
        async with AsyncExitStack() as stack:
            self._redis = Redis(connection_pool=connection_pool(self._settings.redis_url.get_secret_value()))
            stack.push_async_callback(self._redis.aclose, close_connection_pool=True)
            self._partitions = await self._fixed_partitions()
            self._outbox = Outbox(self._redis.connection_pool)
            self._inbox = Inbox(self._redis.connection_pool, self._channels.replies(self._name))
            stack.push_async_callback(self._inbox.close)
            stack.push_async_callback(self._outbox.close, self._settings.answer_timeout)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Disconnect, once Redis holds everything that was sent; what is still unanswered goes on without us."""
        await self._stack.aclose()

    @property
    def partitions(self) -> int:
        """The number of partitions of the deployment."""
        return self._partitions

    def create_flow_run(
        self,
        name: str,
        *,
        flow_id: UUID | None = None,
        deployment_id: UUID | None = None,
        parent_task_run: RunReference | None = None,
        tags: Sequence[str] = (),
        policy: RunPolicy | None = None,
        idempotency_key: str | None = None,
    ) -> PendingRun[FlowRun]:
        """Create a flow run; with `parent_task_run` a subflow. The same idempotency key returns the same run."""
        parent_id = _id_of(parent_task_run) if parent_task_run else None
        message = _checked(
            CreateFlowRun,
            run_id=self._run_id(parent_id, idempotency_key),
            name=name,
            flow_id=flow_id,
            deployment_id=deployment_id,
            parent_task_run_id=parent_id,
            tags=_tuple_of(tags),
            policy=policy or RunPolicy(),
        )
        return self._send_to_run(message, lambda reply: reply.run)

    def create_task_run(
        self,
        name: str,
        *,
        flow_run: RunReference | None = None,
        task_key: str | None = None,
        tags: Sequence[str] = (),
        policy: RunPolicy | None = None,
        idempotency_key: str | None = None,
    ) -> PendingRun[TaskRun]:
        """Create a task run, usually within a flow run, whose order of effects it then shares.

        An idempotency key is unique within the flow run; the same key returns the same task run.
        """
        flow_run_id = _id_of(flow_run) if flow_run else None
        message = _checked(
            CreateTaskRun,
            run_id=self._run_id(flow_run_id, idempotency_key),
            name=name,
            flow_run_id=flow_run_id,
            task_key=task_key,
            tags=_tuple_of(tags),
            policy=policy or RunPolicy(),
        )
        return self._send_to_run(message, lambda reply: reply.run)

    def propose(
        self,
        run: RunReference,
        state: ProposedState,
        *,
        force: bool = False,
        api_version: str | None = None,
        proposal_id: UUID | None = None,
        timeout: float | None = None,
    ) -> PendingRun[Verdict]:
        """Propose that `run` enter `state`.

        `force` applies the minimal policy only. `proposal_id` is the proposal's idempotency key: sent again, it gets
        the verdict that it got before. `timeout` is in seconds; the setting `answer_timeout` is the default.
        """
        message = _checked(Propose, run_id=_id_of(run), state=state, force=force, api_version=api_version)
        return self._send_to_run(message, lambda reply: reply.verdict, proposal_id, timeout)

    async def propose_many(
        self, proposals: Iterable[tuple[RunReference, ProposedState]]
    ) -> list[Verdict | StatewrightError]:
        """Propose many states in one round trip; return a verdict or an error for each, in the order given."""
        pending = [self.propose(run, state) for run, state in proposals]
        answers = await asyncio.gather(*pending, return_exceptions=True)
        return [_verdict_or_error(answer) for answer in answers]

    def read_run(self, run: RunReference) -> PendingRun[RunHistory]:
        """Read a run with its history, as they are after everything sent before to its tree."""
        return self._send_to_run(ReadRun(run_id=_id_of(run)), lambda reply: reply.history)

    def set_limit(self, tag: str, concurrency_limit: int | None) -> Pending[ConcurrencyLimit | None]:
        """Set how many task runs with `tag` may be RUNNING at once; None removes the limit.

        Lowering a limit below its current use stops nobody; it holds from the next proposal on.
        """
        return self._send_to_limit(_checked(SetLimit, tag=tag, concurrency_limit=concurrency_limit))

    def read_limit(self, tag: str) -> Pending[ConcurrencyLimit | None]:
        """Read the limit on `tag` and the runs that hold its slots; None when there is no limit."""
        return self._send_to_limit(_checked(ReadLimit, tag=tag))

    async def subscribe(self, *, since: Mapping[int, int] | Mapping[str, int] | None = None) -> Subscription:
        """Return a subscription to all events from now on, or after the sequence numbers `since` per partition.

        `since` is what `Subscription.positions` was, also after it was JSON. What is behind a position and no longer in
        Redis is asked of the engine, which a subscriber needs a producer's rights for. A partition that `since` leaves
        out is read from its oldest kept event. Raises InvalidRequest when `since` names no partition or no position.
        """
        positions = None if since is None else positions_from(since, self._partitions)
        pool, patience = self._redis.connection_pool, self._settings.answer_timeout
        subscription = Subscription(pool, self._channels, self._read_events, patience)
        await subscription.begin(range(self._partitions), positions)
        return subscription

    def _run_id(self, parent_id: UUID | None, idempotency_key: str | None) -> UUID:
        if idempotency_key is not None:
            return id_from_key(idempotency_key, parent_id)
        return self._ids.new(tag=None if parent_id is None else tree_tag(parent_id))

    def _send_to_run(
        self,
        message: RunRequest,
        read: Callable[[Any], Answer],
        request_id: UUID | None = None,
        timeout: float | None = None,
    ) -> PendingRun[Answer]:
        partition = partition_of(message.run_id, self._partitions)
        return PendingRun(self._send(message, partition, request_id, timeout), read, message.run_id)

    def _read_events(self, partition: int, after: int, seconds: float | None) -> Pending[EventsReply]:
        message = ReadEvents(partition=partition, after=after)
        return Pending(self._send(message, partition, timeout=seconds), lambda reply: reply)

    def _send_to_limit(self, message: LimitRequest) -> Pending[ConcurrencyLimit | None]:
        partition = partition_of_tag(message.tag, self._partitions)
        return Pending(self._send(message, partition), lambda reply: reply.limit)

    def _send(
        self, message: Request, partition: int, request_id: UUID | None = None, timeout: float | None = None
    ) -> Sent:
        body = encode(message)
        if len(body) > self._settings.max_message_bytes:
            raise MessageTooLarge(len(body), self._settings.max_message_bytes)
        request_id = request_id or self._ids.new()
        named = str(request_id).encode()
        fields = {REQUEST_ID: named, REQUEST_REPLY_TO: self._name.encode(), REQUEST_MESSAGE: body}
        reply = self._inbox.expect(named)
        return Sent(
            request_id,
            pushed=self._outbox.put(self._channels.proposals(partition), fields, reply),
            reply=reply,
            timeout=timeout or self._settings.answer_timeout,
        )

    async def _announced_partitions(self) -> bytes:
        announced: bytes = await self._redis.get(self._channels.partitions)
        return announced

    async def _fixed_partitions(self) -> int:
        try:
            actual = int(await _until_announced()(self._announced_partitions))
        except RetryError:
            raise ConfigurationError(
                f"no worker has announced itself in namespace {self._settings.namespace!r} of this Redis within"
                f" {PARTITIONS_TIMEOUT_SECONDS:g} s; start one with `statewright worker` or `statewright dev`"
            ) from None
        except DROPPED as error:
            raise RedisUnavailable(f"cannot reach Redis (STATEWRIGHT_REDIS_URL): {error}") from error
        configured = self._settings.partitions
        if configured not in (None, actual):
            raise PartitionCountMismatch(configured or 0, actual)
        return actual


def _until_announced() -> AsyncRetrying:
    return AsyncRetrying(
        retry=retry_if_result(lambda announced: announced is None),
        wait=wait_fixed(PARTITIONS_POLL_SECONDS),
        stop=stop_after_delay(PARTITIONS_TIMEOUT_SECONDS),
    )


def _tuple_of(tags: Sequence[str]) -> object:
    # A text is a sequence of texts as well; left as it is, it is refused with a sentence.
    return tags if isinstance(tags, str) else tuple(tags)


def _id_of(run: RunReference) -> UUID:
    if isinstance(run, UUID):
        return run
    return run.run_id if isinstance(run, PendingRun) else run.id


def _checked(message: Callable[..., Message], **fields: Any) -> Message:
    try:
        return message(**fields)
    except ValidationError as error:
        raise InvalidRequest(error) from None


def _verdict_or_error(answer: Verdict | BaseException) -> Verdict | StatewrightError:
    if isinstance(answer, Verdict | StatewrightError):
        return answer
    raise answer
