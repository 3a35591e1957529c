"""Quotas of tenants, for the services whose rows they count. A service that uses this declares puabo-os among its
`calls`, and names QUOTA_EXCEEDED among the errors of its methods."""

import asyncio
import contextvars
import logging

from nexus.modules.puabo_os.v1.quotas_pb2 import ConsumeQuotaRequest, ReleaseQuotaRequest
from nexus.modules.puabo_os.v1.quotas_pb2_grpc import QuotaServiceStub
from services.chassis.clients import Clients
from services.chassis.context import acting_for, current_tenant
from services.chassis.database import Database
from services.chassis.errors import Fault

logger = logging.getLogger(__name__)


class Quotas:
    """What is counted is a row with an id. When the row goes, puabo-os hears of it by event and counts one fewer."""

    def __init__(self, clients: Clients, database: Database) -> None:
        self._quotas = clients.stub(QuotaServiceStub)
        self._database = database
        self._giving_back: set[asyncio.Task[None]] = set()

    async def take(self, counter: str, row_id: str, present: int) -> None:
        """One, in the transaction that inserts the row: given back if that comes to nothing. A process that dies
        between the two leaves one that is counted and not there. `present` is how many rows there are without it:
        those of before the tenant's plan counted them.

        Raises QuotaExceeded.
        """
        tenant = current_tenant()
        assert tenant is not None, "quotas belong to a tenant"
        request = ConsumeQuotaRequest(counter=counter, amount=1, request_id=row_id, present=present)
        await self._quotas.ConsumeQuota(request)
        self._database.after_rollback(lambda: self._give_back_later(tenant, counter, row_id))

    def _give_back_later(self, tenant: str, counter: str, row_id: str) -> None:
        # Not within the call that failed: its time may be over.
        task = asyncio.create_task(self._try_to_give_back(tenant, counter, row_id), context=contextvars.Context())
        self._giving_back.add(task)
        task.add_done_callback(self._giving_back.discard)

    async def _try_to_give_back(self, tenant: str, counter: str, row_id: str) -> None:
        with acting_for(tenant):
            request = ReleaseQuotaRequest(counter=counter, amount=1, request_id=f"{row_id}/given-back")
            try:
                await self._quotas.ReleaseQuota(request)
            except Fault as fault:
                logger.warning("one of %s stays counted: %s", counter, fault, extra={"tenant": tenant})
