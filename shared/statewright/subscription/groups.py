"""A member of a named subscription: it works on the shares that the engine gives it, and says how far it is."""

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from heapq import heappop, heappush
from itertools import count
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from statewright.connection import cancel
from statewright.errors import (
    Delivery,
    EraBegan,
    EventsMissed,
    MemberReplaced,
    NoAnswer,
    NotOpen,
    Overloaded,
    RedisUnavailable,
    StatewrightError,
)
from statewright.events import Event
from statewright.ids import share_of, shares_per_partition
from statewright.protocol.replies import SyncedReply
from statewright.protocol.requests import (
    MAX_FAILED_AT_ONCE,
    MAX_SILENT_SECONDS,
    SILENT_SECONDS,
    OpenSubscription,
    ShareReference,
    SyncSubscription,
    Trial,
)
from statewright.subscription.filters import Sieve, event_of, tree_of
from statewright.subscription.positions import Start, pairs_of
from statewright.subscription.shares import CLEARED_SECONDS, Item, Room, Share
from statewright.subscription.stream import EventStreams, ReadEvents, Stretch, Told
from statewright.subscription.unnamed import FindPosition, starting_at, wanted

SYNC_SECONDS: Final = 1.0
"""How often a member gives word, whatever the load."""
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
WAITING_BYTES: Final = 32 * 1024 * 1024
GIVE_BACK_SECONDS: Final = 30.0
"""How long a share that others are to have is kept for what is in hand."""
LEAVING_SECONDS: Final = 5.0
HELD_UP_SECONDS: Final = 10.0

log = logging.getLogger("statewright")

