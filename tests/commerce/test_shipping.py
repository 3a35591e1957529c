"""Shipping as a tenant uses it: rates that are honoured, one label per key, parcels that never go back, manifests."""

import asyncio
import base64
import hashlib
import hmac
import json
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
import zxingcpp

from nexus.commerce.puabo_nuki_shipping_service.v1 import events_pb2
from nexus.commerce.puabo_nuki_shipping_service.v1 import shipping_pb2 as pb
from nexus.commerce.puabo_nuki_shipping_service.v1.faults import (
    CarrierUnavailable,
    KeyTaken,
    ShipmentNotFound,
    ShipmentUnderWay,
)
from nexus.commerce.puabo_nuki_shipping_service.v1.shipment_pb2 import LabelOrder, Parcel, ShipmentState
from nexus.commerce.puabo_nuki_shipping_service.v1.shipping_pb2_grpc import FulfilmentServiceStub
from services.chassis.clients import Clients
from services.chassis.clock import now
from services.chassis.ids import new_id
from tests.commerce.test_shipping_rules import picture
from tests.platforms import Platform, SignedIn, Tenant

ORIGIN = {
    "name": "Atelier Nordlicht",
    "lines": ["Torstraße 140"],
    "postcode": "10119",
    "city": "Berlin",
    "country": "DE",
    "location": {"latitude": 52.5296, "longitude": 13.4013},
}
TO = {"name": "Zoë Müller", "lines": ["Große Straße 12"], "postcode": "50667", "city": "Köln", "country": "DE"}
PARCEL = {"weightGrams": 1200, "lengthMm": 300, "widthMm": 200, "heightMm": 100}
SECRET = "a secret of more than sixteen"
STANDARD = {
    "rateTableId": "de-standard",
    "carrier": "sandbox",
    "service": "Standard",
    "zoneId": "germany",
    "currency": "EUR",
    "bands": [{"upToGrams": 2000, "price": "490"}, {"upToGrams": 5000, "price": "690"}],
    "freeFrom": "10000",
    "minDays": 2,
    "maxDays": 3,
}


def reason(answer: httpx.Response) -> Any:
    assert answer.status_code != 200, answer.text
    return answer.json()["details"][0]["reason"]


def order(key: str | None = None, **more: Any) -> dict[str, Any]:
    service = {"carrier": "sandbox", "service": "Standard"}
    return {"key": key or new_id(), "orderId": "order-1", "to": TO, "parcel": PARCEL, "service": service, **more}


