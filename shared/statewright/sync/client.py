"""The client for code without an event loop.

This file is made by `make sync` out of `statewright/client/client.py`, which is where to change it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import EllipsisType
from typing import Any, Literal, Unpack, cast, overload
from uuid import UUID

from statewright.client.client import DEFAULT_LEASE_SECONDS, DEFAULT_PAGE
from statewright.client.queries import RunFilters
from statewright.client.requests import LeaseReference, OnWait, Proposal, Pruned, RunReference
from statewright.client.sent import AboutRun
from statewright.errors import LeaseLost, StatewrightError
from statewright.explanations import Explanation, Timeline
from statewright.ids import IdSource
from statewright.limits import ConcurrencyLimit
from statewright.overview import DeadRequest, PartitionStatus, Place, RunPage, RunTree, StateCount, WorkerStatus
from statewright.protocol.replies import ParkedReply
from statewright.runs import FlowRun, RunHistory, RunKind, RunPolicy, TaskRun
from statewright.states import ProposedState, StateType
from statewright.subscription.positions import Since
from statewright.subscription.status import DeadLetter, SubscriptionStatus
from statewright.sync.blocks import each, listed
from statewright.sync.crossing import CrossingClient
from statewright.sync.leases import Apart, Executor, KeepAlive
from statewright.sync.opening import OpenedByUse
from statewright.sync.sent import Sent, SentCreation, SentProposal, SentRun, under_way
from statewright.sync.subscription import NamedSubscription, Subscription, subscribed
from statewright.values import Duration
from statewright.verdicts import Verdict


class Client(OpenedByUse):
    """A producer's and a subscriber's view of a deployment; one pool of connections to Redis, nothing else.

    Every request is sent at once and in order, and returns a `Sent`: its `answer()` waits for the answer. What is
    sent to one tree of runs takes effect in the order of the calls, so nothing needs to be waited for in between.

        with Client() as client:
            run = client.create_flow_run("nightly").answer()
            verdict = client.propose(run, State.running()).answer()

    Any number of threads may use a client at once. It is opened by its `with`, or by its first use, and by that anew
    in each process that is forked off. It closes at the end of its `with`, by `close()`, or at the end of the
    interpreter. A thread in the background sends the requests; while Redis is away, they wait there. Code that has
    an event loop uses `statewright.Client`.

    Requests raise `InvalidRequest`, `MessageTooLarge` and `NotOpen` before anything is sent. Waiting for an answer
    raises `NoAnswer` after the timeout, which says how far the request got; `RequestFailed` and its subclasses when
    the engine refuses, of which `Overloaded` says that the request's partition has too many unanswered ones; and
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
        super().__init__(
            CrossingClient(
                redis_url,
                namespace=namespace,
                partitions=partitions,
                answer_timeout=answer_timeout,
                max_message_bytes=max_message_bytes,
                max_backlog=max_backlog,
                max_backlog_bytes=max_backlog_bytes,
                wait_for_room=wait_for_room,
                name=name,
                actor=actor,
                ids=ids,
            )
        )

    @property
    def partitions(self) -> int:
        """The number of partitions of the deployment. Raises NotOpen when the client is closed."""
        opened = self._opened()
        return opened.partitions

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
        opened = self._opened()
        return under_way(
            self,
            opened.create_flow_run(
                name,
                flow_id=flow_id,
                deployment_id=deployment_id,
                parent_task_run=parent_task_run,
                tags=tags,
                policy=policy,
                labels=labels,
                state=state,
                run_id=run_id,
                idempotency_key=idempotency_key,
            ),
        )

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
        opened = self._opened()
        return under_way(
            self,
            opened.create_task_run(
                name,
                flow_run=flow_run,
                task_key=task_key,
                tags=tags,
                policy=policy,
                labels=labels,
                state=state,
                run_id=run_id,
                idempotency_key=idempotency_key,
            ),
        )

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
        opened = self._opened()
        return under_way(self, opened.update_run(run, name=name, tags=tags, policy=policy))

    def delete_run(self, run: RunReference, *, force: bool = False) -> SentRun[int]:
        """Delete a run with all that is below it, and return how many runs these were.

        From the answer on they do not exist: their histories, verdicts and cached states go with them, and requests
        about them are refused with `RunPruned`. Proposals of theirs that are parked are answered so as well. An
        idempotency key of theirs makes a new run.

        Refused with RunConflict, and nothing is deleted, where one of them has not come to an end; with `force` they
        are deleted all the same, and their slots and leases are free. No event tells of it.
        """
        opened = self._opened()
        return under_way(self, opened.delete_run(run, force=force))

    def prune_runs(self, runs: Iterable[RunReference], *, unchanged_since: datetime) -> Pruned:
        """Delete trees that are over, named by their first runs, and return how many trees and runs were deleted.

        A tree stays where one of its runs has not come to an end, or was changed since `unchanged_since`, or has a
        proposal parked; and where a worker has no time for it just now. Name it again then. Raises InvalidRequest,
        and what waiting for an answer raises.
        """
        opened = self._opened()
        return opened.background.run(opened.prune_runs, listed(runs), unchanged_since=unchanged_since)

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
        the verdict that it got before. `timeout` is in seconds, or a duration, from when the answer is waited for; 0
        does not wait; the setting `answer_timeout` is the default.

        With `on_wait="park"` the engine keeps a proposal that it would tell to WAIT, and answers it when it can be
        decided: at its scheduled time, or when the limits have room, first come, first served within a `priority`
        (the greatest first). After `park_timeout` (seconds or a duration) it is answered WAIT after all. Then the
        answer is waited for as long as the engine says that the proposal is parked, unless there is a `timeout`;
        `withdraw` ends it.

        With `cascade`, task runs and subflows below a flow run that becomes CANCELLED or CRASHED follow it by force, if
        they have not come to an end themselves, each with an event of its own.
        """
        opened = self._opened()
        return under_way(
            self,
            opened.propose(
                run,
                state,
                force=force,
                api_version=api_version,
                proposal_id=proposal_id,
                lease=lease,
                executor=executor,
                timeout=timeout,
                on_wait=on_wait,
                priority=priority,
                park_timeout=park_timeout,
                cascade=cascade,
            ),
        )

    def withdraw(self, proposal: AboutRun[Verdict] | UUID | str) -> bool:
        """Withdraw a parked proposal, which is answered with ABORT; return False when it is not parked (any more).

        Where only its id is known, every partition is asked. Raises what waiting for an answer raises.
        """
        opened = self._opened()
        return opened.background.run(opened.withdraw, proposal)

    def verdict(
        self, proposal_id: UUID | str, *, run: RunReference | None = None, timeout: Duration | None = None
    ) -> Sent[Verdict | ParkedReply | None]:
        """Ask what became of a proposal whose answer was missed; return its verdict.

        Return a `ParkedReply`, which says since when and why, while the proposal is parked, and None when the engine
        does not know it. Asking changes nothing: a proposal that comes later is decided as usual. Waiting for the
        answer raises the RequestFailed with which the proposal itself was refused, under the proposal's id; and what
        waiting for any answer does.

        Name the proposal's `run`, and the engine looks after everything that was pushed to its tree before. Otherwise
        any partition looks into the ledger at once, and does not know of a proposal that is still under way. Of a named
        run that was deleted it raises RunPruned: its verdicts went with it. `timeout` is as in `propose`.
        """
        opened = self._opened()
        return under_way(self, opened.verdict(proposal_id, run=run, timeout=timeout))

    def explain(
        self, proposal_id: UUID | str, *, run: RunReference | None = None, timeout: Duration | None = None
    ) -> Sent[Explanation | None]:
        """Ask why a proposal was decided as it was, or why it is parked: rule by rule, what each saw and decided.

        That is kept of what was not accepted (`source` says so); of what was accepted, only which rules took part. A
        parked proposal is told with the limits that it waits for, and how many wait before it. Return None when the
        engine does not know the proposal. Waiting for the answer raises the RequestFailed with which the proposal
        was refused. `run` and `timeout` are as in `verdict`.
        """
        opened = self._opened()
        return under_way(self, opened.explain(proposal_id, run=run, timeout=timeout))

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
        opened = self._opened()
        return under_way(
            self,
            opened.what_if(
                run,
                state,
                force=force,
                api_version=api_version,
                lease=lease,
                executor=executor,
                priority=priority,
                timeout=timeout,
            ),
        )

    def timeline(self, run: RunReference) -> SentRun[Timeline]:
        """Read what happened to a run, after everything sent before to its tree: its states, the verdicts on its
        proposals, the times in which they were parked, the slots that it holds, its leases; in one order.

        A long one comes in several answers, each of which may take `answer_timeout` seconds.
        """
        opened = self._opened()
        return under_way(self, opened.timeline(run))

    def unclaimed(self) -> Iterator[Verdict | StatewrightError]:
        """Yield the answers to proposals that nobody waits for here, oldest first: a verdict, or the error of a
        refusal.

        They are those that came while the client of this name was away, or for which nobody has waited long enough.
        Those that are asked for again, by `verdict` or under the same `proposal_id`, are not among them. Each is
        forgotten when the next one is taken. What an earlier process has received, but not deleted before it died, is
        told again: know it by its `proposal_id` (`request_id` of an error). A client without a name keeps none.

        The newest 10,000 are kept, 16 MiB at most; what Redis or the client no longer keeps, `verdict` still finds.
        """
        opened = self._opened()
        return each(self, opened.background, opened.unclaimed)

    def propose_many(
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
        opened = self._opened()
        return opened.background.run(
            opened.propose_many,
            listed(proposals),
            force=force,
            api_version=api_version,
            timeout=timeout,
            on_wait=on_wait,
            priority=priority,
            park_timeout=park_timeout,
        )

    @overload
    def read_run(self, run: RunReference, *, history: Literal[True] = True) -> SentRun[RunHistory]: ...

    @overload
    def read_run(self, run: RunReference, *, history: Literal[False]) -> SentRun[FlowRun | TaskRun]: ...

    def read_run(self, run: RunReference, *, history: bool = True) -> SentRun[RunHistory] | SentRun[FlowRun | TaskRun]:
        """Read a run with its whole history, as they are after everything sent before to its tree.

        A long history comes in several answers, each of which may take `answer_timeout` seconds. Without `history` the
        answer is the run alone, and no history is read for it.
        """
        opened: Any = self._opened()
        return cast(
            "SentRun[RunHistory] | SentRun[FlowRun | TaskRun]", under_way(self, opened.read_run(run, history=history))
        )

    def heartbeat(
        self, runs: LeaseReference | Iterable[LeaseReference], *, timeout: Duration | None = None
    ) -> list[LeaseLost]:
        """Renew the leases of a run or of many, each for as long as it was given; return those that are lost.

        A lease is lost once its run has left the RUNNING that it was given for, and where it is an executor's. A run
        is named like everywhere; where its verdict is given instead, another one's lease on the run is not renewed.
        Raises what waiting for any answer does, when a part of the runs could not be asked about.
        """
        opened = self._opened()
        return opened.background.run(opened.heartbeat, listed(runs), timeout=timeout)

    def keep_alive(self, run: LeaseReference, lease: Duration | None = None) -> KeepAlive:
        """Return what renews the run's lease while its `with` block runs, every third of the lease.

        When the run is no longer the block's own (it was cancelled, has crashed, was taken over, was ended), the
        `lost` of what the block was entered with says so, its `check()` raises `LeaseLost`, and so does the end of
        the block, which nothing can cancel; also when no heartbeat was answered until the lease must have ended. So
        leave the block before you propose the run's end.

            verdict = client.propose(run, State.running(), lease=30).answer()
            with client.keep_alive(verdict):
                ...

        Where neither `run` is the verdict nor `lease` is given, entering the block asks the engine how long it is.
        """
        opened = self._opened()
        return KeepAlive(self, opened.background, opened.background.call(opened.keep_alive, run, lease))

    def executor(
        self,
        name: str,
        *,
        lease: Duration = DEFAULT_LEASE_SECONDS,
        on_lost: Callable[[LeaseLost], object] | None = None,
    ) -> Executor:
        """Return an executor, which holds many runs under one lease while its `with` block runs.

        Its name must be its own: a host and a process, for example. When it falls silent, all its runs are CRASHED.
        It sends one heartbeat for each partition that has runs of it. `on_lost` is called with `LeaseLost` for each
        run that is no longer its own; a thread of its own does that, so it may take its time.
        """
        opened = self._opened()
        return Executor(
            self,
            opened.background,
            opened.background.call(
                opened.executor, name, lease=lease, on_lost=Apart(on_lost) if on_lost is not None else None
            ),
        )

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
        opened = self._opened()
        return under_way(
            self,
            opened.set_limit(
                tag, concurrency_limit, name=name, deployment_id=deployment_id, period=period, lease=lease
            ),
        )

    def read_limit(
        self, tag: str | None = None, *, name: str | None = None, deployment_id: UUID | str | None = None
    ) -> Sent[ConcurrencyLimit | None]:
        """Read a limit and the runs that hold its slots; None when there is no limit."""
        opened = self._opened()
        return under_way(self, opened.read_limit(tag, name=name, deployment_id=deployment_id))

    def list_limits(self) -> list[ConcurrencyLimit]:
        """Return all limits as they stand, by scope and key, each without its holders and waiters.

        Many come in several answers, each of which may take `answer_timeout` seconds; a limit that is set meanwhile
        may be among them or not. Raises what waiting for an answer does.
        """
        opened = self._opened()
        return opened.background.run(opened.list_limits)

    def find_runs(
        self, *, limit: int = DEFAULT_PAGE, after: Place | None = None, **filters: Unpack[RunFilters]
    ) -> RunPage:
        """Return a page of the runs that match all `filters` (see `RunFilters`), the newest first, `limit` at most.

            page = client.find_runs(state_types=["RUNNING"], unchanged_for=3_600)
            while page.next:
                page = client.find_runs(..., after=page.next)

        Large runs make a page shorter than `limit`; only one without `next` is the last. Any worker answers, beside
        the requests: the page may not show yet what was sent just before. Raises QueryTooSlow when no index helps
        enough, which says what would; QueryFailed when PostgreSQL does not answer; and what waiting for any answer
        does.
        """
        opened = self._opened()
        return opened.background.run(opened.find_runs, limit=limit, after=after, **filters)

    def count_runs(self, **filters: Unpack[RunFilters]) -> list[StateCount]:
        """Return how many runs match all `filters`, for each kind and state that any of them is in.

        Counting ends at a bound; `or_more` says where. Raises what `find_runs` does.
        """
        opened = self._opened()
        return opened.background.run(opened.count_runs, **filters)

    def tree(self, run: RunReference) -> RunTree:
        """Return a run with what is below it, level by level, up to a bound: of a flow run its task runs, of a task run
        its subflows.

        Raises RunNotFound when there is no such run, and what `find_runs` does.
        """
        opened = self._opened()
        return opened.background.run(opened.tree, run)

    def list_workers(self) -> list[WorkerStatus]:
        """Return all workers that are alive, the oldest first, with the partitions that each holds.

        Raises what waiting for an answer does. Where there is no worker, that is NoAnswer.
        """
        opened = self._opened()
        return opened.background.run(opened.list_workers)

    def list_partitions(self) -> list[PartitionStatus]:
        """Return all partitions as they stand, by number: what waits in each, and what it has got to.

        Raises what waiting for an answer does.
        """
        opened = self._opened()
        return opened.background.run(opened.list_partitions)

    def list_dead_requests(
        self, partition: int, *, limit: int = DEFAULT_PAGE, after: str | None = None
    ) -> list[DeadRequest]:
        """Return dead letters of a partition, the oldest first, `limit` at most, behind the one whose entry is `after`:
        requests that could not be carried out.

        They are read from Redis itself, which only operators may (see deploy/redis/users.acl). Raises RedisUnavailable
        when Redis is away or refuses, which is NotPermitted when its user lacks the right.
        """
        opened = self._opened()
        return opened.background.run(opened.list_dead_requests, partition, limit=limit, after=after)

    def send_again(self, letter: DeadRequest) -> Verdict | None:
        """Send the request of a dead letter again, and return the verdict, None where it is no proposal.

        It is sent under an id of its own, because the refusal is the one answer to the old one. The letter stays;
        drop it once this has returned. Raises InvalidRequest where the letter has not the whole message, and what
        waiting for an answer raises.
        """
        opened = self._opened()
        return opened.background.run(opened.send_again, letter)

    def drop_dead_requests(self, letters: Iterable[DeadRequest]) -> int:
        """Delete dead letters, and return how many of them were there. Raises what `list_dead_requests` does."""
        opened = self._opened()
        return opened.background.run(opened.drop_dead_requests, listed(letters))

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
        """Return a subscription to events; use it within `with`, which is when it begins.

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
        opened: Any = self._opened()
        return subscribed(
            self,
            opened,
            opened.subscribe(
                name,
                member=member,
                since=since,
                kinds=kinds,
                run=run,
                tree=tree,
                state_types=state_types,
                state_names=state_names,
                tags=tags,
                max_tries=max_tries,
                in_flight=in_flight,
            ),
        )

    def read_subscription(self, name: str) -> Sent[SubscriptionStatus | None]:
        """Read a named subscription: its positions and how far they lag, its members, and its first 100 dead letters;
        None when there is none.
        """
        opened = self._opened()
        return under_way(self, opened.read_subscription(name))

    def list_subscriptions(self) -> list[SubscriptionStatus]:
        """Return all named subscriptions, by name, each without its shares, members and dead letters.

        Many come in several answers, each of which may take `answer_timeout` seconds. Raises what waiting for an
        answer does.
        """
        opened = self._opened()
        return opened.background.run(opened.list_subscriptions)

    def remove_subscription(self, name: str) -> Sent[SubscriptionStatus | None]:
        """Remove a named subscription with its positions and dead letters, and return it as it was, None when there was
        none. Its members are told (SubscriptionNotFound).
        """
        opened = self._opened()
        return under_way(self, opened.remove_subscription(name))

    def reset_subscription(self, name: str, since: Since) -> SubscriptionStatus:
        """Let a named subscription go on elsewhere: `since` is what it is for `subscribe`, and None means behind all
        that is published. Partitions that positions leave out stay as they are.

        Its members drop what they have not acknowledged. Raises SubscriptionNotFound when there is no such
        subscription, InvalidRequest when `since` names no position, and what waiting for an answer raises.
        """
        opened = self._opened()
        return opened.background.run(opened.reset_subscription, name, since)

    def retry_dead_letters(self, name: str, letters: Iterable[DeadLetter | UUID | str] | None = None) -> Sent[int]:
        """Let dead letters of a named subscription be delivered again, all or those of some events; return how many.

        Raises SubscriptionNotFound when there is no such subscription.
        """
        opened = self._opened()
        return under_way(self, opened.retry_dead_letters(name, letters))

    def drop_dead_letters(self, name: str, letters: Iterable[DeadLetter | UUID | str] | None = None) -> Sent[int]:
        """Drop dead letters of a named subscription, all or those of some events; return how many there were.

        Raises SubscriptionNotFound when there is no such subscription.
        """
        opened = self._opened()
        return under_way(self, opened.drop_dead_letters(name, letters))
