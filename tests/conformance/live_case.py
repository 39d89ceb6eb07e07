"""A case while it is being carried out: prepare, propose step by step, look, compare."""

import asyncio
from datetime import datetime
from typing import Any, Final
from uuid import UUID, uuid4

from pydantic import ValidationError

from statewright.errors import StatewrightError
from statewright_worker.orchestration.errors import OrchestrationError
from tests.conformance.cases import Case, Step
from tests.conformance.comparison import Mismatch, World, compare
from tests.conformance.notation import Notation
from tests.conformance.subject import CachedState, Subject

REFUSALS: Final = (OrchestrationError, StatewrightError, ValidationError)
"""How a subject says that it has no verdict; the recorded engine had one for every step."""


class LiveCase:
    """A case and the subject that carries it out, with the world as it was last seen."""

    def __init__(self, case: Case, subject: Subject, epoch: datetime) -> None:
        self._case = case
        self._subject = subject
        self._notation = Notation(epoch, scope=f"{case.id}-{uuid4().hex[:8]}:")
        self._ids: dict[str, UUID] = {}
        self._started = asyncio.get_running_loop().time()
        self._runs: World = {}
        self._cached: list[CachedState] = []

    async def prepare(self) -> None:
        """Create the limits and the runs that the case presupposes."""
        await self._subject.set_clock(self._notation.epoch)
        for limit in self._case.limits:
            await self._subject.set_limit(self._notation.scoped(limit.tag), limit.concurrency_limit)
        for label in self._case.runs:
            await self._create(label)
        self._runs = await self._look_at_runs()

    async def _create(self, label: str) -> UUID:
        """Create a run, after the run that it belongs to."""
        if label in self._ids:
            return self._ids[label]
        run, notation = self._case.runs[label], self._notation
        belongs_to = await self._create(run.belongs_to) if run.belongs_to else None
        if run.kind == "flow":
            created = await self._subject.create_flow_run(
                label,
                deployment_id=notation.id_of("deployment") if run.deployment else None,
                parent_task_run_id=belongs_to,
                policy=run.policy,
            )
        else:
            tags = [notation.scoped(tag) for tag in run.tags]
            created = await self._subject.create_task_run(label, flow_run_id=belongs_to, tags=tags, policy=run.policy)
        notation.assign(label, created)
        self._ids[label] = created
        return created

    async def carry_out(self, step: Step) -> list[Mismatch]:
        """Propose what the step proposes; return where the outcome differs from the recorded one."""
        runs_before = self._runs
        await self._subject.set_clock(self._notation.moment(step.clock_s))
        try:
            answer = await self._propose(step)
            self._runs, shared = await asyncio.gather(self._look_at_runs(), self._look_at_shared())
        except REFUSALS as error:
            return [Mismatch("status", step.expect["status"], error)]
        observed = answer | self._runs[step.run] | shared | {"others": _without(step.run, self._runs)}
        return compare(step, observed, _without(step.run, runs_before), self._seconds_run())

    def _seconds_run(self) -> float | None:
        """Return for how long the case has been running, None where that decides nothing."""
        return None if self._subject.clock_is_injected else asyncio.get_running_loop().time() - self._started

    async def _propose(self, step: Step) -> World:
        assert step.propose is not None, "cases with null proposals are skipped"
        verdict = await self._subject.propose(
            self._ids[step.run],
            self._notation.proposed(step.propose),
            force=step.under_minimal_policy,
            api_version=step.api_version,
        )
        returned = verdict.state and {"type": str(verdict.state.type), "name": verdict.state.name}
        return {
            "status": str(verdict.status),
            "reason": self._notation.reason(verdict.reason),
            "delay_s": verdict.delay_seconds,
            "returned": returned,
        }

    async def _look_at_runs(self) -> World:
        snapshots = await self._subject.snapshots(self._ids.values())
        return {label: self._notation.run(snapshots[identity]) for label, identity in self._ids.items()}

    async def _look_at_shared(self) -> World:
        """Look at the slots, and at what has been cached since the last look."""
        scoped = self._notation.scoped
        holders = await self._subject.slots([scoped(limit.tag) for limit in self._case.limits])
        known, self._cached = set(self._cached), await self._subject.cache_entries(self._cache_keys())
        return {
            "slots": {
                limit.tag: sorted(str(self._notation.label(run)) for run in holders[scoped(limit.tag)])
                for limit in self._case.limits
            },
            "cache_added": [self._notation.cached(entry) for entry in self._cached if entry not in known],
        }

    def _cache_keys(self) -> set[str]:
        keys = (step.propose.details.get("cache_key") for step in self._case.steps if step.propose)
        return {self._notation.scoped(key) for key in keys if key}


def _without(label: str, runs: World) -> dict[str, Any]:
    return {other: run for other, run in runs.items() if other != label}
