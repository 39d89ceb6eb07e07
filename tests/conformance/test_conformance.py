"""Every recorded transition comes out as it was recorded."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.cases import read_cases
from tests.conformance.conftest import SUMMARY
from tests.conformance.hosts import HOSTS
from tests.conformance.replay import replay_all
from tests.conformance.report import Report
from tests.conformance.subject import OpenHost


async def _report(title: str, cases_path: Path, open_host: OpenHost) -> Report:
    async with open_host() as host:
        return Report(title, await replay_all(read_cases(cases_path), host))


def test_recorded_transitions_are_reproduced(
    cases_path: Path, host_name: str, record_property: Callable[[str, object], None]
) -> None:
    report = asyncio.run(_report(f"{cases_path.name} on {host_name}", cases_path, HOSTS[host_name]))
    record_property(SUMMARY, report.summary())
    if not report.agrees:
        pytest.fail(report.differences(), pytrace=False)
