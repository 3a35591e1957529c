"""What delivery costs: zones by postcode, prices by weight or volume."""

import re
from collections.abc import Iterable, Sequence
from datetime import date, timedelta

from nexus.commerce.puabo_nuki_shipping_service.v1.faults import RateTableInvalid
from nexus.commerce.puabo_nuki_shipping_service.v1.shipment_pb2 import Address, Parcel, RateTable, Zone, ZoneArea

_SATURDAY = 5


def zone_of(address: Address, zones: Iterable[Zone]) -> Zone | None:
    """The zone that names the address most exactly: the longest part of its postcode, its country, or everywhere."""
    postcode = compact(address.postcode)

    def exactness(area: ZoneArea) -> int:
        if area.country not in ("", address.country) or not postcode.startswith(area.postcode_prefix):
            return -1
        return len(area.postcode_prefix) * 2 + bool(area.country)

    fitting = [(max(map(exactness, zone.areas)), zone) for zone in zones]
    best = max(fitting, key=lambda pair: (pair[0], pair[1].zone_id), default=None)
    return best[1] if best is not None and best[0] >= 0 else None


def price(table: RateTable, parcels: Sequence[Parcel], goods_value: int) -> int | None:
    """In minor units, for all parcels together; None when the table does not take one of them."""
    prices = [_price_of(table, billable_grams(parcel, table.dimensional_divisor)) for parcel in parcels]
    if None in prices:
        return None
    if table.HasField("free_from") and goods_value >= table.free_from:
        return 0
    return sum(amount for amount in prices if amount is not None)


def billable_grams(parcel: Parcel, divisor: int) -> int:
    """The weight that is paid for: what the parcel weighs, or what its volume counts for, begun grams included."""
    if not divisor:
        return parcel.weight_grams
    volume = parcel.length_mm * parcel.width_mm * parcel.height_mm  # a cubic centimetre is 1000 of them
    return max(parcel.weight_grams, -(-volume // divisor))


def check(table: RateTable) -> None:
    """Raises RateTableInvalid."""
    weights = [band.up_to_grams for band in table.bands]
    if weights != sorted(set(weights)):
        raise RateTableInvalid(why="its bands must rise")
    if table.min_days > table.max_days:
        raise RateTableInvalid(why="it cannot take longer at least than at most")


def compact(postcode: str) -> str:
    """ "SW1A 1AA" → "SW1A1AA"."""
    return re.sub(r"[^A-Z0-9]", "", postcode.upper())


def working_days_after(day: date, count: int) -> date:
    while count:
        day += timedelta(days=1)
        count -= day.weekday() < _SATURDAY
    return day


def _price_of(table: RateTable, grams: int) -> int | None:
    for band in table.bands:
        if grams <= band.up_to_grams:
            return band.price
    if not table.HasField("extra_kilogram"):
        return None
    heaviest = table.bands[-1]
    return heaviest.price + -(-(grams - heaviest.up_to_grams) // 1000) * table.extra_kilogram
