"""What the use of something costs, by tiers. Decimals throughout; one rounding, half up, at the end."""

import itertools
from collections.abc import Sequence
from decimal import ROUND_CEILING, ROUND_HALF_UP, Decimal, localcontext

from nexus.finance.billing_service.v1.faults import TiersInvalid
from nexus.finance.billing_service.v1.plans_pb2 import TIER_MODE_VOLUME, Tier, UsagePrice


def require_sound(price: UsagePrice) -> None:
    """Raises TiersInvalid."""
    ends = [tier.up_to if tier.HasField("up_to") else None for tier in price.tiers]
    if ends[-1] is not None or None in ends[:-1]:
        raise TiersInvalid(why="the last tier has no end, and all others have one")
    known = [end for end in ends if end is not None]
    if any(later <= earlier for earlier, later in itertools.pairwise(known)):
        raise TiersInvalid(why="each tier ends after the one before")


def cost(price: UsagePrice, used: Decimal) -> int:
    """In minor units. What is less than nothing costs nothing."""
    with localcontext() as context:
        context.prec = 60
        units = max(used, Decimal(0))
        if price.package_size > 1:
            units = (units / price.package_size).to_integral_value(ROUND_CEILING)
        exact = _volume(price.tiers, units) if price.mode == TIER_MODE_VOLUME else _graduated(price.tiers, units)
        return int(exact.to_integral_value(ROUND_HALF_UP))


def _graduated(tiers: Sequence[Tier], units: Decimal) -> Decimal:
    total, begin = Decimal(0), Decimal(0)
    for tier in tiers:
        end = Decimal(tier.up_to) if tier.HasField("up_to") else units
        inside = min(units, end) - begin
        if inside <= 0:
            break
        total += inside * _unit(tier) + tier.flat_amount
        begin = end
    return total


def _volume(tiers: Sequence[Tier], units: Decimal) -> Decimal:
    if not units:
        return Decimal(0)
    tier = next(tier for tier in tiers if not tier.HasField("up_to") or units <= tier.up_to)
    return units * _unit(tier) + tier.flat_amount


def _unit(tier: Tier) -> Decimal:
    return Decimal(tier.unit_amount or "0")
