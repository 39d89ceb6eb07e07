"""A member of a named subscription: it works on the shares that the engine gives it, and says how far it is."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, NamedTuple, Self

from statewright.connection import cancel
from statewright.errors import (
    Delivery,
    MemberReplaced,
    NoAnswer,
    NotOpen,
    Overloaded,
    RedisUnavailable,
    StatewrightError,
)
from statewright.events import Event
from statewright.protocol.replies import SyncedReply
from statewright.protocol.requests import (
    MAX_SILENT_SECONDS,
    SILENT_SECONDS,
    OpenSubscription,
    SyncSubscription,
)
from statewright.subscription.filters import Sieve
from statewright.subscription.hand import Hand, ShareName
from statewright.subscription.positions import Start, pairs_of
from statewright.subscription.shares import Share
from statewright.subscription.stream import EventStreams, FindPosition, ReadEvents, starting_at

SYNC_SECONDS: Final = 1.0
"""How often a member gives word while events come, whatever the load."""
RESTING_SECONDS: Final = 3.0
"""How often it does at rest: when nothing is in work, and there is nothing to say. All members on a machine do so in
the same moments, so that one batch of a partition takes the words of many."""
RESTING_SILENT_SECONDS: Final = 7.0
"""For how long its shares are kept then: another member at rest notices its death within ten seconds."""
UNSETTLED_SECONDS: Final = 0.25
"""How often it does while shares change hands."""
ANSWER_SECONDS: Final = 3.0
"""After so long without an answer it gives word again."""
PATIENCE: Final = 3
"""A member is silent for no longer than this many times what an answer takes, and its shares are kept so long."""
MARGIN: Final = 0.9
"""It hands nothing out in the last tenth of that time, because others may have its shares."""
BLOCK_MILLISECONDS: Final = 1_000
LOOK_SECONDS: Final = 1.0
GIVE_BACK_SECONDS: Final = 30.0
"""How long a share that others are to have is kept for what is in hand."""
LEAVING_SECONDS: Final = 5.0
HELD_UP_SECONDS: Final = 10.0

log = logging.getLogger("statewright")


class Engine(NamedTuple):
    """What a member asks of the engine. Everything raises what awaiting an answer raises."""

    read_events: ReadEvents
    find_position: FindPosition
    open: Callable[[OpenSubscription], Awaitable[int]]
    """Sees that the subscription exists; returns how often it tries an event."""
    sync: Callable[[SyncSubscription, float], Awaitable[SyncedReply]]
    """Gives word, and waits so many seconds for the answer; it may be awaited again after NoAnswer."""


class NamedSubscription:
    """An endless `async for` over this member's part of a named subscription's events.

        async with client.subscribe("billing") as events:
            async for event in events:
                await bill(event)
                await events.acknowledge(event)

    Every event that passes the filter is handed out at least once, to one member at a time; those of one tree of runs
    in order. What was not acknowledged when a member left, or died, is handed out again. Whoever handles several events
    at once keeps the order of a tree (`statewright.ids.tree_tag`) by itself.

    No more than `in_flight` events are handed out and neither acknowledged nor refused: then iterating waits.

    Iterating raises what a `Subscription` does. `EventsMissed` and `EraBegan` count as acknowledged when the next event
    is asked for. It raises `SubscriptionNotFound` when the subscription was removed, and `MemberReplaced` when another
    process has joined under the member's name.
    """

    def __init__(
        self,
        opening: OpenSubscription,
        joining: SyncSubscription,
        *,
        engine: Engine,
        streams: Callable[[], EventStreams],
        partitions: int,
        since: Start,
        in_flight: int,
        patience: float,
    ) -> None:
        """Take the requests that make the subscription, where it does not exist, and that join it; `patience` is for
        how many seconds `flush` waits."""
        self._patience = patience
        self._opening, self._joining = opening, joining
        self._engine = engine
        self._make_streams = streams
        self._partitions = partitions
        self._since = since
        self._in_flight = in_flight
        self._max_tries = 1
        self._hand: Hand
        self._streams: EventStreams | None = None
        self._clock: Callable[[], float]
        self._generation = 0
        self._over: Exception | None = None
        self._good_until = 0.0
        """Until when nobody else can have the shares, by the event loop's clock."""
        self._latency = 0.0
        self._problem: StatewrightError | None = None
        """Why the last word was not answered."""
        self._rests = False
        """Whether the last word had nothing to say, so that the next one may take its time."""
        self._news: asyncio.Event
        self._hurry: asyncio.Event
        """The next word is due at once."""
        self._stirred: asyncio.Event
        """The rest is over: there is something to say, or soon will be."""
        self._synced: asyncio.Event
        self._words = 0
        """How many words were answered."""
        self._syncing: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._held_up_since: float | None = None

    @property
    def name(self) -> str:
        """The subscription's name."""
        return self._opening.name

    @property
    def member(self) -> str:
        """The member's name."""
        return self._joining.member

    @property
    def shares(self) -> list[ShareName]:
        """The shares that the member has, each a partition and a number within it."""
        return sorted(self._hand.shares) if self._streams is not None else []

    async def __aenter__(self) -> Self:
        """See that the subscription exists, and join it.

        Raises SubscriptionConflict where it exists with another filter, and what awaiting an answer raises.
        """
        if self._streams is not None:
            raise NotOpen("a subscription is entered once; make another one")
        self._clock = asyncio.get_running_loop().time
        self._news, self._synced = asyncio.Event(), asyncio.Event()
        self._hurry, self._stirred = asyncio.Event(), asyncio.Event()
        self._hand = Hand(Sieve(self._opening.filter), self._partitions, self._in_flight, self._hurry_up)
        self._streams = streams = self._make_streams()
        try:
            self._max_tries = await self._engine.open(await self._opening_at(streams))
            await self._sync(self._joining)
        except BaseException:
            await streams.close()
            raise
        if self._over is not None:
            await streams.close()
            raise self._over
        self._syncing = asyncio.create_task(self._keep_in_sync())
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Say what was acknowledged, and leave: others get the shares at once."""
        for task in (self._syncing, self._reading):
            if task is not None:
                await cancel(task)
        self._syncing = self._reading = None
        if self._over is None:
            # Where nobody answers, the shares go to others after some seconds.
            with suppress(StatewrightError, TimeoutError):
                async with asyncio.timeout(LEAVING_SECONDS):
                    await self._leave()
            self._end(NotOpen("the subscription was left"))
        if self._streams is not None:
            await self._streams.close()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        """Return the next event, however long it takes."""
        if self._streams is None:
            raise NotOpen("a subscription is read within its `async with`")
        while True:
            if self._over is not None:
                raise self._over
            if self._hand.errors:
                raise self._hand.errors.popleft()
            if self._clock() >= self._good_until:
                self._hurry_up()
            elif (event := self._hand.next(self._clock())) is not None:
                return event
            await self._wait(self._streams)

    async def acknowledge(self, *events: Event) -> bool:
        """Take note that events were handled; the engine hears of it within a second, or when the block ends.

        Returns whether all of that counts. It does not where the share was lost meanwhile, because this process did not
        run for too long, or where the subscription was left: then another member gets the event again.
        """
        await self._be_sure()
        if self._over is not None:
            return False
        counted = [self._hand.acknowledge(event) for event in events]
        self._news.set()
        return all(counted)

    async def refuse(self, event: Event, error: BaseException | str) -> bool:
        """Take note that an event could not be handled: it is handed out again after a pause, and before all later ones
        of its share that were not handed out yet. When that has failed `max_tries` times, it goes to the subscription's
        dead letters with the last error, and the share goes on.

        Returns whether that counts, as `acknowledge` does.
        """
        await self._be_sure()
        said = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        if self._over is not None or not self._hand.refuse(event, said, self._clock()):
            return False
        self._news.set()
        return True

    async def flush(self) -> None:
        """Return once the engine knows what was acknowledged until now.

        Raises what keeps the engine from answering for longer than the client's `answer_timeout`, and what has ended
        the subscription.
        """
        # The word that is under way may not say everything.
        after = self._words + 1
        try:
            async with asyncio.timeout(self._patience):
                while self._words <= after and self._over is None:
                    self._hurry_up()
                    self._synced.clear()
                    await self._synced.wait()
        except TimeoutError:
            raise self._problem or RedisUnavailable("the engine has not answered in time") from None
        if self._over is not None:
            raise self._over

    # -- handing out -------------------------------------------------------------------------------------------------

    async def _be_sure(self) -> None:
        """Wait for the engine's word where somebody else may have the shares meanwhile."""
        if self._clock() < self._good_until or self._over is not None:
            return
        self._hurry_up()
        self._synced.clear()
        await _set_within(self._synced, ANSWER_SECONDS)

    # -- reading -----------------------------------------------------------------------------------------------------

    async def _wait(self, streams: EventStreams) -> None:
        """Return when there may be something to hand out."""
        self._tell_who_holds_it_up()
        self._news.clear()
        if self._reading is None and not self._hand.is_full and self._place(streams):
            self._reading = asyncio.create_task(self._read(streams))
        now = self._clock()
        times = (now + LOOK_SECONDS, self._hand.due or 0.0, self._good_until)
        try:
            async with asyncio.timeout_at(min(time for time in times if time > now)):
                await self._news.wait()
        except TimeoutError:
            self._hand.look_again()

    def _tell_who_holds_it_up(self) -> None:
        now = self._clock()
        if not self._hand.is_full:
            self._held_up_since = None
        elif self._held_up_since is None:
            self._held_up_since = now
        elif now - self._held_up_since > HELD_UP_SECONDS:
            self._held_up_since = now
            log.warning(
                "subscription %r waits: %d events were handed out and are neither acknowledged nor refused",
                self.name,
                self._hand.in_hand,
            )

    def _place(self, streams: EventStreams) -> bool:
        """Choose where to read in each partition: where the hindmost of its shares is that takes more."""
        by_partition: defaultdict[int, list[Share]] = defaultdict(list)
        for share in self._hand.shares.values():
            if share.has_room:
                by_partition[share.partition].append(share)
        places = streams.places()
        for partition in places.keys() - by_partition.keys():
            streams.leave(partition)
        for partition, shares in by_partition.items():
            hindmost = min(share.read for share in shares)
            is_new = any(share.is_fresh for share in shares)
            if is_new or places.get(partition) != hindmost:
                streams.place(partition, hindmost, is_new=is_new)
            for share in shares:
                share.is_fresh = False
        return bool(by_partition) or any(share.unknown() for share in self._hand.shares.values())

    async def _read(self, streams: EventStreams) -> None:
        try:
            await self._read_dead_letters()
            for stretch in await streams.read(BLOCK_MILLISECONDS):
                self._hand.take(stretch)
                self._stirred.set()
        except Exception as error:
            # Whatever it is, whoever iterates hears of it.
            self._hand.errors.append(error)
        finally:
            self._reading = None
            self._news.set()

    async def _read_dead_letters(self) -> None:
        """Ask for the events of dead letters that are to be delivered again."""
        for share in list(self._hand.shares.values()):
            for sequence in share.unknown():
                page = await self._engine.read_events(share.partition, sequence - 1, None)
                found = [event for event in page.events if isinstance(event, Event) and event.sequence == sequence]
                self._hand.found(share, sequence, found[0] if found else None)

    # -- giving word -------------------------------------------------------------------------------------------------

    async def _opening_at(self, streams: EventStreams) -> OpenSubscription:
        if self._since is None:
            return self._opening
        partitions = self._opening.filter.partitions(self._partitions)
        positions = await starting_at(self._since, partitions, streams, self._engine.find_position)
        return self._opening.replaced(positions=pairs_of(positions))

    def _hurry_up(self) -> None:
        self._stirred.set()
        self._hurry.set()

    async def _keep_in_sync(self) -> None:
        is_settled = True
        while self._over is None:
            await self._pause(is_settled)
            self._hurry.clear()
            try:
                is_settled = await self._sync(self._word())
            except (NoAnswer, Overloaded, RedisUnavailable) as problem:
                log.info("no answer to member %r of subscription %r: %s", self.member, self.name, problem)
                self._problem = problem
                self._stirred.set()
                await asyncio.sleep(UNSETTLED_SECONDS)
            except Exception as error:
                # Whatever it is, whoever iterates hears of it.
                self._end(error)

    async def _pause(self, is_settled: bool) -> None:
        """Return when the next word is due."""
        if self._rests and is_settled:
            # This clock is the same in all processes of a machine.
            await _set_within(self._stirred, RESTING_SECONDS - self._clock() % RESTING_SECONDS)
            if not self._stirred.is_set():
                return
        await _set_within(self._hurry, SYNC_SECONDS if is_settled else UNSETTLED_SECONDS)

    def _word(self) -> SyncSubscription:
        """Return what the engine has not heard yet."""
        self._stirred.clear()
        said = self._hand.word(self._clock())
        self._rests = self._hand.is_idle and not any(said.values())
        silent = RESTING_SILENT_SECONDS if self._rests else SILENT_SECONDS
        return self._joining.replaced(
            joins=False,
            seconds=min(max(silent, PATIENCE * self._latency), MAX_SILENT_SECONDS),
            generation=self._generation,
            **said,
        )

    async def _leave(self) -> None:
        """Give the last word, once dead letters are stored: only then does a position pass over them."""
        word = self._word()
        while word.failed and self._over is None:
            await self._sync(word)
            word = self._word()
        # What another task acknowledges from now on is told to nobody, so it does not count.
        self._end(NotOpen("the subscription was left"))
        await self._engine.sync(word.replaced(leaves=True), LEAVING_SECONDS)

    async def _sync(self, word: SyncSubscription) -> bool:
        """Give word, and do what is answered; return whether every share is where it belongs.

        Raises what may pass: NoAnswer, Overloaded and RedisUnavailable.
        """
        sent_at = self._clock()
        try:
            reply = await self._answer(word)
        except (NoAnswer, Overloaded, RedisUnavailable):
            raise
        except StatewrightError as error:
            self._end(error)
            return True
        self._latency, self._problem = self._clock() - sent_at, None
        self._words += 1
        self._do(word, reply)
        self._good_until = sent_at + MARGIN * word.seconds
        self._synced.set()
        self._news.set()
        return reply.is_settled

    async def _answer(self, word: SyncSubscription) -> SyncedReply:
        sent = self._engine.sync(word, ANSWER_SECONDS)
        while True:
            try:
                return await sent
            except NoAnswer as error:
                if word.joins or error.timeout is None or error.delivery is Delivery.UNANSWERED:
                    raise
                # The client keeps it and sends it as soon as it can: another one would say the same.

    def _do(self, word: SyncSubscription, reply: SyncedReply) -> None:
        if reply.is_replaced:
            self._end(MemberReplaced(self.name, self.member))
            return
        hand = self._hand
        hand.take_note_of(word)
        self._generation = reply.generation
        if reply.shares is not None:
            self._stirred.set()
            lost, in_hand = hand.change(reply.shares, self._max_tries)
            if in_hand:
                told = (self.member, self.name, lost, in_hand)
                log.warning("member %r of subscription %r has lost %d shares, with %d events in hand", *told)
        hand.give_back(reply.give_back, self._clock() + GIVE_BACK_SECONDS)
        hand.deliver_again(reply.again)

    def _end(self, why: Exception) -> None:
        self._over = why
        self._synced.set()
        self._news.set()


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    """Return when the event is set, and after so many seconds at the latest."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
