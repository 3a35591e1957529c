"""A shop of a test's own: called at the edge as its owner does, and from within the mesh as other services do."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import httpx
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from nexus.commerce.puabo_nuki_inventory_mgr.v1 import reservations_pb2
from nexus.commerce.puabo_nuki_inventory_mgr.v1.inventory_pb2 import ItemQuantity
from nexus.commerce.puabo_nuki_inventory_mgr.v1.reservations_pb2 import Reservation, ReserveLine
from nexus.commerce.puabo_nuki_inventory_mgr.v1.reservations_pb2_grpc import ReservationServiceStub
from nexus.commerce.puabo_nuki_product_catalog.v1.prices_pb2 import (
    ResolveLine,
    ResolveVariantsRequest,
    ResolveVariantsResponse,
)
from nexus.commerce.puabo_nuki_product_catalog.v1.prices_pb2_grpc import PriceServiceStub
from services.chassis.clients import Clients
from services.chassis.context import acting_for
from services.chassis.ids import new_id
from services.chassis.peers import VERSION_HEADER
from tests.platforms import Platform, SignedIn, Tenant

Json = dict[str, Any]
MAIN, BRANCH = "main", "branch"


def reason(answer: httpx.Response) -> Any:
    return answer.json()["details"][0]["reason"]


@dataclass
class Shop:
    platform: Platform
    tenant: Tenant
    owner: SignedIn
    http: httpx.AsyncClient
    clients: Clients

    @classmethod
    async def open(cls, platform: Platform, tenant: Tenant, http: httpx.AsyncClient, clients: Clients) -> "Shop":
        """With two locations to sell from, MAIN before BRANCH."""
        shop = cls(platform, tenant, await tenant.sign_in("owner"), http, clients)
        for priority, location in enumerate((MAIN, BRANCH)):
            await shop.put(f"/api/v1/stock/locations/{location}", {"name": location, "priority": priority})
        return shop

    async def ask(self, verb: str, path: str, body: Json | None = None, **params: Any) -> httpx.Response:
        """As the owner."""
        return await self.http.request(verb, path, json=body, params=params, headers=self.owner.headers)

    async def get(self, path: str, **params: Any) -> Json:
        return _body(await self.ask("GET", path, **params))

    async def post(self, path: str, body: Json | None = None) -> Json:
        return _body(await self.ask("POST", path, body or {}))

    async def put(self, path: str, body: Json) -> Json:
        return _body(await self.ask("PUT", path, body))

    async def visit(self, path: str, **params: Any) -> httpx.Response:
        """As somebody who is not signed in; what the services say now, not what the edge has kept."""
        return await self.http.get(path, params=params, headers={**self.tenant.headers, VERSION_HEADER: "stable"})

    async def value(self, query: str, *values: object) -> Any:
        """One value from the database, whatever the services say. The tenant is $1."""
        admin = await self.platform.admin()
        try:
            return await admin.fetchval(query, self.tenant.tenant_id, *values)
        finally:
            await admin.close()

    async def patch(self, path: str, body: Json, mask: str) -> Json:
        return _body(await self.ask("PATCH", path, body, update_mask=mask))

    # Products

    async def product(self, title: str, *variants: Json, publish: bool = True, **fields: Any) -> Json:
        """A product with these variants; with one, if none is given."""
        body = {"title": title, "variants": list(variants or [{}]), **fields}
        product: Json = (await self.post("/api/v1/products", {"product": body}))["product"]
        if publish:
            path = f"/api/v1/products/{product['productId']}:publish"
            product = (await self.post(path))["product"]
        return product

    async def search(self, query: str = "", **params: Any) -> Json:
        """As a buyer does."""
        return _body(await self.visit("/api/v1/shop/products", query=query, **params))

    async def titles(self, query: str = "", **params: Any) -> list[str]:
        return [result["title"] for result in (await self.search(query, **params))["results"]]

    async def price_list(self, key: str = "web-eur", currency: str = "EUR", **fields: Any) -> str:
        body = {"key": key, "currency": currency, **fields}
        answer = await self.post("/api/v1/price-lists", {"priceList": body})
        return str(answer["priceList"]["priceListId"])

    async def set_price(self, price_list: str, product: Json, minor_units: int | None, **fields: Any) -> None:
        """Of every variant of a product."""
        new = {} if minor_units is None else {"minorUnits": minor_units}
        prices = [{"variantId": variant["variantId"], **new, **fields} for variant in product["variants"]]
        await self.post(f"/api/v1/price-lists/{price_list}:setPrices", {"prices": prices})

    async def resolve(self, *lines: Json, at: Timestamp | None = None, **fields: Any) -> ResolveVariantsResponse:
        """As a service does."""
        request = ResolveVariantsRequest(lines=[ResolveLine(**line) for line in lines], at_time=at, **fields)
        request.currency = request.currency or "EUR"
        stub: Any = self.clients.stub(PriceServiceStub)
        with acting_for(self.tenant.tenant_id):
            answer: ResolveVariantsResponse = await stub.ResolveVariants(request)
        return answer

    # Stock

    async def receive(self, item_id: str, quantity: int, location: str = MAIN) -> None:
        line = {"itemId": item_id, "locationId": location, "quantity": quantity}
        await self.post("/api/v1/stock:receive", {"lines": [line]})

    async def available(self, item_id: str) -> int:
        answer = _body(await self.visit("/api/v1/shop/availability", item_ids=item_id))
        return int(answer["items"][0]["available"])

    async def level(self, item_id: str, location: str = MAIN) -> tuple[int, int]:
        """On hand and reserved."""
        levels = (await self.get("/api/v1/stock/levels", item_id=item_id, location_id=location))["levels"]
        return (int(levels[0]["onHand"]), int(levels[0]["reserved"])) if levels else (0, 0)

    @property
    def reservations(self) -> Any:
        return self.clients.stub(ReservationServiceStub)

    async def reserve(
        self, *lines: tuple[str, int] | tuple[str, int, str], seconds: float = 600, key: str = "", reference: str = ""
    ) -> Reservation:
        lifetime = Duration()
        lifetime.FromNanoseconds(int(seconds * 1e9))
        request = reservations_pb2.ReserveRequest(
            lines=[
                ReserveLine(item_id=item, quantity=quantity, location_id="".join(at)) for item, quantity, *at in lines
            ],
            lifetime=lifetime,
            reference=reference,
            request_id=key or new_id(),
        )
        with acting_for(self.tenant.tenant_id):
            return (await self.reservations.Reserve(request)).reservation

    async def commit(self, reservation: Reservation) -> Reservation:
        request = reservations_pb2.CommitReservationRequest(reservation_id=reservation.reservation_id)
        with acting_for(self.tenant.tenant_id):
            return (await self.reservations.CommitReservation(request)).reservation

    async def release(self, reservation: Reservation) -> Reservation:
        request = reservations_pb2.ReleaseReservationRequest(reservation_id=reservation.reservation_id)
        with acting_for(self.tenant.tenant_id):
            return (await self.reservations.ReleaseReservation(request)).reservation

    async def restock(self, reservation: Reservation, lines: Iterable[tuple[str, int]] = ()) -> Reservation:
        request = reservations_pb2.RestockReservationRequest(
            reservation_id=reservation.reservation_id,
            lines=[ItemQuantity(item_id=item, quantity=quantity) for item, quantity in lines],
            request_id=new_id(),
        )
        with acting_for(self.tenant.tenant_id):
            return (await self.reservations.RestockReservation(request)).reservation

    async def pass_time(self, reservation: Reservation) -> None:
        """Let the reservation's time be over."""
        await self.value(
            "UPDATE puabo_nuki_inventory_mgr.reservations SET expire_time = clock_timestamp() - interval '1 ms' "
            "WHERE tenant_id = $1 AND reservation_id = $2 RETURNING true",
            reservation.reservation_id,
        )

    async def unbalanced(self) -> int:
        """How many levels are not the sum of their movements, or promise more than there is."""
        found: int = await self.value(
            """
            SELECT count(*) FROM puabo_nuki_inventory_mgr.stock_levels AS level
            WHERE tenant_id = $1 AND (reserved > on_hand OR reserved < 0 OR on_hand <> (
                SELECT coalesce(sum(quantity), 0) FROM puabo_nuki_inventory_mgr.movements
                WHERE (tenant_id, item_id, location_id) = (level.tenant_id, level.item_id, level.location_id)
            ) OR reserved <> (
                SELECT coalesce(sum(quantity), 0) FROM puabo_nuki_inventory_mgr.allocations AS held
                    JOIN puabo_nuki_inventory_mgr.reservations USING (tenant_id, reservation_id)
                WHERE state = 'active'
                  AND (tenant_id, item_id, location_id) = (level.tenant_id, level.item_id, level.location_id)
            ))
            """
        )
        return found


def _body(answer: httpx.Response) -> Json:
    """The answer of a call that must succeed."""
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found
