"""Who sends: when each source did last, in which hours, and what of its usual hours has passed without an image."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Select, bindparam, case, func, literal, or_, select

from models import HeardSource, SeriesReport
from storage.ahead import is_far
from storage.connection import Connection
from storage.engine import Engine, insert
from storage.rhythm import KEPT_HOURS, hour_of, missed_hours
from storage.schema import completions, gateways, source_hours, sources

MAX_SOURCES = 1000  # who sends chooses its names, and not how many rows there are


class Sent(NamedTuple):
    """A source, and when it sent."""

    Source: str
    FirstReceivedAt: datetime
    LastReceivedAt: datetime
    MissedHours: int


@dataclass
class Sources:
    """What one database knows of those who send."""

    _engine: Engine
    _missed: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Of each source the hour of its last image, the hour it was asked in, and the answer: that holds as long."""

    async def all(self, now: datetime) -> list[Sent]:
        """Return every source, in order of its name: some MAX_SOURCES at most.

        An image of a series that is still open counts, too: gateways tell of those.
        """
        rows = {row["Source"]: row for row in await self._engine.read(LATEST, {"until": hour_of(now)})}
        last = {source: min(row["LastReceivedAt"], now) for source, row in rows.items()}
        for _, heard in await self.heard():
            if heard.Source in last:
                last[heard.Source] = min(max(last[heard.Source], heard.LastReceivedAt), now)
        first = {source: min(row["FirstReceivedAt"], now) for source, row in rows.items()}
        missed = await self._all_missed(first, last, hour_of(now))
        return [Sent(source, first[source], last[source], missed[source]) for source in rows]

    async def _all_missed(
        self, first: Mapping[str, datetime], last: Mapping[str, datetime], now: int
    ) -> dict[str, int]:
        """Count the hours each has missed; a source's hours are read only if that may be another number than before."""
        asked = {source: (hour_of(at), now) for source, at in last.items()}
        known = {source: (*at, 0) for source, at in asked.items() if at[0] >= now - 1}
        known |= {source: before for source, before in self._missed.items() if asked.get(source) == before[:2]}
        sent: dict[str, set[int]] = {source: set() for source in asked.keys() - known.keys()}
        for row in await self._engine.read(_select_hours(sent.keys(), now - KEPT_HOURS)) if sent else ():
            sent[row["Source"]].add(row["Hour"])
        for source, hours in sent.items():
            known[source] = (*asked[source], missed_hours(hours, hour_of(first[source]), asked[source][0], now))
        self._missed = known
        return {source: missed for source, (_, _, missed) in known.items()}

    async def days(self, of: Collection[str]) -> list[dict[str, Any]]:
        """Return the Images and Series of each of these Sources and each Day (since 1970, in UTC), the latest first."""
        return await self._engine.read(_select_days(of))

    async def verdicts(self, of: Collection[str]) -> list[dict[str, Any]]:
        """Count how many Series of each of these Sources got each Verdict, and how many of those were Contradicted."""
        return await self._engine.read(_select_verdicts(of))

    async def heard(self) -> list[tuple[str, HeardSource]]:
        """Return what gateways say of the sources that they heard last, with the gateway's GatewayID, in its order."""
        rows = [(row["GatewayID"], one) for row in await self._engine.read(HEARD) for one in row["Sources"] or ()]
        return [(gateway, HeardSource.model_validate(one, extra="ignore")) for gateway, one in rows]


# --- a source has sent ------------------------------------------------------------------------------------------


async def note_sent(connection: Connection, report: SeriesReport, now: datetime, *, images: int, series: int) -> None:
    """Note when a report's source sent, and count the images and series that were new. Repeating it adds nothing more.

    1. The row of its hour is counted up: for all but the first report of a source in an hour that is all.
    2. A row that is not there is made, in whichever transaction comes first, and counted up.

    Last of the transaction: many reports want the same row. What came more than KEPT_HOURS ago is not counted.
    """
    at = min(report.LastReceivedAt or now, now)  # a gateway's clock may be ahead
    hour = hour_of(at)
    if not report.Source or hour < hour_of(now) - KEPT_HOURS:
        return
    values = {"source": report.Source, "hour": hour, "at": at, "images": images, "series": series}
    if (await connection.execute(COUNT, values)).rowcount == 0:
        await _begin(connection, report.Source, hour, min(report.FirstReceivedAt or at, at), at, now)
        await _forget_hours(connection, report.Source, hour_of(now) - KEPT_HOURS)
        await connection.execute(COUNT, values)


