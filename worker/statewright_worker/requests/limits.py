"""Limits: set and read in the order of the requests, in the same transaction as the proposals among them."""

from datetime import timedelta

from statewright.protocol.replies import LimitReply, LimitsReply, Reply
from statewright.protocol.requests import LimitRequest, ReadLimit, ReadLimits, SetLimit
from statewright_worker.facts.base import PAGE_BYTES
from statewright_worker.facts.batch import Asked
from statewright_worker.orchestration.engine import Engine
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.requests.base import InBatch, Incoming, Kind


class ReadLimitKind(Kind[ReadLimit]):
    """Reads a limit, who holds its slots, and who waits for them."""

    answer_bytes = 2 * PAGE_BYTES

    def place(self, request: ReadLimit, partitions: int) -> tuple[str, int]:
        return request.named_by, request.limit.partition(partitions)

    def ask(self, request: ReadLimit, asked: Asked, engine: Engine) -> None:
        asked.limits.read.add(request.limit)

    async def carry_out(self, request: ReadLimit, incoming: Incoming, batch: InBatch) -> Reply:
        return _answer(request, batch.work)


class SetLimitKind(Kind[SetLimit]):
    """Sets a limit, or removes it and frees its slots; requests behind it see the new limit."""

    changes = True
    keeps_answer = True
    answer_bytes = 2 * PAGE_BYTES

    def place(self, request: SetLimit, partitions: int) -> tuple[str, int]:
        return request.named_by, request.limit.partition(partitions)

    def ask(self, request: SetLimit, asked: Asked, engine: Engine) -> None:
        asked.limits.read.add(request.limit)
        if request.concurrency_limit is None:
            asked.limits.to_remove.add(request.limit)
        else:
            asked.limits.to_set.setdefault(request.limit, []).append(request.concurrency_limit)

    async def carry_out(self, request: SetLimit, incoming: Incoming, batch: InBatch) -> Reply:
        batch.work.begin(incoming.actor)
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
        return _answer(request, batch.work)


class ReadLimitsKind(Kind[ReadLimits]):
    """Reads a page of all limits; no lock is taken, so the page is as of the beginning of the batch."""

    answer_bytes = PAGE_BYTES

    def place(self, request: ReadLimits, partitions: int) -> tuple[str, int]:
        return "partition", request.partition

    def ask(self, request: ReadLimits, asked: Asked, engine: Engine) -> None:
        asked.limits.pages.add(request.after)

    async def carry_out(self, request: ReadLimits, incoming: Incoming, batch: InBatch) -> Reply:
        page = batch.work.limit_pages[request.after]
        return LimitsReply(limits=tuple(limit.as_limit() for limit in page.limits), next=page.next)


def _answer(request: LimitRequest, work: UnitOfWork) -> LimitReply:
    return LimitReply(limit=work.told_limit(request.limit))
