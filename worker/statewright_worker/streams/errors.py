"""What the streams raise: Redis does not answer, or it refuses. `storage/errors.py` is the same for PostgreSQL."""

from typing import Final

from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from statewright.connection import DROPPED, passing

REDIS_SILENT: Final = RedisTimeoutError
"""Redis took too long: it is gone, or was asked for too much."""
REDIS_FAILED: Final = (*DROPPED, ResponseError)
"""Redis does not answer, or it refuses."""


def passes(failure: Exception) -> bool:
    """Return whether Redis may take the same command later. It refuses for good only because of the command itself, or
    because a key is of another type."""
    return not isinstance(failure, ResponseError) or passing(failure)
