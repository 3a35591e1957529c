"""What a shop needs to sell beside its goods: where it sends from, what that costs, its taxes and its letterhead."""

from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf import json_format

from nexus.commerce.puabo_nuki_order_processor.v1.orders_pb2 import SetShopSettingsRequest
from nexus.commerce.puabo_nuki_order_processor.v1.orders_pb2_grpc import OrderDeskServiceStub
from nexus.commerce.puabo_nuki_shipping_service.v1 import shipping_pb2
from nexus.commerce.puabo_nuki_shipping_service.v1.shipping_pb2_grpc import ShippingServiceStub
from nexus.finance.invoice_gen.v1.invoice_gen_pb2 import SetSellerRequest
from nexus.finance.invoice_gen.v1.invoice_gen_pb2_grpc import InvoiceServiceStub
from services.chassis.clients import Clients

Call = Callable[[Any, Any], Awaitable[Any]]
"""(method of a stub, request) → answer, as the shop's owner."""

ADDRESS = {"lines": ["Torstraße 140"], "postcode": "10119", "city": "Berlin", "country": "DE"}
SETTINGS = {"settings": {"origin": {"name": "Atelier Nordlicht", **ADDRESS}}}
ZONE = {"zone": {"zoneId": "world", "name": "World", "areas": [{}]}}
POSTAGE = {"EUR": 490, "USD": 540, "GBP": 430}
"""Up to 30 kg, in minor units."""
SELLER = {
    "seller": {
        "name": "Atelier Nordlicht GmbH",
        "address": ADDRESS,
        "vatId": "DE123456788",
        "registerEntry": "HRB 1234 B, Amtsgericht Berlin",
        "email": "hallo@nordlicht.example",
        "website": "nordlicht.example",
        "colour": "#1f4e79",
        "locale": "de-DE",
        "timeZone": "Europe/Berlin",
        "paymentDays": 14,
    }
}
VAT = {"DE": 1900, "FR": 2000, "ES": 2100, "PT": 2300, "IT": 2200, "NL": 2100, "AT": 2000}
"""Basis points of the standard rate by country."""
TAXES = {
    "settings": {
        "taxRates": [
            {"country": country, "taxCategory": "standard", "basisPoints": rate} for country, rate in VAT.items()
        ]
    }
}


async def open_counter(clients: Clients, call: Call) -> None:
    """Setting all of it again changes nothing."""
    shipping: Any = clients.stub(ShippingServiceStub)
    invoices: Any = clients.stub(InvoiceServiceStub)
    desk: Any = clients.stub(OrderDeskServiceStub)
    await call(shipping.SetSettings, json_format.ParseDict(SETTINGS, shipping_pb2.SetSettingsRequest()))
    await call(shipping.SetZone, json_format.ParseDict(ZONE, shipping_pb2.SetZoneRequest()))
    for currency, price in POSTAGE.items():
        table = {
            "rateTableId": f"standard-{currency.lower()}",
            "carrier": "sandbox",
            "service": "Standard",
            "zoneId": "world",
            "currency": currency,
            "bands": [{"upToGrams": 30_000, "price": price}],
            "minDays": 2,
            "maxDays": 4,
        }
        await call(
            shipping.SetRateTable, json_format.ParseDict({"rateTable": table}, shipping_pb2.SetRateTableRequest())
        )
    await call(invoices.SetSeller, json_format.ParseDict(SELLER, SetSellerRequest()))
    await call(desk.SetShopSettings, json_format.ParseDict(TAXES, SetShopSettingsRequest()))
