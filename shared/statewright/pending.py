"""A request under way, and its answer."""

import asyncio
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar
from uuid import UUID

from statewright.errors import NoAnswer, StatewrightError, error_from
from statewright.messages import ErrorReply, Reply

Answer = TypeVar("Answer")


class Pending(Generic[Answer]):
    """A request that is on its way. Await it for the answer: at once, later or never."""

    def __init__(
        self,
        request_id: UUID,
        run_id: UUID | None,
        *,
        pushed: "asyncio.Future[StatewrightError | None]",
        reply: "asyncio.Future[Reply]",
        timeout: float,
        read: Callable[[Any], Answer],
    ) -> None:
        self.request_id = request_id
        """The id of the request; for a proposal, the proposal's id."""
        self.run_id = run_id
        """The run that the request is about, known before it exists; None for limits."""
        self._pushed = pushed
        self._reply = reply
        self._timeout = timeout
        self._read = read

    async def pushed(self) -> UUID:
        """Wait until Redis holds the request, and return its id. Raises RedisUnavailable if Redis refused it."""
        refusal = await asyncio.shield(self._pushed)
        if refusal:
            raise refusal
        return self.request_id

    def __await__(self) -> Generator[Any, None, Answer]:
        return self._answer().__await__()

    async def _answer(self) -> Answer:
        try:
            async with asyncio.timeout(self._timeout):
                await self.pushed()
                reply = await asyncio.shield(self._reply)
        except TimeoutError:
            raise NoAnswer(self.request_id, self._timeout) from None
        if isinstance(reply, ErrorReply):
            raise error_from(reply, self.request_id)
        return self._read(reply)
