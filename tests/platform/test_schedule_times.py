"""The times of schedules: those that cron says, through changes of clocks, and those that went by."""

from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.platform.scheduler.v1 import schedules_pb2 as pb
from nexus.platform.scheduler.v1.faults import TimingInvalid
from services.chassis.clock import timestamp
from services.platform.scheduler import times

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOURLY = pb.Timing(cron=pb.Cron(expression="0 * * * *"))


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def cron(expression: str, zone: str = "UTC", gap: str = "UNSPECIFIED", fold: str = "UNSPECIFIED") -> pb.Timing:
    result = pb.Timing(cron=pb.Cron(expression=expression, time_zone=zone))
    result.cron.gap = pb.GapPolicy.Value(f"GAP_POLICY_{gap}")
    result.cron.fold = pb.FoldPolicy.Value(f"FOLD_POLICY_{fold}")
    return result


def following(timing: pb.Timing, after: datetime, number: int) -> list[datetime]:
    return list(islice(times.times(timing, after), number))


# Clocks in New York go from 2:00 to 3:00 on 2026-03-08 (7:00 UTC) and from 2:00 to 1:00 on 2026-11-01 (6:00 UTC).
# Lord Howe Island's go by half an hour: from 2:00 to 2:30 on 2026-10-04 (15:30 UTC the day before).
CHANGES = [
    ("30 2 * * *", "America/New_York", "SHIFT", "FIRST", "2026-03-08T00:00", ["2026-03-08T07:00", "2026-03-09T06:30"]),
    ("30 2 * * *", "America/New_York", "SKIP", "FIRST", "2026-03-08T00:00", ["2026-03-09T06:30", "2026-03-10T06:30"]),
    # Several in the gap become one.
    (
        "10,50 2 * * *",
        "America/New_York",
        "SHIFT",
        "FIRST",
        "2026-03-08T00:00",
        ["2026-03-08T07:00", "2026-03-09T06:10"],
    ),
    # And one that is at its end anyway stays one.
    ("0 2,3 * * *", "America/New_York", "SHIFT", "FIRST", "2026-03-08T00:00", ["2026-03-08T07:00", "2026-03-09T06:00"]),
    ("30 1 * * *", "America/New_York", "SHIFT", "FIRST", "2026-11-01T00:00", ["2026-11-01T05:30", "2026-11-02T06:30"]),
    ("30 1 * * *", "America/New_York", "SHIFT", "SECOND", "2026-11-01T00:00", ["2026-11-01T06:30", "2026-11-02T06:30"]),
    ("30 1 * * *", "America/New_York", "SHIFT", "BOTH", "2026-11-01T00:00", ["2026-11-01T05:30", "2026-11-01T06:30"]),
    # Begun between the two.
    ("15 1 * * *", "America/New_York", "SHIFT", "BOTH", "2026-11-01T05:40", ["2026-11-01T06:15", "2026-11-02T06:15"]),
    ("15 1 * * *", "America/New_York", "SHIFT", "FIRST", "2026-11-01T05:40", ["2026-11-02T06:15", "2026-11-03T06:15"]),
    # Every half hour goes on, whatever the policies.
    (
        "*/30 * * * *",
        "America/New_York",
        "SHIFT",
        "FIRST",
        "2026-03-08T06:30",
        ["2026-03-08T07:00", "2026-03-08T07:30"],
    ),
    ("*/30 * * * *", "America/New_York", "SKIP", "FIRST", "2026-11-01T05:30", ["2026-11-01T06:00", "2026-11-01T06:30"]),
    (
        "15 2 * * *",
        "Australia/Lord_Howe",
        "SHIFT",
        "FIRST",
        "2026-10-03T12:00",
        ["2026-10-03T15:30", "2026-10-04T15:15"],
    ),
    # Samoa left out a whole day, 2011-12-30.
    ("0 9 * * *", "Pacific/Apia", "SKIP", "FIRST", "2011-12-29T12:00", ["2011-12-29T19:00", "2011-12-30T19:00"]),
    ("0 9 30 12 *", "Pacific/Apia", "SHIFT", "FIRST", "2011-12-29T12:00", ["2011-12-30T10:00", "2012-12-29T19:00"]),
]


@pytest.mark.parametrize(("expression", "zone", "gap", "fold", "after", "expected"), CHANGES)
def test_a_change_of_clocks_does_what_the_policies_say(
    expression: str, zone: str, gap: str, fold: str, after: str, expected: list[str]
) -> None:
    found = following(cron(expression, zone, gap, fold), utc(after), len(expected))
    assert found == [utc(each) for each in expected]


