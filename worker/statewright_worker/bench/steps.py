"""What is proposed for a task run, one step after the other."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from statewright import ProposedState, Verdict
from statewright.client.requests import OnWait
from statewright_worker.bench.mixes import Runs, States
from statewright_worker.bench.samples import Journal


@dataclass(frozen=True, slots=True)
class Step:
    """The state that is to be proposed next for a task run."""

    run_id: UUID
    state: ProposedState
    states: States
    on_wait: OnWait


def first_step(runs: Runs[Any], journal: Journal) -> Step:
    """Make a task run, and return its first step."""
    made = runs.make()
    journal.created(made.requests)
    return Step(made.run.run_id, next(made.task.states), made.task.states, made.task.on_wait)


def following(step: Step, verdict: Verdict) -> Step | None:
    """Return the task run's next step, or None when it has none."""
    try:
        return Step(step.run_id, step.states.send(verdict), step.states, step.on_wait)
    except StopIteration:
        return None
