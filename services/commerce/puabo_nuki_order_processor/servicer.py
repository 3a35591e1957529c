"""CartService, OrderService, OrderDeskService: proto to use cases and back."""

from datetime import timedelta
from functools import partial
from typing import Any

from nexus.commerce.puabo_nuki_order_processor.v1 import carts_pb2 as carts
from nexus.commerce.puabo_nuki_order_processor.v1 import orders_pb2 as pb
from nexus.commerce.puabo_nuki_order_processor.v1.faults import OrderNotFound, SettingsChanged, TotalChanged
from nexus.type.v1.money_pb2 import Money
from services.chassis.clock import now
from services.chassis.context import RequestContext
from services.chassis.messages import MessageOf, text_of
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.chassis.table import Row
from services.commerce.puabo_nuki_order_processor.carts import Carts
from services.commerce.puabo_nuki_order_processor.messages import (
    cart_message,
    option_message,
    order_message,
    timeline_message,
)
from services.commerce.puabo_nuki_order_processor.order import Order
from services.commerce.puabo_nuki_order_processor.orders import Orders

READ, WRITE = "orders.read", "orders.write"
SALES_DAYS = 30

_count = MessageOf(pb.StateCount)


class CartService:
    def __init__(self, service: Service) -> None:
        self._carts = service.shared(Carts)

    async def CreateCart(self, request: carts.CreateCartRequest, call: RequestContext) -> carts.CreateCartResponse:
        row = await self._carts.create(request.channel, request.currency)
        return carts.CreateCartResponse(cart=await self._cart(row), cart_secret=self._carts.secret(row["cart_id"]))

    async def OpenMyCart(self, request: carts.OpenMyCartRequest, call: RequestContext) -> carts.OpenMyCartResponse:
        row = await self._carts.of_customer(call.user.user_id, request)
        return carts.OpenMyCartResponse(cart=await self._cart(row), cart_secret=self._carts.secret(row["cart_id"]))

    async def GetCart(self, request: carts.GetCartRequest, call: RequestContext) -> carts.GetCartResponse:
        row = await self._carts.open(request.cart_id, request.cart_secret)
        return carts.GetCartResponse(cart=await self._cart(row))

    async def SetCartLines(
        self, request: carts.SetCartLinesRequest, call: RequestContext
    ) -> carts.SetCartLinesResponse:
        return carts.SetCartLinesResponse(cart=await self._cart(await self._carts.set_lines(request)))

    async def SetCartAddress(
        self, request: carts.SetCartAddressRequest, call: RequestContext
    ) -> carts.SetCartAddressResponse:
        return carts.SetCartAddressResponse(cart=await self._cart(await self._carts.set_addresses(request)))

    async def ListShippingOptions(
        self, request: carts.ListShippingOptionsRequest, call: RequestContext
    ) -> carts.ListShippingOptionsResponse:
        row = await self._carts.open(request.cart_id, request.cart_secret)
        offers = await self._carts.offer_deliveries(row)
        return carts.ListShippingOptionsResponse(options=[option_message(offer, row["currency"]) for offer in offers])

    async def ChooseShipping(
        self, request: carts.ChooseShippingRequest, call: RequestContext
    ) -> carts.ChooseShippingResponse:
        return carts.ChooseShippingResponse(cart=await self._cart(await self._carts.choose_delivery(request)))

    async def _cart(self, row: Row) -> carts.Cart:
        return cart_message(await self._carts.price(row))


