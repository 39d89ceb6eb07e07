"""Heartbeats: they renew leases, and tell whoever sends them which runs are no longer its own."""

from itertools import repeat
from uuid import UUID

from statewright.ids import partition_of
from statewright.protocol.replies import HeartbeatReply, LostRun, RenewedLease, Reply
from statewright.protocol.requests import Heartbeat
from statewright_worker.facts.batch import Asked
from statewright_worker.facts.leases import SAID_CHARACTERS
from statewright_worker.orchestration.engine import Engine
from statewright_worker.orchestration.records import LeaseRecord, Standing
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.requests.base import InBatch, Incoming, Kind


class HeartbeatKind(Kind[Heartbeat]):
    """Renews leases. The ledger keeps nothing of it: a heartbeat that is sent again renews them again."""

    def place(self, request: Heartbeat, partitions: int) -> tuple[str, int]:
        for run_id in request.run_ids:
            belongs = partition_of(run_id, partitions)
            if belongs != request.partition:
                return "run_ids", belongs
        return "partition", request.partition

    def ask(self, request: Heartbeat, asked: Asked, engine: Engine) -> None:
        if request.executor is not None:
            asked.leases.renew_executor(request.executor, request.run_ids)
        else:
            asked.leases.renew(request.run_ids, request.state_ids or repeat(None, len(request.run_ids)))

    async def carry_out(self, request: Heartbeat, incoming: Incoming, batch: InBatch) -> Reply:
        work, executor = batch.work, request.executor
        lost: list[LostRun] = []
        renewed: list[LeaseRecord] = []
        for run_id, state_id in zip(request.run_ids, request.state_ids or repeat(None), strict=False):
            lease = work.leases.known.get(run_id)
            if lease is None or lease.executor != executor or state_id not in (None, lease.state_id):
                lost.append(_lost(run_id, work))
            elif request.tell:
                renewed.append(lease)
        return HeartbeatReply(
            lost=tuple(lost),
            leases=tuple(
                RenewedLease(run_id=lease.run_id, state_id=lease.state_id, seconds=lease.seconds) for lease in renewed
            ),
        )


def _lost(run_id: UUID, work: UnitOfWork) -> LostRun:
    # What the batch has done to the run until now is on its record; otherwise the run need not be loaded.
    run, standing = work.runs.get(run_id), work.leases.standings.get(run_id)
    if run is not None and run.state is not None:
        state = run.state
        message = None if state.message is None else state.message[:SAID_CHARACTERS]
        standing = Standing(state.type, state.name, message, state.state_details.executor)
    return LostRun(run_id=run_id) if standing is None else LostRun(run_id=run_id, **standing._asdict())
