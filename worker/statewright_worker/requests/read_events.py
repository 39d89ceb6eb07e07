"""Reading events back: a worker makes what a partition's stream no longer holds from the histories."""

from statewright.protocol.replies import PositionReply, Reply
from statewright.protocol.requests import PROTOCOL_VERSION, FindPosition, ReadEvents
from statewright_worker.facts.base import PAGE_BYTES
from statewright_worker.facts.batch import Asked
from statewright_worker.orchestration.engine import Engine
from statewright_worker.requests.base import EncodedReply, InBatch, Incoming, Kind


class ReadEventsKind(Kind[ReadEvents]):
    """Reads a page of a partition's events."""

    answer_bytes = 2 * PAGE_BYTES

    def place(self, request: ReadEvents, partitions: int) -> tuple[str, int]:
        return "partition", request.partition

    def ask(self, request: ReadEvents, asked: Asked, engine: Engine) -> None:
        asked.changes.after.add(request.after)

    async def carry_out(self, request: ReadEvents, incoming: Incoming, batch: InBatch) -> EncodedReply:
        page = batch.work.events[request.after]
        # After PostgreSQL went back in time, its last event may be before the position asked for; the answer says so.
        up_to = min(page.up_to, batch.sequence)
        events = b",".join([event.body for event in batch.read_back(page.changes, request.after, up_to)])
        # An EventsReply: the events are in it as they are in the stream.
        told = (PROTOCOL_VERSION, events, up_to, page.pruned_up_to)
        body = b'{"type":"events","v":%d,"events":[%b],"up_to":%d,"pruned_up_to":%d}' % told
        return EncodedReply("events", body)


class FindPositionKind(Kind[FindPosition]):
    """Finds where in a partition a moment is."""

    def place(self, request: FindPosition, partitions: int) -> tuple[str, int]:
        return "partition", request.partition

    def ask(self, request: FindPosition, asked: Asked, engine: Engine) -> None:
        asked.changes.since.add(request.since)

    async def carry_out(self, request: FindPosition, incoming: Incoming, batch: InBatch) -> Reply:
        return PositionReply(position=batch.work.positions[request.since])
