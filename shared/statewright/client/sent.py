"""What a request returns: the request under way, and its answer."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar
from uuid import UUID

from pydantic import ValidationError

from statewright.client.expected import Expected
from statewright.client.home import Home
from statewright.errors import Delivery, NoAnswer, NotOpen, StatewrightError, UnreadableAnswer, error_from
from statewright.explanations import Timeline, in_order
from statewright.protocol.replies import HistoryReply, ParkedReply, Reply, TimelineReply, reply_from
from statewright.protocol.requests import TimelineCursor
from statewright.runs import RunHistory
from statewright.states import State

Answer = TypeVar("Answer")

ASK_AGAIN_SECONDS: Final = 30.0
ASK_AGAIN_SECONDS_AT_MOST: Final = 600.0
"""How long a client waits for the answer to a parked proposal before it asks whether that is still parked."""


@dataclass(eq=False, slots=True)
class UnderWay:
    """A request that was handed to the outbox: when Redis holds it, and what answers it within `timeout` seconds.

    When Redis refuses it, the reply is that error as well. `delivery_of` tells of `pushed` how far the request has got,
    and what keeps it.
    """

    request_id: UUID
    pushed: "asyncio.Future[StatewrightError | None]"
    reply: Expected
    timeout: float
    delivery_of: "Callable[[asyncio.Future[StatewrightError | None]], tuple[Delivery, str]]"
    home: Home


class AboutRun(Generic[Answer]):
    """A request about a run, `run_id`, which is known before it exists; sent with an event loop or without one."""

    __slots__ = ()

    run_id: UUID

    @property
    def request_id(self) -> UUID:
        """The id of the request."""
        raise NotImplementedError


class Sent(Generic[Answer]):
    """A request that was sent. Await it for the answer: at once, later or never."""

    def __init__(self, under_way: UnderWay, read: Callable[[Any], Answer]) -> None:
        self._under_way = under_way
        self._read = read

    @property
    def request_id(self) -> UUID:
        """The id of the request; for a proposal, the proposal's id."""
        return self._under_way.request_id

    async def pushed(self) -> UUID:
        """Wait until Redis holds the request, and return its id.

        Raises RedisUnavailable if Redis refused it, which is NotPermitted if the user lacks the right, Overloaded if
        its partition had no room, and NoAnswer if the client was closed before.
        """
        _check_that_it_is_here(self._under_way)
        refusal = await asyncio.shield(self._under_way.pushed)
        if refusal:
            raise refusal
        return self.request_id

    def __await__(self) -> Generator[Any, None, Answer]:
        return self.answer().__await__()

    def answer_there(self) -> Answer:
        """Return the answer that is there. Raises NoAnswer where none is, and what `answer` raises."""
        return self._read(self._answered())

    async def answer(self) -> Answer:
        """Return the answer, as awaiting the request itself does; a task group takes this.

        Raises NoAnswer after the timeout, RequestFailed and its subclasses when the engine refuses, RedisUnavailable
        when Redis does, which is NotPermitted when its user lacks a right, Overloaded when the partition has no room,
        UnreadableAnswer when a worker of another version answers, and NotOpen in another event loop or process.
        """
        return self._read(await self._replied())

    async def _replied(self) -> Reply:
        if not self._under_way.reply.done():
            await self._waited_for()
        return self._answered()

    def _waited_for(self) -> Awaitable[None]:
        """Return what waits for the answer, and ends without one when it takes too long."""
        return _settled(self._under_way)

    def _answered(self) -> Reply:
        """Return the reply that is there. Raises NoAnswer where none is, and what `answer` raises."""
        if not self._under_way.reply.done():
            delivery, problem = self._under_way.delivery_of(self._under_way.pushed)
            raise NoAnswer(self.request_id, self._under_way.timeout, delivery, problem)
        reply = self._decoded(self._under_way.reply.result())
        if reply.type == "error":
            raise error_from(reply, self.request_id)
        return reply

    def _decoded(self, body: bytes) -> Reply:
        # Decoded only here, because an answer that nobody awaits need not be decoded.
        try:
            return reply_from(body)
        except ValidationError as error:
            raise UnreadableAnswer(self.request_id, str(error)) from None

    def when_answered(self, take: Callable[[Answer | None], object]) -> None:
        """Hand the answer to `take` when it comes, whether or not anybody awaits it; None where it is an error."""

        def heard(reply: "asyncio.Future[bytes]") -> None:
            answer: Answer | None = None
            if not reply.cancelled() and reply.exception() is None:
                with suppress(UnreadableAnswer):
                    decoded = self._decoded(reply.result())
                    answer = None if decoded.type == "error" else self._read(decoded)
            take(answer)

        self._under_way.reply.add_done_callback(heard)


