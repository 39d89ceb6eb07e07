"""The client's logger, `statewright`: quiet unless somebody listens, and no secret, message or state's data in it.

At DEBUG it tells of each request and answer, by id. It warns once when Redis goes away or refuses, and says once when
it is back.
"""

import logging
from typing import Final

from redis.exceptions import ResponseError

LOG: Final = logging.getLogger("statewright")
LOG.addHandler(logging.NullHandler())

_ARGUMENTS: Final = ", with args beginning with"
"""What Redis says of a command that it does not know, before it repeats what it was sent."""


def in_a_line(error: BaseException) -> str:
    """Return an error as its class and one line of text, without anything that was sent."""
    said = str(error).partition("\n")[0].partition(_ARGUMENTS)[0].strip()
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def without_secrets(url: str) -> str:
    """Return where a URL leads to, without the user, the password and the parameters."""
    scheme, _, rest = url.partition("?")[0].partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


class Outage:
    """Redis as all parts of a client see it; they share this object, so that each line is logged once.

    It lasts from the first failure until none of those who failed has any trouble left.
    """

    def __init__(self, url: str) -> None:
        self._where = without_secrets(url)
        self._troubled: set[object] = set()

    @property
    def lasts(self) -> bool:
        """Whether anybody has trouble with Redis."""
        return bool(self._troubled)

    def failed(self, error: BaseException, by: object) -> None:
        """Note that Redis has not done what `by` asked."""
        if not self._troubled:
            what = "refuses" if isinstance(error, ResponseError) else "is away"
            LOG.warning("Redis at %s %s: %s", self._where, what, in_a_line(error))
        self._troubled.add(by)

    def forget(self, by: object) -> None:
        """Note that `by` asks for nothing any more."""
        self._troubled.discard(by)

    def over(self, by: object) -> None:
        """Note that Redis does what `by` asks."""
        if by in self._troubled:
            self._troubled.discard(by)
            if not self._troubled:
                LOG.info("Redis at %s is back", self._where)
