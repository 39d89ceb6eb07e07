"""A subscriber: tells each change of a state once and in order, and notices what is missing.

    python subscriber.py positions.json

It keeps its positions in the file and goes on there; without one, it begins with what is new.
"""

import json
import sys
import uuid
from pathlib import Path
from typing import Any

from engine import Engine, say


def last_before(event: dict[str, Any]) -> int:
    """Return the last number that must have come before the event."""
    sequence = int(event["sequence"])
    is_era = event["type"] == "statewright.era.began"
    return min(sequence - 1, event["data"]["went_back_to"]) if is_era else sequence - 1


class Subscriber:
    def __init__(self, engine: Engine, kept: Path) -> None:
        self.engine, self.kept = engine, kept
        self.streams = {f"{{{engine.namespace}:{number}}}:events": number for number in range(engine.partitions)}
        self.positions: dict[int, int] = {}

    def listen(self) -> None:
        was = json.loads(self.kept.read_text()) if self.kept.exists() else {}
        for stream, partition in self.streams.items():
            newest = self.engine.until_it_passes(lambda stream=stream: self.engine.redis.xrevrange(stream, count=1))
            ends_with = int(newest[0][0].partition("-")[0]) if newest else 0
            self.positions[partition] = was.get(str(partition), ends_with)
            if ends_with < self.positions[partition]:
                self.look_back(partition)
        self.keep()
        say("listening")
        while True:
            at = {stream: f"{self.positions[partition]}-0" for stream, partition in self.streams.items()}
            read = self.engine.until_it_passes(lambda at=at: self.engine.redis.xread(at, count=500, block=5000) or [])
            for stream, entries in read:
                for _, fields in entries:
                    event = json.loads(fields["event"])
                    self.read_back(self.streams[stream], last_before(event))
                    self.tell(self.streams[stream], event)
            self.keep()

    def keep(self) -> None:
        new = self.kept.with_suffix(".new")
        new.write_text(json.dumps(self.positions))
        new.replace(self.kept)

    def tell(self, partition: int, event: dict[str, Any]) -> None:
        if last_before(event) > self.positions[partition]:
            say("missed", partition, self.positions[partition] + 1, last_before(event))
        if int(event["sequence"]) > self.positions[partition]:
            self.positions[partition] = int(event["sequence"])
            data = event["data"]
            if event["type"] == "statewright.era.began":
                say("undone", partition, data["went_back_to"] + 1, data["undone_up_to"])
            else:
                say(event["id"], event["type"], data["resource"]["name"])

    def read_back(self, partition: int, up_to: int) -> None:
        """Tell what the stream no longer has, as far as PostgreSQL has it."""
        after = self.positions[partition]
        while after < up_to:
            page = self.page(partition, after)
            for event in page["events"]:
                self.tell(partition, event)
            if page["up_to"] <= after:
                break
            after = page["up_to"]

    def look_back(self, partition: int) -> None:
        """Ask whether what was told did happen, because the stream ends before the position."""
        position = self.positions[partition]
        self.positions[partition] = min(position, self.page(partition, position)["up_to"])
        if self.positions[partition] < position:
            say("undone", partition, self.positions[partition] + 1, position)

    def page(self, partition: int, after: int) -> dict[str, Any]:
        message = {"type": "read_events", "partition": partition, "after": after}
        answer = self.engine.ask(partition, message, str(uuid.uuid4()))
        # Who may not ask for old events goes on behind the gap.
        return answer if answer["type"] == "events" else {"events": [], "up_to": after}


if __name__ == "__main__":
    Subscriber(Engine(f"subscriber-{uuid.uuid4()}"), Path(sys.argv[1])).listen()
