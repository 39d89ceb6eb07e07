"""The history of waiting: what PostgreSQL wrote of states, slots, queues and limits, in the order in which it did.

Two partitions' clocks do not say who was first. So triggers number each write: whoever takes or frees a slot holds the
limit's lock, and whoever writes a state holds the run's, so the numbers of one limit, or of one run, are in the order
of the transactions. What a transaction writes counts as a whole.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final
from uuid import UUID

from statewright_worker.orchestration.records import MICROSECOND
from statewright_worker.orchestration.waiting import TICKETS_A_MICROSECOND, TICKETS_BEGAN
from tests.deployment import Deployment

WATCH: Final = """
    CREATE TABLE written (
        number bigserial PRIMARY KEY, xact xid8 NOT NULL DEFAULT pg_current_xact_id(), what text NOT NULL,
        at timestamptz NOT NULL DEFAULT statement_timestamp(), before jsonb, after jsonb
    );
    CREATE FUNCTION note_write() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO written (what, before, after) VALUES (
            TG_TABLE_NAME,
            CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END,
            CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END
        );
        RETURN NULL;
    END $$;
    CREATE TRIGGER written AFTER INSERT OR DELETE ON concurrency_slot FOR EACH ROW EXECUTE FUNCTION note_write();
    CREATE TRIGGER written AFTER INSERT OR DELETE ON waiter FOR EACH ROW EXECUTE FUNCTION note_write();
    CREATE TRIGGER written AFTER INSERT OR UPDATE OR DELETE ON concurrency_limit
        FOR EACH ROW EXECUTE FUNCTION note_write();
    CREATE TRIGGER written AFTER INSERT OR UPDATE OF tags, policy ON task_run
        FOR EACH ROW EXECUTE FUNCTION note_write();
    CREATE TRIGGER written AFTER INSERT OR UPDATE OF tags, policy ON flow_run
        FOR EACH ROW EXECUTE FUNCTION note_write();
    CREATE TRIGGER written AFTER INSERT ON task_run_state FOR EACH ROW EXECUTE FUNCTION note_write();
    CREATE TRIGGER written AFTER INSERT ON flow_run_state FOR EACH ROW EXECUTE FUNCTION note_write();
"""
WRITTEN: Final = """
    SELECT what, before, after, first_value(number) OVER (PARTITION BY xact ORDER BY number) AS begun
    FROM written ORDER BY begun, number
"""
# A limit has room for a waiter when it has more free slots than waiters before it.
WAITING_FOR_NOTHING: Final = """
    SELECT parked.proposal_id::text FROM parked
    WHERE NOT decided AND NOT EXISTS (
        SELECT FROM waiter JOIN concurrency_limit AS named ON named.id = waiter.limit_id
        WHERE waiter.proposal_id = parked.proposal_id AND (
            SELECT count(*) FROM waiter AS other WHERE other.limit_id = named.id
                AND (-other.priority, other.ticket) < (-waiter.priority, waiter.ticket)
        ) >= CASE WHEN named.period IS NULL
            THEN named.concurrency_limit
                - (SELECT count(*) FROM concurrency_slot AS slot WHERE slot.limit_id = named.id
                    AND slot.run_id <> waiter.run_id)
            ELSE named.concurrency_limit - ceil(extract(epoch FROM greatest(named.used_until - now(), '0'))
                / extract(epoch FROM named.period) * named.concurrency_limit) END
    ) AND NOT EXISTS (SELECT FROM timer WHERE kind = 'parked' AND id = parked.proposal_id AND due > now())
"""
OVERDUE: Final = "SELECT kind || ' ' || id FROM timer WHERE due < now() - interval '7 seconds'"
# What is used of a rate comes back within its period, and a microsecond for each slot, to which intervals are rounded.
RATES_EXCEEDED: Final = """
    SELECT (after ->> 'scope') || ' ' || (after ->> 'key') || ' until ' || (after ->> 'used_until') || ' at ' || at
    FROM written
    WHERE what = 'concurrency_limit' AND (after ->> 'period') IS NOT NULL
        AND (after ->> 'used_until')::timestamptz > at + (after ->> 'period')::interval
            + (after ->> 'concurrency_limit')::integer * interval '1 microsecond'
