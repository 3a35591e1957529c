"""Moving money through a provider, each operation at most once.

    transaction: operation row ─▶ lease ─▶ provider, with the operation's key ─▶ transaction: outcome + events

Whatever is lost in between, the row is there: the same request, a webhook or the next reconciliation goes on with it.
All three end in `absorb`, which compares the payment with the provider's own view of it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from nexus.finance.billing_service.v1 import events_pb2 as events
from nexus.finance.billing_service.v1.customers_pb2 import RefundPaymentRequest
from nexus.finance.billing_service.v1.faults import (
    DisputeClosed,
    PaymentDiffers,
    PaymentMethodNotFound,
    PaymentStateConflict,
    ProviderAway,
)
from nexus.finance.billing_service.v1.payments_pb2 import AuthorizeRequest, CaptureRequest, RefundRequest, VoidRequest
from nexus.type.v1.faults import IdempotencyKeyReused
from services.chassis.clock import now
from services.chassis.idempotency import RequestKey
from services.chassis.ids import new_id
from services.chassis.messages import MessageOf, values_of
from services.chassis.service import Service
from services.chassis.table import Row
from services.finance.billing_service import payments as rules
from services.finance.billing_service.accounts import Accounts
from services.finance.billing_service.providers.interface import (
    Charge,
    DisputeNotice,
    InDoubt,
    Movement,
    Refused,
    Snapshot,
)
from services.finance.billing_service.spec import Config
from services.finance.billing_service.store import Store

_TWIN_WAITS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0)
"""Seconds between looks at an operation that another call is asking about."""

_ENDS = ("CAPTURED", "VOIDED", "FAILED")

_MILESTONES: dict[str, MessageOf[Any]] = {
    "AUTHORIZED": MessageOf(events.PaymentAuthorized),
    "FAILED": MessageOf(events.PaymentFailed),
    "VOIDED": MessageOf(events.PaymentVoided),
}
_MOVED: dict[str, MessageOf[Any]] = {
    "CAPTURE": MessageOf(events.PaymentProcessed, capture_time="settle_time"),
    "REFUND": MessageOf(events.PaymentRefunded, refund_time="settle_time"),
}
_disputed = MessageOf(events.PaymentDisputed)
_dispute_closed = MessageOf(events.DisputeClosed)

logger = logging.getLogger(__name__)


class _Repeated(Exception):  # noqa: N818  undoes a transaction
    """The request has made its operation before."""


class Charging:
    """The use cases of payments, for the tenant of the call or of `acting_for`.

    None of them may run inside a transaction: rows must be committed before a provider is asked.
    """

    def __init__(self, service: Service, store: Store, accounts: Accounts) -> None:
        config: Config = service.config
        self._config = config
        self._database = service.database
        self._events = service.events
        self._store = store
        self._accounts = accounts
        self.on_settled: Callable[[Row], Awaitable[None]] = _nothing
        """Told of every payment whose state changes, in the same transaction."""

    async def authorize(self, request: AuthorizeRequest, key: RequestKey, *, bill_id: str | None = None) -> Row:
        operation = await key.earlier(self._store.operations)
        if operation is None:
            method = await self.usable_method(request.customer_id, request.payment_method_id)
            try:
                async with self._database.transaction():
                    payment = await self._store.payments.insert(
                        payment_id=new_id(),
                        customer_id=method["customer_id"],
                        payment_method_id=method["payment_method_id"],
                        provider=method["provider"],
                        currency=request.amount.currency,
                        amount=request.amount.minor_units,
                        bill_id=bill_id,
                        **values_of(request, "reference", "description", "capture", "off_session"),
                    )
                    operation = await self._begin("AUTHORIZE", payment, payment["amount"], key)
                    if operation is None:
                        raise _Repeated
            except _Repeated:
                operation = await key.earlier(self._store.operations)
                assert operation is not None, "the conflicting row was committed, so it can be read"
        await self._finish(operation)
        return await self._store.payments.require(operation["payment_id"])

    async def capture(self, request: CaptureRequest, key: RequestKey) -> tuple[Row, Row]:
        return await self._operate("CAPTURE", request, key, rules.amount_to_capture, keep_rest=request.keep_rest)

    async def refund(self, request: RefundRequest | RefundPaymentRequest, key: RequestKey) -> tuple[Row, Row]:
        return await self._operate("REFUND", request, key, rules.amount_to_refund, reason=request.reason)

    async def void(self, request: VoidRequest, key: RequestKey, *, reason: str = "") -> tuple[Row, Row]:
        return await self._operate("VOID", request, key, rules.amount_to_void, reason=reason)

    async def refund_later(self, payment: Row, *, reason: str) -> None:
        """Give all of a payment back that came too late, by the next reconciliation. In the transaction in which it
        came, once for a payment."""
        if payment["captured"]:
            key = RequestKey("late", payment["payment_id"])
            await self._begin("REFUND", payment, payment["captured"], key, reason=reason)

    async def confirm(self, payment_id: str, answer: str) -> Row:
        """Go on with a payment whose customer is back from the provider's page."""
        payment = await self._store.payments.require(payment_id)
        if payment["state"] != "REQUIRES_ACTION":
            return payment
        provider = await self._accounts.provider(payment["provider"])
        try:
            snapshot = await provider.confirm(payment["provider_payment_id"], answer, f"{payment_id}/confirm")
        except (InDoubt, Refused) as error:
            logger.info("a confirmation got no answer: %s", error, extra={"payment": payment_id})
            raise ProviderAway(provider=payment["provider"], retry_after=2) from error
        return await self.absorb(payment_id, snapshot)

    async def refresh(self, provider_name: str, provider_payment_id: str) -> None:
        """Look at a payment at its provider, because something happened to it. Raises ProviderAway."""
        provider = await self._accounts.provider(provider_name)
        payment = await self._store.at_provider(provider_name, provider_payment_id)
        try:
            if payment is not None and payment["state"] == "REQUIRES_ACTION":
                snapshot = await provider.confirm(provider_payment_id, "", f"{payment['payment_id']}/confirm")
            else:
                snapshot = await provider.look_at(provider_payment_id)
        except InDoubt as error:
            raise ProviderAway(provider=provider_name, retry_after=5) from error
        except Refused as error:
            logger.warning("a notice is about an unknown payment: %s", error)
            return
        payment_id = payment["payment_id"] if payment is not None else snapshot.payment_id
        if payment_id and await self._store.payments.get(payment_id) is not None:
            await self.absorb(payment_id, snapshot)

    async def settle(self, payment_id: str, provider_payment_id: str) -> Row:
        """What somebody has found at the provider. Only when the provider has forgotten the key: until then, who asks
        with it is told for sure."""
        payment = await self._store.payments.require(payment_id)
        [operation] = await self._store.operations.all(payment_id=payment_id, kind="AUTHORIZE")
        if payment["state"] != "PENDING" or not await self._is_old(operation, payment):
            raise PaymentStateConflict(state=payment["state"], verb="settled by hand")
        if not provider_payment_id:
            await self._refuse(operation, Refused("LOST", "not found in the provider's account"))
            return await self._store.payments.require(payment_id)
        provider = await self._accounts.provider(payment["provider"])
        try:
            snapshot = await provider.look_at(provider_payment_id)
        except InDoubt as error:
            raise ProviderAway(provider=payment["provider"], retry_after=5) from error
        except Refused as error:
            raise PaymentDiffers() from error
        if snapshot.payment_id != payment_id:
            raise PaymentDiffers()
        return await self.absorb(payment_id, snapshot, operation)

    async def answer_dispute(self, dispute_id: str, evidence: str) -> Row:
        dispute = await self._store.disputes.require(dispute_id)
        if dispute["state"] != "NEEDS_ANSWER":
            raise DisputeClosed(state=dispute["state"])
        payment = await self._store.payments.require(dispute["payment_id"])
        provider = await self._accounts.provider(payment["provider"])
        try:
            snapshot = await provider.answer_dispute(
                payment["provider_payment_id"], dispute["provider_dispute_id"], evidence
            )
        except (InDoubt, Refused) as error:
            raise ProviderAway(provider=payment["provider"], retry_after=5) from error
        await self.absorb(payment["payment_id"], snapshot)
        return await self._store.disputes.require(dispute_id)

    async def reconcile(self, limit: int) -> tuple[int, int]:
        """Ask about what is in doubt, and give up what waited too long for its customer. Returns how many operations
        were settled, and how many are still in doubt."""
        for row in await self._store.waiting_too_long(self._config.action_lifetime, limit):
            request = VoidRequest(payment_id=row["payment_id"])
            await self.void(request, RequestKey("expiry", request.payment_id), reason="ACTION_EXPIRED")
        settled = in_doubt = 0
        for operation_id in (row["operation_id"] for row in await self._store.in_doubt(limit)):
            try:
                await self._ask(operation_id)
            except Exception:  # what cannot be asked about must not keep the others from it
                logger.exception("an operation waits", extra={"operation": operation_id})
                await self._store.release(operation_id, rules.LONGEST_WAIT)
            operation = await self._store.operations.require(operation_id)
            settled += operation["state"] != "PENDING"
            in_doubt += operation["state"] == "PENDING"
        return settled, in_doubt

    async def usable_method(self, customer_id: str, payment_method_id: str) -> Row:
        """The payment method, or the customer's default. Raises CustomerNotFound, PaymentMethodNotFound,
        ProviderNotConfigured."""
        customer = await self._store.customers.require(customer_id)
        method = await self._store.methods.require(payment_method_id or customer["default_payment_method_id"])
        if method["removed"] or method["customer_id"] != customer_id:
            raise PaymentMethodNotFound()
        await self._accounts.require_chargeable(method["provider"])
        return method

    async def absorb(self, payment_id: str, snapshot: Snapshot, operation: Row | None = None) -> Row:
        """Bring a payment up to what its provider says: settle operations, publish what is new. Nothing is counted
        twice, and an old snapshot takes nothing back."""
        async with self._database.transaction():
            payment = await self._store.payments.require(payment_id, lock=True)
            moved = [
                *await self._absorb_movements(payment, "CAPTURE", snapshot.captures, operation),
                *await self._absorb_movements(payment, "REFUND", snapshot.refunds, operation),
            ]
            state = rules.later_state(payment["state"], snapshot.state)
            await self._settle_rest(payment, state)
            for notice in snapshot.disputes:
                await self._absorb_dispute(payment, notice)
            failure = snapshot.failure
            if state == "VOIDED" and operation is not None and operation["reason"] == "ACTION_EXPIRED":
                state, failure = "FAILED", "ACTION_EXPIRED"
            waits = state == "REQUIRES_ACTION"
            now_is = await self._store.payments.change(
                payment_id,
                state=state,
                provider_payment_id=snapshot.provider_payment_id,
                failure=(failure or payment["failure"] or "CARD_DECLINED") if state == "FAILED" else "",
                failure_reason=(snapshot.failure_reason or payment["failure_reason"]) if state == "FAILED" else "",
                action_url=snapshot.action_url if waits else "",
                client_token=snapshot.client_token if waits else "",
            )
            if now_is["state"] != payment["state"] and now_is["state"] in _MILESTONES:
                await self._publish(_MILESTONES[now_is["state"]](now_is))
            for movement in moved:
                await self._publish(_MOVED[movement["kind"]](_of(now_is, movement)))
            if now_is["state"] != payment["state"]:
                await self.on_settled(now_is)
        return now_is

    async def _operate(
        self, kind: str, request: Any, key: RequestKey, amount_of: Callable[..., int], **how: Any
    ) -> tuple[Row, Row]:
        """The payment and the operation. `amount_of` says why not, or for how much; nothing for one that has nothing to
        do."""
        payment_id = request.payment_id
        async with self._database.transaction():
            payment = await self._store.payments.require(payment_id, lock=True)
            operation = await key.earlier(self._store.operations)
            if operation is None:
                amount = amount_of(payment, await self._store.reserved(payment_id), request)
                operation = await self._begin(kind, payment, amount, key, **how)
                if operation is None:  # twins wait for the payment's row: the key is another payment's
                    raise IdempotencyKeyReused(key=key.request_id)
                if amount == 0:
                    operation = await self._store.settle(operation["operation_id"], "SUCCEEDED") or operation
        await self._finish(operation)
        operation = await self._store.operations.require(operation["operation_id"])
        return await self._store.payments.require(payment_id), operation

    async def _begin(
        self, kind: str, payment: Row, amount: int, key: RequestKey | None = None, **how: Any
    ) -> Row | None:
        """A new operation, for a request or by the provider itself; None if the request has made one before."""
        asked = key._asdict() if key is not None else {}
        return await self._store.operations.insert_new(
            operation_id=new_id(), payment_id=payment["payment_id"], kind=kind, amount=amount, **asked, **how
        )

    async def _finish(self, operation: Row) -> None:
        """Ask the provider, or wait for whoever does so already. Returns when the outcome is known, or in doubt."""
        operation_id = operation["operation_id"]
        if operation["state"] != "PENDING" or await self._ask(operation_id):
            return
        for seconds in _TWIN_WAITS:
            await asyncio.sleep(seconds)
            if (await self._store.operations.require(operation_id))["state"] != "PENDING":
                return

    async def _ask(self, operation_id: str) -> bool:
        """Ask the provider about an operation; False when somebody else is at it."""
        operation = await self._store.claim(operation_id, self._config.lease)
        if operation is None:
            return False
        payment = await self._store.payments.require(operation["payment_id"])
        try:
            snapshot = await self._request(operation, payment)
        except InDoubt as error:
            # What its provider does not answer for as long as that is for a person to look into.
            level = logging.ERROR if await self._is_old(operation, payment) else logging.WARNING
            logger.log(level, "a payment is in doubt: %s", error, extra={"operation": operation_id})
            await self._store.release(operation_id, rules.wait_before(operation["attempts"]))
        except Refused as refusal:
            await self._refuse(operation, refusal)
        else:
            await self.absorb(payment["payment_id"], snapshot, operation)
            if await self._is_old(operation, payment) and not _may_have(snapshot, operation):
                await self._refuse(operation, Refused("LOST", f"the provider knows of no such {operation['kind']}"))
            # Where the provider itself has not come to an end, somebody has to look again.
            await self._store.release(operation_id, rules.wait_before(operation["attempts"]))
        return True

    async def _request(self, operation: Row, payment: Row) -> Snapshot:
        provider = await self._accounts.provider(payment["provider"])
        at_provider, key = payment["provider_payment_id"], operation["operation_id"]
        too_old = await self._is_old(operation, payment)
        match operation["kind"]:
            case "AUTHORIZE":
                charge = await self._charge(operation, payment)
                if at_provider:
                    return await provider.look_at(at_provider)
                if not too_old:
                    return await provider.authorize(charge)
                found = await provider.find(charge)
                if found is None:
                    raise Refused("LOST", "the provider has no such payment")
                return found
            case "CAPTURE" | "REFUND" if too_old:
                return await provider.look_at(at_provider)
            case "CAPTURE":
                return await provider.capture(
                    at_provider, operation["amount"], payment["currency"], operation["keep_rest"], key
                )
            case "REFUND":
                return await provider.refund(at_provider, operation["amount"], payment["currency"], key)
            case _:
                return await provider.void(at_provider, key)

    async def _is_old(self, operation: Row, payment: Row) -> bool:
        """Whether the provider may have forgotten the operation's key."""
        provider = await self._accounts.provider(payment["provider"])
        return now() - operation["create_time"] > provider.replay_window

    async def _charge(self, operation: Row, payment: Row) -> Charge:
        method = await self._store.methods.require(payment["payment_method_id"])
        return Charge(
            payment_id=payment["payment_id"],
            operation_id=operation["operation_id"],
            customer_id=payment["customer_id"],
            token=method["provider_token"],
            provider_customer=method["provider_customer"],
            currency=payment["currency"],
            amount=payment["amount"],
            capture=payment["capture"],
            off_session=payment["off_session"],
            description=payment["description"],
        )

    async def _refuse(self, operation: Row, refusal: Refused) -> None:
        async with self._database.transaction():
            payment = await self._store.payments.require(operation["payment_id"], lock=True)
            settled = await self._store.settle(
                operation["operation_id"], "FAILED", failure=refusal.failure, reason=refusal.reason
            )
            if settled is None or operation["kind"] != "AUTHORIZE":
                return
            payment = await self._store.payments.change(
                payment["payment_id"],
                state="FAILED",
                failure=refusal.failure,
                failure_reason=refusal.reason,
                action_url="",
                client_token="",
            )
            await self._publish(_MILESTONES["FAILED"](payment))
            await self.on_settled(payment)

    async def _absorb_movements(
        self, payment: Row, kind: str, movements: tuple[Movement, ...], asked: Row | None
    ) -> list[Row]:
        """Settle the operations that these movements are; one that nobody here asked for gets a row too. Returns those
        that succeeded just now."""
        known = await self._store.operations.all(payment_id=payment["payment_id"], kind=kind)
        taken = {item["provider_operation_id"] for item in known}
        pending = [item for item in known if item["state"] == "PENDING"]
        if asked is not None:  # the one that was asked about is meant before its siblings
            pending.sort(key=lambda item: item["operation_id"] != asked["operation_id"])
        succeeded = []
        for movement in movements:
            if movement.provider_id in taken or movement.state == "PENDING":
                continue
            if movement.operation_id:
                match = next((item for item in known if item["operation_id"] == movement.operation_id), None)
            else:
                match = next((item for item in pending if item["amount"] == movement.amount), None)
            if match is None or (match["state"] == "FAILED" and movement.state == "SUCCEEDED"):  # given up too early
                match = await self._begin(kind, payment, movement.amount)
                assert match is not None, "it has no request to conflict with"
            elif match in pending:
                pending.remove(match)
            failure = "PROVIDER_REFUSED" if movement.state == "FAILED" else ""
            settled = await self._store.settle(
                match["operation_id"], movement.state, provider_id=movement.provider_id, failure=failure
            )
            if settled is not None and movement.state == "SUCCEEDED":
                succeeded.append(settled)
        return succeeded

    async def _settle_rest(self, payment: Row, state: str) -> None:
        """Settle authorizations and releases, which are no movements, and captures that came too late."""
        if state == "PENDING":
            return
        for item in await self._store.operations.all(payment_id=payment["payment_id"], state="PENDING"):
            if item["kind"] == "AUTHORIZE":
                await self._store.settle(item["operation_id"], "FAILED" if state == "FAILED" else "SUCCEEDED")
            elif item["kind"] == "VOID" and state in _ENDS:
                await self._store.settle(item["operation_id"], "SUCCEEDED")
            elif item["kind"] == "CAPTURE" and state in _ENDS:  # nothing is left that it could have taken
                await self._store.settle(item["operation_id"], "FAILED", failure="PROVIDER_REFUSED")

    async def _absorb_dispute(self, payment: Row, notice: DisputeNotice) -> None:
        dispute = await self._store.disputes.find(
            payment_id=payment["payment_id"], provider_dispute_id=notice.provider_id
        )
        was = dispute["state"] if dispute is not None else "NEEDS_ANSWER"
        state = rules.later_dispute(was, notice.state)
        if dispute is None:
            dispute = await self._store.disputes.insert(
                dispute_id=new_id(),
                payment_id=payment["payment_id"],
                provider_dispute_id=notice.provider_id,
                state=state,
                amount=notice.amount,
                reason=notice.reason,
                answer_due_time=notice.answer_due,
            )
            await self._publish(_disputed(_of(payment, dispute)))
        elif state != was:
            dispute = await self._store.disputes.change(dispute["dispute_id"], state=state)
        if state != was and state in ("WON", "LOST"):
            await self._publish(_dispute_closed(_of(payment, dispute), won=state == "WON"))

    async def _publish(self, message: Any) -> None:
        await self._events.publish(message, aggregate=message.payment_id)


def _may_have(snapshot: Snapshot, operation: Row) -> bool:
    """Whether a provider that looks at a payment may still come to an operation by itself. What has succeeded or failed
    there is settled by then."""
    if operation["kind"] not in ("CAPTURE", "REFUND"):
        return True
    movements = snapshot.captures if operation["kind"] == "CAPTURE" else snapshot.refunds
    ours = ("", operation["operation_id"])
    return any(movement.state == "PENDING" and movement.operation_id in ours for movement in movements)


async def _nothing(payment: Row) -> None:
    """Nobody wants to know."""


def _of(payment: Row, part: Row) -> dict[str, Any]:
    """An operation or a dispute with what events tell of its payment."""
    return {**payment, **part, "provider": payment["provider"].lower()}
