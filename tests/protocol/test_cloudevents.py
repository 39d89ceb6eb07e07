"""Events are CloudEvents 1.0: the SDK of those who wrote that says so."""

import json

from cloudevents.core.formats.json import JSONFormat

from statewright import State
from statewright.protocol.channels import EVENT_BODY
from tests.deployment import Deployment, until


async def test_the_events_of_a_transition_and_of_an_era_are_cloudevents(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.redis() as redis:

        async def told(count: int) -> list[bytes]:
            key = deployment.channels.events(0)

            async def are_there() -> bool:
                return bool(await redis.xlen(key) == count)

            await until(are_there)
            return [fields[EVENT_BODY] for _, fields in await redis.xrange(key)]

        async with deployment.client() as client:
            run = await client.create_task_run("load", tags=["database"])
            await client.propose(run, State.pending())
            verdict = await client.propose(run, State.running(message="go"))
            assert verdict.state is not None
            await told(2)
            # PostgreSQL goes back in time.
            await deployment.execute("DELETE FROM task_run_state; UPDATE partition SET sequence = 0")
            await client.create_flow_run("notices it", state=State.pending())
            bodies = await told(4)
    # Reading one raises what is wrong with its attributes.
    events = [JSONFormat().read(None, body) for body in bodies]
    assert [event.get_type() for event in events] == [
        "statewright.task-run.Pending",
        "statewright.task-run.Running",
        "statewright.era.began",
        "statewright.flow-run.Pending",
    ]
    running = events[1]
    assert running.get_specversion() == "1.0"
    assert running.get_source() == f"urn:statewright:{deployment.namespace}"
    assert (running.get_id(), running.get_subject()) == (str(verdict.state.id), str(run.id))
    assert running.get_time() == verdict.state.timestamp
    assert running.get_datacontenttype() == "application/json"
    extensions = {name: running.get_extension(name) for name in ("v", "partition", "sequence", "era", "tree")}
    assert extensions == {"v": 1, "partition": 0, "sequence": f"{2:019d}", "era": 0, "tree": run.id.int % 65_536}
    assert running.get_data() == json.loads(bodies[1])["data"]
