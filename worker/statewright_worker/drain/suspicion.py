"""Suspicion: a request that ends its worker must not end all workers, one after the other."""

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Final

import structlog

from statewright.protocol.replies import ErrorCode, ErrorReply
from statewright_worker.drain.attempts import Attempts
from statewright_worker.streams.proposals import Entry, Proposals

ENOUGH: Final = 3

log = structlog.get_logger()


class Suspicion:
    """What to do with the requests that the previous holder was working on when it vanished.

    Redis remembers the first of them, and how many holders have vanished over it. The first time they are carried out
    as always; when a second holder vanishes, one by one. A request that has ended three workers is refused.
    """

    def __init__(self, proposals: Proposals, attempts: Attempts) -> None:
        self._proposals = proposals
        self._attempts = attempts

    async def portions(self, entries: Sequence[Entry]) -> AsyncIterator[Sequence[Entry]]:
        """Yield the requests in portions, to be carried out one portion after the other."""
        suspect, times = await self._attempts.if_redis_takes_it(self._proposals.suspect) or (None, 0)
        first = entries[0].id
        if suspect is None or suspect not in {entry.id for entry in entries}:
            await self._note(first, 1)
            yield entries
        else:
            for entry in entries:
                tried = times + 1 if entry.id == suspect else 1
                if tried > ENOUGH:
                    self._refuse(entry, times)
                await self._note(entry.id, tried)
                yield [entry]
        await self._attempts.if_redis_takes_it(self._proposals.suspect_nothing)

    async def _note(self, entry_id: str, times: int) -> None:
        # If Redis does not take the note, the request is carried out all the same.
        await self._attempts.if_redis_takes_it(partial(self._proposals.suspect_of, entry_id, times))

    def _refuse(self, entry: Entry, times: int) -> None:
        log.error("a request is refused: its workers vanished, one after the other", entry=entry.id, times=times)
        message = f"{times} workers vanished while they carried this request out; it is not tried again"
        self._attempts.condemned[entry.id] = ErrorReply(code=ErrorCode.NOT_WRITABLE, message=message)
