"""What a request returns where there is no event loop: the request under way, and its answer."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, Generic, NoReturn, TypeVar, cast, overload
from uuid import UUID

from statewright.client import sent as within_a_loop
from statewright.client.requests import seconds_of
from statewright.client.sent import AboutRun
from statewright.errors import Delivery, NoAnswer
from statewright.explanations import Timeline
from statewright.protocol.replies import ParkedReply
from statewright.runs import RunHistory
from statewright.sync.crossing import Crossed
from statewright.values import Duration

Answer = TypeVar("Answer")
Result = TypeVar("Result")


class Sent(Generic[Answer]):
    """A request that was sent. Ask it for its `answer()`: at once, later or never, in any thread."""

    __slots__ = ("_client", "_crossed", "_sent")

    def __init__(self, client: object, sent: within_a_loop.Sent[Answer]) -> None:
        """Take a request of the client, which lives at least as long."""
        self._client = client
        self._sent = sent
        self._crossed = cast("Crossed", sent._under_way)

    @property
    def request_id(self) -> UUID:
        """The id of the request; for a proposal, the proposal's id."""
        return self._crossed.request_id

    def pushed(self, timeout: Duration | None = None) -> UUID:
        """Wait until Redis holds the request, and return its id.

        Raises RedisUnavailable if Redis refused it, Overloaded if its partition had no room, and NoAnswer if the client
        was closed before, or after `timeout` (seconds or a duration; by default, that of the request).
        """
        return self._within(self._seconds(timeout), self._sent.pushed)

    def answer(self, timeout: Duration | None = None) -> Answer:
        """Return the answer; wait for it if need be, in any number of threads, and as often as you like.

        `timeout` (seconds or a duration) is for how long; the default is that of the request. Raises NoAnswer after the
        timeout, RequestFailed and its subclasses when the engine refuses, RedisUnavailable when Redis does (of which
        NotPermitted names a right that the Redis user lacks), Overloaded when the partition has no room,
        UnreadableAnswer when a worker of another version answers, and NotOpen in another process, when the client was
        closed before the request was sent, or when another client has taken its name over.
        """
        seconds = self._seconds(timeout)
        if not self._crossed.is_done:
            self._wait(seconds)
        return self._sent.answer_there()

    def _seconds(self, timeout: Duration | None) -> float:
        return self._crossed.timeout if timeout is None else seconds_of(timeout)

    def _wait(self, seconds: float) -> None:
        background = self._crossed.client.background
        background.check_that_one_may_wait()
        told_before = self._crossed.missed
        if not self._crossed.wait(seconds):
            missed = self._crossed.missed
            if missed is not None and missed is not told_before:
                raise missed
            background.call(self._tell_that_there_is_none, seconds)

    def _tell_that_there_is_none(self, seconds: float) -> None:
        # In the loop, because it alone knows how far the request has got; the answer may have come meanwhile.
        if not self._crossed.reply.done():
            self._raise_no_answer(seconds)

    def _raise_no_answer(self, seconds: float) -> NoReturn:
        crossed = self._crossed
        if crossed.reply.parked is not None:
            raise NoAnswer(crossed.request_id, seconds, Delivery.PARKED)
        raise NoAnswer(crossed.request_id, seconds, *crossed.delivery_of(crossed.pushed))

    def _within(self, seconds: float | None, do: Callable[[], Awaitable[Result]]) -> Result:
        """Return what `do` returns when it is awaited in the loop. Raises NoAnswer after so many seconds."""

        async def awaited() -> Result:
            try:
                async with asyncio.timeout(seconds):
                    return await do()
            except TimeoutError:
                self._raise_no_answer(seconds or 0.0)

        return self._crossed.client.background.run(awaited)


class SentRun(Sent[Answer], AboutRun[Answer]):
    """A request about a run, which further requests may name before this one is answered."""

    __slots__ = ("run_id",)

    def __init__(self, client: object, sent: within_a_loop.SentRun[Answer]) -> None:
        super().__init__(client, sent)
        self.run_id = sent.run_id
        """The run that the request is about, known before it exists."""


class SentCreation(SentRun[Answer]):
    """A request that creates a run, unless it exists."""

    __slots__ = ()

    @property
    def created(self) -> bool:
        """Whether the run is new. It is known once the request is answered, so ask for the answer first.

        It is False when the run existed before, also when this very request had created it and its answer was lost,
        because a worker died or the request was sent again.

        Raises asyncio.InvalidStateError before the answer is there, and what the request was refused with.
        """
        if not self._crossed.is_done:
            raise asyncio.InvalidStateError(
                "the request is not answered yet: ask for its answer(), then whether the run is new"
            )
        return cast("within_a_loop.SentCreation[Answer]", self._sent).created


