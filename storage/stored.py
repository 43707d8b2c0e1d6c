"""What the page's table of stored series asks: which match filters and words, some at a time, in one of several orders.

Words are looked for in two places, both of a bounded size however many series are stored. Each word's beginnings stand
along indexes: of names, PatientIDs, accession numbers, study dates and UIDs, of each the first BEGINNINGS. What stands
inside of a name or a description is found among the LOOKED_THROUGH series that match the filters and changed last.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    CompoundSelect,
    FunctionElement,
    Select,
    and_,
    func,
    literal,
    or_,
    select,
    union,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from models import is_uid
from storage.engine import Engine
from storage.folding import FOLDED_LENGTH, small, with_sharp_s
from storage.latest import COLUMNS, DESCRIPTIONS
from storage.listing import BY_UPDATE, Listing, asks_for_few, conditions
from storage.matching import Range, Unindexed, matches
from storage.merge import truthful
from storage.schema import series

BEGINNINGS = 500  # series along each index
LOOKED_THROUGH = 10_000  # series that changed last: a quarter of a second
MAX_WORDS = 6  # those behind are not looked for
ORDERS = {
    "Stored": ("UpdatedAt", "SeriesInstanceUID"),
    "Patient": ("FoldedName", "StudyInstanceUID", "SeriesInstanceUID"),
    "StudyDate": ("StudyDate", "StudyInstanceUID", "SeriesInstanceUID"),
    "Modality": ("Modality", "UpdatedAt", "SeriesInstanceUID"),
    "Verdict": ("Verdict", "UpdatedAt", "SeriesInstanceUID"),
    "Source": ("Source", "UpdatedAt", "SeriesInstanceUID"),
}
"""What may be sorted by, each along an index."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which stored series are asked for, and in which order."""

    listing: Listing
    words: str = ""
    order: str = "Stored"
    descending: bool = True


@dataclass
class Stored:
    """The stored series of one database, as a person looks for them."""

    _engine: Engine

    async def found(self, wanted: Wanted, limit: int, skip: int = 0) -> list[dict[str, Any]]:
        """Return up to `limit` series behind the first `skip`."""
        return [truthful(row) for row in await self._engine.read(select_found(wanted, limit, skip))]


# --- its SQL ----------------------------------------------------------------------------------------------------


def select_found(wanted: Wanted, limit: int, skip: int = 0) -> Select[Any]:
    """Return the rows, in order. Where words are given, of the candidates alone."""
    names = ORDERS[wanted.order]
    query = select(literal(None).label("Number"), *COLUMNS).where(*conditions(wanted.listing, names))
    if words := words_of(wanted.words):
        query = query.where(series.c.SeriesInstanceUID.in_(_candidates(wanted.words.strip(), words, wanted.listing)))
        query = query.where(*(_says(word) for word in words))
    columns: list[ColumnElement[Any]] = [series.c[name] for name in names]
    if asks_for_few(wanted.listing) and names != BY_UPDATE:  # sorted sooner than all are read in the order's index
        columns[0] = Unindexed(columns[0])
    order = [column.desc() if wanted.descending else column for column in columns]
    return query.order_by(*order).limit(limit).offset(skip)


def words_of(text: str) -> list[str]:
    """Return what a text asks for: each has to be found."""
    return list(dict.fromkeys(re.split(r"[,\s]+", text.strip(" \t,"))))[:MAX_WORDS] if text.strip(" \t,") else []


def _candidates(text: str, words: list[str], listing: Listing) -> CompoundSelect[Any]:
    begins = dict.fromkeys(begin for each in (text, *words) for begin in _begins(each))
    kinds = [_first(column, begin) for column, begin in begins]
    newest = series.c.UpdatedAt.desc(), series.c.SeriesInstanceUID.desc()
    latest = select(series.c.SeriesInstanceUID).where(*conditions(listing, BY_UPDATE)).order_by(*newest)
    return union(*(select(kind.subquery()) for kind in (*kinds, latest.limit(LOOKED_THROUGH))))


def _begins(text: str) -> Iterator[tuple[ColumnElement[str], str]]:
    """Yield columns and what they have to begin with; a comma or a space in a name may be the ^ that DICOM writes."""
    name = small(text)[:FOLDED_LENGTH]
    names = (name, re.sub(r"[,\s]+", "^", name), re.sub(r",\s*", "^", name))
    for begin in dict.fromkeys(spelt for each in names for spelt in with_sharp_s(each)):
        yield series.c.FoldedName, begin[:FOLDED_LENGTH]
    yield series.c.PatientID, text
    yield series.c.AccessionNumber, text[:FOLDED_LENGTH]
    if re.fullmatch(r"[0-9]{4,8}", date := text.replace("-", "")):
        yield series.c.StudyDate, date
    if is_uid(text):
        yield series.c.SeriesInstanceUID, text
        yield series.c.StudyInstanceUID, text


def _first(column: ColumnElement[str], begin: str) -> Select[Any]:
    """Return the query for the first series along the column's index."""
    within = matches(column, Range(begin, begin), "LO")
    return select(series.c.SeriesInstanceUID).where(within).order_by(column).limit(BEGINNINGS)


def _says(word: str) -> ColumnElement[bool]:
    """Hold of a series if a word stands in one of its texts, or a UID or the study date begins so.

    Names are folded. What else has no folded column is compared as small letters, where SQLite knows those of ASCII
    alone, and as it would be in capitals.
    """
    ways: list[ColumnElement[bool]] = [
        _Holds(series.c.FoldedName, literal(spelt)) for spelt in with_sharp_s(small(word))
    ]
    texts = [series.c.PatientID, series.c.AccessionNumber]
    texts += [series.c.Attributes[name, 0].as_string() for name in DESCRIPTIONS]
    for text in texts:
        ways += [_Holds(func.lower(text), literal(small(word))), _Holds(text, literal(word.upper()))]
    ways += [
        and_(column.is_not(None), matches(column.concat(""), Range(begin, begin), "LO"))
        for column, begin in _begins(word)
        if column.key in ("StudyDate", "SeriesInstanceUID", "StudyInstanceUID")
    ]
    return or_(*ways)


class _Holds(FunctionElement[bool]):
    """The first text holds the second."""

    inherit_cache = True
    type = Boolean()


@compiles(_Holds, "sqlite")
def _instr(element: _Holds, compiler: SQLCompiler, **kw: Any) -> str:
    return f"instr({compiler.process(element.clauses, **kw)}) > 0"


@compiles(_Holds, "postgresql")
def _strpos(element: _Holds, compiler: SQLCompiler, **kw: Any) -> str:
    return f"strpos({compiler.process(element.clauses, **kw)}) > 0"
