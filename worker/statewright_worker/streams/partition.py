"""The streams of one partition as its drain uses them: what a batch tells the world leaves together."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

import structlog
from redis.asyncio import ConnectionPool
from redis.exceptions import OutOfMemoryError, ResponseError

from statewright.connection import Command, HeldConnection, passing
from statewright.protocol.channels import WAKE, Channels
from statewright_worker.streams.bounds import StreamBounds
from statewright_worker.streams.dead_letters import DeadLetter, DeadLetters
from statewright_worker.streams.events import Appended, Events, SequencedEvent
from statewright_worker.streams.overdraft import Overdraft
from statewright_worker.streams.owed import Owed
from statewright_worker.streams.proposals import Proposals
from statewright_worker.streams.replies import CLIENTS_REMEMBERED, ENTRY_BYTES, Replies, Reply

ROUND_TRIP_BYTES: Final = 8 * 1024 * 1024
"""About how many bytes are sent in one round trip."""

log = structlog.get_logger()


@dataclass(slots=True)
class Publication:
    """What a batch tells the world, once it is committed."""

    follows: int = 0
    """The sequence number with which the event stream ends before these events."""
    events: list[SequencedEvent] = field(default_factory=list)
    replies: dict[str, list[Reply]] = field(default_factory=dict)
    """The answers by client."""
    dead_letters: list[DeadLetter] = field(default_factory=list)
    wakes: set[int] = field(default_factory=set)
    """The other partitions whose holders must look at what has come due."""
    erased: Sequence[int] = ()
    """The sequence numbers of events that went with their runs."""
    largest_reply: int = 0
    """How many bytes the largest of the answers takes."""


class PartitionStreams:
    """The streams of one partition, on one connection: the drain that uses them does one thing at a time.

    Every method raises what `statewright_worker.streams.errors.REDIS_FAILED` lists: a ResponseError only when Redis
    refuses for a reason that passes.
    """

    def __init__(self, pool: ConnectionPool, channels: Channels, partition: int, bounds: StreamBounds) -> None:
        """Make them for the event loop that runs; the connection is made when it is first used."""
        self._redis = redis = HeldConnection(pool)
        self._channels = channels
        self.proposals = Proposals(redis, channels, partition)
        self.events = Events(redis, channels, partition, bounds)
        self._replies = Replies(channels, bounds)
        self._dead_letters = DeadLetters(redis, channels, partition, bounds)
        self._owed = Owed(bounds.reply_seconds)
        self._overdraft = Overdraft(redis, self.proposals.key)
        self._undeliverable: set[str] = set()
        """The keys of which the log says already that they take no answers."""

    async def close(self) -> None:
        """Give the connection back."""
        self._tell_what_was_given_up(len(self._owed))
        await self._redis.close()

    async def publish(self, publication: Publication) -> Appended | None:
        """Send events, dead letters and answers, in this order; return what became of the events, None without any.

        An answer that cannot be delivered, because its client's key is of another type, keeps no other answer back.
        What a full Redis refuses is owed until `settle` has sent it; events are not owed: PostgreSQL has them. Neither
        is it owed to wake other partitions: their holders look by themselves now and then. Events of
        deleted runs that are not erased now leave the stream like all others, once it has grown.
        """
        events, commands = publication.events, self._replies.sending(publication.replies)
        if publication.dead_letters:
            commands = chain(self._dead_letters.sending(publication.dead_letters), commands)
        if self._owed:
            self._owed.add(command for _, command in commands if command[0] == "XADD")
            return Appended(False, None) if events else None
        woken = {self._channels.proposals(partition) for partition in publication.wakes}
        if woken:
            commands = chain(commands, [(0, ("XADD", stream, "*", WAKE, b"")) for stream in woken])
        if publication.erased:
            commands = chain(commands, [(0, self.events.erasing(publication.erased))])
        if events:
            size = sum([len(event.body) for event in events])
            commands = chain([(size, self.events.appending(publication.follows, events))], commands)
        appended: Appended | None = None
        for together in _in_round_trips(commands):
            answers = await self._redis.exchange(*together)
            if events and appended is None:
                # Answers go out, whatever is wrong with the event stream.
                appended = self.events.appended(answers.pop(0), events)
                together.pop(0)
            for command, answer in zip(together, answers, strict=True):
                if isinstance(answer, ResponseError) and command[1] not in woken:
                    await self._refused_once(command, answer)
        return appended

    @property
    def owes(self) -> bool:
        """Whether there are answers or dead letters that Redis had no room for."""
        return bool(self._owed)

    async def settle(self, answered: str) -> OutOfMemoryError | None:
        """Delete the requests up to `answered`, and send what is owed; return what Redis says when it has no room.

        Producers that push all the time would take any room before an answer gets it. So answers are sent beyond the
        bound of Redis, up to an overdraft. Beyond its bound Redis refuses pushes, and only readers change its size.
        """
        while True:
            owed = self._owed.oldest(ENTRY_BYTES)
            told = await self._overdraft.send(answered, owed)
            full: OutOfMemoryError | None = None
            filled: set[str] = set()
            for command, answer in zip(owed, told, strict=True):
                if isinstance(answer, OutOfMemoryError):
                    full = answer
                elif isinstance(answer, ResponseError):
                    await self._refused(command, answer)
                else:
                    filled.add(str(command[1]))
            self._owed.settle([not isinstance(answer, OutOfMemoryError) for answer in told])
            # Only the streams that were filled: one that nobody reads must expire, even when more is owed to it.
            await self._give_lifetimes(filled)
            if full is not None and not filled:
                return full
            if not self._owed:
                self._tell_what_was_given_up()
                return None

    async def _give_lifetimes(self, streams: Iterable[str]) -> None:
        letters = self._dead_letters
        commands = [letters.lasting() if key == letters.key else self._replies.lasting(key) for key in streams]
        if commands:
            await self._redis.exchange(*commands)

    def _tell_what_was_given_up(self, left: int = 0) -> None:
        given_up, self._owed.given_up = self._owed.given_up + left, 0
        if given_up:
            log.warning(
                "Redis was full: answers were given up; who asks again gets them",
                key=self.proposals.key,
                entries=given_up,
            )

    async def _refused_once(self, command: Command, refusal: ResponseError) -> None:
        if isinstance(refusal, OutOfMemoryError):
            self._owed.add([command])
        else:
            await self._refused(command, refusal)

    async def _refused(self, command: Command, refusal: ResponseError) -> None:
        if passing(refusal):
            raise refusal
        if self._dead_letters.has_newer_than(command, refusal):
            await self._dead_letters.keep_under_another_id(command)
        else:
            self._tell_of(str(command[1]), refusal)

    def _tell_of(self, key: str, refusal: ResponseError) -> None:
        """Log it once for each key: a producer whose key is no stream would fill the log."""
        if key not in self._undeliverable and len(self._undeliverable) < CLIENTS_REMEMBERED:
            self._undeliverable.add(key)
            log.warning("an answer or a dead letter cannot be delivered", key=key, error=str(refusal))


def _in_round_trips(commands: Iterable[tuple[int, Command]]) -> Iterator[list[Command]]:
    together: list[Command] = []
    size = 0
    for added, command in commands:
        together.append(command)
        size += added
        if size > ROUND_TRIP_BYTES:
            yield together
            together, size = [], 0
    if together:
        yield together
