from datetime import timedelta

from pydantic import BaseModel, Field

from services.chassis.spec import Outside, SealedColumn, ServiceSpec


class Config(BaseModel):
    stripe_url: Outside[str] = "https://api.stripe.com"
    """Another one for stripe-mock."""
    paypal_url: Outside[str] = "https://api-m.paypal.com"
    """https://api-m.sandbox.paypal.com for PayPal's own sandbox."""
    provider_timeout: float = Field(default=8.0, gt=0)
    """Seconds that a provider has to answer. What takes longer is in doubt, and asked about again."""
    lease: timedelta = timedelta(seconds=30)
    """How long one process has an operation to itself; longer than `provider_timeout`."""
    round_seconds: float = Field(default=15.0, gt=0)
    """How often this service looks for operations in doubt."""
    action_lifetime: timedelta = timedelta(hours=23)
    """How long a customer has for 3-D Secure; then the payment is given up."""
    sandbox_hang_seconds: float = 5.0
    """How late the sandbox answers for `card_hang`."""


ACCOUNTS = SealedColumn("provider_accounts", "account_sealed", "provider", "provider account {tenant_id} {key}")

SERVICE = ServiceSpec(
    id="billing-service",
    port=3020,
    calls=["ledger-mgr", "invoice-gen", "scheduler"],
    subscribes=[
        "nexus.identity.user_auth.v1.UserCreated",
        "nexus.identity.user_auth.v1.UserErased",
        # Its own, to book them: see subscribers.py.
        "nexus.finance.billing_service.v1.PaymentProcessed",
        "nexus.finance.billing_service.v1.PaymentRefunded",
        "nexus.finance.billing_service.v1.PaymentDisputed",
        "nexus.finance.billing_service.v1.DisputeClosed",
        "nexus.finance.billing_service.v1.BillIssued",
        "nexus.finance.billing_service.v1.BillPaid",
        "nexus.finance.billing_service.v1.SubscriptionChanged",
    ],
    jobs=["bill", "dun"],
    sealed_columns=[ACCOUNTS],
    config=Config,
)
