"""A payment provider without money: deterministic, with a token for everything that can go wrong.

It stands for something outside. It keeps its own books (`sandbox_…`), commits them by itself, as a real provider
would, and knows of payments only what it was told. The tokens are listed at AddPaymentMethodRequest.provider_token.
"""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import ClassVar, Literal

from services.chassis.database import Database
from services.chassis.table import Row, Table
from services.finance.billing_service.providers.interface import (
    Card,
    Charge,
    DisputeNotice,
    InDoubt,
    MethodRefused,
    Movement,
    Notice,
    Refused,
    SignatureInvalid,
    Snapshot,
)

DECLINES = {
    "card_declined": ("CARD_DECLINED", "generic_decline"),
    "card_insufficient_funds": ("INSUFFICIENT_FUNDS", "insufficient_funds"),
    "card_expired": ("CARD_EXPIRED", "expired_card"),
    "card_stolen": ("FRAUD_SUSPECTED", "stolen_card"),
}
PAYS = {
    "card_ok",
    "card_mastercard",
    "wallet_ok",
    "card_pays_once",
    "card_recovers",
    "card_3ds",
    "card_disputed",
    "card_timeout",
    "card_hang",
    "card_unreachable",
    "card_refund_fails",
}
_BRANDS = {"card_mastercard": "mastercard", "wallet_ok": "wallet"}


