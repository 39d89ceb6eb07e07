"""What a client computes: ids of runs and partitions. See "Ids and partitions" in PROTOCOL.md."""

import hashlib
import secrets
import time
import uuid


def tag_of(run_id: str) -> int:
    """Return the tag of the run's tree."""
    return int(run_id[-4:], 16)


def partition_of_run(run_id: str, partitions: int) -> int:
    """Return the partition to which requests about the run go."""
    return tag_of(run_id) % partitions


def partition_of_limit(scope: str, key: str, partitions: int) -> int:
    """Return the partition of a limit; the scope is tag, name or deployment."""
    text = key if scope == "tag" else f"{scope}:{key}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:2], "big") % partitions


def new_run_id(parent_id: str | None = None) -> str:
    """Return a new id, which ends like the parent's where there is one."""
    nanoseconds = time.time_ns()
    below = nanoseconds % 1_000_000 * 4096 // 1_000_000
    tag = None if parent_id is None else tag_of(parent_id)
    return run_id_of(nanoseconds // 1_000_000, below, secrets.randbits(62), tag)


def run_id_of(milliseconds: int, below: int, random: int, tag: int | None) -> str:
    """Return the UUID of version 7 of these parts; without a tag, the random bits have one."""
    if tag is not None:
        random = random & ~0xFFFF | tag
    high = milliseconds << 16 | 0x7000 | below
    return str(uuid.UUID(int=high << 64 | 0b10 << 62 | random & (1 << 62) - 1))


def id_from_key(key: str, parent_id: str | None = None) -> str:
    """Return the id that an idempotency key always makes."""
    parent = b"" if parent_id is None else uuid.UUID(parent_id).bytes
    made = bytearray(hashlib.sha256(parent + key.encode()).digest()[:16])
    made[6] = made[6] & 0x0F | 0x80
    made[8] = made[8] & 0x3F | 0x80
    made[14:] = parent[14:] or made[14:]
    return str(uuid.UUID(bytes=bytes(made)))
