"""PaymentService: what other services ask of payments."""

from nexus.finance.billing_service.v1 import payments_pb2 as pb
from services.chassis.context import RequestContext
from services.chassis.service import Service
from services.finance.billing_service.engine import engine
from services.finance.billing_service.servicers.common import operation_message, payment_message, request_of
from services.finance.billing_service.stores.payments import PaymentStore

_RECONCILE_AT_ONCE = 100
_LATEST_OPERATIONS = 100


class PaymentService:
    def __init__(self, service: Service) -> None:
        self._sealer = service.sealer
        self._store = PaymentStore(service.database)
        self._charging = engine(service).charging

    async def Authorize(self, request: pb.AuthorizeRequest, call: RequestContext) -> pb.AuthorizeResponse:
        payment = await self._charging.authorize(
            request.customer_id,
            request.payment_method_id,
            request.amount,
            reference=request.reference,
            description=request.description,
            capture=request.capture,
            off_session=request.off_session,
            **request_of(request, call, self._sealer),
        )
        return pb.AuthorizeResponse(payment=payment_message(payment))

    async def Capture(self, request: pb.CaptureRequest, call: RequestContext) -> pb.CaptureResponse:
        payment, operation = await self._charging.capture(
            request.payment_id,
            request.amount if request.HasField("amount") else None,
            keep_rest=request.keep_rest,
            **request_of(request, call, self._sealer),
        )
        return pb.CaptureResponse(
            payment=payment_message(payment), operation=operation_message(operation, payment["currency"])
        )

    async def Void(self, request: pb.VoidRequest, call: RequestContext) -> pb.VoidResponse:
        payment, operation = await self._charging.void(request.payment_id, **request_of(request, call, self._sealer))
        return pb.VoidResponse(
            payment=payment_message(payment), operation=operation_message(operation, payment["currency"])
        )

    async def Refund(self, request: pb.RefundRequest, call: RequestContext) -> pb.RefundResponse:
        payment, operation = await self._charging.refund(
            request.payment_id,
            request.amount if request.HasField("amount") else None,
            reason=request.reason,
            **request_of(request, call, self._sealer),
        )
        return pb.RefundResponse(
            payment=payment_message(payment), operation=operation_message(operation, payment["currency"])
        )

    async def GetPayment(self, request: pb.GetPaymentRequest, call: RequestContext) -> pb.GetPaymentResponse:
        payment = await self._charging.payment(request.payment_id)
        operations = (await self._store.operations(request.payment_id))[:_LATEST_OPERATIONS]
        return pb.GetPaymentResponse(
            payment=payment_message(payment),
            operations=[operation_message(operation, payment["currency"]) for operation in operations],
        )

    async def ReconcilePayments(
        self, request: pb.ReconcilePaymentsRequest, call: RequestContext
    ) -> pb.ReconcilePaymentsResponse:
        settled, in_doubt = await self._charging.reconcile(request.limit or _RECONCILE_AT_ONCE)
        return pb.ReconcilePaymentsResponse(settled=settled, in_doubt=in_doubt)
