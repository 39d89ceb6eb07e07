"""Named subscriptions: a batch takes what members say, and writes who they are and which shares they have.

What a member says of its shares is written while the batch loads, like a heartbeat: it needs nobody's consent, and
counts only while the share is the member's own in that epoch. So most batches read a row or two of a subscription, and
its shares only where something may change about them.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Final, TypeVar

from asyncpg import Connection, Record

from statewright.protocol.requests import MAX_DEAD_LETTERS, ShareReference, SyncSubscription
from statewright.subscription.filters import EventFilter
from statewright.subscription.status import DeadLetter, SubscriptionStatus
from statewright_worker.facts.base import Reading, Subject
from statewright_worker.orchestration.subscribing import (
    LETTERS_TOLD,
    AgainRecord,
    MemberRecord,
    ShareRecord,
    Subscribing,
    SubscriptionPage,
    SubscriptionRecord,
)
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.storage.columns import Columns
from statewright_worker.storage.writing import Part, Row, columns_of, delete, insert

SUBSCRIPTIONS_PER_PAGE: Final = 100

SUBSCRIPTION_COLUMNS: Final[Columns] = (
    ("name", "text"),
    ("filter", "jsonb"),
    ("max_tries", "integer"),
    ("created", "timestamptz"),
    ("generation", "bigint"),
    ("is_settled", "boolean"),
)
MEMBER_COLUMNS: Final[Columns] = (
    ("subscription", "text"),
    ("name", "text"),
    ("instance", "uuid"),
    ("joined", "timestamptz"),
    ("seen", "timestamptz"),
    ("seconds", "double precision"),
)
SHARE_COLUMNS: Final[Columns] = (
    ("subscription", "text"),
    ("partition", "smallint"),
    ("share", "smallint"),
    ("position", "bigint"),
    ("owner", "uuid"),
    ("epoch", "bigint"),
    ("trying", "bigint"),
    ("tries", "integer"),
    ("trial", "smallint"),
    ("suspect_up_to", "bigint"),
)
LETTER_COLUMNS: Final[Columns] = (("subscription", "text"), ("partition", "smallint"), ("sequence", "bigint"))


def _replaced(columns: Columns, key: int) -> str:
    return ", ".join(f"{name} = excluded.{name}" for name, _ in columns[key:])


SUBSCRIPTIONS_SET: Final = insert(
    "subscription",
    SUBSCRIPTION_COLUMNS,
    otherwise=f"ON CONFLICT (name) DO UPDATE SET {_replaced(SUBSCRIPTION_COLUMNS, 1)}",
)
SUBSCRIPTIONS_REMOVED: Final = delete("subscription", (("name", "text"),))
MEMBERS_HEARD: Final = insert(
    "subscription_member",
    MEMBER_COLUMNS,
    otherwise=f"ON CONFLICT (subscription, name) DO UPDATE SET {_replaced(MEMBER_COLUMNS, 2)}",
)
MEMBERS_GONE: Final = delete("subscription_member", (("subscription", "text"), ("name", "text")))
SHARES_SET: Final = insert(
    "subscription_share",
    SHARE_COLUMNS,
    otherwise=f"ON CONFLICT (subscription, partition, share) DO UPDATE SET {_replaced(SHARE_COLUMNS, 3)}",
)
_MARK: Final = """
    UPDATE subscription_dead_letter AS letter SET again = {again} FROM {{rows}} WHERE letter.subscription =
    rows.subscription AND letter.partition = rows.partition AND letter.sequence = rows.sequence
"""
LETTERS_AGAIN: Final = Part(_MARK.format(again="true"), LETTER_COLUMNS)
LETTERS_PUT_BACK: Final = Part(_MARK.format(again="false"), LETTER_COLUMNS)
LETTERS_DROPPED: Final = delete("subscription_dead_letter", LETTER_COLUMNS)
LETTERS_CLEARED: Final = delete("subscription_dead_letter", (("subscription", "text"),))

READ_SUBSCRIPTIONS: Final = """
    SELECT named.name, named.filter::text AS filter, named.max_tries, named.created, named.generation, named.is_settled,
        members.names, members.instances, members.joined, members.seen, members.seconds
    FROM subscription AS named
    CROSS JOIN LATERAL (
        SELECT array_agg(name) AS names, array_agg(instance) AS instances, array_agg(joined) AS joined,
            array_agg(seen) AS seen, array_agg(seconds) AS seconds
        FROM subscription_member WHERE subscription = named.name
    ) AS members
    WHERE named.name = ANY ($1)
