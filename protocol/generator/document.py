"""The AsyncAPI 3 document: where what is sent and heard, as a client of Statewright sees it."""

from typing import Final

from protocol.generator.examples import CLIENT, EXAMPLES, NAMESPACE, PARTITION, PROPOSAL, REQUEST, Example
from protocol.generator.messages import ADVICE, CONVERSATIONS, MESSAGES, QUERIES
from protocol.generator.schemas import SENT, Json, schema_of, with_references
from statewright.protocol.channels import Channels
from statewright.protocol.requests import PROTOCOL_VERSION
from statewright.values import ENGINE_ITSELF, MAX_ACTOR_LENGTH

ASYNCAPI: Final = "3.0.0"
REPLY_TO: Final = "^[A-Za-z0-9_.-]{1,64}$"
REQUEST_ID: Final = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"

_LANE: Final = {
    "lane": {
        "description": (
            "`{<namespace>:<partition>}`, braces included: they let a Redis Cluster keep the keys of a partition"
            " together. The namespace is `statewright` unless the deployment says otherwise; partitions are numbered"
            " from 0, and the key `<namespace>:partitions` says how many there are."
        ),
        "examples": [f"{{{NAMESPACE}:{PARTITION}}}"],
    }
}
_NAMESPACE: Final = {
    "namespace": {"description": "The prefix of every key of the deployment.", "default": NAMESPACE},
}
_CLIENT: Final = {
    "client": {
        "description": "The name that the client has given itself: the field `reply_to` of its requests.",
        "examples": [CLIENT],
    }
}
_SERVERS: Final = {
    "redis": {
        "host": "127.0.0.1:6379",
        "pathname": "/0",
        "protocol": "redis",
        "description": "The Redis of the deployment: Redis 6.2 or newer, or Valkey.",
        "security": [{"$ref": "#/components/securitySchemes/redisUser"}],
    },
    "redisOverTls": {
        "host": "redis.example.com:6379",
        "pathname": "/0",
        "protocol": "rediss",
        "description": "The same over TLS.",
        "security": [{"$ref": "#/components/securitySchemes/redisUser"}],
    },
}
_ENTRY_OF_REQUEST: Final = {
    "type": "object",
    "description": "The other fields of the entry. The message itself is the field `message`, as JSON.",
    "required": ["id"],
    "properties": {
        "id": {
            "type": "string",
            "pattern": REQUEST_ID,
            "description": (
                "The request's id, for ever: a UUID in its canonical form, in lower case. For a proposal it is the"
                " proposal's id."
            ),
        },
        "reply_to": {
            "type": "string",
            "pattern": REPLY_TO,
            "description": "The client whose reply stream gets the answer; left out when nobody waits for one.",
        },
        "actor": {
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_ACTOR_LENGTH,
            "description": (
                "Who asks, in printable characters; left out, nobody is told. It is no part of the message: whoever"
                f" sends that again asks for the same. `{ENGINE_ITSELF}` is the engine itself, and refused."
            ),
        },
    },
}
_ENTRY_OF_REPLY: Final = {
    "type": "object",
    "description": (
        "An entry has one field for each reply. The field's name is the id of the request that it answers, its value"
        " is the message as JSON."
    ),
    "required": ["id"],
    "properties": {
        "id": {"type": "string", "pattern": REQUEST_ID, "description": "The name of the field."},
    },
}
_ENTRY_OF_EVENT: Final = {
    "type": "object",
    "description": "The entry's id is `<sequence>-0`. The message is its only field, `event`, as JSON.",
}
_DEAD_LETTER: Final = {
    "type": "object",
    "description": (
        "The entry has the fields of the request, each cut to its first 4,096 bytes and 16 of them at most, and these"
        " beside them. Its id is the request's own, unless `entry` names that."
    ),
    "required": ["reason", "field"],
    "properties": {
        "id": {"type": "string", "description": "As the request had it; perhaps it was no id."},
        "reply_to": {"type": "string", "description": "As the request had it."},
        "actor": {"type": "string", "description": "As the request had it."},
        "reason": {"type": "string", "description": "What was wrong: the message of the error."},
        "field": {"type": "string", "description": "The field that was to blame; empty where none was."},
        "size": {"type": "string", "description": "How many bytes the message had, where it was cut."},
        "entry": {"type": "string", "description": "The id of the request's entry, where the letter has another one."},
    },
}


