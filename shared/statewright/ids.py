"""Identifiers: time-ordered UUIDs whose last 16 bits tag the tree of runs, and so the partition."""

import hashlib
import os
import time
from collections.abc import Callable
from random import Random
from uuid import UUID

TAG_BITS = 16
TAG_MASK = (1 << TAG_BITS) - 1
_VARIANT = 0b10 << 62
SHARES_AT_LEAST = 64

# Ids need to be unique, not secret. A generator that the system has seeded is many times faster than the system itself.
_random = Random()
if hasattr(os, "register_at_fork"):
    # A forked child has a copy of the generator: unless it is seeded again, parent and child make the same ids.
    os.register_at_fork(after_in_child=_random.seed)


def tree_tag(run_id: UUID) -> int:
    """Return the tag that a run shares with every run of its tree, 0 to 65535."""
    return run_id.int & TAG_MASK


def partition_of(run_id: UUID, partitions: int) -> int:
    """Return the partition in which the tree of `run_id` is governed."""
    return tree_tag(run_id) % partitions


def partition_of_tag(tag: str, partitions: int) -> int:
    """Return the partition in which the limit on `tag` is administered."""
    return int.from_bytes(hashlib.sha256(tag.encode()).digest()[:2], "big") % partitions


def partition_of_subscription(name: str, partitions: int) -> int:
    """Return the partition in which the named subscription is administered."""
    return partition_of_tag(f"subscription:{name}", partitions)


def shares_per_partition(partitions: int) -> int:
    """Return into how many shares a named subscription divides each partition.

    There are at least 64 in all, so that a few members have nearly the same number each.
    """
    return -(-SHARES_AT_LEAST // partitions)


def share_of(tag: int, partitions: int, shares: int) -> int:
    """Return the share to which the events of a tree belong: one of so many in the tree's partition."""
    return tag // partitions % shares


def id_of_executor(name: str, partition: int) -> UUID:
    """Return the id under which the end of an executor's lease in a partition is known."""
    return id_from_key(f"executor {partition} {name}")


def partition_of_limit(scope: str, key: str, partitions: int) -> int:
    """Return the partition in which a limit is administered: that of the tag, or of the tag `scope:key`."""
    return partition_of_tag(key if scope == "tag" else f"{scope}:{key}", partitions)


class IdSource:
    """Makes UUIDv7 ids; the clock (seconds since 1970) and the entropy (an integer of so many bits) are injected.

    A process that is forked off may go on using its parent's source: with the entropy that is the default, their ids
    differ.
    """

    def __init__(self, clock: Callable[[], float] = time.time, entropy: Callable[[int], int] | None = None) -> None:
        self._clock = clock
        self._entropy = entropy or _random.getrandbits
        self._last = 0

    def new(self, tag: int | None = None) -> UUID:
        """Return an id greater than every earlier one of this source in its first 60 bits.

        With `tag` the id joins that tree; without, its last bits are random, so that a new tree lands anywhere.
        """
        # Kept strictly rising within this source.
        self._last = stamp = max(self._last + 1, int(self._clock() * 4_096_000))
        random = self._entropy(62)
        if tag is not None:
            random = random & ~TAG_MASK | tag
        return UUID(int=(_high_bits(stamp) << 64) | _VARIANT | random)


def first_id_at(moment: float) -> UUID:
    """Return the least id that a source can make at a moment, in seconds since 1970, or later."""
    return UUID(int=_high_bits(max(int(moment * 4_096_000), 0)) << 64)


def _high_bits(stamp: int) -> int:
    # 48 bits of milliseconds and 12 bits below them.
    return ((stamp >> 12) << 16) | 0x7000 | (stamp & 0xFFF)


def id_from_key(idempotency_key: str, parent_id: UUID | None = None) -> UUID:
    """Return the id that belongs to an idempotency key for ever: the same key makes the same run.

    Keys are scoped by `parent_id`, whose tree the id joins. The result is a UUIDv8 (RFC 9562, custom data).
    """
    scope = parent_id.bytes if parent_id else b""
    digest = int.from_bytes(hashlib.sha256(scope + idempotency_key.encode(errors="surrogatepass")).digest()[:16], "big")
    tag = tree_tag(parent_id) if parent_id else digest & TAG_MASK
    versioned = digest & ~(0xF << 76) & ~(0b11 << 62) & ~TAG_MASK
    return UUID(int=versioned | (0x8 << 76) | _VARIANT | tag)
