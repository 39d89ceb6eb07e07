"""Node.js, which some tests need: without it they are skipped, unless `--with-node` says that it must be there."""

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECKS = ROOT / "protocol" / "checks"
EXAMPLES = ROOT / "examples" / "node"


def node_for(folder: Path, request: pytest.FixtureRequest) -> str:
    """Return the path of Node.js, once it and the packages of `folder` are there; skip or fail the test otherwise."""
    found = shutil.which("node")
    if found is None:
        _without("there is no Node.js: install version 20 or newer, then `make node`", request)
    if not (folder / "node_modules").is_dir():
        _without(f"the packages of {folder.relative_to(ROOT)} are not installed: run `make node`", request)
    return str(found)


def _without(reason: str, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--with-node"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def node_with_checks(request: pytest.FixtureRequest) -> str:
    """The path of Node.js, with the packages that check the AsyncAPI document."""
    return node_for(CHECKS, request)


@pytest.fixture
def node_with_redis(request: pytest.FixtureRequest) -> str:
    """The path of Node.js, with what the examples need."""
    return node_for(EXAMPLES, request)
