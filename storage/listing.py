"""What GET /series and GET /studies ask: which, a page at a time, in the order of the index the filters go along."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import Column, ColumnElement, Select, Table, exists, literal, not_, or_, select, tuple_

from storage.matching import Range, Unindexed, matches
from storage.schema import IS_DOUBTFUL, IS_IN_CONFLICT, IS_INCOMPLETE, LACKS_SOMETHING, series, studies

Order = tuple[str, ...]
BY_UID = ("SeriesInstanceUID",)
BY_UPDATE = ("UpdatedAt", "SeriesInstanceUID")
BY_DATE = ("StudyDate", "StudyInstanceUID", "SeriesInstanceUID")
NO_VERDICT = "null"
"""The value of Verdict that asks for what has none."""


@dataclass(frozen=True, slots=True)
class Listed:
    """What is asked of series and of studies alike; None and False of `newest` ask for nothing."""

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
    newest: bool = False

    table: ClassVar[Table]
    equal: ClassVar[Order]
    """Columns that have just the value that is asked for."""
    common: ClassVar[Order]
    """What a large part of all rows may have, with an index of its own each."""
    orders: ClassVar[tuple[Order, Order, Order]]
    """By UID, by the last change, by day: the columns of each."""

    @property
    def states(self) -> tuple[bool | None, ...]:
        """Return the states that few rows are in, each as it is asked for."""
        return (self.Incomplete,)

    @property
    def order(self) -> Order:
        """Return the columns that a page is in order of, and that tell the place behind it."""
        by_uid, by_update, by_date = self.orders
        moments = self.UpdatedSince, self.UpdatedUntil
        if self.newest or any(value is not None for value in (self.Verdict, self.Source, *moments, *self.states)):
            return by_update
        return by_uid if self.StudyDate is None else by_date

    def special(self) -> Iterator[ColumnElement[bool]]:
        """Yield what only these rows are asked."""
        yield from ()


@dataclass(frozen=True, slots=True)
class Listing(Listed):
    """Which series are asked for."""

    Conflicts: bool | None = None
    Doubtful: bool | None = None

    table = series
    equal = ("PatientID", "StudyInstanceUID", "Modality", "Source")
    common = ("Modality", "Verdict", "Source", "StudyDate")
    orders = (BY_UID, BY_UPDATE, BY_DATE)

    @property
    def states(self) -> tuple[bool | None, ...]:
        """Return the states that few series are in, each as it is asked for."""
        return self.Incomplete, self.Conflicts, self.Doubtful

    def special(self) -> Iterator[ColumnElement[bool]]:
        """Yield what only series are asked."""
        if self.Incomplete is not None:
            unknown = series.c.ExpectedInstances.is_(None)
            yield IS_INCOMPLETE if self.Incomplete else or_(unknown, not_(IS_INCOMPLETE))
        if self.Conflicts is not None:
            yield IS_IN_CONFLICT if self.Conflicts else not_(IS_IN_CONFLICT)
        if self.Doubtful is not None:
            yield IS_DOUBTFUL if self.Doubtful else not_(IS_DOUBTFUL)


@dataclass(frozen=True, slots=True)
class StudyListing(Listed):
    """Which studies are asked for."""

    AccessionNumber: str | None = None

    table = studies
    equal = ("PatientID", "StudyInstanceUID", "AccessionNumber", "Source")
    common = ("Verdict", "StudyDate")
    orders = (("StudyInstanceUID",), ("UpdatedAt", "StudyInstanceUID"), ("StudyDate", "StudyInstanceUID"))

    def special(self) -> Iterator[ColumnElement[bool]]:
        """Yield what only studies are asked; a modality is that of any of their series."""
        if self.Modality is not None:
            of_study = series.c.StudyInstanceUID == studies.c.StudyInstanceUID
            yield exists().where(of_study, series.c.Modality == self.Modality).correlate(studies)
        if self.Incomplete is not None:
            yield LACKS_SOMETHING if self.Incomplete else not_(LACKS_SOMETHING)


def select_listed(listing: Listed, after: Sequence[Any] | None, limit: int) -> Select[Any]:
    """Return the query for up to `limit` rows behind the values `after` of the columns of the order."""
    columns: list[Column[Any]] = [listing.table.c[name] for name in listing.order]
    query = select(listing.table).where(*conditions(listing, listing.order)).limit(limit)
    query = query.order_by(*(column.desc() if listing.newest else column for column in columns))
    if after is None:
        return query
    place = tuple_(*(literal(value, column.type) for value, column in zip(after, columns, strict=True)))
    row = tuple_(*columns)
    return query.where(row < place if listing.newest else row > place)


def asks_for_few(listing: Listed) -> bool:
    """Tell if only rows in a rare state are asked for."""
    return any(listing.states)


def _set_aside(listing: Listed, order: Sequence[str]) -> Collection[str]:
    """Return the columns whose indexes would read more than that of what is asked for, too, or of the order.

    1. Few rows are in a state that is asked for.
    2. Of many days there are more rows than a page: they are found in its order sooner than sorted.
    """
    if asks_for_few(listing):
        return listing.common
    if listing.StudyDate is not None and order[0] != "StudyDate" and not _is_short(*listing.StudyDate):
        return ("StudyDate",)
    return ()


def _is_short(first: str | None, last: str | None) -> bool:
    """Return whether days are of one month, or of two that follow each other."""
    if first is None or last is None:
        return False
    months = [12 * int(day[:4]) + int(day[4:6]) for day in (first, last)]
    return months[1] - months[0] <= 1


def conditions(listing: Listed, order: Sequence[str]) -> Iterator[ColumnElement[bool]]:
    """Yield what is true of a row that is asked for, in SQL that goes along the index which gives a page soonest.

    `order`: the columns that the page is in order of.
    """
    aside, table = _set_aside(listing, order), listing.table
    columns = {
        name: Unindexed(table.c[name]) if name in aside else table.c[name]
        for name in (*listing.equal, "Verdict", "StudyDate")
    }
    for name in listing.equal:
        if (value := getattr(listing, name)) is not None:
            yield columns[name] == value
    if listing.Verdict is not None:
        yield columns["Verdict"].is_(None) if listing.Verdict == NO_VERDICT else columns["Verdict"] == listing.Verdict
    if listing.StudyDate is not None:
        yield matches(columns["StudyDate"], Range(*listing.StudyDate), "DA")
    if listing.UpdatedSince is not None:
        yield table.c.UpdatedAt >= listing.UpdatedSince
    if listing.UpdatedUntil is not None:
        yield table.c.UpdatedAt < listing.UpdatedUntil
    yield from listing.special()