"""
RUN_TABLES: Final = ("task_run", "flow_run")
DEADLOCKS: Final = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"

Turn = tuple[int, float]
AT_THE_END: Final = float("inf")


@dataclass
class Limit:
    """A limit as it stood after the last transaction."""

    scope: str
    key: str
    most: int
    is_rate: bool
    holders: set[str] = field(default_factory=set)
    queue: dict[str, tuple[str, Turn]] = field(default_factory=dict)
    """The run and the turn of each waiter, by proposal."""

    def __str__(self) -> str:
        return f"{self.scope} {self.key} ({self.most})"


@dataclass
class Sweep:
    """Goes through what was written, transaction by transaction, and notes what must not be."""

    priorities: dict[str, int]
    """The priority with which each run proposes RUNNING without having been parked, 0 by default."""
    forced: set[str]
    """States that were forced: they ask for no slot."""
    tickets: dict[str, float]
    """The ticket with which whoever did not wait entered each state: that of its batch's clock."""
    problems: list[str] = field(default_factory=list)
    names: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    """The limits that each run asks for."""
    limits: dict[int, Limit] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    turns: dict[str, Turn] = field(default_factory=dict)
    """The first turn that each run ever had in a queue."""
    starts: int = 0

    def transaction(self, rows: Iterable[dict[str, Any]]) -> None:
        """Take what one transaction has written."""
        before = {key: (limit.most, set(limit.holders), dict(limit.queue)) for key, limit in self.limits.items()}
        turns: dict[tuple[int, str], Turn] = {}
        entered: dict[str, str] = {}
        touched: set[int] = set()
        # A limit that a transaction makes has slots and waiters from it.
        for row in sorted(rows, key=lambda row: row["what"] != "concurrency_limit"):
            what, old, new = row["what"], row["before"], row["after"]
            some = new or old
            if what == "concurrency_limit":
                self._limit(old, new)
                touched.add(some["id"])
            elif what in RUN_TABLES:
                self.names[new["id"]] = _asked_for(what, new)
            elif what in ("concurrency_slot", "waiter"):
                touched.add(some["limit_id"])
                if what == "concurrency_slot":
                    self._slot(old, new)
                else:
                    self._waiter(old, new, turns)
            else:
                self.states[new["run_id"]] = new["type"]
                entered[new["run_id"]] = new["id"]
        self._check_states(entered)
        for limit_id in touched & self.limits.keys():
            most, holders, queue = before.get(limit_id, (self.limits[limit_id].most, set(), {}))
            for run, state in entered.items():
                ticket = self.tickets.get(state, AT_THE_END)
                turns.setdefault((limit_id, run), self.turns.get(run, (-self.priorities.get(run, 0), ticket)))
            self._check_limit(limit_id, most, holders, queue, turns)

    def _limit(self, old: dict[str, Any] | None, new: dict[str, Any] | None) -> None:
        if new is None:
            assert old is not None
            self.limits.pop(old["id"], None)
        elif new["id"] in self.limits:
            self.limits[new["id"]].most = new["concurrency_limit"]
            self.limits[new["id"]].is_rate = new["period"] is not None
        else:
            numbers = new["concurrency_limit"], new["period"] is not None
            self.limits[new["id"]] = Limit(new["scope"], new["key"], *numbers)

    def _slot(self, old: dict[str, Any] | None, new: dict[str, Any] | None) -> None:
        some = new or old or {}
        limit = self.limits.get(some["limit_id"])
        if limit is not None:
            (limit.holders.add if new else limit.holders.discard)(some["run_id"])

    def _waiter(
        self, old: dict[str, Any] | None, new: dict[str, Any] | None, turns: dict[tuple[int, str], Turn]
    ) -> None:
        some = new or old or {}
        limit, run = self.limits.get(some["limit_id"]), some["run_id"]
        turn = -some["priority"], some["ticket"]
        self.turns[run] = min(turn, self.turns.get(run, turn))
        if new is None:
            turns[some["limit_id"], run] = turn
        if limit is not None and new is not None:
            limit.queue[some["proposal_id"]] = run, turn
        elif limit is not None:
            limit.queue.pop(some["proposal_id"], None)

    def _check_states(self, entered: dict[str, str]) -> None:
        for run, state in entered.items():
            if self.states[run] != "RUNNING":
                held = [limit for limit in self.limits.values() if run in limit.holders]
                self.problems += [f"the run {run} is {self.states[run]} and holds {limit}" for limit in held]
                continue
            self.starts += 1
            for limit in self.limits.values():
                wanted = not limit.is_rate and (limit.scope, limit.key) in self.names.get(run, ())
                if wanted and run not in limit.holders and state not in self.forced:
                    self.problems.append(f"the run {run} is RUNNING without a slot of {limit}")

    def _check_limit(
        self,
        limit_id: int,
        most: int,
        holders: set[str],
        queue: dict[str, tuple[str, Turn]],
        turns: dict[tuple[int, str], Turn],
    ) -> None:
        limit = self.limits[limit_id]
        taken = limit.holders - holders
        if taken and len(limit.holders) > max(limit.most, most):
            self.problems.append(f"{len(limit.holders)} runs hold {limit}")
        self.problems += [
            f"the run {run} is {self.states[run]} and took {limit}"
            for run in taken
            if self.states.get(run, "RUNNING") != "RUNNING"
        ]
        free = max(limit.most, most) - len(holders & limit.holders)
        stay = [(run, turn) for proposal, (run, turn) in limit.queue.items() if proposal in queue]
        for run in taken:
            turn = turns.get((limit_id, run), (0, AT_THE_END))
            overtaken = [other for other, its in stay if its < turn and other != run]
            if overtaken and len(overtaken) >= free:
                self.problems.append(f"the run {run} {turn} took {limit} before {overtaken}, with {free} free")


