"""People who buy: everything through the edge, as a shop's front end does it."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from services.chassis.ids import new_id
from tests.commerce.shops import Json, Shop
from tests.finance.invoices import SELLER
from tests.finance.ledgers import problems
from tests.platforms import SignedIn, Tenant

ADDRESS: Json = {
    "name": "Claire Dubois",
    "lines": ["12 rue des Lilas"],
    "postcode": "75011",
    "city": "Paris",
    "country": "FR",
    "email": "claire@example.com",
}
ORIGIN: Json = {
    "name": "Atelier Nordlicht",
    "lines": ["Torstraße 140"],
    "postcode": "10119",
    "city": "Berlin",
    "country": "DE",
}
PRICE, SHIPPING = 4990, 490
CHECK = (Path(__file__).parent / "orders_check.sql").read_text()
PREPAID = """
SELECT coalesce(sum(credits - debits), 0)::bigint FROM ledger_mgr.balances
WHERE tenant_id = $1 AND account = 'customers:prepaid'
"""
TIME_IS_UP = """
UPDATE puabo_nuki_order_processor.orders SET due_time = now(),
    folded = jsonb_set(folded, '{expire_time}', to_jsonb(now() - interval '1 second'))
WHERE tenant_id = $1 AND order_id = $2
"""
SETTLED = ("CONFIRMED", "CANCELLED", "FULFILLED", "OPEN", "ACTION_REQUIRED", "PAYMENT_DECLINED")


async def furnish(shop: Shop) -> Shop:
    """All that a shop needs to sell: an address to send from, rates, taxes, a letterhead."""
    await shop.put("/api/v1/shipping/settings", {"origin": ORIGIN})
    await shop.put("/api/v1/shipping/zones/world", {"name": "World", "areas": [{}]})
    await shop.put(
        "/api/v1/shipping/rate-tables/standard",
        {
            "carrier": "sandbox",
            "service": "Standard",
            "zoneId": "world",
            "currency": "EUR",
            "bands": [{"upToGrams": 30_000, "price": SHIPPING}],
            "minDays": 2,
            "maxDays": 4,
        },
    )
    await shop.put("/api/v1/invoicing/seller", SELLER)
    rates = [{"country": "FR", "taxCategory": "standard", "basisPoints": 2000}]
    await shop.put("/api/v1/order-desk/settings", {"taxRates": rates})
    return shop


async def stocked(shop: Shop, title: str, quantity: int, price: int = PRICE) -> str:
    """A product for sale; returns the id of its variant."""
    product = await shop.product(title, {"sku": new_id(), "weightGrams": 400})
    prices = await shop.price_list(f"list-{new_id()}", taxIncluded=True)
    await shop.set_price(prices, product, price)
    variant: str = product["variants"][0]["variantId"]
    if quantity:
        await shop.receive(variant, quantity)
    return variant


async def all_is_well(shop: Shop) -> list[Json]:
    """What is wrong with the tenant's orders, stock, money, invoices and books; waits for what events still bring."""
    admin = await shop.platform.admin()
    try:
        for _ in range(100):
            wrong = [dict(row) for row in await admin.fetch(CHECK, shop.tenant.tenant_id)]
            wrong += [dict(row) for row in await problems(shop.platform, shop.tenant)]
            prepaid = await admin.fetchval(PREPAID, shop.tenant.tenant_id)
            if prepaid:
                wrong.append({"problem": "customers have paid for what was not sold", "place": prepaid})
            if not wrong:
                return []
            await asyncio.sleep(0.1)
        return wrong
    finally:
        await admin.close()


async def put_right(shop: Shop, order_id: str, statement: str = TIME_IS_UP) -> None:
    """Change rows as time or fate would, and have the order looked at."""
    admin = await shop.platform.admin()
    try:
        values = (shop.tenant.tenant_id,) if "$2" not in statement else (shop.tenant.tenant_id, order_id)
        assert await admin.execute(statement, *values) != "UPDATE 0"
    finally:
        await admin.close()


