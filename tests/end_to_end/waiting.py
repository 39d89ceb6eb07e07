"""Clients that wait shortly for an answer, but as long as it takes to be opened."""

from collections.abc import Iterator
from contextlib import contextmanager

from statewright import Client


@contextmanager
def waiting(client: Client, seconds: float) -> Iterator[None]:
    """Let what an open client sends meanwhile wait no longer than this for an answer.

    The setting `answer_timeout` bounds the opening too, and a busy machine may take longer for that.
    """
    settings = client._settings
    client._settings = settings.model_copy(update={"answer_timeout": seconds})
    try:
        yield
    finally:
        client._settings = settings