"""

_OWN: Final = """
    share.subscription = said.subscription AND share.partition = said.partition AND share.share = said.share
    AND share.owner = said.owner AND share.epoch = said.epoch
"""
# Nobody has handled what does not exist yet: a database that went back in time does not take it down.
ACKNOWLEDGE: Final = f"""
    UPDATE subscription_share AS share
    SET position = said.position, trying = said.trying, tries = said.tries, trial = said.trial
    FROM unnest(
        $1::text[], $2::uuid[], $3::smallint[], $4::smallint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::integer[],
        $9::smallint[]
    ) AS said (subscription, owner, partition, share, epoch, position, trying, tries, trial)
    JOIN partition ON partition.id = said.partition
    WHERE {_OWN} AND said.position BETWEEN share.position AND partition.sequence
"""
# An event that was passed over already has failed once more only if it is being delivered again.
FAIL: Final = f"""
    INSERT INTO subscription_dead_letter AS letter
        (subscription, partition, sequence, share, event_id, error, tries, at)
    SELECT said.subscription, said.partition, said.sequence, said.share, said.event_id, said.error, said.tries, $10
    FROM unnest(
        $1::text[], $2::uuid[], $3::smallint[], $4::smallint[], $5::bigint[], $6::bigint[], $7::uuid[], $8::text[],
        $9::integer[]
    ) AS said (subscription, owner, partition, share, epoch, sequence, event_id, error, tries)
    JOIN subscription_share AS share ON {_OWN}
    WHERE said.sequence > share.position OR EXISTS (
        SELECT FROM subscription_dead_letter AS known WHERE known.subscription = said.subscription
            AND known.partition = said.partition AND known.sequence = said.sequence AND known.again
    )
    ON CONFLICT (subscription, partition, sequence) DO UPDATE
    SET error = excluded.error, tries = excluded.tries, at = excluded.at, again = false
"""
KEEP_LETTERS_FEW: Final = f"""
    DELETE FROM subscription_dead_letter AS letter USING (
        SELECT listed.subscription, listed.partition, listed.sequence FROM unnest($1::text[]) AS named (name)
        CROSS JOIN LATERAL (
            SELECT subscription, partition, sequence FROM subscription_dead_letter WHERE subscription = named.name
            ORDER BY at DESC, partition, sequence OFFSET {MAX_DEAD_LETTERS}
        ) AS listed
    ) AS oldest
    WHERE letter.subscription = oldest.subscription AND letter.partition = oldest.partition
        AND letter.sequence = oldest.sequence
"""
DEAL_WITH: Final = f"""
    DELETE FROM subscription_dead_letter AS letter
    USING unnest($1::text[], $2::uuid[], $3::smallint[], $4::smallint[], $5::bigint[], $6::bigint[])
        AS said (subscription, owner, partition, share, epoch, sequence), subscription_share AS share
    WHERE {_OWN} AND letter.subscription = said.subscription AND letter.partition = said.partition
        AND letter.sequence = said.sequence AND letter.again
"""
READ_SHARES: Final = """
    SELECT subscription, partition, share, position, owner, epoch, trying, tries, trial, suspect_up_to
    FROM subscription_share WHERE subscription = ANY ($1)
"""
READ_AGAIN: Final = """
    SELECT subscription, partition, share, sequence FROM subscription_dead_letter
    WHERE subscription = ANY ($1) AND again ORDER BY subscription, partition, sequence
"""
READ_LETTERS: Final = """
    SELECT named.name AS subscription, letters.number, letter.partition, letter.share, letter.sequence,
        letter.event_id, letter.error, letter.tries, letter.at, letter.again
    FROM unnest($1::text[]) AS named (name)
    CROSS JOIN LATERAL (
        SELECT count(*) AS number FROM subscription_dead_letter WHERE subscription = named.name
    ) AS letters
    CROSS JOIN LATERAL (
        SELECT * FROM subscription_dead_letter WHERE subscription = named.name ORDER BY at, partition, sequence LIMIT $2
    ) AS letter ORDER BY letter.at, letter.partition, letter.sequence
