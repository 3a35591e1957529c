"""CartService, OrderService, OrderDeskService: proto to use cases and back."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from google.protobuf import json_format

from nexus.commerce.puabo_nuki_order_processor.v1 import carts_pb2 as carts
from nexus.commerce.puabo_nuki_order_processor.v1 import orders_pb2 as pb
from nexus.commerce.puabo_nuki_order_processor.v1.faults import (
    OrderNotFound,
    QuantityExceeded,
    SettingsChanged,
    TotalChanged,
)
from nexus.type.v1.money_pb2 import Money
from services.chassis.clock import now
from services.chassis.context import RequestContext
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.commerce.puabo_nuki_order_processor.carts import drafted
from services.commerce.puabo_nuki_order_processor.engine import engine
from services.commerce.puabo_nuki_order_processor.messages import (
    cart_message,
    delivery_message,
    order_message,
    timeline_message,
)
from services.commerce.puabo_nuki_order_processor.order import Order

READ, WRITE = "orders.read", "orders.write"
RETURN_DAYS = 30
SALES_DAYS = 30
_CHANNEL = "default"


class CartService:
    def __init__(self, service: Service) -> None:
        self._carts = engine(service).carts

    async def CreateCart(self, request: carts.CreateCartRequest, call: RequestContext) -> carts.CreateCartResponse:
        row = await self._carts.store.insert(request.channel or _CHANNEL, request.currency)
        return carts.CreateCartResponse(cart=await self._cart(row), cart_secret=self._carts.secret(row["cart_id"]))

    async def OpenMyCart(self, request: carts.OpenMyCartRequest, call: RequestContext) -> carts.OpenMyCartResponse:
        cart_id = await self._carts.of_customer(
            call.user.user_id,
            request.channel or _CHANNEL,
            request.currency,
            request.guest_cart_id,
            request.guest_cart_secret,
        )
        secret = self._carts.secret(cart_id)
        return carts.OpenMyCartResponse(
            cart=await self._cart(await self._carts.open(cart_id, secret)), cart_secret=secret
        )

    async def GetCart(self, request: carts.GetCartRequest, call: RequestContext) -> carts.GetCartResponse:
        return carts.GetCartResponse(
            cart=await self._cart(await self._carts.open(request.cart_id, request.cart_secret))
        )

    async def SetCartLines(
        self, request: carts.SetCartLinesRequest, call: RequestContext
    ) -> carts.SetCartLinesResponse:
        quantities = {line.variant_id: line.quantity for line in request.lines}
        row = await self._carts.set_lines(request.cart_id, request.cart_secret, quantities, request.etag)
        return carts.SetCartLinesResponse(cart=await self._cart(row))

    async def SetCartAddress(
        self, request: carts.SetCartAddressRequest, call: RequestContext
    ) -> carts.SetCartAddressResponse:
        bill_to = request.billing_address if request.HasField("billing_address") else None
        row = await self._carts.set_addresses(
            request.cart_id, request.cart_secret, request.shipping_address, bill_to, request.etag
        )
        return carts.SetCartAddressResponse(cart=await self._cart(row))

    async def ListShippingOptions(
        self, request: carts.ListShippingOptionsRequest, call: RequestContext
    ) -> carts.ListShippingOptionsResponse:
        row = await self._carts.open(request.cart_id, request.cart_secret)
        offers = await self._carts.offer_deliveries(request.cart_id, request.cart_secret)
        return carts.ListShippingOptionsResponse(options=[delivery_message(offer, row["currency"]) for offer in offers])

    async def ChooseShipping(
        self, request: carts.ChooseShippingRequest, call: RequestContext
    ) -> carts.ChooseShippingResponse:
        row = await self._carts.choose_delivery(request.cart_id, request.cart_secret, request.quote_id, request.etag)
        return carts.ChooseShippingResponse(cart=await self._cart(row))

    async def _cart(self, row: Any) -> carts.Cart:
        return cart_message(await self._carts.price(row))


class OrderService:
    def __init__(self, service: Service) -> None:
        self._orders, self._carts = engine(service).orders, engine(service).carts
        self._store = self._orders.store
        self._pager = Pager(service.sealer)
        self._sealer = service.sealer

    async def Checkout(self, request: pb.CheckoutRequest, call: RequestContext) -> pb.CheckoutResponse:
        customer_id = call.user.user_id
        request_hash = self._sealer.digest(request.SerializeToString(deterministic=True))
        order = await self._orders.earlier(customer_id, request.request_id, request_hash)
        if order is None:
            row = await self._carts.open(request.cart_id, request.cart_secret, etag=request.cart_etag)
            priced = await self._carts.price(row)
            addresses = self._carts.check_ready(priced)
            draft = priced.draft
            total = Money(currency=draft.currency, minor_units=draft.total)
            if request.HasField("expected_total") and request.expected_total != total:
                raise TotalChanged(total=draft.total, currency=draft.currency)
            order = await self._orders.check_out(
                drafted(priced, customer_id), addresses, row["version"], request.request_id, request_hash
            )
        return pb.CheckoutResponse(order=await self._message(order))

    async def PlaceOrder(self, request: pb.PlaceOrderRequest, call: RequestContext) -> pb.PlaceOrderResponse:
        order = await self._orders.of(request.order_id, call.user.user_id)
        order = await self._orders.pay(order, "OrderPlaced", "placed", request.payment_method_id, request.request_id)
        return pb.PlaceOrderResponse(order=await self._message(order))

    async def PayOrder(self, request: pb.PayOrderRequest, call: RequestContext) -> pb.PayOrderResponse:
        order = await self._orders.of(request.order_id, call.user.user_id)
        order = await self._orders.pay(order, "PaymentRetried", "paid", request.payment_method_id, request.request_id)
        return pb.PayOrderResponse(order=await self._message(order))

    async def GetOrder(self, request: pb.GetOrderRequest, call: RequestContext) -> pb.GetOrderResponse:
        order = await self._mine_or(READ, request.order_id, call)
        return pb.GetOrderResponse(order=await self._message(order, for_staff=call.user.may(READ)))

    async def ListOrders(self, request: pb.ListOrdersRequest, call: RequestContext) -> pb.ListOrdersResponse:
        size = self._pager.size(request)
        rows = await self._store.page(
            customer_id=call.user.user_id,
            state=_state(request.state),
            needs_attention=False,
            before=self._pager.cursor(request, call),
            size=size + 1,
        )
        response = pb.ListOrdersResponse(orders=[order_message(row) for row in rows[:size]])
        if len(rows) > size:
            response.next_page_token = self._pager.token(request, call, rows[size - 1]["order_id"])
        return response

    async def ListOrderTimeline(
        self, request: pb.ListOrderTimelineRequest, call: RequestContext
    ) -> pb.ListOrderTimelineResponse:
        await self._mine_or(READ, request.order_id, call)
        size = self._pager.size(request)
        after = int(self._pager.cursor(request, call) or 0)
        rows = await self._store.events(request.order_id, after, size + 1)
        response = pb.ListOrderTimelineResponse(entries=[timeline_message(row) for row in rows[:size]])
        if len(rows) > size:
            response.next_page_token = self._pager.token(request, call, str(rows[size - 1]["version"]))
        return response

    async def CancelOrder(self, request: pb.CancelOrderRequest, call: RequestContext) -> pb.CancelOrderResponse:
        order = await self._mine_or(WRITE, request.order_id, call)
        order = await self._orders.cancel(order, call.user.user_id, request.reason)
        return pb.CancelOrderResponse(order=await self._message(order))

    async def RequestReturn(self, request: pb.RequestReturnRequest, call: RequestContext) -> pb.RequestReturnResponse:
        order = await self._mine_or(WRITE, request.order_id, call)
        row = await self._store.settings()
        settings = json_format.Parse(row["settings"], pb.ShopSettings()) if row is not None else pb.ShopSettings()
        order = await self._orders.request_return(
            order, _units(order, request.lines), request.reason, settings.return_days or RETURN_DAYS, call.user.user_id
        )
        return pb.RequestReturnResponse(order=await self._message(order), return_id=order.returns[-1].return_id)

    async def _mine_or(self, permission: str, order_id: str, call: RequestContext) -> Order:
        """The caller's own order, or anybody's with the permission. Raises OrderNotFound."""
        order = await self._orders.get(order_id)
        if order.customer_id != call.user.user_id and not call.user.may(permission):
            raise OrderNotFound(order_id=order_id)
        return order

    async def _message(self, order: Order, *, for_staff: bool = False) -> pb.Order:
        return order_message(await self._store.get(order.order_id), for_staff=for_staff)


class OrderDeskService:
    def __init__(self, service: Service) -> None:
        self._orders = engine(service).orders
        self._store = self._orders.store
        self._pager = Pager(service.sealer)

    async def ListAllOrders(self, request: pb.ListAllOrdersRequest, call: RequestContext) -> pb.ListAllOrdersResponse:
        size = self._pager.size(request)
        rows = await self._store.page(
            customer_id=request.customer_id,
            state=_state(request.state),
            needs_attention=request.needs_attention,
            before=self._pager.cursor(request, call),
            size=size + 1,
        )
        response = pb.ListAllOrdersResponse(orders=[order_message(row, for_staff=True) for row in rows[:size]])
        if len(rows) > size:
            response.next_page_token = self._pager.token(request, call, rows[size - 1]["order_id"])
        return response

    async def GetOrderSummary(
        self, request: pb.GetOrderSummaryRequest, call: RequestContext
    ) -> pb.GetOrderSummaryResponse:
        counts = await self._store.counts()
        sums = await self._store.sums(now() - timedelta(days=request.days or SALES_DAYS))
        return pb.GetOrderSummaryResponse(
            states=[
                pb.StateCount(state=pb.OrderState.Value(f"ORDER_STATE_{row['state']}"), orders=row["orders"])
                for row in counts
            ],
            needing_attention=sum(row["attention"] for row in counts),
            captured=[Money(currency=row["currency"], minor_units=row["captured"]) for row in sums],
            refunded=[Money(currency=row["currency"], minor_units=row["refunded"]) for row in sums],
        )

    async def FulfilOrder(self, request: pb.FulfilOrderRequest, call: RequestContext) -> pb.FulfilOrderResponse:
        order = await self._orders.get(request.order_id)
        await self._orders.fulfil(order, _units(order, request.lines), request.note, call.user.user_id)
        return pb.FulfilOrderResponse(order=await self._message(request.order_id))

    async def DecideReturn(self, request: pb.DecideReturnRequest, call: RequestContext) -> pb.DecideReturnResponse:
        order = await self._orders.get(request.order_id)
        await self._orders.decide_return(
            order, request.return_id, request.accept, request.restock, request.note, call.user.user_id
        )
        return pb.DecideReturnResponse(order=await self._message(request.order_id))

    async def RefundOrder(self, request: pb.RefundOrderRequest, call: RequestContext) -> pb.RefundOrderResponse:
        order = await self._orders.get(request.order_id)
        order = await self._orders.refund(
            order,
            _units(order, request.lines),
            request.shipping,
            request.restock,
            request.reason,
            call.user.user_id,
        )
        return pb.RefundOrderResponse(
            order=await self._message(request.order_id), refund_id=order.refunds[-1].refund_id
        )

    async def ResumeOrder(self, request: pb.ResumeOrderRequest, call: RequestContext) -> pb.ResumeOrderResponse:
        await self._orders.get(request.order_id)
        await self._orders.woken(request.order_id)
        return pb.ResumeOrderResponse(order=await self._message(request.order_id))

    async def GetShopSettings(
        self, request: pb.GetShopSettingsRequest, call: RequestContext
    ) -> pb.GetShopSettingsResponse:
        row = await self._store.settings()
        settings = pb.ShopSettings()
        if row is not None:
            settings = json_format.Parse(row["settings"], settings)
            settings.etag = str(row["version"])
        return pb.GetShopSettingsResponse(settings=settings)

    async def SetShopSettings(
        self, request: pb.SetShopSettingsRequest, call: RequestContext
    ) -> pb.SetShopSettingsResponse:
        settings, etag = pb.ShopSettings(), request.settings.etag
        settings.CopyFrom(request.settings)
        settings.ClearField("etag")
        known = (int(etag) if etag.isascii() and etag.isdigit() else 0) if etag else None
        version = await self._store.put_settings(json_format.MessageToJson(settings), known)
        if version is None:
            raise SettingsChanged()
        settings.etag = str(version)
        return pb.SetShopSettingsResponse(settings=settings)

    async def _message(self, order_id: str) -> pb.Order:
        return order_message(await self._store.get(order_id), for_staff=True)


def _state(state: "pb.OrderState.ValueType") -> str:
    return pb.OrderState.Name(state).removeprefix("ORDER_STATE_") if state else ""


def _units(order: Order, lines: Iterable[pb.LineUnits]) -> dict[int, int]:
    """Units by line, a line named twice counted once. Raises QuantityExceeded for a line that is not there."""
    units: dict[int, int] = {}
    for each in lines:
        if each.line >= len(order.lines):
            raise QuantityExceeded(line=each.line, left=0, verb="counted")
        units[each.line] = units.get(each.line, 0) + each.quantity
    return units
