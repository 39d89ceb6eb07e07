"""What the streams raise: Redis does not answer, or it refuses. storage/errors.py says the same of PostgreSQL."""

from typing import Final

from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from statewright.connection import DROPPED, passing

REDIS_SILENT: Final = RedisTimeoutError
"""Redis took too long: it is gone, or was asked for too much."""
REDIS_FAILED: Final = (*DROPPED, ResponseError)
"""Redis does not answer, or it refuses."""


def passes(failure: Exception) -> bool:
    """Return whether the same may be taken later. Only what Redis refuses because of the command itself, or because of
    what a key is, it refuses for good."""
    return not isinstance(failure, ResponseError) or passing(failure)
