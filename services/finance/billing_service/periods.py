"""Billing periods: counted from an anchor, in UTC, each beginning where the one before ends."""

import calendar
from datetime import datetime, timedelta


def boundary(anchor: datetime, unit: str, count: int, index: int) -> datetime:
    """The beginning of the period `index`, the first being 0 at the anchor.

    Months and years keep the anchor's day where there is one, and take the last of the month where not: from January
    31st to February 28th to March 31st.
    """
    steps = count * index
    match unit:
        case "DAY":
            return anchor + timedelta(days=steps)
        case "WEEK":
            return anchor + timedelta(weeks=steps)
        case "YEAR":
            steps *= 12
    years, month = divmod(anchor.year * 12 + anchor.month - 1 + steps, 12)
    last = calendar.monthrange(years, month + 1)[1]
    return anchor.replace(year=years, month=month + 1, day=min(anchor.day, last))
