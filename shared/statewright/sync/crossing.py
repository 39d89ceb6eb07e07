"""Requests that cross from the thread that makes them to the background loop that sends them."""

import asyncio
from typing import Any, Protocol, cast
from uuid import UUID
from weakref import WeakSet, ref

from statewright.client import requests
from statewright.client.client import Client
from statewright.client.expected import Expected
from statewright.client.home import Home
from statewright.client.sent import UnderWay
from statewright.errors import NotOpen
from statewright.protocol.replies import ParkedReply
from statewright.protocol.requests import Request
from statewright.sync.background import BackgroundLoop
from statewright.sync.waiting import Waited, Wake
from statewright.verdicts import Verdict


class Ends(Protocol):
    """What ends with the client."""

    def end_here(self) -> None:
        """End, in the loop."""


class CrossingClient(Client):
    """A client in a background loop whose requests may be made in any thread.

    They are checked and encoded in the thread that makes them, and handed over to the loop as bytes.
    """

    background: BackgroundLoop
    _ends: "WeakSet[Ends]"

    @property
    def name(self) -> str | None:
        """The name that one client at a time has; most have none."""
        return self._settings.client_name

    async def begin(self, background: BackgroundLoop) -> None:
        """Open it in the loop that runs. Raises what opening raises."""
        self.background = background
        self._ends = WeakSet()
        await self.__aenter__()

    def end_with_it(self, what: "Ends") -> None:
        """Let this end when the client does, as long as it lives."""
        self._ends.add(what)

    async def end(self) -> None:
        """Close it, and what ends with it."""
        if self._home is not None:
            for what in list(self._ends):
                what.end_here()
            await self.__aexit__(None, None, None)

    def take_in(self, crossed: "Crossed", body: bytes, partition: int) -> None:
        """Send a request that has arrived in the loop."""
        named = str(crossed.request_id).encode()
        try:
            self._check_that_it_is_open()
            crossed.reply = self._inbox.expect(named)
        except NotOpen as error:
            crossed.refuse(error)
            return
        crossed.pushed = self._put(partition, named, body, crossed.reply)
        listener = _Listener(crossed)
        crossed.reply.add_done_callback(listener)
        # It is told what a waiter of the loop's is told.
        crossed.reply.wait(cast("asyncio.Future[None]", listener))

    def _known_of(self, proposal_id: UUID, known: Any) -> Verdict | ParkedReply | None:
        # What nobody has claimed is the loop's, and who reads the answer is any thread.
        if self.background.is_here or self.background.has_ended:
            return super()._known_of(proposal_id, known)
        return self.background.call(super()._known_of, proposal_id, known)

    def _send(
        self, home: Home, message: Request, partition: int, request_id: UUID | None = None, timeout: float | None = None
    ) -> UnderWay:
        body = requests.body_of(message, self._settings.max_message_bytes)
        crossed = Crossed(self, home, request_id or self._ids.new(), body, partition)
        crossed.timeout = self._settings.answer_timeout if timeout is None else timeout
        crossed.delivery_of = self._outbox.delivery_of
        if self.background.is_here:
            crossed.arrive()
        else:
            self.background.hand_over(crossed)
        return crossed

    def _check_that_it_is_open(self) -> Home:
        home = self._home
        if home is None:
            raise self._not_open()
        return home

    def _not_open(self) -> NotOpen:
        return NotOpen("the client is closed: use it within its `with`, or open it again")


class Crossed(UnderWay, Waited):
    """A request that crosses to the loop; `reply` and `pushed` are there once it has arrived."""

    __slots__ = ("__weakref__", "_body", "_partition", "client", "is_done", "missed", "wakes")

    def __init__(self, client: CrossingClient, home: Home, request_id: UUID, body: bytes, partition: int) -> None:
        self.request_id = request_id
        self.home = home
        self.client = client
        self._body = body
        self._partition = partition
        self.is_done = False
        self.missed: BaseException | None = None
        """Why the answer could not be heard just now."""
        self.wakes: list[Wake] = []

    def arrive(self) -> None:
        """Be sent."""
        body, self._body = self._body, b""
        self.client.take_in(self, body, self._partition)

    def refuse(self, why: NotOpen) -> None:
        """Fail: it was not sent, and never will be."""
        loop = self.client.background.loop
        self.reply, self.pushed = Expected(loop=loop), asyncio.Future(loop=loop)
        self.reply.set_exception(why)
        # Nobody needs to look at it.
        self.reply.exception()
        self.pushed.set_result(why)
        self.end()

    def miss(self, why: BaseException) -> None:
        """Tell those who wait now that the answer may not be heard; it may still come for those who wait again."""
        self.missed = why
        self.wake()

    def take_answer(self) -> None:
        """Wake all who wait for the answer, which is there."""
        self.client.background.told += len(self.wakes)
        self.end()


class _Listener:
    """What a reply tells, as long as somebody has the request: else the answer is nobody's, as in a loop."""

    __slots__ = ("_crossed",)

    def __init__(self, crossed: Crossed) -> None:
        self._crossed = ref(crossed)

    def __call__(self, _reply: object) -> None:
        crossed = self._crossed()
        if crossed is not None:
            crossed.take_answer()

    def done(self) -> bool:
        crossed = self._crossed()
        return crossed is None or crossed.is_done

    def set_exception(self, why: BaseException) -> None:
        crossed = self._crossed()
        if crossed is not None:
            crossed.miss(why)

    def exception(self) -> None:
        """Be asked, as a future is, so that nobody is warned."""
