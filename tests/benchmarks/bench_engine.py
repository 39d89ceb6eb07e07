"""The engine alone: how long it takes to decide on one proposal, in memory, with each rule and with all of them."""

import argparse
import asyncio
import gc
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from statewright import ProposedState, RunPolicy, State, StateType
from statewright.ids import IdSource
from statewright.limits import LimitName, LimitScope
from statewright_worker.orchestration import BaseOrchestrationPolicy
from statewright_worker.orchestration import core_policy as core
from statewright_worker.orchestration.engine import Engine, Policy, Proposal
from statewright_worker.orchestration.policies import Governing
from statewright_worker.orchestration.records import (
    AnyRunRecord,
    CacheEntry,
    FlowRunRecord,
    LimitRecord,
    TaskRunRecord,
)
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from tests.benchmarks.harness import show

NOW: Final = datetime.now(UTC)
IDS: Final = IdSource()
TAG: Final = "tag"
KEY: Final = "key"
RETRIED: Final = RunPolicy(retries=1, retry_delay=0)
LATER: Final = NOW + timedelta(hours=1)
TIMES: Final = 5
"""How often each case is measured, in CPU time; the fastest counts, because any disturbance makes it slower."""


@dataclass(frozen=True)
class Case:
    """A transition, and the rules that govern it."""

    name: str
    rules: tuple[Governing, ...]
    initial: ProposedState | None
    proposed: ProposedState
    is_flow: bool = False
    fields: dict[str, Any] = field(default_factory=dict)


def task_case(rule: Governing, initial: ProposedState, proposed: ProposedState, **fields: Any) -> Case:
    return Case(rule.__name__, (rule,), initial, proposed, fields=fields)


def flow_case(rule: Governing, initial: ProposedState, proposed: ProposedState, **fields: Any) -> Case:
    return Case(rule.__name__, (rule,), initial, proposed, is_flow=True, fields=fields)


TASK_RULES: Final = tuple(core.CoreTaskPolicy.priority())
EACH_RULE: Final = (
    task_case(core.CacheRetrieval, State.pending(), State.running(cache_key=KEY)),
    task_case(core.HandleTaskTerminalStateTransitions, State.completed(), State.running()),
    task_case(core.PreventRedundantTransitions, State.running(), State.pending()),
    task_case(core.SecureTaskConcurrencySlots, State.pending(), State.running(), tags=(TAG,)),
    task_case(core.WaitForScheduledTime, State.scheduled(LATER), State.running()),
    task_case(core.RetryFailedTasks, State.running(), State.failed(), policy=RETRIED, run_count=1),
    task_case(core.RenameReruns, State.pending(), State.running(), run_count=1),
    task_case(core.UpdateFlowRunTrackerOnTasks, State.pending(), State.running()),
    task_case(core.CacheInsertion, State.running(), State.completed(cache_key=KEY)),
    task_case(core.ReleaseTaskConcurrencySlots, State.running(), State.completed(), tags=(TAG,)),
    flow_case(core.HandleFlowTerminalStateTransitions, State.completed(), State.running()),
    flow_case(core.RetryFailedFlows, State.running(), State.failed(), policy=RETRIED, run_count=1),
)
ALL_RULES: Final = (
    Case("a task run's first state", TASK_RULES, None, State.pending()),
    Case("PENDING to RUNNING", TASK_RULES, State.pending(), State.running()),
    Case("PENDING to RUNNING, limited", TASK_RULES, State.pending(), State.running(), fields={"tags": (TAG,)}),
    Case("PENDING to RUNNING, cached", TASK_RULES, State.pending(), State.running(cache_key=KEY)),
    Case("RUNNING to COMPLETED", TASK_RULES, State.running(), State.completed()),
    Case("RUNNING to COMPLETED, with data", TASK_RULES, State.running(), State.completed(data={"rows": 1_000})),
    Case(
        "FAILED, to be retried",
        TASK_RULES,
        State.running(),
        State.failed(),
        fields={"policy": RETRIED, "run_count": 1},
    ),
)


def policy_of(rules: tuple[Governing, ...]) -> Policy:
    class Only(BaseOrchestrationPolicy):
        @staticmethod
        def priority() -> list[Governing]:
            return list(rules)

    return Only


def world(case: Case, count: int) -> tuple[UnitOfWork, list[Proposal]]:
    """Return a unit of work with `count` runs in the case's initial state, and a proposal for each."""
    work = UnitOfWork(NOW, IDS)
    flow = FlowRunRecord(id=IDS.new(), name="flow", created=NOW, run_count=1)
    work.runs[flow.id] = flow
    runs = [_run(case, flow) for _ in range(count)]
    work.runs.update({run.id: run for run in runs})
    holders = {run.id for run in runs} if case.initial and case.initial.is_running() else set()
    work.limits[LimitName(LimitScope.TAG, TAG)] = LimitRecord(
        1, LimitScope.TAG, TAG, count, slots_held=len(holders), holders=holders
    )
    if not case.proposed.is_completed():
        work.cache[KEY] = [CacheEntry(KEY, None, State.completed(cache_key=KEY).stamped(IDS.new(), NOW, NOW))]
    return work, [Proposal(IDS.new(), run.id, case.proposed, NOW) for run in runs]


def _run(case: Case, flow: FlowRunRecord) -> AnyRunRecord:
    fields: dict[str, Any] = {"id": IDS.new(), "name": "run", "created": NOW, **case.fields}
    if case.initial is not None:
        state = case.initial.stamped(IDS.new(), NOW, NOW)
        fields |= {"state": state, "state_type": state.type, "state_name": state.name, "state_count": 1}
        fields |= {"state_timestamp": NOW, "start_time": NOW if state.type is StateType.RUNNING else None}
    return FlowRunRecord(**fields) if case.is_flow else TaskRunRecord(**fields, flow_run_id=flow.id)


async def microseconds(case: Case, rules: tuple[Governing, ...], count: int) -> float:
    """Return what one decision takes under these rules, bookkeeping and instrumentation included."""
    engine = Engine(flow_policy=policy_of(rules), task_policy=policy_of(rules))
    fastest = float("inf")
    for _ in range(TIMES):
        work, proposals = world(case, count)
        # The unit of work is not what is measured, so the garbage collector must not go through it again and again.
        gc.collect()
        gc.freeze()
        began = time.process_time()
        for proposal in proposals:
            work.begin()
            work.record_verdict(await engine.decide(proposal, work))
            work.commit()
        fastest = min(fastest, time.process_time() - began)
        gc.unfreeze()
    return fastest / count * 1e6


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=4_000, help="decisions per measurement")
    count = parser.parse_args().count
    taken = [(case, await microseconds(case, case.rules, count)) for case in ALL_RULES]
    show(
        "The engine alone, all rules",
        ["transition", "µs", "transitions/s"],
        [(case.name, one, 1e6 / one) for case, one in taken],
    )
    alone = [(c, await microseconds(c, c.rules, count), await microseconds(c, (), count)) for c in EACH_RULE]
    show(
        "The engine alone, rule by rule",
        ["rule, in a transition where it acts", "µs with this rule alone", "µs without any rule"],
        [(case.name, one, none) for case, one, none in alone],
    )


if __name__ == "__main__":
    asyncio.run(main())