class SentProposal(SentRun[Answer]):
    """A proposal, which may be parked: then its answer comes once it can be decided."""

    __slots__ = ()

    _sent: within_a_loop.SentProposal[Answer]

    @property
    def parked(self) -> ParkedReply | None:
        """What the engine has said last about the parked proposal; None as long as it is not known to be parked."""
        # Before the request has arrived in the loop, nobody can have answered it.
        return self._sent.parked if hasattr(self._crossed, "reply") else None

    def until_parked(self) -> ParkedReply | None:
        """Wait until the engine says that the proposal is parked, and return what it says; None when it is answered.

        Raises what `Sent.answer` does when nothing is heard of it.
        """
        return self._crossed.client.background.run(self._sent.until_parked)

    def answer(self, timeout: Duration | None = None) -> Answer:
        """Return the verdict, as `Sent.answer` does.

        That of a proposal which may be parked is waited for as long as the engine says that it is parked, unless there
        is a `timeout`, here or in the proposal. What waits for hours is asked about now and then.
        """
        if self._crossed.is_done or self._sent._ask_again is None:
            return super().answer(timeout)
        return self._within(None if timeout is None else seconds_of(timeout), self._sent.answer)


class SentHistory(SentRun[RunHistory]):
    """A request for a run with its history, whose further pages are asked for when its answer is."""

    __slots__ = ()

    def answer(self, timeout: Duration | None = None) -> RunHistory:
        """Return the run with its history as it was when the first page was read.

        Each page has the whole timeout of the request; all of them together have `timeout`, if it is given. Raises what
        `Sent.answer` does.
        """
        return self._within(None if timeout is None else seconds_of(timeout), self._sent.answer)


class SentTimeline(SentRun[Timeline]):
    """A request for what happened to a run, whose further pages are asked for when its answer is."""

    __slots__ = ()

    def answer(self, timeout: Duration | None = None) -> Timeline:
        """Return what happened to the run until the last page was read.

        Each page has the whole timeout of the request; all of them together have `timeout`, if it is given. Raises what
        `Sent.answer` does.
        """
        return self._within(None if timeout is None else seconds_of(timeout), self._sent.answer)


@overload
def under_way(client: object, sent: within_a_loop.SentCreation[Answer]) -> SentCreation[Answer]: ...


@overload
def under_way(client: object, sent: within_a_loop.SentProposal[Answer]) -> SentProposal[Answer]: ...


@overload
def under_way(client: object, sent: within_a_loop.SentRun[Answer]) -> SentRun[Answer]: ...


@overload
def under_way(client: object, sent: within_a_loop.Sent[Answer]) -> Sent[Answer]: ...


def under_way(client: object, sent: within_a_loop.Sent[Any]) -> Sent[Any]:
    """Return a request that was sent as threads see it."""
    return _COUNTERPARTS[type(sent)](client, sent)


_COUNTERPARTS: dict[type[within_a_loop.Sent[Any]], Callable[[object, Any], Sent[Any]]] = {
    within_a_loop.Sent: Sent,
    within_a_loop.SentRun: SentRun,
    within_a_loop.SentCreation: SentCreation,
    within_a_loop.SentProposal: SentProposal,
    within_a_loop.SentHistory: SentHistory,
    within_a_loop.SentTimeline: SentTimeline,
}

AnySent = TypeVar("AnySent", bound=Sent[Any])


class AsAnswered(Generic[AnySent]):
    """Requests under way, in the order in which they are answered; more may be added while one goes through them.

        for sent in AsAnswered(client.propose(run, State.running()) for run in runs):
            print(sent.run_id, sent.answer().status)

    It ends when none is left. One thread goes through it, and may add to it; each request has `timeout` seconds, by
    default its own timeout, from when the one before it came.
    """

    def __init__(self, sent: Iterable[AnySent] = (), timeout: Duration | None = None) -> None:
        """Take the requests, and for how long to wait for the next answer (seconds or a duration)."""
        self._timeout = None if timeout is None else seconds_of(timeout)
        self._answered: SimpleQueue[AnySent] = SimpleQueue()
        self._left: dict[AnySent, None] = {}
        for one in sent:
            self.add(one)

    def __len__(self) -> int:
        """Return how many are left."""
        return len(self._left)

    def add(self, sent: AnySent) -> None:
        """Wait for this one as well."""
        self._left[sent] = None
        sent._crossed.when_done(lambda: self._answered.put(sent))

    def __iter__(self) -> Iterator[AnySent]:
        return self

    def __next__(self) -> AnySent:
        """Return the next request that is answered or has failed; its `answer()` says so at once.

        Raises NoAnswer, for the one that was added first, when none of them is answered in time; going on waits for the
        others.
        """
        while self._left:
            try:
                sent = self._answered.get_nowait()
            except Empty:
                sent = self._wait_for_one()
            # One that was given up may have been answered since.
            if sent in self._left:
                del self._left[sent]
                return sent
        raise StopIteration

    def _wait_for_one(self) -> AnySent:
        first = next(iter(self._left))
        first._crossed.client.background.check_that_one_may_wait()
        seconds = first._seconds(self._timeout)
        try:
            return self._answered.get(timeout=seconds)
        except Empty:
            try:
                first._crossed.client.background.call(first._tell_that_there_is_none, seconds)
            except NoAnswer:
                del self._left[first]
                raise
            return first
