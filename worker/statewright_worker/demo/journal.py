"""What the demo has seen: verdicts with their latencies, and events. Each goes on to a view as it arrives."""

import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from statistics import quantiles
from typing import Protocol
from uuid import UUID

from statewright import Event, ProposedState, RunHistory, SetStateStatus, Verdict
from statewright.runs import Run


@dataclass(frozen=True, slots=True)
class Answered:
    """A proposal and its verdict. `at` is in seconds since the demo began."""

    at: float
    run_name: str
    proposed: ProposedState
    verdict: Verdict
    milliseconds: float

    def outcome(self) -> str:
        """Return in a few words what came of the proposal."""
        verdict = self.verdict
        match verdict.status:
            case SetStateStatus.WAIT:
                return f"again in {verdict.delay_seconds} s: {verdict.reason}"
            case SetStateStatus.REJECT:
                return f"{_state_name(verdict)} instead: {verdict.reason}"
            case SetStateStatus.ABORT:
                return str(verdict.reason)
            case SetStateStatus.ACCEPT:
                return _state_name(verdict)


@dataclass(frozen=True, slots=True)
class Heard:
    """An event and when it arrived, in seconds since the demo began."""

    at: float
    event: Event


class View(Protocol):
    """Shows the demo while it runs."""

    def show_verdict(self, answered: Answered) -> None: ...

    def show_event(self, heard: Heard) -> None: ...


class Journal:
    """Keeps what the producer and the subscriber report, and passes it on to a view at once."""

    def __init__(self, view: View) -> None:
        self.verdicts: Counter[SetStateStatus] = Counter()
        self.events = 0
        self._view = view
        self._began = time.perf_counter()
        self._latencies: list[float] = []
        self._states_heard: defaultdict[UUID, list[UUID]] = defaultdict(list)

    def answered(self, run: Run, proposed: ProposedState, verdict: Verdict, seconds: float) -> None:
        """Take down a verdict, and how long the producer waited for it."""
        self.verdicts[verdict.status] += 1
        self._latencies.append(seconds * 1_000)
        self._view.show_verdict(Answered(self._now(), run.name, proposed, verdict, seconds * 1_000))

    def heard(self, event: Event) -> None:
        """Take down an event."""
        self.events += 1
        # An event carries the id of the state that was entered, so the two can be compared one to one.
        self._states_heard[event.run_id].append(event.id)
        self._view.show_event(Heard(self._now(), event))

    def agrees_with(self, history: RunHistory) -> bool:
        """Return whether the run's events tell its history: the same states in the same order, each once."""
        return self._states_heard[history.run.id] == [state.id for state in history.states]

    def percentiles(self) -> dict[str, float]:
        """Return the latencies' percentiles and maximum, in milliseconds."""
        cuts = quantiles(self._latencies, n=100, method="inclusive")
        return {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "max": max(self._latencies)}

    def _now(self) -> float:
        return time.perf_counter() - self._began


def _state_name(verdict: Verdict) -> str:
    return verdict.state.name if verdict.state else "no state"
