"""What can be done with carts: filled, priced, delivered, and made into the draft of an order."""

import base64
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import json_format

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
from nexus.commerce.puabo_nuki_order_processor.v1.orders_pb2 import ShopSettings
from nexus.commerce.puabo_nuki_product_catalog.v1.prices_pb2 import (
    PURCHASABLE_NO_PRICE,
    PURCHASABLE_NOT_PUBLISHED,
    PURCHASABLE_YES,
    ResolvedVariant,
    ResolveLine,
    ResolveVariantsRequest,
)
from nexus.commerce.puabo_nuki_product_catalog.v1.prices_pb2_grpc import PriceServiceStub
from nexus.commerce.puabo_nuki_shipping_service.v1 import shipment_pb2 as shipping
from nexus.commerce.puabo_nuki_shipping_service.v1.faults import BoxNotFound, ItemFitsNoBox
from nexus.commerce.puabo_nuki_shipping_service.v1.shipping_pb2 import PackOrderRequest, QuoteRatesRequest
from nexus.commerce.puabo_nuki_shipping_service.v1.shipping_pb2_grpc import FulfilmentServiceStub, ShippingServiceStub
from nexus.finance.invoice_gen.v1.invoice_gen_pb2 import CalculateInvoiceRequest
from nexus.finance.invoice_gen.v1.invoice_gen_pb2_grpc import IssuingServiceStub
from services.chassis.clock import now
from services.chassis.context import current_tenant
from services.chassis.service import Service
from services.commerce.puabo_nuki_order_processor.invoicing import Addresses, invoice_content
from services.commerce.puabo_nuki_order_processor.order import Delivery, Line, Order, Parcel
from services.commerce.puabo_nuki_order_processor.store import CartStore, OrderStore

MOST_LINES = 100
_MOST_TO_PACK = 200
_HEAVIEST_GRAMS = 1_000_000
_CALL_SECONDS = 8.0
_STANDARD = "standard"
_PROBLEMS = {
    PURCHASABLE_NOT_PUBLISHED: pb.LINE_PROBLEM_NOT_PUBLISHED,
    PURCHASABLE_NO_PRICE: pb.LINE_PROBLEM_NO_PRICE,
}


@dataclass
class Priced:
    """A cart with what the catalogue and the stock say of it now."""

    row: Any
    lines: list[pb.CartLine]
    draft: Order
    """Of the lines that can be bought."""
    resolved: list[ResolvedVariant] = field(default_factory=list)
    """Of the same lines."""

    @property
    def addresses(self) -> Addresses | None:
        return cart_addresses(self.row)


