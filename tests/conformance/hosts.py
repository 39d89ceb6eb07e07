"""The hosts on which the recorded cases are carried out, by name."""

from typing import Final

from tests.conformance.engine_host import engine_with_injected_clock, engine_with_running_clock
from tests.conformance.subject import OpenHost

ENGINE: Final = "engine"

HOSTS: Final[dict[str, OpenHost]] = {
    ENGINE: engine_with_injected_clock,
    "engine in real time": engine_with_running_clock,
}
