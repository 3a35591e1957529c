"""What can be done with orders: by customers, by staff, and by the saga that carries them out."""

import asyncio
import contextlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from nexus.commerce.puabo_nuki_order_processor.v1 import orders_pb2 as pb
from nexus.commerce.puabo_nuki_order_processor.v1.faults import (
    CartChanged,
    OrderStateConflict,
    OutOfStock,
    QuantityExceeded,
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
from services.commerce.puabo_nuki_order_processor.invoicing import Addresses
from services.commerce.puabo_nuki_order_processor.messages import announcement
from services.commerce.puabo_nuki_order_processor.order import Action, Draft, Order, apply, decide
from services.commerce.puabo_nuki_order_processor.spec import Config
from services.commerce.puabo_nuki_order_processor.steps import RepaymentRefused, Steps, refused_for_good
from services.commerce.puabo_nuki_order_processor.store import CartStore, OrderStore, order_of

RETURN_DAYS = 30
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
        self._carts = CartStore(service.database)
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
        service.every(self._config.poll_seconds, self.saga.work)

    # Customers

    async def check_out(
        self, draft: Draft, addresses: Addresses, cart_version: int, request_id: str, request_hash: bytes
    ) -> Order:
        """Make an order of what was drafted, and set its stock aside. Raises CartChanged, OutOfStock."""
        order = Order(order_id=new_id())
        async with self._database.transaction():
            if not await self._carts.hand_over(draft.cart_id, cart_version, order.order_id):
                raise CartChanged()
            inserted = await self.store.orders.insert_new(
                order_id=order.order_id,
                customer_id=draft.customer_id,
                request_id=request_id,
                request_hash=request_hash,
                version=order.version,
                state=order.state,
                currency=draft.currency,
                folded=order.model_dump_json(),
                shipping_address=addresses.shipping,
                billing_address=addresses.billing,
            )
            if inserted is None:
                raise Conflict(retry_after=0.1)  # its twin came first: the next attempt finds the order
            await self._append(order, "CheckedOut", draft.model_dump(mode="json"), draft.customer_id, wake=True)
        return await self._checked_out(await self._carried_on(order.order_id))

    async def earlier(self, customer_id: str, request_id: str, request_hash: bytes) -> Order | None:
        """The order that a checkout has made before. Raises IdempotencyKeyReused, OutOfStock."""
        row = await self.store.orders.find(customer_id=customer_id, request_id=request_id)
        if row is None:
            return None
        if row["request_hash"] != request_hash:
            raise IdempotencyKeyReused(key=request_id)
        order = order_of(row)
        if order.state == rules.CHECKING_OUT:
            order = await self._carried_on(order.order_id)
        return await self._checked_out(order)

    async def pay(
        self, order: Order, kind: str, verb: str, request: pb.PlaceOrderRequest | pb.PayOrderRequest
    ) -> Order:
        """`kind` is OrderPlaced, or PaymentRetried. Again with the same request, it says how far it has come."""
        if request.request_id not in order.payment_requests:
            data = {"payment_method_id": request.payment_method_id, "request_id": request.request_id}
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

    async def request_return(self, order: Order, request: pb.RequestReturnRequest, actor: str) -> Order:
        """Raises OrderStateConflict, QuantityExceeded, ReturnTooLate."""
        lines = _units(order, request.lines)
        rules.require(order, "ReturnRequested", "returned")
        days = (await self.store.settings()).return_days or RETURN_DAYS
        if order.fulfil_time is not None and order.fulfil_time + timedelta(days=days) < now():
            raise ReturnTooLate(days=days)
        rules.check_units(order, lines, "returned")
        data = {"return_id": new_id(), "lines": lines, "reason": request.reason}
        return await self.record(order, "ReturnRequested", data, actor)

    # Staff

    async def fulfil(self, request: pb.FulfilOrderRequest, actor: str) -> Order:
        """Raises OrderNotFound, OrderStateConflict, QuantityExceeded."""
        order = await self.get(request.order_id)
        lines = _units(order, request.lines)
        rules.require(order, "ItemsFulfilled", "fulfilled")
        lines = rules.check_units(order, lines, "fulfilled")
        if not lines:
            raise OrderStateConflict(state="without anything left to hand over", verb="fulfilled")
        return await self.record(order, "ItemsFulfilled", {"lines": lines, "note": request.note}, actor)

    async def decide_return(self, request: pb.DecideReturnRequest, actor: str) -> Order:
        """Raises OrderNotFound, OrderStateConflict, ReturnNotFound, QuantityExceeded."""
        order = await self.get(request.order_id)
        rules.require(order, "ReturnAccepted", "returned")
        asked = order.open_return(request.return_id)
        if asked is None:
            raise ReturnNotFound(return_id=request.return_id)
        decided = {"return_id": asked.return_id, "note": request.note}
        if not request.accept:
            return await self.record(order, "ReturnRejected", decided, actor)
        rules.check_units(order, asked.lines, "refunded")
        of_refund = {"refund_id": new_id(), "restock": request.restock}
        order = await self.record(order, "ReturnAccepted", {**decided, **of_refund}, actor)
        refund = {**of_refund, "lines": asked.lines, "shipping": False, "reason": asked.reason or request.note}
        return await self.record(order, "RefundBegun", refund, actor)

    async def refund(self, request: pb.RefundOrderRequest, actor: str) -> Order:
        """Raises OrderNotFound, OrderStateConflict, QuantityExceeded."""
        order = await self.get(request.order_id)
        lines, shipping = _units(order, request.lines), request.shipping
        rules.require(order, "RefundBegun", "refunded")
        if shipping and (order.delivery is None or order.shipping_refunded):
            raise OrderStateConflict(state="without a delivery to refund", verb="refunded")
        if lines or not shipping:
            lines = rules.check_units(order, lines, "refunded")
        if not lines and not shipping:
            raise OrderStateConflict(state="refunded in full", verb="refunded")
        refund = {
            "refund_id": new_id(),
            "lines": lines,
            "shipping": shipping,
            "restock": request.restock,
            "reason": request.reason,
        }
        return await self.record(order, "RefundBegun", refund, actor)

    # All

    async def get(self, order_id: str) -> Order:
        """Raises OrderNotFound."""
        return order_of(await self.store.orders.require(order_id))

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
            begun = await self.store.events.find(order_id=order.order_id, kind="CancellationBegun")
            raise OutOfStock(why=json.loads(begun["data"]).get("why", "") if begun is not None else "")
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
                    return await self._steps.refund(order, order.refund(action.refund_id), action.what)
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
            await self._carts.carts.delete(cart_id=after.cart_id)
        elif kind == "CancellationBegun" and order.state == rules.CHECKING_OUT:
            await self._carts.hand_back(order.order_id)
        message = announcement(after, kind, data)
        if message is not None:
            await self._events.publish(message, aggregate=after.order_id)
        return after


def _units(order: Order, lines: Iterable[pb.LineUnits]) -> dict[int, int]:
    """Units by line, a line named twice counted once. Raises QuantityExceeded for a line that is not there."""
    units = Counter[int]()
    for each in lines:
        if each.line >= len(order.lines):
            raise QuantityExceeded(line=each.line, left=0, verb="counted")
        units[each.line] += each.quantity
    return dict(units)
