"""Subscribing to events: every partition's stream, each in its own order, from a position that can be kept."""

from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Final

from redis.asyncio import Redis

from statewright.channels import EVENT_BODY, Channels, sequence_of
from statewright.connection import persist
from statewright.events import Event

BLOCK_MILLISECONDS: Final = 5_000
EVENTS_PER_READ: Final = 500


class Subscription:
    """An endless `async for` over events; within a partition in order, without gaps and without duplicates.

    `positions` is the sequence number of the last event handed out per partition: keep it, and give it to
    `Client.subscribe(since=...)` to go on there.
    """

    def __init__(self, redis: Redis, channels: Channels, positions: dict[int, int]) -> None:
        self.positions = dict(positions)
        self._redis = redis
        self._partition_of = {channels.events(partition).encode(): partition for partition in positions}
        self._read_up_to = dict(positions)
        self._buffer: deque[Event] = deque()

    @classmethod
    async def from_now(cls, redis: Redis, channels: Channels, partitions: Iterable[int]) -> "Subscription":
        """Return a subscription to everything that is published after this call."""
        chosen = list(partitions)
        pipeline = redis.pipeline(transaction=False)
        for partition in chosen:
            pipeline.xrevrange(channels.events(partition), count=1)
        newest = await pipeline.execute()
        positions = {
            partition: sequence_of(entries[0][0]) if entries else 0
            for partition, entries in zip(chosen, newest, strict=True)
        }
        return cls(redis, channels, positions)

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        """Return the next event, however long it takes; a dropped connection is taken up again."""
        while not self._buffer:
            await persist(self._fill)
        event = self._buffer.popleft()
        self.positions[event.partition] = event.sequence
        return event

    async def _fill(self) -> None:
        streams = {stream: f"{self._read_up_to[p]}-0" for stream, p in self._partition_of.items()}
        read = await self._redis.xread(streams, count=EVENTS_PER_READ, block=BLOCK_MILLISECONDS)  # type: ignore[arg-type]  # redis-py's dict is invariant
        for stream, entries in read:
            for entry_id, fields in entries:
                self._read_up_to[self._partition_of[stream]] = sequence_of(entry_id)
                self._buffer.append(Event.model_validate_json(fields[EVENT_BODY]))
