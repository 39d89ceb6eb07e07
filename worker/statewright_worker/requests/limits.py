"""Limits on tags: set and read in the order of the requests, in the same transaction as the proposals among them."""

from statewright.ids import partition_of_tag
from statewright.messages import LimitReply, LimitRequest, ReadLimit, Reply, SetLimit
from statewright_worker.facts.batch import Asked
from statewright_worker.orchestration.engine import Engine
from statewright_worker.orchestration.records import LimitName, LimitScope
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.requests.base import InBatch, Incoming, Kind


class ReadLimitKind(Kind[ReadLimit]):
    """Reads a limit and who holds its slots."""

    def place(self, request: ReadLimit, partitions: int) -> tuple[str, int]:
        return "tag", partition_of_tag(request.tag, partitions)

    def ask(self, request: ReadLimit, asked: Asked, engine: Engine) -> None:
        asked.limits.read.add(_name(request))

    async def carry_out(self, request: ReadLimit, incoming: Incoming, batch: InBatch) -> Reply:
        return _told(request, batch.work)


class SetLimitKind(Kind[SetLimit]):
    """Sets a limit, or removes it and frees its slots; requests behind it see the new limit."""

    changes = True
    keeps_answer = True

    def place(self, request: SetLimit, partitions: int) -> tuple[str, int]:
        return "tag", partition_of_tag(request.tag, partitions)

    def ask(self, request: SetLimit, asked: Asked, engine: Engine) -> None:
        asked.limits.read.add(_name(request))
        if request.concurrency_limit is not None:
            asked.limits.to_set.add(_name(request))

    async def carry_out(self, request: SetLimit, incoming: Incoming, batch: InBatch) -> Reply:
        batch.work.begin()
        if request.concurrency_limit is None:
            batch.work.remove_limit(_name(request))
        else:
            batch.work.set_limit(_name(request), request.concurrency_limit)
        batch.work.commit()
        return _told(request, batch.work)


def _name(request: LimitRequest) -> LimitName:
    return LimitName(LimitScope.TAG, request.tag)


def _told(request: LimitRequest, work: UnitOfWork) -> LimitReply:
    limit = work.limits.get(_name(request))
    return LimitReply(limit=None if limit is None else limit.as_limit())
