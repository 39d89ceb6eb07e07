"""Whatever producers, executors and operators do: limits are kept, queues are in order, who waits is answered."""

from tests.deployment import Deployment
from tests.faults.actions import try_examples


async def test_whatever_happens_limits_are_kept_and_whoever_waits_is_answered(deployment: Deployment) -> None:
    await try_examples(deployment, examples=15, replicas=2)
