"""A series' timeline: what a report adds to it, and what goes where it grows long. Its row is locked meanwhile."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, func, literal, select, tuple_

from models import SeriesReport
from storage import merge
from storage.connection import Connection
from storage.rows import SeriesRow, with_changes
from storage.schema import timeline

MOST = 1000  # events of a series
FIRST, LAST = 500, 300  # events that stay of a series that has more

PLACE = (timeline.c.At, timeline.c.Id)
OF_SERIES = timeline.c.SeriesInstanceUID == bindparam("series")
_OF_REPORT = (timeline.c.Revision == bindparam("revision")) & timeline.c.GatewayID.is_not_distinct_from(
    bindparam("gateway")
)
# Made once, as those of revisions.py.
TOLD = select(timeline.c.At, timeline.c.Event).where(OF_SERIES & _OF_REPORT)
ADD = timeline.insert()
LENGTH = select(func.count()).select_from(timeline).where(OF_SERIES)


async def keep(connection: Connection, report: SeriesReport, known: SeriesRow, changed: Mapping[str, Any]) -> None:
    """Add what the report tells and is not there yet, and what became of it."""
    is_new = not known["Revision"]
    before: set[tuple[datetime, str]] = set()
    if report.Timeline and not is_new:
        mine = {"series": report.SeriesInstanceUID, "revision": report.Revision, "gateway": report.GatewayID}
        before = {(row.At, row.Event) for row in await connection.execute(TOLD, mine)}
    events = [
        {"At": e.At, "GatewayID": report.GatewayID, "Revision": report.Revision, "Event": e.Event, "Details": e.Details}
        for e in report.Timeline
        if (e.At, e.Event) not in before
    ]
    if changed:
        events += merge.own_events(report, known, with_changes(known, changed))
    await add(connection, report.SeriesInstanceUID, events, is_new=is_new)


async def add(
    connection: Connection, series_instance_uid: str, events: Sequence[Mapping[str, Any]], *, is_new: bool = False
) -> None:
    """Add events, and shorten the timeline where it is then too long; that of a new series is not."""
    if not events:
        return
    rows = [{"SeriesInstanceUID": series_instance_uid, **event} for event in events]
    await connection.execute(ADD, rows)
    if not is_new and (await connection.execute(LENGTH, {"series": series_instance_uid})).scalar_one() > MOST:
        await _shorten(connection, series_instance_uid)


async def _shorten(connection: Connection, series_instance_uid: str) -> None:
    """Put one event in the place of all between the first and the last ones; it says how many these were.

    It takes the place of the first of them, so the next time it is among those that go, and its number goes on.
    """
    of_series = timeline.c.SeriesInstanceUID == series_instance_uid
    columns = (*PLACE, timeline.c.Event, timeline.c.Details)
    rows = (await connection.execute(select(*columns).where(of_series).order_by(*PLACE))).all()
    between = rows[FIRST:-LAST]
    dropped = sum(row.Details["Dropped"] if row.Event == "timeline.shortened" else 1 for row in between)
    first, last = (
        tuple_(literal(row.At, timeline.c.At.type), literal(row.Id, timeline.c.Id.type))
        for row in (between[0], between[-1])
    )
    await connection.execute(timeline.delete().where(of_series, tuple_(*PLACE) > first, tuple_(*PLACE) <= last))
    details = {"Dropped": dropped, "Until": between[-1].At.isoformat()}
    mark = {"GatewayID": None, "Event": "timeline.shortened", "Details": details}
    await connection.execute(timeline.update().where(timeline.c.Id == between[0].Id).values(mark))
