"""`statewright demo`: two workers at work, to watch."""

from statewright_worker.demo.demo import run_demo


def demo() -> None:
    """Watch two workers govern a flow run with a dozen task runs, on embedded servers in a temporary folder."""
    run_demo()
