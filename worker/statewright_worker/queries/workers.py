"""Workers: which are alive, what each says of itself, and which partitions it holds."""

from statewright.protocol.queries import ListWorkers
from statewright.protocol.replies import Reply, WorkersReply
from statewright_worker.queries.base import Looking, QueryKind
from statewright_worker.streams.standing import live_workers


class ListWorkersKind(QueryKind[ListWorkers]):
    """Lists all workers, also while PostgreSQL is away."""

    async def answer(self, query: ListWorkers, looking: Looking) -> Reply:
        workers = await live_workers(looking.redis, looking.channels)
        return WorkersReply(workers=tuple(sorted(workers, key=lambda worker: (worker.since, worker.worker))))
