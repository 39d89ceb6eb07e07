"""Which messages there are, and what belongs together: read off the models, but for what no model says."""

from typing import Final, NamedTuple, get_args

from pydantic import BaseModel

from statewright.events import Era, Event
from statewright.protocol.queries import Query
from statewright.protocol.replies import ErrorCode, Reply
from statewright.protocol.requests import Request

Model = type[BaseModel]


def _by_type(models: tuple[Model, ...]) -> dict[str, Model]:
    return {model.model_fields["type"].default: model for model in models}


REQUESTS: Final[dict[str, Model]] = _by_type(get_args(get_args(Request)[0]))
"""What a client sends, by the `type` in the message."""
QUERIES: Final[dict[str, Model]] = _by_type(get_args(Query))
"""What a client asks beside the lanes, by the `type` in the message."""
REPLIES: Final[dict[str, Model]] = _by_type(get_args(Reply))
"""What the engine answers, by the `type` in the message."""
EVENTS: Final[dict[str, Model]] = {"change": Event, "era": Era}
"""What the engine tells whoever listens."""
MESSAGES: Final[dict[str, Model]] = {
    **{f"request.{name}": model for name, model in REQUESTS.items()},
    **{f"query.{name}": model for name, model in QUERIES.items()},
    **{f"reply.{name}": model for name, model in REPLIES.items()},
    **{f"event.{name}": model for name, model in EVENTS.items()},
}
"""All of them. A request and a reply may be of one type, so their names say which they are."""

_ANY: Final = (ErrorCode.INVALID_MESSAGE, ErrorCode.NOT_WRITABLE, ErrorCode.OVERLOADED, ErrorCode.FORBIDDEN)
_ONCE: Final = (*_ANY, ErrorCode.PROPOSAL_CONFLICT)
"""The errors of a request that changes something, and so has one answer for ever."""
_ASKED: Final = (ErrorCode.INVALID_MESSAGE, ErrorCode.QUERY_FAILED)
_LOOKED_FOR: Final = (*_ASKED, ErrorCode.QUERY_TOO_SLOW)
_NO_RUN: Final = (ErrorCode.RUN_NOT_FOUND, ErrorCode.RUN_PRUNED)


class Conversation(NamedTuple):
    """What may answer a kind of request or query: replies, beside `error`, and codes of errors."""

    replies: tuple[str, ...]
    errors: tuple[ErrorCode, ...]


CONVERSATIONS: Final[dict[str, Conversation]] = {
    "create_flow_run": Conversation(
        ("run",), (*_ONCE, ErrorCode.RUN_PRUNED, ErrorCode.RUN_CONFLICT, ErrorCode.RULE_FAILED)
    ),
    "create_task_run": Conversation(
        ("run",), (*_ONCE, ErrorCode.RUN_PRUNED, ErrorCode.RUN_CONFLICT, ErrorCode.RULE_FAILED)
    ),
    "update_run": Conversation(("run",), (*_ONCE, *_NO_RUN, ErrorCode.RUN_CONFLICT)),
    "delete_run": Conversation(("deleted",), (*_ONCE, *_NO_RUN, ErrorCode.RUN_CONFLICT)),
    "prune_runs": Conversation(("deleted",), _ANY),
    "propose": Conversation(("verdict", "parked"), (*_ONCE, *_NO_RUN, ErrorCode.RULE_FAILED)),
    "withdraw": Conversation(("withdrawn",), _ONCE),
    "read_verdict": Conversation(("known",), (*_ANY, ErrorCode.RUN_PRUNED)),
    "heartbeat": Conversation(("heartbeat",), _ANY),
    "read_run": Conversation(("history", "run"), (*_ANY, *_NO_RUN)),
    "what_if": Conversation(("explanation",), (*_ANY, *_NO_RUN, ErrorCode.RULE_FAILED)),
    "explain": Conversation(("explanation",), (*_ANY, ErrorCode.RUN_PRUNED)),
    "read_timeline": Conversation(("timeline",), (*_ANY, *_NO_RUN)),
    "read_events": Conversation(("events",), _ANY),
    "find_position": Conversation(("position",), _ANY),
    "open_subscription": Conversation(("subscription",), (*_ONCE, ErrorCode.SUBSCRIPTION_CONFLICT)),
    "sync_subscription": Conversation(
        ("synced",), (*_ANY, ErrorCode.SUBSCRIPTION_NOT_FOUND, ErrorCode.SUBSCRIPTION_CONFLICT)
    ),
    "read_subscription": Conversation(("subscription",), _ANY),
    "reset_subscription": Conversation(("subscription",), (*_ONCE, ErrorCode.SUBSCRIPTION_NOT_FOUND)),
    "settle_dead_letters": Conversation(("settled",), (*_ONCE, ErrorCode.SUBSCRIPTION_NOT_FOUND)),
    "remove_subscription": Conversation(("subscription",), _ONCE),
    "read_subscriptions": Conversation(("subscriptions",), _ANY),
    "set_limit": Conversation(("limit",), _ONCE),
    "read_limit": Conversation(("limit",), _ANY),
    "read_limits": Conversation(("limits",), _ANY),
    "find_runs": Conversation(("runs",), _LOOKED_FOR),
    "count_runs": Conversation(("counts",), _LOOKED_FOR),
    "read_tree": Conversation(("tree",), (*_LOOKED_FOR, ErrorCode.RUN_NOT_FOUND)),
    "list_partitions": Conversation(("partitions",), _LOOKED_FOR),
    "list_workers": Conversation(("workers",), _ASKED),
}


