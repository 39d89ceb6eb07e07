"""The overdraft: how answers get into a full Redis, so that whoever reads them makes room."""

from collections.abc import Sequence
from itertools import chain
from typing import Any, Final

from redis.exceptions import ResponseError

from statewright.channels import following
from statewright.connection import Command, HeldConnection, accepted, trimming
from statewright_worker.streams.owed import size_of
from statewright_worker.streams.scripts import script_command

OVERDRAFT_BYTES: Final = 1024 * 1024
"""So much a partition may put into Redis beyond its `maxmemory`, in answers."""

# A full Redis refuses no script that has begun to write; so the first write is one that frees memory, if anything.
# What is to be sent: for each key behind the requests the number of its arguments, and these.
_MAKE_ROOM_AND_SEND: Final = """
redis.call('XTRIM', KEYS[1], 'MINID', ARGV[1])
local told, at = {}, 2
for i = 2, #KEYS do
    local last = at + tonumber(ARGV[at])
    told[i - 1] = redis.pcall('XADD', KEYS[i], unpack(ARGV, at + 1, last))
    at = last + 1
end
return told
"""


class Overdraft:
    """Sends what is owed beyond the bound of a full Redis, as long as that is little."""

    def __init__(self, redis: HeldConnection, proposals: str) -> None:
        self._redis = redis
        self._proposals = proposals
        self._left = OVERDRAFT_BYTES
        """How much may be put into Redis whether it is full or not, until it is known to have had room again."""

    async def send(self, answered: str, commands: Sequence[Command]) -> list[Any]:
        """Delete the requests up to `answered`, and add to streams; return the answers to the commands in their order.

        Raises what `statewright_worker.streams.errors.REDIS_FAILED` lists when the requests could not be deleted.
        """
        if self._left > 0:
            self._left -= sum(map(size_of, commands))
            keys = [self._proposals, *(str(command[1]) for command in commands)]
            flat = chain.from_iterable((len(command) - 2, *command[2:]) for command in commands)
            script = script_command(_MAKE_ROOM_AND_SEND, keys, following(answered), *flat)
            told: list[Any] = await self._redis.ask(*script)
            return told
        trimmed, *told = await self._redis.exchange(trimming(self._proposals, answered), *commands)
        accepted([trimmed])
        if not all(isinstance(answer, ResponseError) for answer in told):
            # There was room, so nothing lies beyond the bound any more.
            self._left = OVERDRAFT_BYTES
        return told
