"""Asking the engine: one request after the other, each sent again until it has its answer."""

import json
import os
import random
import time
from typing import Any

from redis import Redis
from redis.exceptions import ConnectionError, OutOfMemoryError, ReadOnlyError, TimeoutError

PASSES = (ConnectionError, TimeoutError, OutOfMemoryError, ReadOnlyError)
"""What Redis says, or does not say, for a while."""
ANSWER_SECONDS = 30
MAX_BACKLOG = int(os.environ.get("STATEWRIGHT_MAX_BACKLOG", "10000"))


def say(*words: object) -> None:
    print(*words, flush=True)


class Engine:
    """The engine behind a Redis, as the client of the given name sees it."""

    def __init__(self, client: str) -> None:
        url = os.environ.get("STATEWRIGHT_REDIS_URL", "redis://127.0.0.1:6379/0")
        self.namespace = os.environ.get("STATEWRIGHT_NAMESPACE", "statewright")
        self.redis: Any = Redis.from_url(url, decode_responses=True, socket_timeout=10, socket_connect_timeout=5)
        self.partitions = int(self.until_it_passes(lambda: self.redis.get(f"{self.namespace}:partitions")) or 0)
        self.client = client
        self.replies = f"{self.namespace}:replies:{client}"
        self.last = "0-0"

    def until_it_passes(self, do: Any) -> Any:
        """Return what `do` returns that is not None; do it again, in pauses that grow, while Redis fails."""
        pause = 0.05
        while True:
            try:
                done = do()
                if done is not None:
                    return done
            except PASSES as error:
                say("again:", type(error).__name__)
            time.sleep(random.uniform(pause / 2, pause))
            pause = min(2 * pause, 1.0)

    def ask(self, partition: int, message: dict[str, Any], request_id: str) -> dict[str, Any]:
        """Return the answer. The same id and the same bytes may be sent as often as it takes."""
        stream = f"{{{self.namespace}:{partition}}}:proposals"
        entry = {"id": request_id, "reply_to": self.client, "message": json.dumps(message)}

        def ask_once() -> dict[str, Any] | None:
            if self.redis.xlen(stream) >= MAX_BACKLOG:
                say("no room")
                return None
            self.redis.xadd(stream, entry)
            answer = self.hear(request_id)
            if answer is not None and answer.get("code") == "overloaded":
                say("overloaded")
                return None
            return answer

        answer: dict[str, Any] = self.until_it_passes(ask_once)
        return answer

    def hear(self, request_id: str) -> dict[str, Any] | None:
        """Return the answer to a request, None when none comes in time. `parked` is no answer, but a sign of life."""
        until = time.monotonic() + ANSWER_SECONDS
        answer = None
        while answer is None and time.monotonic() < until:
            for _, entries in self.redis.xread({self.replies: self.last}, count=1000, block=5000) or []:
                for entry_id, answers in entries:
                    self.last = entry_id
                    said = json.loads(answers.get(request_id, "null"))
                    if said is not None and said["type"] == "parked":
                        say("parked:", said.get("reason"))
                    else:
                        answer = said or answer
        milliseconds, _, number = self.last.partition("-")
        self.redis.xtrim(self.replies, minid=f"{milliseconds}-{int(number) + 1}", approximate=False)
        return answer
