"""Reading verdicts: what is known of a proposal, which changes nothing."""

from uuid import UUID

from statewright.ids import partition_of
from statewright.protocol.replies import ErrorReply, KnownReply, ParkedReply, Reply, VerdictReply
from statewright.protocol.requests import ReadVerdict
from statewright_worker.facts.base import PAGE_BYTES
from statewright_worker.facts.batch import Asked
from statewright_worker.orchestration.engine import Engine
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.requests.base import InBatch, Incoming, Kind, deleted, known_reply
from statewright_worker.requests.parking import parked_reply


class ReadVerdictKind(Kind[ReadVerdict]):
    """Reads what is known of a proposal, also of one that an earlier request of the batch has decided or parked."""

    answer_bytes = PAGE_BYTES

    def place(self, request: ReadVerdict, partitions: int) -> tuple[str, int]:
        if request.run_id is not None:
            return "run_id", partition_of(request.run_id, partitions)
        return "partition", request.partition

    def ask(self, request: ReadVerdict, asked: Asked, engine: Engine) -> None:
        asked.inquiries.proposal_ids.add(request.proposal_id)
        if request.run_id is not None:
            asked.runs.ids.add(request.run_id)

    async def carry_out(self, request: ReadVerdict, incoming: Incoming, batch: InBatch) -> Reply:
        proposal_id = request.proposal_id
        known = _known(proposal_id, batch.work)
        if known is None and request.run_id in batch.work.deleting.gone:
            return deleted(request.run_id)
        return KnownReply(proposal_id=proposal_id, reply=known)


def _known(proposal_id: UUID, work: UnitOfWork) -> VerdictReply | ParkedReply | ErrorReply | None:
    answered = known_reply(proposal_id, work)
    if answered is None:
        parked = work.waiting.parked.get(proposal_id) or work.waiting.seen.get(proposal_id)
        return None if parked is None else parked_reply(parked)
    # What has another answer is no proposal.
    return answered if isinstance(answered, VerdictReply | ErrorReply) else None
