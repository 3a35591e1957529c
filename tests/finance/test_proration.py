"""Fees are shared out over their periods without a cent lost or made up; tiers and dunning do what they say."""

import itertools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nexus.finance.billing_service.v1.faults import TiersInvalid
from nexus.finance.billing_service.v1.plans_pb2 import TIER_MODE_GRADUATED, TIER_MODE_VOLUME, Tier, UsagePrice
from nexus.finance.billing_service.v1.subscriptions_pb2 import DunningPolicy
from services.finance.billing_service import bills, rating
from services.finance.billing_service.dunning import next_attempt
from services.finance.billing_service.periods import boundary
from services.finance.billing_service.proration import remaining

START = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
_NAIVE = START.replace(tzinfo=None)
MOMENTS = st.datetimes(_NAIVE + timedelta(minutes=30), _NAIVE + timedelta(days=500), timezones=st.just(UTC))
ANCHORS = st.datetimes(_NAIVE - timedelta(days=2000), _NAIVE + timedelta(days=2000), timezones=st.just(UTC))
FEES = st.integers(0, 10**9)


def price(fee: int, name: str = "p") -> dict[str, Any]:
    return {"fee": fee, "name": name, "price_id": name}


@given(fee=FEES, at=MOMENTS, end=MOMENTS)
def test_what_is_left_is_all_at_the_start_nothing_at_the_end_and_never_grows(
    fee: int, at: datetime, end: datetime
) -> None:
    assert remaining(fee, START, end, START) == fee
    assert remaining(fee, START, end, end) == 0
    assert 0 <= remaining(fee, START, end, max(at, START)) <= fee
    assert remaining(fee, START, end, at) >= remaining(fee, START, end, at + timedelta(days=1))


@given(fee=FEES, cuts=st.lists(st.integers(0, 31 * 86400), max_size=20))
def test_the_parts_of_a_fee_add_up_to_it(fee: int, cuts: list[int]) -> None:
    end = START + timedelta(days=31)
    times = [START, *(START + timedelta(seconds=cut) for cut in sorted(cuts)), end]
    left = [remaining(fee, START, end, time) for time in times]
    assert sum(before - after for before, after in itertools.pairwise(left)) == fee


@dataclass
class Segment:
    fee: int
    begin: datetime


class Changes(RuleBasedStateMachine):
    """A period with changes in it, against a model that shares fees out in fractions."""

    def __init__(self) -> None:
        super().__init__()
        self.end = START + timedelta(days=28)
        self.now = START
        self.billed: int = 5000
        self.segments = [Segment(5000, START)]
        self.subscription: dict[str, Any] = {
            "period_start": START,
            "period_end": self.end,
            "period_fee": 5000,
            "price_id": "p",
            "quantity": 1,
        }

    @rule(fee=st.integers(0, 10**7), quantity=st.integers(1, 50), seconds=st.integers(0, 400_000))
    def change(self, fee: int, quantity: int, seconds: int) -> None:
        self.now = min(self.now + timedelta(seconds=seconds), self.end)
        lines = bills.change_lines(price(1), price(fee), self.subscription, quantity, fee * quantity, self.now)
        self.billed += sum(line.amount for line in lines)
        self.subscription["period_fee"] = fee * quantity
        self.segments.append(Segment(fee * quantity, self.now))

    @rule(seconds=st.integers(0, 400_000))
    def change_and_change_back_at_once(self, seconds: int) -> None:
        self.now = min(self.now + timedelta(seconds=seconds), self.end)
        before = self.billed
        fee = self.subscription["period_fee"]
        self.change(777, 3, 0)
        self.change(fee, 1, 0)
        assert self.billed == before

    @invariant()
    def the_customer_pays_what_was_used_and_is_to_be_used(self) -> None:
        ends = [*(segment.begin for segment in self.segments[1:]), self.end]
        whole = Fraction((self.end - START) / timedelta(microseconds=1))
        parts = (
            Fraction(segment.fee) * Fraction((end - segment.begin) / timedelta(microseconds=1)) / whole
            for segment, end in zip(self.segments, ends, strict=True)
        )
        exact = sum(parts, Fraction(0))
        assert -len(self.segments) <= self.billed - exact <= len(self.segments)

    @invariant()
    def giving_the_rest_back_leaves_exactly_what_was_used(self) -> None:
        back = bills.change_lines(price(1), price(1), self.subscription, 0, 0, self.now)
        used: int = self.billed + sum(line.amount for line in back)
        assert used >= 0
        assert self.billed - used == remaining(self.subscription["period_fee"], START, self.end, self.now)