ShareName = tuple[int, int]


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
        self._sieve = Sieve(opening.filter)
        self._shares_each = shares_per_partition(partitions)
        self._room = Room(WAITING_BYTES)
        self._max_tries = 1
        self._streams: EventStreams | None = None
        self._clock: Callable[[], float]
        self._generation = 0
        self._shares: dict[ShareName, Share] = {}
        self._ready: deque[Share] = deque()
        """Shares that may have something to hand out."""
        self._due: list[tuple[float, int, Share]] = []
        """When refused events are to be tried again."""
        self._numbers = count()
        self._in_hand = 0
        self._handed_out_at = 0.0
        """When something was handed out last."""
        self._on_trial: deque[Share] = deque()
        """Shares whose next events are to be tried alone."""
        self._alone: tuple[Share, Item] | None = None
        """The event that is tried alone."""
        self._told: dict[tuple[int, int], int] = {}
        """What has been raised, of each partition: up to which place."""
        self._raised: tuple[Share, Item] | None = None
        """What was raised last, which is done with when the next event is asked for."""
        self._errors: deque[StatewrightError] = deque()
        self._over: StatewrightError | None = None
        self._good_until = 0.0
        """Until when nobody else can have the shares, by the event loop's clock."""
        self._latency = 0.0
        self._problem: StatewrightError | None = None
        """Why the last word was not answered."""
        self._news: asyncio.Event
        self._hurry: asyncio.Event
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
        return sorted(self._shares)

    async def __aenter__(self) -> Self:
        """See that the subscription exists, and join it.

        Raises SubscriptionConflict where it exists with another filter, and what awaiting an answer raises.
        """
        if self._streams is not None:
            raise NotOpen("a subscription is entered once; make another one")
        self._clock = asyncio.get_running_loop().time
        self._news, self._hurry, self._synced = asyncio.Event(), asyncio.Event(), asyncio.Event()
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
        if self._raised is not None:
            share, item = self._raised
            self._raised = None
            self._acknowledge(share, item.sequence)
        while True:
            if self._over is not None:
                raise self._over
            if self._errors:
                raise self._errors.popleft()
            event = self._hand_out()
            if event is not None:
                return event
            await self._wait(self._streams)

    async def acknowledge(self, *events: Event) -> bool:
        """Take note that events were handled; the engine hears of it within a second, or when the block ends.

        Returns whether all of that counts. It does not where the share was lost meanwhile, because this process did not
        run for too long: then another member gets the event again.
        """
        await self._be_sure()
        if self._over is not None:
            return False
        counted = [self._acknowledge(self._share_of(event), event.sequence) for event in events]
        return all(counted)

    async def refuse(self, event: Event, error: BaseException | str) -> bool:
        """Take note that an event could not be handled: it is handed out again after a pause, and before all later ones
        of its share that were not handed out yet. When that has failed `max_tries` times, it goes to the subscription's
        dead letters with the last error, and the share goes on.

        Returns whether that counts, as `acknowledge` does.
        """
        await self._be_sure()
        share = None if self._over is not None else self._share_of(event)
        said = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        if share is None or not share.refuse(event.sequence, said, self._clock()):
            return False
        self._in_hand -= 1
        self._look_at(share)
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
                    self._hurry.set()
                    self._synced.clear()
                    await self._synced.wait()
        except TimeoutError:
            raise self._problem or RedisUnavailable("the engine has not answered in time") from None
        if self._over is not None:
            raise self._over

    # -- handing out -------------------------------------------------------------------------------------------------

    def _hand_out(self) -> Event | None:
        """Return the next event that may be handed out now, None without one. Raises what stands in place of some."""
        now = self._clock()
        if now >= self._good_until:
            self._hurry.set()
            return None
        while self._due and self._due[0][0] <= now:
            self._look_at(heappop(self._due)[2])
        if self._alone is not None or self._on_trial:
            event = self._hand_out_alone(now)
            if event is not None or self._alone is not None or self._on_trial:
                return event
        while self._ready and self._in_hand < self._in_flight:
            share = self._ready[0]
            item = share.next(now) if self._is_ours(share) else None
            if item is None:
                self._ready.popleft()
                share.is_ready = False
                self._await(share)
                continue
            self._ready.rotate(-1)
            if (event := self._handed_out(share, item, now)) is not None:
                return event
        return None

    def _handed_out(self, share: Share, item: Item, now: float) -> Event | None:
        """Take note that something is handed out, and return it. Raises it, where it stands in place of events."""
        what = item.what
        event = event_of(what) if isinstance(what, bytes | Event) else None
        share.hand_out(item, event, now)
        self._in_hand += 1
        self._handed_out_at = now
        if isinstance(what, EventsMissed | EraBegan):
            self._raise(share, item, what)
        return event

    def _hand_out_alone(self, now: float) -> Event | None:
        """Return the next event over which a member may have died, once nothing else is in hand, None without one.

        Nothing else is handed out until it is done with, or has been in hand for so long that it is not the one.
        """
        if self._alone is not None:
            share, item = self._alone
            if self._is_ours(share) and item.in_hand and now - item.handed_out < CLEARED_SECONDS:
                return None
            item.trial, self._alone = Trial.NONE, None
        while self._on_trial:
            share = self._on_trial[0]
            if not self._is_ours(share) or not share.awaits_trial:
                self._on_trial.popleft()
                self._look_at(share)
                continue
            if self._in_hand and now - self._handed_out_at < CLEARED_SECONDS:
                return None
            alone = share.next_alone()
            if alone is not None:
                event = self._handed_out(share, alone, now)
                self._alone = (share, alone)
                return event
            if share.awaits_trial:
                self._hurry.set()
                return None
        return None

    def _raise(self, share: Share, item: Item, what: EventsMissed | EraBegan) -> None:
        """Raise what stands in place of some events, unless another share of the partition has met it before."""
        key = share.partition, what.era if isinstance(what, EraBegan) else -1
        if self._told.get(key, 0) >= item.sequence:
            self._acknowledge(share, item.sequence)
            return
        self._told[key] = item.sequence
        self._raised = (share, item)
        raise what

    def _await(self, share: Share) -> None:
        """See that a share is looked at again when what it waits for has come."""
        if share.wants_word:
            self._hurry.set()
        if share.awaits_trial and share not in self._on_trial:
            self._on_trial.append(share)
        if share.due is not None:
            heappush(self._due, (share.due, next(self._numbers), share))

    def _look_at(self, share: Share) -> None:
        if not share.is_ready:
            share.is_ready = True
            self._ready.append(share)

    def _acknowledge(self, share: Share | None, sequence: int) -> bool:
        if share is None or not share.acknowledge(sequence):
            return False
        self._in_hand -= 1
        self._look_at(share)
        self._news.set()
        if share.leaves_at is not None and not share.in_hand:
            self._hurry.set()
        return True

    def _share_of(self, event: Event) -> Share | None:
        number = share_of(event.tree, self._partitions, self._shares_each)
        return self._shares.get((event.partition, number))

    def _is_ours(self, share: Share) -> bool:
        return self._shares.get((share.partition, share.number)) is share

    async def _be_sure(self) -> None:
        """Wait for the engine's word where somebody else may have the shares meanwhile."""
        if self._clock() < self._good_until or self._over is not None:
            return
        self._hurry.set()
        self._synced.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._synced.wait()

    # -- reading -----------------------------------------------------------------------------------------------------

    async def _wait(self, streams: EventStreams) -> None:
        """Return when there may be something to hand out."""
        self._tell_who_holds_it_up()
        self._news.clear()
        if self._reading is None and self._in_hand < self._in_flight and self._place(streams):
            self._reading = asyncio.create_task(self._read(streams))
        now = self._clock()
        times = (now + LOOK_SECONDS, *(due for due, _, _ in self._due[:1]), self._good_until)
        try:
            async with asyncio.timeout_at(min(time for time in times if time > now)):
                await self._news.wait()
        except TimeoutError:
            for share in self._shares.values():
                self._look_at(share)

    def _tell_who_holds_it_up(self) -> None:
        now = self._clock()
        if self._in_hand < self._in_flight:
            self._held_up_since = None
        elif self._held_up_since is None:
            self._held_up_since = now
        elif now - self._held_up_since > HELD_UP_SECONDS:
            self._held_up_since = now
            log.warning(
                "subscription %r waits: %d events were handed out and are neither acknowledged nor refused",
                self.name,
                self._in_hand,
            )

    def _place(self, streams: EventStreams) -> bool:
        """Choose where to read in each partition: where the hindmost of its shares is that takes more."""
        by_partition: defaultdict[int, list[Share]] = defaultdict(list)
        for share in self._shares.values():
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
        return bool(by_partition) or any(share.unknown() for share in self._shares.values())

    async def _read(self, streams: EventStreams) -> None:
        try:
            await self._read_dead_letters()
            for stretch in await streams.read(BLOCK_MILLISECONDS):
                self._take(stretch)
        except StatewrightError as error:
            self._errors.append(error)
        finally:
            self._reading = None
            self._news.set()

    def _take(self, stretch: Stretch) -> None:
        """Give what was read to the shares that it belongs to, as far as they have room for it."""
        taking = {
            number: share
            for (partition, number), share in self._shares.items()
            if partition == stretch.partition and share.has_room and share.read >= stretch.after
        }
        for told in stretch.told:
            what = told.what
            if isinstance(what, EventsMissed) and told.sequence < what.first:
                self._go_back(stretch.partition, told.sequence, what)
            elif isinstance(what, EventsMissed | EraBegan):
                for number, share in list(taking.items()):
                    self._give(taking, number, share, told)
            elif wanted(told, self._sieve):
                number = share_of(tree_of(what), self._partitions, self._shares_each)
                if number in taking:
                    self._give(taking, number, taking[number], told)
        for share in taking.values():
            share.read = max(share.read, stretch.up_to)

    def _give(self, taking: dict[int, Share], number: int, share: Share, told: Told) -> None:
        if told.sequence <= share.read:
            return
        if share.has_room:
            share.take(told.sequence, told.what)
            self._look_at(share)
        else:
            # It reads on from here when it has room again.
            share.read = told.sequence - 1
            del taking[number]

    def _go_back(self, partition: int, up_to: int, missed: EventsMissed) -> None:
        for share in self._shares.values():
            if share.partition == partition:
                before = share.in_hand
                share.go_back(up_to)
                self._in_hand -= before - share.in_hand
        self._told = {key: told for key, told in self._told.items() if key[0] != partition}
        self._errors.append(missed)

    async def _read_dead_letters(self) -> None:
        """Ask for the events of dead letters that are to be delivered again."""
        for share in list(self._shares.values()):
            for sequence in share.unknown():
                page = await self._engine.read_events(share.partition, sequence - 1, None)
                found = [event for event in page.events if isinstance(event, Event) and event.sequence == sequence]
                share.found(sequence, found[0] if found else None)
                self._look_at(share)

    # -- giving word -------------------------------------------------------------------------------------------------

    async def _opening_at(self, streams: EventStreams) -> OpenSubscription:
        if self._since is None:
            return self._opening
        partitions = self._opening.filter.partitions(self._partitions)
        positions = await starting_at(self._since, partitions, streams, self._engine.find_position)
        return self._opening.replaced(positions=pairs_of(positions))

    async def _keep_in_sync(self) -> None:
        pause = SYNC_SECONDS
        while self._over is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._hurry.wait()
            self._hurry.clear()
            try:
                is_settled = await self._sync(self._word())
            except (NoAnswer, Overloaded, RedisUnavailable) as problem:
                log.info("no answer to member %r of subscription %r: %s", self.member, self.name, problem)
                self._problem = problem
                await asyncio.sleep(UNSETTLED_SECONDS)
            else:
                pause = SYNC_SECONDS if is_settled else UNSETTLED_SECONDS

    def _word(self) -> SyncSubscription:
        """Return what the engine has not heard yet."""
        shares, now = list(self._shares.values()), self._clock()
        leaving = [
            share for share in shares if share.leaves_at is not None and (not share.in_hand or share.leaves_at <= now)
        ]
        acknowledged = [(share, share.acknowledged()) for share in shares]
        return self._joining.replaced(
            joins=False,
            seconds=min(max(SILENT_SECONDS, PATIENCE * self._latency), MAX_SILENT_SECONDS),
            generation=self._generation,
            acknowledged=tuple(said for share, said in acknowledged if said != share.said),
            given_back=tuple(share.reference for share in leaving),
            failed=_first(share.failed() for share in shares),
            dealt_with=_first(share.dealt_with() for share in shares),
        )

    async def _leave(self) -> None:
        """Give the last word, once dead letters are stored: only then does a position pass over them."""
        word = self._word()
        while word.failed and self._over is None:
            await self._sync(word)
            word = self._word()
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
        self._take_note_of(word)
        self._generation = reply.generation
        if reply.shares is not None:
            self._change_shares(reply)
        asked = {(given.partition, given.share) for given in reply.give_back}
        for name, share in self._shares.items():
            if name not in asked:
                share.leaves_at = None
            elif share.leaves_at is None:
                share.leaves_at = self._clock() + GIVE_BACK_SECONDS
            if share.leaves_at is not None and not share.in_hand:
                self._hurry.set()
        for again in reply.again:
            if (meant := self._meant(again)) is not None:
                meant.deliver_again(again.sequence)
        for share in self._shares.values():
            self._look_at(share)

    def _take_note_of(self, word: SyncSubscription) -> None:
        """Take note that the engine has heard this."""
        for said in word.acknowledged:
            if (share := self._meant(said)) is not None:
                share.heard(said)
        for failed in word.failed:
            if (share := self._meant(failed)) is not None:
                share.stored(failed)
        for letter in word.dealt_with:
            if (share := self._meant(letter)) is not None:
                share.settled(letter)
        for given in word.given_back:
            if (share := self._meant(given)) is not None:
                self._drop(share)

    def _change_shares(self, reply: SyncedReply) -> None:
        owned = {(told.partition, told.share): told for told in reply.shares or ()}
        lost = [share for name, share in self._shares.items() if owned.get(name) is None]
        changed = [share for name, share in self._shares.items() if name in owned and owned[name].epoch != share.epoch]
        in_hand = sum(share.in_hand for share in (*lost, *changed))
        for share in (*lost, *changed):
            self._drop(share)
        if in_hand:
            log.warning(
                "member %r of subscription %r has lost %d shares with %d events in hand, which are delivered again",
                self.member,
                self.name,
                len(lost) + len(changed),
                in_hand,
            )
        for name, told in owned.items():
            if name not in self._shares:
                self._shares[name] = Share(told, self._max_tries, self._room)

    def _drop(self, share: Share) -> None:
        if self._is_ours(share):
            self._in_hand -= share.in_hand
            share.go_back(-1)
            del self._shares[share.partition, share.number]

    def _meant(self, said: ShareReference) -> Share | None:
        """Return the share that is meant, if it is still the member's in that epoch."""
        share = self._shares.get((said.partition, said.share))
        return share if share is not None and share.epoch == said.epoch else None

    def _end(self, why: StatewrightError) -> None:
        self._over = why
        self._synced.set()
        self._news.set()


def _first(some: Any) -> tuple[Any, ...]:
    """Return as many of what shares have to say as a message takes; the next one says the rest."""
    every: Sequence[Any] = [one for said in some for one in said]
    return tuple(every[:MAX_FAILED_AT_ONCE])
