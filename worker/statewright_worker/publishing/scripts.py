"""Lua scripts: what must happen in Redis as one step."""

from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

Argument = str | int | bytes


async def run_script(redis: Redis, script: str, keys: list[str], *arguments: Argument) -> Any:
    """Run a script at once and return its answer."""
    # redis-py declares text arguments only; it encodes numbers and bytes all the same.
    evaluate: Any = redis.eval
    return await evaluate(script, len(keys), *keys, *arguments)


def add_script(pipeline: Pipeline, script: str, keys: list[str], *arguments: Argument) -> None:
    """Add a script to a pipeline."""
    evaluate: Any = pipeline.eval
    evaluate(script, len(keys), *keys, *arguments)