numbers = st.integers(0, 59).map(str)
minutes = st.one_of(st.just("*"), st.sampled_from(["*/5", "*/15", "*/7"]), numbers, st.just("10,40"))
hours = st.one_of(st.just("*"), st.sampled_from(["*/2", "*/6"]), st.integers(0, 23).map(str), st.just("1-3"))
days = st.sampled_from(["*", "*", "*", "1", "L", "15-20"])
weekdays = st.sampled_from(["*", "*", "*", "MON-FRI", "0", "SUN#1"])
expressions = st.tuples(minutes, hours, days, st.just("*"), weekdays).map(" ".join)
# Clocks that change by whole hours: cronsim 2.8 loses times where they change by half of one (Lord Howe Island).
zones = st.sampled_from(
    ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "America/Santiago", "Africa/Cairo"]
)
moments = st.integers(0, 4 * 365 * 86400).map(lambda seconds: utc("2024-01-01T00:00") + timedelta(seconds=seconds))


@given(expressions, zones, moments)
@settings(max_examples=300, deadline=None)
def test_times_are_those_of_debians_cron(expression: str, zone: str, after: datetime) -> None:
    expected: list[datetime] = []
    for local in CronSim(expression, after.astimezone(ZoneInfo(zone))):
        moment = local.astimezone(UTC)
        if moment > after and (not expected or moment > expected[-1]):  # it repeats what it moves out of a gap
            expected.append(moment)
        if len(expected) == 40:
            break
    assert following(cron(expression, zone), after, 40) == expected


@given(minutes, hours, zones | st.just("Australia/Lord_Howe"), moments, st.sampled_from(["SKIP", "SHIFT"]))
@settings(max_examples=100, deadline=None)
def test_every_moment_at_which_the_clock_shows_it_is_a_time_and_no_other(
    minute: str, hour: str, zone: str, after: datetime, gap: str
) -> None:
    """Beside zoneinfo, minute by minute through two days."""
    local = ZoneInfo(zone)
    readings = CronSim(f"{minute} {hour} * * *", utc("1999-12-31T23:59"))
    shown = {(each.hour, each.minute) for each in takewhile(lambda each: each.day == 1, readings)}
    until = after + timedelta(days=2)
    first = after.replace(second=0, microsecond=0) + timedelta(minutes=1)
    every_minute = (first + timedelta(minutes=number) for number in range(2880))
    expected = [
        each
        for each in every_minute
        if each < until and (each.astimezone(local).hour, each.astimezone(local).minute) in shown
    ]
    timing = cron(f"{minute} {hour} * * *", zone, gap, "BOTH")
    found = list(takewhile(lambda each: each < until, times.times(timing, after)))
    shifted = set(found) - set(expected)
    assert [each for each in found if each not in shifted] == expected
    for each in shifted:  # only what fell into a gap, at its end
        assert gap == "SHIFT"
        assert (each - timedelta(seconds=1)).astimezone(local).utcoffset() != each.astimezone(local).utcoffset()


@given(
    every=st.integers(1_000_000, 10**13), offset=st.integers(-(10**15), 10**15), passed=st.integers(-(10**15), 10**15)
)
def test_an_interval_does_not_drift(every: int, offset: int, passed: int) -> None:
    anchor, after = NOW + timedelta(microseconds=offset), NOW + timedelta(microseconds=passed)
    duration = Duration()
    duration.FromMicroseconds(every)
    timing = pb.Timing(interval=pb.Interval(every=duration, anchor=timestamp(anchor)))
    found = following(timing, after, 3)
    assert after < found[0] <= after + timedelta(microseconds=every)
    assert all((each - anchor) % timedelta(microseconds=every) == timedelta() for each in found)
    assert found[1] - found[0] == found[2] - found[1] == timedelta(microseconds=every)


def test_start_and_end_bound_the_times() -> None:
    timing = pb.Timing(cron=pb.Cron(expression="0 * * * *"))
    timing.start_time.CopyFrom(timestamp(utc("2026-06-02T05:00")))
    timing.end_time.CopyFrom(timestamp(utc("2026-06-02T07:00")))
    assert following(timing, NOW, 9) == [utc("2026-06-02T05:00"), utc("2026-06-02T06:00")]


def test_seconds_may_be_given() -> None:
    found = following(cron("*/20 * * * * *"), NOW, 3)
    assert [each.second for each in found] == [20, 40, 0]


