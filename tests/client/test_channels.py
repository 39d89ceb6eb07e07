"""The names in Redis, and the ids of stream entries."""

import re

import pytest

from statewright.protocol import channels
from statewright.protocol.channels import Channels, following

GREATEST = 2**64 - 1


@pytest.mark.parametrize(
    ("entry_id", "next_one"),
    [
        ("0-0", "0-1"),
        ("1763910000000-7", "1763910000000-8"),
        (f"5-{GREATEST - 1}", f"5-{GREATEST}"),
        (f"5-{GREATEST}", "6-0"),
        (f"{GREATEST}-5", f"{GREATEST}-6"),
        (f"{GREATEST}-{GREATEST}", f"{GREATEST}-{GREATEST}"),
    ],
)
def test_behind_every_entry_comes_an_id_that_redis_knows(entry_id: str, next_one: str) -> None:
    assert following(entry_id) == next_one


def test_the_page_lists_every_key_with_its_bound() -> None:
    names = {
        Channels("ns").proposals(0): "{ns:p}:proposals",
        Channels("ns").events(0): "{ns:p}:events",
        Channels("ns").dead_letters(0): "{ns:p}:dead-letters",
        Channels("ns").replies("c"): "ns:replies:<client>",
        Channels("ns").holders: "ns:holders",
        Channels("ns").workers: "ns:workers",
        Channels("ns").partitions: "ns:partitions",
        Channels("ns").database: "ns:database",
        Channels("ns").queue: "ns:queue",
    }
    page = channels.__doc__ or ""
    assert len(names) == 9
    for listed in names.values():
        assert len(re.findall(rf"^    {re.escape(listed)} ", page, re.MULTILINE)) == 2
