"""Requests that cross from the thread that makes them to the background loop that sends them."""

import asyncio
from typing import Protocol
from uuid import UUID
from weakref import WeakSet

from statewright.client import requests
from statewright.client.client import Client
from statewright.client.expected import Expected
from statewright.client.home import Home
from statewright.client.sent import UnderWay
from statewright.errors import NotOpen
from statewright.protocol.requests import Request
from statewright.sync.background import BackgroundLoop
from statewright.sync.waiting import Waited, Wake


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
        if self._home is None:
            crossed.refuse(self._not_open())
            return
        named = str(crossed.request_id).encode()
        crossed.reply = self._inbox.expect(named)
        crossed.pushed = self._put(partition, named, body, crossed.reply)
        crossed.reply.add_done_callback(crossed.take_answer)

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

    __slots__ = ("_body", "_partition", "client", "is_done", "wakes")

    def __init__(self, client: CrossingClient, home: Home, request_id: UUID, body: bytes, partition: int) -> None:
        self.request_id = request_id
        self.home = home
        self.client = client
        self._body = body
        self._partition = partition
        self.is_done = False
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

    def take_answer(self, _reply: object) -> None:
        """Wake all who wait for the answer, which is there."""
        self.client.background.told += len(self.wakes)
        self.end()