@dataclass(frozen=True)
class Found:
    """What a history says: how often runs started, and what must not be, by the check that says so."""

    starts: int
    problems: dict[str, list[str]]


def _asked_for(table: str, run: dict[str, Any]) -> set[tuple[str, str]]:
    asked = {("name", name) for name in run["policy"].get("limits", ())}
    if table == "task_run":
        return asked | {("tag", tag) for tag in run["tags"]}
    return asked | ({("deployment", run["deployment_id"])} if run["deployment_id"] else set())


async def watch(deployment: Deployment) -> None:
    """Let PostgreSQL note from now on what it writes."""
    await deployment.execute(WATCH)


async def swept(deployment: Deployment, priorities: dict[UUID, int], forced: Iterable[UUID] = ()) -> Sweep:
    """Return what the history says until now."""
    sweep = Sweep(
        {str(run): priority for run, priority in priorities.items()},
        set(map(str, forced)),
        await _tickets(deployment),
    )
    for _, rows in groupby(await _written(deployment), key=lambda row: row["begun"]):
        sweep.transaction(rows)
    return sweep


async def _written(deployment: Deployment) -> list[dict[str, Any]]:
    return [
        {
            **row,
            "before": row["before"] and json.loads(row["before"]),
            "after": row["after"] and json.loads(row["after"]),
        }
        for row in await deployment.fetch(WRITTEN)
    ]


async def _tickets(deployment: Deployment) -> dict[str, float]:
    decided = await deployment.fetch("SELECT state_id, decided FROM verdict WHERE status = 'ACCEPT'")
    # Behind all that were parked in the same batch.
    return {
        str(row["state_id"]): ((row["decided"] - TICKETS_BEGAN) // MICROSECOND + 1) * TICKETS_A_MICROSECOND - 1
        for row in decided
    }


async def audited(deployment: Deployment) -> list[str]:
    """Return what the audit finds wrong at this moment."""
    return [str(finding) for finding in (await deployment.audited()).findings if finding.is_wrong]


async def checked(deployment: Deployment, priorities: dict[UUID, int], forced: Iterable[UUID] = ()) -> Found:
    """Return what the whole history says, and what does not fit together now that nothing moves any more."""
    sweep = await swept(deployment, priorities, forced)
    [[deadlocks]] = await deployment.fetch(DEADLOCKS)
    problems = {
        "no limit is exceeded, no slot is without its run, and nobody is overtaken": sweep.problems,
        "no rate is exceeded": [row[0] for row in await deployment.fetch(RATES_EXCEEDED)],
        "nobody waits while there is room": [row[0] for row in await deployment.fetch(WAITING_FOR_NOTHING)],
        "nothing is overdue": [row[0] for row in await deployment.fetch(OVERDUE)],
        "the audit finds nothing wrong": await audited(deployment),
        "there was no deadlock": [f"{deadlocks} deadlocks"] if deadlocks else [],
    }
    return Found(sweep.starts, problems)
