"""What the servicers of billing share: whom a call is about, and messages of rows."""

from collections.abc import Mapping
from typing import Any

from nexus.finance.billing_service.v1 import payments_pb2 as pb
from nexus.type.v1.faults import PermissionMissing
from services.chassis.context import RequestContext
from services.chassis.messages import MessageOf
from services.chassis.table import Row, Table
from services.finance.billing_service.payments import RETRYABLE

MANAGE = "billing.manage"

_payment = MessageOf(pb.Payment)
_operation = MessageOf(pb.PaymentOperation)
_failure_of = MessageOf(pb.PaymentFailure, code="failure", provider_reason="failure_reason")


def customer_of(customer_id: str, call: RequestContext) -> str:
    """The customer that a call is about: the caller, or somebody else's with the permission. Raises
    PermissionMissing."""
    own = call.user.user_id
    if customer_id and customer_id != own:
        require_manager(call)
    return customer_id or own


def require_manager(call: RequestContext) -> None:
    if not call.user.may(MANAGE):
        raise PermissionMissing(permission=MANAGE)


async def own(table: Table, key: str, call: RequestContext) -> Row:
    """A row of the customer that a call is about. Raises PermissionMissing, and what the table is made with."""
    row = await table.require(key)
    customer_of(row["customer_id"], call)
    return row


def payment_message(row: Row) -> pb.Payment:
    return _payment(row, failure=_failure(row))


def operation_message(row: Row, payment: Row) -> pb.PaymentOperation:
    return _operation({**row, "currency": payment["currency"]}, failure=_failure(row))


def outcome(payment: Row, operation: Row) -> dict[str, Any]:
    """Of an operation, as the answers have it."""
    return {"payment": payment_message(payment), "operation": operation_message(operation, payment)}


def _failure(row: Mapping[str, Any]) -> pb.PaymentFailure | None:
    return _failure_of(row, retryable=row["failure"] in RETRYABLE) if row["failure"] else None