@pytest.mark.parametrize(
    ("timing", "why"),
    [
        (cron("every day"), "Wrong number of fields"),
        (cron("61 * * * *"), "Bad minute"),
        (cron("0 0 31 2 *"), "Bad day-of-month"),
        (cron("0 0 * * *", "Mars/Olympus"), "no time zone"),
        (cron("0 0 * * *", "../etc/passwd"), "no time zone"),
        (cron("0 0 * * *", "Europe"), "no time zone"),
        (pb.Timing(once=timestamp(NOW)), "none is ahead"),
        (pb.Timing(cron=pb.Cron(expression="0 0 * * *"), end_time=timestamp(NOW)), "none is ahead"),
        (
            pb.Timing(cron=pb.Cron(expression="0 0 * * *"), start_time=timestamp(utc("9999-12-31T23:00"))),
            "none is ahead",
        ),
    ],
)
def test_a_timing_without_times_is_refused(timing: pb.Timing, why: str) -> None:
    with pytest.raises(TimingInvalid, match=why):
        times.require_sound(timing, NOW)


def catch_up(policy: str, window: timedelta | None = None) -> pb.CatchUp:
    result = pb.CatchUp(policy=pb.CatchUpPolicy.Value(f"CATCH_UP_POLICY_{policy}"))
    if window is not None:
        result.window.FromTimedelta(window)
    return result


def test_a_time_that_has_just_come_is_run_and_not_missed() -> None:
    for policy in ("NONE", "LAST", "ALL"):
        due = times.due(HOURLY, catch_up(policy), NOW, NOW + timedelta(seconds=59))
        assert due == times.Due([NOW], None, NOW + timedelta(hours=1))


def test_after_an_outage_none_is_caught_up() -> None:
    due = times.due(HOURLY, catch_up("NONE"), NOW, NOW + timedelta(hours=5, minutes=10))
    assert due == times.Due([], (NOW, NOW + timedelta(hours=5, minutes=10)), NOW + timedelta(hours=6))


def test_after_an_outage_the_last_is_caught_up() -> None:
    latest = NOW + timedelta(hours=5)
    due = times.due(HOURLY, catch_up("LAST"), NOW, latest + timedelta(minutes=10))
    assert due == times.Due([latest], (NOW, latest), NOW + timedelta(hours=6))


def test_after_an_outage_all_within_the_window_are_caught_up() -> None:
    due = times.due(HOURLY, catch_up("ALL", timedelta(hours=3)), NOW, NOW + timedelta(hours=5, minutes=10))
    caught_up = [NOW + timedelta(hours=number) for number in (3, 4, 5)]
    assert due == times.Due(caught_up, (NOW, caught_up[0]), NOW + timedelta(hours=6))


def test_a_year_of_seconds_is_caught_up_in_batches() -> None:
    timing = pb.Timing(interval=pb.Interval(every=Duration(seconds=1)))
    now = NOW + timedelta(days=365)
    due = times.due(timing, catch_up("ALL", timedelta(days=366)), NOW, now)
    assert due.times == [NOW + timedelta(seconds=number) for number in range(times.BATCH)]
    assert due.next_time == NOW + timedelta(seconds=times.BATCH)
    last = times.due(timing, catch_up("LAST", timedelta(days=366)), NOW, now)
    assert last.times == [now]


@given(
    policy=st.sampled_from(["NONE", "LAST", "ALL"]),
    window=st.integers(60, 10**6).map(lambda seconds: timedelta(seconds=seconds)),
    every=st.integers(60, 10**5),
    away=st.integers(0, 10**6).map(lambda seconds: timedelta(seconds=seconds)),
)
def test_whatever_the_policy_no_time_is_forgotten_and_none_comes_twice(
    policy: str, window: timedelta, every: int, away: timedelta
) -> None:
    timing = pb.Timing(interval=pb.Interval(every=Duration(seconds=every), anchor=timestamp(NOW)))
    now, first = NOW + away, NOW
    settled: list[datetime] = []
    while first <= now:
        due = times.due(timing, catch_up(policy, window), first, now)
        came = takewhile(lambda each: each <= now, times.times_from(timing, first))
        until = due.next_time
        assert until is not None
        for each in (each for each in came if each < until):
            missed = due.missed is not None and due.missed[0] <= each < due.missed[1]
            assert missed != (each in due.times)
            settled.append(each)
        first = until
    assert settled == list(takewhile(lambda each: each <= now, times.times_from(timing, NOW)))


def test_jitter_is_fixed_by_schedule_and_time() -> None:
    most = timedelta(minutes=10)
    found = [times.jitter("a", NOW + timedelta(hours=number), most) for number in range(50)]
    assert found == [times.jitter("a", NOW + timedelta(hours=number), most) for number in range(50)]
    assert all(timedelta() <= each < most for each in found)
    assert len(set(found)) == 50
    assert times.jitter("a", NOW, most) != times.jitter("b", NOW, most)
