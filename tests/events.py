"""Events made by hand, for tests of those who read them."""

from datetime import datetime
from uuid import UUID

from statewright import Event, RunKind, StateType
from statewright.events import Change, Era, EventResource, EventState, Transition, Undone, source_of
from statewright.ids import tree_tag

SOURCE = source_of("statewright")


def entered(
    run_id: UUID,
    state_type: StateType,
    *,
    state_id: UUID,
    time: datetime,
    kind: RunKind = RunKind.TASK_RUN,
    name: str = "load",
    partition: int = 0,
    sequence: int = 1,
    era: int = 0,
) -> Event:
    """Return the event of a run's first state, which has the default name of its type."""
    state = EventState(type=state_type, name=state_type.capitalize())
    return Event(
        id=state_id,
        source=SOURCE,
        type=f"statewright.{kind}.{state.name}",
        subject=run_id,
        time=time,
        partition=partition,
        sequence=sequence,
        era=era,
        tree=tree_tag(run_id),
        data=Change(
            ordinal=1,
            resource=EventResource(
                kind=kind,
                id=run_id,
                name=name,
                run_count=1,
                state_type=state.type,
                state_name=state.name,
                state_timestamp=time,
            ),
            intended=Transition(to_type=state.type),
            validated_state=state,
        ),
    )


def era_began(sequence: int, era: int, *, went_back_to: int, time: datetime, partition: int = 0) -> Era:
    """Return the event of the beginning of an era, which undoes all events before it above `went_back_to`."""
    return Era(
        id=UUID(int=sequence),
        source=SOURCE,
        time=time,
        partition=partition,
        sequence=sequence,
        era=era,
        data=Undone(went_back_to=went_back_to, undone_up_to=sequence - 1),
    )
