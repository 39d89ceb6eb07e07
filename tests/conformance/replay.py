"""The replay of cases on a host, and what becomes of each."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from tests.conformance.cases import Case, Step
from tests.conformance.comparison import Level, Mismatch
from tests.conformance.live_case import REFUSALS, LiveCase
from tests.conformance.subject import Host, Subject

INJECTED_EPOCH: Final = datetime(2024, 2, 29, 12, tzinfo=UTC)
CLOCK_MARGIN_SECONDS: Final = 5.0
"""How far two clocks may be apart: a proposed timestamp that lies in the future would be clamped."""
CASE_SECONDS: Final = 60.0
"""How long a case may take: whatever it expects to lie in the future must still do so then."""

FOLLOWED_BY_OTHERS: Final = frozenset({Level.DECISION, Level.BOOKKEEPING})


@dataclass(frozen=True, slots=True)
class Difference:
    """A step that came out differently, and in which fields; step 0 is the creation of runs and limits."""

    number: int
    step: Step
    mismatches: tuple[Mismatch, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case."""

    case: Case
    skipped: str | None = None
    steps_compared: int = 0
    differences: tuple[Difference, ...] = ()
    worded_differently: int = 0
    """In how many steps a reason reads differently where its wording does not bind."""

    @property
    def agrees(self) -> bool:
        """Whether the case was carried out and agrees in every field that binds."""
        return self.skipped is None and not self.differences


async def replay_all(cases: Iterable[Case], host: Host) -> list[Outcome]:
    """Carry out the cases, as many at a time as the host allows; the outcomes are in the order of the cases."""
    free = asyncio.Semaphore(host.cases_at_a_time)

    async def one(case: Case) -> Outcome:
        if not (case.is_required or host.takes_informative_cases):
            return Outcome(case, "for information only")
        async with free:
            return await replay(case, host.subject())

    async with asyncio.TaskGroup() as group:
        carried_out = [group.create_task(one(case)) for case in cases]
    return [task.result() for task in carried_out]


async def replay(case: Case, subject: Subject) -> Outcome:
    """Carry out a case, up to the first step whose differences make the later ones meaningless."""
    skipped = case.unsupported() or (None if subject.clock_is_injected else _needs_injected_clock(case))
    if skipped is not None:
        return Outcome(case, skipped)
    live = LiveCase(case, subject, _epoch(case, subject))
    try:
        await live.prepare()
    except REFUSALS as error:
        return Outcome(case, differences=(Difference(0, case.steps[0], (Mismatch("status", "created runs", error),)),))
    return await _carried_out(case, live)


async def _carried_out(case: Case, live: LiveCase) -> Outcome:
    differences: list[Difference] = []
    worded_differently = 0
    for number, step in enumerate(case.steps, 1):
        found = await live.carry_out(step)
        binding = tuple(mismatch for mismatch in found if case.binds_wording or mismatch.level is not Level.WORDING)
        worded_differently += len(found) > len(binding)
        if binding:
            differences.append(Difference(number, step, binding))
        if any(mismatch.level in FOLLOWED_BY_OTHERS for mismatch in binding):
            break
    return Outcome(case, None, number, tuple(differences), worded_differently)


def _epoch(case: Case, subject: Subject) -> datetime:
    """Return the case's moment 0. In real time it lies so far back that no proposed timestamp is in the future."""
    if subject.clock_is_injected:
        return INJECTED_EPOCH
    return datetime.now(UTC) - timedelta(seconds=_seconds_back(case))


def _needs_injected_clock(case: Case) -> str | None:
    """Return why a case cannot be carried out in real time, None when it can."""
    if case.needs_clock:
        return "needs a clock that can be set"
    proposed = [step.propose.details for step in case.steps if step.propose]
    due = [state.get(key) for state in proposed for key in ("scheduled_at_s", "cache_expires_at_s")]
    must_be_future = [moment for moment in due if moment is not None and moment > 0]
    if min(must_be_future, default=float("inf")) < _seconds_back(case) + CASE_SECONDS:
        return "its timestamps pass its schedule"
    return None


def _seconds_back(case: Case) -> float:
    return max(step.propose.at_s for step in case.steps if step.propose) + CLOCK_MARGIN_SECONDS
