"""The schema: what PostgreSQL keeps, as declarative models for migrations, reads and users' rules.

No foreign key stands on history and verdicts: their writer holds the run's row locked, and checking each of thousands
of rows a second again would cost more than writing them.
"""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Computed,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Interval,
    MetaData,
    SmallInteger,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, declared_attr, mapped_column

# Every transition updates its run. Free space on the page keeps the new version of the row beside the old one, so that
# no index needs to change (HOT).
RUN_FILLFACTOR = {"postgresql_with": {"fillfactor": 70}}

# Retention deletes as many rows as the load adds, so PostgreSQL must vacuum at a steady pace: by default it would wait
# until a fifth of a table is dead, and the table would keep that room for ever. It cuts no pages off a table's end,
# which would lock batches out: the next rows go there.
DELETED_FROM = {
    "autovacuum_vacuum_scale_factor": 0.02,
    "autovacuum_vacuum_threshold": 10_000,
    "vacuum_truncate": False,
}

NAMING = {
    "ix": "ix_%(table_name)s__%(column_0_N_name)s",
    "uq": "uq_%(table_name)s__%(column_0_N_name)s",
    "fk": "fk_%(table_name)s__%(column_0_N_name)s",
    "ck": "ck_%(table_name)s__%(constraint_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """The base of every model."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012  # SQLAlchemy reads it from the class
        datetime: DateTime(timezone=True),
        timedelta: Interval,
        dict[str, Any]: JSONB,
        str: Text,
        UUID: Uuid,
    }


class Partition(Base):
    """One partition; its row is the fence. Every drain that takes the partition up raises `epoch`."""

    __tablename__ = "partition"

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    sequence: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    epoch: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    era: Mapped[int] = mapped_column(server_default=text("0"))


class Era(Base):
    """A new numbering of a partition's events, begun because the database went back to before published ones."""

    __tablename__ = "era"

    partition: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    era: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    sequence: Mapped[int] = mapped_column(BigInteger)
    went_back_to: Mapped[int] = mapped_column(BigInteger)
    noticed: Mapped[datetime]


class Deployment(Base):
    """To which deployment the database belongs: one row. A copy of the database is the same deployment, with its id."""

    __tablename__ = "deployment"

    single: Mapped[bool] = mapped_column(primary_key=True, server_default=text("true"))
    id: Mapped[UUID] = mapped_column(server_default=text("gen_random_uuid()"))
    namespace: Mapped[str]

    __table_args__ = (CheckConstraint("single", name="single"),)


# Few transitions change the phase: the first state does not, and most runs end COMPLETED, which have none. So the index
# on it is small, and the others that a run is found by stand on what no transition changes: all other updates stay HOT.
# Written as PostgreSQL tells it, so that models and migrations can be compared.
PHASE = """CASE
        WHEN state_type = 'COMPLETED'::text THEN NULL::text
        WHEN state_type = ANY (ARRAY['FAILED'::text, 'CRASHED'::text, 'CANCELLED'::text]) THEN 'failed'::text
        ELSE 'open'::text
    END"""


def _found_by(table: str) -> tuple[Index, ...]:
    """Return the indexes by which runs of either kind are found."""
    found = [
        Index(f"ix_{table}__created_id", "created", "id"),
        Index(f"ix_{table}__phase_created_id", "phase", "created", "id", postgresql_where=text("phase IS NOT NULL")),
        Index(f"ix_{table}__name", "name", postgresql_ops={"name": "text_pattern_ops"}),
    ]
    for column, empty in (("tags", "[]"), ("labels", "{}")):
        found.append(
            Index(
                f"ix_{table}__{column}",
                column,
                postgresql_using="gin",
                postgresql_ops={column: "jsonb_path_ops"},
                postgresql_where=text(f"{column} <> '{empty}'"),
            )
        )
    return tuple(found)


