"""The demo fails when a promise was not kept, and stops in order when it is interrupted."""

import asyncio
import signal
from datetime import UTC, datetime

import pytest
import typer

from statewright import ConcurrencyLimit, Event, LimitScope, RunHistory, RunKind, SlotHolder, State, StateType, TaskRun
from statewright.ids import IdSource
from statewright_worker.demo.demo import DemoFailed, Interruption, check
from statewright_worker.demo.journal import Answered, Heard, Journal
from statewright_worker.demo.story import DATABASE, Ending
from tests.events import entered

NOW = datetime.now(UTC)
IDS = IdSource()
FREE = ConcurrencyLimit(scope=LimitScope.TAG, key=DATABASE, concurrency_limit=2, free=2)


class Unseen:
    """A view that nobody looks at."""

    def show_verdict(self, answered: Answered) -> None: ...

    def show_event(self, heard: Heard) -> None: ...


def history(*states: State) -> RunHistory:
    return RunHistory(run=TaskRun(id=IDS.new(), name="task", created=NOW, state=states[-1]), states=states)


def completed() -> RunHistory:
    proposed = (State.pending(), State.running(), State.completed())
    return history(*[state.stamped(IDS.new(), NOW, NOW) for state in proposed])


def event_of(run: TaskRun, state: State) -> Event:
    return entered(run.id, state.type, state_id=state.id, time=NOW, name=run.name)


def journal_of(told: RunHistory, states: tuple[State, ...]) -> Journal:
    """Return the journal of somebody who has heard of these states, in this order."""
    journal = Journal(Unseen())
    assert isinstance(told.run, TaskRun)
    for state in states:
        journal.heard(event_of(told.run, state))
    return journal


def test_a_story_whose_events_are_its_histories_is_as_promised() -> None:
    told = completed()
    check(journal_of(told, told.states), Ending([told], FREE))


def test_an_event_that_is_missing_or_told_twice_or_late_fails_the_demo() -> None:
    told = completed()
    first, second, last = told.states
    for heard in ((first, last), (first, second, second, last), (second, first, last)):
        with pytest.raises(DemoFailed, match="the events of task are not its history"):
            check(journal_of(told, heard), Ending([told], FREE))


def test_a_run_that_has_not_completed_fails_the_demo() -> None:
    told = history(State.running().stamped(IDS.new(), NOW, NOW))
    assert told.run.state_type is StateType.RUNNING
    with pytest.raises(DemoFailed, match="task ended as Running instead of Completed"):
        check(journal_of(told, told.states), Ending([told], FREE))


def test_a_slot_that_is_still_held_fails_the_demo() -> None:
    told = completed()
    holder = SlotHolder(run_id=told.run.id, kind=RunKind.TASK_RUN, name="task", since=NOW)
    held = FREE.model_copy(update={"held": 1, "free": 1, "holders": (holder,)})
    for limit in (held, None):
        with pytest.raises(DemoFailed, match="a slot is still held"):
            check(journal_of(told, told.states), Ending([told], limit))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_ends_the_story_and_then_the_command(number: signal.Signals) -> None:
    async def story() -> None:
        signal.raise_signal(number)
        await asyncio.Event().wait()

    before = signal.getsignal(number)
    with pytest.raises(typer.Exit) as raised, Interruption() as interruption:
        interruption.run(story)
    assert raised.value.exit_code == 130
    assert signal.getsignal(number) == before
