"""Every name that Statewright uses in Redis, on one page.

Keys of one partition share the hash tag `{namespace:p}`, so a Redis Cluster keeps them together.

    {ns:p}:proposals      stream   requests of partition p, oldest first; an entry with `wake` alone is none: it
                                   asks the holder to look at what has come due
    {ns:p}:events         stream   state changes of partition p, and its eras; an entry's id is `<sequence>-0`
    {ns:p}:dead-letters   stream   requests that could not be carried out; an entry keeps its request's id
    {ns:p}:suspect        string   the request over which holders of partition p have vanished, and how often
    ns:replies:<client>   stream   answers for one client; an entry with `opened` alone is none: it is the sign of the
                                   client that has this name from then on
    ns:queries            stream   reads beside the lanes; every worker reads it as one consumer group
    ns:holders            hash     who drains each partition, until when and since when; one field per partition
    ns:workers            zset     live workers, scored by the millisecond at which each is given up
    ns:announced          hash     what each worker says of itself, for people; one field per worker
    ns:partitions         string   the fixed number of partitions
    ns:database           string   the id of the database that this namespace belongs to
    ns:queue              zset     arq's queue

How large each may grow, and how long it lives:

    {ns:p}:proposals      STATEWRIGHT_MAX_BACKLOG entries and STATEWRIGHT_MAX_BACKLOG_BYTES, of which clients are told
                          before they push; of a flood of twice that the newest are refused; trimmed once answered
    {ns:p}:events         STATEWRIGHT_EVENTS_KEPT entries and STATEWRIGHT_EVENTS_BYTES, about; what is older is read
                          from PostgreSQL
    {ns:p}:dead-letters   STATEWRIGHT_DEAD_LETTERS_KEPT entries, about, of the heads of their fields (4,096 bytes each);
                          expires STATEWRIGHT_DEAD_LETTER_SECONDS after the last one
    {ns:p}:suspect        one id; expires an hour after the last holder vanished
    ns:replies:<client>   STATEWRIGHT_REPLIES_KEPT entries, about, each of 64 KiB or one answer; the client deletes what
                          it has received; expires STATEWRIGHT_REPLY_SECONDS after the last one
    ns:queries            as many entries as a partition's proposals, of which clients are told before they push; an
                          entry goes when it is answered, and unanswered once nobody waits for it any more
    ns:holders            one field per partition; expires a day after the last worker
    ns:workers            one member per live worker; expires a day after the last one
    ns:announced          one field per worker, and a few of dead ones; expires a day after the last worker
    ns:partitions         one number; stays
    ns:database           one id; stays
    ns:queue              bounded by the number of arq's jobs
"""

from dataclasses import dataclass
from typing import Final

REQUEST_ID: Final = b"id"
REQUEST_REPLY_TO: Final = b"reply_to"
REQUEST_ACTOR: Final = b"actor"
"""Who asks: no part of the message, so whoever sends it again asks for the same, whoever that is."""
REQUEST_MESSAGE: Final = b"message"
WAKE: Final = b"wake"
"""The only field of an entry that is no request: it asks the partition's holder to look at what has come due."""
OPENED: Final = b"opened"
"""The only field of an entry of a reply stream that is no answer: a client with a name signs with it when it is opened.
Its value is the id of the sign, empty where that is the entry's own; the client with the greatest has the name."""
EVENT_BODY: Final = b"event"
"""The only field of an entry of an event stream: a change of state or the beginning of an era."""
DEAD_LETTER_REASON: Final = b"reason"
DEAD_LETTER_FIELD: Final = b"field"
DEAD_LETTER_SIZE: Final = b"size"
"""How many bytes the message had of which a dead letter keeps the head."""
DEAD_LETTER_ENTRY: Final = b"entry"
"""The id of the request's entry, where the letter could not have it."""

_GREATEST: Final = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Channels:
    """The names within one namespace: several Statewrights can share one Redis."""

    namespace: str = "statewright"

    def proposals(self, partition: int) -> str:
        return self._of(partition, "proposals")

    def events(self, partition: int) -> str:
        return self._of(partition, "events")

    def dead_letters(self, partition: int) -> str:
        return self._of(partition, "dead-letters")

    def suspect(self, partition: int) -> str:
        return self._of(partition, "suspect")

    def replies(self, client: str) -> str:
        return f"{self.namespace}:replies:{client}"

    @property
    def queries(self) -> str:
        return f"{self.namespace}:queries"

    @property
    def holders(self) -> str:
        return f"{self.namespace}:holders"

    @property
    def database(self) -> str:
        return f"{self.namespace}:database"

    @property
    def partitions(self) -> str:
        return f"{self.namespace}:partitions"

    @property
    def workers(self) -> str:
        return f"{self.namespace}:workers"

    @property
    def announced(self) -> str:
        return f"{self.namespace}:announced"

    @property
    def queue(self) -> str:
        return f"{self.namespace}:queue"

    def _of(self, partition: int, name: str) -> str:
        return f"{{{self.namespace}:{partition}}}:{name}"


def following(entry_id: str) -> str:
    """Return the least id that a stream's entry behind this one can have: trimming to it keeps what comes after."""
    milliseconds, _, number = entry_id.partition("-")
    if int(number) < _GREATEST:
        return f"{milliseconds}-{int(number) + 1}"
    if int(milliseconds) < _GREATEST:
        return f"{int(milliseconds) + 1}-0"
    # The last id that there is: nothing can come behind it.
    return entry_id


def sequence_of(entry_id: bytes) -> int:
    """Return the sequence number that the id of an event's entry stands for."""
    return int(entry_id.partition(b"-")[0])
