"""A flood: far more requests wait than a partition may have, because producers push without asking."""

from typing import Final

import structlog
from pydantic_core import to_json

from statewright.protocol.channels import REQUEST_ID
from statewright.protocol.replies import ErrorCode, ErrorReply
from statewright_worker.drain.decoding import Place, answers_to
from statewright_worker.streams.partition import PartitionStreams, Publication
from statewright_worker.streams.proposals import Backlog, Entry

PATIENCE: Final = 2
"""How many times the bound makes a flood. Several clients may ask at the same moment and then all push."""
REFUSED_AT_A_TIME: Final = 500
READ_BYTES: Final = 16 * 1024 * 1024

log = structlog.get_logger()


class Flood:
    """Refuses the newest requests of a backlog that is far beyond its bound, and keeps those pushed earlier."""

    def __init__(self, streams: PartitionStreams, place: Place, max_backlog: int, max_backlog_bytes: int) -> None:
        self._streams = streams
        self._proposals = streams.proposals
        self._place = place
        self._entries = PATIENCE * max_backlog
        self._size = PATIENCE * max_backlog_bytes

    async def stem(self, answered: str) -> None:
        """Answer and delete the requests that are too many behind the request `answered`.

        Raises as PartitionStreams does.
        """
        await self._proposals.trim(answered)
        backlog = await self._proposals.backlog()
        refused = 0
        # While Redis has no room for refusals, nothing is refused.
        while not self._streams.owes and (too_many := self._too_many(backlog)):
            fit = max(READ_BYTES * backlog.entries // max(backlog.size, 1), 1)
            entries = await self._proposals.newest(answered, min(too_many, fit, REFUSED_AT_A_TIME))
            if not entries:
                break
            await self._streams.publish(self._refusals(entries, backlog))
            await self._proposals.delete([entry.id for entry in entries])
            refused += len(entries)
            backlog = await self._proposals.backlog()
        if refused:
            log.warning(
                "a flood of requests: the newest were refused", partition=self._place.partition, refused=refused
            )

    def _too_many(self, backlog: Backlog) -> int:
        if backlog.entries <= 1:
            return 0
        by_size = backlog.entries * max(backlog.size - self._size, 0) // max(backlog.size, 1)
        return max(backlog.entries - self._entries, min(by_size, backlog.entries - 1))

    def _refusals(self, entries: list[Entry], backlog: Backlog) -> Publication:
        message = (
            f"partition {self._place.partition} has {backlog.entries} unanswered requests of about {backlog.size}"
            " bytes, more than it may have; this one was not carried out: push it again when others are answered"
        )
        body = to_json(ErrorReply(code=ErrorCode.OVERLOADED, message=message), exclude_none=True)
        publication = Publication()
        for entry in entries:
            reply_to = answers_to(entry)
            if reply_to is not None:
                publication.replies.setdefault(reply_to, []).append((entry.fields[REQUEST_ID], body))
        return publication