class SentRun(Sent[Answer], AboutRun[Answer]):
    """A request about a run, which further requests may name before this one is answered."""

    def __init__(self, under_way: UnderWay, read: Callable[[Any], Answer], run_id: UUID) -> None:
        super().__init__(under_way, read)
        self.run_id = run_id
        """The run that the request is about, known before it exists."""


class SentCreation(SentRun[Answer]):
    """A request that creates a run, unless it exists."""

    @property
    def created(self) -> bool:
        """Whether the run is new. It is known once the request is answered, so await the request first.

        It is False when the run existed before, also when this very request had created it and its answer was lost,
        because a worker died or the request was sent again.

        Raises asyncio.InvalidStateError before the answer is there, and what the request was refused with.
        """
        if not self._under_way.reply.done():
            raise asyncio.InvalidStateError(
                "the request is not answered yet: await it, then ask whether the run is new"
            )
        reply: Any = self._answered()
        created: bool = reply.created
        return created


class SentProposal(SentRun[Answer]):
    """A proposal, which may be parked: then its answer comes once it can be decided."""

    _ask_again: Callable[[], object] | None = None
    _timeout: float | None = None

    def may_be_parked(self, ask_again: Callable[[], object], timeout: float | None) -> None:
        """Wait for the answer as long as the engine says that the proposal is parked, unless there is a `timeout`
        (seconds). `ask_again` sends the same request once more."""
        self._ask_again, self._timeout = ask_again, timeout

    @property
    def parked(self) -> ParkedReply | None:
        """What the engine has said last about the parked proposal; None as long as it is not known to be parked."""
        body = self._under_way.reply.parked
        return None if body is None else ParkedReply.model_validate_json(body, extra="ignore")

    async def until_parked(self) -> ParkedReply | None:
        """Wait until the engine says that the proposal is parked, and return what it says; None when it is answered.

        Raises what `Sent.answer` does when nothing is heard of it.
        """
        _check_that_it_is_here(self._under_way)
        reply = self._under_way.reply
        with reply.listening() as heard:
            await _first_of(reply, heard, self._under_way.timeout)
        if reply.done() or reply.parked is None:
            self._answered()
            return None
        return self.parked

    def _waited_for(self) -> Awaitable[None]:
        ask_again = self._ask_again
        return super()._waited_for() if ask_again is None else self._insist(ask_again)

    async def _insist(self, ask_again: Callable[[], object]) -> None:
        """Wait for the verdict, and ask now and then whether the proposal is still parked.

        What waits for hours must notice when its answer got lost, for example with everything in Redis.
        """
        _check_that_it_is_here(self._under_way)
        reply = self._under_way.reply
        try:
            with reply.listening() as heard:
                async with asyncio.timeout(self._timeout):
                    await self._wait_for_the_answer(reply, heard, ask_again)
        except TimeoutError:
            if reply.parked is not None and self._timeout is not None:
                raise NoAnswer(self.request_id, self._timeout, Delivery.PARKED) from None

    async def _wait_for_the_answer(
        self, reply: Expected, heard: asyncio.Event, ask_again: Callable[[], object]
    ) -> None:
        """Return when there is an answer. Raises TimeoutError when nothing more is heard of the request."""
        pause = ASK_AGAIN_SECONDS
        while not reply.done():
            await _first_of(reply, heard, self._under_way.timeout)
            if not reply.done() and not heard.is_set():
                raise TimeoutError
            heard.clear()
            await _first_of(reply, heard, random.uniform(pause / 2, pause))
            if not reply.done():
                ask_again()
                pause = min(2 * pause, ASK_AGAIN_SECONDS_AT_MOST)


