"""What GET /series asks: which series, a page at a time, in the order of the index that its filters go along."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Column, ColumnElement, Select, literal, not_, or_, select, tuple_

from storage.matching import Range, Unindexed, matches
from storage.schema import IS_DOUBTFUL, IS_IN_CONFLICT, IS_INCOMPLETE, series

EQUAL = ("PatientID", "StudyInstanceUID", "Modality", "Verdict", "Source")
COMMON = ("Modality", "Verdict", "Source", "StudyDate")
"""What a large part of all series may have, with an index of its own each."""
ASKED = (*EQUAL, "StudyDate")
BY_UID = ("SeriesInstanceUID",)
BY_UPDATE = ("UpdatedAt", "SeriesInstanceUID")
BY_DATE = ("StudyDate", "StudyInstanceUID", "SeriesInstanceUID")


@dataclass(frozen=True, slots=True)
class Listing:
    """Which series are asked for; None and False of `newest` ask for nothing."""

    PatientID: str | None = None
    StudyInstanceUID: str | None = None
    Modality: str | None = None
    Verdict: str | None = None
    Source: str | None = None
    StudyDate: tuple[str | None, str | None] | None = None
    """The first and the last day."""
    UpdatedSince: datetime | None = None
    UpdatedUntil: datetime | None = None
    """Not included."""
    Incomplete: bool | None = None
    Conflicts: bool | None = None
    Doubtful: bool | None = None
    newest: bool = False

    @property
    def order(self) -> tuple[str, ...]:
        """Return the columns that a page is in order of, and that tell the place behind it."""
        moments, states = (self.UpdatedSince, self.UpdatedUntil), (self.Incomplete, self.Conflicts, self.Doubtful)
        if self.newest or any(value is not None for value in (self.Verdict, self.Source, *moments, *states)):
            return BY_UPDATE
        return BY_UID if self.StudyDate is None else BY_DATE


def select_listed(listing: Listing, after: Sequence[Any] | None, limit: int) -> Select[Any]:
    """Return the query for up to `limit` rows behind the values `after` of the columns of the order."""
    columns: list[Column[Any]] = [series.c[name] for name in listing.order]
    query = select(series).where(*conditions(listing, listing.order)).limit(limit)
    query = query.order_by(*(column.desc() if listing.newest else column for column in columns))
    if after is None:
        return query
    place = tuple_(*(literal(value, column.type) for value, column in zip(after, columns, strict=True)))
    row = tuple_(*columns)
    return query.where(row < place if listing.newest else row > place)


def asks_for_few(listing: Listing) -> bool:
    """Tell if only series in a rare state are asked for."""
    return bool(listing.Incomplete or listing.Conflicts or listing.Doubtful)


def _set_aside(listing: Listing, order: Sequence[str]) -> Collection[str]:
    """Return the columns whose indexes would read more than that of what is asked for, too, or of the order.

    1. Few series are in a state that is asked for.
    2. Of many days there are more series than a page: they are found in its order sooner than sorted.
    """
    if asks_for_few(listing):
        return COMMON
    if listing.StudyDate is not None and order[0] != "StudyDate" and not _is_short(*listing.StudyDate):
        return ("StudyDate",)
    return ()


def _is_short(first: str | None, last: str | None) -> bool:
    """Return whether days are of one month, or of two that follow each other."""
    if first is None or last is None:
        return False
    months = [12 * int(day[:4]) + int(day[4:6]) for day in (first, last)]
    return months[1] - months[0] <= 1


def conditions(listing: Listing, order: Sequence[str]) -> Iterator[ColumnElement[bool]]:
    """Yield what is true of a series that is asked for, in SQL that goes along the index which gives a page soonest.

    `order`: the columns that the page is in order of.
    """
    aside = _set_aside(listing, order)
    columns = {name: Unindexed(series.c[name]) if name in aside else series.c[name] for name in ASKED}
    for name in EQUAL:
        if (value := getattr(listing, name)) is not None:
            yield columns[name] == value
    if listing.StudyDate is not None:
        yield matches(columns["StudyDate"], Range(*listing.StudyDate), "DA")
    if listing.UpdatedSince is not None:
        yield series.c.UpdatedAt >= listing.UpdatedSince
    if listing.UpdatedUntil is not None:
        yield series.c.UpdatedAt < listing.UpdatedUntil
    if listing.Incomplete is not None:
        unknown = series.c.ExpectedInstances.is_(None)
        yield IS_INCOMPLETE if listing.Incomplete else or_(unknown, not_(IS_INCOMPLETE))
    if listing.Conflicts is not None:
        yield IS_IN_CONFLICT if listing.Conflicts else not_(IS_IN_CONFLICT)
    if listing.Doubtful is not None:
        yield IS_DOUBTFUL if listing.Doubtful else not_(IS_DOUBTFUL)
