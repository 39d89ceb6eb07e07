"""Limits: set and read in the order of the requests, in the same transaction as the proposals among them."""

from datetime import timedelta

from statewright.messages import LimitReply, LimitRequest, ReadLimit, Reply, SetLimit
from statewright_worker.facts.batch import Asked
from statewright_worker.orchestration.engine import Engine
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.requests.base import InBatch, Incoming, Kind


class ReadLimitKind(Kind[ReadLimit]):
    """Reads a limit and who holds its slots."""

    def place(self, request: ReadLimit, partitions: int) -> tuple[str, int]:
        return request.named_by, request.limit.partition(partitions)

    def ask(self, request: ReadLimit, asked: Asked, engine: Engine) -> None:
        asked.limits.read.add(request.limit)

    async def carry_out(self, request: ReadLimit, incoming: Incoming, batch: InBatch) -> Reply:
        return _told(request, batch.work)


class SetLimitKind(Kind[SetLimit]):
    """Sets a limit, or removes it and frees its slots; requests behind it see the new limit."""

    changes = True
    keeps_answer = True

    def place(self, request: SetLimit, partitions: int) -> tuple[str, int]:
        return request.named_by, request.limit.partition(partitions)

    def ask(self, request: SetLimit, asked: Asked, engine: Engine) -> None:
        asked.limits.read.add(request.limit)
        if request.concurrency_limit is not None:
            asked.limits.to_set.add(request.limit)

    async def carry_out(self, request: SetLimit, incoming: Incoming, batch: InBatch) -> Reply:
        batch.work.begin()
        if request.concurrency_limit is None:
            batch.work.remove_limit(request.limit)
        else:
            batch.work.set_limit(
                request.limit,
                request.concurrency_limit,
                period=None if request.period_seconds is None else timedelta(seconds=request.period_seconds),
                lease_seconds=request.lease_seconds,
            )
        batch.work.commit()
        return _told(request, batch.work)


def _told(request: LimitRequest, work: UnitOfWork) -> LimitReply:
    limit = work.limits.get(request.limit)
    return LimitReply(limit=None if limit is None else limit.as_limit())
