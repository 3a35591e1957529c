from datetime import timedelta

from pydantic import BaseModel

from services.chassis.spec import Outside, SealedColumn, ServiceSpec


class Config(BaseModel):
    quote_lifetime: timedelta = timedelta(hours=2)
    """How long a quote is honoured."""
    easypost_url: Outside[str] = "https://api.easypost.com/v2"
    carrier_timeout: timedelta = timedelta(seconds=10)
    """How long a carrier may take to answer one request."""


ACCOUNTS = SealedColumn("carrier_accounts", "sealed", "carrier", "carrier account {tenant_id} {key}")

SERVICE = ServiceSpec(
    id="puabo-nuki-shipping-service",
    port=3043,
    calls=["puabo-nexus-route-optimizer"],
    subscribes=["nexus.commerce.puabo_nuki_order_processor.v1.OrderForgotten"],
    # Where EasyPost keeps the labels that it makes; older ones by the second name.
    outside=["easypost-files.s3.us-west-2.amazonaws.com", "easypost-files.s3-us-west-2.amazonaws.com"],
    sealed_columns=[ACCOUNTS],
    config=Config,
)
