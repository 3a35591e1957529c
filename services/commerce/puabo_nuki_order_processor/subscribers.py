"""What order-processor does when others tell it something."""

from nexus.commerce.puabo_nuki_order_processor.v1.events_pb2 import OrderForgotten
from nexus.commerce.puabo_nuki_shipping_service.v1.events_pb2 import ShipmentDelivered, ShipmentMoved
from nexus.commerce.puabo_nuki_shipping_service.v1.shipment_pb2 import ShipmentState
from nexus.finance.billing_service.v1.events_pb2 import DisputeClosed, PaymentAuthorized, PaymentFailed
from nexus.identity.user_auth.v1.events_pb2 import UserErased
from nexus.type.v1.event_pb2 import Event
from services.chassis.messages import text_of
from services.chassis.service import Service
from services.commerce.puabo_nuki_order_processor.order import LEGAL, PAID
from services.commerce.puabo_nuki_order_processor.orders import SYSTEM, Orders
from services.commerce.puabo_nuki_order_processor.store import CartStore, order_of

_ORDER = "order/"


class Subscribers:
    def __init__(self, service: Service) -> None:
        self._orders = service.shared(Orders)
        self._carts = CartStore(service.database).carts
        self._events = service.events

    async def on_payment_authorized(self, message: PaymentAuthorized, event: Event) -> None:
        """The customer is back from the bank."""
        await self._wake(message.reference)

    async def on_payment_failed(self, message: PaymentFailed, event: Event) -> None:
        await self._wake(message.reference)

    async def on_dispute_closed(self, message: DisputeClosed, event: Event) -> None:
        """What the bank took back, and has given back, of an order that was cancelled meanwhile is the customer's."""
        if not (message.won and message.reference.startswith(_ORDER)):
            return
        row = await self._orders.store.orders.get(message.reference.removeprefix(_ORDER))
        if row is not None and (order := order_of(row)).state in LEGAL["DisputeWon"][0]:
            await self._orders.record(order, "DisputeWon", {"dispute_id": message.dispute_id}, SYSTEM)

    async def on_shipment_moved(self, message: ShipmentMoved, event: Event) -> None:
        await self._note(message, "ParcelMoved", {"state": text_of(ShipmentState, message.state)})

    async def on_shipment_delivered(self, message: ShipmentDelivered, event: Event) -> None:
        await self._note(message, "ParcelDelivered", {})

    async def _note(self, message: ShipmentMoved | ShipmentDelivered, kind: str, about: dict[str, str]) -> None:
        row = await self._orders.store.orders.get(message.order_id) if message.key.startswith(_ORDER) else None
        if row is None:
            return
        order = order_of(row)
        if order.state in PAID and any(parcel.shipment_id == message.shipment_id for parcel in order.parcels):
            await self._orders.record(order, kind, {"shipment_id": message.shipment_id, **about}, SYSTEM)

    async def on_user_erased(self, message: UserErased, event: Event) -> None:
        """Orders are kept, as the law wants it, and name nobody; carts go. Who knows the orders by id only is told."""
        for order_id in await self._orders.store.forget_addresses(message.user_id):
            await self._events.publish(OrderForgotten(order_id=order_id), aggregate=order_id)
        await self._carts.delete(customer_id=message.user_id)

    async def _wake(self, reference: str) -> None:
        if reference.startswith(_ORDER):
            await self._orders.woken(reference.removeprefix(_ORDER), waiting=True)
