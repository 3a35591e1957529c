"""Moving money through a provider, each operation at most once.

    transaction: operation row ─▶ lease ─▶ provider, with the operation's key ─▶ transaction: outcome + events

Whatever is lost in between, the row is there: the same request, a webhook or the next reconciliation goes on with it.
All three end in `absorb`, which compares the payment with the provider's own view of it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.message import Message

from nexus.finance.billing_service.v1 import events_pb2 as events
from nexus.finance.billing_service.v1.faults import (
    CustomerNotFound,
    DisputeClosed,
    DisputeNotFound,
    PaymentDiffers,
    PaymentMethodNotFound,
    PaymentNotFound,
    PaymentStateConflict,
    ProviderAway,
)
from nexus.type.v1.faults import IdempotencyKeyReused
from nexus.type.v1.money_pb2 import Money
from services.chassis.clock import now, timestamp
from services.chassis.ids import new_id
from services.chassis.service import Service
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
from services.finance.billing_service.stores.payments import PaymentStore, Row

_TWIN_WAITS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0)
"""Seconds between looks at an operation that another call is asking about."""

_ENDS = ("CAPTURED", "VOIDED", "FAILED")

logger = logging.getLogger(__name__)


class _Repeated(Exception):  # noqa: N818  undoes a transaction
    """The request has made its operation before."""


class Charging:
    """The use cases of payments, for the tenant of the call or of `acting_for`.

    None of them may run inside a transaction: rows must be committed before a provider is asked.
    """

    def __init__(self, service: Service, accounts: Accounts) -> None:
        config: Config = service.config
        self._config = config
        self._database = service.database
        self._events = service.events
        self._accounts = accounts
        self._store = PaymentStore(service.database)
        self.on_settled: Callable[[Row], Awaitable[None]] = _nothing
        """Told of every payment whose state changes, in the same transaction."""

    async def authorize(
        self,
        customer_id: str,
        payment_method_id: str,
        amount: Money,
        *,
        reference: str = "",
        description: str = "",
        capture: bool,
        off_session: bool,
        scope: str,
        request_id: str,
        request_hash: bytes,
        bill_id: str | None = None,
    ) -> Row:
        operation = await self._earlier(scope, request_id, request_hash)
        if operation is None:
            method = await self.usable_method(customer_id, payment_method_id)
            try:
                async with self._database.transaction():
                    payment_id = new_id()
                    await self._store.insert_payment(
                        payment_id,
                        method,
                        amount.currency,
                        amount.minor_units,
                        reference=reference,
                        description=description,
                        capture=capture,
                        off_session=off_session,
                        bill_id=bill_id,
                    )
                    operation = await self._store.insert_operation(
                        payment_id,
                        "AUTHORIZE",
                        amount.minor_units,
                        scope=scope,
                        request_id=request_id,
                        request_hash=request_hash,
                    )
                    if operation is None:
                        raise _Repeated
            except _Repeated:
                operation = await self._earlier(scope, request_id, request_hash)
                assert operation is not None, "the conflicting row was committed, so it can be read"
        await self._finish(operation)
        return await self.payment(operation["payment_id"])

    async def capture(
        self,
        payment_id: str,
        amount: Money | None,
        *,
        keep_rest: bool,
        scope: str,
        request_id: str,
        request_hash: bytes,
    ) -> tuple[Row, Row]:
        def check(payment: Row, reserved: rules.Reserved) -> int:
            return rules.amount_to_capture(payment, reserved, amount)

        return await self._operate("CAPTURE", payment_id, check, scope, request_id, request_hash, keep_rest=keep_rest)

    async def refund(
        self, payment_id: str, amount: Money | None, *, reason: str, scope: str, request_id: str, request_hash: bytes
    ) -> tuple[Row, Row]:
        def check(payment: Row, reserved: rules.Reserved) -> int:
            return rules.amount_to_refund(payment, reserved, amount)

        return await self._operate("REFUND", payment_id, check, scope, request_id, request_hash, reason=reason)

    async def refund_later(self, payment: Row, *, reason: str) -> None:
        """Give all of a payment back that came too late, by the next reconciliation. In the transaction in which it
        came, once for a payment."""
        if payment["captured"]:
            await self._store.insert_operation(
                payment["payment_id"],
                "REFUND",
                payment["captured"],
                scope="late",
                request_id=payment["payment_id"],
                request_hash=b"",
                reason=reason,
            )

    async def void(
        self, payment_id: str, *, scope: str, request_id: str, request_hash: bytes, reason: str = ""
    ) -> tuple[Row, Row]:
        def check(payment: Row, reserved: rules.Reserved) -> int:
            rest: int = payment["amount"] - reserved.captured
            return rest if rules.has_something_to_void(payment) else 0

        return await self._operate("VOID", payment_id, check, scope, request_id, request_hash, reason=reason)

    async def confirm(self, payment_id: str, answer: str) -> Row:
        """Go on with a payment whose customer is back from the provider's page."""
        payment = await self.payment(payment_id)
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
        if payment_id and await self._store.payment(payment_id) is not None:
            await self.absorb(payment_id, snapshot)

    async def settle(self, payment_id: str, provider_payment_id: str) -> Row:
        """What somebody has found at the provider. Only when the provider has forgotten the key: until then, who asks
        with it is told for sure."""
        payment = await self.payment(payment_id)
        operation = next(each for each in await self._store.operations(payment_id) if each["kind"] == "AUTHORIZE")
        if payment["state"] != "PENDING" or not await self._is_old(operation, payment):
            raise PaymentStateConflict(state=payment["state"], verb="settled by hand")
        if not provider_payment_id:
            await self._refuse(operation, Refused("LOST", "not found in the provider's account"))
            return await self.payment(payment_id)
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
        dispute = await self._store.dispute(dispute_id)
        if dispute is None:
            raise DisputeNotFound(dispute_id=dispute_id)
        if dispute["state"] != "NEEDS_ANSWER":
            raise DisputeClosed(state=dispute["state"])
        payment = await self.payment(dispute["payment_id"])
        provider = await self._accounts.provider(payment["provider"])
        try:
            snapshot = await provider.answer_dispute(
                payment["provider_payment_id"], dispute["provider_dispute_id"], evidence
            )
        except (InDoubt, Refused) as error:
            raise ProviderAway(provider=payment["provider"], retry_after=5) from error
        await self.absorb(payment["payment_id"], snapshot)
        answered = await self._store.dispute(dispute_id)
        assert answered is not None
        return answered

    async def reconcile(self, limit: int) -> tuple[int, int]:
        """Ask about what is in doubt, and give up what waited too long for its customer. Returns how many operations
        were settled, and how many are still in doubt."""
        for payment_id in await self._store.waiting_too_long(self._config.action_lifetime, limit):
            await self.void(
                payment_id, scope="expiry", request_id=payment_id, request_hash=b"", reason="ACTION_EXPIRED"
            )
        settled = in_doubt = 0
        for operation_id in await self._store.in_doubt(limit):
            try:
                await self._ask(operation_id)
            except Exception:  # what cannot be asked about must not keep the others from it
                logger.exception("an operation waits", extra={"operation": operation_id})
                await self._store.release(operation_id, rules.LONGEST_WAIT)
            operation = await self._store.operation(operation_id)
            settled += operation["state"] != "PENDING"
            in_doubt += operation["state"] == "PENDING"
        return settled, in_doubt

    async def payment(self, payment_id: str) -> Row:
        payment = await self._store.payment(payment_id)
        if payment is None:
            raise PaymentNotFound(payment_id=payment_id)
        return payment

    async def usable_method(self, customer_id: str, payment_method_id: str) -> Row:
        """The payment method, or the customer's default. Raises CustomerNotFound, PaymentMethodNotFound,
        ProviderNotConfigured."""
        if await self._store.customer(customer_id) is None:
            raise CustomerNotFound(customer_id=customer_id)
        if payment_method_id:
            method = await self._store.method(payment_method_id)
        else:
            method = await self._store.default_method(customer_id)
        if method is None or method["removed"] or method["customer_id"] != customer_id:
            raise PaymentMethodNotFound()
        await self._accounts.require_chargeable(method["provider"])
        return method

    async def absorb(self, payment_id: str, snapshot: Snapshot, operation: Row | None = None) -> Row:
        """Bring a payment up to what its provider says: settle operations, publish what is new. Nothing is counted
        twice, and an old snapshot takes nothing back."""
        async with self._database.transaction():
            payment = await self._locked(payment_id)
            moved = [
                *await self._absorb_movements(payment, "CAPTURE", snapshot.captures, operation),
                *await self._absorb_movements(payment, "REFUND", snapshot.refunds, operation),
            ]
            state = rules.later_state(payment["state"], snapshot.state)
            await self._settle_rest(payment, state)
            told = [await self._absorb_dispute(payment, notice) for notice in snapshot.disputes]
            failure = snapshot.failure
            if state == "VOIDED" and operation is not None and operation["reason"] == "ACTION_EXPIRED":
                state, failure = "FAILED", "ACTION_EXPIRED"
            waits = state == "REQUIRES_ACTION"
            now_is = await self._store.update_payment(
                payment_id,
                state=state,
                provider_payment_id=snapshot.provider_payment_id,
                failure=(failure or payment["failure"] or "CARD_DECLINED") if state == "FAILED" else "",
                failure_reason=(snapshot.failure_reason or payment["failure_reason"]) if state == "FAILED" else "",
                action_url=snapshot.action_url if waits else "",
                client_token=snapshot.client_token if waits else "",
            )
            for message in (*_milestones(payment, now_is), *(_moved(now_is, item) for item in moved), *told):
                if message is not None:
                    await self._events.publish(message, aggregate=payment_id)
            if now_is["state"] != payment["state"]:
                await self.on_settled(now_is)
        return now_is

    async def _operate(
        self,
        kind: str,
        payment_id: str,
        check: Callable[[Row, rules.Reserved], int],
        scope: str,
        request_id: str,
        request_hash: bytes,
        **how: Any,
    ) -> tuple[Row, Row]:
        """`check` gives the amount, or says why not; nothing for an operation that has nothing to do."""
        operation = await self._earlier(scope, request_id, request_hash)
        if operation is None:
            try:
                async with self._database.transaction():
                    payment = await self._locked(payment_id)
                    amount = check(payment, await self._store.reserved(payment_id))
                    operation = await self._store.insert_operation(
                        payment_id,
                        kind,
                        amount,
                        scope=scope,
                        request_id=request_id,
                        request_hash=request_hash,
                        **how,
                    )
                    if operation is None:
                        raise _Repeated
                    if amount == 0:
                        await self._store.settle(operation["operation_id"], "SUCCEEDED")
            except _Repeated:
                operation = await self._earlier(scope, request_id, request_hash)
                assert operation is not None, "the conflicting row was committed, so it can be read"
        await self._finish(operation)
        return await self.payment(payment_id), await self._store.operation(operation["operation_id"])

    async def _earlier(self, scope: str, request_id: str, request_hash: bytes) -> Row | None:
        """Raises IdempotencyKeyReused."""
        operation = await self._store.requested(scope, request_id)
        if operation is not None and operation["request_hash"] != request_hash:
            raise IdempotencyKeyReused(key=request_id)
        return operation

    async def _finish(self, operation: Row) -> None:
        """Ask the provider, or wait for whoever does so already. Returns when the outcome is known, or in doubt."""
        operation_id = operation["operation_id"]
        if operation["state"] != "PENDING" or await self._ask(operation_id):
            return
        for seconds in _TWIN_WAITS:
            await asyncio.sleep(seconds)
            if (await self._store.operation(operation_id))["state"] != "PENDING":
                return

    async def _ask(self, operation_id: str) -> bool:
        """Ask the provider about an operation; False when somebody else is at it."""
        operation = await self._store.claim(operation_id, self._config.lease)
        if operation is None:
            return False
        payment = await self.payment(operation["payment_id"])
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
        method = await self._store.method(payment["payment_method_id"])
        assert method is not None, "payment methods are never taken away"
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
            payment = await self._locked(operation["payment_id"])
            settled = await self._store.settle(
                operation["operation_id"], "FAILED", failure=refusal.failure, reason=refusal.reason
            )
            if settled is None or operation["kind"] != "AUTHORIZE":
                return
            payment = await self._store.update_payment(
                payment["payment_id"],
                state="FAILED",
                provider_payment_id=payment["provider_payment_id"],
                failure=refusal.failure,
                failure_reason=refusal.reason,
                action_url="",
                client_token="",
            )
            await self._events.publish(_failed(payment), aggregate=payment["payment_id"])
            await self.on_settled(payment)

    async def _absorb_movements(
        self, payment: Row, kind: str, movements: tuple[Movement, ...], asked: Row | None
    ) -> list[Row]:
        """Settle the operations that these movements are; one that nobody here asked for gets a row too. Returns those
        that succeeded just now."""
        known = [item for item in await self._store.operations(payment["payment_id"]) if item["kind"] == kind]
        taken = {item["provider_operation_id"] for item in known}
        pending = [item for item in reversed(known) if item["state"] == "PENDING"]
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
                match = await self._store.insert_operation(payment["payment_id"], kind, movement.amount)
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
        for item in await self._store.operations(payment["payment_id"]):
            if item["state"] != "PENDING":
                continue
            if item["kind"] == "AUTHORIZE":
                await self._store.settle(item["operation_id"], "FAILED" if state == "FAILED" else "SUCCEEDED")
            elif item["kind"] == "VOID" and state in _ENDS:
                await self._store.settle(item["operation_id"], "SUCCEEDED")
            elif item["kind"] == "CAPTURE" and state in _ENDS:  # nothing is left that it could have taken
                await self._store.settle(item["operation_id"], "FAILED", failure="PROVIDER_REFUSED")

    async def _absorb_dispute(self, payment: Row, notice: DisputeNotice) -> Message | None:
        known = {item["provider_dispute_id"]: item for item in await self._store.disputes_of(payment["payment_id"])}
        dispute = known.get(notice.provider_id)
        about: dict[str, Any] = {
            "payment_id": payment["payment_id"],
            "customer_id": payment["customer_id"],
            "amount": Money(currency=payment["currency"], minor_units=notice.amount),
            "provider": payment["provider"].lower(),
            "reference": payment["reference"],
        }
        if dispute is None:
            dispute = await self._store.insert_dispute(
                payment["payment_id"], notice.provider_id, notice.state, notice.amount, notice.reason, notice.answer_due
            )
            opened = events.PaymentDisputed(dispute_id=dispute["dispute_id"], **about)
            await self._events.publish(opened, aggregate=payment["payment_id"])
            was = "NEEDS_ANSWER"
        else:
            was = dispute["state"]
        state = rules.later_dispute(was, notice.state)
        if state == was:
            return None
        await self._store.set_dispute(dispute["dispute_id"], state)
        if state in ("WON", "LOST"):
            return events.DisputeClosed(dispute_id=dispute["dispute_id"], won=state == "WON", **about)
        return None

    async def _locked(self, payment_id: str) -> Row:
        payment = await self._store.locked(payment_id)
        if payment is None:
            raise PaymentNotFound(payment_id=payment_id)
        return payment


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


