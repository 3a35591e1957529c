"""Where a parcel is: the farthest that any scan says, in whichever order they arrive."""

from datetime import datetime, timedelta

from nexus.commerce.puabo_nuki_shipping_service.v1.faults import ScanInvalid
from nexus.commerce.puabo_nuki_shipping_service.v1.shipment_pb2 import Scan, ScanStatus
from services.chassis.clock import moment
from services.chassis.messages import text_of

EARLIEST = timedelta(days=365)
SKEW = timedelta(hours=1)
"""How far a carrier's clock may be ahead."""
_ONWARD = ("LABEL_BOUGHT", "IN_TRANSIT", "OUT_FOR_DELIVERY", "DELIVERED", "RETURNED")
_REACHED = {
    "ACCEPTED": "IN_TRANSIT",
    "IN_TRANSIT": "IN_TRANSIT",
    "EXCEPTION": "IN_TRANSIT",
    "OUT_FOR_DELIVERY": "OUT_FOR_DELIVERY",
    "DELIVERED": "DELIVERED",
    "RETURNED": "RETURNED",
}


def after(state: str, status: str) -> str:
    """The state of a shipment after a scan. A label that was given back stays so, whatever is scanned."""
    if state not in _ONWARD:
        return state
    return max(state, _REACHED[status], key=_ONWARD.index)


def status_of(scan: Scan) -> str:
    return text_of(ScanStatus, scan.status)


def check(scan: Scan, now: datetime) -> None:
    """Raises ScanInvalid for what cannot have been seen yet, or long ago."""
    seen = moment(scan.scan_time)
    if seen > now + SKEW:
        raise ScanInvalid(why="it is from the future")
    if seen < now - EARLIEST:
        raise ScanInvalid(why="it is more than a year old")
