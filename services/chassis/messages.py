"""Rows to messages. A column becomes the field of its name; what kind of value that is, the contract says.

bill_of = MessageOf(pb.Bill, pay_time="paid_at")
bill_of(row, lines=map(line_of, lines))
"""

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Any, Generic, Protocol, TypeVar

from google.protobuf import json_format
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from nexus.type.v1.money_pb2 import Money
from services.chassis.clock import moment, timestamp

M = TypeVar("M", bound=Message)
_Convert = Callable[[Any], Any]


class Columns(Protocol):
    """A row, or a mapping."""

    def keys(self) -> Iterable[str]: ...

    def __getitem__(self, column: str, /) -> Any: ...


class MessageOf(Generic[M]):
    """Makes messages of one kind from rows.

    Text becomes an enum's value ("PAID" or "paid" → BILL_STATE_PAID), timestamptz a Timestamp, interval a Duration,
    numeric and date text, jsonb (as text) messages and maps, and a number an amount of Money in the row's
    `<column>_currency` or `currency`. NULL leaves a field unset.
    """

    def __init__(self, kind: type[M], without: Iterable[str] = (), **columns: str) -> None:
        """`columns` has the columns of the fields that are named otherwise; `without`, the fields that rows do not
        have and calls need not give."""
        self._kind = kind
        self._fields = kind.DESCRIPTOR.fields_by_name
        self._without = frozenset(without)
        self._columns = columns
        self._plans: dict[tuple[str, ...], list[tuple[str, str, _Convert | None, str]]] = {}
        for field in (*columns, *self._without):
            assert field in self._fields, f"{kind.DESCRIPTOR.full_name} has no field {field}"

    def __call__(self, row: Columns, **fields: Any) -> M:
        """`fields` come instead of the row's, as the message's constructor takes them."""
        names = (*row.keys(), "|", *fields)
        plan = self._plans.get(names)
        if plan is None:
            plan = self._plans[names] = self._plan(frozenset(row.keys()), fields)
        for field, column, convert, currency in plan:
            value = row[column]
            if value is None:
                continue
            if currency:
                fields[field] = Money(currency=row[currency], minor_units=value)
            else:
                fields[field] = value if convert is None else convert(value)
        return self._kind(**fields)

    def _plan(self, columns: frozenset[str], given: Mapping[str, Any]) -> list[tuple[str, str, _Convert | None, str]]:
        """(field, column, conversion, column of the currency) of what is to be read of such rows."""
        plan = []
        for name, field in self._fields.items():
            column = self._columns.get(name, name)
            if name in given or (name in self._without and column not in columns):
                continue
            assert column in columns, f"{self._kind.DESCRIPTOR.full_name}: rows have no column {column}"
            currency = ""
            if field.message_type is Money.DESCRIPTOR:
                currency = next(each for each in (f"{column}_currency", "currency") if each in columns)
            plan.append((name, column, _conversion(field), currency))
        return plan


def _conversion(field: Any) -> _Convert | None:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        return _json
    if kind is not None:
        convert = _message_conversion(GetMessageClass(kind))
        return (lambda values: [convert(value) for value in _json(values)]) if field.is_repeated else convert
    if field.enum_type is not None:
        number = _number_in(field.enum_type)
        return (lambda values: [number(value) for value in values]) if field.is_repeated else number
    if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated:
        return _text
    return None


def _message_conversion(kind: type[Message]) -> _Convert:
    def convert(value: Any) -> Message:
        if isinstance(value, datetime):
            return timestamp(value)
        if isinstance(value, timedelta):
            duration = Duration()
            duration.FromTimedelta(value)
            return duration
        return value if isinstance(value, Message) else json_format.ParseDict(_json(value), kind())

    return convert


def _json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _text(value: Any) -> str:
    if isinstance(value, Decimal):
        digits = f"{value:f}"  # all of them: `normalize` would round to the context's 28
        return digits.rstrip("0").rstrip(".") if "." in digits else digits
    return value.isoformat() if isinstance(value, date) else str(value)


@cache
def _prefix(enum: EnumDescriptor) -> str:
    """What the names of the enum's values begin with: buf's ENUM_VALUE_PREFIX, and ENUM_ZERO_VALUE_SUFFIX."""
    return enum.values_by_number[0].name.removesuffix("UNSPECIFIED")


def _number_in(enum: EnumDescriptor) -> _Convert:
    numbers = {value.name.removeprefix(_prefix(enum)): value.number for value in enum.values}
    return lambda value: value if isinstance(value, int) else numbers[value.upper()] if value else 0


def text_of(enum: Any, value: int) -> str:
    """An enum's value as rows have it: BILL_STATE_PAID → "PAID"; "" for the unspecified one."""
    name: str = enum.Name(value)
    return name.removeprefix(_prefix(enum.DESCRIPTOR)) if value else ""


def moment_in(message: Any, field: str) -> datetime | None:
    """The moment in a field of a message; None if there is none."""
    return moment(getattr(message, field)) if message.HasField(field) else None


def values_of(message: Any, *fields: str) -> dict[str, Any]:
    """Fields of a message, for columns of the same names: `table.insert(**values_of(request, "key", "name"))`. None for
    a message, or a time, that is not set."""
    return {field: _value(message, field) for field in fields}


def _value(message: Any, name: str) -> Any:
    value = getattr(message, name)
    return None if isinstance(value, Message) and not message.HasField(name) else value
