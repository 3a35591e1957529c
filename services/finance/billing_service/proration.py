"""Sharing a fee out over its period, to the microsecond, so that the parts always add up to the fee.

What is left of a fee at a time is one number, rounded one way. A part is the difference between what is left at its
two ends, so that neighbours share their rounding and nothing is lost or made up, however often somebody changes their
mind.
"""

from datetime import datetime, timedelta

_TICK = timedelta(microseconds=1)


def remaining(fee: int, start: datetime, end: datetime, at: datetime) -> int:
    """What is left of a period's fee at a time, in minor units: the fee at the start, nothing at the end.

    Rounded down, so that the part that has been used is never billed at less than its worth.
    """
    at = min(max(at, start), end)
    return fee * ((end - at) // _TICK) // ((end - start) // _TICK)
