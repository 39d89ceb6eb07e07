"""The client: create and change runs, propose states, read, set limits and subscribe, through Redis alone."""

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from functools import partial
from types import EllipsisType, TracebackType
from typing import Any, Final, Literal, Self, Unpack, cast, overload
from uuid import UUID

from pydantic import ValidationError

from statewright.client import queries, requests
from statewright.client.dead_requests import delete_dead_requests, read_dead_requests
from statewright.client.heart import Heart, Kept
from statewright.client.home import Home
from statewright.client.inbox import Inbox
from statewright.client.leases import Executor, KeepAlive
from statewright.client.outbox import QUERIES, Outbox
from statewright.client.partitions import announced_partitions
from statewright.client.queries import RunFilters
from statewright.client.requests import Identity, LeaseReference, OnWait, Proposal, Pruned, RunReference
from statewright.client.room import Bound
from statewright.client.sent import (
    AboutRun,
    Answer,
    Sent,
    SentCreation,
    SentHistory,
    SentProposal,
    SentRun,
    SentTimeline,
    UnderWay,
)
from statewright.connection import connection_pool
from statewright.errors import InvalidRequest, LeaseLost, NotOpen, StatewrightError, UnreadableAnswer, error_from
from statewright.explanations import Explanation, Timeline
from statewright.ids import IdSource, partition_of, partition_of_subscription
from statewright.limits import ConcurrencyLimit
from statewright.log import LOG, Outage, without_secrets
from statewright.overview import DeadRequest, PartitionStatus, Place, RunPage, RunTree, StateCount, WorkerStatus
from statewright.protocol.channels import REQUEST_ACTOR, REQUEST_ID, REQUEST_MESSAGE, REQUEST_REPLY_TO, Channels
from statewright.protocol.queries import Query, encode_query
from statewright.protocol.replies import (
    DeletedReply,
    ErrorReply,
    EventsReply,
    HeartbeatReply,
    HistoryReply,
    LimitsReply,
    ParkedReply,
    SubscriptionsReply,
    SyncedReply,
    TimelineReply,
    VerdictReply,
    reply_from,
)
from statewright.protocol.requests import (
    Heartbeat,
    LimitRequest,
    OpenSubscription,
    Propose,
    PruneRuns,
    Request,
    RunRequest,
    SubscriptionRequest,
    SyncSubscription,
    TimelineCursor,
)
from statewright.runs import FlowRun, RunHistory, RunKind, RunPolicy, TaskRun
from statewright.settings import ClientSettings
from statewright.states import ProposedState, StateDetails, StateType
from statewright.subscription.filters import Sieve
from statewright.subscription.groups import Engine, NamedSubscription
from statewright.subscription.positions import Since, start_from
from statewright.subscription.status import DeadLetter, SubscriptionStatus
from statewright.subscription.stream import EventStreams, starting_at
from statewright.subscription.unnamed import Subscription
from statewright.values import Duration
from statewright.verdicts import Verdict

DEFAULT_LEASE_SECONDS: Final = 30.0
DEFAULT_PAGE: Final = 100
CANCELLED_SECONDS: Final = 1.0
"""How long a client whose block was cancelled waits until Redis holds what was sent."""
DEFAULT_IN_FLIGHT: Final = 100


