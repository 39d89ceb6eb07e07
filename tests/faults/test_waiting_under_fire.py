"""Limits are kept, and their queues are in order, while workers are killed and Redis loses everything."""

import pytest

from tests.deployment import Deployment
from tests.faults.waiting import rage


@pytest.mark.parametrize("flush", [False, True], ids=["workers killed", "and Redis emptied"])
async def test_limits_and_queues_hold_while_workers_are_killed(deployment: Deployment, flush: bool) -> None:
    fire, found = await rage(deployment, seconds=5, flush=flush)

    assert fire.kills >= 2
    assert not fire.errors
    assert found.problems == {check: [] for check in found.problems}
    assert fire.answered == found.starts == len(fire.priorities)