class Shipping:
    """The API, as one user."""

    def __init__(self, http: httpx.AsyncClient, tenant: Tenant, user: SignedIn) -> None:
        self.http, self.tenant, self._user = http, tenant, user

    async def call(self, verb: str, path: str, body: Any = None, **query: Any) -> httpx.Response:
        url = f"/api/v1/shipping{path}"
        return await self.http.request(verb, url, headers=self._user.headers, json=body, params=query)

    async def ok(self, verb: str, path: str, body: Any = None, **query: Any) -> Any:
        answer = await self.call(verb, path, body, **query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def buy(self, **more: Any) -> dict[str, Any]:
        bought: dict[str, Any] = (await self.ok("POST", "/shipments", {"order": order(**more)}))["shipment"]
        return bought

    async def read(self, shipment: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = (await self.ok("GET", f"/shipments/{shipment['shipmentId']}"))["shipment"]
        return found

    async def scan(self, shipment: dict[str, Any], status: str, *, minutes: int = 0, scan_id: str = "") -> Any:
        when = (now() - timedelta(minutes=minutes)).isoformat()
        scan = {"scanId": scan_id or new_id(), "status": f"SCAN_STATUS_{status}", "scanTime": when}
        return (await self.ok("POST", f"/shipments/{shipment['shipmentId']}/scans", scan))["shipment"]

    async def quotes(self, to: dict[str, Any] = TO, parcels: Any = (PARCEL,), **more: Any) -> list[dict[str, Any]]:
        body = {"to": to, "parcels": list(parcels), "currency": "EUR", **more}
        answer = await self.http.post("/api/v1/shipping/rates", headers=self.tenant.headers, json=body)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["quotes"]
        return found


@pytest.fixture
async def shipping(tenant: Tenant, http: httpx.AsyncClient) -> Shipping:
    result = Shipping(http, tenant, await tenant.sign_in("owner"))
    await result.ok("PUT", "/settings", {"origin": ORIGIN, "timeZone": "Europe/Berlin"})
    zone = {"zoneId": "germany", "name": "Deutschland", "areas": [{"country": "DE"}]}
    await result.ok("PUT", "/zones/germany", zone)
    await result.ok("PUT", "/rate-tables/de-standard", STANDARD)
    return result


@pytest.fixture
async def fulfilment(operator: Clients) -> Any:
    return operator.stub(FulfilmentServiceStub)


@pytest.fixture
async def books(platform: Platform, tenant: Tenant) -> AsyncIterator[Any]:
    """What the sandbox carrier sold to the tenant."""
    admin = await platform.admin()

    async def read() -> list[Any]:
        query = "SELECT * FROM puabo_nuki_shipping_service.sandbox_labels WHERE tenant_id = $1 ORDER BY reference"
        return list(await admin.fetch(query, tenant.tenant_id))

    yield read
    await admin.close()


async def told(platform: Platform, tenant: Tenant) -> Counter[str]:
    """How many events of which kind there were."""
    admin = await platform.admin()
    try:
        query = "SELECT type FROM puabo_nuki_shipping_service.events WHERE tenant_id = $1"
        rows = await admin.fetch(query, tenant.tenant_id)
    finally:
        await admin.close()
    return Counter(row["type"].rpartition(".")[2] for row in rows)


# rates


async def test_anybody_learns_what_delivery_costs(shipping: Shipping) -> None:
    express = {**STANDARD, "rateTableId": "de-express", "service": "Express", "minDays": 1, "maxDays": 1}
    express["bands"] = [{"upToGrams": 5000, "price": "1290"}]
    await shipping.ok("PUT", "/rate-tables/de-express", express)
    found = await shipping.quotes()
    assert [(one["service"], one["price"]["minorUnits"]) for one in found] == [("Standard", "490"), ("Express", "1290")]
    assert (await shipping.quotes(goodsValue="10000"))[0]["price"]["minorUnits"] == "0"
    assert len(await shipping.quotes(parcels=[PARCEL, {"weightGrams": 6000}])) == 0
    assert await shipping.quotes(to={**TO, "country": "FR"}) == []
    assert await shipping.quotes(currency="USD") == []


async def test_a_quote_is_honoured_for_what_it_was_given_for(shipping: Shipping) -> None:
    [quote] = await shipping.quotes()
    await shipping.ok("DELETE", "/rate-tables/de-standard")
    taken = {"quoteId": quote["quoteId"], "service": None}

    async def refused(**more: Any) -> Any:
        return reason(await shipping.call("POST", "/shipments", {"order": {**order(), **taken, **more}}))

    assert await refused(to={**TO, "postcode": "10119"}) == "QUOTE_NOT_FOR_THIS"
    assert await refused(parcel={"weightGrams": 1201}) == "QUOTE_NOT_FOR_THIS"
    assert await refused(quoteId=new_id()) == "QUOTE_EXPIRED"
    bought = await shipping.buy(**taken)
    assert (bought["price"], bought["service"]) == ({"currency": "EUR", "minorUnits": "490"}, "Standard")


async def test_definitions_refer_to_each_other(shipping: Shipping) -> None:
    assert reason(await shipping.call("DELETE", "/zones/germany")) == "ZONE_IN_USE"
    lost = {**STANDARD, "zoneId": "nowhere"}
    assert reason(await shipping.call("PUT", "/rate-tables/de-standard", lost)) == "ZONE_NOT_FOUND"
    strange = {**STANDARD, "carrier": "pigeon"}
    assert reason(await shipping.call("PUT", "/rate-tables/de-standard", strange)) == "CARRIER_UNKNOWN"
    falling = {**STANDARD, "minDays": 9}
    assert reason(await shipping.call("PUT", "/rate-tables/de-standard", falling)) == "RATE_TABLE_INVALID"
    await shipping.ok("DELETE", "/rate-tables/de-standard")
    assert reason(await shipping.call("DELETE", "/rate-tables/de-standard")) == "RATE_TABLE_NOT_FOUND"
    await shipping.ok("DELETE", "/zones/germany")
    assert reason(await shipping.call("DELETE", "/zones/germany")) == "ZONE_NOT_FOUND"


async def test_pages_lead_through_the_zones(shipping: Shipping) -> None:
    for name in ("a", "b", "c"):
        await shipping.ok("PUT", f"/zones/{name}", {"zoneId": name, "areas": [{"country": "AT"}]})
    first = await shipping.ok("GET", "/zones", pageSize=3)
    rest = await shipping.ok("GET", "/zones", pageSize=3, pageToken=first["nextPageToken"])
    assert [zone["zoneId"] for zone in first["zones"] + rest["zones"]] == ["a", "b", "c", "germany"]
    assert rest["nextPageToken"] == ""


async def test_an_order_is_packed_into_the_tenant_s_boxes(shipping: Shipping, fulfilment: Any, tenant: Tenant) -> None:
    book = {"itemId": "book", "quantity": 3, "lengthMm": 190, "widthMm": 140, "heightMm": 30, "weightGrams": 400}
    assert reason(await shipping.call("POST", ":pack", {"items": [book]})) == "BOX_NOT_FOUND"
    box = {"boxId": "s", "lengthMm": 200, "widthMm": 150, "heightMm": 100, "emptyGrams": 80, "maxGrams": 5000}
    await shipping.ok("PUT", "/boxes/s", box)
    [packed] = (await shipping.ok("POST", ":pack", {"items": [book]}))["boxes"]
    assert packed["parcel"]["weightGrams"] == 1280
    assert len(packed["placements"]) == 3
    ski = {**book, "lengthMm": 1700}
    assert reason(await shipping.call("POST", ":pack", {"items": [ski]})) == "ITEM_FITS_NO_BOX"
    many = {**book, "quantity": 200}
    assert reason(await shipping.call("POST", ":pack", {"items": [many, many]})) == "INVALID_REQUEST"
    request = pb.PackOrderRequest()
    request.items.add(item_id="book", quantity=4, length_mm=190, width_mm=140, height_mm=30, weight_grams=400)
    answer = await fulfilment.PackOrder(request, metadata=tuple(tenant.headers.items()))
    assert [len(one.placements) for one in answer.boxes] == [3, 1]


# labels


async def test_twenty_at_once_buy_one_label(shipping: Shipping, books: Any, platform: Platform, tenant: Tenant) -> None:
    one = order("order-1/1")
    answers = await asyncio.gather(*(shipping.call("POST", "/shipments", {"order": one}) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    bought = [answer.json()["shipment"] for answer in answers]
    assert len({(one["shipmentId"], one["trackingNumber"]) for one in bought}) == 1
    [sold] = await books()
    assert sold["tracking_number"] == bought[0]["trackingNumber"]
    assert (await told(platform, tenant))["LabelBought"] == 1
    other = order("order-1/1", note="another")
    assert reason(await shipping.call("POST", "/shipments", {"order": other})) == "KEY_TAKEN"


async def test_when_the_carrier_s_answer_is_lost_the_next_call_finds_out(shipping: Shipping, books: Any) -> None:
    lost = order("lost", to={**TO, "postcode": "LOST"})
    assert reason(await shipping.call("POST", "/shipments", {"order": lost})) == "CARRIER_UNAVAILABLE"
    [sold] = await books()
    bought = (await shipping.ok("POST", "/shipments", {"order": lost}))["shipment"]
    assert (bought["state"], bought["trackingNumber"]) == ("SHIPMENT_STATE_LABEL_BOUGHT", sold["tracking_number"])
    assert len(await books()) == 1


async def test_what_the_carrier_refused_can_be_bought_otherwise(shipping: Shipping, books: Any) -> None:
    refused = order("key", to={**TO, "postcode": "REFUSE"})
    for _ in range(2):
        assert reason(await shipping.call("POST", "/shipments", {"order": refused})) == "CARRIER_REFUSED"
    assert await books() == []
    bought = await shipping.buy(key="key")
    assert (bought["state"], bought["to"]["postcode"]) == ("SHIPMENT_STATE_LABEL_BOUGHT", "50667")


async def test_a_label_is_a_pdf_that_can_be_scanned(shipping: Shipping) -> None:
    bought = await shipping.buy()
    path = f"/shipments/{bought['shipmentId']}/label"
    label = await shipping.call("GET", path)
    assert label.headers["content-type"] == "application/pdf"
    assert {code.text for code in zxingcpp.read_barcodes(picture(label.content))} == {bought["trackingNumber"]}
    assert (await shipping.call("GET", path)).content == label.content
    await shipping.ok("POST", f"/shipments/{bought['shipmentId']}:void")
    assert reason(await shipping.call("GET", path)) == "LABEL_NOT_BOUGHT"


async def test_a_label_is_given_back_once(shipping: Shipping, books: Any, platform: Platform, tenant: Tenant) -> None:
    bought = await shipping.buy(key="back")
    path = f"/shipments/{bought['shipmentId']}:void"
    answers = await asyncio.gather(*(shipping.ok("POST", path) for _ in range(5)))
    assert {answer["shipment"]["state"] for answer in answers} == {"SHIPMENT_STATE_VOIDED"}
    assert [sold["refunded"] for sold in await books()] == [True]
    assert (await told(platform, tenant))["LabelVoided"] == 1
    assert reason(await shipping.call("POST", "/shipments", {"order": order("back")})) == "KEY_TAKEN"


async def test_an_easypost_account_is_needed_to_buy_there_and_its_keys_stay_secret(
    shipping: Shipping, platform: Platform, tenant: Tenant
) -> None:
    there = order(service={"carrier": "easypost", "service": "Priority"})
    assert reason(await shipping.call("POST", "/shipments", {"order": there})) == "CARRIER_UNKNOWN"
    account = {"apiKey": "EZTK-very-secret", "webhookSecret": SECRET}
    answer = await shipping.ok("PUT", "/carriers/easypost/account", account)
    assert answer["webhookUrl"].endswith(f"/api/v1/shipping/webhooks/{tenant.tenant_id}/easypost")
    admin = await platform.admin()
    try:
        sealed = await admin.fetchval(
            "SELECT sealed FROM puabo_nuki_shipping_service.carrier_accounts WHERE tenant_id = $1", tenant.tenant_id
        )
    finally:
        await admin.close()
    assert b"secret" not in sealed
    assert reason(await shipping.call("PUT", "/carriers/pigeon/account", account)) == "CARRIER_UNKNOWN"


# tracking


async def test_scans_arrive_in_any_order_and_the_parcel_only_goes_on(
    shipping: Shipping, platform: Platform, tenant: Tenant
) -> None:
    parcel = await shipping.buy()
    first = await shipping.scan(parcel, "OUT_FOR_DELIVERY", minutes=10, scan_id="b")
    assert first["state"] == "SHIPMENT_STATE_OUT_FOR_DELIVERY"
    late = await shipping.scan(parcel, "ACCEPTED", minutes=600, scan_id="a")
    assert late["state"] == "SHIPMENT_STATE_OUT_FOR_DELIVERY"
    done = await shipping.scan(parcel, "DELIVERED", minutes=1, scan_id="c")
    await shipping.scan(parcel, "EXCEPTION", minutes=20, scan_id="d")
    after = await shipping.read(parcel)
    assert (after["state"], after["deliverTime"]) == ("SHIPMENT_STATE_DELIVERED", done["deliverTime"])
    assert [scan["scanId"] for scan in after["scans"]] == ["c", "b", "d", "a"]
    counts = await told(platform, tenant)
    assert (counts["ShipmentMoved"], counts["ShipmentDelivered"], counts["ShipmentHeldUp"]) == (1, 1, 0)
    assert reason(await shipping.call("POST", f"/shipments/{parcel['shipmentId']}:void")) == "SHIPMENT_UNDER_WAY"


async def test_a_scan_counts_once(shipping: Shipping, platform: Platform, tenant: Tenant) -> None:
    parcel = await shipping.buy()
    scan = {"scanId": "1", "status": "SCAN_STATUS_DELIVERED", "scanTime": "2026-11-20T10:00:00Z"}
    scan["scanTime"] = (now() - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    path = f"/shipments/{parcel['shipmentId']}/scans"
    answers = await asyncio.gather(*(shipping.ok("POST", path, scan) for _ in range(10)))
    assert all(len(answer["shipment"]["scans"]) == 1 for answer in answers)
    assert (await told(platform, tenant))["ShipmentDelivered"] == 1
    forged = {**scan, "status": "SCAN_STATUS_RETURNED"}
    assert reason(await shipping.call("POST", path, forged)) == "SCAN_INVALID"
    future = {**scan, "scanId": "2", "scanTime": (now() + timedelta(days=1)).isoformat()}
    assert reason(await shipping.call("POST", path, future)) == "SCAN_INVALID"


async def test_anybody_with_the_number_sees_where_a_parcel_is_and_nothing_personal(
    shipping: Shipping, other_tenant: Tenant
) -> None:
    parcel = await shipping.buy()
    await shipping.scan(parcel, "IN_TRANSIT")
    path = f"/api/v1/shipping/track/{parcel['trackingNumber']}"
    answer = await shipping.http.get(path, headers=shipping.tenant.headers)
    assert answer.json()["state"] == "SHIPMENT_STATE_IN_TRANSIT"
    for personal in ("Zoë", "Große", "50667", "order-1"):
        assert personal not in answer.text
    assert reason(await shipping.http.get(path, headers=other_tenant.headers)) == "SHIPMENT_NOT_FOUND"


class Webhook:
    """Reports of the sandbox carrier."""

    def __init__(self, shipping: Shipping) -> None:
        self._shipping = shipping

    async def send(self, body: bytes, *, secret: str = SECRET, signature: str | None = None) -> httpx.Response:
        signed = "hmac-sha256-hex=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
        return await self._shipping.http.post(
            f"/api/v1/shipping/webhooks/{self._shipping.tenant.tenant_id}/sandbox",
            content=body,
            headers={
                "content-type": "application/json",
                "x-hmac-signature": signed if signature is None else signature,
            },
        )


def report(number: str, *statuses: str) -> bytes:
    details = [
        {"status": status, "datetime": (now() - timedelta(hours=9 - at)).strftime("%Y-%m-%dT%H:00:00Z")}
        for at, status in enumerate(statuses)
    ]
    event = {"description": "tracker.updated", "result": {"tracking_code": number, "tracking_details": details}}
    return json.dumps(event).encode()


async def test_signed_reports_move_a_parcel_and_replays_change_nothing(
    shipping: Shipping, platform: Platform, tenant: Tenant
) -> None:
    parcel, webhook = await shipping.buy(), Webhook(shipping)
    body = report(parcel["trackingNumber"], "pre_transit", "in_transit", "out_for_delivery", "delivered")
    assert reason(await webhook.send(body)) == "CARRIER_UNKNOWN"
    await shipping.ok("PUT", "/carriers/sandbox/account", {"webhookSecret": SECRET})
    assert reason(await webhook.send(body, secret="somebody else's secret")) == "SIGNATURE_INVALID"
    assert reason(await webhook.send(body, signature="")) == "SIGNATURE_INVALID"
    assert reason(await webhook.send(b"{}")) == "WEBHOOK_UNREADABLE"
    assert (await shipping.read(parcel))["state"] == "SHIPMENT_STATE_LABEL_BOUGHT"
    answers = await asyncio.gather(*(webhook.send(body) for _ in range(8)))
    assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
    early = report(parcel["trackingNumber"], "in_transit")
    assert (await webhook.send(early)).status_code == 200
    after = await shipping.read(parcel)
    assert (after["state"], len(after["scans"])) == ("SHIPMENT_STATE_DELIVERED", 4)
    assert (await told(platform, tenant))["ShipmentDelivered"] == 1
    assert (await webhook.send(report("SB00000000000000", "delivered"))).status_code == 200


# manifests and delivery runs


async def test_every_label_is_on_one_manifest(shipping: Shipping) -> None:
    bought = [await shipping.buy() for _ in range(5)]
    given_back = await shipping.buy()
    await shipping.ok("POST", f"/shipments/{given_back['shipmentId']}:void")
    answers = await asyncio.gather(
        *(shipping.call("POST", "/manifests", {"carrier": "sandbox", "requestId": new_id()}) for _ in range(4))
    )
    closed = [answer.json()["manifest"] for answer in answers if answer.status_code == 200]
    assert {reason(answer) for answer in answers if answer.status_code != 200} == {"NOTHING_TO_MANIFEST"}
    listed = [line["shipmentId"] for manifest in closed for line in manifest["lines"]]
    assert sorted(listed) == sorted(one["shipmentId"] for one in bought)
    assert [manifest["weightGrams"] for manifest in closed] == ["6000"]
    found = (await shipping.ok("GET", "/manifests"))["manifests"]
    assert [one["manifestId"] for one in found] == [closed[0]["manifestId"]]
    pdf = await shipping.call("GET", f"/manifests/{closed[0]['manifestId']}/pdf")
    assert pdf.content.startswith(b"%PDF")
    assert reason(await shipping.call("GET", f"/manifests/{new_id()}")) == "MANIFEST_NOT_FOUND"


async def test_a_day_s_deliveries_are_planned_by_the_route_optimizer(
    shipping: Shipping, platform: Platform, tenant: Tenant
) -> None:
    local = {"carrier": "local", "service": "Today"}
    near = [{"latitude": 52.52 + at / 100, "longitude": 13.40 + at / 90} for at in range(6)]
    parcels = [await shipping.buy(service=local, to={**TO, "location": where}) for where in near]
    far = await shipping.buy(service=local, to={**TO, "location": {"latitude": 48.1, "longitude": 11.6}})
    unknown = await shipping.buy(service=local)
    van = {"maxParcels": 4, "maxGrams": 50_000, "startSecond": 8 * 3600, "endSecond": 12 * 3600}
    vehicles = [{**van, "vehicleId": "van-1"}, {**van, "vehicleId": "van-2"}]
    body = {"date": "2026-12-01", "vehicles": vehicles, "requestId": new_id()}
    run = (await shipping.ok("POST", "/delivery-runs", body))["deliveryRun"]
    stops = [stop for route in run["routes"] for stop in route["stops"]]
    assert sorted(stop["shipmentId"] for stop in stops) == sorted(one["shipmentId"] for one in parcels)
    assert all(len(route["stops"]) <= 4 for route in run["routes"])
    assert all(8 * 3600 <= stop["arrivalSecond"] <= 12 * 3600 for stop in stops)
    left = {one["shipmentId"]: one["reason"] for one in run["unplanned"]}
    assert left.keys() == {far["shipmentId"], unknown["shipmentId"]}
    assert (await shipping.ok("POST", "/delivery-runs", body))["deliveryRun"] == run
    again = (await shipping.ok("POST", "/delivery-runs", {**body, "requestId": new_id()}))["deliveryRun"]
    assert "routes" not in again or again["routes"] == []
    assert (await shipping.read(parcels[0]))["deliveryRunId"] == run["deliveryRunId"]
    assert (await told(platform, tenant))["DeliveryRunPlanned"] == 2
    listed = (await shipping.ok("GET", "/delivery-runs"))["deliveryRuns"]
    assert [one["stops"] for one in listed] == [0, 6]
    assert (await shipping.ok("GET", f"/delivery-runs/{run['deliveryRunId']}"))["deliveryRun"] == run


# for services


def parcel_order(key: str, postcode: str = "50667") -> LabelOrder:
    made = LabelOrder(key=key, order_id="order-7", parcel=Parcel(weight_grams=500))
    made.to.postcode, made.to.country = postcode, "DE"
    made.service.carrier, made.service.service = "sandbox", "Standard"
    return made


async def test_the_order_process_ships_and_cancels_by_its_own_key(
    shipping: Shipping, fulfilment: Any, tenant: Tenant, books: Any
) -> None:
    metadata = tuple(tenant.headers.items())

    async def ship(key: str, postcode: str = "50667") -> Any:
        request = pb.ShipParcelRequest(order=parcel_order(key, postcode))
        return (await fulfilment.ShipParcel(request, metadata=metadata)).shipment

    async def cancel(key: str) -> Any:
        return await fulfilment.CancelParcel(pb.CancelParcelRequest(key=key), metadata=metadata)

    first = await ship("a")
    assert first == await ship("a")
    for _ in range(2):
        assert (await cancel("a")).shipment.state == ShipmentState.SHIPMENT_STATE_VOIDED
    with pytest.raises(KeyTaken):
        await ship("a")
    assert not (await cancel("never bought")).HasField("shipment")
    with pytest.raises(KeyTaken):
        await ship("never bought")
    with pytest.raises(CarrierUnavailable):
        await ship("lost", "LOST")
    assert (await cancel("lost")).shipment.state == ShipmentState.SHIPMENT_STATE_VOIDED
    assert [sold["refunded"] for sold in await books()] == [True, True]
    with pytest.raises(ShipmentNotFound):
        await fulfilment.GetParcel(pb.GetParcelRequest(key="nowhere"), metadata=metadata)
    under_way = await ship("c")
    await shipping.scan({"shipmentId": under_way.shipment_id}, "ACCEPTED")
    with pytest.raises(ShipmentUnderWay):
        await cancel("c")


async def test_buying_and_cancelling_at_once_leave_no_label_that_nobody_knows_of(
    shipping: Shipping, fulfilment: Any, tenant: Tenant, books: Any
) -> None:
    metadata = tuple(tenant.headers.items())
    keys = [f"race-{number}" for number in range(10)]

    async def ship(key: str) -> bool:
        try:
            await fulfilment.ShipParcel(pb.ShipParcelRequest(order=parcel_order(key)), metadata=metadata)
        except KeyTaken:
            return False
        return True

    async def cancel(key: str) -> None:
        await fulfilment.CancelParcel(pb.CancelParcelRequest(key=key), metadata=metadata)

    await asyncio.gather(*(one(key) for key in keys for one in (ship, cancel)))
    assert all(sold["refunded"] for sold in await books())
    states = [one["state"] for one in (await shipping.ok("GET", "/shipments"))["shipments"]]
    assert set(states) <= {"SHIPMENT_STATE_VOIDED"}


async def test_another_tenant_sees_nothing(shipping: Shipping, other_tenant: Tenant, http: httpx.AsyncClient) -> None:
    bought = await shipping.buy(key="mine")
    stranger = Shipping(http, other_tenant, await other_tenant.sign_in("owner"))
    path = f"/shipments/{bought['shipmentId']}"
    assert reason(await stranger.call("GET", path)) == "SHIPMENT_NOT_FOUND"
    assert reason(await stranger.call("GET", f"{path}/label")) == "SHIPMENT_NOT_FOUND"
    assert reason(await stranger.call("POST", f"{path}:void")) == "SHIPMENT_NOT_FOUND"
    assert (await stranger.ok("GET", "/shipments"))["shipments"] == []
    assert (await stranger.ok("GET", "/zones"))["zones"] == []
    assert reason(await stranger.call("GET", "/settings")) == "ORIGIN_UNKNOWN"
    assert reason(await stranger.call("POST", "/shipments", {"order": order("mine")})) == "ORIGIN_UNKNOWN"


async def test_a_user_without_the_permission_buys_nothing(shipping: Shipping, http: httpx.AsyncClient) -> None:
    nobody = Shipping(http, shipping.tenant, await shipping.tenant.sign_in())
    assert reason(await nobody.call("POST", "/shipments", {"order": order()})) == "PERMISSION_MISSING"
    token = base64.b64encode(b"none").decode()
    answer = await http.get("/api/v1/shipping/settings", headers={"authorization": f"Bearer {token}"})
    assert answer.status_code == 401


def test_no_event_holds_an_address() -> None:
    for message in events_pb2.DESCRIPTOR.message_types_by_name.values():
        names = {field.name for field in message.fields}
        assert not names & {"to", "from", "name", "lines", "postcode", "email", "phone"}, message.name
