"""A producer that fills Redis up with requests, and whether they are carried out and answered."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID, uuid4

from redis.asyncio import Redis

from statewright.connection import cancel
from statewright.ids import partition_of
from statewright.protocol.channels import REQUEST_ID, REQUEST_MESSAGE, REQUEST_REPLY_TO
from tests.deployment import Deployment, until

ROOM_BYTES = 2_000_000
"""How many bytes of memory are left for requests, each of which takes about 300."""
AT_A_TIME = 100
AT_MOST = 50_000


@asynccontextmanager
async def meanwhile(do: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Do something over and over."""

    async def over_and_over() -> None:
        while True:
            await do()

    running = asyncio.create_task(over_and_over())
    try:
        yield
    finally:
        await cancel(running)


@dataclass
class Producer:
    """Pushes requests to create runs, each to its own partition."""

    redis: Redis
    deployment: Deployment
    partitions: int
    name: str = "raw"
    runs: dict[bytes, UUID] = field(default_factory=dict)
    """The runs whose requests Redis has acknowledged, by request."""
    told: dict[bytes, str] = field(default_factory=dict)
    """What it was told about its requests: the type of the answer."""

    @property
    def replies(self) -> str:
        return self.deployment.channels.replies(self.name)

    async def fill(self) -> None:
        """Let Redis have no more than a little memory, and push until it is used up."""
        used = int((await self.redis.info("memory"))["used_memory"])
        await self.redis.config_set("maxmemory", used + ROOM_BYTES)
        for _ in range(AT_MOST // AT_A_TIME):
            if not await self.push(AT_A_TIME):
                return
        raise AssertionError("something makes room while Redis is filled")

    async def push(self, count: int) -> bool:
        """Push so many requests; return whether Redis took them all."""
        pipeline = self.redis.pipeline(transaction=False)
        pushed: list[tuple[bytes, UUID]] = []
        for _ in range(count):
            request, run = str(uuid4()).encode(), uuid4()
            message = {"v": 1, "type": "create_flow_run", "run_id": str(run), "name": "x" * 150}
            fields = {REQUEST_ID: request, REQUEST_REPLY_TO: self.name, REQUEST_MESSAGE: json.dumps(message)}
            pipeline.xadd(self.deployment.channels.proposals(partition_of(run, self.partitions)), fields)  # type: ignore[arg-type]  # its dict is invariant
            pushed.append((request, run))
        answers = await pipeline.execute(raise_on_error=False)
        taken = [one for one, answer in zip(pushed, answers, strict=True) if isinstance(answer, bytes)]
        self.runs.update(taken)
        return len(taken) == count

    def reading(self) -> AbstractAsyncContextManager[None]:
        """Read answers meanwhile, and delete what is read."""
        return meanwhile(self._read)

    def pressing(self) -> AbstractAsyncContextManager[None]:
        """Push on meanwhile, whether Redis takes it or not."""
        return meanwhile(lambda: self.push(AT_A_TIME))

    async def _read(self) -> None:
        for _, entries in await self.redis.xread({self.replies: "0"}, block=100):
            for entry_id, answers in entries:
                self.told.update({request: json.loads(body)["type"] for request, body in answers.items()})
                await self.redis.xdel(self.replies, entry_id)

    async def all_carried_out(self) -> bool:
        """Return whether PostgreSQL has every run whose request was acknowledged, and no request is left in Redis."""
        if any([await self.redis.xlen(stream) for stream in self._streams]):
            return False
        query = "SELECT count(*) FROM flow_run WHERE id = ANY($1)"
        [[created]] = await self.deployment.fetch(query, list(self.runs.values()))
        return bool(created == len(self.runs))

    async def all_told(self) -> None:
        """Return once every request that was acknowledged has been answered with its run."""

        async def all_are() -> bool:
            return self.runs.keys() <= self.told.keys()

        await until(all_are)
        assert {self.told[request] for request in self.runs} == {"run"}

    @property
    def _streams(self) -> list[str]:
        return [self.deployment.channels.proposals(partition) for partition in range(self.partitions)]
