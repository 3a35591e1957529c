from datetime import timedelta

from pydantic import BaseModel, Field

from services.chassis.spec import ServiceSpec


class Config(BaseModel):
    open_lifetime: timedelta = timedelta(minutes=15)
    """How long stock is set aside for an order that is not placed yet."""
    payment_lifetime: timedelta = timedelta(minutes=30)
    """How long a placed order waits for the customer's bank, or for another payment after a decline."""
    hold_lifetime: timedelta = timedelta(days=7)
    """How long stock is set aside for an order while it is carried out. What takes longer is cancelled."""
    inline_seconds: float = Field(default=5.0, gt=0)
    """How long a call waits for the order that it has carried out; it goes on without the call then."""
    lease: timedelta = timedelta(seconds=30)
    """How long one process has an order to itself for one step; longer than any call takes."""
    poll_seconds: float = Field(default=1.0, gt=0)
    """How often the worker looks for orders that are due."""
    longest_wait: float = Field(default=60.0, gt=0)
    """Seconds between two attempts at most, while something that an order needs is away."""
    workers: int = Field(default=8, ge=1)
    """How many orders one process carries out at once, beside those that customers wait for."""
    cart_lifetime: timedelta = timedelta(days=30)
    """When a cart that nobody changed is forgotten."""


SERVICE = ServiceSpec(
    id="puabo-nuki-order-processor",
    port=3042,
    calls=[
        "puabo-nuki-product-catalog",
        "puabo-nuki-inventory-mgr",
        "puabo-nuki-shipping-service",
        "billing-service",
        "invoice-gen",
        "ledger-mgr",
    ],
    subscribes=[
        "nexus.finance.billing_service.v1.PaymentAuthorized",
        "nexus.finance.billing_service.v1.PaymentFailed",
        "nexus.finance.billing_service.v1.DisputeClosed",
        "nexus.commerce.puabo_nuki_shipping_service.v1.ShipmentMoved",
        "nexus.commerce.puabo_nuki_shipping_service.v1.ShipmentDelivered",
        "nexus.identity.user_auth.v1.UserErased",
    ],
    config=Config,
)
