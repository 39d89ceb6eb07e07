"""Subscribing without an event loop."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from statewright import subscription as within_a_loop
from statewright.client import Client
from statewright.events import Event
from statewright.sync.iteration import Iteration


@asynccontextmanager
async def subscribed(client: Client, **options: Any) -> AsyncIterator[within_a_loop.Subscription]:
    """Subscribe while the block runs."""
    subscription = await client.subscribe(**options)
    try:
        yield subscription
    finally:
        await subscription.close()


class Subscription(Iteration[within_a_loop.Subscription, Event]):
    """Events, within a partition in order, without gaps and without duplicates; `Client.subscribe` makes one.

        with client.subscribe() as events:
            for event in events:
                ...

    `positions` is the sequence number of the last event handed out per partition: keep it, also as JSON, and give it to
    `Client.subscribe(since=...)` to go on there. What Redis no longer keeps is read from PostgreSQL, through
    the engine.

    Iterating raises `EventsMissed` where events no longer exist, or may not be asked for, and `EraBegan` where events
    that were told no longer happened: each once, and the next `next` goes on behind it. It raises `RedisUnavailable`
    when Redis refuses for longer than the client's `answer_timeout`. One of them ends a `for`; begin another.

    `close`, in any thread, ends the iteration; `next` takes a timeout.
    """

    @property
    def positions(self) -> dict[int, int]:
        """The sequence number of the last event handed out per partition; none before it has begun."""
        return {} if self._source is None else dict(self._source.positions)
