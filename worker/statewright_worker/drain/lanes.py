"""Lanes: arq's jobs as leases of partitions. The only module that knows arq."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import structlog
from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix, job_key_prefix
from arq.worker import Retry, Worker, func
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

from statewright.channels import Channels
from statewright.connection import DROPPED
from statewright_worker.drain.lease import Lease
from statewright_worker.publishing.leases import Leases

HOLD_SECONDS: Final = 60
"""How long a drain holds its partition before it hands it on."""
JOB_TIMEOUT_SECONDS: Final = HOLD_SECONDS + 30
POLL_SECONDS: Final = 0.1
LOOK_SECONDS: Final = 0.2
PICK_UP_MILLISECONDS: Final = 300
"""How long a worker may take from picking a job up to owning its partition."""
STOP_SECONDS: Final = 4.0
FAR_FUTURE: Final = 4_102_444_800_000
"""The score of a job that runs, so that nobody else looks at it."""
NEVER_TOO_OFTEN: Final = 2**31
IN_PROGRESS_EXPIRY_MILLISECONDS: Final = (JOB_TIMEOUT_SECONDS + 10) * 1_000

log = structlog.get_logger()

Work = Callable[[Lease], Awaitable[None]]


class Lanes:
    """One worker's share of the partitions: picks up free ones, hands on what is more than its share, and frees those
    of workers that died."""

    def __init__(
        self, pool: ConnectionPool, channels: Channels, leases: Leases, work: Work, *, partitions: int, worker: str
    ) -> None:
        self._channels = channels
        self._partitions = partitions
        self._leases = leases
        self._work = work
        self._held: dict[int, Lease] = {}
        self._share = partitions
        self._stopping = False
        self._redis = ArqRedis(pool, job_serializer=_to_json, job_deserializer=json.loads)
        logging.getLogger("arq").setLevel(logging.WARNING)
        drain = func(
            self._drain,  # type: ignore[arg-type]  # arq's protocol wants *args, a bound method with arguments serves
            name="drain",
            timeout=JOB_TIMEOUT_SECONDS,
            keep_result=0,
            max_tries=NEVER_TOO_OFTEN,
        )
        self._worker = Worker(
            [drain],
            queue_name=channels.queue,
            redis_pool=self._redis,
            handle_signals=False,
            # Not what bounds a worker's share: arq never gives back what it counts while Redis drops its connection.
            max_jobs=NEVER_TOO_OFTEN,
            queue_read_limit=partitions,
            poll_delay=POLL_SECONDS,
            health_check_key=f"{channels.namespace}:health:{worker}",
            health_check_interval=HOLD_SECONDS,
            job_serializer=_to_json,
            job_deserializer=json.loads,
        )

    async def run(self, until: asyncio.Event) -> None:
        """Drain partitions until `until` is set; then finish the batches under way and hand every partition back."""
        polling = asyncio.create_task(self._poll())
        try:
            while not until.is_set():
                with suppress(*DROPPED):
                    await self._look_round()
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await until.wait()
        finally:
            await self._hand_back(polling)

    async def _poll(self) -> None:
        while True:
            try:
                await self._worker.async_run()
            except (RedisError, OSError) as error:
                log.warning("Redis is unavailable", error=str(error))
            except Exception:
                log.exception("picking up partitions failed; it is tried again")
            await asyncio.sleep(LOOK_SECONDS)

    async def _drain(self, _: dict[str, Any], partition: int) -> None:
        if self._stopping or len(self._held) >= self._share:
            # Somebody else has room for it.
            await self._requeue(partition)
        elif await self._leases.acquire(partition):
            await self._hold(partition)
        raise Retry

    async def _hold(self, partition: int) -> None:
        lease = self._held[partition] = Lease(partition, HOLD_SECONDS)
        try:
            await self._redis.zadd(self._channels.queue, {self._channels.drain_job(partition): FAR_FUTURE}, xx=True)
            await self._work(lease)
        except Exception:
            log.exception("a drain failed; its partition is taken up anew", partition=partition)
        finally:
            del self._held[partition]
            await self._leases.release(partition)
            await self._requeue(partition)

    async def _requeue(self, partition: int) -> None:
        await self._redis.zadd(self._channels.queue, {self._channels.drain_job(partition): 1}, xx=True)

    async def _look_round(self) -> None:
        look = await self._leases.look_round(self._held)
        for partition in look.lost & self._held.keys():
            self._held[partition].stop()
        self._share = -(-self._partitions // max(look.live_workers, 1))
        for partition in sorted(self._held)[self._share :]:
            self._held[partition].stop()
        self._worker.allow_pick_jobs = not self._stopping and len(self._held) < self._share
        for partition in look.ownerless - self._held.keys():
            await self._offer(partition)

    async def _offer(self, partition: int) -> None:
        """See that somebody picks up a partition that nobody owns: its holder has died, or Redis was emptied."""
        job = self._channels.drain_job(partition)
        in_progress = in_progress_key_prefix + job
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.zscore(self._channels.queue, job)
        pipeline.pttl(in_progress)
        score, expires_in = await pipeline.execute()
        if score is None:
            await self._redis.delete(job_key_prefix + job)
            await self._redis.enqueue_job("drain", partition, _job_id=job, _queue_name=self._channels.queue)
        if expires_in < IN_PROGRESS_EXPIRY_MILLISECONDS - PICK_UP_MILLISECONDS:
            await self._redis.delete(in_progress)
            await self._requeue(partition)

    async def _hand_back(self, polling: "asyncio.Task[None]") -> None:
        self._stopping = True
        self._worker.allow_pick_jobs = False
        for lease in self._held.values():
            lease.stop()
        running = list(self._worker.tasks.values())
        if running:
            await asyncio.wait(running, timeout=STOP_SECONDS)
        polling.cancel()
        with suppress(asyncio.CancelledError):
            await polling
        with suppress(*DROPPED):
            await self._leases.leave()
            await self._worker.close()


def _to_json(job: dict[str, Any]) -> bytes:
    return json.dumps(job).encode()
