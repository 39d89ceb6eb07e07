"""An executor as a process of its own, to be frozen or killed: it holds the runs given, and says what it loses."""

import asyncio
import sys

from statewright import Client, LeaseLost, State


def say(lost: LeaseLost) -> None:
    print("lost", lost.run_id, lost, flush=True)


async def main(name: str, lease: float, run_ids: list[str]) -> None:
    async with Client(answer_timeout=60) as client, client.executor(name, lease=lease, on_lost=say) as executor:
        await asyncio.gather(*(executor.propose(run_id, State.running()) for run_id in run_ids))
        print("holds", len(executor.runs), flush=True)
        run_id = await asyncio.to_thread(sys.stdin.readline)
        verdict = await executor.propose(run_id.strip(), State.completed())
        print("verdict", verdict.status, verdict.state and verdict.state.message, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), sys.argv[3:]))
