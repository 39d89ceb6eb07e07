"""Cases on the engine alone: a unit of work in memory for each, without Redis or PostgreSQL."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from statewright.ids import IdSource
from statewright.limits import LimitName, LimitScope
from statewright.runs import RunHistory, RunPolicy
from statewright.states import ProposedState
from statewright.verdicts import Verdict
from statewright_worker.orchestration.engine import Engine, Proposal
from statewright_worker.orchestration.records import (
    AnyRunRecord,
    FlowRunRecord,
    LimitRecord,
    TaskRunRecord,
)
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from tests.conformance.subject import CachedState, RunSnapshot, Subject


class EngineSubject:
    """One case on the engine; its clock stands where the runner sets it."""

    clock_is_injected: Final = True

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ids = IdSource()
        self._work = UnitOfWork(datetime.now(UTC), self._ids)

    async def set_clock(self, moment: datetime) -> None:
        self._work.now = moment

    async def set_limit(self, tag: str, concurrency_limit: int) -> None:
        name = LimitName(LimitScope.TAG, tag)
        self._work.limits[name] = LimitRecord(len(self._work.limits) + 1, *name, concurrency_limit)

    async def create_flow_run(
        self, name: str, *, deployment_id: UUID | None, parent_task_run_id: UUID | None, policy: RunPolicy
    ) -> UUID:
        return self._create(
            FlowRunRecord(
                id=self._ids.new(),
                name=name,
                created=self._work.now,
                policy=policy,
                deployment_id=deployment_id,
                parent_task_run_id=parent_task_run_id,
            )
        )

    async def create_task_run(
        self, name: str, *, flow_run_id: UUID | None, tags: Sequence[str], policy: RunPolicy
    ) -> UUID:
        return self._create(
            TaskRunRecord(
                id=self._ids.new(),
                name=name,
                created=self._work.now,
                tags=tuple(tags),
                policy=policy,
                flow_run_id=flow_run_id,
            )
        )

    def _create(self, run: AnyRunRecord) -> UUID:
        self._work.create_run(run)
        return run.id

    async def propose(self, run_id: UUID, state: ProposedState, *, force: bool, api_version: str | None) -> Verdict:
        work = self._work
        proposal = Proposal(self._ids.new(), run_id, state, entered=work.now, force=force, api_version=api_version)
        work.begin()
        verdict = await self._engine.decide(proposal, work)
        work.record_verdict(verdict)
        work.commit()
        return verdict

    async def snapshots(self, run_ids: Collection[UUID]) -> dict[UUID, RunSnapshot]:
        return {run_id: self._snapshot(self._work.runs[run_id]) for run_id in run_ids}

    def _snapshot(self, run: AnyRunRecord) -> RunSnapshot:
        states = tuple(change.state for change in self._work.state_changes if change.run is run)
        return RunSnapshot(
            RunHistory(run=run.as_run(self._work.labels[run.id]), states=states),
            run.state_type,
            run.state_name,
            run.state_timestamp,
        )

    async def slots(self, tags: Collection[str]) -> dict[str, Collection[UUID]]:
        return {tag: frozenset(self._work.limits[LimitName(LimitScope.TAG, tag)].holders) for tag in tags}

    async def cache_entries(self, cache_keys: Collection[str]) -> list[CachedState]:
        return [
            CachedState(entry.cache_key, entry.cache_expiration, entry.state.id, entry.state.state_details.task_run_id)
            for entry in self._work.cache_added
            if entry.cache_key in cache_keys
        ]


@dataclass(frozen=True)
class EngineHost:
    """Gives each case an empty unit of work on one engine. Nothing waits for IO, so one case at a time is fastest."""

    name: str = "the engine alone"
    takes_informative_cases: bool = True
    cases_at_a_time: int = 1
    engine: Engine = field(default_factory=Engine)

    def subject(self) -> Subject:
        return EngineSubject(self.engine)