class SandboxProvider:
    replay_window: ClassVar[timedelta] = timedelta(hours=24)

    def __init__(self, database: Database, hang_seconds: float) -> None:
        self._database = database
        self._charges = Table(database, "sandbox_charges", key="charge_id")
        self._requests = Table(database, "sandbox_requests", key="key", order="create_time")
        self._hang_seconds = hang_seconds

    async def close(self) -> None:
        """It has no connections."""

    async def check(self) -> None:
        """Every account is good."""

    async def attach(self, token: str, customer_id: str, key: str) -> Card:
        if token not in PAYS and token not in DECLINES:
            raise MethodRefused(f"the sandbox does not know {token}")
        return Card(token, customer_id, _BRANDS.get(token, "visa"), "4242", "2099-12")

    async def detach(self, token: str) -> None:
        """Nothing is kept of methods."""

    async def authorize(self, charge: Charge) -> Snapshot:
        charge_id = f"sandbox_{charge.payment_id}"
        if charge.token == "card_unreachable" and await self._use(charge) == 1:
            raise InDoubt("the sandbox was not reached")
        async with self._database.transaction():
            new = await self._claim(charge.operation_id, charge_id, "authorize", charge.amount)
            if new:
                state, failure = _outcome(charge, await self._use(charge))
                await self._charges.insert(
                    charge_id=charge_id,
                    token=charge.token,
                    currency=charge.currency,
                    amount=charge.amount,
                    state=state,
                    failure=failure,
                    capture=charge.capture,
                    dispute="needs_answer" if state == "captured" and charge.token == "card_disputed" else "",
                )
        if new and charge.token == "card_timeout":
            raise InDoubt("the sandbox's answer was lost")
        if new and charge.token == "card_hang":
            await asyncio.sleep(self._hang_seconds)
        return await self.look_at(charge_id)

    async def capture(self, payment: str, amount: int, currency: str, keep_rest: bool, key: str) -> Snapshot:
        async with self._database.transaction():
            charge = await self._charges.require(payment, lock=True)
            if await self._claim(key, payment, "capture", amount):
                if charge["state"] != "authorized":
                    raise Refused("PROVIDER_REFUSED", f"the charge is {charge['state']}")
                captured = sum(item["amount"] for item in await self._done(payment, "capture"))
                if captured > charge["amount"]:
                    raise Refused("PROVIDER_REFUSED", "more than authorized")
                if captured == charge["amount"] or not keep_rest:
                    await self._charges.change(payment, state="captured")
                if charge["token"] == "card_disputed":
                    await self._charges.change(payment, dispute="needs_answer")
        return await self.look_at(payment)

    async def void(self, payment: str, key: str) -> Snapshot:
        async with self._database.transaction():
            charge = await self._charges.require(payment, lock=True)
            if charge["state"] in ("requires_action", "authorized"):
                captured = await self._done(payment, "capture")
                await self._charges.change(payment, state="captured" if captured else "voided")
        return await self.look_at(payment)

    async def refund(self, payment: str, amount: int, currency: str, key: str) -> Snapshot:
        async with self._database.transaction():
            charge = await self._charges.require(payment, lock=True)
            if charge["token"] == "card_refund_fails":
                raise Refused("PROVIDER_REFUSED", "charge_not_refundable")
            await self._claim(key, payment, "refund", amount)
        return await self.look_at(payment)

    async def confirm(self, payment: str, answer: str, key: str) -> Snapshot:
        """3-D Secure by hand: "approve", or anything else to deny."""
        async with self._database.transaction():
            charge = await self._charges.require(payment, lock=True)
            if charge["state"] == "requires_action" and answer:
                if answer == "approve":
                    await self._charges.change(payment, state="captured" if charge["capture"] else "authorized")
                else:
                    await self._charges.change(payment, state="declined", failure="AUTHENTICATION_REQUIRED")
        return await self.look_at(payment)

    async def look_at(self, payment: str) -> Snapshot:
        charge = await self._charges.require(payment)
        captures = [_movement(item) for item in await self._done(payment, "capture")]
        if charge["capture"] and charge["state"] == "captured":
            captures.append(Movement(f"{payment}/capture", charge["amount"]))
        dispute = DisputeNotice(f"{payment}/dispute", charge["dispute"].upper(), charge["amount"], "fraudulent")
        return Snapshot(
            provider_payment_id=payment,
            payment_id=payment.removeprefix("sandbox_"),
            state="FAILED" if charge["state"] == "declined" else charge["state"].upper(),
            captures=tuple(captures),
            refunds=tuple(_movement(item) for item in await self._done(payment, "refund")),
            disputes=(dispute,) if charge["dispute"] else (),
            failure=charge["failure"],
            failure_reason=DECLINES.get(charge["token"], ("", charge["failure"].lower()))[1],
            action_url=f"sandbox:///3ds/{payment}" if charge["state"] == "requires_action" else "",
        )

    async def find(self, charge: Charge) -> Snapshot | None:
        charge_id = f"sandbox_{charge.payment_id}"
        return await self.look_at(charge_id) if await self._charges.get(charge_id) is not None else None

    async def answer_dispute(self, payment: str, dispute: str, evidence: str) -> Snapshot:
        async with self._database.transaction():
            charge = await self._charges.require(payment, lock=True)
            if charge["dispute"] == "needs_answer":
                await self._charges.change(payment, dispute="won" if evidence == "winning" else "lost")
        return await self.look_at(payment)

    async def notice(self, headers: Mapping[str, str], body: bytes) -> Notice:
        raise SignatureInvalid("the sandbox sends no notices")

    async def _claim(self, key: str, charge_id: str, kind: str, amount: int) -> bool:
        """Whether the key is new."""
        row = await self._requests.insert_new(key=key, charge_id=charge_id, kind=kind, amount=amount)
        return row is not None

    async def _use(self, charge: Charge) -> int:
        """How often the card has been used, this time included."""
        uses: int = await self._database.fetchval(
            """
            INSERT INTO sandbox_uses AS u (customer, token, uses) VALUES ($1, $2, 1)
            ON CONFLICT (tenant_id, customer, token) DO UPDATE SET uses = u.uses + 1 RETURNING uses
            """,
            charge.provider_customer,
            charge.token,
        )
        return uses

    async def _done(self, charge_id: str, kind: str) -> list[Row]:
        """The captures or refunds of a charge."""
        return await self._requests.all(charge_id=charge_id, kind=kind)


def _outcome(charge: Charge, uses: int) -> tuple[Literal["requires_action", "authorized", "captured", "declined"], str]:
    """The state of a new charge, and why it failed."""
    if charge.token in DECLINES:
        return "declined", DECLINES[charge.token][0]
    poor = (charge.token == "card_pays_once" and uses > 1) or (charge.token == "card_recovers" and uses <= 2)
    if poor:
        return "declined", "INSUFFICIENT_FUNDS"
    if charge.token == "card_3ds":
        return ("declined", "AUTHENTICATION_REQUIRED") if charge.off_session else ("requires_action", "")
    return ("captured" if charge.capture else "authorized"), ""


def _movement(request: Row) -> Movement:
    return Movement(f"sandbox_{request['key']}", request["amount"], operation_id=request["key"])