async def _begin(  # noqa: PLR0913, PLR0917 - a source, an hour, and when
    connection: Connection, source: str, hour: int, first: datetime, at: datetime, now: datetime
) -> None:
    """Make the row of an hour, and of a source that is new, or whose first image came by a clock since set back."""
    known = select(sources.c.Source).where(sources.c.Source == source)
    if (await connection.execute(known)).first() is None:
        await _make_room(connection)
    began = sources.c.FirstReceivedAt
    keep = {
        "FirstReceivedAt": case((is_far(began, now, timedelta()), literal(first, began.type)), else_=began)
    }  # which locks the row: nobody forgets it meanwhile
    await insert(connection, sources, {"Source": source, "FirstReceivedAt": first}, or_update=keep)
    counts = {"LastReceivedAt": at, "Images": 0, "Series": 0}
    await insert(connection, source_hours, {"Source": source, "Hour": hour} | counts)


async def _forget_hours(connection: Connection, source: str, before: int) -> None:
    """Forget what no question goes back to."""
    hours = source_hours.c.Hour
    wrong = or_(hours < before, hours > before + KEPT_HOURS + 1)  # ahead: the server's clock was set back
    await connection.execute(source_hours.delete().where(source_hours.c.Source == source, wrong))


async def _make_room(connection: Connection) -> None:
    """Forget the sources that sent in the fewest hours, of these the one that came first, so that another has room.

    So names that a stranger makes up never evict a scanner that is known. It is one statement, which leaves alone what
    others forget or begin at the same time, so nobody waits and none is forgotten in another's place.
    """
    most = select(sources.c.Source).outerjoin(source_hours).group_by(sources.c.Source)
    most = most.order_by(func.count(source_hours.c.Hour).desc(), sources.c.FirstReceivedAt.desc())
    least = select(sources.c.Source).where(sources.c.Source.in_(most.offset(MAX_SOURCES - 1)))
    free = least.with_for_update(skip_locked=True)
    await connection.execute(sources.delete().where(sources.c.Source.in_(free)))


# --- its SQL ----------------------------------------------------------------------------------------------------

_LAST = (
    select(source_hours.c.LastReceivedAt)
    .where(source_hours.c.Source == sources.c.Source, source_hours.c.Hour <= bindparam("until"))
    .order_by(source_hours.c.Hour.desc())
    .limit(1)
    .scalar_subquery()
)
LATEST = select(sources, func.coalesce(_LAST, sources.c.FirstReceivedAt).label("LastReceivedAt"))
LATEST = LATEST.order_by(sources.c.Source)
_BY_HOUR = (source_hours.c.Source == bindparam("source")) & (source_hours.c.Hour == bindparam("hour"))
_AT = bindparam("at", type_=source_hours.c.LastReceivedAt.type)
COUNT = (  # made once: each report is counted by it
    source_hours.update()
    .where(_BY_HOUR)
    .values(
        Images=source_hours.c.Images + bindparam("images"),
        Series=source_hours.c.Series + bindparam("series"),
        LastReceivedAt=case((source_hours.c.LastReceivedAt < _AT, _AT), else_=source_hours.c.LastReceivedAt),
    )
)
HEARD = select(gateways.c.GatewayID, gateways.c.State["Sources"].label("Sources")).order_by(gateways.c.GatewayID)


def _select_hours(of: Collection[str], since: int) -> Select[Any]:
    hours = select(source_hours.c.Source, source_hours.c.Hour)
    return hours.where(source_hours.c.Source.in_(of), source_hours.c.Hour >= since)


def _select_days(of: Collection[str]) -> Select[Any]:
    day = (source_hours.c.Hour // 24).label("Day")
    counts = [func.sum(source_hours.c[name]).label(name) for name in ("Images", "Series")]
    query = select(source_hours.c.Source, day, *counts).where(source_hours.c.Source.in_(of))
    return query.group_by(source_hours.c.Source, day).order_by(source_hours.c.Source, day.desc())


def _select_verdicts(of: Collection[str]) -> Select[Any]:
    by = (completions.c.Source, completions.c.Verdict)
    contradicted = func.sum(completions.c["False"] + completions.c.AfterCapped).label("Contradicted")
    query = select(*by, func.sum(completions.c.Series).label("Series"), contradicted)
    return query.where(completions.c.Source.in_(of)).group_by(*by).order_by(*by)
