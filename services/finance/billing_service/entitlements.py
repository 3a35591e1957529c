"""What subscriptions entitle to, put together."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from google.protobuf import json_format

from nexus.finance.billing_service.v1.plans_pb2 import Feature


@dataclass(frozen=True)
class Right:
    """A feature of all of a customer's subscriptions."""

    key: str
    limit: int | None
    """None for boundless."""
    meter_key: str
    since: datetime
    """From when use counts against the limit."""
    until: datetime


def combined(subscriptions: Iterable[Mapping[str, Any]]) -> list[Right]:
    """Of subscriptions with the features of their plans. Limits of several add up; one without a limit lifts them all.
    Use counts from the beginning of the latest period."""
    rights: dict[str, Right] = {}
    for subscription in sorted(subscriptions, key=lambda each: each["period_start"]):
        for item in json.loads(subscription["features"]):
            feature = json_format.ParseDict(item, Feature())
            earlier = rights.get(feature.key)
            limit = None
            if feature.HasField("limit"):
                limit = feature.limit * (subscription["quantity"] if feature.per_unit else 1)
            if earlier is not None:
                limit = None if limit is None or earlier.limit is None else limit + earlier.limit
            rights[feature.key] = Right(
                key=feature.key,
                limit=limit,
                meter_key=feature.meter_key or (earlier.meter_key if earlier is not None else ""),
                since=subscription["period_start"],
                until=subscription["period_end"],
            )
    return [rights[key] for key in sorted(rights)]
