"""The overdraft: how answers get into a full Redis, so that their readers can make room."""

from collections.abc import Sequence
from itertools import chain
from typing import Any, Final

from redis.exceptions import ResponseError

from statewright.connection import Command, HeldConnection, accepted, trimming
from statewright.protocol.channels import following
from statewright_worker.streams.owed import size_of
from statewright_worker.streams.scripts import script_command

OVERDRAFT_BYTES: Final = 1024 * 1024
"""How many bytes of answers a partition may put into Redis beyond its `maxmemory`."""

# The first write frees memory or does nothing, because a full Redis refuses no script that has begun to write.
# The arguments list the commands: for each key behind that of the requests, the number of its arguments, then these.
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
    """Sends what is owed, as far as the overdraft reaches also beyond the bound of a full Redis."""

    def __init__(self, redis: HeldConnection, proposals: str) -> None:
        self._redis = redis
        self._proposals = proposals
        self._left = OVERDRAFT_BYTES
        """How many bytes may still be sent, full or not; the whole overdraft again once Redis has had room."""

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
            # Redis had room, so nothing of ours is beyond its bound any more.
            self._left = OVERDRAFT_BYTES
        return told