class Carts:
    def __init__(self, service: Service) -> None:
        self._database = service.database
        self._sealer = service.sealer
        self.store = CartStore(service.database)
        self._orders = OrderStore(service.database)
        self._prices = service.clients.stub(PriceServiceStub)
        self._stock = service.clients.stub(InventoryServiceStub)
        self._shipping = service.clients.stub(ShippingServiceStub)
        self._fulfilment = service.clients.stub(FulfilmentServiceStub)
        self._invoices = service.clients.stub(IssuingServiceStub)

    def secret(self, cart_id: str) -> str:
        """What opens the cart: only we can make it, so that it need not be kept."""
        digest = self._sealer.digest(f"cart {current_tenant()} {cart_id}".encode())
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")

    async def open(self, cart_id: str, secret: str, *, etag: str = "", lock: str = "") -> Any:
        """Raises CartNotFound, CartChanged."""
        if not hmac.compare_digest(secret.encode(), self.secret(cart_id).encode()):
            raise CartNotFound(cart_id=cart_id)
        row = await self.store.get(cart_id, lock=lock)
        if row is None:
            raise CartNotFound(cart_id=cart_id)
        if etag and etag != str(row["version"]):
            raise CartChanged()
        return row

    async def of_customer(
        self, customer_id: str, channel: str, currency: str, guest_cart_id: str, guest_secret: str
    ) -> str:
        """The id of the customer's cart, with what is in the guest's. Raises CartNotFound, CartFull."""
        async with self._database.transaction():
            own = await self.store.of_customer(customer_id, channel, currency)
            if guest_cart_id and guest_cart_id != own["cart_id"]:
                guest = await self.open(guest_cart_id, guest_secret, lock="FOR UPDATE")
                lines = lines_of(own)
                for variant_id, quantity in lines_of(guest).items():
                    lines[variant_id] = lines.get(variant_id, 0) + quantity
                await self._put(own["cart_id"], lines)
                if guest["shipping_address"] and not own["shipping_address"]:
                    known = cart_addresses(guest)
                    assert known is not None
                    await self.store.set_addresses(own["cart_id"], known.shipping, known.billing)
                await self.store.delete(guest_cart_id)
        return str(own["cart_id"])

    async def set_lines(self, cart_id: str, secret: str, quantities: Mapping[str, int], etag: str) -> Any:
        async with self._database.transaction():
            row = await self.open(cart_id, secret, etag=etag, lock="FOR UPDATE")
            await self._put(cart_id, {**lines_of(row), **quantities})
            return await self.open(cart_id, secret)

    async def _put(self, cart_id: str, lines: Mapping[str, int]) -> None:
        left = {variant_id: quantity for variant_id, quantity in lines.items() if quantity}
        if len(left) > MOST_LINES:
            raise CartFull(most=MOST_LINES)
        await self.store.set_lines(cart_id, left)

    async def set_addresses(
        self, cart_id: str, secret: str, to: shipping.Address, bill_to: shipping.Address | None, etag: str
    ) -> Any:
        async with self._database.transaction():
            await self.open(cart_id, secret, etag=etag, lock="FOR UPDATE")
            await self.store.set_addresses(cart_id, to, bill_to)
            return await self.open(cart_id, secret)

    async def offer_deliveries(self, cart_id: str, secret: str) -> list[Delivery]:
        """The cheapest first. Raises CartNotReady."""
        row = await self.open(cart_id, secret)
        priced = await self.price(row)
        addresses = priced.addresses
        if addresses is None:
            raise CartNotReady(why="the address is missing")
        parcels = await self._pack(priced)
        if not parcels:
            return []
        request = QuoteRatesRequest(
            to=addresses.shipping,
            parcels=[_parcel_message(parcel) for parcel in parcels],
            currency=row["currency"],
            goods_value=priced.draft.goods,
        )
        quotes = (await self._shipping.QuoteRates(request, timeout=_CALL_SECONDS)).quotes
        offers = [
            Delivery(
                quote_id=quote.quote_id,
                carrier=quote.carrier,
                service=quote.service,
                price=quote.price.minor_units,
                min_days=quote.min_days,
                max_days=quote.max_days,
                expire_time=quote.expire_time.ToDatetime(now().tzinfo),
            )
            for quote in quotes
        ]
        offers.sort(key=lambda offer: (offer.price, offer.max_days))
        await self.store.set_offers(
            cart_id,
            row["version"],
            [offer.model_dump(mode="json") for offer in offers],
            [parcel.model_dump(mode="json") for parcel in parcels],
        )
        return offers

    async def choose_delivery(self, cart_id: str, secret: str, quote_id: str, etag: str) -> Any:
        """Raises ShippingOptionUnknown."""
        async with self._database.transaction():
            row = await self.open(cart_id, secret, etag=etag, lock="FOR UPDATE")
            offers = [Delivery.model_validate(offer) for offer in json.loads(row["offers"])]
            chosen = next((offer for offer in offers if offer.quote_id == quote_id), None)
            if chosen is None or chosen.expire_time <= now():
                raise ShippingOptionUnknown()
            await self.store.choose(cart_id, chosen.model_dump(mode="json"))
            return await self.open(cart_id, secret)

    async def price(self, row: Any) -> Priced:
        """The cart as it is now: prices, stock, taxes of the address, totals."""
        draft = Order(order_id="", cart_id=row["cart_id"], channel=row["channel"], currency=row["currency"])
        priced = Priced(row, [], draft)
        wanted = lines_of(row)
        if not wanted:
            return priced
        request = ResolveVariantsRequest(
            lines=[ResolveLine(variant_id=variant, quantity=quantity) for variant, quantity in wanted.items()],
            channel=row["channel"],
            currency=row["currency"],
        )
        answer = await self._prices.ResolveVariants(request, timeout=_CALL_SECONDS)
        in_stock = await self._stock.GetAvailability(
            GetAvailabilityRequest(item_ids=list(wanted)), timeout=_CALL_SECONDS
        )
        available = {item.item_id: item.available for item in in_stock.items}
        rates = await self._rates(priced.addresses)
        for (variant_id, quantity), found in zip(wanted.items(), answer.variants, strict=True):
            line = _cart_line(variant_id, quantity, found, available[variant_id])
            priced.lines.append(line)
            if found.purchasable == PURCHASABLE_YES:
                priced.resolved.append(found)
                draft.tax_included = found.tax_included
                draft.lines.append(
                    Line(
                        variant_id=variant_id,
                        sku=found.variant.sku,
                        title=found.product_title,
                        variant_title=found.variant_title,
                        quantity=quantity,
                        unit_price=found.price.minor_units,
                        tax_basis_points=rates.get(found.variant.tax_category or _STANDARD, 0),
                        digital=found.variant.digital,
                    )
                )
        draft.goods = sum(line.unit_price * line.quantity for line in draft.lines)
        if row["delivery"]:
            draft.delivery = Delivery.model_validate_json(row["delivery"])
            draft.parcels = [Parcel.model_validate(parcel) for parcel in json.loads(row["parcels"])]
            draft.shipping_tax_basis_points = rates.get(_STANDARD, 0)
        await self._add_up(draft, priced.addresses)
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

    async def _add_up(self, draft: Order, addresses: Addresses | None) -> None:
        draft.total = draft.goods + (draft.delivery.price if draft.delivery is not None else 0)
        if addresses is not None and draft.lines:
            content = invoice_content(draft, addresses)
            request = CalculateInvoiceRequest(content=content)
            totals = (await self._invoices.CalculateInvoice(request, timeout=_CALL_SECONDS)).totals
            draft.tax, draft.total = totals.tax, totals.total

    async def _rates(self, addresses: Addresses | None) -> dict[str, int]:
        """Rates of tax by category, where the goods go to."""
        settings = await self._orders.settings()
        if addresses is None or settings is None:
            return {}
        known = json_format.Parse(settings["settings"], ShopSettings())
        country = addresses.shipping.country
        return {rate.tax_category: rate.basis_points for rate in known.tax_rates if rate.country == country}

    async def _pack(self, priced: Priced) -> list[Parcel]:
        """In the tenant's boxes, where the sizes are known and fit; else one parcel of all the weight."""
        things = [found for found in priced.resolved if not found.variant.digital]
        if not things:
            return []
        measured = all(
            min(found.variant.length_mm, found.variant.width_mm, found.variant.height_mm) > 0 for found in things
        )
        if measured and sum(found.quantity for found in things) <= _MOST_TO_PACK:
            items = [
                shipping.PackingItem(
                    item_id=found.variant.variant_id,
                    quantity=found.quantity,
                    length_mm=min(found.variant.length_mm, 10_000),
                    width_mm=min(found.variant.width_mm, 10_000),
                    height_mm=min(found.variant.height_mm, 10_000),
                    weight_grams=min(found.variant.weight_grams, _HEAVIEST_GRAMS),
                )
                for found in things
            ]
            try:
                packed = await self._fulfilment.PackOrder(PackOrderRequest(items=items), timeout=_CALL_SECONDS)
                return [_parcel(box.parcel) for box in packed.boxes]
            except (BoxNotFound, ItemFitsNoBox):
                pass
        weight = sum(found.variant.weight_grams * found.quantity for found in things)
        return [Parcel(weight_grams=min(max(weight, 1), _HEAVIEST_GRAMS))]


