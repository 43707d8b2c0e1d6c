"""Times that lie ahead: they are of a wrong clock, a gateway's, or the server's own until it was set back.

What lies ahead would hold for as long: no silence passes, nothing falls due. So it counts as of now, or as not set.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, or_

APART = timedelta(minutes=1)  # how far the clocks of the servers of one database may be apart
FAR = timedelta(days=1)  # the longest that anything here is put off for, but a study's cap, which is set anew
OF_STUDY = ("FirstReceivedAt", "LastReceivedAt", "OpenSince", "CountedAt", "DueAt")


def by_our_clock(at: datetime, behind: timedelta, now: datetime) -> datetime:
    """Return a time that a gateway has told, whose clock is `behind` the server's: by that, and at the latest now."""
    try:
        return min(at + behind, now)
    except OverflowError:  # beyond the years 1 to 9999
        return min(at, now)


def of_study(row: Mapping[str, Any], now: datetime, max_open: timedelta) -> dict[str, datetime]:
    """Return the columns of a study that lie ahead, as they are then: the server's clock was set back.

    It may be due later than now, but not later than a study of now can be.
    """
    bounds = dict.fromkeys(OF_STUDY, now + APART) | {"DueAt": now + max(FAR, max_open) + APART}
    return {name: now for name, bound in bounds.items() if row[name] is not None and row[name] > bound}


def is_due(column: ColumnElement[datetime | None], now: datetime, max_open: timedelta) -> ColumnElement[bool]:
    """Hold of the time of a study that is due, or that lies further ahead than any is put off for."""
    return or_(column <= now, is_far(column, now, max(FAR, max_open)))


def is_far(column: ColumnElement[datetime | None], now: datetime, most: timedelta = FAR) -> ColumnElement[bool]:
    """Hold of a time that lies further ahead than anything is put off for."""
    return column > now + most + APART
