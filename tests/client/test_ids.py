"""Ids: ordered by time, tagged by tree, and stable where they come from a key."""

import os
from collections.abc import Iterator
from itertools import pairwise
from uuid import RFC_4122, UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statewright.ids import IdSource, id_from_key, partition_of, partition_of_limit, partition_of_tag, tree_tag

SECONDS = 1_893_499_200.123
"""The moment at which the clock of these tests stands."""

UUIDS = st.uuids(allow_nil=True)
PARTITIONS = st.integers(1, 1_024)
EXAMPLES = settings(max_examples=50, deadline=None, database=None, derandomize=True)


def source(*times: float, entropy: int = -1) -> IdSource:
    """Return a source whose clock shows the times one after the other, and then stands still."""
    clock: Iterator[float] = iter([*times, *[times[-1] if times else SECONDS] * 100])
    return IdSource(clock=lambda: next(clock), entropy=lambda bits: entropy & ((1 << bits) - 1))


def stamp_of(run_id: UUID) -> int:
    """Return the first 60 bits of an id beside its version: its place in time."""
    return (run_id.int >> 80) << 12 | (run_id.int >> 64) & 0xFFF


@pytest.mark.parametrize("entropy", [0, -1, 0x0123_4567_89AB_CDEF])
def test_a_new_id_is_a_uuid_of_version_7(entropy: int) -> None:
    new = source(entropy=entropy).new()
    assert (new.version, new.variant) == (7, RFC_4122)


def test_a_new_id_begins_with_the_milliseconds_since_1970() -> None:
    assert source().new().int >> 80 == 1_893_499_200_123


def test_ids_of_a_source_rise_strictly_even_while_the_clock_stands_still() -> None:
    ids = source()
    stamps = [stamp_of(ids.new()) for _ in range(50)]
    assert all(earlier < later for earlier, later in pairwise(stamps))


def test_ids_of_a_source_rise_strictly_even_when_the_clock_is_set_back() -> None:
    ids = source(SECONDS, SECONDS - 3600, SECONDS - 7200, SECONDS + 1)
    made = [ids.new() for _ in range(4)]
    assert made == sorted(made)
    assert len({stamp_of(new) for new in made}) == 4
    assert made[-1].int >> 80 == 1_893_499_201_123


@EXAMPLES
@given(st.lists(st.floats(0, 4e9), min_size=2, max_size=20))
def test_ids_of_a_source_rise_strictly_whatever_the_clock_does(times: list[float]) -> None:
    ids = source(*times)
    stamps = [stamp_of(ids.new()) for _ in times]
    assert all(earlier < later for earlier, later in pairwise(stamps))


def test_ids_made_in_the_same_moment_by_two_sources_differ_by_chance() -> None:
    assert source(entropy=1).new() != source(entropy=2).new()


def test_an_id_without_a_tag_lands_anywhere() -> None:
    assert {tree_tag(source(entropy=n << 8 | n).new()) for n in range(256)} == {n << 8 | n for n in range(256)}


@EXAMPLES
@given(st.integers(0, 0xFFFF))
def test_an_id_with_a_tag_joins_its_tree_and_stays_a_uuid_of_version_7(tag: int) -> None:
    new = source().new(tag=tag)
    assert tree_tag(new) == tag
    assert (new.version, new.variant) == (7, RFC_4122)


def test_the_tag_is_the_last_sixteen_bits() -> None:
    assert tree_tag(UUID("01a200ef-06bf-7500-83c5-73e04725151e")) == 0x151E


@EXAMPLES
@given(UUIDS, PARTITIONS)
def test_a_partition_is_the_tag_modulo_the_partitions(run_id: UUID, partitions: int) -> None:
    assert partition_of(run_id, partitions) == int(run_id.hex[-4:], 16) % partitions


@EXAMPLES
@given(UUIDS, PARTITIONS, st.text(max_size=20))
def test_a_whole_tree_shares_one_partition(root: UUID, partitions: int, key: str) -> None:
    child = source().new(tag=tree_tag(root))
    keyed = id_from_key(key, child)
    assert {partition_of(member, partitions) for member in (child, keyed)} == {partition_of(root, partitions)}