"""
READ_ENDS: Final = "SELECT id, sequence FROM partition"
LIST_SUBSCRIPTIONS: Final = """
    SELECT listed.name, listed.filter::text AS filter, listed.max_tries, listed.created,
        (SELECT count(*) FROM subscription_member WHERE subscription = listed.name) AS members,
        (SELECT count(*) FROM subscription_dead_letter WHERE subscription = listed.name) AS letters,
        (
            SELECT coalesce(sum(lag), 0)::bigint FROM (
                SELECT greatest(max(partition.sequence - share.position), 0) AS lag
                FROM subscription_share AS share JOIN partition ON partition.id = share.partition
                WHERE share.subscription = listed.name GROUP BY share.partition
            ) AS by_partition
        ) AS lag
    FROM (SELECT * FROM subscription WHERE name > $1 ORDER BY name LIMIT $2) AS listed ORDER BY listed.name
"""

Said = TypeVar("Said", bound=ShareReference)


class Subscriptions(Subject):
    """The named subscriptions that a batch's requests are about."""

    def __init__(self) -> None:
        self.syncs: dict[str, list[SyncSubscription]] = {}
        """What members say, by subscription."""
        self.whole: set[str] = set()
        """Subscriptions that are loaded with everything."""
        self.settling: set[str] = set()
        """Those of them whose dead letters are all loaded."""
        self.pages: set[str] = set()
        """Names; a page of all subscriptions is read behind each."""

    def load(self, reading: Reading, work: UnitOfWork) -> Awaitable[None] | None:
        return self._load(reading, work) if self.syncs or self.whole or self.pages else None

    async def _load(self, reading: Reading, work: UnitOfWork) -> None:
        driver, subscribing = reading.driver, work.subscribing
        for after in self.pages:
            subscribing.pages[after] = await _read_page(driver, after)
        names = self.syncs.keys() | self.whole
        if not names:
            return
        for row in await driver.fetch(READ_SUBSCRIPTIONS, list(names)):
            subscribing.known[row["name"]] = subscription_from(row)
        await self._take_what_is_said(driver, work)
        records = {name: record for name, record in subscribing.known.items() if self._needs_shares(record, work)}
        if records.keys() | self.whole:
            for row in await driver.fetch(READ_ENDS):
                subscribing.ends[row["id"]] = row["sequence"]
        if records:
            await _read_shares(driver, records)
        if told := [name for name in self.whole if name in records]:
            most = MAX_DEAD_LETTERS if self.settling else LETTERS_TOLD
            for row in await driver.fetch(READ_LETTERS, told, most):
                record = records[row["subscription"]]
                record.dead_letter_count = row["number"]
                record.dead_letters.append(letter_from(row))

    def _needs_shares(self, record: SubscriptionRecord, work: UnitOfWork) -> bool:
        """Return whether something may change about the subscription's shares, or somebody must hear of them."""
        syncs = self.syncs.get(record.name, ())
        return (
            record.name in self.whole
            or not record.is_settled
            or any(member.ends < work.now for member in record.members.values())
            or any(_is_news(record, sync) for sync in syncs)
        )

    async def _take_what_is_said(self, driver: Connection, work: UnitOfWork) -> None:
        syncs = [sync for name, syncs in self.syncs.items() if name in work.subscribing.known for sync in syncs]
        work.subscribing.speaking.update(sync.instance for sync in syncs)
        failed = _said(syncs, lambda sync: sync.failed, "sequence", "event_id", "error", "tries")
        if failed:
            await driver.execute(FAIL, *columns_of(failed), work.now)
            await driver.execute(KEEP_LETTERS_FEW, list({row[0] for row in failed}))
        if dealt_with := _said(syncs, lambda sync: sync.dealt_with, "sequence"):
            await driver.execute(DEAL_WITH, *columns_of(dealt_with))
        if acknowledged := _said(syncs, lambda sync: sync.acknowledged, "position", "trying", "tries", "trial"):
            await driver.execute(ACKNOWLEDGE, *columns_of(acknowledged))

    def parts(self, work: UnitOfWork, sequence: int) -> Iterable[tuple[Part, Sequence[Row]]]:
        return _parts(work.subscribing) if work.subscribing.has_changed else ()


def _is_news(record: SubscriptionRecord, sync: SyncSubscription) -> bool:
    member = record.members.get(sync.member)
    return (
        sync.joins
        or sync.leaves
        or bool(sync.given_back)
        or sync.generation != record.generation
        or member is None
        or member.instance != sync.instance
    )


