"""Subscribing without an event loop."""

from collections.abc import Callable
from typing import TypeVar

from statewright.errors import NotOpen
from statewright.events import Event
from statewright.subscription import groups, unnamed
from statewright.subscription.hand import ShareName
from statewright.sync.crossing import CrossingClient
from statewright.sync.iteration import Iteration

Result = TypeVar("Result")


class Subscription(Iteration[unnamed.Subscription, Event]):
    """An endless `for` over events; within a partition in order, without gaps and without duplicates.

        with client.subscribe() as events:
            for event in events:
                ...

    `positions` is the sequence number of the last event handed out per partition, or of a later one that the filter
    does not let through: keep it, also as JSON, and give it to `Client.subscribe(since=...)` to go on there. What Redis
    no longer keeps is read from PostgreSQL, through the engine.

    Iterating raises `EventsMissed` where events no longer exist, or may not be asked for; its subclass `EventsPruned`
    where some went with their runs, which were deleted; and `EraBegan` where events that were told no longer happened:
    each once, and the next `next` goes on behind it. It raises `RedisUnavailable` when Redis refuses for longer than
    the client's `answer_timeout`. One of them ends a `for`; begin another.

    `close`, in any thread, ends the iteration, and `next` takes a timeout.
    """

    @property
    def positions(self) -> dict[int, int]:
        """The sequence number of the last event handed out per partition; none before it has begun."""
        return dict(self._source.positions)


class NamedSubscription(Iteration[groups.NamedSubscription, Event]):
    """An endless `for` over this member's part of a named subscription's events.

        with client.subscribe("billing") as events:
            for event in events:
                bill(event)
                events.acknowledge(event)

    Every event that passes the filter is handed out at least once, to one member at a time; those of one tree of runs
    in order. What was not acknowledged when a member left, or died, is handed out again. Whoever handles several events
    at once keeps the order of a tree (`statewright.ids.tree_tag`) by itself.

    No more than `in_flight` events are handed out and neither acknowledged nor refused: then iterating waits.

    Iterating raises what a `Subscription` does. `EventsMissed` and `EraBegan` count as acknowledged when the next event
    is asked for. It raises `SubscriptionNotFound` when the subscription was removed, and `MemberReplaced` when another
    process has joined under the member's name.

    `close`, in any thread, ends the iteration, says what was acknowledged and leaves; closing the client does as well.
    `next` takes a timeout.
    """

    @property
    def name(self) -> str:
        """The subscription's name."""
        return self._source.name

    @property
    def member(self) -> str:
        """The member's name."""
        return self._source.member

    @property
    def shares(self) -> list[ShareName]:
        """The shares that the member has, each a partition and a number within it."""
        return self._unless_it_has_ended(lambda: self._background.call(lambda: self._source.shares), [])

    def acknowledge(self, *events: Event) -> bool:
        """Take note that events were handled; the engine hears of it within a second, or when the block ends.

        Returns whether all of that counts. It does not where the share was lost meanwhile, because this process did not
        run for too long, or where the subscription was left: then another member gets the event again.
        """
        return self._unless_it_has_ended(lambda: self._begun().run(self._source.acknowledge, *events), False)

    def refuse(self, event: Event, error: BaseException | str) -> bool:
        """Take note that an event could not be handled: it is handed out again after a pause, and before all later ones
        of its share that were not handed out yet. When that has failed `max_tries` times, it goes to the subscription's
        dead letters with the last error, and the share goes on.

        Returns whether that counts, as `acknowledge` does.
        """
        return self._unless_it_has_ended(lambda: self._begun().run(self._source.refuse, event, error), False)

    def flush(self) -> None:
        """Return once the engine knows what was acknowledged until now.

        Raises what keeps the engine from answering for longer than the client's `answer_timeout`, and what has ended
        the subscription.
        """
        self._begun().run(self._source.flush)

    def _unless_it_has_ended(self, ask: Callable[[], Result], otherwise: Result) -> Result:
        """Return what `ask` returns, and `otherwise` where nobody answers because this was closed meanwhile."""
        try:
            return ask()
        except NotOpen:
            if self._has_ended():
                return otherwise
            raise


def subscribed(
    owner: object, client: CrossingClient, subscription: unnamed.Subscription | groups.NamedSubscription
) -> Subscription | NamedSubscription:
    """Return a subscription as threads see it; the owner lives at least as long."""
    if isinstance(subscription, groups.NamedSubscription):
        return NamedSubscription(owner, client, subscription)
    return Subscription(owner, client, subscription)