def lines_of(row: Any) -> dict[str, int]:
    """Quantities by variant."""
    return dict(json.loads(row["lines"]))


def cart_addresses(row: Any) -> Addresses | None:
    if not row["shipping_address"]:
        return None
    billing = row["billing_address"]
    return Addresses(
        json_format.Parse(row["shipping_address"], shipping.Address()),
        json_format.Parse(billing, shipping.Address()) if billing else None,
    )


def drafted(priced: Priced, customer_id: str) -> dict[str, Any]:
    """What the first event of the order says: everything that is frozen, and nothing personal."""
    fields = {
        "cart_id",
        "channel",
        "currency",
        "tax_included",
        "lines",
        "delivery",
        "shipping_tax_basis_points",
        "parcels",
        "goods",
        "tax",
        "total",
    }
    return {**priced.draft.model_dump(mode="json", include=fields), "customer_id": customer_id}


def _cart_line(variant_id: str, quantity: int, found: ResolvedVariant, available: int) -> pb.CartLine:
    line = pb.CartLine(
        variant_id=variant_id,
        sku=found.variant.sku,
        title=found.product_title,
        variant_title=found.variant_title,
        quantity=quantity,
    )
    if found.HasField("regular_price"):
        line.regular_price.CopyFrom(found.regular_price)
    if found.purchasable != PURCHASABLE_YES:
        line.problem = _PROBLEMS.get(found.purchasable, pb.LINE_PROBLEM_UNKNOWN)
        return line
    line.unit_price.CopyFrom(found.price)
    line.line_price.CopyFrom(found.price)
    line.line_price.minor_units *= quantity
    if available < quantity:
        line.problem = pb.LINE_PROBLEM_OUT_OF_STOCK
    return line


def _parcel(parcel: shipping.Parcel) -> Parcel:
    return Parcel(
        weight_grams=parcel.weight_grams,
        length_mm=parcel.length_mm,
        width_mm=parcel.width_mm,
        height_mm=parcel.height_mm,
    )


def _parcel_message(parcel: Parcel) -> shipping.Parcel:
    return shipping.Parcel(
        weight_grams=parcel.weight_grams,
        length_mm=parcel.length_mm,
        width_mm=parcel.width_mm,
        height_mm=parcel.height_mm,
    )
