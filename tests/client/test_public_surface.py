"""The public surface: what `statewright` offers, and what importing it costs."""

import subprocess
import sys
from types import ModuleType

import statewright

HEAVY = {"sqlalchemy", "arq", "asyncpg", "typer", "alembic", "structlog", "rich", "uvloop", "statewright_worker"}


def test_everything_that_is_listed_can_be_imported() -> None:
    namespace: dict[str, object] = {}
    exec("from statewright import *", namespace)
    assert set(statewright.__all__) <= set(namespace)


def test_nothing_that_is_not_listed_leaks() -> None:
    public = {name for name, value in vars(statewright).items() if name[0] != "_" and not isinstance(value, ModuleType)}
    assert public == set(statewright.__all__)
    assert len(statewright.__all__) == len(set(statewright.__all__))


def test_the_list_is_in_alphabetical_order_so_that_it_can_be_read() -> None:
    constants = [name for name in statewright.__all__ if name.isupper()]
    others = [name for name in statewright.__all__ if not name.isupper()]
    assert statewright.__all__ == sorted(constants) + sorted(others)


def test_everything_that_is_offered_comes_from_the_light_package_and_says_what_it_is() -> None:
    for name in statewright.__all__:
        offered = getattr(statewright, name)
        if isinstance(offered, type):
            assert offered.__module__.startswith("statewright.")
            assert offered.__doc__


def test_the_client_loads_nothing_of_the_worker() -> None:
    script = "import sys, statewright; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert {"statewright", "redis", "pydantic"} <= set(loaded)
    assert HEAVY & set(loaded) == set()
