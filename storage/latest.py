"""What the live page asks again and again: the newest series, how much is stored and what is wrong."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, FunctionElement, Select, Text, and_, func, literal_column, not_, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeDecorator

from storage.engine import Engine
from storage.merge import truthful
from storage.schema import IS_DOUBTFUL, IS_INCOMPLETE, IS_OF_STUDY, changes, conflicts, counters, gateways, series

COUNTED = 1000  # rows at most for each figure of what is wrong: beyond it, it is many
STAYS, LATELY = timedelta(hours=1), timedelta(days=1)  # how long a series is unchanged that stayed incomplete
DESCRIPTIONS = ("StudyDescription", "SeriesDescription")
DESCRIPTION_LENGTH = 1024  # characters that are shown
CESU_8 = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")  # how SQLite puts a lone surrogate
SHOWN = (
    *("SeriesInstanceUID", "StudyInstanceUID", "PatientID", "PatientName", "StudyDate", "AccessionNumber"),
    *("Modality", "Source", "Revision", "NumInstances", "ExpectedInstances", "ExpectedFrom", "Verdict"),
    *("FalseCompletions", "Conflicts", "UpdatedAt", "LastReceivedAt"),
)


@dataclass
class Latest:
    """What the live page asks of one database."""

    _engine: Engine

    async def newest(self, limit: int, before: int | None = None, since: int = 0) -> list[dict[str, Any]]:
        """Return series by their last change, the newest first: those behind `since`, before `before`."""
        return [truthful(row) for row in await self._engine.read(select_newest(limit, before, since))]

    async def ever_stored(self) -> int:
        """Count the series that there are, and were before they were purged."""
        there = select(func.count()).select_from(series).scalar_subquery()
        return await self._number(select((there + _select_purged()).label("n")))

    async def purged(self) -> int:
        """Return how many series were purged."""
        return await self._number(select(_select_purged().label("n")))

    async def new_series(self, since: int, last: int) -> int:
        """Count the series whose first revision is one of these changes."""
        return await self._number(select_new(since, last))

    async def open_conflicts(self) -> int:
        """Count the open conflicts, up to COUNTED."""
        return await self._number(select_open_conflicts())

    async def incomplete(self, now: datetime) -> int:
        """Count the series that stayed incomplete: unchanged for an hour, not for more than a day; up to COUNTED."""
        return await self._number(select_incomplete(now - STAYS, now - LATELY))

    async def heard(self) -> dict[str, datetime]:
        """Return when each gateway said something last, by its name."""
        rows = await self._engine.read(select(gateways.c.GatewayID, gateways.c.At))
        return {row["GatewayID"]: row["At"] for row in rows}

    async def said_by(self, ids: list[str]) -> list[dict[str, Any]]:
        """Return what these gateways said last, and when."""
        columns = (gateways.c.GatewayID, gateways.c.At, gateways.c.State)
        return await self._engine.read(select(*columns).where(gateways.c.GatewayID.in_(ids)))

    async def _number(self, query: Select[Any]) -> int:
        return int((await self._engine.read(query))[0]["n"])


# --- its SQL ----------------------------------------------------------------------------------------------------


class _Readable(TypeDecorator[str]):
    """Text, of which SQLite gives the bytes: out of JSON it may be no valid Unicode."""

    impl = Text
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Any) -> str | None:
        return CESU_8.sub("\ufffd".encode(), value).decode(errors="replace") if isinstance(value, bytes) else value


class _Shown(FunctionElement[str]):
    """The beginning of a text."""

    inherit_cache = True
    type = _Readable()


@compiles(_Shown)
def _begin(element: _Shown, compiler: SQLCompiler, **kw: Any) -> str:
    return f"substr({compiler.process(element.clauses, **kw)}, 1, {DESCRIPTION_LENGTH})"


@compiles(_Shown, "sqlite")
def _begin_as_bytes(element: _Shown, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST({_begin(element, compiler, **kw)} AS BLOB)"


COLUMNS = (
    *(series.c[name] for name in SHOWN),
    IS_DOUBTFUL.label("Doubtful"),
    *(_Shown(series.c.Attributes[name, 0].as_string()).label(name) for name in DESCRIPTIONS),
)


IS_REVISION = and_(not_(IS_OF_STUDY), changes.c.Kinds.is_distinct_from(literal_column("'conflict'")))  # of a series


def select_newest(limit: int, before: int | None = None, since: int = 0) -> Select[Any]:
    of_series = series.c.SeriesInstanceUID == changes.c.SeriesInstanceUID
    last = and_(of_series, series.c.Revision == changes.c.Revision, IS_REVISION)
    query = select(changes.c.Number, *COLUMNS).join_from(changes, series, last)
    query = query.where(changes.c.Number > since).order_by(changes.c.Number.desc()).limit(limit)
    return query if before is None else query.where(changes.c.Number < before)


def _select_purged() -> ColumnElement[int]:
    purged = select(counters.c.Value).where(counters.c.Name == "purged").scalar_subquery()
    return func.coalesce(purged, 0)


def select_new(since: int, last: int) -> Select[Any]:
    first = and_(changes.c.Number > since, changes.c.Number <= last, changes.c.Revision == 1, IS_REVISION)
    return select(func.count().label("n")).select_from(changes).where(first)


def select_open_conflicts() -> Select[Any]:
    some = select(conflicts.c.Digest).where(conflicts.c.Resolution.is_(None)).limit(COUNTED).subquery()
    return select(func.count().label("n")).select_from(some)


def select_incomplete(until: datetime, since: datetime) -> Select[Any]:
    within = (series.c.UpdatedAt >= since) & (series.c.UpdatedAt < until)
    some = select(series.c.SeriesInstanceUID).where(IS_INCOMPLETE, within).limit(COUNTED).subquery()
    return select(func.count().label("n")).select_from(some)
