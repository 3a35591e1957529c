"""Rows become messages by the names of their columns and the types of the fields."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from nexus.finance.billing_service.v1 import plans_pb2, usage_pb2
from nexus.finance.billing_service.v1 import subscriptions_pb2 as pb
from nexus.finance.ledger_mgr.v1.books_pb2 import Account
from nexus.modules.puabo_os.v1.tenants_pb2 import EraseTenantRequest
from nexus.type.v1.money_pb2 import Money
from services.chassis.clock import moment
from services.chassis.messages import MessageOf, moment_in, text_of, values_of

NOON = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)

BILL = {
    "bill_id": "019aaf6e-2e6f-7d4c-8000-0123456789ab",
    "subscription_id": "019aaf6e-2e6f-7d4c-8000-0123456789ac",
    "customer_id": "019aaf6e-2e6f-7d4c-8000-0123456789ad",
    "state": "PAST_DUE",
    "total": 1_250,
    "currency": "EUR",
    "attempts": 2,
    "next_attempt_time": NOON,
    "payment_id": None,
    "invoice_id": "",
    "create_time": NOON,
    "paid_at": None,
    "tax": None,
    "request_hash": b"not in the contract",
}
bill_of = MessageOf(pb.Bill, without=["lines"], pay_time="paid_at")


def test_a_row_becomes_a_message() -> None:
    bill = bill_of(BILL)
    assert bill.bill_id == BILL["bill_id"]
    assert bill.state == pb.BILL_STATE_PAST_DUE
    assert bill.total == Money(currency="EUR", minor_units=1_250)
    assert bill.attempts == 2
    assert moment(bill.next_attempt_time) == NOON


def test_null_leaves_a_field_unset() -> None:
    bill = bill_of(BILL)
    assert bill.payment_id == ""
    assert not bill.HasField("pay_time")
    assert not bill.HasField("tax")


def test_a_field_may_be_given_instead() -> None:
    line = pb.BillLine(description="a seat")
    bill = bill_of(BILL, lines=[line], attempts=7, tax=Money(currency="EUR", minor_units=9))
    assert (bill.lines[0], bill.attempts, bill.tax.minor_units) == (line, 7, 9)
    assert bill_of(BILL).attempts == 2


def test_a_column_may_have_another_name() -> None:
    assert moment(bill_of({**BILL, "paid_at": NOON}).pay_time) == NOON


def test_an_amount_has_the_currency_that_is_named_for_it() -> None:
    assert bill_of({**BILL, "total_currency": "CHF"}).total.currency == "CHF"


def test_enums_are_written_in_either_case_or_as_numbers_and_must_be_known() -> None:
    assert bill_of({**BILL, "state": "paid"}).state == pb.BILL_STATE_PAID
    assert bill_of({**BILL, "state": pb.BILL_STATE_OPEN}).state == pb.BILL_STATE_OPEN
    assert bill_of({**BILL, "state": ""}).state == pb.BILL_STATE_UNSPECIFIED
    with pytest.raises(KeyError):
        bill_of({**BILL, "state": "LOST"})


def test_a_field_without_a_column_is_a_mistake() -> None:
    row = {column: value for column, value in BILL.items() if column != "attempts"}
    with pytest.raises(AssertionError, match="attempts"):
        bill_of(row)
    with pytest.raises(AssertionError, match="attemptz"):
        MessageOf(pb.Bill, attemptz="attempts")


def test_json_becomes_messages_and_maps() -> None:
    plan = MessageOf(plans_pb2.Plan, without=["prices"])(
        {
            "plan_id": "p",
            "key": "gold",
            "name": "Gold",
            "description": "",
            "features": '[{"key": "seats", "limit": "5"}]',
            "archived": False,
            "etag": "e",
            "create_time": NOON,
        }
    )
    assert [feature.key for feature in plan.features] == ["seats"]
    account_of = MessageOf(
        Account, without=["type", "state", "allow_overdraft", "overdraft_limit", "create_time", "etag"]
    )
    assert dict(account_of({"name": "a", "metadata": '{"a": "b"}'}).metadata) == {"a": "b"}


def test_numbers_and_days_become_text() -> None:
    sum_of = MessageOf(usage_pb2.UsageSum, without=["start_time", "end_time", "events"])
    assert sum_of({"value": Decimal("10.500"), "group": ""}).value == "10.5"
    assert sum_of({"value": Decimal("0.00"), "group": ""}).value == "0"
    assert sum_of({"value": Decimal("9" * 78), "group": ""}).value == "9" * 78
    assert sum_of({"value": Decimal("1E+3"), "group": date(2026, 3, 1)}) == usage_pb2.UsageSum(
        value="1000", group="2026-03-01"
    )


def test_intervals_become_durations() -> None:
    request_of = MessageOf(EraseTenantRequest, without=["tenant_id", "confirm_tenant_id"])
    delay = request_of({"delay": timedelta(minutes=2, milliseconds=5)}).delay
    assert (delay.seconds, delay.nanos) == (120, 5_000_000)


def test_enum_values_as_rows_have_them() -> None:
    assert text_of(pb.BillState, pb.BILL_STATE_PAST_DUE) == "PAST_DUE"
    assert text_of(pb.BillState, pb.BILL_STATE_UNSPECIFIED) == ""


def test_what_is_not_set_in_a_message_is_none_in_a_row() -> None:
    bill = bill_of(BILL)
    unset: dict[str, Any] = {"pay_time": None, "tax": None, "payment_id": "", "lines": []}
    assert values_of(bill, *unset) == unset
    assert values_of(bill, "total", "create_time") == {"total": bill.total, "create_time": bill.create_time}


def test_a_moment_that_is_not_there_is_none() -> None:
    bill = bill_of(BILL)
    assert moment_in(bill, "create_time") == NOON
    assert moment_in(bill, "pay_time") is None


def test_fields_of_a_message_are_the_values_of_a_row() -> None:
    plan = plans_pb2.Plan(key="gold", name="Gold", features=[plans_pb2.Feature(key="seats")])
    assert values_of(plan, "key", "features") == {"key": "gold", "features": plan.features}
    with pytest.raises(AttributeError):
        values_of(plan, "keys")
