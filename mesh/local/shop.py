"""A fashion shop in the demo tenant, made with the platform's own methods, as its owner would make it.

Every step looks at what there is first, so running it again changes nothing, and finishes what was interrupted.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from mesh.local import wardrobe
from mesh.local.counter import open_counter
from mesh.local.seed import DemoCredentials
from mesh.local.wardrobe import Garment
from nexus.commerce.puabo_nuki_inventory_mgr.v1 import inventory_pb2
from nexus.commerce.puabo_nuki_inventory_mgr.v1.inventory_pb2_grpc import InventoryServiceStub
from nexus.commerce.puabo_nuki_product_catalog.v1 import imports_pb2, prices_pb2, products_pb2
from nexus.commerce.puabo_nuki_product_catalog.v1.imports_pb2_grpc import ImportServiceStub
from nexus.commerce.puabo_nuki_product_catalog.v1.prices_pb2_grpc import PriceServiceStub
from nexus.commerce.puabo_nuki_product_catalog.v1.products_pb2_grpc import ProductServiceStub
from nexus.commerce.puabo_nuki_product_catalog.v1.storefront_pb2 import ListCollectionsRequest
from nexus.commerce.puabo_nuki_product_catalog.v1.storefront_pb2_grpc import StorefrontServiceStub
from nexus.identity.auth_service.v1.auth_service_pb2 import LoginRequest
from nexus.identity.auth_service.v1.auth_service_pb2_grpc import AuthServiceStub
from nexus.type.v1.faults import RateLimited
from services.chassis.clients import Clients
from services.chassis.config import Settings
from services.chassis.context import OPERATOR, acting_for
from services.chassis.ids import new_id

Progress = Callable[[str, int, int], None]
"""What is being done, how much of it is done, and of how much."""

LOCATIONS = (("berlin", "Berlin warehouse", "DE"), ("porto", "Porto warehouse", "PT"))
COLLECTIONS: Sequence[tuple[str, str, Sequence[str]]] = (
    # Slug, title, and the rules; by hand where there are none.
    ("new-arrivals", "New arrivals", ["tag:new"]),
    ("summer", "Summer", ["tag:summer"]),
    ("knitwear", "Knitwear", ["category:women/knitwear", "category:men/knitwear"]),
    ("linen", "All things linen", ["attribute.material:linen"]),
    ("favourites", "Our favourites", []),
)
_FAVOURITES = 12
_ON_SALE = 6
"""Every sixth garment."""
_CALL_SECONDS = 30.0
_PAGE = 1000
_AT_ONCE = 4


class Shopkeeper:
    """The demo tenant's owner, filling the shelves."""

    def __init__(self, clients: Clients, access_token: str, progress: Progress) -> None:
        self._authorization = (("authorization", f"Bearer {access_token}"),)
        self._products: Any = clients.stub(ProductServiceStub)
        self._prices: Any = clients.stub(PriceServiceStub)
        self._imports: Any = clients.stub(ImportServiceStub)
        self._inventory: Any = clients.stub(InventoryServiceStub)
        self._storefront: Any = clients.stub(StorefrontServiceStub)
        self._show = progress
        self._clients = clients

    async def fill(self, chosen: Sequence[Garment]) -> None:
        garments = {garment.slug: garment for garment in chosen}
        lists = await self._price_lists()
        await self._attributes()
        await self._import(wardrobe.table(chosen))
        products = [product for product in await self._all_products() if product.slug in garments]
        await self._pictures(products, garments)
        await self._sale(lists, products, garments)
        await self._collections(products)
        await self._stock(products, garments)
        await open_counter(self._clients, self._call)

    async def _price_lists(self) -> dict[str, str]:
        """Ids by key; a list that is new has no prices yet."""
        wanted = [
            prices_pb2.PriceList(key=f"web-{currency}", name=f"Web, {currency.upper()}", currency=currency.upper())
            for currency in wardrobe.CURRENCIES
        ]
        sale = prices_pb2.PRICE_LIST_KIND_SALE
        wanted.append(prices_pb2.PriceList(key="sale-eur", name="Sale", currency="EUR", kind=sale, priority=10))
        known = await self._call(self._prices.ListPriceLists, prices_pb2.ListPriceListsRequest(page_size=_PAGE))
        ids = {each.key: each.price_list_id for each in known.price_lists}
        for price_list in wanted:
            price_list.tax_included = price_list.currency != "USD"
            if price_list.key not in ids:
                request = prices_pb2.CreatePriceListRequest(price_list=price_list)
                made = await self._call(self._prices.CreatePriceList, request)
                ids[price_list.key] = made.price_list.price_list_id
        return ids

    async def _attributes(self) -> None:
        for key, choices in (("material", wardrobe.MATERIALS), ("season", wardrobe.SEASONS)):
            attribute = products_pb2.Attribute(
                key=key, name=key.title(), kind=products_pb2.ATTRIBUTE_KIND_CHOICE, choices=choices, facet=True
            )
            await self._call(self._products.SetAttribute, products_pb2.SetAttributeRequest(attribute=attribute))

    async def _import(self, data: bytes) -> None:
        made = await self._call(self._imports.CreateImport, imports_pb2.CreateImportRequest(name="demo-shop.csv"))
        import_id = made.product_import.import_id
        await self._call(self._imports.UploadImport, imports_pb2.UploadImportRequest(import_id=import_id, data=data))
        await self._call(self._imports.StartImport, imports_pb2.StartImportRequest(import_id=import_id))
        while True:
            request = imports_pb2.GetImportRequest(import_id=import_id)
            state = (await self._call(self._imports.GetImport, request)).product_import
            self._show("products", state.rows_done, state.rows)
            if state.state == imports_pb2.IMPORT_STATE_DONE:
                return
            await asyncio.sleep(0.1)

    async def _all_products(self) -> list[products_pb2.Product]:
        request = products_pb2.ListProductsRequest(page_size=200)
        found: list[products_pb2.Product] = []
        while True:
            page = await self._call(self._products.ListProducts, request)
            found += page.products
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def _pictures(self, products: Sequence[products_pb2.Product], garments: dict[str, Garment]) -> None:
        """One of each colour."""
        missing = [
            (product.product_id, garment, position)
            for product in products
            if (garment := garments[product.slug])
            for position in range(len(product.media), len(garment.colours))
        ]
        slots, done = asyncio.Semaphore(_AT_ONCE), 0

        async def add(product_id: str, garment: Garment, position: int) -> None:
            nonlocal done
            async with slots:
                colour = garment.colours[position]
                request = products_pb2.AddMediaRequest(
                    product_id=product_id,
                    content_type="image/webp",
                    data=await asyncio.to_thread(garment.picture, colour),
                    alt_text=f"{garment.title} in {colour.lower()}",
                    position=position,
                )
                await self._call(self._products.AddMedia, request)
            done += 1
            self._show("pictures", done, len(missing))

        await asyncio.gather(*(add(*each) for each in missing))

    async def _sale(
        self, lists: dict[str, str], products: Sequence[products_pb2.Product], garments: dict[str, Garment]
    ) -> None:
        """A fifth off some of it, in euros; not twice."""
        reduced = [product for product in products if garments[product.slug].number % _ON_SALE == 0]
        first = prices_pb2.ListPriceEntriesRequest(variant_id=reduced[-1].variants[-1].variant_id)
        on_record = await self._call(self._prices.ListPriceEntries, first)
        if any(entry.price_list_id == lists["sale-eur"] for entry in on_record.entries):
            return
        prices = [
            prices_pb2.NewPrice(
                variant_id=variant.variant_id, minor_units=garments[product.slug].euros * 8 // 1000 * 100 + 95
            )
            for product in reduced
            for variant in product.variants
        ]
        await self._call(
            self._prices.SetPrices, prices_pb2.SetPricesRequest(price_list_id=lists["sale-eur"], prices=prices)
        )

    async def _collections(self, products: Sequence[products_pb2.Product]) -> None:
        known = await self._call(self._storefront.ListCollections, ListCollectionsRequest(page_size=_PAGE))
        ids = {each.slug: each.collection_id for each in known.collections}
        for slug, title, rules in COLLECTIONS:
            if slug not in ids:
                collection = products_pb2.Collection(slug=slug, title=title, rules=rules)
                request = products_pb2.CreateCollectionRequest(collection=collection)
                made = await self._call(self._products.CreateCollection, request)
                ids[slug] = made.collection.collection_id
        favourites = products_pb2.ChangeCollectionProductsRequest(
            collection_id=ids["favourites"],
            add_product_ids=[product.product_id for product in products[:: max(1, len(products) // _FAVOURITES)]],
        )
        await self._call(self._products.ChangeCollectionProducts, favourites)

    async def _stock(self, products: Sequence[products_pb2.Product], garments: dict[str, Garment]) -> None:
        """Between nothing and a few dozen of everything, from two warehouses."""
        for priority, (location_id, name, country) in enumerate(LOCATIONS):
            location = inventory_pb2.Location(location_id=location_id, name=name, country=country, priority=priority)
            await self._call(self._inventory.SetLocation, inventory_pb2.SetLocationRequest(location=location))
        known = await self._known_levels()
        lines = [
            inventory_pb2.StockLine(item_id=variant.variant_id, location_id=location, quantity=quantity)
            for product in products
            for index, variant in enumerate(product.variants)
            for location, quantity in _delivery(garments[product.slug].number, index)
            if (variant.variant_id, location) not in known
        ]
        for start in range(0, len(lines), 250):
            some = lines[start : start + 250]
            request = inventory_pb2.ReceiveStockRequest(lines=some, reference="Opening stock", request_id=new_id())
            await self._call(self._inventory.ReceiveStock, request)
            self._show("stock", start + len(some), len(lines))

    async def _known_levels(self) -> set[tuple[str, str]]:
        request = inventory_pb2.ListStockLevelsRequest(page_size=_PAGE)
        found: set[tuple[str, str]] = set()
        while True:
            page = await self._call(self._inventory.ListStockLevels, request)
            found |= {(level.item_id, level.location_id) for level in page.levels}
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def _call(self, method: Any, request: Any) -> Any:
        while True:
            try:
                return await method(request, timeout=_CALL_SECONDS, metadata=self._authorization)
            except RateLimited as limited:
                await asyncio.sleep(limited.retry_after or 1.0)


def _delivery(number: int, index: int) -> list[tuple[str, int]]:
    """Where how many of a variant are: one in nine is sold out, some are scarce."""
    dice = number * 31 + index * 17
    if dice % 9 == 0:
        return []
    return [("berlin", 1 + dice % 7 if dice % 5 == 0 else 12 + dice % 30), *([("porto", 5 + dice % 11)] * (dice % 2))]


async def fill(
    settings: Settings, demo: DemoCredentials, progress: Progress, products: int = wardrobe.PRODUCTS
) -> None:
    """Raises RuntimeError when the demo user cannot sign in without more ado."""
    clients = Clients(settings, OPERATOR, None)
    try:
        with acting_for(demo.tenant):
            auth: Any = clients.stub(AuthServiceStub)
            session = await auth.Login(LoginRequest(email=demo.email, password=demo.password), timeout=_CALL_SECONDS)
            if not session.tokens.access_token:
                raise RuntimeError("the demo user has a second factor")
            await Shopkeeper(clients, session.tokens.access_token, progress).fill(wardrobe.garments(products))
    finally:
        await clients.stop()
