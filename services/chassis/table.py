"""The statements that every table needs, so that a service's stores hold only those that are its own.

    self._bills = Table(service.database, "bills", key="bill_id", missing=BillNotFound)
    bill = await self._bills.insert(bill_id=new_id(), customer_id=customer_id, total=total)
    bill = await self._bills.update(bill["bill_id"], state="PAID", pay_time=now())

Names of tables and columns come from code and go into the statement; values go beside it. A statement's text depends on
which columns are named, not on their values, so the driver prepares each one once.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import count, islice
from typing import Any, TypeAlias

import asyncpg
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import ListValue
from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis.clock import moment
from services.chassis.database import Database

Row: TypeAlias = asyncpg.Record

_OF_TENANT = "tenant_id = nexus.tenant_id()"
_MessageList: Any = type(ListValue().values)
_ValueList: Any = type(FieldMask().paths)


class Table:
    """One table of the service: the rows of the tenant of the call or of `acting_for`.

    A value may be what a message has in a field: a Timestamp, a Duration, a list; other messages, lists of them and
    maps are for jsonb columns. Ids come back as text. Constraints that break come through as asyncpg's exceptions.
    """

    def __init__(
        self,
        database: Database,
        name: str,
        *,
        key: str,
        missing: Callable[..., Exception] | None = None,
        order: str = "",
        columns: str = "*",
        on_update: str = "",
        of_tenant: bool = True,
    ) -> None:
        """`key` is the column that names a row within its tenant. `missing` is what `require` raises, made with the
        key. `order` is the column that pages go by, upwards, another in every row; without one they go by the key,
        downwards: the latest first, where keys are UUIDv7. By several columns, or downwards, a page begins where a
        filter says. `columns` are what rows come with. `on_update` is what every update sets besides, in SQL that
        names columns with their table. One that is not `of_tenant` has rows of the platform: those of all."""
        self._database = database
        self._name = name
        self._key = key
        self._missing = missing
        self._order = order
        self._columns = columns
        self._on_update = on_update
        self._scope = _OF_TENANT if of_tenant else "true"

    async def get(self, key: object, /, *, lock: bool = False) -> Row | None:
        """`lock` keeps others from changing it until the transaction ends."""
        return await self.find(lock=lock, **{self._key: key})

    async def require(self, key: object, /, *, lock: bool = False) -> Row:
        """Raises what the table was made with as `missing`."""
        row = await self.get(key, lock=lock)
        if row is None:
            assert self._missing is not None, f"{self._name}: nobody has said what a missing row is"
            raise self._missing(**{self._key: key})
        return row

    async def get_all(self, keys: Iterable[object], /) -> dict[Any, Row]:
        """By key, those of the rows that there are."""
        return {row[self._key]: row for row in await self.select(f"{self._key} = ANY($1)", list(keys))}

    async def find(self, *, lock: bool = False, **equal: object) -> Row | None:
        """The row with these values, of columns that tell one row from all others."""
        query = _select(self._name, self._columns, self._scope, tuple(equal)) + (" FOR UPDATE" if lock else "")
        return await self._database.fetchrow(query, *map(stored, equal.values()))

    async def all(self, **equal: object) -> list[Row]:
        """In the order of their keys."""
        query = f"{_select(self._name, self._columns, self._scope, tuple(equal))} ORDER BY {self._order or self._key}"
        return await self._database.fetch(query, *map(stored, equal.values()))

    async def page(
        self, after: object, limit: int, /, *, filters: Mapping[str, object] | None = None, **equal: object
    ) -> list[Row]:
        """Rows in the order of the table, from the one after `after` on, "" for the first. What is None counts for
        nothing. `filters` are conditions that no column's name says, with {} for the value, several for a tuple, none
        for an empty one: {"create_time >= {}": since, "attention <> ''": ()}."""
        wanted = {f"{column} = {{}}": value for column, value in equal.items()} | dict(filters or {})
        if after:
            assert " " not in self._order, f"{self._name}: where a page by {self._order} begins, a filter says"
            wanted[f"{self._order or self._key} {'>' if self._order else '<'} {{}}"] = after
        values = [value for value in wanted.values() if value is not None]
        conditions = tuple(condition for condition, value in wanted.items() if value is not None)
        query = _page(self._name, self._columns, self._scope, self._order or f"{self._key} DESC", conditions)
        return await self._database.fetch(query, limit, *map(stored, _flat(values)))

    async def insert(self, **values: Any) -> Row:
        """Raises asyncpg.UniqueViolationError for one that is there already."""
        row = await self._database.fetchrow(_insert(self._name, self._columns, tuple(values), ""), *_stored(values))
        assert row is not None, "an insert without conflict returns its row"
        return row

    async def insert_new(self, **values: Any) -> Row | None:
        """None if a row with such a key is there already."""
        query = _insert(self._name, self._columns, tuple(values), "ON CONFLICT DO NOTHING")
        return await self._database.fetchrow(query, *_stored(values))

    async def insert_all(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Rows with the same columns each; those that are there already stay as they are."""
        rows = list(rows)
        if rows:
            query = _insert(self._name, "", tuple(rows[0]), "ON CONFLICT DO NOTHING")
            await self._database.executemany(query, [_stored(row) for row in rows])

    async def put(self, **values: Any) -> Row:
        """Insert a row, or set these columns of the one with its primary key."""
        query = _insert(self._name, self._columns, tuple(values), self._replacing(values))
        row = await self._database.fetchrow(query, *_stored(values))
        assert row is not None, "an upsert returns its row"
        return row

    async def put_all(self, rows: Iterable[Mapping[str, object]]) -> None:
        """`put` of many rows, with the same columns each."""
        rows = list(rows)
        if rows:
            query = _insert(self._name, "", tuple(rows[0]), self._replacing(rows[0]))
            await self._database.executemany(query, [_stored(row) for row in rows])

    def _replacing(self, columns: Iterable[str]) -> str:
        changes = [f"{column} = excluded.{column}" for column in columns if column != self._key]
        update = ", ".join([*changes, *([self._on_update] if self._on_update else [])])
        return f"ON CONFLICT ON CONSTRAINT {self._name}_pkey DO UPDATE SET {update}"

    async def update(
        self, key: object, /, *, where: Mapping[str, Any] | None = None, etag: str = "", **values: Any
    ) -> Row | None:
        """None if there is no row with this key, or it is not as `where` has it, or not the one whose `etag` the caller
        has seen (AIP-154; "" is any)."""
        conditions = {self._key: key, **(where or {})}
        to_update = (self._name, self._columns, self._scope, self._on_update)
        query = _update(*to_update, tuple(conditions), tuple(values), bool(etag))
        seen = [etag] if etag else []
        return await self._database.fetchrow(query, *_stored(conditions), *_stored(values), *seen)

    async def change(self, key: object, /, **values: Any) -> Row:
        """Update a row that must be there: the transaction has locked it, or rows are never taken away."""
        row = await self.update(key, **values)
        assert row is not None, f"{self._name}: the row was there"
        return row

    async def delete(self, **equal: object) -> int:
        """Returns how many there were."""
        query = f"DELETE FROM {self._name} WHERE {_equal(self._scope, tuple(equal))}"
        return await self._database.execute(query, *_stored(equal))

    async def select(self, condition: str, /, *values: object) -> list[Row]:
        """What no values of columns tell: rows by a condition in SQL, with $1 and so on for `values`. It may end with
        ORDER BY and LIMIT."""
        query = f"SELECT {self._columns} FROM {self._name} WHERE {self._scope} AND {condition}"
        return await self._database.fetch(query, *map(stored, values))


