"""What the live page asks: the newest series, those that a text finds, how much is stored and what is wrong."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    FunctionElement,
    Select,
    Text,
    and_,
    func,
    literal,
    literal_column,
    select,
    union,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeDecorator

from models import is_uid
from storage.engine import Engine
from storage.folding import FOLDED_LENGTH, small, with_sharp_s
from storage.matching import Range, matches
from storage.merge import truthful
from storage.schema import IS_INCOMPLETE, changes, conflicts, counters, gateways, series

COUNTED = 1000  # of what is wrong: beyond it, it is many
STAYS, LATELY = timedelta(hours=1), timedelta(days=1)
DESCRIPTION_LENGTH = 1024  # characters that are shown
CESU_8 = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")  # how SQLite puts a lone surrogate
OF_SERIES = (
    *("SeriesInstanceUID", "StudyInstanceUID", "PatientID", "PatientName", "AccessionNumber", "Modality", "Source"),
    *("Revision", "NumInstances", "ExpectedInstances", "ExpectedFrom", "Verdict", "FalseCompletions", "Conflicts"),
    *("UpdatedAt", "LastReceivedAt"),
)


@dataclass
class Latest:
    """What the live page asks of one database."""

    _engine: Engine

    async def newest(self, limit: int, before: int | None = None, since: int = 0) -> list[dict[str, Any]]:
        """Series by their last change, the newest first: those behind `since`, before `before`."""
        return [truthful(row) for row in await self._engine.read(select_newest(limit, before, since))]

    async def found(self, text: str, limit: int) -> list[dict[str, Any]]:
        """Series whose patient's name, PatientID, accession number or UIDs begin so, the newest first."""
        return [truthful(row) for row in await self._engine.read(select_found(text, limit))]

    async def ever_stored(self) -> int:
        """How many series there are, and were before they were purged."""
        there = select(func.count()).select_from(series).scalar_subquery()
        return await self._number(select((there + _select_purged()).label("n")))

    async def purged(self) -> int:
        """How many series were purged."""
        return await self._number(select(_select_purged().label("n")))

    async def new_series(self, since: int, last: int) -> int:
        """How many there are whose first revision is one of these changes."""
        return await self._number(select_new(since, last))

    async def open_conflicts(self) -> int:
        """How many there are, up to COUNTED."""
        return await self._number(select_open_conflicts())

    async def incomplete(self, now: datetime) -> int:
        """How many series stayed incomplete: unchanged for an hour, and not for more than a day; up to COUNTED."""
        return await self._number(select_incomplete(now - STAYS, now - LATELY))

    async def heard(self) -> dict[str, datetime]:
        """When each gateway said something, by its name."""
        rows = await self._engine.read(select(gateways.c.GatewayID, gateways.c.At))
        return {row["GatewayID"]: row["At"] for row in rows}

    async def said_by(self, ids: list[str]) -> list[dict[str, Any]]:
        """What these gateways said last, and when."""
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
    *(series.c[name] for name in OF_SERIES),
    _Shown(series.c.Attributes["SeriesDescription", 0].as_string()).label("SeriesDescription"),
)


IS_REVISION = changes.c.Kinds.is_distinct_from(literal_column("'conflict'"))


def select_newest(limit: int, before: int | None = None, since: int = 0) -> Select[Any]:
    of_series = series.c.SeriesInstanceUID == changes.c.SeriesInstanceUID
    last = and_(of_series, series.c.Revision == changes.c.Revision, IS_REVISION)
    query = select(changes.c.Number, *COLUMNS).join_from(changes, series, last)
    query = query.where(changes.c.Number > since).order_by(changes.c.Number.desc()).limit(limit)
    return query if before is None else query.where(changes.c.Number < before)


def select_found(text: str, limit: int) -> Select[Any]:
    """Up to `limit` of each kind of text that is searched."""
    kinds = [_first(column, begin, limit) for column, begin in _begins(text)]
    uids: CompoundSelect[Any] = union(*(select(kind.subquery()) for kind in kinds))
    query = select(literal(None).label("Number"), *COLUMNS)
    return query.where(series.c.SeriesInstanceUID.in_(uids)).order_by(series.c.UpdatedAt.desc()).limit(limit)


def _begins(text: str) -> Iterator[tuple[ColumnElement[str], str]]:
    """Columns and what they have to begin with; a comma or a space in a name may be the ^ that DICOM writes."""
    name = small(text)[:FOLDED_LENGTH]
    names = (name, re.sub(r"[,\s]+", "^", name), re.sub(r",\s*", "^", name))
    for begin in dict.fromkeys(spelt for each in names for spelt in with_sharp_s(each)):
        yield series.c.FoldedName, begin[:FOLDED_LENGTH]
    yield series.c.PatientID, text
    yield series.c.AccessionNumber, text[:FOLDED_LENGTH]
    if is_uid(text):
        yield series.c.SeriesInstanceUID, text
        yield series.c.StudyInstanceUID, text


def _first(column: ColumnElement[str], begin: str, limit: int) -> Select[Any]:
    """Along the column's index."""
    within = matches(column, Range(begin, begin), "LO")
    return select(series.c.SeriesInstanceUID).where(within).order_by(column).limit(limit)


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
