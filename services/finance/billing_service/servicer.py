"""The servicers of billing, one for each gRPC service of its contract."""

from services.finance.billing_service.servicers.customers import CustomerService
from services.finance.billing_service.servicers.payments import PaymentService
from services.finance.billing_service.servicers.plans import BillingPlanService
from services.finance.billing_service.servicers.subscriptions import SubscriptionService
from services.finance.billing_service.servicers.usage import UsageService
from services.finance.billing_service.servicers.webhooks import WebhookService

__all__ = [
    "BillingPlanService",
    "CustomerService",
    "PaymentService",
    "SubscriptionService",
    "UsageService",
    "WebhookService",
]