class Client:
    """A producer's and a subscriber's view of a deployment; one pool of connections to Redis, nothing else.

    Every request is sent at once and in order, and returns a `Sent`: await it for the answer. What is sent to one
    tree of runs takes effect in the order of the calls, so nothing needs to be awaited in between.

        async with Client() as client:
            run = await client.create_flow_run("nightly")
            verdict = await client.propose(run, State.running())

    A client belongs to the event loop and the process in which it was opened; a process that is forked off opens one of
    its own. While Redis is away, requests wait within the client.

    Requests raise `InvalidRequest`, `MessageTooLarge` and `NotOpen` before anything is sent. Awaiting an answer raises
    `NoAnswer` after the timeout, which says how far the request got; `RequestFailed` and its subclasses when the engine
    refuses, of which `Overloaded` says that the request's partition has too many unanswered ones; and
    `RedisUnavailable` when Redis refuses, of which `NotPermitted` names a right that the Redis user lacks.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        namespace: str | None = None,
        partitions: int | None = None,
        answer_timeout: Duration | None = None,
        max_message_bytes: int | None = None,
        max_backlog: int | None = None,
        max_backlog_bytes: int | None = None,
        wait_for_room: Duration | None = None,
        name: str | None = None,
        actor: str | None = None,
        ids: IdSource | None = None,
    ) -> None:
        """Take what is given, and the rest from `STATEWRIGHT_*`; raises ConfigurationError on a wrong setting.

        With a `name` (1 to 64 letters, digits, '_', '.' or '-'), the answers that come while the client is away are
        there when it is opened again, also by another process: see `unclaimed`. One client at a time has a name: the
        one that was opened last. One that was opened before, and is open still, gets no answers from then on, and its
        calls raise NotOpen. So no setting names a client: all clients of a process would have the same name, and
        commands that are run beside it too. Raises InvalidRequest for a wrong name.

        An `actor` says who asks: it is kept with the verdicts on the client's proposals, and told with the states that
        they cause. It is 1 to 128 printable characters, and nobody checks whether it is true.

        Where more than `max_backlog` requests of a partition are unanswered, or where they take more than
        `max_backlog_bytes`, a request waits for room, `wait_for_room` seconds at most, and is refused with `Overloaded`
        before it is sent. Those behind it in its partition wait with it, those of other partitions do not.
        """
        self._settings = ClientSettings.load(
            redis_url=redis_url,
            namespace=namespace,
            partitions=partitions,
            answer_timeout=answer_timeout,
            max_message_bytes=max_message_bytes,
            max_backlog=max_backlog,
            max_backlog_bytes=max_backlog_bytes,
            wait_for_room=wait_for_room,
            actor=actor,
        )
        self._name = None if name is None else requests.name_of_client(name)
        # It goes with every request: telling those apart that change something would take longer.
        self._signature = {} if self._settings.actor is None else {REQUEST_ACTOR: self._settings.actor.encode()}
        self._ids = ids or IdSource()
        self._channels = Channels(self._settings.namespace)
        self._partitions = 0
        self._home: Home | None = None
        """Where the client is open."""
        self._process: int | None = None
        """Who opened it, once it was opened."""

    async def __aenter__(self) -> Self:
        """Connect.

        Raises ConfigurationError when no worker announces itself within `answer_timeout`, RedisUnavailable when Redis
        is away or refuses, and NotOpen when the client is open already.
        """
        if self._home is not None:
            raise NotOpen(f"the client is open already{self._elsewhere()}; make another one")
        async with AsyncExitStack() as stack:
            url = self._settings.redis_url.get_secret_value()
            self._pool = pool = connection_pool(url)
            stack.push_async_callback(pool.aclose)
            self._partitions = await announced_partitions(pool, self._settings)
            self._outage = outage = Outage(url)
            # Only now: a process that was forked off before must not read the same answers.
            reply_to = self._name or self._ids.new().hex
            self._reply_to = reply_to.encode()
            self._inbox = Inbox(pool, self._channels.replies(reply_to), outage, self._name)
            stack.push_async_callback(self._inbox.close)
            if self._name is not None:
                await self._inbox.take_over()
            streams = [self._channels.proposals(partition) for partition in range(self._partitions)]
            streams.append(self._channels.queries)
            bound = Bound(self._settings.max_backlog, self._settings.max_backlog_bytes)
            self._outbox = Outbox(pool, streams, bound, self._settings.wait_for_room, outage)
            stack.push_async_callback(self._outbox.close)
            at_once = requests.runs_per_heartbeat(self._settings.max_message_bytes)
            self._heart = Heart(self._send_heartbeat, self._settings.answer_timeout, at_once)
            stack.push_async_callback(self._heart.close)
            self._stack = stack.pop_all()
        self._home, self._process = Home(), os.getpid()
        LOG.debug("client %s is open: %s, %d partitions", reply_to, without_secrets(url), self._partitions)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Disconnect, once Redis holds everything that was sent; workers carry out what is still unanswered.

        What Redis does not hold after `answer_timeout` seconds, or after one where the block was cancelled, fails with
        NoAnswer, which says whether it was sent. Leaving ends at once when it is cancelled itself.
        """
        self._check_that_it_is_open()
        self._home = None
        is_cancelled = exc_type is not None and issubclass(exc_type, asyncio.CancelledError)
        patience = self._settings.answer_timeout
        try:
            await self._outbox.flush(min(patience, CANCELLED_SECONDS) if is_cancelled else patience)
            await self._inbox.tidy()
        finally:
            await self._stack.aclose()
            LOG.debug("client %s is closed", self._reply_to.decode())

    @property
    def partitions(self) -> int:
        """The number of partitions of the deployment. Raises NotOpen before the client was opened."""
        if self._process is None:
            raise self._not_open()
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
        labels: Mapping[str, str] | None = None,
        state: ProposedState | None = None,
        run_id: UUID | str | None = None,
        idempotency_key: str | None = None,
    ) -> SentCreation[FlowRun]:
        """Create a flow run, with `parent_task_run` a subflow, and return it as it is; `created` says if it is new.

        The same `idempotency_key`, or the same `run_id`, returns the same run. It must come with the same content, else
        the request is refused with RunConflict. A `run_id` must belong to the partition of `parent_task_run`.
        `labels` are the producer's own facts about the run.

        `state` is the run's first state. It is proposed with the creation, in one transaction, and governed like any
        proposal: the run is returned as it is after the verdict. With WAIT or ABORT it is created all the same and has
        no state (`run.state is None`); propose again then. When a rule fails, nothing is created. For a run that exists
        already `state` means nothing, so asking again does not propose it twice.
        """
        message = requests.create_flow_run(
            self._ids,
            Identity(run_id, idempotency_key, self.partitions),
            name,
            flow_id=flow_id,
            deployment_id=deployment_id,
            parent_task_run=parent_task_run,
            tags=tags,
            policy=policy,
            labels=labels,
            state=state,
        )
        return SentCreation(self._send_in_its_tree(message), lambda reply: reply.run, message.run_id)

    def create_task_run(
        self,
        name: str,
        *,
        flow_run: RunReference | None = None,
        task_key: str | None = None,
        tags: Sequence[str] = (),
        policy: RunPolicy | None = None,
        labels: Mapping[str, str] | None = None,
        state: ProposedState | None = None,
        run_id: UUID | str | None = None,
        idempotency_key: str | None = None,
    ) -> SentCreation[TaskRun]:
        """Create a task run, usually within a flow run, whose order of effects it then shares, and return it as it is.

        An idempotency key is unique within the flow run. A `run_id` must belong to the partition of `flow_run`. All
        else is as `create_flow_run` says.
        """
        message = requests.create_task_run(
            self._ids,
            Identity(run_id, idempotency_key, self.partitions),
            name,
            flow_run=flow_run,
            task_key=task_key,
            tags=tags,
            policy=policy,
            labels=labels,
            state=state,
        )
        return SentCreation(self._send_in_its_tree(message), lambda reply: reply.run, message.run_id)

    def update_run(
        self,
        run: RunReference,
        *,
        name: str | None = None,
        tags: Sequence[str] | None = None,
        policy: RunPolicy | None = None,
    ) -> SentRun[FlowRun | TaskRun]:
        """Change a run, and return it as it is then; what is None stays.

        A policy replaces the whole old one, but for the marks that pausing leaves on it, and governs every proposal
        that is sent from now on. Refused with RunConflict, whose `field` says what, when the run is in a terminal
        state, and for its tags and the limits that its policy names while it is RUNNING, because it may hold slots by
        them; with RunNotFound when there is no such run.
        """
        message = requests.update_run(run, name=name, tags=tags, policy=policy)
        return self._send_to_run(message, lambda reply: reply.run)

    def delete_run(self, run: RunReference, *, force: bool = False) -> SentRun[int]:
        """Delete a run with all that is below it, and return how many runs these were.

        From the answer on they do not exist: their histories, verdicts and cached states go with them, and requests
        about them are refused with `RunPruned`. Proposals of theirs that are parked are answered so as well. An
        idempotency key of theirs makes a new run.

        Refused with RunConflict, and nothing is deleted, where one of them has not come to an end; with `force` they
        are deleted all the same, and their slots and leases are free. No event tells of it.
        """
        return self._send_to_run(requests.delete_run(run, force=force), lambda reply: reply.runs)

    async def prune_runs(self, runs: Iterable[RunReference], *, unchanged_since: datetime) -> Pruned:
        """Delete trees that are over, named by their first runs, and return how many trees and runs were deleted.

        A tree stays where one of its runs has not come to an end, or was changed since `unchanged_since`, or has a
        proposal parked; and where a worker has no time for it just now. Name it again then. Raises InvalidRequest, and
        what awaiting an answer raises.
        """
        self._check_that_it_is_open()
        messages = requests.prune_runs(runs, unchanged_since, self._partition_of)
        replies = await asyncio.gather(*(self._send_pruning(message) for message in messages))
        return Pruned(sum(reply.trees for reply in replies), sum(reply.runs for reply in replies))

    def propose(
        self,
        run: RunReference,
        state: ProposedState,
        *,
        force: bool = False,
        api_version: str | None = None,
        proposal_id: UUID | str | None = None,
        lease: Duration | None = None,
        executor: str | None = None,
        timeout: Duration | None = None,
        on_wait: OnWait = "answer",
        priority: int = 0,
        park_timeout: Duration | None = None,
        cascade: bool = False,
    ) -> SentProposal[Verdict]:
        """Propose that `run` enter `state`.

        With a `lease` (seconds, or a duration), RUNNING is good for that time, and must be renewed: see `heartbeat`,
        `keep_alive` and `executor`. With an `executor`, that one's heartbeats renew it.

        `force` applies the minimal policy only. `proposal_id` is the proposal's idempotency key: sent again, it gets
        the verdict that it got before. `timeout` is in seconds, or a duration, from when the answer is awaited; 0 does
        not wait; the setting `answer_timeout` is the default.

        With `on_wait="park"` the engine keeps a proposal that it would tell to WAIT, and answers it when it can be
        decided: at its scheduled time, or when the limits have room, first come, first served within a `priority` (the
        greatest first). After `park_timeout` (seconds or a duration) it is answered WAIT after all. Then the answer is
        awaited as long as the engine says that the proposal is parked, unless there is a `timeout`; `withdraw` ends it.

        With `cascade`, task runs and subflows below a flow run that becomes CANCELLED or CRASHED follow it by force, if
        they have not come to an end themselves, each with an event of its own.
        """
        message = requests.propose(
            run,
            state,
            force=force,
            api_version=api_version,
            lease=lease,
            executor=executor,
            on_wait=on_wait,
            priority=priority,
            park_timeout=park_timeout,
            cascade=cascade,
        )
        request_id = None if proposal_id is None else requests.id_of_proposal(proposal_id)
        seconds = None if timeout is None else requests.seconds_of(timeout)
        under_way = self._send_in_its_tree(message, request_id, seconds)
        sent = SentProposal(under_way, _verdict_of, message.run_id)
        if on_wait == "park":
            sent.may_be_parked(partial(self._ask_again, message, under_way.request_id), seconds)
        return sent

    async def withdraw(self, proposal: AboutRun[Verdict] | UUID | str) -> bool:
        """Withdraw a parked proposal, which is answered with ABORT; return False when it is not parked (any more).

        Where only its id is known, every partition is asked. Raises what awaiting an answer raises.
        """
        if isinstance(proposal, AboutRun):
            proposal_id, partitions = proposal.request_id, [partition_of(proposal.run_id, self.partitions)]
        else:
            proposal_id, partitions = requests.id_of_proposal(proposal), list(range(self.partitions))
        home = self._check_that_it_is_open()
        sent = [self._send(home, requests.withdraw(partition, proposal_id), partition) for partition in partitions]
        answers = await asyncio.gather(*(Sent(under_way, _withdrawn_of).answer() for under_way in sent))
        return any(answers)

    def verdict(
        self, proposal_id: UUID | str, *, run: RunReference | None = None, timeout: Duration | None = None
    ) -> Sent[Verdict | ParkedReply | None]:
        """Ask what became of a proposal whose answer was missed; return its verdict.

        Return a `ParkedReply`, which says since when and why, while the proposal is parked, and None when the engine
        does not know it. Asking changes nothing: a proposal that comes later is decided as usual. Awaiting the answer
        raises the RequestFailed with which the proposal itself was refused, under the proposal's id; and what awaiting
        any answer does.

        Name the proposal's `run`, and the engine looks after everything that was pushed to its tree before. Otherwise
        any partition looks into the ledger at once, and does not know of a proposal that is still under way. Of a named
        run that was deleted it raises RunPruned: its verdicts went with it. `timeout` is as in `propose`.
        """
        home = self._check_that_it_is_open()
        named = requests.id_of_proposal(proposal_id)
        run_id = None if run is None else requests.id_of_run(run)
        partition = self._any_partition() if run_id is None else self._partition_of(run_id)
        seconds = None if timeout is None else requests.seconds_of(timeout)
        message = requests.read_verdict(partition, named, run_id)
        return Sent(self._send(home, message, partition, timeout=seconds), partial(self._known_of, named))

    def _known_of(self, proposal_id: UUID, known: Any) -> Verdict | ParkedReply | None:
        reply: VerdictReply | ParkedReply | ErrorReply | None = known.reply
        if not isinstance(reply, VerdictReply | ErrorReply):
            return reply
        # Its own answer may have come meanwhile.
        self._claim(proposal_id)
        if isinstance(reply, ErrorReply):
            raise error_from(reply, proposal_id)
        return reply.verdict

    def explain(
        self, proposal_id: UUID | str, *, run: RunReference | None = None, timeout: Duration | None = None
    ) -> Sent[Explanation | None]:
        """Ask why a proposal was decided as it was, or why it is parked: rule by rule, what each saw and decided.

        That is kept of what was not accepted (`source` says so); of what was accepted, only which rules took part. A
        parked proposal is told with the limits that it waits for, and how many wait before it. Return None when the
        engine does not know the proposal. Awaiting the answer raises the RequestFailed with which the proposal was
        refused. `run` and `timeout` are as in `verdict`.
        """
        home = self._check_that_it_is_open()
        named = requests.id_of_proposal(proposal_id)
        run_id = None if run is None else requests.id_of_run(run)
        partition = self._any_partition() if run_id is None else self._partition_of(run_id)
        seconds = None if timeout is None else requests.seconds_of(timeout)
        message = requests.explain(partition, named, run_id)
        return Sent(self._send(home, message, partition, timeout=seconds), _explanation_of)

    def what_if(
        self,
        run: RunReference,
        state: ProposedState,
        *,
        force: bool = False,
        api_version: str | None = None,
        lease: Duration | None = None,
        executor: str | None = None,
        priority: int = 0,
        timeout: Duration | None = None,
    ) -> SentRun[Explanation]:
        """Ask which verdict a proposal would get now, and why, after everything sent before to the run's tree.

        It is decided like a proposal, and undone: nothing is kept or told, and no slot is taken. A user's rules govern
        it as well, and what they write through their session is undone; `context.is_what_if` tells them. Raises what
        proposing raises. The options are those of `propose` on which a verdict depends.
        """
        message = requests.what_if(
            run, state, force=force, api_version=api_version, lease=lease, executor=executor, priority=priority
        )
        seconds = None if timeout is None else requests.seconds_of(timeout)
        return self._send_to_run(message, _explanation_of, timeout=seconds)

    def timeline(self, run: RunReference) -> SentRun[Timeline]:
        """Read what happened to a run, after everything sent before to its tree: its states, the verdicts on its
        proposals, the times in which they were parked, the slots that it holds, its leases; in one order.

        A long one comes in several answers, each of which may take `answer_timeout` seconds.
        """
        message = requests.read_timeline(run)
        under_way = self._send_in_its_tree(message)
        return SentTimeline(under_way, message.run_id, partial(self._page_of_timeline, message.run_id))

    def _claim(self, proposal_id: UUID) -> None:
        self._inbox.claim(str(proposal_id).encode())

    def unclaimed(self) -> Iterator[Verdict | StatewrightError]:
        """Yield the answers to proposals that nobody awaits here, oldest first: a verdict, or the error of a refusal.

        They are those that came while the client of this name was away, or for which nobody has waited long enough.
        Those that are asked for again, by `verdict` or under the same `proposal_id`, are not among them. Each is
        forgotten when the next one is taken. What an earlier process has received, but not deleted before it died, is
        told again: know it by its `proposal_id` (`request_id` of an error). A client without a name keeps none.

        The newest 10,000 are kept, 16 MiB at most; what Redis or the client no longer keeps, `verdict` still finds.
        """
        self._check_that_it_is_open()
        return map(_claimed, self._inbox.unclaimed())

    async def propose_many(
        self,
        proposals: Iterable[Proposal | tuple[RunReference, ProposedState]],
        *,
        force: bool = False,
        api_version: str | None = None,
        timeout: Duration | None = None,
        on_wait: OnWait = "answer",
        priority: int = 0,
        park_timeout: Duration | None = None,
    ) -> list[Verdict | StatewrightError]:
        """Propose many states in one round trip; return a verdict or an error for each, in the order given.

        Each is a pair of a run and a state, or a `Proposal`, whose own options override those given for all. A wrong
        one becomes an error in its place, and the others are sent all the same.
        """
        self._check_that_it_is_open()
        options = {"force": force, "api_version": api_version, "timeout": timeout}
        options |= {"on_wait": on_wait, "priority": priority, "park_timeout": park_timeout}
        sent = [self._proposed(number, proposal, options) for number, proposal in enumerate(list(proposals))]
        answers = iter(await asyncio.gather(*(one for one in sent if isinstance(one, Sent)), return_exceptions=True))
        return [_verdict_or_error(next(answers)) if isinstance(one, Sent) else one for one in sent]

    @overload
    def read_run(self, run: RunReference, *, history: Literal[True] = True) -> SentRun[RunHistory]: ...

    @overload
    def read_run(self, run: RunReference, *, history: Literal[False]) -> SentRun[FlowRun | TaskRun]: ...

    def read_run(self, run: RunReference, *, history: bool = True) -> SentRun[RunHistory] | SentRun[FlowRun | TaskRun]:
        """Read a run with its whole history, as they are after everything sent before to its tree.

        A long history comes in several answers, each of which may take `answer_timeout` seconds. Without `history` the
        answer is the run alone, and no history is read for it.
        """
        message = requests.read_run(run, history=history)
        if not message.history:
            return self._send_to_run(message, lambda reply: reply.run)
        first = self._send_in_its_tree(message)
        return SentHistory(first, message.run_id, partial(self._page_of_history, message.run_id))

    async def heartbeat(
        self, runs: LeaseReference | Iterable[LeaseReference], *, timeout: Duration | None = None
    ) -> list[LeaseLost]:
        """Renew the leases of a run or of many, each for as long as it was given; return those that are lost.

        A lease is lost once its run has left the RUNNING that it was given for, and where it is an executor's. A run is
        named like everywhere; where its verdict is given instead, another one's lease on the run is not renewed. Raises
        what awaiting any request does, when a part of the runs could not be asked about.
        """
        self._check_that_it_is_open()
        seconds = None if timeout is None else requests.seconds_of(timeout)
        at_once = requests.runs_per_heartbeat(self._settings.max_message_bytes)
        messages = requests.heartbeats(runs, self._partition_of, at_once)
        replies = await asyncio.gather(*(self._send_heartbeat(message, seconds) for message in messages))
        return [LeaseLost.told(lost) for reply in replies for lost in reply.lost]

    def keep_alive(self, run: LeaseReference, lease: Duration | None = None) -> KeepAlive:
        """Return what renews the run's lease while its `async with` block runs, every third of the lease.

        When the run is no longer the block's own (it was cancelled, has crashed, was taken over, was ended), the block
        is cancelled and `LeaseLost` is raised; also when no heartbeat was answered until the lease must have ended. So
        leave the block before you propose the run's end.

            verdict = await client.propose(run, State.running(), lease=30)
            async with client.keep_alive(verdict):
                ...

        Where neither `run` is the verdict nor `lease` is given, entering the block asks the engine how long it is.
        """
        self._check_that_it_is_open()
        run_id, state_id = requests.lease_of(run)
        seconds = None if lease is None else requests.lease_seconds(lease)
        if seconds is None and isinstance(run, Verdict) and run.state is not None:
            seconds = run.state.state_details.lease
        kept = Kept(run_id, self._partition_of(run_id), None, state_id, seconds)
        return KeepAlive(self._heart, kept)

    def executor(
        self,
        name: str,
        *,
        lease: Duration = DEFAULT_LEASE_SECONDS,
        on_lost: Callable[[LeaseLost], object] | None = None,
    ) -> Executor:
        """Return an executor, which holds many runs under one lease while its `async with` block runs.

        Its name must be its own: a host and a process, for example. When it falls silent, all its runs are CRASHED. It
        sends one heartbeat for each partition that has runs of it. `on_lost` is called with `LeaseLost` for each run
        that is no longer its own; it must not block, because it is called by the event loop.
        """
        self._check_that_it_is_open()
        seconds = requests.lease_seconds(lease)
        # Refused now, and not with the first run.
        StateDetails(lease=seconds, executor=name)
        return Executor(
            name, seconds, on_lost, heart=self._heart, propose=self.propose, partition_of=self._partition_of
        )

    def _send_heartbeat(self, message: Heartbeat, timeout: float | None) -> Sent[HeartbeatReply]:
        home = self._check_that_it_is_open()
        return Sent(self._send(home, message, message.partition, timeout=timeout), lambda reply: reply)

    def _send_pruning(self, message: PruneRuns) -> Sent[DeletedReply]:
        home = self._check_that_it_is_open()
        return Sent(self._send(home, message, message.partition), lambda reply: reply)

    def _partition_of(self, run_id: UUID) -> int:
        return partition_of(run_id, self._partitions)

    def _any_partition(self) -> int:
        """Return another partition each time, so that all share what any of them can do."""
        return partition_of(self._ids.new(), self._partitions)

    def set_limit(
        self,
        tag: str | None = None,
        concurrency_limit: int | EllipsisType | None = ...,
        *,
        name: str | None = None,
        deployment_id: UUID | str | None = None,
        period: Duration | None = None,
        lease: Duration | None = None,
    ) -> Sent[ConcurrencyLimit | None]:
        """Set how many runs may be RUNNING at once; None removes the limit and frees its slots.

        A limit is on task runs with a `tag`, on runs of either kind that ask for its `name` (`RunPolicy.limits`), or on
        flow runs of a deployment. With a `period` it is a rate: so many runs may become RUNNING in a period, whose
        slots come back one by one. `lease` is the lease of its runs that ask for none. Both are seconds, or durations.

        Lowering a limit below its current use stops nobody; it holds from the next proposal on.
        """
        message = requests.set_limit(
            tag, concurrency_limit, name=name, deployment_id=deployment_id, period=period, lease=lease
        )
        return self._send_to_limit(message)

    def read_limit(
        self, tag: str | None = None, *, name: str | None = None, deployment_id: UUID | str | None = None
    ) -> Sent[ConcurrencyLimit | None]:
        """Read a limit and the runs that hold its slots; None when there is no limit."""
        return self._send_to_limit(requests.read_limit(tag, name=name, deployment_id=deployment_id))

    async def list_limits(self) -> list[ConcurrencyLimit]:
        """Return all limits as they stand, by scope and key, each without its holders and waiters.

        Many come in several answers, each of which may take `answer_timeout` seconds; a limit that is set meanwhile
        may be among them or not. Raises what awaiting an answer does.
        """
        self._check_that_it_is_open()
        partition = self._any_partition()
        found: list[ConcurrencyLimit] = []
        after: int | None = 0
        while after is not None:
            page = await self._read_limits(partition, after)
            found += page.limits
            after = page.next
        return sorted(found, key=lambda limit: (limit.scope, limit.key))

    async def find_runs(
        self, *, limit: int = DEFAULT_PAGE, after: Place | None = None, **filters: Unpack[RunFilters]
    ) -> RunPage:
        """Return a page of the runs that match all `filters` (see `RunFilters`), the newest first, `limit` at most.

            page = await client.find_runs(state_types=["RUNNING"], unchanged_for=3_600)
            while page.next:
                page = await client.find_runs(..., after=page.next)

        Large runs make a page shorter than `limit`; only one without `next` is the last. Any worker answers, beside the
        requests: the page may not show yet what was sent just before. Raises QueryTooSlow when no index helps enough,
        which says what would; QueryFailed when PostgreSQL does not answer; and what awaiting any answer does.
        """
        return await self._ask(lambda seconds: queries.find_runs(seconds, filters, limit, after), _page_of)

    async def count_runs(self, **filters: Unpack[RunFilters]) -> list[StateCount]:
        """Return how many runs match all `filters`, for each kind and state that any of them is in.

        Counting ends at a bound; `or_more` says where. Raises what `find_runs` does.
        """
        return await self._ask(lambda seconds: queries.count_runs(seconds, filters), lambda reply: list(reply.counts))

    async def tree(self, run: RunReference) -> RunTree:
        """Return a run with what is below it, level by level, up to a bound: of a flow run its task runs, of a task run
        its subflows.

        Raises RunNotFound when there is no such run, and what `find_runs` does.
        """
        return await self._ask(lambda seconds: queries.read_tree(seconds, run), _tree_of)

    async def list_workers(self) -> list[WorkerStatus]:
        """Return all workers that are alive, the oldest first, with the partitions that each holds.

        Raises what awaiting an answer does. Where there is no worker, that is NoAnswer.
        """
        return await self._ask(queries.list_workers, lambda reply: list(reply.workers))

    async def list_partitions(self) -> list[PartitionStatus]:
        """Return all partitions as they stand, by number: what waits in each, and what it has got to.

        Raises what awaiting an answer does.
        """
        return await self._ask(queries.list_partitions, lambda reply: list(reply.partitions))

    async def list_dead_requests(
        self, partition: int, *, limit: int = DEFAULT_PAGE, after: str | None = None
    ) -> list[DeadRequest]:
        """Return dead letters of a partition, the oldest first, `limit` at most, behind the one whose entry is `after`:
        requests that could not be carried out.

        They are read from Redis itself, which only operators may (see deploy/redis/users.acl). Raises RedisUnavailable
        when Redis is away or refuses, which is NotPermitted when its user lacks the right.
        """
        self._check_that_it_is_open()
        return await read_dead_requests(
            self._pool,
            self._channels,
            requests.a_partition(partition, self._partitions),
            limit=requests.at_least_one(limit, "limit"),
            after=after,
        )

    async def send_again(self, letter: DeadRequest) -> Verdict | None:
        """Send the request of a dead letter again, and return the verdict, None where it is no proposal.

        It is sent under an id of its own, because the refusal is the one answer to the old one. The letter stays; drop
        it once this has returned. Raises InvalidRequest where the letter has not the whole message, and what awaiting
        an answer raises.
        """
        home = self._check_that_it_is_open()
        body = requests.within(requests.body_of_letter(letter), self._settings.max_message_bytes)
        partition = requests.a_partition(letter.partition, self._partitions)
        under_way = self._push(home, body, partition, None, self._settings.answer_timeout)
        return await Sent(under_way, lambda reply: reply.verdict if isinstance(reply, VerdictReply) else None)

    async def drop_dead_requests(self, letters: Iterable[DeadRequest]) -> int:
        """Delete dead letters, and return how many of them were there. Raises what `list_dead_requests` does."""
        self._check_that_it_is_open()
        entries: dict[int, list[str]] = {}
        for letter in letters:
            entries.setdefault(requests.a_partition(letter.partition, self._partitions), []).append(letter.entry)
        return sum(
            [
                await delete_dead_requests(self._pool, self._channels, partition, some)
                for partition, some in entries.items()
            ]
        )

    @overload
    def subscribe(
        self,
        name: None = None,
        *,
        since: Since = None,
        kinds: RunKind | str | Iterable[RunKind | str] | None = None,
        run: RunReference | None = None,
        tree: RunReference | int | None = None,
        state_types: StateType | str | Iterable[StateType | str] | None = None,
        state_names: str | Iterable[str] | None = None,
        tags: str | Iterable[str] | None = None,
    ) -> Subscription: ...

    @overload
    def subscribe(
        self,
        name: str,
        *,
        member: str | None = None,
        since: Since = None,
        kinds: RunKind | str | Iterable[RunKind | str] | None = None,
        run: RunReference | None = None,
        tree: RunReference | int | None = None,
        state_types: StateType | str | Iterable[StateType | str] | None = None,
        state_names: str | Iterable[str] | None = None,
        tags: str | Iterable[str] | None = None,
        max_tries: int | None = None,
        in_flight: int | None = None,
    ) -> NamedSubscription: ...

    def subscribe(
        self,
        name: str | None = None,
        *,
        member: str | None = None,
        since: Since = None,
        kinds: RunKind | str | Iterable[RunKind | str] | None = None,
        run: RunReference | None = None,
        tree: RunReference | int | None = None,
        state_types: StateType | str | Iterable[StateType | str] | None = None,
        state_names: str | Iterable[str] | None = None,
        tags: str | Iterable[str] | None = None,
        max_tries: int | None = None,
        in_flight: int | None = None,
    ) -> Subscription | NamedSubscription:
        """Return a subscription to events; use it within `async with`, which is when it begins.

        It begins with what is published from then on, or where `since` says: "beginning", with the first event that
        still exists; a moment (a datetime with a zone), with the first that is not older; positions, behind these.
        Positions are what `Subscription.positions` was, also read back from JSON; a partition that they leave out is
        read from its oldest kept event. The subscription asks the engine for events that Redis no longer has, for a
        moment and for the beginning, for which it needs the rights of a producer.

        With a `name` its positions are kept by the engine, and all who subscribe under that name share its events; see
        `NamedSubscription`. Then `since` is for a name that is new: a subscription that exists goes on where it was.
        Its filter must be the same each time. `member` is this process' own name, by which it takes its part up again
        at once when it was killed; without one, others, or its successor, get that some seconds later. An event is
        tried `max_tries` times (5 by default), and `in_flight` of them (100 by default) may be handed out and not
        acknowledged.

        The other arguments are filters. An event is told when it fits each of them, and of several values one: its
        `kinds` of run ("flow-run", "task-run"), its `run`, the `tree` of runs to which a run belongs, and the types,
        names and tags that it tells. For a run or a tree one partition's stream alone is read; the rest is tested
        here, before an event is decoded. Positions pass over what is not told.

        Raises InvalidRequest when an argument is not what it should be.
        """
        self._check_that_it_is_open()
        start = start_from(since, self._partitions)
        wanted = requests.event_filter(
            kinds=kinds, run=run, tree=tree, state_types=state_types, state_names=state_names, tags=tags
        )
        if name is None:
            for argument, given in {"member": member, "max_tries": max_tries, "in_flight": in_flight}.items():
                if given is not None:
                    raise InvalidRequest(
                        argument,
                        "is for a subscription with a name; subscribe under one, as in"
                        f' subscribe("billing", {argument}={given!r}), or leave it out',
                    )
            partitions = wanted.partitions(self._partitions)
            return Subscription(self._streams(), self._find_position, partitions, start, Sieve(wanted))
        instance = self._ids.new()
        return NamedSubscription(
            requests.open_subscription(name, wanted, max_tries),
            requests.join_subscription(name, instance.hex if member is None else member, instance),
            engine=Engine(self._read_events, self._find_position, self._open_subscription, self._send_word),
            streams=self._streams(),
            partitions=self._partitions,
            since=start,
            in_flight=requests.at_least_one(DEFAULT_IN_FLIGHT if in_flight is None else in_flight, "in_flight"),
            patience=self._settings.answer_timeout,
        )

    def read_subscription(self, name: str) -> Sent[SubscriptionStatus | None]:
        """Read a named subscription: its positions and how far they lag, its members, and its first 100 dead letters;
        None when there is none."""
        return self._send_to_subscription(requests.read_subscription(name), lambda reply: reply.subscription)

    async def list_subscriptions(self) -> list[SubscriptionStatus]:
        """Return all named subscriptions, by name, each without its shares, members and dead letters.

        Many come in several answers, each of which may take `answer_timeout` seconds. Raises what awaiting an answer
        does.
        """
        home = self._check_that_it_is_open()
        partition = partition_of(self._ids.new(), self._partitions)
        found: list[SubscriptionStatus] = []
        after: str | None = ""
        while after is not None:
            under_way = self._send(home, requests.read_subscriptions(partition, after), partition)
            page: SubscriptionsReply = await Sent(under_way, lambda reply: reply)
            found += page.subscriptions
            after = page.next
        return found

    def remove_subscription(self, name: str) -> Sent[SubscriptionStatus | None]:
        """Remove a named subscription with its positions and dead letters, and return it as it was, None when there was
        none. Its members are told (SubscriptionNotFound)."""
        return self._send_to_subscription(requests.remove_subscription(name), lambda reply: reply.subscription)

    async def reset_subscription(self, name: str, since: Since) -> SubscriptionStatus:
        """Let a named subscription go on elsewhere: `since` is what it is for `subscribe`, and None means behind all
        that is published. Partitions that positions leave out stay as they are.

        Its members drop what they have not acknowledged. Raises SubscriptionNotFound when there is no such
        subscription, InvalidRequest when `since` names no position, and what awaiting an answer raises.
        """
        self._check_that_it_is_open()
        start = start_from(since, self._partitions)
        if isinstance(start, dict):
            positions = start
        else:
            streams = self._streams()()
            try:
                positions = await starting_at(start, range(self._partitions), streams, self._find_position)
            finally:
                await streams.close()
        message = requests.reset_subscription(name, positions)
        return await self._send_to_subscription(message, lambda reply: reply.subscription)

    def retry_dead_letters(self, name: str, letters: Iterable[DeadLetter | UUID | str] | None = None) -> Sent[int]:
        """Let dead letters of a named subscription be delivered again, all or those of some events; return how many.

        Raises SubscriptionNotFound when there is no such subscription.
        """
        message = requests.settle_dead_letters(name, letters, deliver_again=True)
        return self._send_to_subscription(message, lambda reply: reply.count)

    def drop_dead_letters(self, name: str, letters: Iterable[DeadLetter | UUID | str] | None = None) -> Sent[int]:
        """Drop dead letters of a named subscription, all or those of some events; return how many there were.

        Raises SubscriptionNotFound when there is no such subscription.
        """
        message = requests.settle_dead_letters(name, letters, deliver_again=False)
        return self._send_to_subscription(message, lambda reply: reply.count)

    async def _open_subscription(self, message: OpenSubscription) -> int:
        opened: SubscriptionStatus = await self._send_to_subscription(message, lambda reply: reply.subscription)
        return opened.max_tries

    def _send_word(self, message: SyncSubscription, seconds: float) -> Sent[SyncedReply]:
        return self._send_to_subscription(message, lambda reply: reply, seconds)

    def _send_to_subscription(
        self, message: SubscriptionRequest, read: Callable[[Any], Answer], timeout: float | None = None
    ) -> Sent[Answer]:
        home = self._check_that_it_is_open()
        partition = partition_of_subscription(message.name, self._partitions)
        return Sent(self._send(home, message, partition, timeout=timeout), read)

    def _streams(self) -> Callable[[], EventStreams]:
        patience = self._settings.answer_timeout
        return partial(EventStreams, self._pool, self._channels, self._read_events, patience, self._outage)

    async def _find_position(self, partition: int, since: datetime | None) -> int:
        home = self._check_that_it_is_open()
        under_way = self._send(home, requests.find_position(partition, since), partition)
        position: int = await Sent(under_way, lambda reply: reply.position)
        return position

    async def _ask(self, query_of: Callable[[float], Query], read: Callable[[Any], Answer]) -> Answer:
        """Return what `read` makes of the reply to a query, which is made of the seconds that it is waited for."""
        home = self._check_that_it_is_open()
        seconds = self._settings.answer_timeout
        body = requests.within(encode_query(query_of(seconds)), self._settings.max_message_bytes)
        return await Sent(self._push(home, body, QUERIES, None, seconds), read).answer()

    def _send_to_run(
        self,
        message: RunRequest,
        read: Callable[[Any], Answer],
        request_id: UUID | None = None,
        timeout: float | None = None,
    ) -> SentRun[Answer]:
        return SentRun(self._send_in_its_tree(message, request_id, timeout), read, message.run_id)

    def _send_in_its_tree(
        self, message: RunRequest, request_id: UUID | None = None, timeout: float | None = None
    ) -> UnderWay:
        home = self._check_that_it_is_open()
        return self._send(home, message, partition_of(message.run_id, self._partitions), request_id, timeout)

    def _page_of_history(self, run_id: UUID, after: int) -> Sent[HistoryReply]:
        return Sent(self._send_in_its_tree(requests.read_run(run_id, after=after)), lambda reply: reply)

    def _page_of_timeline(self, run_id: UUID, after: TimelineCursor) -> Sent[TimelineReply]:
        return Sent(self._send_in_its_tree(requests.read_timeline(run_id, after)), lambda reply: reply)

    def _read_events(self, partition: int, after: int, seconds: float | None) -> Sent[EventsReply]:
        home = self._check_that_it_is_open()
        message = requests.read_events(partition, after)
        return Sent(self._send(home, message, partition, timeout=seconds), lambda reply: reply)

    def _read_limits(self, partition: int, after: int) -> Sent[LimitsReply]:
        home = self._check_that_it_is_open()
        return Sent(self._send(home, requests.read_limits(partition, after), partition), lambda reply: reply)

    def _send_to_limit(self, message: LimitRequest) -> Sent[ConcurrencyLimit | None]:
        home = self._check_that_it_is_open()
        return Sent(self._send(home, message, message.limit.partition(self._partitions)), lambda reply: reply.limit)

    def _send(
        self, home: Home, message: Request, partition: int, request_id: UUID | None = None, timeout: float | None = None
    ) -> UnderWay:
        body = requests.body_of(message, self._settings.max_message_bytes)
        return self._push(home, body, partition, request_id, timeout)

    def _push(
        self, home: Home, body: bytes, partition: int, request_id: UUID | None, timeout: float | None
    ) -> UnderWay:
        request_id = request_id or self._ids.new()
        named = str(request_id).encode()
        reply = self._inbox.expect(named)
        pushed = self._put(partition, named, body, reply)
        seconds = self._settings.answer_timeout if timeout is None else timeout
        return UnderWay(request_id, pushed, reply, seconds, self._outbox.delivery_of, home)

    def _put(
        self, partition: int, request_id: bytes, body: bytes, reply: "asyncio.Future[bytes]"
    ) -> "asyncio.Future[StatewrightError | None]":
        fields = {REQUEST_ID: request_id, REQUEST_REPLY_TO: self._reply_to, **self._signature, REQUEST_MESSAGE: body}
        return self._outbox.put(partition, fields, len(body), reply)

    def _ask_again(self, message: Propose, request_id: UUID) -> None:
        """Send a proposal once more. When Redis refuses that, it is no answer: who waits for the first goes on."""
        home = self._check_that_it_is_open()
        body = requests.body_of(message, self._settings.max_message_bytes)
        nobodys: asyncio.Future[bytes] = home.loop.create_future()
        nobodys.add_done_callback(lambda refused: refused.cancelled() or refused.exception())
        self._put(partition_of(message.run_id, self._partitions), str(request_id).encode(), body, nobodys)

    def _proposed(
        self, number: int, proposal: Any, options: dict[str, Any]
    ) -> SentProposal[Verdict] | StatewrightError:
        try:
            return self.propose(**{**options, **requests.options_of(number, proposal)})
        except StatewrightError as error:
            return error

    def _check_that_it_is_open(self) -> Home:
        """Return where the client is open, which is here. Raises NotOpen where it is not."""
        if self._home is None or not self._home.is_here():
            raise self._not_open()
        return self._home

    def _not_open(self) -> NotOpen:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return NotOpen("a client is used within the event loop in which it was opened; none is running here")
        if self._process is None:
            return NotOpen("the client is not open yet: use it within `async with Client() as client:`")
        if self._home is None and self._process == os.getpid():
            return NotOpen("the client is closed: use it within its `async with`, or open it again")
        return NotOpen(f"the client was opened{self._elsewhere()}; open one of its own here")

    def _elsewhere(self) -> str:
        if self._process != os.getpid():
            return " in another process"
        return "" if self._home is not None and self._home.is_here() else " in another event loop"


def _verdict_of(reply: Any) -> Verdict:
    verdict: Verdict = reply.verdict
    return verdict


def _page_of(reply: Any) -> RunPage:
    page: RunPage = reply.page
    return page


def _tree_of(reply: Any) -> RunTree:
    tree: RunTree = reply.tree
    return tree


def _explanation_of(reply: Any) -> Any:
    if reply.refusal is not None:
        raise error_from(reply.refusal, reply.proposal_id)
    return reply.explanation


def _withdrawn_of(reply: Any) -> bool:
    withdrawn: bool = reply.withdrawn
    return withdrawn


def _claimed(unclaimed: tuple[bytes, bytes]) -> Verdict | StatewrightError:
    request_id, body = UUID(unclaimed[0].decode()), unclaimed[1]
    try:
        reply = reply_from(body)
    except ValidationError as error:
        return UnreadableAnswer(request_id, str(error))
    return reply.verdict if isinstance(reply, VerdictReply) else error_from(cast("ErrorReply", reply), request_id)


def _verdict_or_error(answer: Verdict | BaseException) -> Verdict | StatewrightError:
    if isinstance(answer, Verdict | StatewrightError):
        return answer
    raise answer