def stored(value: Any) -> Any:
    """A value as the driver takes it."""
    if isinstance(value, Timestamp):
        return moment(value)
    if isinstance(value, Duration):
        return value.ToTimedelta()
    if isinstance(value, Message):
        return json_format.MessageToJson(value, indent=None)
    if isinstance(value, Mapping):
        return json.dumps(dict(value))
    if isinstance(value, _MessageList):
        return json.dumps([json_format.MessageToDict(each) for each in value])
    if isinstance(value, _ValueList):
        return list(value)
    return value


def _stored(values: Mapping[str, object]) -> list[Any]:
    return [stored(value) for value in values.values()]


def _flat(values: Iterable[object]) -> Iterator[object]:
    for value in values:
        yield from value if isinstance(value, tuple) else (value,)


def _equal(scope: str, columns: Sequence[str]) -> str:
    return " AND ".join([scope, *_assigned(columns, 1)])


def _assigned(columns: Sequence[str], first: int) -> list[str]:
    return [f"{column} = ${number}" for number, column in enumerate(columns, first)]


@cache
def _select(table: str, columns: str, scope: str, equal: tuple[str, ...]) -> str:
    return f"SELECT {columns} FROM {table} WHERE {_equal(scope, equal)}"


@cache
def _page(table: str, columns: str, scope: str, order: str, conditions: tuple[str, ...]) -> str:
    numbers = (f"${number}" for number in count(2))
    numbered = [condition.format(*islice(numbers, condition.count("{}"))) for condition in conditions]
    where = " AND ".join([scope, *numbered])
    return f"SELECT {columns} FROM {table} WHERE {where} ORDER BY {order} LIMIT $1"


@cache
def _insert(table: str, columns: str, inserted: tuple[str, ...], conflict: str) -> str:
    values = ", ".join(f"${number}" for number in range(1, len(inserted) + 1))
    returning = f"RETURNING {columns}" if columns else ""
    return f"INSERT INTO {table} ({', '.join(inserted)}) VALUES ({values}) {conflict} {returning}"


@cache
def _update(
    table: str,
    columns: str,
    scope: str,
    always: str,
    where: tuple[str, ...],
    changed: tuple[str, ...],
    if_seen: bool,
) -> str:
    assigned = ", ".join([*_assigned(changed, len(where) + 1), *([always] if always else [])])
    seen = f" AND etag::text = ${len(where) + len(changed) + 1}" if if_seen else ""
    return f"UPDATE {table} SET {assigned} WHERE {_equal(scope, where)}{seen} RETURNING {columns}"
