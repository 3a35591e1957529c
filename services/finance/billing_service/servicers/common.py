"""What the servicers of billing share: whom a call is about, which request it is, and messages of rows."""

from collections.abc import Mapping
from typing import Any

from google.protobuf.message import Message

from nexus.finance.billing_service.v1 import payments_pb2 as pb
from nexus.type.v1.faults import PermissionMissing
from nexus.type.v1.money_pb2 import Money
from services.chassis.clock import timestamp
from services.chassis.context import RequestContext
from services.chassis.sealing import Sealer
from services.finance.billing_service.payments import RETRYABLE

MANAGE = "billing.manage"


def customer_of(customer_id: str, call: RequestContext, permission: str = MANAGE) -> str:
    """The customer that a call is about: the caller, or somebody else's with the permission. Raises
    PermissionMissing."""
    own = call.user.user_id
    if customer_id and customer_id != own and not call.user.may(permission):
        raise PermissionMissing(permission=permission)
    return customer_id or own


def request_of(request: Any, call: RequestContext, sealer: Sealer) -> dict[str, Any]:
    """Who asks, with which key, and for what: by these a repeat is known."""
    caller = call.signed_in.user_id if call.signed_in is not None else call.caller
    serialized: Message = request
    return {
        "scope": f"{call.method.name} {caller}",
        "request_id": request.request_id,
        "request_hash": sealer.digest(serialized.SerializeToString(deterministic=True)),
    }


def payment_message(row: Mapping[str, Any]) -> pb.Payment:
    def money(amount: int) -> Money:
        return Money(currency=row["currency"], minor_units=amount)

    return pb.Payment(
        payment_id=row["payment_id"],
        customer_id=row["customer_id"],
        payment_method_id=row["payment_method_id"],
        provider=pb.PaymentProvider.Value(f"PAYMENT_PROVIDER_{row['provider']}"),
        provider_payment_id=row["provider_payment_id"],
        state=pb.PaymentState.Value(f"PAYMENT_STATE_{row['state']}"),
        amount=money(row["amount"]),
        captured=money(row["captured"]),
        refunded=money(row["refunded"]),
        disputed=money(row["disputed"]),
        reference=row["reference"],
        description=row["description"],
        failure=_failure(row),
        action_url=row["action_url"],
        client_token=row["client_token"],
        create_time=timestamp(row["create_time"]),
        update_time=timestamp(row["update_time"]),
    )


def operation_message(row: Mapping[str, Any], currency: str) -> pb.PaymentOperation:
    return pb.PaymentOperation(
        operation_id=row["operation_id"],
        kind=pb.OperationKind.Value(f"OPERATION_KIND_{row['kind']}"),
        state=pb.OperationState.Value(f"OPERATION_STATE_{row['state']}"),
        amount=Money(currency=currency, minor_units=row["amount"]),
        provider_operation_id=row["provider_operation_id"],
        failure=_failure(row),
        attempts=row["attempts"],
        create_time=timestamp(row["create_time"]),
        settle_time=timestamp(row["settle_time"]) if row["settle_time"] is not None else None,
    )


def _failure(row: Mapping[str, Any]) -> pb.PaymentFailure | None:
    if not row["failure"]:
        return None
    return pb.PaymentFailure(
        code=pb.FailureCode.Value(f"FAILURE_CODE_{row['failure']}"),
        provider_reason=row["failure_reason"],
        retryable=row["failure"] in RETRYABLE,
    )