@dataclass
class Buyer:
    """A signed-in customer with a payment method."""

    tenant: Tenant
    http: httpx.AsyncClient
    user: SignedIn
    card: str = ""

    @classmethod
    async def of(cls, shop: Shop, card: str = "card_ok", user: SignedIn | None = None) -> "Buyer":
        return await cls(shop.tenant, shop.http, user or await shop.tenant.sign_in()).with_card(card)

    async def with_card(self, card: str = "card_ok") -> Self:
        self.card = await self.add_card(card)
        return self

    async def add_card(self, token: str) -> str:
        body = {"providerToken": token, "makeDefault": True, "requestId": new_id()}
        # A user is a customer of billing's as soon as its event has arrived.
        for _ in range(100):
            answer = await self.ask("POST", "/api/v1/billing/payment-methods", body)
            if answer.status_code == 200:
                return str(answer.json()["paymentMethod"]["paymentMethodId"])
            await asyncio.sleep(0.05)
        raise AssertionError(answer.text)

    async def ask(self, verb: str, path: str, body: Json | None = None, **params: Any) -> httpx.Response:
        return await self.http.request(
            verb, path, json=body, params=params, headers=self.user.headers | self.tenant.headers
        )

    async def post(self, path: str, **body: Any) -> Json:
        answer = await self.ask("POST", path, body)
        assert answer.status_code == 200, answer.text
        result: Json = answer.json()
        return result

    async def get(self, path: str, **params: Any) -> Json:
        answer = await self.ask("GET", path, **params)
        assert answer.status_code == 200, answer.text
        result: Json = answer.json()
        return result

    async def cart(self, lines: dict[str, int], *, ship: bool = True) -> tuple[Json, Json]:
        """The user's cart, ready to be checked out, and the words that open it."""
        return await self._fill(await self.post("/api/v1/my/cart", currency="EUR"), lines, ship)

    async def guest_cart(self, lines: dict[str, int]) -> tuple[Json, Json]:
        """A cart of its own, to be checked out beside others."""
        return await self._fill(await self.post("/api/v1/carts", currency="EUR"), lines, True)

    async def _fill(self, opened: Json, lines: dict[str, int], ship: bool) -> tuple[Json, Json]:
        cart_id, secret = opened["cart"]["cartId"], {"cartSecret": opened["cartSecret"]}
        path = f"/api/v1/carts/{cart_id}"
        wanted = [{"variantId": variant, "quantity": quantity} for variant, quantity in lines.items()]
        await self.post(f"{path}:setLines", lines=wanted, **secret)
        cart = await self.post(f"{path}:setAddress", shippingAddress=ADDRESS, **secret)
        if ship:
            options = (await self.post(f"{path}:shippingOptions", **secret))["options"]
            cart = await self.post(f"{path}:chooseShipping", quoteId=options[0]["quoteId"], **secret)
        return cart["cart"], {"cartId": cart_id, **secret}

    async def checkout(self, lines: dict[str, int]) -> httpx.Response:
        _, opener = await self.cart(lines)
        return await self.ask("POST", "/api/v1/orders", {**opener, "requestId": new_id()})

    async def place(self, order: Json, verb: str = "place", card: str = "") -> Json:
        body = {"paymentMethodId": card or self.card, "requestId": new_id()}
        return (await self.post(f"/api/v1/orders/{order['orderId']}:{verb}", **body))["order"]

    async def buy(self, lines: dict[str, int]) -> Json:
        """The order as it is after it was placed."""
        answer = await self.checkout(lines)
        assert answer.status_code == 200, answer.text
        return await self.place(answer.json()["order"])

    async def order(self, order_id: str) -> Json:
        return (await self.get(f"/api/v1/orders/{order_id}"))["order"]

    async def settled(self, order_id: str, *states: str, seconds: float = 30.0) -> Json:
        """The order, when it has come to rest: in one of these states, if any are named."""
        async with asyncio.timeout(seconds):
            while True:
                order = await self.order(order_id)
                if order["state"].removeprefix("ORDER_STATE_") in (states or SETTLED):
                    return order
                await asyncio.sleep(0.1)

    async def timeline(self, order_id: str) -> list[str]:
        entries = (await self.get(f"/api/v1/orders/{order_id}/timeline"))["entries"]
        return [entry["kind"] for entry in entries]
