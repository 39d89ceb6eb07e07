"""The report on a file of cases: what was compared, what differs by level and topic, and the first differences."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

from tests.conformance.comparison import Level
from tests.conformance.replay import Difference, Outcome

DIFFERENCES_SHOWN: Final = 10


class Report:
    """What became of the cases of one file on one host."""

    def __init__(self, title: str, outcomes: Sequence[Outcome]) -> None:
        self._title = title
        carried_out = [outcome for outcome in outcomes if outcome.skipped is None]
        self._required = [outcome for outcome in carried_out if outcome.case.is_required]
        self._informative = [outcome for outcome in carried_out if not outcome.case.is_required]
        self._skipped = [outcome for outcome in outcomes if outcome.skipped is not None]

    @property
    def agrees(self) -> bool:
        """Whether every required case came out as recorded."""
        return all(outcome.agrees for outcome in self._required)

    def summary(self) -> str:
        """Return the numbers: cases, steps, mismatches by level and topic, what was skipped and why."""
        return "\n".join([self._title, *(f"  {line}" for line in self._summary())])

    def _summary(self) -> Iterator[str]:
        yield f"required cases: {_numbers(self._required)}"
        yield from _mismatches(self._required)
        if worded_differently := sum(outcome.worded_differently for outcome in self._required):
            yield f"reasons that engine 3 words differently, which does not count: {worded_differently} steps"
        if self._informative:
            yield f"other cases, for information: {_numbers(self._informative)}"
        if self._skipped:
            reasons = Counter(str(outcome.skipped) for outcome in self._skipped)
            counted = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
            yield f"skipped cases: {len(self._skipped)} ({counted})"

    def differences(self) -> str:
        """Return the first steps of required cases that came out differently, field by field."""
        differing = [outcome for outcome in self._required if not outcome.agrees]
        described = (_described(outcome, step) for outcome in differing for step in outcome.differences)
        shown = "\n\n".join(islice(described, DIFFERENCES_SHOWN))
        return f"{self._title}: {len(differing)} of {len(self._required)} required cases differ; the first:\n\n{shown}"


def _numbers(outcomes: Sequence[Outcome]) -> str:
    agreeing = sum(outcome.agrees for outcome in outcomes)
    steps = sum(outcome.steps_compared for outcome in outcomes)
    return f"{agreeing} of {len(outcomes)} agree, {steps} steps compared"


def _mismatches(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """Yield a table of how many steps differ, by topic and level; nothing when none does."""
    counts = Counter(
        (outcome.case.topic, level)
        for outcome in outcomes
        for difference in outcome.differences
        for level in {mismatch.level for mismatch in difference.mismatches}
    )
    if not counts:
        yield "mismatches: none"
        return
    yield "steps with mismatches  " + "".join(f"{level:>13}" for level in Level)
    for topic in sorted({topic for topic, _ in counts}):
        yield f"  {topic:<21}" + "".join(f"{counts[topic, level]:>13}" for level in Level)


def _described(outcome: Outcome, difference: Difference) -> str:
    case, step = outcome.case, difference.step
    proposed = step.propose.type if step.propose else None
    policy = "minimal" if step.under_minimal_policy else step.policy
    heading = f"{case.id} ({case.topic}), step {difference.number}: {step.run} proposed {proposed}, {policy} policy"
    return "\n".join([heading, *(f"  {mismatch}" for mismatch in difference.mismatches)])