async def _first_of(reply: Expected, heard: asyncio.Event, seconds: float) -> None:
    """Return when there is an answer, when the request was heard of, or after so many seconds.

    Raises NotPermitted when no answer may be heard.
    """
    hearing = asyncio.ensure_future(heard.wait())
    missing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waited: set[asyncio.Future[Any]] = {reply, hearing, missing}
    reply.wait(missing)
    try:
        await asyncio.wait(waited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if missing.done():
            missing.result()
    finally:
        reply.leave(missing)
        missing.cancel()
        hearing.cancel()


class SentHistory(SentRun[RunHistory]):
    """A request for a run with its history, whose further pages are asked for while it is awaited."""

    def __init__(self, under_way: UnderWay, run_id: UUID, read_on: Callable[[int], Sent[HistoryReply]]) -> None:
        """`read_on` asks for the page behind an ordinal."""
        super().__init__(under_way, lambda reply: reply.history, run_id)
        self._read_on = read_on

    async def answer(self) -> RunHistory:
        """Return the run with its history as it was when the first page was read; each page has the whole timeout.

        Raises what `Sent.answer` does.
        """
        page: Any = await self._replied()
        history = self._read(page)
        states, actors = list(history.states), list(_actors_of(history))
        while page.next is not None:
            page = await self._read_on(page.next)
            states += page.history.states
            actors += _actors_of(page.history)
        told = _up_to(history.run.state, states)
        return history.replaced(states=told, actors=tuple(actors[: len(told)]) if any(actors) else ())


class SentTimeline(SentRun[Timeline]):
    """A request for what happened to a run, whose further pages are asked for while it is awaited."""

    def __init__(
        self, under_way: UnderWay, run_id: UUID, read_on: Callable[[TimelineCursor], Sent[TimelineReply]]
    ) -> None:
        """`read_on` asks for the page behind a place."""
        super().__init__(under_way, lambda reply: reply.timeline, run_id)
        self._read_on = read_on

    async def answer(self) -> Timeline:
        """Return what happened to the run until the last page was read; each page has the whole timeout.

        Raises what `Sent.answer` does.
        """
        page: Any = await self._replied()
        entries = [*page.timeline.entries]
        while page.next is not None:
            page = await self._read_on(page.next)
            entries += page.timeline.entries
        timeline: Timeline = page.timeline
        return timeline.replaced(entries=in_order(entries))


def _actors_of(page: RunHistory) -> tuple[str | None, ...]:
    return page.actors or (None,) * len(page.states)


def _up_to(last: State | None, states: Sequence[State]) -> tuple[State, ...]:
    """Return the states up to `last`, the current one when the first page was read; later ones came meanwhile."""
    ids = [state.id for state in states]
    return tuple(states[: ids.index(last.id) + 1] if last is not None and last.id in ids else states)


async def _settled(under_way: UnderWay) -> None:
    """Wait for the reply until the timeout; others may await the same reply, and go on waiting.

    Raises NotPermitted when no answer may be heard.

    This does what `asyncio.wait` does, in half of the time.
    """
    _check_that_it_is_here(under_way)
    loop, reply = under_way.home.loop, under_way.reply
    waiter: asyncio.Future[None] = loop.create_future()

    def wake(_: object = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    timer = loop.call_later(under_way.timeout, wake)
    reply.add_done_callback(wake)
    reply.wait(waiter)
    try:
        await waiter
    finally:
        timer.cancel()
        reply.leave(waiter)
        reply.remove_done_callback(wake)


def _check_that_it_is_here(under_way: UnderWay) -> None:
    if not under_way.home.is_here():
        raise NotOpen("this request was sent in another event loop or process: await it there")
