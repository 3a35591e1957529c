"""The use cases of one running service, made once and shared by its servicers, and the jobs that drive them."""

import logging

from services.chassis.context import acting_for
from services.chassis.errors import Fault
from services.chassis.service import Service
from services.finance.billing_service.accounts import Accounts
from services.finance.billing_service.charging import Charging
from services.finance.billing_service.selling import Selling
from services.finance.billing_service.spec import Config
from services.finance.billing_service.store import Store
from services.finance.billing_service.subscribing import Subscribing

_RECONCILE_AT_ONCE = 100
_FORGET_SECONDS = 3600.0

logger = logging.getLogger(__name__)


class Engine:
    """`service.shared(Engine)`."""

    def __init__(self, service: Service) -> None:
        self._config: Config = service.config
        self._database = service.database
        self.store = Store(service.database)
        self.accounts = Accounts(service, self.store)
        self.charging = Charging(service, self.store, self.accounts)
        self.selling = Selling(service, self.store)
        self.subscribing = Subscribing(service, self.store, self.charging, self.selling)
        service.every(self._config.round_seconds, self.round)
        service.every(_FORGET_SECONDS, self.forget)

    async def round(self) -> None:
        """Reconcile for every tenant that has something in doubt. Replicas may do so at once: rows are leased, and
        whoever comes second finds them done."""
        async with self._database.transaction(platform_wide=True):
            in_doubt = await self.store.tenants_in_doubt(self._config.action_lifetime)
        for row in in_doubt:
            await self._reconcile(row["tenant_id"])

    async def forget(self) -> None:
        async with self._database.transaction(platform_wide=True):
            await self.store.forget_notices()

    async def _reconcile(self, tenant: str) -> None:
        """What one tenant's rows cannot do must not keep the others from theirs."""
        with acting_for(tenant):
            try:
                await self.charging.reconcile(_RECONCILE_AT_ONCE)
            except Fault as fault:
                logger.warning("billing waits: %s", fault, extra={"tenant": tenant})
            except Exception:
                logger.exception("billing waits", extra={"tenant": tenant})