class _RunColumns:
    """What flow runs and task runs have in common; the row repeats the main fields of the current state."""

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    created: Mapped[datetime]
    tags: Mapped[list[str]] = mapped_column(JSONB)
    policy: Mapped[dict[str, Any]]
    state_id: Mapped[UUID | None]
    state_type: Mapped[str | None]
    state_name: Mapped[str | None]
    state_timestamp: Mapped[datetime | None]
    state_count: Mapped[int] = mapped_column(server_default=text("0"))
    run_count: Mapped[int] = mapped_column(server_default=text("0"))
    expected_start_time: Mapped[datetime | None]
    next_scheduled_start_time: Mapped[datetime | None]
    start_time: Mapped[datetime | None]
    end_time: Mapped[datetime | None]
    total_run_time: Mapped[timedelta] = mapped_column(server_default=text("'0'"))
    labels: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    phase: Mapped[str | None] = mapped_column(Computed(PHASE, persisted=True))
    """'open' until the run ends, then 'failed', or nothing for one that is COMPLETED."""


class FlowRun(_RunColumns, Base):
    """A flow run."""

    __tablename__ = "flow_run"
    __table_args__ = (
        Index(None, "parent_task_run_id", postgresql_where=text("parent_task_run_id IS NOT NULL")),
        Index(None, "flow_id", "created", "id", postgresql_where=text("flow_id IS NOT NULL")),
        Index(None, "deployment_id", "created", "id", postgresql_where=text("deployment_id IS NOT NULL")),
        *_found_by("flow_run"),
        {"postgresql_with": {"fillfactor": 70, **DELETED_FROM}},
    )

    flow_id: Mapped[UUID | None]
    deployment_id: Mapped[UUID | None]
    parent_task_run_id: Mapped[UUID | None]


class TaskRun(_RunColumns, Base):
    """A task run."""

    __tablename__ = "task_run"
    __table_args__ = (
        Index(None, "flow_run_id"),
        *_found_by("task_run"),
        # Most task runs belong to a flow run; retention looks for those that do not.
        Index("ix_task_run__created", "created", postgresql_where=text("flow_run_id IS NULL")),
        {"postgresql_with": {"fillfactor": 70, **DELETED_FROM}},
    )

    flow_run_id: Mapped[UUID | None]
    task_key: Mapped[str | None]
    flow_run_run_count: Mapped[int] = mapped_column(server_default=text("0"))


class _StateColumns:
    """One state that a run was in; rows are only appended. (partition, sequence) is the place of its event.

    `proposal_id` is what caused it: a row of the ledger.
    """

    id: Mapped[UUID] = mapped_column(primary_key=True)
    run_id: Mapped[UUID]
    ordinal: Mapped[int]
    type: Mapped[str]
    name: Mapped[str]
    timestamp: Mapped[datetime]
    message: Mapped[str | None]
    data: Mapped[Any | None] = mapped_column(JSONB)
    state_details: Mapped[dict[str, Any]]
    previous_state_id: Mapped[UUID | None]
    run_count: Mapped[int]
    proposal_id: Mapped[UUID | None]
    partition: Mapped[int] = mapped_column(SmallInteger)
    sequence: Mapped[int] = mapped_column(BigInteger)

    @declared_attr.directive
    @classmethod
    def __table_args__(cls) -> tuple[Any, ...]:
        return (
            UniqueConstraint("run_id", "ordinal"),
            UniqueConstraint("partition", "sequence"),
            {"postgresql_with": DELETED_FROM},
        )


class FlowRunState(_StateColumns, Base):
    """A state of a flow run."""

    __tablename__ = "flow_run_state"


class TaskRunState(_StateColumns, Base):
    """A state of a task run."""

    __tablename__ = "task_run_state"


class TaskRunStateCache(Base):
    """A completed state that later runs with the same key take over; the newest one counts. It goes with its state."""

    __tablename__ = "task_run_state_cache"
    __table_args__ = (Index(None, "cache_key", "id"), Index(None, "task_run_state_id"))

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    cache_key: Mapped[str]
    cache_expiration: Mapped[datetime | None]
    task_run_state_id: Mapped[UUID]
    created: Mapped[datetime]


