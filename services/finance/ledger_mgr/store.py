"""The SQL of ledger-mgr."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from nexus.finance.ledger_mgr.v1 import books_pb2 as pb
from nexus.finance.ledger_mgr.v1.bookkeeping_pb2 import (
    ListAccountEntriesRequest,
    ListAccountsRequest,
    ListHoldsRequest,
)
from nexus.finance.ledger_mgr.v1.events_pb2 import Change
from nexus.finance.ledger_mgr.v1.ledger_pb2 import ListEntriesRequest
from services.chassis.clock import moment, now, timestamp
from services.chassis.database import Database
from services.chassis.messages import MessageOf, moment_in, values_of
from services.chassis.table import Row, Table
from services.finance.ledger_mgr import chain
from services.finance.ledger_mgr.books import HOLD, TRANSACTION, Balance, Books, Needs

_HEAD = """
SELECT position, hash, update_time, agreed_basis_points,
       (SELECT plan_id FROM nexus.tenants WHERE tenant_id = nexus.tenant_id()) AS plan_id
FROM ledgers WHERE tenant_id = nexus.tenant_id()
"""
# One look-up in the index for each key, however the planner guesses about a table that grows.
_KEYS = """
SELECT found.* FROM unnest($1::text[], $2::text[]) AS wanted (actor, key), LATERAL (
    SELECT actor, idempotency_key, request_hash, change FROM log
    WHERE tenant_id = nexus.tenant_id() AND actor = wanted.actor AND idempotency_key = wanted.key
      AND idempotency_key <> '' OFFSET 0) AS found
"""
_ACCOUNT = "name, type, state, allow_overdraft, overdraft_limit, metadata, create_time, changed_at"
_BALANCE = "account, currency, debits, credits, held_debits, held_credits"
_BOOKS = f"""
SELECT {_ACCOUNT}, {_BALANCE} FROM unnest($1::text[]) AS wanted (wanted_name), LATERAL (
    SELECT {_ACCOUNT} FROM accounts WHERE tenant_id = nexus.tenant_id() AND name = wanted_name OFFSET 0) AS a
LEFT JOIN LATERAL (
    SELECT {_BALANCE} FROM balances WHERE tenant_id = nexus.tenant_id() AND account = name OFFSET 0) AS b ON true
