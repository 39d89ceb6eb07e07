"""Fixtures of the tests of what is installed."""

from tests.packaging.installing import light, pins, wheel

__all__ = ["light", "pins", "wheel"]
