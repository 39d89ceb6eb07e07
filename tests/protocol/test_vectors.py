"""The test vectors of the protocol: whatever computes ids and partitions agrees with them."""

import json
import subprocess
from pathlib import Path
from uuid import UUID

import pytest

from statewright.ids import IdSource, id_from_key, partition_of, partition_of_limit, tree_tag
from tests.node import EXAMPLES as NODE_EXAMPLES
from tests.node import ROOT

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
        stamp = vector["milliseconds"] << 12 | vector["sub_millisecond"]
        random = int(vector["random"], 16)
        made = IdSource(lambda at=stamp: at / 4_096_000, lambda bits, of=random: of & (1 << bits) - 1)
        assert str(made.new(vector["tree_tag"])) == vector["run_id"]
