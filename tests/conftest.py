"""Options and fixtures of the whole test suite; they must be known before any test folder is read."""

import signal
from pathlib import Path

import pytest

from tests.deployment import deployment, servers, template
from tests.node import node_with_checks, node_with_redis

__all__ = ["deployment", "node_with_checks", "node_with_redis", "pytest_addoption", "servers", "template"]

# A shell lets a job in the background ignore Ctrl-C, and so would every process that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the conformance tests, and of those that need Node.js."""
    group = parser.getgroup("conformance")
    group.addoption(
        "--cases",
        action="append",
        default=[],
        type=Path,
        metavar="PATH",
        help="run the recorded cases of this file (.jsonl or .jsonl.gz) instead of the bundled ones; may be repeated",
    )
    group.addoption(
        "--engine-only",
        action="store_true",
        help="run recorded cases on the engine alone, in memory, with a clock that the runner sets",
    )
    parser.addoption(
        "--with-node",
        action="store_true",
        help="fail instead of skipping what needs Node.js and its packages (`make node` installs these)",
    )
