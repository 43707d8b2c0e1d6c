"""Times that lie ahead: they are of a wrong clock, a gateway's, or the server's own until it was set back.

What lies ahead would hold for as long: no silence passes, nothing falls due. So it counts as of now, or as not set.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, or_

from models import SeriesReport

APART = timedelta(minutes=1)  # how far the clocks of the servers of one database may be apart
FAR = timedelta(days=1)  # the longest that anything here is put off for, but a study's cap, which is set anew
WRONG = timedelta(minutes=5)  # from which on a sender's clock is wrong; a large report takes a while to come
OF_REPORT = ("FirstReceivedAt", "LastReceivedAt")
OF_STUDY = ("FirstReceivedAt", "LastReceivedAt", "OpenSince", "CountedAt", "DueAt")


def by_our_clock(report: SeriesReport, sent_at: float | None, now: datetime) -> SeriesReport:
    """Return a report with the times of its images by the server's clock, if its sender's is WRONG.

    `sent_at`: when it was sent by that clock, in seconds since 1970; None if that is not known.
    """
    try:
        apart = timedelta() if sent_at is None else now - datetime.fromtimestamp(sent_at, UTC)
        times = {name: at + apart for name in OF_REPORT if (at := getattr(report, name)) is not None}
    except (ValueError, OverflowError, OSError):  # beyond the years 1 to 9999
        return report
    return report.model_copy(update=times) if abs(apart) > WRONG else report


def of_report(report: SeriesReport, now: datetime) -> SeriesReport:
    """Return a report whose images came now at the latest: its gateway's clock may be ahead."""
    early = {name: now for name in OF_REPORT if (at := getattr(report, name)) is not None and at > now}
    return report.model_copy(update=early) if early else report


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
