"""Which files are run on which hosts, and the summary at the end of the test run."""

from pathlib import Path
from typing import Final

import pytest

from tests.conformance.hosts import ENGINE, HOSTS

DATA: Final = Path(__file__).parent / "data"
SUMMARY: Final = "conformance summary"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that asks for cases on every file and every host that the options name."""
    if {"cases_path", "host_name"} <= set(metafunc.fixturenames):
        paths = metafunc.config.getoption("--cases") or sorted(DATA.glob("*.jsonl.gz"))
        hosts = [ENGINE] if metafunc.config.getoption("--engine-only") else list(HOSTS)
        metafunc.parametrize("cases_path", paths, ids=lambda path: path.name)
        metafunc.parametrize("host_name", hosts)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was compared, also when everything agrees."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    summaries = [text for report in reports for name, text in report.user_properties if name == SUMMARY]
    if summaries:
        terminalreporter.section("conformance")
        terminalreporter.write_line("\n\n".join(map(str, summaries)))
