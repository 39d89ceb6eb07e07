"""One example of each message at least, as it stands on the wire. A night's flow run, told from its creation on."""

from typing import Any, Final, NamedTuple

FLOW_RUN: Final = "019a0c2e-6c00-7f3b-8a51-2f9d4e6b1267"
ANOTHER: Final = "019a0c2e-6bf0-7c44-93d2-5b0e8f7a61c3"
TASK_RUN: Final = "019a0c2e-6c9a-7d04-9c1e-77aa10ce1267"
"""Its last four digits are those of its flow run: the tag of the tree, 4711."""
DEPLOYMENT: Final = "7c5d3a10-93a5-4d5c-8a0e-5f1b2c3d4e5f"
FLOW: Final = "2b1c0d9e-8f7a-4b6c-9d5e-4f3a2b1c0d9e"
PROPOSAL: Final = "019a0c2e-6d01-7a10-b2c3-d4e5f6a7b8c9"
STATE: Final = "019a0c2e-6d3f-7b20-a1b2-c3d4e5f61267"
REQUEST: Final = "019a0c2e-6d02-7c11-8d3e-2f1a0b9c8d7e"
INSTANCE: Final = "019a0c2e-6d02-7d55-9f4e-1a2b3c4d5e6f"
GENERATION: Final = 1893463200125000
CLIENT: Final = "nightly-7f3a"
NAMESPACE: Final = "statewright"
PARTITION: Final = 7
WORKER: Final = "engine-1-019a0bf7d8007a10b2c3d4e5f6a7b8c9"

_RUNNING: Final = {
    "id": STATE,
    "type": "RUNNING",
    "name": "Running",
    "timestamp": "2030-01-01T02:00:00.125Z",
    "state_details": {"untrackable_result": False, "pause_reschedule": False, "lease": 30.0},
}
_FLOW_RUN: Final = {
    "id": FLOW_RUN,
    "name": "nightly",
    "tags": ["etl"],
    "policy": {"retries": 2, "retry_delay": 60.0, "pause_keys": [], "resuming": False},
    "created": "2030-01-01T02:00:00.1Z",
    "state": _RUNNING,
    "run_count": 1,
    "start_time": "2030-01-01T02:00:00.125Z",
    "total_run_time": "PT0S",
    "labels": {"team": "data"},
    "kind": "flow-run",
    "flow_id": FLOW,
    "deployment_id": DEPLOYMENT,
}
_TASK_RUN: Final = {
    "id": TASK_RUN,
    "name": "load",
    "tags": ["database"],
    "policy": {"pause_keys": [], "resuming": False},
    "created": "2030-01-01T02:00:00.15Z",
    "run_count": 0,
    "total_run_time": "PT0S",
    "labels": {},
    "kind": "task-run",
    "flow_run_id": FLOW_RUN,
    "flow_run_run_count": 0,
}
_LIMIT: Final = {"scope": "tag", "key": "database", "concurrency_limit": 3, "free": 2, "held": 1}
_SUBSCRIPTION: Final = {
    "name": "billing",
    "filter": {"kinds": ["flow-run"], "state_types": ["CRASHED", "FAILED"]},
    "max_tries": 3,
    "created": "2030-01-01T02:00:00Z",
    "lag": 18,
    "member_count": 1,
    "dead_letter_count": 0,
    "shares": [],
    "members": [],
    "dead_letters": [],
}
_SHARE: Final = {"partition": PARTITION, "epoch": GENERATION, "tries": 0, "trial": 0, "suspect_up_to": 0}
_SETTLED: Final = {"is_replaced": False, "is_settled": True, "give_back": [], "again": []}
_EVENT: Final = {
    "specversion": "1.0",
    "id": STATE,
    "source": f"urn:statewright:{NAMESPACE}",
    "type": "statewright.flow-run.Running",
    "subject": FLOW_RUN,
    "time": "2030-01-01T02:00:00.125Z",
    "datacontenttype": "application/json",
    "v": 1,
    "partition": PARTITION,
    "sequence": "0000000000000000042",
    "era": 0,
    "tree": 4711,
    "data": {
        "ordinal": 2,
        "proposal_id": PROPOSAL,
        "follows": "019a0c2e-6c5b-7e31-b4c5-d6e7f8091267",
        "resource": {
            "kind": "flow-run",
            "id": FLOW_RUN,
            "name": "nightly",
            "run_count": 1,
            "state_type": "RUNNING",
            "state_name": "Running",
            "state_message": None,
            "state_timestamp": "2030-01-01T02:00:00.125Z",
        },
        "related": [
            {"role": "flow", "id": FLOW},
            {"role": "deployment", "id": DEPLOYMENT},
            {"role": "tag", "id": "etl"},
        ],
        "intended": {"from_type": "PENDING", "to_type": "RUNNING"},
        "initial_state": {"type": "PENDING", "name": "Pending", "message": None},
        "validated_state": {"type": "RUNNING", "name": "Running", "message": None},
    },
}
_ERA_BEGAN: Final = {
    "specversion": "1.0",
    "id": "019a0c2f-11d0-7a00-8c00-0f1e2d3c4b5a",
    "source": f"urn:statewright:{NAMESPACE}",
    "type": "statewright.era.began",
    "time": "2030-01-01T03:10:00Z",
    "datacontenttype": "application/json",
    "v": 1,
    "partition": PARTITION,
    "sequence": "0000000000000000061",
    "era": 1,
    "data": {"went_back_to": 42, "undone_up_to": 60},
}