@pytest.mark.parametrize(("tag", "of_eight", "of_a_thousand"), [("db", 4, 708), ("großes Büro", 2, 498)])
def test_the_partition_of_a_limit_never_changes(tag: str, of_eight: int, of_a_thousand: int) -> None:
    assert (partition_of_tag(tag, 8), partition_of_tag(tag, 1_000)) == (of_eight, of_a_thousand)


@EXAMPLES
@given(st.text(max_size=50), PARTITIONS)
def test_the_partition_of_a_limit_is_one_of_the_partitions(tag: str, partitions: int) -> None:
    assert partition_of_tag(tag, partitions) in range(partitions)


# -- ids from keys -----------------------------------------------------------------------------------------------------

PARENT = UUID("01a200ef-06bf-7500-83c5-73e04725151e")


def test_an_id_from_a_key_never_changes() -> None:
    assert id_from_key("nightly-2030-01-01") == UUID("00e14a8b-36a6-80a7-8f04-65c5a208e69c")
    assert id_from_key("nightly-2030-01-01", PARENT) == UUID("779336c0-3000-8945-8220-7ca80dc4151e")


@EXAMPLES
@given(st.text(max_size=30), st.none() | UUIDS)
def test_an_id_from_a_key_is_a_uuid_of_version_8(key: str, parent: UUID | None) -> None:
    made = id_from_key(key, parent)
    assert (made.version, made.variant) == (8, RFC_4122)


@EXAMPLES
@given(st.text(max_size=30), UUIDS)
def test_an_id_from_a_key_joins_the_tree_of_its_parent(key: str, parent: UUID) -> None:
    assert tree_tag(id_from_key(key, parent)) == tree_tag(parent)


@EXAMPLES
@given(st.lists(st.text(max_size=30), min_size=2, max_size=2, unique=True), st.none() | UUIDS)
def test_different_keys_make_different_ids(keys: list[str], parent: UUID | None) -> None:
    assert id_from_key(keys[0], parent) != id_from_key(keys[1], parent)


@EXAMPLES
@given(st.text(max_size=30), st.lists(st.none() | UUIDS, min_size=2, max_size=2, unique=True))
def test_the_same_key_under_another_parent_makes_another_id(key: str, parents: list[UUID | None]) -> None:
    assert id_from_key(key, parents[0]) != id_from_key(key, parents[1])


def test_the_keys_of_two_parents_in_one_tree_do_not_meet() -> None:
    sibling = source().new(tag=tree_tag(PARENT))
    assert id_from_key("task", PARENT) != id_from_key("task", sibling)


def test_ids_from_keys_without_a_parent_spread_over_the_partitions() -> None:
    assert {partition_of(id_from_key(f"run {n}"), 8) for n in range(200)} == set(range(8))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_ids_differ_from_those_of_forked_off_processes() -> None:
    ids = IdSource(clock=lambda: SECONDS)

    def made_in_a_child() -> list[str]:
        receiving, sending = os.pipe()
        if os.fork() == 0:
            os.write(sending, " ".join(str(ids.new(tag=7)) for _ in range(20)).encode())
            os._exit(0)
        os.close(sending)
        with os.fdopen(receiving) as told:
            made = told.read().split()
        os.wait()
        return made

    made = [*made_in_a_child(), *made_in_a_child(), *(str(ids.new(tag=7)) for _ in range(20))]
    assert len(set(made)) == len(made) == 60


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_entropy_that_was_injected_stays_as_it_is_in_a_forked_off_process() -> None:
    ids = source()
    expected = source().new()
    child = os.fork()
    if child == 0:
        os._exit(0 if ids.new() == expected else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_limit_belongs_to_the_partition_of_its_tag_or_of_its_scope_and_key() -> None:
    assert partition_of_limit("tag", "gpu", 1_000) == partition_of_tag("gpu", 1_000)
    assert partition_of_limit("name", "gpu", 1_000) == partition_of_tag("name:gpu", 1_000)
    assert partition_of_limit("deployment", str(UUID(int=7)), 1_000) == partition_of_tag(
        f"deployment:{UUID(int=7)}", 1_000
    )
