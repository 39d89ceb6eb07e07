"""Every name that Statewright uses in Redis, on one page.

Keys of one partition share the hash tag `{namespace:p}`, so a Redis Cluster keeps them together.

    {ns:p}:proposals      stream   requests of partition p, oldest first
    {ns:p}:events         stream   state changes of partition p, and its eras; an entry's id is `<sequence>-0`
    {ns:p}:dead-letters   stream   requests that could not be carried out; an entry keeps its request's id
    ns:replies:<client>   stream   answers for one client
    ns:owners             hash     who drains each partition, and until when; one field per partition
    ns:workers            zset     live workers, scored by the millisecond at which each is given up
    ns:partitions         string   the fixed number of partitions
    ns:database           string   the id of the database that this namespace belongs to
    ns:queue              zset     arq's queue

How large each may grow, and how long it lives:

    {ns:p}:proposals      trimmed once answered
    {ns:p}:events         STATEWRIGHT_EVENTS_KEPT entries, about; what is older is read from PostgreSQL
    {ns:p}:dead-letters   10,000 entries
    ns:replies:<client>   the client deletes what it has received; expires when it is idle
    ns:owners             one field per partition; stays
    ns:workers            one member per live worker; dead ones are removed when they are found
    ns:partitions         one number; stays
    ns:database           one id; stays
    ns:queue              bounded by the number of arq's jobs
"""

from dataclasses import dataclass
from typing import Final

REQUEST_ID: Final = b"id"
REQUEST_REPLY_TO: Final = b"reply_to"
REQUEST_MESSAGE: Final = b"message"
EVENT_BODY: Final = b"event"
ERA_BODY: Final = b"era"
"""An entry of an event stream carries one of the two."""
DEAD_LETTER_REASON: Final = b"reason"
DEAD_LETTER_FIELD: Final = b"field"

REPLY_STREAM_TTL_SECONDS: Final = 3_600

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

    def owner(self, partition: int) -> str:
        return self._of(partition, "owner")

    def replies(self, client: str) -> str:
        return f"{self.namespace}:replies:{client}"

    @property
    def owners(self) -> str:
        return f"{self.namespace}:owners"

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
    def queue(self) -> str:
        return f"{self.namespace}:queue"

    def drain_job(self, partition: int) -> str:
        return f"{self.namespace}:drain:{partition}"

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
