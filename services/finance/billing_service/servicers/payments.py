"""PaymentService: what other services ask of payments."""

from nexus.finance.billing_service.v1 import payments_pb2 as pb
from services.chassis.context import RequestContext
from services.chassis.idempotency import RequestKey
from services.chassis.service import Service
from services.finance.billing_service.engine import Engine
from services.finance.billing_service.servicers.common import operation_message, outcome, payment_message

_RECONCILE_AT_ONCE = 100
_LATEST_OPERATIONS = 100


class PaymentService:
    def __init__(self, service: Service) -> None:
        self._sealer = service.sealer
        self._store = service.shared(Engine).store
        self._charging = service.shared(Engine).charging

    async def Authorize(self, request: pb.AuthorizeRequest, call: RequestContext) -> pb.AuthorizeResponse:
        payment = await self._charging.authorize(request, RequestKey.of(request, call, self._sealer))
        return pb.AuthorizeResponse(payment=payment_message(payment))

    async def Capture(self, request: pb.CaptureRequest, call: RequestContext) -> pb.CaptureResponse:
        done = await self._charging.capture(request, RequestKey.of(request, call, self._sealer))
        return pb.CaptureResponse(**outcome(*done))

    async def Void(self, request: pb.VoidRequest, call: RequestContext) -> pb.VoidResponse:
        done = await self._charging.void(request, RequestKey.of(request, call, self._sealer))
        return pb.VoidResponse(**outcome(*done))

    async def Refund(self, request: pb.RefundRequest, call: RequestContext) -> pb.RefundResponse:
        done = await self._charging.refund(request, RequestKey.of(request, call, self._sealer))
        return pb.RefundResponse(**outcome(*done))

    async def GetPayment(self, request: pb.GetPaymentRequest, call: RequestContext) -> pb.GetPaymentResponse:
        payment = await self._store.payments.require(request.payment_id)
        operations = await self._store.operations.page("", _LATEST_OPERATIONS, payment_id=request.payment_id)
        return pb.GetPaymentResponse(
            payment=payment_message(payment),
            operations=[operation_message(operation, payment) for operation in operations],
        )

    async def ReconcilePayments(
        self, request: pb.ReconcilePaymentsRequest, call: RequestContext
    ) -> pb.ReconcilePaymentsResponse:
        settled, in_doubt = await self._charging.reconcile(request.limit or _RECONCILE_AT_ONCE)
        return pb.ReconcilePaymentsResponse(settled=settled, in_doubt=in_doubt)
