"""A producer and a subscriber, to be run with the base install and whichever redis-py stands beside it.

It says each step that it has done, and waits for a line before it goes on.
"""

import asyncio
import sys
from datetime import timedelta
from importlib.metadata import version

from statewright import Client, SetStateStatus, State, StateType
from statewright.connection import HeldConnection, connection_pool

IDLE_SECONDS = 6.5
"""Longer than redis-py 8 waits for an answer by itself."""


async def said(step: str) -> None:
    print(step, flush=True)
    await asyncio.to_thread(sys.stdin.readline)


async def main(redis_url: str, namespace: str) -> None:
    pool = connection_pool(redis_url)
    held = HeldConnection(pool)
    async with (
        Client(redis_url, namespace=namespace, answer_timeout=timedelta(minutes=1)) as client,
        client.subscribe() as events,
    ):
        run = client.create_flow_run("nightly", tags=["etl"])
        async with asyncio.TaskGroup() as group:
            proposed = [client.propose(run, state) for state in (State.pending(), State.running(), State.pending())]
            verdicts = [group.create_task(sent.answer()) for sent in proposed]
        told = [verdict.result().status for verdict in verdicts]
        assert told == [SetStateStatus.ACCEPT, SetStateStatus.ACCEPT, SetStateStatus.ABORT]
        history = await client.read_run(run)
        assert [state.type for state in history.states] == [StateType.PENDING, StateType.RUNNING]
        assert [(await anext(events)).type for _ in range(2)] == [
            "statewright.flow-run.Pending",
            "statewright.flow-run.Running",
        ]
        unheard = asyncio.create_task(anext(events))
        assert await held.ask("CLIENT", "GETNAME") == b"statewright"
        await said(f"redis {version('redis')} works")

        assert await held.ask("BLPOP", f"{namespace}:nothing", str(IDLE_SECONDS), seconds=60) is None
        assert not unheard.done()
        await said("nothing came")

        await client.propose(run, State.completed())
        assert (await unheard).type == "statewright.flow-run.Completed"
        await said("dropped connections are made anew")
    await held.close()
    await pool.aclose()


asyncio.run(main(*sys.argv[1:]))
