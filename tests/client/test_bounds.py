"""The table of bounds in the README says what the code holds to."""

import re
from pathlib import Path

import pytest

from statewright import ConfigurationError
from statewright.events import TRUNCATE_MESSAGES_AT
from statewright.protocol.queries import MAX_RUNS_PER_PAGE
from statewright.protocol.requests import (
    MAX_CONCURRENCY_LIMIT,
    MAX_DEAD_LETTERS,
    MAX_PARK_SECONDS,
    MAX_PERIOD_SECONDS,
    MAX_PRIORITY,
    MAX_RUNS_OF_HEARTBEAT,
)
from statewright.runs import MAX_NAMED_LIMITS, MAX_PAUSE_KEYS, MAX_RETRIES, MAX_RETRY_DELAY_SECONDS, MAX_RETRY_DELAYS
from statewright.settings import ClientSettings
from statewright.states import MAX_LEASE_SECONDS
from statewright.subscription.filters import MAX_WANTED
from statewright.subscription.shares import ERROR_CHARACTERS, WAITING_AT_MOST
from statewright.values import (
    MAX_CACHE_KEY_LENGTH,
    MAX_IDEMPOTENCY_KEY_LENGTH,
    MAX_INTEGER_BITS,
    MAX_JSON_DEPTH,
    MAX_LABEL_KEY_LENGTH,
    MAX_LABEL_LENGTH,
    MAX_LABELS,
    MAX_MESSAGE_LENGTH,
    MAX_NAME_LENGTH,
    MAX_PARTITIONS,
    MAX_POSITION,
    MAX_TAGS,
)
from statewright.verdicts import MAX_DELAY_SECONDS
from statewright_worker.queries.tree import RUNS_TOLD
from statewright_worker.requests.subscriptions import MAX_MEMBERS

README = Path(__file__).parents[2] / "README.md"
NAMESPACE_LENGTH = 64
BOUNDS = {
    "a name: of a run, a state, a task key, a tag, a limit, a pause key": MAX_NAME_LENGTH,
    "tags of a run": MAX_TAGS,
    "labels of a run": MAX_LABELS,
    "the key of a label": MAX_LABEL_KEY_LENGTH,
    "a label": MAX_LABEL_LENGTH,
    "a cache key": MAX_CACHE_KEY_LENGTH,
    "an idempotency key": MAX_IDEMPOTENCY_KEY_LENGTH,
    "the message of a state or an error": MAX_MESSAGE_LENGTH,
    "such a message in an event": TRUNCATE_MESSAGES_AT,
    "nesting of a state's data": MAX_JSON_DEPTH,
    "an integer in a state's data": MAX_INTEGER_BITS,
    "a request": ClientSettings.model_fields["max_message_bytes"].default,
    "retries of a run": MAX_RETRIES,
    "retry delays of a run": MAX_RETRY_DELAYS,
    "a retry delay, a jitter factor": MAX_RETRY_DELAY_SECONDS,
    "pause keys of a run": MAX_PAUSE_KEYS,
    "what a WAIT tells to wait": MAX_DELAY_SECONDS,
    "a concurrency limit": MAX_CONCURRENCY_LIMIT,
    "limits that a run asks for by name": MAX_NAMED_LIMITS,
    "the period of a rate": MAX_PERIOD_SECONDS,
    "how long a proposal may be parked with a time limit": MAX_PARK_SECONDS,
    "the priority of a proposal": MAX_PRIORITY,
    "a lease": MAX_LEASE_SECONDS,
    "runs that a heartbeat names": MAX_RUNS_OF_HEARTBEAT,
    "values of one kind in a filter": MAX_WANTED,
    "members of a named subscription": MAX_MEMBERS,
    "dead letters of a named subscription": MAX_DEAD_LETTERS,
    "what a dead letter says of its error": ERROR_CHARACTERS,
    "events of a share that wait in a member's memory": WAITING_AT_MOST,
    "a page of runs that were found": MAX_RUNS_PER_PAGE,
    "a tree that is told": RUNS_TOLD,
    "partitions": MAX_PARTITIONS,
    "the number of an event in its partition": MAX_POSITION,
    "a namespace, a reply stream's name": NAMESPACE_LENGTH,
}


def rows() -> list[tuple[str, str, str]]:
    """Return the rows of the table: what, at most, why."""
    [section] = re.findall(r"^## Bounds$(.*?)^## ", README.read_text(), re.MULTILINE | re.DOTALL)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return [(what, most, why) for what, most, why in cells[2:]]


def test_every_bound_stands_in_the_table_as_the_code_has_it() -> None:
    assert {what: int(most.split(" ")[0].replace(",", "")) for what, most, _ in rows()} == BOUNDS


def test_every_bound_has_a_reason() -> None:
    assert all(why for _, _, why in rows())


def test_a_namespace_is_as_long_as_the_table_says() -> None:
    ClientSettings.load(namespace="n" * NAMESPACE_LENGTH)
    with pytest.raises(ConfigurationError, match="STATEWRIGHT_NAMESPACE"):
        ClientSettings.load(namespace="n" * (NAMESPACE_LENGTH + 1))
