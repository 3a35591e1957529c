"""When schedules run: cron expressions on the clock on the wall, intervals, single times; and which of the times
that went by are still run.

Moments are in UTC. Nothing here asks what time it is.
"""

import hashlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import islice, takewhile
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from nexus.platform.scheduler.v1 import schedules_pb2 as pb
from nexus.platform.scheduler.v1.faults import TimingInvalid
from services.chassis.clock import moment

GRACE = timedelta(minutes=1)
"""A time that is found no later than this is not missed."""
BATCH = 100
"""How many times of one schedule are caught up in one transaction."""
_WINDOW = timedelta(days=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TICK = timedelta(microseconds=1)
_SPANS = [timedelta(hours=1), timedelta(days=1), timedelta(days=31), timedelta(days=366)]


def require_sound(timing: pb.Timing, now: datetime) -> None:
    """Raises TimingInvalid for a timing that cannot be read or has no time ahead."""
    require_readable(timing)
    if next_time(timing, now) is None:
        raise TimingInvalid(why="none is ahead")


def require_readable(timing: pb.Timing) -> None:
    """Raises TimingInvalid."""
    if not timing.HasField("cron"):
        return
    if timing.cron.time_zone and timing.cron.time_zone not in _zones():
        raise TimingInvalid(why=f"there is no time zone {timing.cron.time_zone}")
    try:
        CronSim(timing.cron.expression, datetime(2000, 1, 1))  # noqa: DTZ001  the clock on the wall
    except CronSimError as error:
        raise TimingInvalid(why=f"{timing.cron.expression}: {error}") from None


def next_time(timing: pb.Timing, after: datetime) -> datetime | None:
    return next(times(timing, after), None)


def times(timing: pb.Timing, after: datetime) -> Iterator[datetime]:
    """The times of a schedule after a moment, in order, each once."""
    if timing.HasField("start_time"):
        after = max(after, moment(timing.start_time) - _TICK)
    found = _all_times(timing, after)
    if timing.HasField("end_time"):
        end = moment(timing.end_time)
        return takewhile(lambda each: each < end, found)
    return found


def times_from(timing: pb.Timing, start: datetime) -> Iterator[datetime]:
    """Like `times`, with `start` itself if it is one."""
    return times(timing, start - _TICK)


def _all_times(timing: pb.Timing, after: datetime) -> Iterator[datetime]:
    try:
        if timing.HasField("cron"):
            yield from _cron_times(timing.cron, after)
        elif timing.HasField("interval"):
            yield from _interval_times(timing.interval, after)
        elif moment(timing.once) > after:
            yield moment(timing.once)
    except OverflowError:  # the end of the calendar
        return


def _interval_times(interval: pb.Interval, after: datetime) -> Iterator[datetime]:
    every = interval.every.ToTimedelta()
    anchor = moment(interval.anchor) if interval.HasField("anchor") else _EPOCH
    number = (after - anchor) // every
    while True:
        number += 1
        yield anchor + number * every


def _cron_times(cron: pb.Cron, after: datetime) -> Iterator[datetime]:
    """The expression is followed on the wall's clock, and each reading becomes a moment, or none, or two."""
    zone = ZoneInfo(cron.time_zone or "UTC")
    minute, hour = cron.expression.split()[-5:-3]
    if minute.startswith("*") or hour.startswith("*"):  # it goes on by elapsed time
        gap, fold = pb.GAP_POLICY_SKIP, pb.FOLD_POLICY_BOTH
    else:
        gap, fold = cron.gap, cron.fold
    local = after.astimezone(zone)
    # While readings come for the first time, those before this one have their second time ahead.
    repeated = timedelta() if local.fold else max(_offset(local, 0) - _offset(local, 1), timedelta())
    last, second_times = after, deque[datetime]()
    for reading in CronSim(cron.expression, local.replace(tzinfo=None, fold=0) - repeated):
        found = _moments(reading.replace(tzinfo=zone), gap, fold)
        for first in found[:1]:
            while second_times and second_times[0] < first:
                yield (last := second_times.popleft())
            if first > last:
                yield (last := first)
        second_times += [second for second in found[1:] if second > last]
    yield from second_times


def _moments(reading: datetime, gap: int, fold: int) -> list[datetime]:
    """When a clock shows this: once as a rule, twice when clocks were put back, never when they were put forward."""
    first, second = (reading.replace(fold=each).astimezone(UTC) for each in (0, 1))
    if first == second:
        return [first]
    if first > second:
        return [] if gap == pb.GAP_POLICY_SKIP else [_transition(second, first, reading)]
    if fold == pb.FOLD_POLICY_BOTH:
        return [first, second]
    return [second if fold == pb.FOLD_POLICY_SECOND else first]


def _transition(before: datetime, after: datetime, reading: datetime) -> datetime:
    """The moment between the two at which clocks were put forward; to the second, as time zones are."""
    zone = reading.tzinfo
    old = before.astimezone(zone).utcoffset()
    low, high = int(before.timestamp()), int(after.timestamp())
    while high - low > 1:
        middle = (low + high) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == old:
            low = middle
        else:
            high = middle
    return datetime.fromtimestamp(high, UTC)


def _offset(local: datetime, fold: int) -> timedelta:
    offset = local.replace(fold=fold).utcoffset()
    assert offset is not None, "it has a time zone"
    return offset


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


def jitter(schedule_id: str, scheduled_for: datetime, most: timedelta) -> timedelta:
    """By how much a job starts after its time: always the same for a schedule and time."""
    digest = hashlib.sha256(f"{schedule_id} {scheduled_for.isoformat()}".encode()).digest()
    return most * (int.from_bytes(digest[:8], "big") / 2**64)


@dataclass(frozen=True)
class Due:
    """What to do about times that have come."""

    times: list[datetime] = field(default_factory=list)
    """To be run."""
    missed: tuple[datetime, datetime] | None = None
    """The first time that is left out, and the moment until which all are."""
    next_time: datetime | None = None
    """The first time that is not settled by this."""


def due(timing: pb.Timing, catch_up: pb.CatchUp, first: datetime, now: datetime) -> Due:
    """What to do at `now` about the times from `first` on, none of which is settled."""
    window = catch_up.window.ToTimedelta() if catch_up.HasField("window") else _WINDOW
    none = catch_up.policy == pb.CATCH_UP_POLICY_NONE
    horizon = max(first, now - (GRACE if none else max(window, GRACE)))
    came = takewhile(lambda each: each <= now, times_from(timing, horizon))
    if catch_up.policy in (pb.CATCH_UP_POLICY_LAST, pb.CATCH_UP_POLICY_UNSPECIFIED) and first < now - GRACE:
        latest = _latest(timing, horizon, now)
        chosen = [latest] if latest is not None else []
    else:
        chosen = list(islice(came, BATCH))
    settled = chosen[-1] if len(chosen) == BATCH else now
    left_out = not chosen or first < chosen[0]
    return Due(
        times=chosen,
        missed=(first, chosen[0] if chosen else now) if left_out else None,
        next_time=next_time(timing, settled),
    )


def _latest(timing: pb.Timing, start: datetime, now: datetime) -> datetime | None:
    """The last time from `start` to `now`; looks at the near past first, since times may be many."""
    for span in _SPANS:
        since = max(start, now - span)
        latest = None
        for each in takewhile(lambda each: each <= now, times_from(timing, since)):
            latest = each
        if latest is not None or since == start:
            return latest
    return None
