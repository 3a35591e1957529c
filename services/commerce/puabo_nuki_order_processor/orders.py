"""What can be done with orders: by customers, by staff, and by the saga that carries them out."""

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from nexus.commerce.puabo_nuki_order_processor.v1.faults import (
    CartChanged,
    OrderNotFound,
    OrderStateConflict,
    OutOfStock,
    ReturnNotFound,
    ReturnTooLate,
)
from nexus.type.v1.faults import Conflict, IdempotencyKeyReused
from services.chassis.clock import now
from services.chassis.errors import Fault
from services.chassis.ids import new_id
from services.chassis.saga import PERMANENT, Changed, Saga
from services.chassis.service import Service
from services.commerce.puabo_nuki_order_processor import order as rules
from services.commerce.puabo_nuki_order_processor.announcing import announcement
from services.commerce.puabo_nuki_order_processor.invoicing import Addresses
from services.commerce.puabo_nuki_order_processor.order import REFUND_PARTS, Action, Order, apply, decide
from services.commerce.puabo_nuki_order_processor.spec import Config
from services.commerce.puabo_nuki_order_processor.steps import RepaymentRefused, Steps, refused_for_good
from services.commerce.puabo_nuki_order_processor.store import CartStore, OrderStore, order_of

SYSTEM = "puabo-nuki-order-processor"
"""The actor of what the saga does."""
LOOK_AGAIN_SECONDS = 0.1
UNDER_WAY = (rules.CHECKING_OUT, rules.PROCESSING, rules.CANCELLING)

logger = logging.getLogger(__name__)


