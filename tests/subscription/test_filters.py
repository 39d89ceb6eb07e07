"""Filters: what is tested on JSON is what is tested on values, whoever has written the JSON."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from statewright import Event, EventFilter, InvalidRequest, RunKind, StateType
from statewright.events import RelatedResource
from statewright.ids import partition_of, tree_tag
from statewright.subscription.filters import MAX_WANTED, Sieve
from statewright.subscription.told import event_of, tree_of
from tests.events import entered

EXAMPLES = settings(max_examples=200, deadline=None, database=None, derandomize=True)
NOW = datetime(2030, 1, 1, tzinfo=UTC)
RUNS = [UUID(int=4711), UUID(int=4712)]
TEXTS = ["etl", 'with "quotes"', "ü", "\\", "a\tb", "\u2028", "COMPLETED", "flow-run", "tag"]


def event(run: UUID, kind: RunKind, state_type: StateType, name: str, tags: list[str]) -> Event:
    made = entered(run, state_type, state_id=UUID(int=1), time=NOW, kind=kind)
    resource = made.data.resource.replaced(state_name=name)
    related = tuple(RelatedResource(role="tag", id=tag) for tag in tags)
    return made.replaced(data=made.data.replaced(resource=resource, related=related))


EVENTS = st.builds(
    event,
    st.sampled_from(RUNS),
    st.sampled_from(RunKind),
    st.sampled_from(StateType),
    st.sampled_from(TEXTS),
    st.lists(st.sampled_from(TEXTS), max_size=3),
)


def some(values: Any) -> Any:
    return st.none() | st.lists(st.sampled_from(values), min_size=1, max_size=3)


FILTERS = st.builds(
    EventFilter,
    kinds=some(list(RunKind)),
    run=st.none() | st.sampled_from(RUNS),
    tree=st.none() | st.sampled_from([tree_tag(run) for run in RUNS]),
    state_types=some(list(StateType)),
    state_names=some(TEXTS),
    tags=some(TEXTS),
)


@EXAMPLES
@given(EVENTS, FILTERS, st.booleans(), st.sampled_from([None, 2]))
def test_an_event_passes_as_json_where_it_passes_as_a_value(
    told: Event, wanted: EventFilter, escaped: bool, indent: int | None
) -> None:
    sieve = Sieve(wanted)
    resource = told.data.resource
    tags = {related.id for related in told.data.related}
    expected = (
        (wanted.kinds is None or resource.kind in wanted.kinds)
        and (wanted.run in (None, resource.id))
        and (wanted.tree in (None, told.tree))
        and (wanted.state_types is None or resource.state_type in wanted.state_types)
        and (wanted.state_names is None or resource.state_name in wanted.state_names)
        and (wanted.tags is None or bool(tags & set(wanted.tags)))
    )
    assert sieve.lets_pass(told) is expected
    # Whatever a writer escapes, and whatever space it leaves.
    body = json.dumps(json.loads(told.model_dump_json()), ensure_ascii=escaped, indent=indent).encode()
    assert sieve.passes(body) is expected
    assert (tree_of(body), tree_of(told), event_of(body)) == (told.tree, told.tree, told)


def test_one_value_is_as_good_as_a_list_of_one_and_their_order_does_not_matter() -> None:
    assert EventFilter(kinds="task-run") == EventFilter(kinds=["task-run"]) == EventFilter(kinds=[RunKind.TASK_RUN])
    assert EventFilter(tags=["a", "b", "a"]) == EventFilter(tags=("b", "a"))


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"kinds": []}, "kinds"),
        ({"kinds": "run"}, "kinds.0"),
        ({"state_types": "DONE"}, "state_types.0"),
        ({"state_names": ["", "x"]}, "state_names.0"),
        ({"tags": [str(number) for number in range(MAX_WANTED + 1)]}, "tags"),
        ({"tags": 7}, "tags"),
        ({"tree": 65_536}, "tree"),
        ({"run": "x"}, "run"),
    ],
)
def test_a_filter_that_wants_what_there_is_not_is_refused(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        EventFilter(**wrong)
    assert refused.value.field == field
    with pytest.raises(ValidationError):
        EventFilter.model_validate(wrong)


def test_a_run_and_a_tree_leave_one_partition() -> None:
    assert EventFilter().partitions(8) == list(range(8))
    assert EventFilter(run=RUNS[0]).partitions(8) == [partition_of(RUNS[0], 8)]
    assert EventFilter(tree=tree_tag(RUNS[1])).partitions(8) == [partition_of(RUNS[1], 8)]
    assert EventFilter(run=RUNS[0], tree=tree_tag(RUNS[1])).partitions(8) == []
