"""What delivery costs, how far a parcel is, what a carrier reports, and what stands on a label."""

import hashlib
import hmac
import json
from datetime import UTC, date, datetime, timedelta
from io import BytesIO
from itertools import pairwise
from typing import Any

import pypdf
import pypdfium2  # type: ignore[import-untyped]
import pytest
import zxingcpp
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nexus.commerce.puabo_nuki_shipping_service.v1 import shipment_pb2 as pb
from nexus.commerce.puabo_nuki_shipping_service.v1.faults import (
    RateTableInvalid,
    ScanInvalid,
    SignatureInvalid,
    WebhookUnreadable,
)
from services.chassis.clock import now, timestamp
from services.commerce.puabo_nuki_shipping_service import labels, rating, tracking
from services.commerce.puabo_nuki_shipping_service.carriers import read_report, verify

WHEN = datetime(2026, 11, 23, 9, 30, tzinfo=UTC)
STATUSES = ["ACCEPTED", "IN_TRANSIT", "OUT_FOR_DELIVERY", "EXCEPTION", "DELIVERED", "RETURNED"]
ONWARD = ["LABEL_BOUGHT", "IN_TRANSIT", "OUT_FOR_DELIVERY", "DELIVERED", "RETURNED"]


def zone(zone_id: str, *areas: tuple[str, str]) -> pb.Zone:
    return pb.Zone(zone_id=zone_id, areas=[pb.ZoneArea(country=c, postcode_prefix=p) for c, p in areas])


ZONES = [
    zone("world", ("", "")),
    zone("germany", ("DE", "")),
    zone("islands", ("DE", "2549"), ("DE", "18565")),
    zone("london", ("GB", "EC"), ("GB", "SW1")),
]


@pytest.mark.parametrize(
    ("country", "postcode", "expected"),
    [
        ("DE", "10119", "germany"),
        ("DE", "25498", "islands"),
        ("DE", "18565", "islands"),
        ("GB", "sw1a 1aa", "london"),
        ("GB", "M1 1AE", "world"),
        ("FR", "25498", "world"),
    ],
)
def test_an_address_is_in_the_zone_that_names_it_best(country: str, postcode: str, expected: str) -> None:
    address = pb.Address(country=country, postcode=postcode)
    for order in (ZONES, ZONES[::-1]):
        found = rating.zone_of(address, order)
        assert found is not None
        assert found.zone_id == expected


def test_where_there_is_no_zone_there_is_none() -> None:
    assert rating.zone_of(pb.Address(country="FR"), ZONES[1:]) is None
    assert rating.zone_of(pb.Address(country="FR"), []) is None


def table(**more: Any) -> pb.RateTable:
    bands = [pb.RateBand(up_to_grams=1_000, price=390), pb.RateBand(up_to_grams=5_000, price=590)]
    return pb.RateTable(rate_table_id="t", bands=bands, currency="EUR", **more)


@pytest.mark.parametrize(
    ("grams", "expected"), [(1, 390), (1_000, 390), (1_001, 590), (5_000, 590), (5_001, 690), (7_000, 790)]
)
def test_the_price_follows_the_weight(grams: int, expected: int) -> None:
    assert rating.price(table(extra_kilogram=100), [pb.Parcel(weight_grams=grams)], 0) == expected


def test_what_no_band_takes_is_not_taken() -> None:
    parcels = [pb.Parcel(weight_grams=1), pb.Parcel(weight_grams=5_001)]
    assert rating.price(table(), parcels, 0) is None
    assert rating.price(table(free_from=1), parcels, 10**9) is None


def test_a_light_parcel_pays_for_its_volume() -> None:
    pillow = pb.Parcel(weight_grams=300, length_mm=400, width_mm=300, height_mm=150)  # 18 litres
    assert rating.billable_grams(pillow, 5_000) == 3_600
    assert rating.price(table(dimensional_divisor=5_000), [pillow], 0) == 590
    assert rating.price(table(), [pillow], 0) == 390


def test_delivery_is_free_from_a_value_on() -> None:
    parcels = [pb.Parcel(weight_grams=500)] * 2
    assert rating.price(table(free_from=5_000), parcels, 4_999) == 780
    assert rating.price(table(free_from=5_000), parcels, 5_000) == 0


def test_a_table_that_contradicts_itself_is_refused() -> None:
    rating.check(table(min_days=1, max_days=1))
    with pytest.raises(RateTableInvalid):
        rating.check(table(min_days=3, max_days=2))
    falling = table()
    falling.bands.add(up_to_grams=4_000, price=1)
    with pytest.raises(RateTableInvalid):
        rating.check(falling)


def test_weekends_are_no_working_days() -> None:
    friday = date(2026, 11, 20)
    assert rating.working_days_after(friday, 0) == friday
    assert rating.working_days_after(friday, 1) == date(2026, 11, 23)
    assert rating.working_days_after(date(2026, 11, 21), 5) == date(2026, 11, 27)


@given(st.lists(st.sampled_from(STATUSES), max_size=8), st.randoms())
def test_a_parcel_never_goes_back_and_the_order_of_scans_does_not_matter(statuses: list[str], random: Any) -> None:
    def states(order: list[str]) -> list[str]:
        found = ["LABEL_BOUGHT"]
        for status in order:
            found.append(tracking.after(found[-1], status))
        return found

    there = states(statuses)
    assert all(ONWARD.index(one) <= ONWARD.index(other) for one, other in pairwise(there))
    shuffled = statuses * 2
    random.shuffle(shuffled)
    assert states(shuffled)[-1] == there[-1]


