"""Answering: from the ledger, if the request was answered before, else by carrying it out; the ledger keeps answers."""

from collections.abc import Container, Iterable
from datetime import timedelta
from typing import Any, Final

import structlog

from statewright.protocol.replies import ErrorCode, ErrorReply, Reply
from statewright_worker.facts.batch import Asked
from statewright_worker.orchestration.engine import Engine
from statewright_worker.orchestration.records import Answer, TimerKind, TimerName
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.requests.base import AnyReply, InBatch, Incoming, Kind, encoded, known_reply, refusal
from statewright_worker.requests.kinds import kind_of
from statewright_worker.requests.parking import parked_reply

AGAIN_AFTER: Final = timedelta(minutes=1)
"""After this long, what has come due and could not be done is tried again."""

log = structlog.get_logger()


def asked_by(requests: Iterable[Incoming], engine: Engine, condemned: Container[str]) -> Asked:
    """Return everything that the requests ask for; a `condemned` one asks only whether it was answered before."""
    asked = Asked()
    for incoming in requests:
        request = incoming.request
        kind = kind_of(request)
        if incoming.timer is not None:
            if incoming.timer.kind is TimerKind.PARKED:
                asked.parked.ids.add(incoming.id)
        elif kind.changes:
            asked.ledger.request_ids.append(incoming.id)
        if not condemned or incoming.entry.id not in condemned:
            kind.ask(request, asked, engine)
        else:
            kind.ask_refused(request, asked, engine)
    return asked


async def answer(incoming: Incoming, batch: InBatch, condemned: ErrorReply | None) -> AnyReply | None:
    """Return the answer that the request has already, or carry it out and return its answer, None without one.

    An ErrorReply means that nothing of it was done. If there is an answer in `condemned`, the request gets that
    one and is not carried out.

    Raises BatchSpoiled when the request has cost the batch its transaction, and StorageError.
    """
    work = batch.work
    request = incoming.request
    kind = kind_of(request)
    if incoming.timer is None:
        known = _known(incoming, kind, work)
        if known is not None:
            return known
    elif kind.decides_on(request) is not None and not _still_waits(incoming, work):
        return None
    if condemned is None:
        reply = await kind.carry_out(request, incoming, batch)
    else:
        reply = await kind.refuse(request, incoming, batch, condemned)
    if kind.changes and reply is not None and (kind.keeps_answer or reply.type == "error"):
        work.record_answer(
            Answer(incoming.id, incoming.digest, encoded(reply).decode(), kind.run_of(request), incoming.actor)
        )
    if incoming.timer is not None:
        _done_with(incoming.timer, reply, work)
    return reply


def _still_waits(incoming: Incoming, work: UnitOfWork) -> bool:
    """Return whether a parked proposal that comes due has no answer yet.

    An earlier request of the batch may have answered it, or the batch itself, when the answer to its commit was lost.
    """
    parked = work.waiting.parked.get(incoming.id)
    if parked is None:
        work.waiting.clear_timer(TimerKind.PARKED, incoming.id)
    return parked is not None and not parked.decided


def _done_with(timer: TimerName, reply: AnyReply | None, work: UnitOfWork) -> None:
    """See that what has come due is over with its answer, or comes due again."""
    parked = work.waiting.parked.get(timer.id) if timer.kind is TimerKind.PARKED else None
    if parked is not None and reply is not None and reply.type != "parked":
        work.waiting.answer(parked)
    elif parked is None and reply is not None and reply.type == "error":
        log.error("what has come due could not be done", timer=timer.kind, id=str(timer.id), reason=reply.message)
        work.waiting.set_timer(*timer, work.now + AGAIN_AFTER)


def _known(incoming: Incoming, kind: Kind[Any], work: UnitOfWork) -> Reply | None:
    parked = work.waiting.parked.get(incoming.id)
    if parked is not None and not parked.decided:
        if incoming.digest != parked.digest:
            return _conflict(incoming)
        if incoming.reply_to != parked.reply_to:
            work.waiting.change(parked, reply_to=incoming.reply_to)
        return parked_reply(parked)
    entry = work.verdicts.get(incoming.id)
    if entry is not None:
        digest, run_id = entry.digest, entry.verdict.run_id
        # A verdict of an earlier version has no digest to compare.
        same = incoming.digest == digest if digest is not None else run_id == kind.decides_on(incoming.request)
    else:
        answer = work.answers.get(incoming.id)
        if answer is None:
            return None
        same = incoming.digest == answer.digest
    return known_reply(incoming.id, work) if same else _conflict(incoming)


def _conflict(incoming: Incoming) -> ErrorReply:
    return refusal(
        ErrorCode.PROPOSAL_CONFLICT,
        "id",
        f"the id {incoming.id} was used before for a request with another content; another request needs another id",
    )
