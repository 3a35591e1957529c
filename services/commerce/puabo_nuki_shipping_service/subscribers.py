"""What shipping-service does when others tell it something."""

from nexus.commerce.puabo_nuki_order_processor.v1.events_pb2 import OrderForgotten
from nexus.type.v1.event_pb2 import Event
from services.chassis.service import Service
from services.commerce.puabo_nuki_shipping_service.store import Store


class Subscribers:
    def __init__(self, service: Service) -> None:
        self._store = Store(service.database)

    async def on_order_forgotten(self, message: OrderForgotten, event: Event) -> None:
        """Shipments are kept with what they cost and where they were scanned, and name nobody."""
        await self._store.forget_addresses(message.order_id)
