"""A partition's dead letters: requests that could not be carried out, each with the reason."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

from redis.exceptions import ResponseError

from statewright.connection import Command, HeldConnection
from statewright.protocol.channels import (
    DEAD_LETTER_ENTRY,
    DEAD_LETTER_FIELD,
    DEAD_LETTER_REASON,
    DEAD_LETTER_SIZE,
    REQUEST_MESSAGE,
    Channels,
)
from statewright_worker.streams.bounds import StreamBounds
from statewright_worker.streams.proposals import Entry

HEAD_BYTES: Final = 4_096
"""How many bytes of each field a dead letter keeps."""
FIELDS_KEPT: Final = 16


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A request that could not be carried out, why, and which field was to blame."""

    entry: Entry
    reason: str
    field: str | None

    def fields(self) -> dict[bytes, bytes]:
        """Return the letter as a stream entry: the beginning of each original field, and what was wrong."""
        told = {name[:HEAD_BYTES]: value[:HEAD_BYTES] for name, value in [*self.entry.fields.items()][:FIELDS_KEPT]}
        message = self.entry.fields.get(REQUEST_MESSAGE, b"")
        if len(message) > HEAD_BYTES:
            told[DEAD_LETTER_SIZE] = str(len(message)).encode()
        wrong = {DEAD_LETTER_REASON: self.reason.encode(), DEAD_LETTER_FIELD: (self.field or "").encode()}
        return {**told, **wrong}


class DeadLetters:
    """The dead letters of one partition."""

    def __init__(self, redis: HeldConnection, channels: Channels, partition: int, bounds: StreamBounds) -> None:
        self._redis = redis
        self.key = channels.dead_letters(partition)
        self._kept = bounds.dead_letters_kept
        self._seconds = bounds.dead_letter_seconds

    def sending(self, letters: Sequence[DeadLetter]) -> Iterator[tuple[int, Command]]:
        """Yield the commands that store the letters, each with its approximate size in bytes."""
        for letter in letters:
            fields = [*chain.from_iterable(letter.fields().items())]
            # A dead letter keeps its request's id, so that Redis refuses it the second time.
            yield sum(map(len, fields)), ("XADD", self.key, "MAXLEN", "~", self._kept, letter.entry.id, *fields)
        yield 0, self.lasting()

    def lasting(self) -> Command:
        """Return the command that starts the lifetime of the stream again."""
        return ("EXPIRE", self.key, self._seconds)

    def has_newer_than(self, command: Command, refusal: ResponseError) -> bool:
        """Return whether Redis refused to store a letter because its id is below the newest letter's."""
        return command[1] == self.key and command[0] == "XADD" and "equal or smaller" in str(refusal)

    async def keep_under_another_id(self, command: Command) -> None:
        """Store the letter of such a command under a new id, unless it is there already: producers may choose any ids.

        Raises what `statewright_worker.streams.errors.REDIS_FAILED` lists.
        """
        name, key, maxlen, about, kept, entry_id, *fields = command
        if not await self._redis.ask("XRANGE", key, entry_id, entry_id):
            await self._redis.exchange((name, key, maxlen, about, kept, "*", DEAD_LETTER_ENTRY, entry_id, *fields))