def _milestones(before: Row, after: Row) -> list[Message]:
    """The events of a change of state."""
    if before["state"] == after["state"]:
        return []
    about: dict[str, Any] = {
        "payment_id": after["payment_id"],
        "customer_id": after["customer_id"],
        "reference": after["reference"],
    }
    amount = Money(currency=after["currency"], minor_units=after["amount"])
    match after["state"]:
        case "AUTHORIZED":
            return [events.PaymentAuthorized(amount=amount, **about)]
        case "FAILED":
            return [_failed(after)]
        case "VOIDED":
            return [events.PaymentVoided(**about)]
    return []


def _failed(payment: Row) -> Message:
    return events.PaymentFailed(
        payment_id=payment["payment_id"],
        customer_id=payment["customer_id"],
        amount=Money(currency=payment["currency"], minor_units=payment["amount"]),
        reference=payment["reference"],
        failure=payment["failure"],
    )


def _moved(payment: Row, operation: Row) -> Message:
    about: dict[str, Any] = {
        "payment_id": payment["payment_id"],
        "operation_id": operation["operation_id"],
        "customer_id": payment["customer_id"],
        "amount": Money(currency=payment["currency"], minor_units=operation["amount"]),
        "provider": payment["provider"].lower(),
        "reference": payment["reference"],
    }
    when = timestamp(operation["settle_time"])
    if operation["kind"] == "CAPTURE":
        return events.PaymentProcessed(capture_time=when, **about)
    return events.PaymentRefunded(refund_time=when, **about)
