"""Garbage collection, tuned for processes that make many short-lived values."""

import gc


def collect_rarely() -> None:
    """Look for cycles rarely: counting references frees what a batch makes, and imported objects stay anyway.

    Python's defaults spend up to a fifth of a busy worker's time on looking.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