_FULL: Final = "Concurrency limit for the database tag has been reached"
_WAITS: Final = {
    "proposal_id": PROPOSAL,
    "run_id": TASK_RUN,
    "status": "WAIT",
    "reason": _FULL,
    "delay_seconds": 30,
    "rule_signature": ["SecureTaskConcurrencySlots"],
    "finalization_signature": [],
}
_TRACE: Final = {
    "initial": {"type": "PENDING", "name": "Pending"},
    "intended": {"type": "RUNNING", "name": "Running"},
    "rules": [
        {
            "rule": "SecureTaskConcurrencySlots",
            "entered": True,
            "fizzled": False,
            "decisions": [{"verb": "wait", "reason": _FULL, "delay_seconds": 30}],
            "saw": {
                "limits": [{"on": "tag", "key": "database", "concurrency_limit": 3, "held": 3, "free": 0, "before": 2}]
            },
        },
        {"rule": "RenameReruns", "entered": False, "fizzled": False, "decisions": [], "saw": {}},
    ],
}


class Example(NamedTuple):
    """What a message looks like, and when."""

    summary: str
    message: dict[str, Any]


EXAMPLES: Final[dict[str, list[Example]]] = {
    "request.create_flow_run": [
        Example("The least.", {"type": "create_flow_run", "run_id": ANOTHER, "name": "weekly"}),
        Example(
            "With its first state, which the rules govern, and with labels of the producer's own.",
            {
                "type": "create_flow_run",
                "v": 1,
                "run_id": FLOW_RUN,
                "name": "nightly",
                "tags": ["etl"],
                "policy": {"retries": 2, "retry_delay": 60},
                "labels": {"team": "data"},
                "flow_id": FLOW,
                "deployment_id": DEPLOYMENT,
                "state": {"type": "PENDING"},
            },
        ),
    ],
    "request.create_task_run": [
        Example(
            "In a flow run, whose last four digits its id shares.",
            {
                "type": "create_task_run",
                "run_id": TASK_RUN,
                "name": "load",
                "flow_run_id": FLOW_RUN,
                "task_key": "etl.load",
                "tags": ["database"],
            },
        )
    ],
    "request.update_run": [
        Example(
            "Another policy; name and tags stay.",
            {"type": "update_run", "run_id": FLOW_RUN, "policy": {"retries": 5, "retry_delay": [1, 10, 60]}},
        )
    ],
    "request.propose": [
        Example("The least.", {"type": "propose", "run_id": FLOW_RUN, "state": {"type": "RUNNING"}}),
        Example(
            "With a lease, parked where it would be told to wait.",
            {
                "type": "propose",
                "run_id": TASK_RUN,
                "state": {"type": "RUNNING", "state_details": {"lease": 30}},
                "on_wait": "park",
                "priority": 10,
                "park_seconds": 3600,
            },
        ),
        Example(
            "The end, with a result.",
            {
                "type": "propose",
                "run_id": TASK_RUN,
                "state": {"type": "COMPLETED", "message": "1200 rows", "data": {"rows": 1200}},
            },
        ),
    ],
    "request.withdraw": [
        Example("A parked proposal.", {"type": "withdraw", "partition": PARTITION, "proposal_id": PROPOSAL})
    ],
    "request.read_verdict": [
        Example("Of any proposal.", {"type": "read_verdict", "partition": PARTITION, "proposal_id": PROPOSAL}),
        Example(
            "Of a proposal for this run.",
            {"type": "read_verdict", "partition": PARTITION, "proposal_id": PROPOSAL, "run_id": FLOW_RUN},
        ),
    ],
    "request.what_if": [
        Example("What would become of it now.", {"type": "what_if", "run_id": TASK_RUN, "state": {"type": "RUNNING"}})
    ],
    "request.explain": [
        Example("Of any proposal.", {"type": "explain", "partition": PARTITION, "proposal_id": PROPOSAL}),
        Example(
            "Of a proposal for this run.",
            {"type": "explain", "partition": PARTITION, "proposal_id": PROPOSAL, "run_id": FLOW_RUN},
        ),
    ],
    "request.read_timeline": [
        Example("From the beginning.", {"type": "read_timeline", "run_id": FLOW_RUN}),
        Example(
            "The next page.",
            {
                "type": "read_timeline",
                "run_id": FLOW_RUN,
                "after": {"ordinal": 100, "decided": "2030-01-01T02:00:00.131Z", "proposal_id": PROPOSAL},
            },
        ),
    ],
    "request.heartbeat": [
        Example(
            "Of a run, whose lease is good for 30 s again.",
            {"type": "heartbeat", "partition": PARTITION, "run_ids": [TASK_RUN], "state_ids": [STATE]},
        ),
        Example("Of an executor.", {"type": "heartbeat", "partition": PARTITION, "executor": "worker-7"}),
    ],
    "request.read_run": [
        Example("With its history, from the beginning.", {"type": "read_run", "run_id": FLOW_RUN}),
        Example("Alone.", {"type": "read_run", "run_id": FLOW_RUN, "history": False}),
    ],
    "request.read_events": [
        Example("What is newer than event 17.", {"type": "read_events", "partition": PARTITION, "after": 17})
    ],
    "request.find_position": [
        Example(
            "Of the last night.", {"type": "find_position", "partition": PARTITION, "since": "2030-01-01T00:00:00Z"}
        )
    ],
    "request.open_subscription": [
        Example("From now on, with every event.", {"type": "open_subscription", "name": "audit"}),
        Example(
            "Of what has ended badly, from event 17 of one partition on.",
            {
                "type": "open_subscription",
                "name": "billing",
                "filter": {"kinds": ["flow-run"], "state_types": ["CRASHED", "FAILED"]},
                "max_tries": 3,
                "positions": [{"partition": PARTITION, "position": 17}],
            },
        ),
    ],
    "request.sync_subscription": [
        Example(
            "The first word.",
            {"type": "sync_subscription", "name": "billing", "member": "host-1", "instance": INSTANCE, "joins": True},
        ),
        Example(
            "A second later.",
            {
                "type": "sync_subscription",
                "name": "billing",
                "member": "host-1",
                "instance": INSTANCE,
                "generation": GENERATION,
                "acknowledged": [{"partition": PARTITION, "share": 3, "epoch": GENERATION, "position": 42}],
            },
        ),
    ],
    "request.read_subscription": [Example("With everything.", {"type": "read_subscription", "name": "billing"})],
    "request.reset_subscription": [
        Example(
            "One partition from the beginning.",
            {
                "type": "reset_subscription",
                "name": "billing",
                "positions": [{"partition": PARTITION, "position": 0}],
            },
        )
    ],
    "request.settle_dead_letters": [
        Example("All of them.", {"type": "settle_dead_letters", "name": "billing", "deliver_again": True})
    ],
    "request.read_subscriptions": [Example("From the beginning.", {"type": "read_subscriptions", "partition": 0})],
    "request.remove_subscription": [Example("For good.", {"type": "remove_subscription", "name": "billing"})],
    "request.set_limit": [
        Example("At most three at once.", {"type": "set_limit", "tag": "database", "concurrency_limit": 3}),
        Example(
            "A rate: two starts an hour.",
            {"type": "set_limit", "name": "mail", "concurrency_limit": 2, "period_seconds": 3600},
        ),
        Example("None any more.", {"type": "set_limit", "tag": "database", "concurrency_limit": None}),
    ],
    "request.read_limit": [
        Example("Of a deployment.", {"type": "read_limit", "deployment_id": DEPLOYMENT}),
    ],
    "request.read_limits": [Example("From the beginning.", {"type": "read_limits", "partition": 0})],
    "query.find_runs": [
        Example("The newest runs.", {"type": "find_runs", "seconds": 30, "limit": 100}),
        Example(
            "Task runs that have been RUNNING for an hour, behind the page before.",
            {
                "type": "find_runs",
                "seconds": 30,
                "kind": "task-run",
                "state_types": ["RUNNING"],
                "tags": ["database"],
                "unchanged_for": 3600,
                "limit": 100,
                "after": {"created": "2030-01-01T02:00:00.1Z", "id": TASK_RUN},
            },
        ),
    ],
    "query.count_runs": [
        Example(
            "What became of a night's runs.",
            {"type": "count_runs", "seconds": 30, "name_prefix": "nightly", "created_after": "2030-01-01T00:00:00Z"},
        )
    ],
    "query.read_tree": [Example("A flow run's.", {"type": "read_tree", "seconds": 30, "run_id": FLOW_RUN})],
    "query.list_partitions": [Example("All of them.", {"type": "list_partitions", "seconds": 5})],
    "query.list_workers": [Example("All of them.", {"type": "list_workers", "seconds": 5})],
    "request.prune_runs": [
        Example(
            "One tree, if it is over and has not changed for a month.",
            {
                "type": "prune_runs",
                "partition": PARTITION,
                "run_ids": [FLOW_RUN],
                "unchanged_since": "2029-12-02T02:00:00Z",
            },
        )
    ],
    "request.delete_run": [
        Example("A task run, whatever it is in.", {"type": "delete_run", "run_id": TASK_RUN, "force": True})
    ],
    "reply.verdict": [
        Example(
            "Accepted.",
            {
                "type": "verdict",
                "v": 1,
                "verdict": {
                    "proposal_id": PROPOSAL,
                    "run_id": FLOW_RUN,
                    "status": "ACCEPT",
                    "state": _RUNNING,
                    "rule_signature": [],
                    "finalization_signature": [],
                },
            },
        ),
        Example(
            "Told to wait: nothing was written.",
            {
                "type": "verdict",
                "v": 1,
                "verdict": {
                    "proposal_id": PROPOSAL,
                    "run_id": TASK_RUN,
                    "status": "WAIT",
                    "reason": "Concurrency limit for the database tag has been reached",
                    "delay_seconds": 30,
                    "rule_signature": ["SecureTaskConcurrencySlots"],
                    "finalization_signature": [],
                },
            },
        ),
    ],
    "reply.parked": [
        Example(
            "Its verdict follows.",
            {
                "type": "parked",
                "v": 1,
                "proposal_id": PROPOSAL,
                "run_id": TASK_RUN,
                "since": "2030-01-01T02:00:00.131Z",
                "reason": "Concurrency limit for the database tag has been reached",
            },
        )
    ],
    "reply.deleted": [Example("A flow run with its task runs.", {"type": "deleted", "v": 1, "trees": 1, "runs": 13})],
    "reply.withdrawn": [Example("It was parked.", {"type": "withdrawn", "v": 1, "withdrawn": True})],
    "reply.known": [
        Example(
            "It is parked.",
            {
                "type": "known",
                "v": 1,
                "proposal_id": PROPOSAL,
                "reply": {
                    "type": "parked",
                    "v": 1,
                    "proposal_id": PROPOSAL,
                    "run_id": TASK_RUN,
                    "since": "2030-01-01T02:00:00.131Z",
                    "reason": "Concurrency limit for the database tag has been reached",
                },
            },
        ),
        Example("It is unknown.", {"type": "known", "v": 1, "proposal_id": PROPOSAL}),
    ],
    "reply.run": [Example("A new flow run.", {"type": "run", "v": 1, "run": _FLOW_RUN, "created": True})],
    "reply.history": [
        Example(
            "A page that is not the last one.",
            {"type": "history", "v": 1, "history": {"run": _FLOW_RUN, "states": [_RUNNING]}, "next": 2},
        )
    ],
    "reply.events": [
        Example(
            "A page: read on after 61.",
            {"type": "events", "v": 1, "events": [_EVENT, _ERA_BEGAN], "up_to": 61, "pruned_up_to": 0},
        )
    ],
    "reply.position": [Example("Behind event 41.", {"type": "position", "v": 1, "position": 41})],
    "reply.synced": [
        Example("Nothing has changed.", {"type": "synced", "v": 1, "generation": GENERATION, **_SETTLED}),
        Example(
            "Another member has joined: one share stays, another one is to be given back.",
            {
                "type": "synced",
                "v": 1,
                "generation": GENERATION,
                **_SETTLED,
                "is_settled": False,
                "shares": [
                    {**_SHARE, "share": 3, "position": 42},
                    {**_SHARE, "share": 4, "position": 40, "trying": 41, "tries": 1},
                ],
                "give_back": [{"partition": PARTITION, "share": 4, "epoch": GENERATION}],
            },
        ),
    ],
    "reply.subscription": [
        Example("There is none.", {"type": "subscription", "v": 1}),
        Example(
            "With a member, and an event that has failed.",
            {
                "type": "subscription",
                "v": 1,
                "subscription": {
                    **_SUBSCRIPTION,
                    "dead_letter_count": 1,
                    "shares": [
                        {"partition": PARTITION, "share": 3, "position": 42, "lag": 18, "member": "host-1", "tries": 0}
                    ],
                    "members": [
                        {
                            "name": "host-1",
                            "joined": "2030-01-01T02:00:00Z",
                            "seen": "2030-01-01T02:10:00Z",
                            "shares": 64,
                        }
                    ],
                    "dead_letters": [
                        {
                            "partition": PARTITION,
                            "share": 3,
                            "sequence": 42,
                            "event_id": STATE,
                            "error": "ValueError: no such customer",
                            "tries": 3,
                            "at": "2030-01-01T02:09:00Z",
                            "again": False,
                        }
                    ],
                },
            },
        ),
    ],
    "reply.subscriptions": [
        Example("The last page.", {"type": "subscriptions", "v": 1, "subscriptions": [_SUBSCRIPTION]})
    ],
    "reply.settled": [Example("Two.", {"type": "settled", "v": 1, "count": 2})],
    "reply.limit": [
        Example(
            "With who holds it.",
            {
                "type": "limit",
                "v": 1,
                "limit": {
                    **_LIMIT,
                    "holders": [
                        {
                            "run_id": TASK_RUN,
                            "kind": "task-run",
                            "name": "load",
                            "since": "2030-01-01T02:00:01Z",
                            "lease_ends": "2030-01-01T02:00:31Z",
                        }
                    ],
                    "waiting": 0,
                    "waiters": [],
                },
            },
        ),
        Example("There is none.", {"type": "limit", "v": 1}),
    ],
    "reply.heartbeat": [
        Example(
            "One of the runs is lost.",
            {
                "type": "heartbeat",
                "v": 1,
                "lost": [{"run_id": TASK_RUN, "state_type": "CRASHED", "state_name": "Crashed"}],
                "leases": [],
            },
        )
    ],
    "reply.limits": [
        Example(
            "The last page.",
            {"type": "limits", "v": 1, "limits": [{**_LIMIT, "holders": [], "waiting": 0, "waiters": []}]},
        )
    ],
    "reply.runs": [
        Example(
            "A page that is not the last one.",
            {
                "type": "runs",
                "v": 1,
                "page": {"runs": [_FLOW_RUN], "next": {"created": "2030-01-01T02:00:00.1Z", "id": FLOW_RUN}},
            },
        )
    ],
    "reply.counts": [
        Example(
            "Of two kinds and states.",
            {
                "type": "counts",
                "v": 1,
                "counts": [
                    {
                        "kind": "flow-run",
                        "state_type": "RUNNING",
                        "state_name": "Running",
                        "count": 3,
                        "or_more": False,
                    },
                    {
                        "kind": "task-run",
                        "state_type": "COMPLETED",
                        "state_name": "Completed",
                        "count": 50_000,
                        "or_more": True,
                    },
                ],
            },
        )
    ],
    "reply.tree": [
        Example(
            "A flow run, and the first of what is below it.",
            {
                "type": "tree",
                "v": 1,
                "tree": {
                    "run": _FLOW_RUN,
                    "below": [{"run": _TASK_RUN, "below": [], "or_more": False}],
                    "or_more": True,
                },
            },
        )
    ],
    "reply.partitions": [
        Example(
            "One of them.",
            {
                "type": "partitions",
                "v": 1,
                "partitions": [
                    {
                        "partition": PARTITION,
                        "backlog": 3,
                        "oldest_seconds": 0.012,
                        "worker": WORKER,
                        "held_since": "2030-01-01T01:00:00Z",
                        "sequence": 42,
                        "era": 0,
                        "parked": 1,
                        "due": 0,
                        "next_due": "2030-01-01T02:00:30Z",
                    }
                ],
            },
        )
    ],
    "reply.workers": [
        Example(
            "One that is alive.",
            {
                "type": "workers",
                "v": 1,
                "workers": [
                    {
                        "worker": WORKER,
                        "host": "engine-1",
                        "pid": 4711,
                        "version": "0.1.0",
                        "since": "2030-01-01T01:00:00Z",
                        "seeks": True,
                        "partitions": [PARTITION],
                    }
                ],
            },
        )
    ],
    "reply.explanation": [
        Example(
            "It was told to wait.",
            {
                "type": "explanation",
                "v": 1,
                "proposal_id": PROPOSAL,
                "explanation": {
                    "proposal_id": PROPOSAL,
                    "run_id": TASK_RUN,
                    "source": "recorded",
                    "actor": "scheduler-3",
                    "verdict": _WAITS,
                    "decided": "2030-01-01T02:00:00.131Z",
                    "trace": {**_TRACE, "is_cut": False},
                    "reason": _FULL,
                    "waits_for": [],
                },
            },
        ),
        Example(
            "It is parked, behind two others.",
            {
                "type": "explanation",
                "v": 1,
                "proposal_id": PROPOSAL,
                "explanation": {
                    "proposal_id": PROPOSAL,
                    "run_id": TASK_RUN,
                    "source": "recorded",
                    "trace": {**_TRACE, "is_cut": False},
                    "parked_since": "2030-01-01T02:00:00.131Z",
                    "reason": _FULL,
                    "waits_for": [
                        {
                            "limit": {**_LIMIT, "free": 0, "held": 3, "holders": [], "waiting": 0, "waiters": []},
                            "before": 2,
                        }
                    ],
                },
            },
        ),
    ],
    "reply.timeline": [
        Example(
            "A page that is not the last one.",
            {
                "type": "timeline",
                "v": 1,
                "timeline": {
                    "run": _FLOW_RUN,
                    "now": "2030-01-01T02:00:05Z",
                    "entries": [
                        {
                            "at": "2030-01-01T02:00:00.125Z",
                            "kind": "verdict",
                            "proposal_id": PROPOSAL,
                            "status": "ACCEPT",
                            "actor": "scheduler-3",
                        },
                        {
                            "at": "2030-01-01T02:00:00.125Z",
                            "kind": "state",
                            "state_id": STATE,
                            "ordinal": 2,
                            "type": "RUNNING",
                            "name": "Running",
                            "timestamp": "2030-01-01T02:00:00.125Z",
                            "proposal_id": PROPOSAL,
                            "actor": "scheduler-3",
                        },
                    ],
                },
                "next": {"ordinal": 2, "decided": "2030-01-01T02:00:00.125Z", "proposal_id": PROPOSAL},
            },
        )
    ],
    "reply.error": [
        Example(
            "A field of the message is wrong.",
            {
                "type": "error",
                "v": 1,
                "code": "invalid_message",
                "message": "state.type: Field required",
                "field": "state.type",
            },
        )
    ],
    "event.change": [Example("A flow run is RUNNING.", _EVENT)],
    "event.era": [Example("Events 43 to 60 told of changes that no longer exist.", _ERA_BEGAN)],
}
"""By the name of the message."""
