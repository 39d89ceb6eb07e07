"""Reading events back: a worker makes what a partition's stream no longer holds from the histories."""

from statewright.events import Event
from statewright.protocol.replies import EventsReply, PositionReply, Reply
from statewright.protocol.requests import FindPosition, ReadEvents
from statewright_worker.facts.base import PAGE_BYTES
from statewright_worker.facts.batch import Asked
from statewright_worker.orchestration.engine import Engine
from statewright_worker.requests.base import InBatch, Incoming, Kind
from statewright_worker.streams.encoding import era_at, event_body


class ReadEventsKind(Kind[ReadEvents]):
    """Reads a page of a partition's events."""

    answer_bytes = 2 * PAGE_BYTES

    def place(self, request: ReadEvents, partitions: int) -> tuple[str, int]:
        return "partition", request.partition

    def ask(self, request: ReadEvents, asked: Asked, engine: Engine) -> None:
        asked.changes.after.add(request.after)

    async def carry_out(self, request: ReadEvents, incoming: Incoming, batch: InBatch) -> Reply:
        page = batch.work.events[request.after]
        # After PostgreSQL went back in time, its last event may be before the position asked for; the answer says so.
        up_to = min(page.up_to, batch.sequence)
        events = [
            Event.model_validate_json(event_body(change, batch.partition, number, era_at(batch.eras, number)))
            for number, change in page.changes
        ]
        eras = [era for era in batch.eras if request.after < era.sequence <= up_to]
        return EventsReply(events=tuple(events), eras=tuple(eras), up_to=up_to)


class FindPositionKind(Kind[FindPosition]):
    """Finds where in a partition a moment is."""

    def place(self, request: FindPosition, partitions: int) -> tuple[str, int]:
        return "partition", request.partition

    def ask(self, request: FindPosition, asked: Asked, engine: Engine) -> None:
        asked.changes.since.add(request.since)

    async def carry_out(self, request: FindPosition, incoming: Incoming, batch: InBatch) -> Reply:
        return PositionReply(position=batch.work.positions[request.since])
