"""The test vectors of the protocol: whatever computes ids and partitions agrees with them."""

import json
import runpy
import subprocess
from typing import Any
from uuid import UUID

from statewright.ids import (
    IdSource,
    id_from_key,
    partition_of,
    partition_of_limit,
    partition_of_subscription,
    share_of,
    shares_per_partition,
    tree_tag,
)
from tests.node import EXAMPLES, ROOT

VECTORS = json.loads((ROOT / "protocol" / "vectors.json").read_text())


def test_partitions_of_runs() -> None:
    for vector in VECTORS["partition_of_a_run"]:
        run_id = UUID(vector["run_id"])
        assert tree_tag(run_id) == vector["tree_tag"]
        assert {count: partition_of(run_id, int(count)) for count in vector["partitions"]} == vector["partitions"]


def test_partitions_of_limits() -> None:
    for vector in VECTORS["partition_of_a_limit"]:
        told = {count: partition_of_limit(vector["scope"], vector["key"], int(count)) for count in vector["partitions"]}
        assert told == vector["partitions"]


def test_ids_from_idempotency_keys() -> None:
    for vector in VECTORS["id_from_an_idempotency_key"]:
        parent = vector["parent_id"] and UUID(vector["parent_id"])
        assert str(id_from_key(vector["idempotency_key"], parent)) == vector["run_id"]


def test_new_ids() -> None:
    for vector in VECTORS["new_run_id"]:
        assert str(made_of(vector).new(vector["tree_tag"])) == vector["run_id"]


def made_of(vector: dict[str, Any]) -> IdSource:
    """Return a source of ids with the clock and the entropy of a vector."""
    stamp = vector["milliseconds"] << 12 | vector["sub_millisecond"]
    random = int(vector["random"], 16)
    return IdSource(lambda: stamp / 4_096_000, lambda bits: random & (1 << bits) - 1)


def test_the_example_in_python_agrees() -> None:
    ids = runpy.run_path(str(ROOT / "examples" / "python" / "ids.py"))
    for vector in VECTORS["partition_of_a_run"]:
        run_id, partitions = vector["run_id"], vector["partitions"]
        assert ids["tag_of"](run_id) == vector["tree_tag"]
        assert {count: ids["partition_of_run"](run_id, int(count)) for count in partitions} == partitions
    for vector in VECTORS["partition_of_a_limit"]:
        scope, key, partitions = vector["scope"], vector["key"], vector["partitions"]
        assert {count: ids["partition_of_limit"](scope, key, int(count)) for count in partitions} == partitions
    for vector in VECTORS["id_from_an_idempotency_key"]:
        assert ids["id_from_key"](vector["idempotency_key"], vector["parent_id"]) == vector["run_id"]
    for vector in VECTORS["new_run_id"]:
        parts = vector["milliseconds"], vector["sub_millisecond"], int(vector["random"], 16), vector["tree_tag"]
        assert ids["run_id_of"](*parts) == vector["run_id"]
    parent = ids["new_run_id"]()
    assert tree_tag(UUID(ids["new_run_id"](parent))) == tree_tag(UUID(parent))


def test_the_example_in_javascript_agrees(node_with_redis: str) -> None:
    tested = subprocess.run(
        [node_with_redis, "--test", "ids.test.mjs"], cwd=EXAMPLES, capture_output=True, text=True, check=False
    )
    assert tested.returncode == 0, tested.stdout


def test_partitions_and_shares_of_named_subscriptions() -> None:
    for vector in VECTORS["partition_of_a_subscription"]:
        for partitions, partition in vector["partitions"].items():
            assert partition_of_subscription(vector["name"], int(partitions)) == partition
    for vector in VECTORS["share_of_a_tree"]:
        for partitions, told in vector["shares"].items():
            assert shares_per_partition(int(partitions)) == told["shares"]
            assert share_of(vector["tree"], int(partitions), told["shares"]) == told["share"]