class Advice(NamedTuple):
    """What an error means, and what to do about it."""

    means: str
    do: str


ADVICE: Final[dict[ErrorCode, Advice]] = {
    ErrorCode.INVALID_MESSAGE: Advice(
        "The entry or its message is not what the protocol says, or it was pushed to another partition than its own."
        " `field` names the part that is wrong.",
        "Correct the program. Sending the same bytes again gets the same error. What was refused so is not remembered:"
        " the corrected request may have the same id.",
    ),
    ErrorCode.RUN_NOT_FOUND: Advice(
        "There is no run with this `run_id`.",
        "Create the run first, and wait for the answer or push both in this order. Then send the request under a new"
        " id: for a request that changes something, this refusal stays the answer of the old one.",
    ),
    ErrorCode.RUN_PRUNED: Advice(
        "The run, or the one below which a run is to be created, was deleted: on purpose, or because it was older than"
        " the deployment keeps runs. That is remembered for some time; later it is `run_not_found`.",
        "Nothing brings it back. The idempotency key of a deleted run makes a new one, under a new request id.",
    ),
    ErrorCode.RUN_CONFLICT: Advice(
        "What is asked for contradicts the run as it is: a run to be created exists with other content, or its parent"
        " does not exist; a run to be changed has ended, or is RUNNING and keeps its tags and its named limits; a run"
        " to be deleted, or one below it, has not come to an end. `field` says which part.",
        "Read the run (`read_run`) and decide. For another run take another run id or another idempotency key. The"
        " refusal stays the answer of this request id.",
    ),
    ErrorCode.PROPOSAL_CONFLICT: Advice(
        "The request's id was used before for a request with other content. What was answered then stays.",
        "Give each request an id of its own, and keep the very bytes of a message that may be sent again.",
    ),
    ErrorCode.RULE_FAILED: Advice(
        "A rule of the deployment raised an exception or took too long. `field` names the rule. The proposal was"
        " undone as a whole.",
        "Tell whoever runs the deployment: its log has the traceback. Propose again under a new id once it is mended;"
        " the refusal stays the answer of the old one.",
    ),
    ErrorCode.NOT_WRITABLE: Advice(
        "PostgreSQL refused to store what the request asks for, or several workers died over it.",
        "Read the message: it says what could not be stored. Send a changed request under a new id; the refusal stays"
        " the answer of the old one.",
    ),
    ErrorCode.SUBSCRIPTION_NOT_FOUND: Advice(
        "No subscription has this name; a member is told so when it was removed.",
        "A member stops: its work is nobody's any more. To begin anew, open the subscription, and join it.",
    ),
    ErrorCode.SUBSCRIPTION_CONFLICT: Advice(
        "A subscription of this name exists with another filter or another `max_tries`, or it has as many members as it"
        " takes. `field` says which.",
        "Ask for the same, take another name, or remove the subscription first; its positions go with it.",
    ),
    ErrorCode.FORBIDDEN: Advice(
        "The deployment does not let producers do this: its workers' setting `STATEWRIGHT_FORBID` names the type of the"
        " request, or `force`. `field` is `type` or `force`.",
        "Do without it, or ask whoever runs the deployment. Once it is allowed, send the request under a new id: for a"
        " request that changes something, the refusal stays the answer of the old one.",
    ),
    ErrorCode.OVERLOADED: Advice(
        "Too many requests of the partition are unanswered. This one was deleted, was not carried out, and is not"
        " remembered.",
        "Wait, longer each time, and send the same entry again: same id, same bytes. Ask for the length of the stream"
        " before you push.",
    ),
    ErrorCode.QUERY_TOO_SLOW: Advice(
        "A query took longer than it may, and was given up; requests were not held up.",
        "Read the message: it says which filters find runs among many. Add one of them, or a narrower one.",
    ),
    ErrorCode.QUERY_FAILED: Advice(
        "The engine could not look: PostgreSQL does not answer the worker's queries, or refuses them.",
        "Ask again later. Tell whoever runs the deployment when it stays so.",
    ),
}
