"""A web application whose requests make runs, propose their states and tell their verdicts.

Every thread, and every process that a server forks off, uses the one client, which opens by itself where it is used.
"""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from flask import Flask, request

from statewright import InvalidRequest, NoAnswer, Overloaded, ProposedState, RedisUnavailable, RunNotFound, State
from statewright.sync import Client

STATES: dict[str, Callable[[], ProposedState]] = {
    "running": State.running,
    "completed": State.completed,
    "failed": State.failed,
    "cancelled": State.cancelled,
}

app = Flask(__name__)
client = Client()

Answer = tuple[dict[str, Any], int]


@app.post("/runs/<name>")
def create(name: str) -> Answer:
    """Make a run. Who asks again under the same key gets the same one."""
    sent = client.create_flow_run(name, state=State.pending(), idempotency_key=request.headers.get("Idempotency-Key"))
    run = sent.answer()
    return {"id": run.id, "state": run.state_name}, 201 if sent.created else 200


@app.get("/runs/<uuid:run_id>")
def read(run_id: UUID) -> Answer:
    """Tell the states of a run."""
    history = client.read_run(run_id).answer()
    return {"name": history.run.name, "states": [state.name for state in history.states]}, 200


@app.post("/runs/<uuid:run_id>/<any(running,completed,failed,cancelled):state>")
def propose(run_id: UUID, state: str) -> Answer:
    """Propose a state. A verdict that says no is an answer, and no error."""
    verdict = client.propose(run_id, STATES[state]()).answer()
    answer = {"status": verdict.status, "reason": verdict.reason, "delay_seconds": verdict.delay_seconds}
    return answer, 200 if verdict.accepted else 409


@app.errorhandler(RunNotFound)
def not_found(error: RunNotFound) -> Answer:
    """Say that there is no such run."""
    return {"error": str(error)}, 404


@app.errorhandler(InvalidRequest)
def wrong(error: InvalidRequest) -> Answer:
    """Say what is wrong."""
    return {"error": str(error), "field": error.field}, 400


@app.errorhandler(NoAnswer)
@app.errorhandler(Overloaded)
@app.errorhandler(RedisUnavailable)
def later(error: Exception) -> Answer:
    """Say that it may be asked again."""
    return {"error": str(error)}, 503
