"""Deletions: a run goes with all that is below it, and with everything that belongs to these runs.

What a batch has room for goes at once. A larger tree goes in several batches of its lane, one after the other; from the
first one on nobody sees any of its runs.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

from statewright.ids import partition_of
from statewright.protocol.replies import DeletedReply, ErrorCode, Reply
from statewright.protocol.requests import DeleteRun, PruneRuns
from statewright_worker.facts.batch import Asked
from statewright_worker.orchestration.deleting import DELETED_AT_ONCE, RunsBelow, TreeRecord
from statewright_worker.orchestration.engine import Engine
from statewright_worker.orchestration.records import TimerKind
from statewright_worker.requests.base import (
    InBatch,
    Incoming,
    Kind,
    LateAnswer,
    OfRun,
    WhenDue,
    deleted,
    forbidden,
    no_run,
    refusal,
)

PAUSE: Final = timedelta(milliseconds=50)
"""Between two batches that delete from one tree: other requests of the partition come first."""


class DeleteRunKind(OfRun[DeleteRun]):
    """Deletes a run on purpose, with all that is below it."""

    changes = True
    keeps_answer = True
    is_alone = True

    def ask(self, request: DeleteRun, asked: Asked, engine: Engine) -> None:
        asked.runs.ids.add(request.run_id)
        asked.deletions.trees[request.run_id] = request.force

    async def carry_out(self, request: DeleteRun, incoming: Incoming, batch: InBatch) -> Reply:
        tree = batch.work.deleting.trees.get(request.run_id)
        if tree is None:
            return no_run(request.run_id, batch.work)
        if tree.unfinished and not request.force:
            return refusal(
                ErrorCode.RUN_CONFLICT,
                "run_id",
                f"run_id: of the {tree.runs} runs to go with {tree.run_id}, {tree.unfinished} have not come to an end;"
                " end them before, for example with State.cancelled() and cascade, or delete them by force",
            )
        _delete(tree, batch)
        return DeletedReply(trees=1, runs=tree.runs)


class PruneRunsKind(Kind[PruneRuns]):
    """Deletes trees that are over and that nobody has changed for some time: each as a whole, or not at all.

    The ledger keeps nothing of it: a request that comes again finds them deleted.
    """

    is_alone = True

    def place(self, request: PruneRuns, partitions: int) -> tuple[str, int]:
        for run_id in request.run_ids:
            belongs = partition_of(run_id, partitions)
            if belongs != request.partition:
                return "run_ids", belongs
        return "partition", request.partition

    def ask(self, request: PruneRuns, asked: Asked, engine: Engine) -> None:
        asked.deletions.trees |= dict.fromkeys(request.run_ids, False)

    async def carry_out(self, request: PruneRuns, incoming: Incoming, batch: InBatch) -> Reply:
        if batch.prunes_after is not None and request.unchanged_since > batch.work.now - batch.prunes_after:
            return forbidden("unchanged_since", request.type)
        deleting = batch.work.deleting
        pruned: list[TreeRecord] = []
        for run_id in dict.fromkeys(request.run_ids):
            tree = deleting.trees.get(run_id)
            # Of large trees one at a time, because all of its runs are noted down.
            if tree is not None and tree.is_over(request.unchanged_since) and not (tree.is_large and deleting.begun):
                _delete(tree, batch)
                pruned.append(tree)
        return DeletedReply(trees=len(pruned), runs=sum(tree.runs for tree in pruned))


@dataclass(frozen=True, slots=True)
class GoOnDeleting:
    """The deletion of a large tree goes on."""

    run_id: UUID


class GoOnDeletingKind(WhenDue[GoOnDeleting]):
    """Deletes some of the runs that are left of a large tree, and comes due again until none is left."""

    is_alone = True

    def ask(self, request: GoOnDeleting, asked: Asked, engine: Engine) -> None:
        asked.deletions.going_on.add(request.run_id)

    async def carry_out(self, request: GoOnDeleting, incoming: Incoming, batch: InBatch) -> Reply | None:
        work = batch.work
        left = work.deleting.left[request.run_id]
        _delete_some(request.run_id, left, batch)
        if len(left.flow_runs) + len(left.task_runs) < DELETED_AT_ONCE:
            work.waiting.clear_timer(TimerKind.DELETION, request.run_id)
        else:
            work.waiting.set_timer(TimerKind.DELETION, request.run_id, work.now + PAUSE)
        return None


def _delete(tree: TreeRecord, batch: InBatch) -> None:
    if tree.is_large:
        batch.work.deleting.begun[tree.run_id] = tree
        batch.work.waiting.set_timer(TimerKind.DELETION, tree.run_id, batch.work.now)
    else:
        _delete_some(tree.run_id, tree.members, batch)


def _delete_some(tree: UUID, runs: RunsBelow, batch: InBatch) -> None:
    """Delete the runs. What they hold and wait for is free for others, and whoever waits for an answer gets one."""
    work = batch.work
    work.begin()
    for run_id in runs.unfinished:
        run = work.runs.get(run_id)
        for limit in () if run is None else work.limits_of(run):
            work.release_slot(limit, run_id)
    work.deleting.delete(tree, runs)
    _answer_parked({*runs.flow_runs, *runs.task_runs}, batch)
    work.commit()


def _answer_parked(run_ids: set[UUID], batch: InBatch) -> None:
    waiting = batch.work.waiting
    for parked in list(waiting.parked.values()):
        if parked.run_id in run_ids:
            waiting.drop(parked)
            if parked.reply_to is not None and not parked.decided:
                batch.late.append(LateAnswer(parked.reply_to, parked.proposal_id, deleted(parked.run_id)))
