"""Maintenance: what one of the workers does once a minute or an hour, as jobs of arq. The only module that knows arq.

Nothing that a request waits for depends on it.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from arq.connections import ArqRedis
from arq.cron import cron
from arq.worker import Worker
from redis.asyncio import ConnectionPool

from statewright.ids import IdSource
from statewright.protocol.channels import Channels
from statewright_worker.maintenance.auditing import AUDIT_SECONDS, Audit, log_what_does_not_fit
from statewright_worker.maintenance.retention import Retention
from statewright_worker.observing.outages import Outage
from statewright_worker.streams.proposals import push_unless_busy
from statewright_worker.streams.replies import give_lifetimes

POLL_SECONDS: Final = 1.0
ANSWER_SECONDS: Final = 2.0
JOB_SECONDS: Final = 50
RETENTION_SECONDS: Final = 55.0
"""For how long of each minute old trees are deleted at most; the next minute's job goes on."""
AGAIN_SECONDS: Final = 1.0
HEALTH_SECONDS: Final = 60

Pool = Callable[[], ConnectionPool]


class Maintenance:
    """Hosts arq's worker, and starts it again whenever Redis has ended it."""

    def __init__(
        self,
        pool: Pool,
        channels: Channels,
        worker: str,
        *,
        reply_seconds: int,
        retention: Retention,
        audit: Audit,
        ids: IdSource,
        outage: Outage,
    ) -> None:
        """Take a function that makes a pool of connections: each worker of arq closes the pool that it is given."""
        self._pool = pool
        self._channels = channels
        self._health = f"{channels.namespace}:health:{worker}"
        self._reply_seconds = reply_seconds
        self._retention = retention
        self._audit = audit
        self._ids = ids
        self._outage = outage

    async def run(self, until: asyncio.Event) -> None:
        """Run the jobs until `until` is set."""
        while not until.is_set():
            pool = self._pool()
            pool.connection_kwargs["socket_timeout"] = ANSWER_SECONDS
            worker = self._worker(pool)
            try:
                await _first_of(worker.async_run(), until.wait())
            except Exception as error:
                # No request waits for it. So whatever went wrong, it is tried again later.
                self._outage.failed(error, self)
                with suppress(TimeoutError):
                    async with asyncio.timeout(AGAIN_SECONDS):
                        await until.wait()
            finally:
                # Before arq closes its connections it asks Redis for something, which Redis may refuse.
                with suppress(Exception):
                    async with asyncio.timeout(ANSWER_SECONDS):
                        await worker.close()
                await pool.disconnect()

    def _worker(self, pool: ConnectionPool) -> Worker:
        return Worker(
            # The namespace stands in the keys of a job: in the rights of workers, and told from those of others.
            cron_jobs=[
                cron(_coroutine(self._sweep), name=f"{self._channels.namespace}:sweep", second=0, timeout=JOB_SECONDS),
                cron(
                    _coroutine(self._retain),
                    name=f"{self._channels.namespace}:retain",
                    second=10,
                    run_at_startup=True,
                    timeout=60,
                ),
                cron(
                    _coroutine(self._look),
                    name=f"{self._channels.namespace}:audit",
                    minute=7,
                    second=20,
                    timeout=AUDIT_SECONDS,
                ),
            ],
            queue_name=self._channels.queue,
            redis_pool=ArqRedis(pool, job_serializer=_to_json, job_deserializer=json.loads),
            handle_signals=False,
            max_jobs=3,
            keep_result=0,
            poll_delay=POLL_SECONDS,
            health_check_key=self._health,
            health_check_interval=HEALTH_SECONDS,
            job_serializer=_to_json,
            job_deserializer=json.loads,
        )

    async def _sweep(self, context: dict[str, Any]) -> None:
        self._outage.over(self)
        await give_lifetimes(context["redis"], self._channels, self._reply_seconds)

    async def _retain(self, context: dict[str, Any]) -> None:
        async def push(partition: int, body: bytes) -> bool:
            return await push_unless_busy(context["redis"], self._channels, partition, self._ids.new(), body)

        await self._retention.work(push, RETENTION_SECONDS)

    async def _look(self, context: dict[str, Any]) -> None:
        await log_what_does_not_fit(self._audit, context["redis"].connection_pool)


async def _first_of(*waited: Awaitable[object]) -> None:
    """Return when the first one ends, and cancel the others. Raises what that one raises."""
    tasks = [asyncio.ensure_future(awaited) for awaited in waited]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _coroutine(job: Callable[[dict[str, Any]], Awaitable[None]]) -> Any:
    # arq's protocol wants *args; a bound method of one argument serves.
    return job


def _to_json(job: dict[str, Any]) -> bytes:
    return json.dumps(job).encode()
