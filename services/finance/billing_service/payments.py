"""What can be done with a payment, and what becomes of it when the provider tells how it stands."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from nexus.finance.billing_service.v1.customers_pb2 import RefundPaymentRequest
from nexus.finance.billing_service.v1.faults import AmountExceeded, CurrencyMismatch, PaymentStateConflict
from nexus.finance.billing_service.v1.payments_pb2 import CaptureRequest, RefundRequest, VoidRequest

RETRYABLE = {"CARD_DECLINED", "INSUFFICIENT_FUNDS", "PROVIDER_REFUSED", "LOST", "AUTHENTICATION_REQUIRED"}
"""The failures after which another attempt with the same payment method makes sense."""

# Later states win over earlier ones, so that what the provider says may arrive in any order. What was captured is
# captured, even of a payment that had been given up.
_RANK = {"PENDING": 0, "REQUIRES_ACTION": 1, "AUTHORIZED": 2, "FAILED": 3, "VOIDED": 3, "CAPTURED": 4}
_DISPUTE_RANK = {"NEEDS_ANSWER": 0, "UNDER_REVIEW": 1, "WON": 2, "LOST": 2}
_FIRST_WAIT, LONGEST_WAIT = timedelta(seconds=2), timedelta(hours=1)


@dataclass(frozen=True)
class Reserved:
    """What the operations of a payment amount to, those without an answer included."""

    captured: int
    refunded: int


def may_charge(provider: str, accounts: Collection[str], *, production: bool) -> bool:
    """Whether customers may pay through a provider, at a tenant with accounts at these. The sandbox confirms whatever
    it is asked and moves no money: where money is taken, it is a provider only if the tenant says so itself."""
    return provider in accounts or (provider == "SANDBOX" and not accounts and not production)


def later_state(known: str, seen: str) -> str:
    return seen if _RANK[seen] > _RANK[known] else known


def later_dispute(known: str, seen: str) -> str:
    return seen if _DISPUTE_RANK[seen] > _DISPUTE_RANK[known] else known


def amount_to_capture(payment: Mapping[str, Any], reserved: Reserved, request: CaptureRequest) -> int:
    """Raises PaymentStateConflict, CurrencyMismatch, AmountExceeded."""
    _require(payment, ("AUTHORIZED",), "captured")
    return _within(payment["amount"] - reserved.captured, payment["currency"], request)


def amount_to_refund(
    payment: Mapping[str, Any], reserved: Reserved, request: RefundRequest | RefundPaymentRequest
) -> int:
    """Of what has been captured, and not been taken back by the customer's bank. Raises PaymentStateConflict,
    CurrencyMismatch, AmountExceeded."""
    _require(payment, ("AUTHORIZED", "CAPTURED"), "refunded")
    left = payment["captured"] - reserved.refunded - payment["disputed"]
    return _within(max(0, left), payment["currency"], request)


def amount_to_void(payment: Mapping[str, Any], reserved: Reserved, request: VoidRequest) -> int:
    """What is reserved still; nothing if that is over. Raises PaymentStateConflict for a payment of which nothing is
    known yet."""
    if payment["state"] == "PENDING":
        raise PaymentStateConflict(state="PENDING", verb="voided before its outcome is known")
    if payment["state"] not in ("REQUIRES_ACTION", "AUTHORIZED"):
        return 0
    return int(payment["amount"] - reserved.captured)


def require_refund_by_hand(payment: Mapping[str, Any]) -> None:
    """An order's money goes back with its invoice, its stock and its books. Raises PaymentStateConflict."""
    if payment["reference"].startswith("order/"):
        raise PaymentStateConflict(state="an order's", verb="refunded but with its order")


def wait_before(attempt: int) -> timedelta:
    """How long to wait before asking about an operation once more, doubling."""
    return min(_FIRST_WAIT * 2 ** min(attempt - 1, 20), LONGEST_WAIT)


def _require(payment: Mapping[str, Any], states: tuple[str, ...], verb: str) -> None:
    if payment["state"] not in states:
        raise PaymentStateConflict(state=payment["state"], verb=verb)


def _within(available: int, currency: str, request: CaptureRequest | RefundRequest | RefundPaymentRequest) -> int:
    """What is asked for, or all that there is."""
    amount = available
    if request.HasField("amount"):
        if request.amount.currency != currency:
            raise CurrencyMismatch(expected=currency, given=request.amount.currency)
        amount = request.amount.minor_units
    if not 0 < amount <= available:
        raise AmountExceeded(available=available, currency=currency)
    return amount
