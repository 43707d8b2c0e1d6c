"""The SQL of the live page: the newest series, those that a text finds, and how much is stored and what is wrong."""

import re
from collections.abc import Iterator
from typing import Any

from sqlalchemy import ColumnElement, CompoundSelect, FunctionElement, Select, Text, and_, func, literal, select, union
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeDecorator

from storage.matching import Range, matches
from storage.merge import SEARCHED_LENGTH
from storage.schema import changes, conflicts, dead_changes, gateways, series, webhooks

COUNTED = 1000  # of what is wrong: beyond it, it is many
DESCRIPTION_LENGTH = 1024  # characters that are shown
CESU_8 = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")  # how SQLite puts a lone surrogate
OF_SERIES = (
    *("SeriesInstanceUID", "StudyInstanceUID", "PatientID", "PatientName", "AccessionNumber", "Modality", "Source"),
    *("Revision", "NumInstances", "ExpectedInstances", "ExpectedFrom", "Verdict", "FalseCompletions", "Conflicts"),
    *("UpdatedAt", "LastReceivedAt"),
)


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


def newest(limit: int, before: int | None = None, since: int = 0) -> Select[Any]:
    """Series by their last change, the newest first: those behind `since`, before `before`."""
    last = and_(series.c.SeriesInstanceUID == changes.c.SeriesInstanceUID, series.c.Revision == changes.c.Revision)
    query = select(changes.c.Number, *COLUMNS).join_from(changes, series, last)
    query = query.where(changes.c.Number > since).order_by(changes.c.Number.desc()).limit(limit)
    return query if before is None else query.where(changes.c.Number < before)


def found(text: str, limit: int) -> Select[Any]:
    """Series whose patient's name, PatientID, accession number or UIDs begin so, up to `limit` of each kind."""
    kinds = [_first(column, begin, limit) for column, begin in _begins(text)]
    uids: CompoundSelect[Any] = union(*(select(kind.subquery()) for kind in kinds))
    query = select(literal(None).label("Number"), *COLUMNS)
    return query.where(series.c.SeriesInstanceUID.in_(uids)).order_by(series.c.UpdatedAt.desc()).limit(limit)


def _begins(text: str) -> Iterator[tuple[ColumnElement[str], str]]:
    """Columns and what they have to begin with; a comma or a space in a name may be the ^ that DICOM writes."""
    name = text.casefold()[:SEARCHED_LENGTH]
    for begin in dict.fromkeys((name, re.sub(r"[,\s]+", "^", name), re.sub(r",\s*", "^", name))):
        yield series.c.FoldedName, begin
    yield series.c.PatientID, text
    yield series.c.AccessionNumber, text[:SEARCHED_LENGTH]
    if re.fullmatch(r"[0-9.]{1,64}", text):
        yield series.c.SeriesInstanceUID, text
        yield series.c.StudyInstanceUID, text


def _first(column: ColumnElement[str], begin: str, limit: int) -> Select[Any]:
    """Along the column's index."""
    within = matches(column, Range(begin, begin), "LO")
    return select(series.c.SeriesInstanceUID).where(within).order_by(column).limit(limit)


def new_series(since: int, last: int) -> Select[Any]:
    """How many series there are whose first revision is one of these changes."""
    first = and_(changes.c.Number > since, changes.c.Number <= last, changes.c.Revision == 1)
    return select(func.count().label("series")).select_from(changes).where(first)


def all_series() -> Select[Any]:
    return select(func.count().label("series")).select_from(series)


def open_conflicts() -> Select[Any]:
    """How many there are, up to COUNTED."""
    some = select(conflicts.c.Digest).where(conflicts.c.Resolution.is_(None)).limit(COUNTED).subquery()
    return select(func.count().label("conflicts")).select_from(some)


def told() -> Select[Any]:
    """Each webhook: how far it is, and how many changes were given up."""
    dead = select(func.count()).where(dead_changes.c.Webhook == webhooks.c.Id).scalar_subquery()
    columns = (webhooks.c.Id, webhooks.c.Url, webhooks.c.Position, webhooks.c.Attempts, dead.label("Dead"))
    return select(*columns).order_by(webhooks.c.Id)


def when_heard() -> Select[Any]:
    """Each gateway and when it said something, without what."""
    return select(gateways.c.GatewayID, gateways.c.At)


def said_by(ids: list[str]) -> Select[Any]:
    return select(gateways.c.GatewayID, gateways.c.At, gateways.c.State).where(gateways.c.GatewayID.in_(ids))