class ConcurrencyLimit(Base):
    """How many runs may hold a slot at once. `scope` is the kind of thing limited ('tag'), `key` which one it is.

    A limit with a `period` is a rate: so many runs may start in a period, and `used_until` is all that it remembers of
    them: the moment at which every slot is free again. `lease_seconds` is the lease of runs that ask for none.
    """

    __tablename__ = "concurrency_limit"
    __table_args__ = (UniqueConstraint("scope", "key"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    scope: Mapped[str]
    key: Mapped[str]
    concurrency_limit: Mapped[int]
    period: Mapped[timedelta | None]
    used_until: Mapped[datetime | None]
    lease_seconds: Mapped[float | None] = mapped_column(Double)


class ConcurrencySlot(Base):
    """One unit of a limit, held by a run of either kind.

    It goes with its limit, and with its run: no foreign key can say that of two tables, so a trigger on each of them
    (`free_slots`) deletes the slots of runs that are deleted.
    """

    __tablename__ = "concurrency_slot"
    __table_args__ = (Index(None, "run_id"),)

    limit_id: Mapped[int] = mapped_column(ForeignKey(ConcurrencyLimit.id, ondelete="CASCADE"), primary_key=True)
    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    taken: Mapped[datetime]


class Timer(Base):
    """When a partition's holder must look at something again: `kind` says at what, `id` at which one."""

    __tablename__ = "timer"
    __table_args__ = (Index(None, "partition", "due"),)

    kind: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True)
    partition: Mapped[int] = mapped_column(SmallInteger)
    due: Mapped[datetime]


class Parked(Base):
    """A proposal that is kept until it can be decided, with its message, and who is to be answered.

    A decided one stays until its answer was sent.
    """

    __tablename__ = "parked"
    __table_args__ = (Index(None, "run_id"),)

    proposal_id: Mapped[UUID] = mapped_column(primary_key=True)
    partition: Mapped[int] = mapped_column(SmallInteger)
    run_id: Mapped[UUID]
    digest: Mapped[int] = mapped_column(BigInteger)
    message: Mapped[str]
    reply_to: Mapped[str | None]
    entry_id: Mapped[str]
    since: Mapped[datetime]
    until: Mapped[datetime | None]
    priority: Mapped[int]
    ticket: Mapped[int] = mapped_column(BigInteger)
    decided: Mapped[bool] = mapped_column(server_default=text("false"))
    reason: Mapped[str | None]
    actor: Mapped[str | None]
    trace: Mapped[dict[str, Any] | None]


class Waiter(Base):
    """A parked proposal in the queue of a limit: those of higher priority first, then by ticket."""

    __tablename__ = "waiter"

    limit_id: Mapped[int] = mapped_column(ForeignKey(ConcurrencyLimit.id, ondelete="CASCADE"), primary_key=True)
    proposal_id: Mapped[UUID] = mapped_column(primary_key=True)
    run_id: Mapped[UUID]
    partition: Mapped[int] = mapped_column(SmallInteger)
    priority: Mapped[int]
    ticket: Mapped[int] = mapped_column(BigInteger)
    since: Mapped[datetime]

    __table_args__ = (
        Index(None, "proposal_id"),
        Index("ix_waiter__limit_id_priority_ticket", "limit_id", text("priority DESC"), "ticket"),
    )


class Lease(Base):
    """Until when a run's RUNNING, the state `state_id`, is good without a word from its executor. With `executor`, that
    one's row says it. When an executor has fallen silent, its leases are nobody's: they have ended, and last 0 seconds.
    """

    __tablename__ = "lease"
    __table_args__ = (
        Index(None, "partition", "executor", postgresql_where=text("executor IS NOT NULL")),
        RUN_FILLFACTOR,
    )

    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    partition: Mapped[int] = mapped_column(SmallInteger)
    state_id: Mapped[UUID]
    seconds: Mapped[float] = mapped_column(Double)
    ends: Mapped[datetime]
    executor: Mapped[str | None]


class Executor(Base):
    """Until when all runs of an executor in a partition are good."""

    __tablename__ = "executor"
    __table_args__ = RUN_FILLFACTOR

    partition: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(primary_key=True)
    seconds: Mapped[float] = mapped_column(Double)
    ends: Mapped[datetime]


class Subscription(Base):
    """A named subscription, administered in one partition. `generation` rises with what its members must hear of."""

    __tablename__ = "subscription"
    __table_args__ = RUN_FILLFACTOR

    name: Mapped[str] = mapped_column(primary_key=True)
    filter: Mapped[dict[str, Any]]
    max_tries: Mapped[int]
    created: Mapped[datetime]
    generation: Mapped[int] = mapped_column(BigInteger)
    is_settled: Mapped[bool]


class SubscriptionMember(Base):
    """A process that works on shares of a subscription, and when it was last heard of."""

    __tablename__ = "subscription_member"
    __table_args__ = RUN_FILLFACTOR

    subscription: Mapped[str] = mapped_column(ForeignKey(Subscription.name, ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    instance: Mapped[UUID]
    joined: Mapped[datetime]
    seen: Mapped[datetime]
    seconds: Mapped[float] = mapped_column(Double)


class SubscriptionShare(Base):
    """How far a subscription is with a share of a partition's events, and whose share it is: the member's instance.

    Its position moves once a second; no index has it, so that it moves within its page (HOT).
    """

    __tablename__ = "subscription_share"
    __table_args__ = RUN_FILLFACTOR

    subscription: Mapped[str] = mapped_column(ForeignKey(Subscription.name, ondelete="CASCADE"), primary_key=True)
    partition: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    share: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    position: Mapped[int] = mapped_column(BigInteger)
    owner: Mapped[UUID | None]
    epoch: Mapped[int] = mapped_column(BigInteger)
    trying: Mapped[int | None] = mapped_column(BigInteger)
    tries: Mapped[int] = mapped_column(server_default=text("0"))
    trial: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    suspect_up_to: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))


class SubscriptionDeadLetter(Base):
    """An event that a subscription has passed over, because it failed as often as is allowed."""

    __tablename__ = "subscription_dead_letter"

    subscription: Mapped[str] = mapped_column(ForeignKey(Subscription.name, ondelete="CASCADE"), primary_key=True)
    partition: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    sequence: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    share: Mapped[int] = mapped_column(SmallInteger)
    event_id: Mapped[UUID]
    error: Mapped[str]
    tries: Mapped[int]
    at: Mapped[datetime]
    again: Mapped[bool] = mapped_column(server_default=text("false"))


class Verdict(Base):
    """The ledger of proposals: the one verdict of each. `state_id` is a row of the run's history; `digest` shows
    whether a request that comes again asks for the same.

    `actor` is who has made the proposal. `trace` is what the rules saw and decided when they did not accept it.
    """

    __tablename__ = "verdict"
    __table_args__ = (
        # What goes with a run and is named by none of its states. What was accepted is found through the states that it
        # caused, so that it costs no index.
        Index(None, "run_id", "decided", postgresql_where=text("status <> 'ACCEPT'")),
        {"postgresql_with": DELETED_FROM},
    )

    proposal_id: Mapped[UUID] = mapped_column(primary_key=True)
    run_id: Mapped[UUID]
    status: Mapped[str]
    reason: Mapped[str | None]
    delay_seconds: Mapped[int | None]
    state_id: Mapped[UUID | None]
    rule_signature: Mapped[str]
    finalization_signature: Mapped[str]
    decided: Mapped[datetime]
    digest: Mapped[int | None] = mapped_column(BigInteger)
    actor: Mapped[str | None]
    trace: Mapped[dict[str, Any] | None]


class Answer(Base):
    """The ledger of all other answers that must stay: to requests that set a limit, and to refused ones.

    One about a run goes with it, the others when they are older than runs are kept.
    """

    __tablename__ = "answer"
    __table_args__ = (Index(None, "run_id", postgresql_where=text("run_id IS NOT NULL")), Index(None, "answered"))

    request_id: Mapped[UUID] = mapped_column(primary_key=True)
    digest: Mapped[int] = mapped_column(BigInteger)
    reply: Mapped[str]
    answered: Mapped[datetime]
    actor: Mapped[str | None]
    run_id: Mapped[UUID | None]


class Pruned(Base):
    """A run that was deleted, remembered for some time, so that questions about it are answered so.

    A large tree is deleted in several transactions. All of its runs are here from the first one on, and those that
    have not been deleted yet, whose rows nobody sees any more, have `is_left`. `tree` is the run whose deletion it is.
    """

    __tablename__ = "pruned"
    __table_args__ = (
        Index(None, "pruned"),
        Index("ix_pruned__partition_tree", "partition", "tree", postgresql_where=text("is_left")),
    )

    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    tree: Mapped[UUID]
    partition: Mapped[int] = mapped_column(SmallInteger)
    pruned: Mapped[datetime]
    is_left: Mapped[bool]


class LowWater(Base):
    """Up to which of a partition's sequence numbers states were deleted: below it, some numbers have none any more."""

    __tablename__ = "low_water"

    partition: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    sequence: Mapped[int] = mapped_column(BigInteger)
