"""What can be done with carts: filled, priced, delivered, and made into the draft of an order."""

import base64
import contextlib
import hmac
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from nexus.commerce.puabo_nuki_inventory_mgr.v1.inventory_pb2 import GetAvailabilityRequest
from nexus.commerce.puabo_nuki_inventory_mgr.v1.inventory_pb2_grpc import InventoryServiceStub
from nexus.commerce.puabo_nuki_order_processor.v1 import carts_pb2 as pb
from nexus.commerce.puabo_nuki_order_processor.v1.faults import (
    CartChanged,
    CartFull,
    CartNotFound,
    CartNotReady,
    ShippingOptionUnknown,
)
from nexus.commerce.puabo_nuki_product_catalog.v1 import prices_pb2 as catalog
from nexus.commerce.puabo_nuki_product_catalog.v1.prices_pb2_grpc import PriceServiceStub
from nexus.commerce.puabo_nuki_shipping_service.v1 import shipment_pb2 as shipping
from nexus.commerce.puabo_nuki_shipping_service.v1.faults import BoxNotFound, ItemFitsNoBox
from nexus.commerce.puabo_nuki_shipping_service.v1.shipping_pb2 import PackOrderRequest, QuoteRatesRequest
from nexus.commerce.puabo_nuki_shipping_service.v1.shipping_pb2_grpc import FulfilmentServiceStub, ShippingServiceStub
from nexus.finance.invoice_gen.v1.invoice_gen_pb2 import CalculateInvoiceRequest
from nexus.finance.invoice_gen.v1.invoice_gen_pb2_grpc import IssuingServiceStub
from nexus.type.v1.money_pb2 import Money
from services.chassis.clock import moment, now
from services.chassis.context import current_tenant
from services.chassis.ids import new_id
from services.chassis.messages import MessageOf, values_of
from services.chassis.service import Service
from services.chassis.table import Row
from services.commerce.puabo_nuki_order_processor.invoicing import Addresses, addresses_of, invoice_content
from services.commerce.puabo_nuki_order_processor.order import Delivery, Draft, Line, Parcel
from services.commerce.puabo_nuki_order_processor.spec import Config
from services.commerce.puabo_nuki_order_processor.store import CartStore, OrderStore

MOST_LINES = 100
SWEEP_SECONDS = 3600.0
_CHANNEL = "default"
_MOST_TO_PACK = 200
_HEAVIEST_GRAMS = 1_000_000
_LONGEST_MM = 10_000
_CALL_SECONDS = 8.0
_STANDARD = "standard"
_PROBLEMS = {
    catalog.PURCHASABLE_NOT_PUBLISHED: pb.LINE_PROBLEM_NOT_PUBLISHED,
    catalog.PURCHASABLE_NO_PRICE: pb.LINE_PROBLEM_NO_PRICE,
}
_ADDRESSES = ("shipping_address", "billing_address")
_ANEW: dict[str, Any] = {"offers": "[]", "parcels": "[]", "delivery": None}
"""What was offered and chosen for other goods, or for another place, is forgotten."""
_OFFERS, _PARCELS = TypeAdapter(list[Delivery]), TypeAdapter(list[Parcel])

_line = MessageOf(pb.CartLine)
parcel_message = MessageOf(shipping.Parcel)


@dataclass
class Priced:
    """A cart with what the catalogue and the stock say of it now."""

    row: Row
    addresses: Addresses | None
    draft: Draft
    """Of the lines that can be bought."""
    lines: list[pb.CartLine] = field(default_factory=list)
    resolved: list[catalog.ResolvedVariant] = field(default_factory=list)
    """Of the same lines as the draft's."""


