"""Who holds which partition: one hash in Redis; a worker reads it, renews its holds and takes free ones in one step."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from redis import Redis
from redis.exceptions import ResponseError

from statewright.connection import Argument, user_of, with_its_right
from statewright.protocol.channels import Channels
from statewright_worker.streams.scripts import script_command

HOLD_MILLISECONDS: Final = 1_000
"""After this long without renewal a worker is given up."""
ANSWER_SECONDS: Final = 2.0
KEPT_MILLISECONDS: Final = 86_400_000

# The first write frees memory: a full Redis refuses a script whose first write may need memory, and holds must be
# renewed all the same. What workers that have died said of themselves is deleted once it is most of what there is. An
# entry that has run out means that its holder vanished; a missing one was given back.
_LOOK: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local me, ends, count, seeks = ARGV[1], now + ARGV[2], tonumber(ARGV[3]), ARGV[5] == '1'
if seeks then redis.call('ZADD', KEYS[1], ends, me) else redis.call('ZREM', KEYS[1], me) end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('SET', KEYS[3], count)
redis.call('HSET', KEYS[4], me, string.format('%.0f ', ends) .. ARGV[5] .. ' ' .. ARGV[6])
redis.call('PEXPIRE', KEYS[4], ARGV[4])
local holders = redis.call('HGETALL', KEYS[2])
local held_by, held_until, held_since = {}, {}, {}
for i = 1, #holders, 2 do
    held_by[holders[i]], held_until[holders[i]], held_since[holders[i]] =
        string.match(holders[i + 1], '^(%S+) (%d+) (%d+)$')
end
local lost, taken, vanished, mine = {}, {}, {}, 0
local function hold(partition, since)
    mine = mine + 1
    redis.call('HSET', KEYS[2], partition, me .. ' ' .. string.format('%.0f %.0f', ends, since))
end
for i = 7, #ARGV do
    if held_by[ARGV[i]] == me then
        hold(ARGV[i], held_since[ARGV[i]])
        held_until[ARGV[i]] = ends
    else
        table.insert(lost, ARGV[i])
    end
end
local live = redis.call('ZCARD', KEYS[1])
if redis.call('HLEN', KEYS[4]) > 2 * live + 8 then
    local announced = redis.call('HGETALL', KEYS[4])
    for i = 1, #announced, 2 do
        if tonumber(string.match(announced[i + 1], '^%d+')) <= now then redis.call('HDEL', KEYS[4], announced[i]) end
    end
end
local share = math.ceil(count / math.max(live, 1))
for number = 0, count - 1 do
    local partition = string.format('%.0f', number)
    if not seeks or mine >= share then break end
    if not held_until[partition] or tonumber(held_until[partition]) <= now then
        table.insert(held_until[partition] and vanished or taken, partition)
        hold(partition, now)
    end
end
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return {share, lost, taken, vanished}
"""
_RELEASE: Final = """
for i = 2, #ARGV do
    local holder = redis.call('HGET', KEYS[1], ARGV[i])
    if holder and string.match(holder, '^%S+') == ARGV[1] then redis.call('HDEL', KEYS[1], ARGV[i]) end
end
return false
"""


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at the holders has found."""

    share: int
    """How many partitions this worker should hold."""
    lost: frozenset[int]
    """Partitions that this worker believed it held, and does not hold."""
    taken: frozenset[int]
    """Partitions that it holds from now on, and that their last holder gave back."""
    vanished: frozenset[int]
    """Partitions that it holds from now on, because their last holder vanished."""


class Holders:
    """The holders of one deployment's partitions, as one worker sees them. Its calls block; they raise RedisError."""

    def __init__(self, redis_url: str, channels: Channels, partitions: int, worker: str, about: str) -> None:
        """Take the worker's name, and what it says of itself to people, as JSON."""
        self._redis = Redis.from_url(
            redis_url, socket_timeout=ANSWER_SECONDS, socket_connect_timeout=ANSWER_SECONDS, protocol=2
        )
        self._user = user_of(self._redis.connection_pool)
        self._channels = channels
        self._partitions = partitions
        self._worker = worker
        self._about = about

    def look(self, held: Iterable[int], *, seeks: bool) -> Look:
        """Renew what this worker holds, and return what it has lost and taken.

        Only a worker that `seeks` counts for the share, and takes free partitions up to its share.
        """
        channels = self._channels
        keys = [channels.workers, channels.holders, channels.partitions, channels.announced]
        settings = (self._worker, HOLD_MILLISECONDS, self._partitions, KEPT_MILLISECONDS, int(seeks), self._about)
        share, *found = self._run(_LOOK, keys, *settings, *sorted(held))
        lost, taken, vanished = (frozenset(map(int, partitions)) for partitions in found)
        return Look(share, lost, taken, vanished)

    def release(self, partitions: Iterable[int]) -> None:
        """Give back those of the partitions that this worker still holds."""
        self._run(_RELEASE, [self._channels.holders], self._worker, *sorted(partitions))

    def leave(self) -> None:
        """Say that this worker is gone, so that the others share its partitions at once."""
        self._ask("ZREM", self._channels.workers, self._worker)
        self._ask("HDEL", self._channels.announced, self._worker)

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()

    def _run(self, script: str, keys: list[str], *arguments: str | int) -> Any:
        return self._ask(*script_command(script, keys, *arguments))

    def _ask(self, *command: Argument) -> Any:
        # redis-py declares no types for it.
        execute: Any = self._redis.execute_command
        try:
            return execute(*command)
        except ResponseError as refusal:
            raise with_its_right(refusal, self._user, command) from None