def _said(
    syncs: Iterable[SyncSubscription], read: Callable[[SyncSubscription], Iterable[Said]], *fields: str
) -> list[Row]:
    """Return a row for each share, or event, of which members say something; what is said last counts."""
    key = 6 if fields[0] == "sequence" else 5
    rows: dict[Row, Row] = {}
    for sync in syncs:
        for said in read(sync):
            told = (getattr(said, name) for name in fields)
            row = (sync.name, sync.instance, said.partition, said.share, said.epoch, *told)
            rows[row[:key]] = row
    return list(rows.values())


async def _read_shares(driver: Connection, records: dict[str, SubscriptionRecord]) -> None:
    for row in await driver.fetch(READ_SHARES, list(records)):
        share = ShareRecord(*row[1:])
        records[row["subscription"]].shares[share.name] = share
    for row in await driver.fetch(READ_AGAIN, list(records)):
        records[row["subscription"]].again.append(AgainRecord(*row[1:]))


async def _read_page(driver: Connection, after: str) -> SubscriptionPage:
    rows = await driver.fetch(LIST_SUBSCRIPTIONS, after, SUBSCRIPTIONS_PER_PAGE + 1)
    listed = [_listed(row) for row in rows[:SUBSCRIPTIONS_PER_PAGE]]
    return SubscriptionPage(listed, listed[-1].name if len(rows) > len(listed) else None)


def _listed(row: Record) -> SubscriptionStatus:
    return SubscriptionStatus(
        name=row["name"],
        filter=EventFilter.model_validate_json(row["filter"]),
        max_tries=row["max_tries"],
        created=row["created"],
        lag=row["lag"],
        member_count=row["members"],
        dead_letter_count=row["letters"],
    )


def subscription_from(row: Record) -> SubscriptionRecord:
    """Return the subscription of a row of READ_SUBSCRIPTIONS, without its shares."""
    members = zip(*(row[name] or () for name in ("names", "instances", "joined", "seen", "seconds")), strict=True)
    return SubscriptionRecord(
        row["name"],
        EventFilter.model_validate_json(row["filter"]),
        row["max_tries"],
        row["created"],
        row["generation"],
        row["is_settled"],
        {member[0]: MemberRecord(*member) for member in members},
    )


def letter_from(row: Record) -> DeadLetter:
    """Return the dead letter of a row of READ_LETTERS."""
    return DeadLetter(
        partition=row["partition"],
        share=row["share"],
        sequence=row["sequence"],
        event_id=row["event_id"],
        error=row["error"],
        tries=row["tries"],
        at=row["at"],
        again=row["again"],
    )


def _parts(subscribing: Subscribing) -> Iterator[tuple[Part, Sequence[Row]]]:
    known = subscribing.known
    yield SUBSCRIPTIONS_REMOVED, [(name,) for name in sorted(subscribing.removed)]
    yield SUBSCRIPTIONS_SET, [_subscription_values(known[name]) for name in sorted(subscribing.changed)]
    yield MEMBERS_GONE, sorted(subscribing.members_gone)
    heard = [(name, known[name].members[member]) for name, member in sorted(subscribing.members_heard)]
    yield (
        MEMBERS_HEARD,
        [(name, one.name, one.instance, one.joined, one.seen, one.seconds) for name, one in heard],
    )
    yield SHARES_SET, [values for name in sorted(subscribing.shares_changed) for values in _share_values(known[name])]
    yield LETTERS_CLEARED, [(name,) for name in sorted(subscribing.reborn)]
    settled = subscribing.letters_settled
    yield LETTERS_PUT_BACK, sorted(subscribing.letters_put_back - settled.keys())
    yield LETTERS_AGAIN, sorted(letter for letter, again in settled.items() if again)
    yield LETTERS_DROPPED, sorted(letter for letter, again in settled.items() if not again)


def _subscription_values(record: SubscriptionRecord) -> Row:
    wanted = record.filter.model_dump_json(exclude_none=True)
    return record.name, wanted, record.max_tries, record.created, record.generation, record.is_settled


def _share_values(record: SubscriptionRecord) -> Iterator[Row]:
    for name in sorted(record.shares):
        share = record.shares[name]
        yield (
            record.name,
            *name,
            share.position,
            share.owner,
            share.epoch,
            share.trying,
            share.tries,
            share.trial,
            share.suspect_up_to,
        )