class Carts:
    def __init__(self, service: Service) -> None:
        self._config: Config = service.config
        self._database = service.database
        self._sealer = service.sealer
        self._store = CartStore(service.database)
        self._carts = self._store.carts
        self._orders = OrderStore(service.database)
        self._prices = service.clients.stub(PriceServiceStub, timeout=_CALL_SECONDS)
        self._stock = service.clients.stub(InventoryServiceStub, timeout=_CALL_SECONDS)
        self._shipping = service.clients.stub(ShippingServiceStub, timeout=_CALL_SECONDS)
        self._fulfilment = service.clients.stub(FulfilmentServiceStub, timeout=_CALL_SECONDS)
        self._invoices = service.clients.stub(IssuingServiceStub, timeout=_CALL_SECONDS)
        service.every(SWEEP_SECONDS, self._forget_old)

    def secret(self, cart_id: str) -> str:
        """What opens the cart: only we can make it, so that it need not be kept."""
        digest = self._sealer.digest(f"cart {current_tenant()} {cart_id}".encode())
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")

    async def create(self, channel: str, currency: str) -> Row:
        return await self._carts.insert(cart_id=new_id(), channel=channel or _CHANNEL, currency=currency)

    async def open(self, cart_id: str, secret: str, *, etag: str = "", lock: bool = False) -> Row:
        """Raises CartNotFound, CartChanged."""
        if not hmac.compare_digest(secret.encode(), self.secret(cart_id).encode()):
            raise CartNotFound(cart_id=cart_id)
        row = await self._carts.require(cart_id, lock=lock)
        if row["order_id"] is not None:
            raise CartNotFound(cart_id=cart_id)
        if etag and etag != str(row["version"]):
            raise CartChanged()
        return row

    async def of_customer(self, customer_id: str, request: pb.OpenMyCartRequest) -> Row:
        """The customer's cart, with what is in the guest's. Raises CartNotFound, CartFull."""
        async with self._database.transaction():
            own = await self._store.of_customer(customer_id, request.channel or _CHANNEL, request.currency)
            if own["order_id"] is not None:
                raise CartNotFound(cart_id=own["cart_id"])
            if request.guest_cart_id in ("", own["cart_id"]):
                return own
            guest = await self.open(request.guest_cart_id, request.guest_cart_secret, lock=True)
            known = {} if own["shipping_address"] else {name: guest[name] for name in _ADDRESSES}
            await self._carts.delete(cart_id=request.guest_cart_id)
            return await self._put(own, Counter(lines_of(own)) + Counter(lines_of(guest)), **known)

    async def set_lines(self, request: pb.SetCartLinesRequest) -> Row:
        async with self._database.transaction():
            row = await self._open_to_change(request)
            return await self._put(row, {**lines_of(row), **{line.variant_id: line.quantity for line in request.lines}})

    async def set_addresses(self, request: pb.SetCartAddressRequest) -> Row:
        async with self._database.transaction():
            row = await self._open_to_change(request)
            return await self._carts.change(
                row["cart_id"],
                shipping_address=request.shipping_address,
                billing_address=request.billing_address if request.HasField("billing_address") else None,
                **_ANEW,
            )

    async def offer_deliveries(self, row: Row) -> list[Delivery]:
        """The cheapest first. Raises CartNotReady."""
        priced = await self.price(row)
        if priced.addresses is None:
            raise CartNotReady(why="the address is missing")
        parcels = await self._pack(priced)
        if not parcels:
            return []
        request = QuoteRatesRequest(
            to=priced.addresses.shipping,
            parcels=[parcel_message(dict(parcel)) for parcel in parcels],
            currency=row["currency"],
            goods_value=priced.draft.goods,
        )
        quotes = (await self._shipping.QuoteRates(request)).quotes
        offers = [
            Delivery(
                price=quote.price.minor_units,
                expire_time=moment(quote.expire_time),
                **values_of(quote, "quote_id", "carrier", "service", "min_days", "max_days"),
            )
            for quote in quotes
        ]
        offers.sort(key=lambda offer: (offer.price, offer.max_days))
        offered, packed = _OFFERS.dump_json(offers).decode(), _PARCELS.dump_json(parcels).decode()
        await self._store.set_offers(row["cart_id"], row["version"], offered, packed)
        return offers

    async def choose_delivery(self, request: pb.ChooseShippingRequest) -> Row:
        """Raises ShippingOptionUnknown."""
        async with self._database.transaction():
            row = await self._open_to_change(request)
            offers = _OFFERS.validate_json(row["offers"])
            chosen = next((offer for offer in offers if offer.quote_id == request.quote_id), None)
            if chosen is None or chosen.expire_time <= now():
                raise ShippingOptionUnknown()
            return await self._carts.change(row["cart_id"], delivery=chosen.model_dump_json())

    async def price(self, row: Row) -> Priced:
        """The cart as it is now: prices, stock, taxes of the address, totals."""
        addresses = addresses_of(row) if row["shipping_address"] else None
        draft = Draft(cart_id=row["cart_id"], channel=row["channel"], currency=row["currency"])
        priced = Priced(row, addresses, draft)
        wanted = lines_of(row)
        if not wanted:
            return priced
        request = catalog.ResolveVariantsRequest(
            lines=[catalog.ResolveLine(variant_id=variant, quantity=quantity) for variant, quantity in wanted.items()],
            channel=row["channel"],
            currency=row["currency"],
        )
        answer = await self._prices.ResolveVariants(request)
        in_stock = await self._stock.GetAvailability(GetAvailabilityRequest(item_ids=list(wanted)))
        available = {item.item_id: item.available for item in in_stock.items}
        rates = await self._rates(addresses)
        for (variant_id, quantity), found in zip(wanted.items(), answer.variants, strict=True):
            line = Line(
                variant_id=variant_id,
                sku=found.variant.sku,
                title=found.product_title,
                variant_title=found.variant_title,
                quantity=quantity,
                unit_price=found.price.minor_units,
                tax_basis_points=rates.get(found.variant.tax_category or _STANDARD, 0),
                digital=found.variant.digital,
            )
            priced.lines.append(_cart_line(line, found, available[variant_id]))
            if found.purchasable == catalog.PURCHASABLE_YES:
                priced.resolved.append(found)
                draft.tax_included = found.tax_included
                draft.lines.append(line)
        draft.goods = draft.total = sum(line.unit_price * line.quantity for line in draft.lines)
        if row["delivery"]:
            draft.delivery = Delivery.model_validate_json(row["delivery"])
            draft.parcels = _PARCELS.validate_json(row["parcels"])
            draft.shipping_tax_basis_points = rates.get(_STANDARD, 0)
            draft.total += draft.delivery.price
        if addresses is not None and draft.lines:
            calculation = CalculateInvoiceRequest(content=invoice_content(draft, addresses))
            totals = (await self._invoices.CalculateInvoice(calculation)).totals
            draft.tax, draft.total = totals.tax, totals.total
        return priced

    def check_ready(self, priced: Priced) -> Addresses:
        """Where the order would go to. Raises CartNotReady."""
        addresses, draft = priced.addresses, priced.draft
        why = ""
        if not priced.lines:
            why = "it is empty"
        elif unsold := [line for line in priced.lines if line.problem not in (0, pb.LINE_PROBLEM_OUT_OF_STOCK)]:
            why = f"{unsold[0].title or unsold[0].variant_id} cannot be bought"
        elif addresses is None:
            why = "the address is missing"
        elif not addresses.bill_to.name and not addresses.bill_to.company:
            why = "the address names nobody"
        elif len({found.tax_included for found in priced.resolved}) > 1:
            why = "some of its prices contain the tax and some do not"
        elif draft.delivery is None and not all(line.digital for line in draft.lines):
            why = "no way of delivery is chosen"
        elif draft.delivery is not None and draft.delivery.expire_time <= now():
            why = "the way of delivery is not offered any more"
        if why or addresses is None:
            raise CartNotReady(why=why)
        return addresses

    async def _open_to_change(self, request: Any) -> Row:
        return await self.open(request.cart_id, request.cart_secret, etag=request.etag, lock=True)

    async def _put(self, row: Row, lines: Mapping[str, int], **addresses: str) -> Row:
        left = [(variant_id, quantity) for variant_id, quantity in lines.items() if quantity]
        if len(left) > MOST_LINES:
            raise CartFull(most=MOST_LINES)
        return await self._carts.change(row["cart_id"], lines=json.dumps(left), **addresses, **_ANEW)

    async def _rates(self, addresses: Addresses | None) -> dict[str, int]:
        """Rates of tax by category, where the goods go to."""
        if addresses is None:
            return {}
        rates = (await self._orders.settings()).tax_rates
        return {rate.tax_category: rate.basis_points for rate in rates if rate.country == addresses.shipping.country}

    async def _pack(self, priced: Priced) -> list[Parcel]:
        """In the tenant's boxes, where the sizes are known and fit; else one parcel of all the weight."""
        things = [found for found in priced.resolved if not found.variant.digital]
        if not things:
            return []
        sizes = [(one.variant.length_mm, one.variant.width_mm, one.variant.height_mm) for one in things]
        if all(min(size) > 0 for size in sizes) and sum(found.quantity for found in things) <= _MOST_TO_PACK:
            items = [
                shipping.PackingItem(
                    item_id=found.variant.variant_id,
                    quantity=found.quantity,
                    length_mm=min(length, _LONGEST_MM),
                    width_mm=min(width, _LONGEST_MM),
                    height_mm=min(height, _LONGEST_MM),
                    weight_grams=min(found.variant.weight_grams, _HEAVIEST_GRAMS),
                )
                for found, (length, width, height) in zip(things, sizes, strict=True)
            ]
            with contextlib.suppress(BoxNotFound, ItemFitsNoBox):
                packed = await self._fulfilment.PackOrder(PackOrderRequest(items=items))
                return _PARCELS.validate_python([box.parcel for box in packed.boxes], from_attributes=True)
        weight = sum(found.variant.weight_grams * found.quantity for found in things)
        return [Parcel(weight_grams=min(max(weight, 1), _HEAVIEST_GRAMS))]

    async def _forget_old(self) -> None:
        await self._store.forget_old(self._config.cart_lifetime)


def lines_of(row: Row) -> dict[str, int]:
    """Quantities by variant."""
    return dict(json.loads(row["lines"]))


def _cart_line(line: Line, found: catalog.ResolvedVariant, available: int) -> pb.CartLine:
    regular_price = found.regular_price if found.HasField("regular_price") else None
    if found.purchasable != catalog.PURCHASABLE_YES:
        problem = _PROBLEMS.get(found.purchasable, pb.LINE_PROBLEM_UNKNOWN)
        return _line(dict(line), unit_price=None, line_price=None, regular_price=regular_price, problem=problem)
    return _line(
        dict(line),
        unit_price=found.price,
        line_price=Money(currency=found.price.currency, minor_units=line.unit_price * line.quantity),
        regular_price=regular_price,
        problem=pb.LINE_PROBLEM_OUT_OF_STOCK if available < line.quantity else None,
    )
