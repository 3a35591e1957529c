"""What the servicers and the subscribers of one process share, and the jobs that drive it."""

from weakref import WeakKeyDictionary

from services.chassis.database import Database
from services.chassis.service import Service
from services.commerce.puabo_nuki_order_processor.carts import Carts
from services.commerce.puabo_nuki_order_processor.orders import Orders
from services.commerce.puabo_nuki_order_processor.spec import Config

CART_SWEEP_SECONDS = 3600.0


class Engine:
    def __init__(self, service: Service) -> None:
        self._config: Config = service.config
        self.orders = Orders(service)
        self.carts = Carts(service)

    async def sweep(self) -> None:
        await self.carts.store.forget_old(self._config.cart_lifetime)


_engines: "WeakKeyDictionary[Database, Engine]" = WeakKeyDictionary()


def engine(service: Service) -> Engine:
    """The service's engine. Whoever asks first starts its jobs."""
    if service.database not in _engines:
        made = _engines[service.database] = Engine(service)
        config: Config = service.config
        service.every(config.poll_seconds, made.orders.saga.work)
        service.every(CART_SWEEP_SECONDS, made.sweep)
    return _engines[service.database]
