"""Carriers: who sells labels, takes them back, and reports where parcels are.

Buying has two steps, so that nothing is bought twice when an answer is lost: `prepare` costs nothing and names what
is to be bought, `buy` sells that once, however often it is asked.
"""

import asyncio
import hashlib
import hmac
import json
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple, Protocol

import httpx
from iso4217 import Currency

from nexus.commerce.puabo_nuki_shipping_service.v1 import shipment_pb2 as pb
from nexus.commerce.puabo_nuki_shipping_service.v1.faults import (
    CarrierRefused,
    CarrierUnavailable,
    SignatureInvalid,
    WebhookUnreadable,
)
from nexus.commerce.puabo_nuki_shipping_service.v1.shipment_pb2 import Address, Scan, Shipment
from nexus.type.v1.money_pb2 import Money
from services.commerce.puabo_nuki_shipping_service.store import SandboxBooks

SIGNATURE_HEADER = "x-hmac-signature"
_SCHEME = "hmac-sha256-hex="
_GRAMS_PER_OUNCE, _MM_PER_INCH = Decimal("28.349523125"), Decimal("25.4")


class Bought(NamedTuple):
    """What a carrier sold."""

    tracking_number: str
    cost: Money


class Report(NamedTuple):
    """What a carrier reports of one parcel."""

    tracking_number: str
    scans: Sequence[Scan]


class Carrier(Protocol):
    """All methods raise CarrierRefused for a no that stays a no, and CarrierUnavailable when there is no answer."""

    async def prepare(self, shipment: Shipment) -> str:
        """What the carrier knows the shipment by. Nothing is sold yet."""
        ...

    async def buy(self, reference: str, shipment: Shipment) -> Bought:
        """Sells the label, once for each reference."""
        ...

    async def void(self, reference: str) -> None:
        """Takes the label back, if it was sold. Doing so again changes nothing."""
        ...

    async def label(self, reference: str, shipment: Shipment) -> bytes:
        """The label as a PDF."""
        ...


class _AtOnce:
    """Needs nobody's answer, and prints its labels itself."""

    async def prepare(self, shipment: Shipment) -> str:
        return shipment.shipment_id

    async def label(self, reference: str, shipment: Shipment) -> bytes:
        return await asyncio.to_thread(_label, shipment)


