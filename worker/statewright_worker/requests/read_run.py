"""Reading runs: a run with a page of its history, or alone, as they are after all requests pushed before."""

from statewright.protocol.replies import HistoryReply, Reply, RunReply
from statewright.protocol.requests import ReadRun
from statewright.runs import RunHistory
from statewright_worker.facts.base import PAGE_BYTES
from statewright_worker.facts.batch import Asked
from statewright_worker.orchestration.engine import Engine
from statewright_worker.requests.base import InBatch, Incoming, OfRun, no_run


class ReadRunKind(OfRun[ReadRun]):
    """Reads a run, and a page of its history where that is asked for."""

    answer_bytes = 2 * PAGE_BYTES

    def ask(self, request: ReadRun, asked: Asked, engine: Engine) -> None:
        asked.runs.ids.add(request.run_id)
        asked.runs.labelled.add(request.run_id)
        if request.history:
            asked.histories.pages.add((request.run_id, request.after))

    async def carry_out(self, request: ReadRun, incoming: Incoming, batch: InBatch) -> Reply:
        work = batch.work
        run = work.runs.get(request.run_id)
        if run is None:
            return no_run(request.run_id, work)
        if not request.history:
            return RunReply(run=run.as_run(work.labels[run.id]))
        states = work.histories[run.id][request.after]
        last = states[-1].ordinal if states else request.after
        history = RunHistory(
            run=run.as_run(work.labels[run.id]),
            states=tuple(past.state for past in states),
            actors=tuple(past.actor for past in states) if any(past.actor for past in states) else (),
        )
        return HistoryReply(history=history, next=last if states and last < run.state_count else None)
