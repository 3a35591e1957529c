"""A Timestamp or a Duration that is none is found wherever it stands in a request."""

import pytest
from google.protobuf import struct_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from nexus.finance.ledger_mgr.v1.ledger_pb2 import ListTransactionsRequest
from nexus.platform.scheduler.v1.worker_pb2 import LeaseRequest
from services.chassis.times import impossible, with_times


@pytest.mark.parametrize(
    ("time", "possible"),
    [
        (Timestamp(), True),
        (Timestamp(seconds=-62_135_596_800), True),
        (Timestamp(seconds=253_402_300_799, nanos=999_999_999), True),
        (Timestamp(seconds=-62_135_596_801), False),
        (Timestamp(seconds=253_402_300_800), False),
        (Timestamp(nanos=-1), False),
        (Timestamp(nanos=1_000_000_000), False),
        (Duration(seconds=-1, nanos=-1), True),
        (Duration(seconds=315_576_000_000), True),
        (Duration(seconds=315_576_000_001), False),
        (Duration(seconds=1, nanos=-1), False),
        (Duration(nanos=-1_000_000_000), False),
    ],
)
def test_what_protobuf_says_of_times_holds(time: Timestamp | Duration, possible: bool) -> None:
    assert (list(impossible(time, with_times(time.DESCRIPTOR), "it")) == []) is possible


def test_it_is_named_by_its_path() -> None:
    request = ListTransactionsRequest()
    request.filter.from_time.nanos = -1
    request.filter.to_time.seconds = 1
    assert list(impossible(request, with_times(request.DESCRIPTOR))) == ["filter.from_time"]
    lease = LeaseRequest()
    lease.wait.nanos = 2_000_000_000
    assert list(impossible(lease, with_times(lease.DESCRIPTOR))) == ["wait"]


def test_messages_without_times_are_not_searched() -> None:
    assert with_times(struct_pb2.Struct.DESCRIPTOR) == frozenset(), "which contains itself"