def document() -> Json:
    """Return the document."""
    schemas = _schemas()
    return {
        "asyncapi": ASYNCAPI,
        "info": {
            "title": "Statewright",
            "version": str(PROTOCOL_VERSION),
            "description": (
                "Statewright governs the state transitions of workflow runs over Redis streams. This document is"
                " written from the view of a client: it sends requests, and receives replies and events. PROTOCOL.md"
                " explains all of it in words."
            ),
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": _SERVERS,
        "channels": _channels(),
        "operations": _operations(),
        "components": {
            "securitySchemes": {
                "redisUser": {
                    "type": "userPassword",
                    "description": "A user of Redis; deploy/redis/users.acl lists the rights of each role.",
                }
            },
            "messages": {**{name: _message(name) for name in MESSAGES}, "dead_letter": _dead_letter()},
            "schemas": schemas,
        },
    }


def _channels() -> Json:
    channels = Channels("{namespace}")
    return {
        "proposals": {
            "address": _in_lane(channels.proposals(0)),
            "title": "The requests of a partition",
            "description": (
                "A stream, oldest first. A request is one entry, added by `XADD <address> * id <id> reply_to <client>"
                " message <JSON>`. The engine deletes it once it is answered, so the length of the stream is the"
                " number of unanswered requests."
            ),
            "parameters": _LANE,
            "messages": _all_of("request."),
        },
        "queries": {
            "address": channels.queries,
            "title": "What is asked beside the partitions",
            "description": (
                "A stream. A query is one entry, added like a request. Any worker answers it, in no order with requests"
                ", and deletes it then, so the length of the stream is the number of unanswered queries. It has no"
                " effect; ask again when no answer comes."
            ),
            "parameters": _NAMESPACE,
            "messages": _all_of("query."),
        },
        "replies": {
            "address": channels.replies("{client}"),
            "title": "The answers to a client",
            "description": (
                "A stream, oldest first, read by `XREAD BLOCK 5000 STREAMS <address> <last id>`. The client deletes"
                " what it has read; the engine keeps a bounded number, and lets the stream expire some time after the"
                " last answer."
            ),
            "parameters": {**_NAMESPACE, **_CLIENT},
            "messages": _all_of("reply."),
        },
        "events": {
            "address": _in_lane(channels.events(0)),
            "title": "The events of a partition",
            "description": (
                "A stream, oldest first, read by `XREAD BLOCK 5000 STREAMS <address> <sequence>-0`. Sequences rise by"
                " one from entry to entry. The stream keeps a bounded number; older events are asked for by"
                " `read_events`."
            ),
            "parameters": _LANE,
            "messages": _all_of("event."),
        },
        "deadLetters": {
            "address": _in_lane(channels.dead_letters(0)),
            "title": "The requests of a partition that could not be carried out",
            "description": "A stream that keeps a bounded number, and expires some time after the last one.",
            "parameters": _LANE,
            "messages": {"dead_letter": {"$ref": "#/components/messages/dead_letter"}},
        },
    }


def _in_lane(key: str) -> str:
    """Return the address of a key that begins with a partition's hash tag, whose braces no address can have."""
    return "{lane}:" + key.rpartition(":")[2]


def _all_of(kind: str) -> Json:
    return {name: {"$ref": f"#/components/messages/{name}"} for name in MESSAGES if name.startswith(kind)}


def _operations() -> Json:
    operations: Json = {name: _sending(name) for name in CONVERSATIONS}
    operations["subscribe"] = {
        "action": "receive",
        "channel": {"$ref": "#/channels/events"},
        "summary": "Hear of every change of a run's state, in order and without gaps.",
        "messages": [{"$ref": f"#/channels/events/messages/{name}"} for name in _all_of("event.")],
    }
    operations["readDeadLetters"] = {
        "action": "receive",
        "channel": {"$ref": "#/channels/deadLetters"},
        "summary": "See which requests could not be carried out, and why.",
        "messages": [{"$ref": "#/channels/deadLetters/messages/dead_letter"}],
    }
    return operations


def _sending(name: str) -> Json:
    channel, kind = ("queries", "query") if name in QUERIES else ("proposals", "request")
    conversation = CONVERSATIONS[name]
    return {
        "action": "send",
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": _summary(f"{kind}.{name}"),
        "description": "Errors that may answer it: " + ", ".join(conversation.errors) + ".",
        "messages": [{"$ref": f"#/channels/{channel}/messages/{kind}.{name}"}],
        "reply": {
            "address": {
                "location": "$message.header#/reply_to",
                "description": "The reply stream of the client that this names.",
            },
            "channel": {"$ref": "#/channels/replies"},
            "messages": [
                {"$ref": f"#/channels/replies/messages/reply.{reply}"} for reply in (*conversation.replies, "error")
            ],
        },
    }


def _message(name: str) -> Json:
    kind, _, own = name.partition(".")
    message: Json = {
        "name": name,
        "title": own,
        "summary": _summary(name),
        "contentType": "application/json",
        "payload": {"$ref": f"#/components/schemas/{name}"},
        "examples": [_example(kind, example) for example in EXAMPLES[name]],
    }
    match kind:
        case "request" | "query":
            message["headers"] = _ENTRY_OF_REQUEST
            message["correlationId"] = {
                "location": "$message.header#/id",
                "description": "The reply is the field of this name.",
            }
        case "reply":
            message["headers"] = _ENTRY_OF_REPLY
            message["correlationId"] = {
                "location": "$message.header#/id",
                "description": "The request that is answered.",
            }
        case _:
            message["headers"] = _ENTRY_OF_EVENT
    if own == "error":
        message["x-errors"] = {str(code): advice._asdict() for code, advice in ADVICE.items()}
    return message


def _example(kind: str, example: Example) -> Json:
    about: Json = {"summary": example.summary}
    if kind != "event":
        is_about_proposal = example.message["type"] in {"propose", "verdict", "parked"}
        about["headers"] = {"id": PROPOSAL if is_about_proposal else REQUEST}
    if kind in ("request", "query"):
        about["headers"]["reply_to"] = CLIENT
    return {**about, "payload": example.message}


def _dead_letter() -> Json:
    return {
        "name": "dead_letter",
        "title": "dead letter",
        "summary": "A request that could not be carried out, and why.",
        "contentType": "application/octet-stream",
        "headers": _DEAD_LETTER,
        "payload": {
            "type": "string",
            "description": "The first 4,096 bytes of the request's message, the field `message`; perhaps no JSON.",
        },
        "examples": [
            {
                "summary": "A state without a type.",
                "headers": {
                    "id": PROPOSAL,
                    "reply_to": CLIENT,
                    "reason": "state.type: Field required",
                    "field": "state.type",
                },
                "payload": '{"type":"propose","run_id":"019a0c2e-6c00-7f3b-8a51-2f9d4e6b1267","state":{}}',
            }
        ],
    }


def _summary(name: str) -> str:
    description: str = schema_of(name, MESSAGES[name])["description"]
    return description.partition(". ")[0].rstrip(".") + "."


def _schemas() -> Json:
    """Return the schemas of all messages, and those that they share, under names of their own."""
    shared: Json = {}
    messages: Json = {}
    for name, model in MESSAGES.items():
        schema = schema_of(name, model)
        prefix = "sent" if name.startswith(SENT) else "told"

        def renamed(reference: str, prefix: str = prefix) -> str:
            return f"#/components/schemas/{prefix}.{reference.rpartition('/')[2]}"

        for own, definition in schema.pop("$defs", {}).items():
            shared[f"{prefix}.{own}"] = with_references(definition, renamed)
        messages[name] = with_references(schema, renamed)
    return {**messages, **dict(sorted(shared.items()))}