def test_a_label_that_was_given_back_goes_nowhere() -> None:
    assert tracking.after("VOIDED", "DELIVERED") == "VOIDED"


@pytest.mark.parametrize("off", [timedelta(hours=2), timedelta(days=-366)])
def test_a_scan_from_the_future_or_the_far_past_is_none(off: timedelta) -> None:
    scan = pb.Scan(scan_id="1", status=pb.SCAN_STATUS_DELIVERED, scan_time=timestamp(now() + off))
    with pytest.raises(ScanInvalid):
        tracking.check(scan, now())


def test_only_what_was_signed_with_the_secret_is_the_carrier_s() -> None:
    body, secret = b'{"description": "tracker.updated"}', "sécret-of-sixteen"
    key = "se\u0301cret-of-sixteen".encode()  # the letter and its accent apart (NFKD)
    good = "hmac-sha256-hex=" + hmac.new(key, body, hashlib.sha256).hexdigest()
    verify(body, good, secret)
    for wrong in (good[:-1], good.replace("hmac-sha256-hex=", ""), good.upper(), "ü", ""):
        with pytest.raises(SignatureInvalid):
            verify(body, wrong, secret)
    with pytest.raises(SignatureInvalid):
        verify(body + b" ", good, secret)


def test_a_report_is_read_with_ids_that_what_it_says_gives_it() -> None:
    seen = {"status": "in_transit", "datetime": "2026-11-22T10:00:00Z", "message": "Departed"}
    place = {"tracking_location": {"city": "Leipzig", "state": None, "country": "DE"}}
    details = [{**seen, **place}, seen, {**seen, "status": "delivered"}, {**seen, "status": "pre_transit"}]
    event = {"description": "tracker.updated", "result": {"tracking_code": "EZ1", "tracking_details": details}}
    report = read_report(json.dumps(event).encode())
    assert report is not None
    assert report == read_report(json.dumps(event, indent=1).encode())
    assert [scan.status for scan in report.scans] == [2, 2, 5, 0]
    assert len({scan.scan_id for scan in report.scans}) == 4
    assert report.scans[0].place == "Leipzig, DE"
    assert read_report(b'{"description": "batch.updated", "result": {}}') is None


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b'{"description": "tracker.updated"}', b"null"])
def test_what_is_no_report_is_refused(body: bytes) -> None:
    with pytest.raises(WebhookUnreadable):
        read_report(body)


def shipment(**more: Any) -> pb.Shipment:
    known = {
        "shipmentId": "0193",
        "trackingNumber": "SB12345678901234",
        "carrier": "sandbox",
        "service": "Express",
        "orderId": "ORD-2026-0815",
        "note": "Zerbrechlich",
        "from": {"name": "Atelier Nordlicht", "lines": ["Torstraße 140"], "postcode": "10119", "country": "DE"},
        "to": {
            "name": "Zoë Müller-Łukasiewicz",
            "company": "Ωmega GmbH",
            "lines": ["Große Straße 12", "Hinterhaus"],
            "postcode": "50667",
            "city": "Köln",
            "country": "DE",
        },
        "parcel": {"weightGrams": 1_234},
    }
    return json_format.ParseDict({**known, **more}, pb.Shipment())


def text(pdf: bytes) -> str:
    return "\n".join(page.extract_text() for page in pypdf.PdfReader(BytesIO(pdf)).pages)


def picture(pdf: bytes) -> Image.Image:
    with pypdfium2.PdfDocument(pdf) as document:
        return document[0].render(scale=4).to_pil()


def test_a_label_can_be_read_by_people_and_by_scanners() -> None:
    pdf = labels.label(shipment(), WHEN)
    assert pdf == labels.label(shipment(), WHEN)
    said = text(pdf)
    for word in ("Zoë Müller-Łukasiewicz", "Ωmega", "Große Straße 12", "50667 Köln", "1.23 kg", "EXPRESS", "ORD-2026"):
        assert word in said
    codes = {code.format.name: code.text for code in zxingcpp.read_barcodes(picture(pdf))}
    assert codes == {"Code128": "SB12345678901234", "QRCode": "SB12345678901234"}


def test_long_names_stay_on_the_label() -> None:
    long = {"name": "N" * 100, "company": "C" * 100, "lines": ["L" * 100] * 3, "city": "S" * 100, "country": "DE"}
    pdf = labels.label(shipment(to=long, note="X" * 60, orderId="O" * 128, service="S" * 60), WHEN)
    paper = picture(pdf)
    edge = paper.crop((paper.width - 12, round(paper.height * 19 / 150), paper.width, paper.height)).convert("L")
    darkest: Any = edge.getextrema()[0]
    assert darkest > 200
    assert {code.text for code in zxingcpp.read_barcodes(paper)} == {"SB12345678901234"}


def test_a_manifest_lists_every_parcel() -> None:
    closed = pb.Manifest(manifest_id="m", carrier="sandbox", shipments=90, weight_grams=90_000)
    for number in range(90):
        closed.lines.add(tracking_number=f"SB{number:014}", service="Standard", postcode="10119", country="DE")
    pdf = labels.manifest(closed, pb.Address(name="Atelier"), WHEN)
    assert pdf == labels.manifest(closed, pb.Address(name="Atelier"), WHEN)
    assert len(pypdf.PdfReader(BytesIO(pdf)).pages) == 3
    said = text(pdf)
    assert [number for number in range(90) if f"SB{number:014}" not in said] == []
