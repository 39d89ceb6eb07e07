"""An answer that is expected, and what is heard meanwhile."""

import asyncio
from collections.abc import Callable


class Expected(asyncio.Future[bytes]):
    """The future of an answer, and what was heard of the request meanwhile."""

    parked: bytes | None = None
    """The last reply that said that the request is parked."""
    on_parked: Callable[[], None] | None = None
    """What is called with each of them."""