class Sandbox(_AtOnce):
    """A carrier for development and tests; it sells at once and does the same every time. What it does otherwise,
    the recipient's postcode says: REFUSE refuses, BUSY never answers, LOST sells and loses its first answer."""

    def __init__(self, books: SandboxBooks) -> None:
        self._books = books

    async def buy(self, reference: str, shipment: Shipment) -> Bought:
        postcode = shipment.to.postcode.upper()
        if postcode == "REFUSE":
            raise CarrierRefused(why="nobody delivers there")
        if postcode == "BUSY":
            raise CarrierUnavailable(carrier="sandbox", retry_after=1)
        sold = await self._books.sell(reference, _number("SB", reference), 300 + shipment.parcel.weight_grams // 10)
        if postcode == "LOST" and sold["requests"] == 1:
            raise CarrierUnavailable(carrier="sandbox", retry_after=1)
        return Bought(sold["tracking_number"], Money(currency="EUR", minor_units=sold["cost"]))

    async def void(self, reference: str) -> None:
        await self._books.refund(reference)


class OwnVehicles(_AtOnce):
    """The tenant delivers by itself: labels cost nothing."""

    async def buy(self, reference: str, shipment: Shipment) -> Bought:
        return Bought(_number("LO", reference), Money(currency="EUR"))

    async def void(self, reference: str) -> None:
        """Nobody has to be told."""


class EasyPost:
    """Any of EasyPost's carriers (REST, version 2)."""

    def __init__(self, url: str, api_key: str, timeout: timedelta) -> None:
        self._url, self._auth = url.rstrip("/"), httpx.BasicAuth(api_key, "")
        self._timeout = timeout.total_seconds()

    async def prepare(self, shipment: Shipment) -> str:
        parcel = shipment.parcel
        sizes = {"length": parcel.length_mm, "width": parcel.width_mm, "height": parcel.height_mm}
        body = {
            "shipment": {
                "reference": shipment.shipment_id,
                "to_address": _easypost_address(shipment.to),
                "from_address": _easypost_address(getattr(shipment, "from")),
                "parcel": {
                    "weight": _rounded(parcel.weight_grams / _GRAMS_PER_OUNCE),
                    **{name: _rounded(size / _MM_PER_INCH) for name, size in sizes.items() if size},
                },
                "options": {"label_format": "PDF", "print_custom_1": shipment.note},
            }
        }
        made = await self._call("POST", "/shipments", body)
        return str(made["id"])

    async def buy(self, reference: str, shipment: Shipment) -> Bought:
        there = await self._call("GET", f"/shipments/{reference}")
        if not there.get("postage_label"):
            rates = [rate for rate in there.get("rates", ()) if rate.get("service") == shipment.service]
            if not rates:
                raise CarrierRefused(why=f"it does not offer {shipment.service} for this parcel")
            cheapest = min(rates, key=lambda rate: Decimal(rate["rate"]))
            try:
                body = {"rate": {"id": cheapest["id"]}}
                there = await self._call("POST", f"/shipments/{reference}/buy", body)
            except CarrierRefused as refused:
                if "SHIPMENT.POSTAGE.EXISTS" not in refused.message:
                    raise
                there = await self._call("GET", f"/shipments/{reference}")
        rate = there["selected_rate"]
        return Bought(there["tracking_code"], _money(rate["rate"], rate["currency"]))

    async def void(self, reference: str) -> None:
        there = await self._call("GET", f"/shipments/{reference}")
        if there.get("postage_label") and there.get("refund_status") not in ("submitted", "refunded"):
            await self._call("POST", f"/shipments/{reference}/refund", {})

    async def label(self, reference: str, shipment: Shipment) -> bytes:
        there = await self._call("GET", f"/shipments/{reference}")
        address = there["postage_label"].get("label_pdf_url") or there["postage_label"]["label_url"]
        return (await self._ask("GET", address, None, auth=None)).content

    async def _call(self, verb: str, path: str, body: Any = None) -> Any:
        answer = await self._ask(verb, self._url + path, body, auth=self._auth)
        return answer.json()

    async def _ask(self, verb: str, url: str, body: Any, auth: httpx.BasicAuth | None) -> httpx.Response:
        try:
            async with httpx.AsyncClient(timeout=self._timeout) as client:
                answer = await client.request(verb, url, json=body, auth=auth)
        except httpx.HTTPError as error:
            raise CarrierUnavailable(carrier="easypost", retry_after=2) from error
        if answer.status_code == 429 or answer.status_code >= 500:
            raise CarrierUnavailable(carrier="easypost", retry_after=5)
        if answer.status_code >= 400:
            raise CarrierRefused(why=_why(answer))
        return answer


def verify(body: bytes, signature: str, secret: str) -> None:
    """Raises SignatureInvalid for a body that was not signed with the secret, as EasyPost signs."""
    key = unicodedata.normalize("NFKD", secret).encode()
    expected = _SCHEME + hmac.new(key, body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected.encode(), signature.encode()):
        raise SignatureInvalid()


def read_report(body: bytes) -> Report | None:
    """What EasyPost's event says of a tracker; None for an event of something else.

    Its scans have no ids: what they say is their id, so that each counts once. Raises WebhookUnreadable.
    """
    try:
        event = json.loads(body)
        if not str(event["description"]).startswith("tracker."):
            return None
        tracker = event["result"]
        return Report(str(tracker["tracking_code"])[:64], [_scan(detail) for detail in tracker["tracking_details"]])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WebhookUnreadable(why=f"{type(error).__name__} in it") from None


_EASYPOST_STATUS = {
    "in_transit": pb.SCAN_STATUS_IN_TRANSIT,
    "out_for_delivery": pb.SCAN_STATUS_OUT_FOR_DELIVERY,
    "available_for_pickup": pb.SCAN_STATUS_OUT_FOR_DELIVERY,
    "delivered": pb.SCAN_STATUS_DELIVERED,
    "return_to_sender": pb.SCAN_STATUS_RETURNED,
    "failure": pb.SCAN_STATUS_EXCEPTION,
    "error": pb.SCAN_STATUS_EXCEPTION,
    "cancelled": pb.SCAN_STATUS_EXCEPTION,
}


def _scan(detail: Mapping[str, Any]) -> Scan:
    """Without a status for what says nothing of where the parcel is."""
    place = detail.get("tracking_location") or {}
    said = json.dumps([detail["status"], detail["datetime"], detail.get("message"), place], sort_keys=True)
    scan = Scan(
        scan_id=hashlib.sha256(said.encode()).hexdigest(),
        status=_EASYPOST_STATUS.get(detail["status"], pb.SCAN_STATUS_UNSPECIFIED),
        place=", ".join(part for part in (place.get("city"), place.get("country")) if part)[:100],
        message=str(detail.get("message") or "")[:300],
    )
    scan.scan_time.FromJsonString(detail["datetime"])
    return scan


def _easypost_address(address: Address) -> dict[str, str]:
    lines = dict(zip(("street1", "street2"), address.lines, strict=False))
    return {
        **lines,
        "name": address.name,
        "company": address.company,
        "city": address.city,
        "state": address.region,
        "zip": address.postcode,
        "country": address.country,
        "phone": address.phone,
        "email": address.email,
    }


def _number(prefix: str, reference: str) -> str:
    return f"{prefix}{int(hashlib.sha256(reference.encode()).hexdigest(), 16) % 10**14:014}"


def _money(amount: str, currency: str) -> Money:
    try:
        places = Currency(currency).exponent or 0
        return Money(currency=currency, minor_units=int((Decimal(amount).scaleb(places)).to_integral_value()))
    except (InvalidOperation, ValueError) as error:
        raise CarrierUnavailable(carrier="easypost", retry_after=60) from error


def _rounded(amount: Decimal) -> float:
    return float(amount.quantize(Decimal("0.01")))


def _why(answer: httpx.Response) -> str:
    """The error's code and message, as EasyPost gives them."""
    try:
        error = answer.json()["error"]
        return f"{error.get('code', answer.status_code)}: {error.get('message', '')}"[:300]
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"HTTP {answer.status_code}"


def _label(shipment: Shipment) -> bytes:
    """In a thread: what draws takes a second to load, and is loaded when the first label is asked for."""
    from services.commerce.puabo_nuki_shipping_service.labels import label

    return label(shipment, shipment.create_time.ToDatetime())
