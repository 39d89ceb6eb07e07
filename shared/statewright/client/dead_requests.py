"""Dead letters of partitions, straight from Redis: nobody but an operator has the rights to read and to delete them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from pydantic_core import from_json
from redis.asyncio import ConnectionPool
from redis.exceptions import ResponseError

from statewright.connection import DROPPED, Command, HeldConnection, accepted, unavailable
from statewright.errors import RedisUnavailable
from statewright.overview import DeadRequest
from statewright.protocol.channels import (
    DEAD_LETTER_FIELD,
    DEAD_LETTER_REASON,
    DEAD_LETTER_SIZE,
    REQUEST_ID,
    REQUEST_MESSAGE,
    REQUEST_REPLY_TO,
    Channels,
    following,
)

_LATEST_MILLISECONDS: Final = 253_402_300_799_999
"""The end of the year 9999."""


async def read_dead_requests(
    pool: ConnectionPool, channels: Channels, partition: int, *, limit: int, after: str | None
) -> list[DeadRequest]:
    """Return dead letters of a partition behind the entry `after`, oldest first. Raises RedisUnavailable."""
    start = "-" if after is None else following(after)
    command = ("XRANGE", channels.dead_letters(partition), start, "+", "COUNT", limit)
    found = await _asked(pool, command, "Redis refused to show dead letters")
    return [_letter(partition, entry.decode(), dict(zip(flat[::2], flat[1::2], strict=True))) for entry, flat in found]


async def delete_dead_requests(pool: ConnectionPool, channels: Channels, partition: int, entries: Sequence[str]) -> int:
    """Delete dead letters of a partition, and return how many there were. Raises RedisUnavailable."""
    command = ("XDEL", channels.dead_letters(partition), *entries)
    return int(await _asked(pool, command, "Redis refused to delete dead letters"))


async def _asked(pool: ConnectionPool, command: Command, what_follows: str) -> Any:
    redis = HeldConnection(pool)
    try:
        [answer] = accepted(await redis.exchange(command))
    except DROPPED as error:
        raise RedisUnavailable(f"cannot reach Redis (STATEWRIGHT_REDIS_URL): {error}") from error
    except ResponseError as refusal:
        raise unavailable(what_follows, refusal) from refusal
    finally:
        await redis.close()
    return answer


def _letter(partition: int, entry: str, fields: dict[bytes, bytes]) -> DeadRequest:
    body = fields.get(REQUEST_MESSAGE, b"")
    size = fields.get(DEAD_LETTER_SIZE)
    message = body.decode(errors="replace")
    said = _json_of(body)
    milliseconds = min(int(entry.partition("-")[0]), _LATEST_MILLISECONDS)
    return DeadRequest(
        partition=partition,
        entry=entry,
        at=datetime.fromtimestamp(milliseconds / 1_000, UTC),
        reason=fields.get(DEAD_LETTER_REASON, b"").decode(errors="replace"),
        field=_text(fields.get(DEAD_LETTER_FIELD)),
        request_id=_text(fields.get(REQUEST_ID)),
        reply_to=_text(fields.get(REQUEST_REPLY_TO)),
        type=_said(said, "type"),
        run_id=_said(said, "run_id"),
        message=message,
        size=int(size) if size is not None and size.isdigit() else len(body),
        is_whole=size is None and REQUEST_MESSAGE in fields and message.encode() == body,
    )


def _text(value: bytes | None) -> str | None:
    return value.decode(errors="replace") if value else None


def _json_of(body: bytes) -> dict[str, Any]:
    try:
        said = from_json(body)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _said(message: dict[str, Any], field: str) -> str | None:
    value = message.get(field)
    return value if isinstance(value, str) else None