Changes.TestCase.settings = settings(max_examples=150, stateful_step_count=20, deadline=None)
TestChanges = Changes.TestCase


@given(
    waiting=st.lists(st.integers(-(10**6), 10**6), max_size=5),
    amounts=st.lists(st.integers(-(10**6), 10**6), max_size=5),
    owed=st.integers(0, 10**6),
    coupon=st.none()
    | st.fixed_dictionaries({"basis_points": st.integers(1, 10_000)})
    | st.fixed_dictionaries({"amount": st.integers(1, 10**7)}),
)
def test_a_bill_adds_up_and_never_owes_the_customer(
    waiting: list[int], amounts: list[int], owed: int, coupon: dict[str, Any] | None
) -> None:
    if coupon is not None:
        coupon = {"basis_points": 0, "amount": 0, "name": "", "code": "X", **coupon}
    lines = [bills.Line("FEE", "", amount, START, START) for amount in amounts]
    draft = bills.draft(waiting, lines, coupon, owed, START)
    assert draft.total == sum(waiting) + sum(line.amount for line in draft.lines)
    assert draft.total >= 0
    assert owed + draft.credit >= 0
    if draft.credit > 0:
        assert draft.total == 0


def test_the_31st_comes_back_after_february() -> None:
    days = [boundary(START, "MONTH", 1, index).date().isoformat() for index in range(5)]
    assert days == ["2026-01-31", "2026-02-28", "2026-03-31", "2026-04-30", "2026-05-31"]
    leap = datetime(2028, 2, 29, tzinfo=UTC)
    assert boundary(leap, "YEAR", 1, 1) == datetime(2029, 2, 28, tzinfo=UTC)
    assert boundary(leap, "YEAR", 4, 1) == datetime(2032, 2, 29, tzinfo=UTC)
    assert boundary(START, "WEEK", 2, 1) - START == timedelta(days=14)


@given(
    anchor=ANCHORS,
    unit=st.sampled_from(["DAY", "WEEK", "MONTH", "YEAR"]),
    count=st.integers(1, 36),
    index=st.integers(0, 30),
)
def test_periods_follow_each_other(anchor: datetime, unit: str, count: int, index: int) -> None:
    assert boundary(anchor, unit, count, 0) == anchor
    assert boundary(anchor, unit, count, index) < boundary(anchor, unit, count, index + 1)


def tiers(mode: Any = TIER_MODE_GRADUATED, package: int = 0) -> UsagePrice:
    return UsagePrice(
        meter_key="calls",
        mode=mode,
        package_size=package,
        tiers=[
            Tier(up_to=100, unit_amount="0"),
            Tier(up_to=1000, unit_amount="0.5", flat_amount=10),
            Tier(unit_amount="0.02"),
        ],
    )


@pytest.mark.parametrize(
    ("used", "graduated", "volume"),
    [("0", 0, 0), ("100", 0, 0), ("100.5", 10, 60), ("1000", 460, 510), ("2000", 480, 40), ("-5", 0, 0)],
)
def test_tiers_are_read_as_their_mode_says(used: str, graduated: int, volume: int) -> None:
    assert rating.cost(tiers(), Decimal(used)) == graduated
    assert rating.cost(tiers(TIER_MODE_VOLUME), Decimal(used)) == volume


def test_a_begun_package_is_paid_whole() -> None:
    packages = UsagePrice(mode=TIER_MODE_GRADUATED, package_size=1000, tiers=[Tier(unit_amount="35")])
    assert [rating.cost(packages, Decimal(used)) for used in (0, 1, 1000, 1001)] == [0, 35, 35, 70]


@given(used=st.decimals(0, 10**12, places=6), more=st.decimals(0, 10**6, places=6))
def test_more_use_never_costs_less_by_graduated_tiers(used: Decimal, more: Decimal) -> None:
    assert rating.cost(tiers(), used) <= rating.cost(tiers(), used + more)


@pytest.mark.parametrize("ends", [[100, 50, None], [None, 100], [100, 200], [100, 100, None]])
def test_tiers_that_do_not_rise_to_no_end_are_refused(ends: list[int | None]) -> None:
    with pytest.raises(TiersInvalid):
        rating.require_sound(UsagePrice(tiers=[Tier(up_to=end) for end in ends]))


def test_dunning_waits_longer_each_time_and_gives_up() -> None:
    policy = DunningPolicy(retry_after_hours=(24, 72))
    assert next_attempt(policy, 1, START) == START + timedelta(hours=24)
    assert next_attempt(policy, 2, START) == START + timedelta(hours=72)
    assert next_attempt(policy, 3, START) is None
    assert next_attempt(DunningPolicy(), 1, START) is None
