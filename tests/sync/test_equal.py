"""Both clients have the same calls: the one without an event loop is made out of the other."""

import inspect
import re
import subprocess
import sys
from typing import Any

import pytest

import statewright
import statewright.sync
from statewright.client import sent as within_a_loop
from statewright.sync import sent as without_one
from tests.sync.making import TARGET, WORDS_OF_A_LOOP, made

CALLS = [name for name in vars(statewright.Client) if not name.startswith("_")]


def test_the_client_is_made_out_of_the_one_for_event_loops_as_it_is_now() -> None:
    assert TARGET.read_text() == made(), "run `make sync`"


def test_it_has_the_same_calls_and_can_be_closed() -> None:
    own = {name for name in dir(statewright.sync.Client) if not name.startswith("_")}
    assert own - set(CALLS) == {"close"}
    assert set(CALLS) <= own


@pytest.mark.parametrize("name", CALLS)
def test_a_call_takes_and_returns_the_same(name: str) -> None:
    ours, theirs = (inspect.getattr_static(client, name) for client in (statewright.sync.Client, statewright.Client))
    if isinstance(theirs, property):
        assert isinstance(ours, property)
        ours, theirs = ours.fget, theirs.fget
    of_ours, of_theirs = inspect.signature(ours), inspect.signature(theirs)
    assert list(of_ours.parameters) == list(of_theirs.parameters)
    for parameter in of_theirs.parameters.values():
        assert of_ours.parameters[parameter.name] == parameter
    assert shown(of_ours.return_annotation) == shown(of_theirs.return_annotation)
    assert not inspect.iscoroutinefunction(ours)
    assert ours.__doc__


def shown(annotation: Any) -> str:
    """Return an annotation without the modules of its classes, which differ."""
    return re.sub(
        r"[\w.]+\.(?=\w)", "", annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    )


@pytest.mark.parametrize(
    "name",
    ["Sent", "SentRun", "SentCreation", "SentProposal", "KeepAlive", "Executor", "Subscription", "NamedSubscription"],
)
def test_what_calls_return_says_the_same(name: str) -> None:
    ours, theirs = getattr(statewright.sync, name), getattr(statewright, name)
    apart = {
        "answer_there",  # what `answer` does once the answer is there
        "may_be_parked",  # the client says so
        "when_answered",  # for an executor, in its loop
    }
    public = {name for name in dir(theirs) if not name.startswith("_")} - apart
    assert public <= {name for name in dir(ours) if not name.startswith("_")}
    for member in public & set(vars(ours)) & set(vars(theirs)):
        ours_of, theirs_of = (inspect.getattr_static(of, member) for of in (ours, theirs))
        has_timeout = False
        if callable(theirs_of):
            parameters = list(inspect.signature(ours_of).parameters)
            has_timeout = parameters.pop() == "timeout" if "timeout" in parameters else False
            assert parameters == list(inspect.signature(theirs_of).parameters)
        if not has_timeout and not WORDS_OF_A_LOOP.search(theirs_of.__doc__ or ""):
            assert ours_of.__doc__ == theirs_of.__doc__


def test_every_request_under_way_has_its_counterpart() -> None:
    theirs = {
        kind for kind in vars(within_a_loop).values() if isinstance(kind, type) and issubclass(kind, within_a_loop.Sent)
    }
    assert set(without_one._COUNTERPARTS) == theirs


def test_importing_statewright_starts_nothing_and_does_not_import_it() -> None:
    script = "import sys, threading, statewright; print('statewright.sync' in sys.modules, threading.active_count())"
    assert (
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout == "False 1\n"
    )


def test_everything_that_is_offered_says_what_it_is() -> None:
    for name in statewright.sync.__all__:
        offered = getattr(statewright.sync, name)
        assert offered.__doc__
        assert "await" not in offered.__doc__
        assert "async" not in offered.__doc__
    assert statewright.sync.__all__ == sorted(statewright.sync.__all__)
