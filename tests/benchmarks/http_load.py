"""A closed loop of task runs over a Prefect server's HTTP interface, on kept-alive connections."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any, Final
from uuid import uuid4

TASKS_PER_FLOW: Final = 10
STATES: Final = ("PENDING", "RUNNING", "COMPLETED")
ERROR: Final = 400


class Refused(Exception):
    """The server has answered with an error."""


@dataclass
class Connection:
    """One kept-alive connection; one request at a time."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return what is answered. Raises Refused."""
        content = json.dumps(body).encode()
        head = f"POST /api{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self.writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        status, *headers = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        lengths = [line.partition(":")[2] for line in headers if line.lower().startswith("content-length:")]
        answer = await self.reader.readexactly(int(lengths[0]) if lengths else 0)
        if int(status.split()[1]) >= ERROR:
            raise Refused(f"{path}: {status} {answer[:200]!r}")
        told: dict[str, Any] = json.loads(answer)
        return told


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()


@dataclass
class Result:
    """What came out of a loop; latencies are milliseconds."""

    seconds: float
    answered: int = 0
    latencies: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.answered / self.seconds

    def percentile(self, number: int) -> float:
        return quantiles(self.latencies, n=100)[number - 1]


async def closed_loop(port: int, concurrency: int, seconds: float, warm_up: float) -> Result:
    """Let `concurrency` task runs be in flight, each awaiting its answer; count what is answered after the warm-up."""
    result = Result(seconds)
    async with connected(port) as connection:
        flow = await connection.post("/flows/", {"name": "bench"})
    opens = time.monotonic() + warm_up
    await asyncio.gather(*[_propose_in_turn(port, flow["id"], opens, result) for _ in range(concurrency)])
    return result


async def _propose_in_turn(port: int, flow_id: str, opens: float, result: Result) -> None:
    closes = opens + result.seconds
    async with connected(port) as connection:
        while time.monotonic() < closes:
            # Its task runs may only run while it does.
            running = {"flow_id": flow_id, "name": "bench", "state": {"type": "RUNNING"}}
            flow_run = await connection.post("/flow_runs/", running)
            for _ in range(TASKS_PER_FLOW):
                await _task_run(connection, flow_run["id"], opens, result)
                if time.monotonic() > closes:
                    break


async def _task_run(connection: Connection, flow_run_id: str, opens: float, result: Result) -> None:
    wanted = {"flow_run_id": flow_run_id, "task_key": "bench", "dynamic_key": uuid4().hex, "name": "bench"}
    task_run = await connection.post("/task_runs/", wanted)
    for state in STATES:
        asked = time.monotonic()
        answer = await connection.post(f"/task_runs/{task_run['id']}/set_state", {"state": {"type": state}})
        if answer["status"] != "ACCEPT":
            raise Refused(f"{state}: {answer}")
        answered = time.monotonic()
        if opens <= answered < opens + result.seconds:
            result.answered += 1
            result.latencies.append(1_000 * (answered - asked))
