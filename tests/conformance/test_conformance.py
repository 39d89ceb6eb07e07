"""Every recorded transition comes out as it was recorded."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.conformance.cases import read_cases
from tests.conformance.conftest import SUMMARY
from tests.conformance.replay import replay_all
from tests.conformance.report import Report
from tests.conformance.subject import Host


async def test_recorded_transitions_are_reproduced(
    cases_path: Path,
    opening_host: AbstractAsyncContextManager[Host],
    record_property: Callable[[str, object], None],
) -> None:
    async with opening_host as host:
        report = Report(f"{cases_path.name} on {host.name}", await replay_all(read_cases(cases_path), host))
    record_property(SUMMARY, report.summary())
    if not report.agrees:
        pytest.fail(report.differences(), pytrace=False)
