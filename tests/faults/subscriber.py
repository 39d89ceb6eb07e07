"""A member of a named subscription as a process of its own: it writes down what it handles, before it says so.

    python tests/faults/subscriber.py <subscription> <member> <file>

A line of the file is `<nanoseconds> <run> <partition> <sequence> <event>`, or `<nanoseconds> told <error> <partition>`.
With the name of a run in DIES_OVER, it ends at once, without a word, when it gets an event of that run.
"""

import asyncio
import os
import sys
import time

from statewright import Client, EraBegan, EventsMissed, StatewrightError


async def subscribe(name: str, member: str, file: int) -> None:
    dies_over = os.environ.get("DIES_OVER")
    while True:
        try:
            async with Client() as client, client.subscribe(name, member=member) as events:
                while True:
                    try:
                        event = await anext(events)
                    except (EraBegan, EventsMissed) as told:
                        write(file, "told", type(told).__name__, told.partition)
                        continue
                    if event.data.resource.name == dies_over:
                        os._exit(1)
                    write(file, event.subject, event.partition, event.sequence, event.id)
                    await events.acknowledge(event)
        except StatewrightError as error:
            # It is restarted at any moment: also when nobody answers.
            print(type(error).__name__, error, file=sys.stderr, flush=True)
            await asyncio.sleep(0.2)


def write(file: int, *what: object) -> None:
    # One write, so that a line is there or not, whenever the process is killed.
    os.write(file, " ".join(map(str, (time.monotonic_ns(), *what))).encode() + b"\n")


if __name__ == "__main__":
    _, subscription, own_name, path = sys.argv
    asyncio.run(subscribe(subscription, own_name, os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)))
