"""How much is kept in Redis, and for how long."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StreamBounds:
    """What bounds the streams of a partition and the answers to each client. Durations are seconds."""

    events_kept: int = 10_000
    events_bytes: int = 32 * 1024 * 1024
    replies_kept: int = 4_096
    reply_seconds: int = 600
    dead_letters_kept: int = 1_000
    dead_letter_seconds: int = 30 * 86_400
