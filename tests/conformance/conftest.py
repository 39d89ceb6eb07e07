"""Which files are run on which host, and the summary at the end of the test run."""

from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Final

import pytest

from tests.conformance.deployment_host import deployment_host
from tests.conformance.engine_host import EngineHost
from tests.conformance.subject import Host

DATA: Final = Path(__file__).parent / "data"
SUMMARY: Final = "conformance summary"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that asks for cases on every file that the options name."""
    if "cases_path" in metafunc.fixturenames:
        paths = metafunc.config.getoption("--cases") or sorted(DATA.glob("*.jsonl.gz"))
        metafunc.parametrize("cases_path", paths, ids=lambda path: path.name)


@pytest.fixture
def opening_host(request: pytest.FixtureRequest) -> AbstractAsyncContextManager[Host]:
    """Opens the host that the options name; servers are started only for a host that needs them."""
    if request.config.getoption("--engine-only"):
        return nullcontext(EngineHost())
    return deployment_host(request.getfixturevalue("deployment"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was compared, also when everything agrees."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    summaries = [text for report in reports for name, text in report.user_properties if name == SUMMARY]
    if summaries:
        terminalreporter.section("conformance")
        terminalreporter.write_line("\n\n".join(map(str, summaries)))