class OrderService:
    def __init__(self, service: Service) -> None:
        self._orders, self._carts = service.shared(Orders), service.shared(Carts)
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
            draft = priced.draft.model_copy(update={"customer_id": customer_id})
            if request.HasField("expected_total") and request.expected_total != draft.money(draft.total):
                raise TotalChanged(total=draft.total, currency=draft.currency)
            order = await self._orders.check_out(draft, addresses, row["version"], request.request_id, request_hash)
        return pb.CheckoutResponse(order=await self._message(order))

    async def PlaceOrder(self, request: pb.PlaceOrderRequest, call: RequestContext) -> pb.PlaceOrderResponse:
        order = await self._orders.pay(await self._mine(request, call), "OrderPlaced", "placed", request)
        return pb.PlaceOrderResponse(order=await self._message(order))

    async def PayOrder(self, request: pb.PayOrderRequest, call: RequestContext) -> pb.PayOrderResponse:
        order = await self._orders.pay(await self._mine(request, call), "PaymentRetried", "paid", request)
        return pb.PayOrderResponse(order=await self._message(order))

    async def GetOrder(self, request: pb.GetOrderRequest, call: RequestContext) -> pb.GetOrderResponse:
        order = await self._mine(request, call, or_with=READ)
        return pb.GetOrderResponse(order=await self._message(order, for_staff=call.user.may(READ)))

    async def ListOrders(self, request: pb.ListOrdersRequest, call: RequestContext) -> pb.ListOrdersResponse:
        state = text_of(pb.OrderState, request.state) or None
        fetch = partial(self._store.orders.page, customer_id=call.user.user_id, state=state)
        rows, more = await self._pager.page(request, call, fetch, by="order_id")
        return pb.ListOrdersResponse(orders=map(order_message, rows), next_page_token=more)

    async def ListOrderTimeline(
        self, request: pb.ListOrderTimelineRequest, call: RequestContext
    ) -> pb.ListOrderTimelineResponse:
        await self._mine(request, call, or_with=READ)

        async def fetch(after: str, limit: int) -> list[Row]:
            return await self._store.events.page(int(after or 0), limit, order_id=request.order_id)

        rows, more = await self._pager.page(request, call, fetch, by="version")
        return pb.ListOrderTimelineResponse(entries=map(timeline_message, rows), next_page_token=more)

    async def CancelOrder(self, request: pb.CancelOrderRequest, call: RequestContext) -> pb.CancelOrderResponse:
        order = await self._mine(request, call, or_with=WRITE)
        order = await self._orders.cancel(order, call.user.user_id, request.reason)
        return pb.CancelOrderResponse(order=await self._message(order))

    async def RequestReturn(self, request: pb.RequestReturnRequest, call: RequestContext) -> pb.RequestReturnResponse:
        order = await self._mine(request, call, or_with=WRITE)
        order = await self._orders.request_return(order, request, call.user.user_id)
        return pb.RequestReturnResponse(order=await self._message(order), return_id=order.returns[-1].return_id)

    async def _mine(self, request: Any, call: RequestContext, or_with: str = "") -> Order:
        """The caller's own order, or anybody's with a permission: somebody else's is as good as none. Raises
        OrderNotFound."""
        order = await self._orders.get(request.order_id)
        if order.customer_id != call.user.user_id and not (or_with and call.user.may(or_with)):
            raise OrderNotFound(order_id=order.order_id)
        return order

    async def _message(self, order: Order, *, for_staff: bool = False) -> pb.Order:
        return order_message(await self._store.orders.require(order.order_id), for_staff=for_staff)


class OrderDeskService:
    def __init__(self, service: Service) -> None:
        self._orders = service.shared(Orders)
        self._store = self._orders.store
        self._pager = Pager(service.sealer)

    async def ListAllOrders(self, request: pb.ListAllOrdersRequest, call: RequestContext) -> pb.ListAllOrdersResponse:
        fetch = partial(
            self._store.orders.page,
            filters={"attention <> ''": () if request.needs_attention else None},
            customer_id=request.customer_id or None,
            state=text_of(pb.OrderState, request.state) or None,
        )
        rows, more = await self._pager.page(request, call, fetch, by="order_id")
        return pb.ListAllOrdersResponse(
            orders=[order_message(row, for_staff=True) for row in rows], next_page_token=more
        )

    async def GetOrderSummary(
        self, request: pb.GetOrderSummaryRequest, call: RequestContext
    ) -> pb.GetOrderSummaryResponse:
        counts = await self._store.counts()
        sums = await self._store.sums(now() - timedelta(days=request.days or SALES_DAYS))
        return pb.GetOrderSummaryResponse(
            states=map(_count, counts),
            needing_attention=sum(row["attention"] for row in counts),
            captured=[Money(currency=row["currency"], minor_units=row["captured"]) for row in sums],
            refunded=[Money(currency=row["currency"], minor_units=row["refunded"]) for row in sums],
        )

    async def FulfilOrder(self, request: pb.FulfilOrderRequest, call: RequestContext) -> pb.FulfilOrderResponse:
        await self._orders.fulfil(request, call.user.user_id)
        return pb.FulfilOrderResponse(order=await self._message(request.order_id))

    async def DecideReturn(self, request: pb.DecideReturnRequest, call: RequestContext) -> pb.DecideReturnResponse:
        await self._orders.decide_return(request, call.user.user_id)
        return pb.DecideReturnResponse(order=await self._message(request.order_id))

    async def RefundOrder(self, request: pb.RefundOrderRequest, call: RequestContext) -> pb.RefundOrderResponse:
        order = await self._orders.refund(request, call.user.user_id)
        refund_id = order.refunds[-1].refund_id
        return pb.RefundOrderResponse(order=await self._message(request.order_id), refund_id=refund_id)

    async def ResumeOrder(self, request: pb.ResumeOrderRequest, call: RequestContext) -> pb.ResumeOrderResponse:
        await self._store.orders.require(request.order_id)
        await self._orders.woken(request.order_id)
        return pb.ResumeOrderResponse(order=await self._message(request.order_id))

    async def GetShopSettings(
        self, request: pb.GetShopSettingsRequest, call: RequestContext
    ) -> pb.GetShopSettingsResponse:
        return pb.GetShopSettingsResponse(settings=await self._store.settings())

    async def SetShopSettings(
        self, request: pb.SetShopSettingsRequest, call: RequestContext
    ) -> pb.SetShopSettingsResponse:
        settings = await self._store.put_settings(request.settings)
        if settings is None:
            raise SettingsChanged()
        return pb.SetShopSettingsResponse(settings=settings)

    async def _message(self, order_id: str) -> pb.Order:
        return order_message(await self._store.orders.require(order_id), for_staff=True)
