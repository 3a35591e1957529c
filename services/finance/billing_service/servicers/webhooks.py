"""WebhookService: what payment providers tell us."""

from google.api.httpbody_pb2 import HttpBody

from nexus.finance.billing_service.v1 import webhooks_pb2 as pb
from nexus.finance.billing_service.v1.faults import ProviderAway, WebhookSignatureInvalid
from services.chassis.context import RequestContext, acting_for
from services.chassis.service import Service
from services.chassis.tenants import TenantDirectory
from services.finance.billing_service.engine import Engine
from services.finance.billing_service.providers.interface import InDoubt, SignatureInvalid


class WebhookService:
    def __init__(self, service: Service) -> None:
        self._tenants = TenantDirectory(service.database, service.signals)
        self._store = service.shared(Engine).store
        self._accounts = service.shared(Engine).accounts
        self._charging = service.shared(Engine).charging

    async def ReceiveStripe(self, request: pb.ReceiveStripeRequest, call: RequestContext) -> pb.ReceiveStripeResponse:
        await self._receive("STRIPE", request.tenant, request.notice, call)
        return pb.ReceiveStripeResponse()

    async def ReceivePaypal(self, request: pb.ReceivePaypalRequest, call: RequestContext) -> pb.ReceivePaypalResponse:
        await self._receive("PAYPAL", request.tenant, request.notice, call)
        return pb.ReceivePaypalResponse()

    async def _receive(self, provider_name: str, tenant: str, body: HttpBody, call: RequestContext) -> None:
        """The notice is noted when it has been worked off: until then the provider's repeats are welcome."""
        await self._tenants.require_active(tenant)
        with acting_for(tenant):
            provider = await self._accounts.provider(provider_name)
            try:
                notice = await provider.notice(call.metadata, body.data)
            except SignatureInvalid as error:
                raise WebhookSignatureInvalid() from error
            except InDoubt as error:
                raise ProviderAway(provider=provider_name, retry_after=5) from error
            if await self._store.notices.find(provider=provider_name, notice_id=notice.notice_id) is None:
                if notice.provider_payment_id:
                    await self._charging.refresh(provider_name, notice.provider_payment_id)
                await self._store.notices.insert_new(provider=provider_name, notice_id=notice.notice_id)
