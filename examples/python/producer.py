"""A producer: a flow run with some task runs, each RUNNING and then COMPLETED.

    python producer.py nightly/2030-01-01 3

Started again with the same key, it goes on where it was: ids are made of the key, and what is asked again under the
same id has its one answer already.
"""

import sys
import time
from typing import Any

from engine import Engine, say
from ids import id_from_key, partition_of_run


class Refused(Exception):
    """The engine has not carried out a request."""


class Producer:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def ask(self, message: dict[str, Any], request_key: str) -> dict[str, Any]:
        run_id = message["run_id"]
        partition = partition_of_run(run_id, self.engine.partitions)
        answer = self.engine.ask(partition, message, id_from_key(request_key, run_id))
        if answer["type"] == "error":
            raise Refused(f"{answer['code']} ({answer.get('field')}): {answer['message']}")
        return answer

    def create(self, message: dict[str, Any]) -> str:
        run = self.ask(message, "create")["run"]
        say("created", run["kind"], run["name"])
        return str(run["id"])

    def propose(self, run_id: str, state: dict[str, Any]) -> dict[str, Any]:
        """Return the verdict. Whoever is told to wait proposes again under another id."""
        for attempt in range(1_000):
            message = {"type": "propose", "run_id": run_id, "state": state, "on_wait": "park", "park_seconds": 600}
            verdict: dict[str, Any] = self.ask(message, f"{state['type']} {attempt}")["verdict"]
            if verdict["status"] != "WAIT":
                break
            time.sleep(verdict["delay_seconds"])
        say(verdict["status"], verdict["state"]["name"], verdict.get("reason", ""))
        return verdict


def main(key: str, tasks: int) -> None:
    producer = Producer(Engine(f"producer-{id_from_key(key)}"))
    flow_run = producer.create({"type": "create_flow_run", "run_id": id_from_key(key), "name": "nightly"})
    producer.propose(flow_run, {"type": "RUNNING"})
    for number in range(tasks):
        task_id = id_from_key(f"load {number}", flow_run)
        task = {"type": "create_task_run", "run_id": task_id, "name": f"load {number}", "flow_run_id": flow_run}
        producer.create({**task, "tags": ["database"]})
        if producer.propose(task_id, {"type": "RUNNING"})["status"] == "ACCEPT":
            producer.propose(task_id, {"type": "COMPLETED", "data": {"rows": 1200}})
    producer.propose(flow_run, {"type": "COMPLETED"})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