"""
_WRITE = """
WITH logged AS (
    INSERT INTO log (create_time, position, actor, idempotency_key, request_hash, change, hash)
    SELECT $1::timestamptz, * FROM unnest($2::bigint[], $3::text[], $4::text[], $5::bytea[], $6::bytea[], $7::bytea[])
), counted AS (
    INSERT INTO balances (account, currency, debits, credits, held_debits, held_credits)
    SELECT * FROM unnest($8::text[], $9::text[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[])
    ON CONFLICT (tenant_id, account, currency) DO UPDATE SET debits = excluded.debits, credits = excluded.credits,
        held_debits = excluded.held_debits, held_credits = excluded.held_credits
), moved AS (
    INSERT INTO legs (create_time, account, position, leg, currency, debit, credit, balance, effective_time)
    SELECT $1::timestamptz, account, position, leg, currency, debit, credit, balance, effective
    FROM unnest($14::text[], $15::bigint[], $16::smallint[], $17::text[], $18::bigint[], $19::bigint[], $20::bigint[],
                $21::timestamptz[]) AS l (account, position, leg, currency, debit, credit, balance, effective)
), indexed AS (
    INSERT INTO transactions (transaction_id, position, kind, reference, metadata, effective_time, reverted_by)
    SELECT id, position, kind, reference, metadata, effective, reverted_by
    FROM unnest($22::uuid[], $23::bigint[], $24::smallint[], $25::text[], $26::jsonb[], $27::timestamptz[], $28::uuid[])
        AS t (id, position, kind, reference, metadata, effective, reverted_by)
)
UPDATE ledgers SET position = $29, hash = $30, update_time = $1::timestamptz, agreed_basis_points = $31
WHERE tenant_id = nexus.tenant_id()
"""
_WRITE_HOLDS = """
INSERT INTO holds (hold_id, position, state, debit_account, credit_account, currency, amount, captured, reference,
                   expire_time, resolve_time)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
ON CONFLICT (tenant_id, hold_id) DO UPDATE SET state = excluded.state, captured = excluded.captured,
    resolve_time = excluded.resolve_time
"""
account_of = MessageOf(pb.Account, etag="changed_at")
_LOGGED, _WITH_CHANGE = "{} AS x JOIN log l USING (tenant_id, position)", "x.*, l.change"
_UNDER = "({column} = {{}} OR ({column} > {{}} || ':' AND {column} < {{}} || ';'))"
"""The names below one: ';' comes right after ':'."""


class LedgerStore:
    """The books of the call's tenant."""

    def __init__(self, database: Database, default_basis_points: int, basis_points: Mapping[str, int]) -> None:
        """`basis_points` are what the platform is due by plan."""
        self._database = database
        self._default_basis_points = default_basis_points
        self._basis_points = basis_points
        self._accounts = Table(database, "accounts", key="name", order="name", columns=_ACCOUNT)
        self._log = Table(database, "log", key="position", order="position")
        self._holds = Table(database, _LOGGED.format("holds"), key="hold_id", columns=_WITH_CHANGE)
        self._transactions = Table(database, _LOGGED.format("transactions"), key="position", columns=_WITH_CHANGE)
        legs_order = "position DESC, leg DESC"
        self._legs = Table(database, _LOGGED.format("legs"), key="leg", order=legs_order, columns=_WITH_CHANGE)

    async def head(self) -> Row | None:
        """None for a tenant that has never posted."""
        return await self._database.fetchrow(_HEAD)

    async def lock_head(self, mode: str = "UPDATE") -> Row:
        """The head of the log. Nobody else posts until the transaction ends."""
        head = await self._database.fetchrow(f"{_HEAD} FOR {mode} OF ledgers")
        if head is None:
            await self._database.execute("INSERT INTO ledgers DEFAULT VALUES ON CONFLICT DO NOTHING")
            head = await self._database.fetchrow(f"{_HEAD} FOR {mode} OF ledgers")
        assert head is not None
        return head

    def basis_points(self, head: Row | None, plan_id: str) -> int:
        """What the platform is due of a settlement: as agreed with the tenant, else by its plan."""
        if head is not None and head["agreed_basis_points"] is not None:
            return int(head["agreed_basis_points"])
        return self._basis_points.get(plan_id, self._default_basis_points)

    async def books(self, tenant_id: str, head: Row, needs: Needs) -> Books:
        """What the books say of all that is needed. The head is locked, so it stays true."""
        books = Books(
            tenant_id,
            timestamp(max(now(), head["update_time"])),
            position=head["position"],
            platform_basis_points=self.basis_points(head, head["plan_id"]),
            agreed_basis_points=head["agreed_basis_points"],
        )
        if needs.keys:
            actors, keys = zip(*needs.keys, strict=True)
            for row in await self._database.fetch(_KEYS, actors, keys):
                known = row["request_hash"], Change.FromString(row["change"])
                books.keys[row["actor"], row["idempotency_key"]] = known
        names = set(needs.accounts)
        if needs.holds:
            for hold in await self.holds(needs.holds):
                books.holds[hold.hold_id] = hold
                names.update((hold.debit_account, hold.credit_account))
        if needs.transactions:
            for transaction in await self.transactions(needs.transactions):
                books.transactions[transaction.transaction_id] = transaction
                names.update(leg.account for leg in transaction.legs)
        if needs.references:
            await self._read_references(books, needs)
        if names:
            for row in await self._database.fetch(_BOOKS, sorted(names)):
                if row["name"] not in books.accounts:
                    books.accounts[row["name"]] = account_of(row)
                if row["currency"] is not None:
                    books.balances[row["name"], row["currency"]] = balance_from(row)
        return books

    async def _read_references(self, books: Books, needs: Needs) -> None:
        for kind, table in ((TRANSACTION, "transactions"), (HOLD, "holds")):
            wanted = [reference for owner, reference in needs.references if owner == kind]
            if wanted:
                rows = await self._database.fetch(
                    f"SELECT reference, {kind}_id AS id FROM {table} "
                    "WHERE tenant_id = nexus.tenant_id() AND reference <> '' AND reference = ANY ($1)",
                    wanted,
                )
                books.references.update({(kind, row["reference"]): row["id"] for row in rows})

    async def write(self, books: Books, previous: bytes) -> None:
        """Store what was recorded; `previous` is the hash of the log's last entry."""
        micros = books.now.ToMicroseconds()
        changes = [entry.change.SerializeToString(deterministic=True) for entry in books.entries]
        hashes = []
        for entry, change in zip(books.entries, changes, strict=True):
            cause = entry.cause
            previous = chain.link(
                previous, books.tenant_id, entry.position, micros, cause.actor, cause.key, cause.request_hash, change
            )
            hashes.append(previous)
        balances = [(*place, *has) for place, has in books.changed(books.balances).items()]
        posted = [
            books.transactions[entry.change.transaction_posted.transaction.transaction_id]
            for entry in books.entries
            if entry.change.HasField("transaction_posted")
        ]
        await self._database.execute(
            _WRITE,
            moment(books.now),
            [entry.position for entry in books.entries],
            [entry.cause.actor for entry in books.entries],
            [entry.cause.key for entry in books.entries],
            [entry.cause.request_hash for entry in books.entries],
            changes,
            hashes,
            *_columns(balances, 6),
            *_columns(books.legs, 8),
            *_columns([_transaction_row(transaction) for transaction in posted], 7),
            books.position,
            previous,
            books.agreed_basis_points,
        )
        await self._write_rare(books)

    async def _write_rare(self, books: Books) -> None:
        if accounts := books.changed(books.accounts).values():
            same = ("name", "type", "state", "allow_overdraft", "overdraft_limit", "metadata", "create_time")
            await self._accounts.put_all(
                {**values_of(account, *same), "changed_at": int(account.etag)} for account in accounts
            )
        if holds := books.changed(books.holds).values():
            placed = {entry.change.hold_placed.hold.hold_id: entry.position for entry in books.entries}
            await self._database.executemany(
                _WRITE_HOLDS, [_hold_row(hold, placed.get(hold.hold_id, 0)) for hold in holds]
            )
        transactions = books.changed(books.transactions).values()
        if reverted := [(each.transaction_id, each.reverted_by) for each in transactions if each.reverted_by]:
            await self._database.executemany(
                "UPDATE transactions SET reverted_by = $2 WHERE tenant_id = nexus.tenant_id() AND transaction_id = $1",
                reverted,
            )

    async def plan_id(self, tenant_id: str) -> str | None:
        """None for a tenant that there is not."""
        plan_id: str | None = await self._database.fetchval(
            "SELECT plan_id FROM nexus.tenants WHERE tenant_id = $1 AND state IN ('active', 'suspended')", tenant_id
        )
        return plan_id

    async def holds(self, ids: Iterable[str] = (), references: Sequence[str] = ()) -> list[pb.Hold]:
        return [hold_of(row) for row in await self._named(HOLD, ids, references)]

    async def transactions(self, ids: Iterable[str] = (), references: Sequence[str] = ()) -> list[pb.Transaction]:
        return [transaction_of(row) for row in await self._named(TRANSACTION, ids, references)]

    async def _named(self, kind: str, ids: Iterable[str], references: Sequence[str]) -> list[Row]:
        return await self._database.fetch(
            f"""
            SELECT {_WITH_CHANGE} FROM {_LOGGED.format(f"{kind}s")}
            WHERE tenant_id = nexus.tenant_id()
              AND (x.{kind}_id = ANY ($1) OR x.reference <> '' AND x.reference = ANY ($2))
            """,
            list(ids),
            references,
        )

    async def expired(self, limit: int) -> list[Row]:
        """Pending holds of all tenants whose time is over."""
        async with self._database.transaction(platform_wide=True):
            return await self._database.fetch(
                """
                SELECT h.tenant_id, h.hold_id FROM holds h JOIN nexus.tenants t USING (tenant_id)
                WHERE h.state = 1 AND h.expire_time <= now() AND t.state IN ('active', 'suspended')
                ORDER BY h.expire_time LIMIT $1
                """,
                limit,
            )

    async def accounts(self, names: Sequence[str]) -> dict[str, pb.Account]:
        return {name: account_of(row) for name, row in (await self._accounts.get_all(names)).items()}

    async def account_page(self, wanted: ListAccountsRequest, after: str, limit: int) -> list[pb.Account]:
        """By name, those after `after`."""
        key, value = wanted.metadata_key, wanted.metadata_value
        filters = {
            _UNDER.format(column="name"): (wanted.under,) * 3 if wanted.under else None,
            "type = {}": wanted.type or None,
            "state = {}": wanted.state or None,
            "metadata ? {}": key if key and not value else None,
            "metadata ->> {} = {}": (key, value) if key and value else None,
        }
        return [account_of(row) for row in await self._accounts.page(after, limit, filters=filters)]

    async def balances(self, names: Sequence[str], currency: str) -> list[Row]:
        return await self._database.fetch(
            f"""
            SELECT {_BALANCE} FROM balances
            WHERE tenant_id = nexus.tenant_id() AND account = ANY ($1) AND ($2 = '' OR currency = $2)
            ORDER BY account, currency
            """,
            names,
            currency,
        )

    async def balances_as_of(
        self, names: Sequence[str], currency: str, as_of: datetime, known: datetime | None
    ) -> list[Row]:
        """From the legs that took effect until then, of those that were posted until `known`."""
        return await self._database.fetch(
            """
            SELECT account, currency, sum(debit)::bigint AS debits, sum(credit)::bigint AS credits,
                   0::bigint AS held_debits, 0::bigint AS held_credits
            FROM legs
            WHERE tenant_id = nexus.tenant_id() AND account = ANY ($1) AND ($2 = '' OR currency = $2)
              AND effective_time <= $3 AND ($4::timestamptz IS NULL OR create_time <= $4)
            GROUP BY account, currency ORDER BY account, currency
            """,
            names,
            currency,
            as_of,
            known,
        )

    async def transaction_page(self, wanted: pb.TransactionFilter, before: str, limit: int) -> list[pb.Transaction]:
        """The latest posted first, those before position `before`."""
        touches = f"""EXISTS (SELECT FROM legs WHERE tenant_id = nexus.tenant_id() AND position = x.position
                                AND {_UNDER.format(column="account")})"""
        filters = {
            "position < {}": int(before) if before else None,
            touches: (wanted.account,) * 3 if wanted.account else None,
            "reference = {}": wanted.reference or None,
            "kind = {}": wanted.kind or None,
            "metadata @> {}": dict(wanted.metadata) or None,
            "effective_time >= {}": moment_in(wanted, "from_time"),
            "effective_time < {}": moment_in(wanted, "to_time"),
        }
        return [transaction_of(row) for row in await self._transactions.page("", limit, filters=filters)]

    async def entry_page(
        self, wanted: ListEntriesRequest | ListAccountEntriesRequest, before: str, limit: int
    ) -> list[Row]:
        """The latest posted first, those before `before`: "position.leg"."""
        filters = {
            "account = {}": wanted.account,
            "currency = {}": wanted.currency or None,
            "effective_time >= {}": moment_in(wanted, "from_time"),
            "effective_time < {}": moment_in(wanted, "to_time"),
            "(position, leg) < ({}, {})": tuple(map(int, before.split("."))) if before else None,
        }
        return await self._legs.page("", limit, filters=filters)

    async def hold_page(self, wanted: ListHoldsRequest, before: str, limit: int) -> list[pb.Hold]:
        """The latest first, those before the hold `before`."""
        filters = {
            "(debit_account = {} OR credit_account = {})": (wanted.account,) * 2 if wanted.account else None,
            "state = {}": wanted.state or None,
        }
        return [hold_of(row) for row in await self._holds.page(before, limit, filters=filters)]

    async def totals(self) -> list[Row]:
        return await self._database.fetch(
            "SELECT currency, sum(debits)::text AS debits, sum(credits)::text AS credits FROM balances "
            "WHERE tenant_id = nexus.tenant_id() GROUP BY currency ORDER BY currency"
        )

    async def log(self, after: int, limit: int) -> list[Row]:
        """Entries in order, those after this position."""
        return await self._log.page("", limit, filters={"position > {}": after})

    async def all_balances(self) -> dict[tuple[str, str], Balance]:
        rows = await self._database.fetch(f"SELECT {_BALANCE} FROM balances WHERE tenant_id = nexus.tenant_id()")
        return {(row["account"], row["currency"]): balance_from(row) for row in rows}


def balance_from(row: Row) -> Balance:
    return Balance(row["debits"], row["credits"], row["held_debits"], row["held_credits"])


def transaction_of(row: Row) -> pb.Transaction:
    transaction = Change.FromString(row["change"]).transaction_posted.transaction
    transaction.reverted_by = row["reverted_by"] or ""
    return transaction


def hold_of(row: Row) -> pb.Hold:
    hold = Change.FromString(row["change"]).hold_placed.hold
    hold.state = row["state"]
    hold.captured_minor_units = row["captured"]
    if row["resolve_time"] is not None:
        hold.resolve_time.FromDatetime(row["resolve_time"])
    return hold


def _transaction_row(transaction: pb.Transaction) -> tuple[Any, ...]:
    return (
        transaction.transaction_id,
        transaction.position,
        transaction.kind,
        transaction.reference,
        to_json(transaction.metadata),
        moment(transaction.effective_time),
        transaction.reverted_by or None,
    )


def _hold_row(hold: pb.Hold, position: int) -> tuple[Any, ...]:
    """`position` is that of its placing, for a hold that is new."""
    return (
        hold.hold_id,
        position,
        hold.state,
        hold.debit_account,
        hold.credit_account,
        hold.amount.currency,
        hold.amount.minor_units,
        hold.captured_minor_units,
        hold.reference,
        moment_in(hold, "expire_time"),
        moment_in(hold, "resolve_time"),
    )


def _columns(rows: Sequence[Sequence[Any]], width: int) -> Sequence[Sequence[Any]]:
    return list(zip(*rows, strict=True)) if rows else [()] * width


def to_json(metadata: Mapping[str, str]) -> str:
    return json.dumps(dict(metadata)) if metadata else "{}"