class Orders:
    """The use cases, for the tenant of the call or of `acting_for`."""

    def __init__(self, service: Service) -> None:
        self._config: Config = service.config
        self._database = service.database
        self._events = service.events
        self._steps = Steps(service)
        self.store = OrderStore(service.database)
        self.carts = CartStore(service.database)
        self.saga = Saga(
            service.database,
            "orders",
            "order_id",
            load=self.get,
            advance=self._advance,
            due=rules.due,
            lease=self._config.lease,
            workers=self._config.workers,
            poll_seconds=self._config.poll_seconds,
            longest_wait=self._config.longest_wait,
        )

    # Customers

    async def check_out(
        self, drafted: Mapping[str, Any], addresses: Addresses, cart_version: int, request_id: str, request_hash: bytes
    ) -> Order:
        """Make an order of what was drafted, and set its stock aside. Raises CartChanged, OutOfStock."""
        order = apply(Order(order_id=new_id()), "CheckedOut", drafted, now())
        async with self._database.transaction():
            if not await self.carts.hand_over(order.cart_id, cart_version, order.order_id):
                raise CartChanged()
            if not await self.store.insert(order, addresses, request_id, request_hash):
                raise Conflict(retry_after=0.1)  # its twin came first: the next attempt finds the order
            await self.store.add_event(order, "CheckedOut", drafted, order.customer_id)
        return await self._checked_out(await self._carried_on(order.order_id))

    async def earlier(self, customer_id: str, request_id: str, request_hash: bytes) -> Order | None:
        """The order that a checkout has made before. Raises IdempotencyKeyReused, OutOfStock."""
        row = await self.store.requested(customer_id, request_id)
        if row is None:
            return None
        if row["request_hash"] != request_hash:
            raise IdempotencyKeyReused(key=request_id)
        order = order_of(row)
        return await self._checked_out(
            await self._carried_on(order.order_id) if order.state == "CHECKING_OUT" else order
        )

    async def pay(self, order: Order, kind: str, verb: str, payment_method_id: str, request_id: str) -> Order:
        """`kind` is OrderPlaced, or PaymentRetried. Again with the same request, it says how far it has come."""
        if request_id not in order.payment_requests:
            data = {"payment_method_id": payment_method_id, "request_id": request_id}
            order = await self.record(order, kind, data, order.customer_id, verb=verb)
        return await self._carried_on(order.order_id) if order.state == rules.PROCESSING else order

    async def cancel(self, order: Order, actor: str, reason: str) -> Order:
        """Goes on by itself; returned as it is after a while. Raises OrderStateConflict."""
        if order.state not in (rules.CANCELLING, rules.CANCELLED):
            if not rules.can_cancel(order) or order.state == rules.CHECKING_OUT:
                under_way = order.state == rules.CONFIRMED and rules.is_on_its_way(order)
                raise OrderStateConflict(state="ON_ITS_WAY" if under_way else order.state, verb="cancelled")
            cause = "CUSTOMER" if actor == order.customer_id else "STAFF"
            order = await self.record(order, "CancellationBegun", {"cause": cause, "reason": reason}, actor)
        if order.state == rules.CANCELLING:
            order = await self._carried_on(order.order_id)
            if order.state == rules.CONFIRMED:  # the carrier has it
                raise OrderStateConflict(state="ON_ITS_WAY", verb="cancelled")
        return order

    async def request_return(self, order: Order, lines: dict[int, int], reason: str, days: int, actor: str) -> Order:
        """Raises OrderStateConflict, QuantityExceeded, ReturnTooLate."""
        rules.require(order, "ReturnRequested", "returned")
        if order.fulfil_time is not None and order.fulfil_time + timedelta(days=days) < now():
            raise ReturnTooLate(days=days)
        rules.check_units(order, lines, "returned")
        data = {"return_id": new_id(), "lines": lines, "reason": reason}
        return await self.record(order, "ReturnRequested", data, actor)

    # Staff

    async def fulfil(self, order: Order, lines: dict[int, int], note: str, actor: str) -> Order:
        """Raises OrderStateConflict, QuantityExceeded."""
        rules.require(order, "ItemsFulfilled", "fulfilled")
        lines = rules.check_units(order, lines, "fulfilled")
        if not lines:
            raise OrderStateConflict(state="without anything left to hand over", verb="fulfilled")
        return await self.record(order, "ItemsFulfilled", {"lines": lines, "note": note}, actor)

    async def decide_return(
        self, order: Order, return_id: str, accept: bool, restock: bool, note: str, actor: str
    ) -> Order:
        """Raises OrderStateConflict, ReturnNotFound, QuantityExceeded."""
        rules.require(order, "ReturnAccepted", "returned")
        asked = order.open_return(return_id)
        if asked is None:
            raise ReturnNotFound(return_id=return_id)
        if not accept:
            return await self.record(order, "ReturnRejected", {"return_id": return_id, "note": note}, actor)
        rules.check_units(order, asked.lines, "refunded")
        refund_id = new_id()
        accepted = {"return_id": return_id, "refund_id": refund_id, "restock": restock, "note": note}
        order = await self.record(order, "ReturnAccepted", accepted, actor)
        return await self._begin_refund(order, refund_id, asked.lines, False, restock, asked.reason or note, actor)

    async def refund(
        self, order: Order, lines: dict[int, int], shipping: bool, restock: bool, reason: str, actor: str
    ) -> Order:
        """Raises OrderStateConflict, QuantityExceeded."""
        rules.require(order, "RefundBegun", "refunded")
        if shipping and (order.delivery is None or order.shipping_refunded):
            raise OrderStateConflict(state="without a delivery to refund", verb="refunded")
        if lines or not shipping:
            lines = rules.check_units(order, lines, "refunded")
        if not lines and not shipping:
            raise OrderStateConflict(state="refunded in full", verb="refunded")
        return await self._begin_refund(order, new_id(), lines, shipping, restock, reason, actor)

    async def _begin_refund(
        self,
        order: Order,
        refund_id: str,
        lines: dict[int, int],
        shipping: bool,
        restock: bool,
        reason: str,
        actor: str,
    ) -> Order:
        data = {
            "refund_id": refund_id,
            "lines": lines,
            "shipping": shipping,
            "restock": restock,
            "reason": reason,
        }
        return await self.record(order, "RefundBegun", data, actor)

    # All

    async def get(self, order_id: str) -> Order:
        """Raises OrderNotFound."""
        row = await self.store.get(order_id)
        if row is None:
            raise OrderNotFound(order_id=order_id)
        return order_of(row)

    async def of(self, order_id: str, customer_id: str) -> Order:
        """Somebody else's is as good as none. Raises OrderNotFound."""
        order = await self.get(order_id)
        if order.customer_id != customer_id:
            raise OrderNotFound(order_id=order_id)
        return order

    async def record(
        self, order: Order, kind: str, data: Mapping[str, Any], actor: str, *, verb: str = "changed"
    ) -> Order:
        """Somebody's event, by whom the saga is woken. Raises Conflict when something else happened meanwhile."""
        rules.require(order, kind, verb)
        try:
            async with self._database.transaction():
                after = await self._append(order, kind, data, actor, wake=True)
                self._database.after_commit(lambda: self._start(after.order_id))
        except Changed:
            raise Conflict(retry_after=0.05) from None
        return after

    async def woken(self, order_id: str, *, waiting: bool = False) -> None:
        """Look at an order now: something happened that it may have waited for."""
        async with self._database.transaction():
            if await self.store.wake(order_id, waiting=waiting):
                self._database.after_commit(lambda: self._start(order_id))

    def _start(self, order_id: str) -> None:
        self.saga.start(order_id)

    async def _carried_on(self, order_id: str) -> Order:
        """The order, as far as it comes while the caller waits."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.inline_seconds):
                await asyncio.shield(self.saga.start(order_id))
                order = await self.get(order_id)
                while order.state in UNDER_WAY:  # it waits for another attempt, or another process is at it
                    await asyncio.sleep(LOOK_AGAIN_SECONDS)
                    order = await self.get(order_id)
        return await self.get(order_id)

    async def _checked_out(self, order: Order) -> Order:
        if order.cause == "OUT_OF_STOCK" and order.state in (rules.CANCELLING, rules.CANCELLED):
            events = await self.store.events(order.order_id)
            why = next(
                (json.loads(row["data"]).get("why", "") for row in events if row["kind"] == "CancellationBegun"), ""
            )
            raise OutOfStock(why=why)
        return order

    # The saga

    async def _advance(self, order: Order) -> Order | None:
        """Do what is next and record it; None when there is nothing to do now."""
        action = decide(order, now())
        if action is None:
            return None
        event = await self._outcome(order, action)
        if event is None:
            return None
        kind, data = event
        async with self._database.transaction():
            return await self._append(order, kind, data, SYSTEM, wake=False)

    async def _outcome(self, order: Order, action: Action) -> tuple[str, dict[str, Any]] | None:
        try:
            match action.verb:
                case "do":
                    return await self._steps.do(order, action.what)
                case "undo":
                    return await self._steps.undo(order, action.what)
                case "repay":
                    return "DisputeRepaid", await self._steps.repay(order, action.what)
                case "refund":
                    refund = order.refund(action.refund_id)
                    return REFUND_PARTS[action.what], await self._steps.refund(order, refund, action.what)
                case _:
                    return action.what, {"cause": "EXPIRED"} if action.what == "CancellationBegun" else {}
        except RepaymentRefused as refused:
            async with self._database.transaction():
                await self._append(order, "RepaymentRefused", {"cause_of_refusal": str(refused)}, SYSTEM, wake=False)
            raise
        except Fault as fault:
            cause = refused_for_good(action.what, fault) if action.verb == "do" and fault.code in PERMANENT else ""
            if not cause:
                raise
            logger.info("an order is given up: %s", fault, extra={"order": order.order_id, "step": action.what})
            return "CancellationBegun", {"cause": cause, "step": action.what, "why": fault.message[:300]}

    async def _append(self, order: Order, kind: str, data: Mapping[str, Any], actor: str, *, wake: bool) -> Order:
        """In a transaction. Raises Changed."""
        after = apply(order, kind, data, now())
        await self.store.append(after, kind, data, actor, wake=wake)
        if kind == "StockReserved":
            await self.carts.delete(after.cart_id)
        elif kind == "CancellationBegun" and order.state == rules.CHECKING_OUT:
            await self.carts.hand_back(order.order_id)
        message = announcement(after, kind, data)
        if message is not None:
            await self._events.publish(message, aggregate=after.order_id)
        return after
