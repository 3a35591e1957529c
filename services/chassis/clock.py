"""The clock: the one place that asks what time it is."""

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def timestamp(moment: datetime) -> Timestamp:
    """A moment as contracts have it."""
    result = Timestamp()
    result.FromDatetime(moment)
    return result


def moment(timestamp: Timestamp) -> datetime:
    """A contract's moment, in UTC."""
    return timestamp.ToDatetime(tzinfo=UTC)
