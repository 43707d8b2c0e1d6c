"""GET /series: stored series by what is known of them, a page at a time; GET /studies (studies.py) is made alike."""

import base64
import functools
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, TypeAdapter

from api import table
from api.answers import SeriesPage
from api.parameters import IN_DIGITS, KNOWN_ONLY, NO_CONTROL, Moment
from api.routing import READS, Db, Responses, answers
from models import SeriesRecord, SeriesVerdict, Timestamp, Uid
from storage.answers import StudyRecord
from storage.engine import DatabaseUnavailable
from storage.listing import Listed, Listing
from storage.merge import searched

DATES = re.compile(r"(\d{8})?(-)?(\d{8})?")
AT_ONCE = 1000  # series that are read for one piece of a table
UID: TypeAdapter[str] = TypeAdapter(Uid)
PLACES: dict[str, Any] = {"UpdatedAt": Timestamp, "StudyDate": Annotated[str, Field(pattern=NO_CONTROL)]}
"""What may stand in a place beside UIDs, by column."""
AS_CSV: Responses = {200: {"content": {"text/csv": {}}, "description": "A line for each."}}
Record = SeriesRecord | StudyRecord
R = TypeVar("R", SeriesRecord, StudyRecord)
router = APIRouter(dependencies=[READS, KNOWN_ONLY])


class Common(BaseModel):
    """What is asked of series and of studies alike, each by an exact match."""

    PatientID: Annotated[str | None, Field(max_length=256, pattern=NO_CONTROL)] = None
    StudyInstanceUID: Uid | None = None
    Modality: Annotated[str | None, Field(max_length=16, pattern=NO_CONTROL)] = None
    Verdict: Annotated[
        Literal[SeriesVerdict, "null"] | None, Field(description="`null`: those without one, which are still open.")
    ] = None
    Source: Annotated[
        str | None,
        Field(max_length=64, pattern=NO_CONTROL, description="Calling AE title, modality, station: `CT1 CT SCANNER2`."),
    ] = None
    StudyDate: Annotated[
        str | None, Field(max_length=17, description="A day or a range: `20260101-20260131`, `20260101-`.")
    ] = None
    UpdatedSince: Annotated[
        Moment | None, Field(description="Last changed then or later: `2026-01-31T08:00:00Z`, or a day in UTC.")
    ] = None
    UpdatedUntil: Annotated[Moment | None, Field(description="Last changed before then.")] = None

    def given(self, names: Iterable[str]) -> dict[str, Any]:
        """Return what is asked for by these names; days as two. Raises RequestValidationError."""
        given = {name: getattr(self, name) for name in names}
        return given | {"StudyDate": None if self.StudyDate is None else _days(self.StudyDate)}


class Which(Common):
    """Which series."""

    Incomplete: Annotated[bool | None, Field(description="`Missing` is above 0, or is not.")] = None
    Conflicts: Annotated[bool | None, Field(description="It has open conflicts, or none.")] = None
    Doubtful: Annotated[bool | None, Field(description="Something of it breaks the standard, or nothing.")] = None

    def listing(self) -> Listing:
        """Return the question for the database. Raises RequestValidationError."""
        return Listing(**self.given(Which.model_fields))


class Ordered(BaseModel):
    """The order of what is listed."""

    order: Annotated[Literal["newest"] | None, Field(description="Those that changed last come first.")] = None

    @property
    def newest(self) -> bool:
        """Return whether those that changed last come first."""
        return self.order == "newest"


class Paged(BaseModel):
    """Which page of what matches."""

    after: Annotated[str | None, Field(max_length=1024, description="`next` of the page before.")] = None
    limit: Annotated[int, IN_DIGITS, Field(ge=1, le=1000)] = 100


class Filters(Which, Ordered):
    """Which series, and their order."""

    def listing(self) -> Listing:
        """Return the question for the database. Raises RequestValidationError."""
        return replace(super().listing(), newest=self.newest)


class Page(Filters, Paged):
    """Filters, and which page of what matches."""


@router.get("/series", responses=answers())
async def list_series(page: Annotated[Page, Query()], database: Db) -> SeriesPage:
    """List stored series, a page at a time (keyset pagination); what matches every filter.

    In order of SeriesInstanceUID; of StudyDate where that is asked for; of UpdatedAt where anything is asked for but
    PatientID, StudyInstanceUID, Modality and StudyDate.
    """
    some, following = await one_page(page, page.listing(), database.page)
    return SeriesPage(series=some, next=following)


@router.get("/series.csv", responses=answers() | AS_CSV, response_class=StreamingResponse)
async def series_as_csv(filters: Annotated[Filters, Query()], database: Db, request: Request) -> StreamingResponse:
    """List every series that matches, as CSV (RFC 4180) with a line of names; in the order of GET /series.

    A cell that a spreadsheet would compute (=, +, -, @ in front) has an apostrophe before it.
    """
    return await as_csv(filters.listing(), database.page, table.SERIES, request)


def _days(text: str) -> tuple[str | None, str | None]:
    """Return the first and the last day. Raises RequestValidationError."""
    found = DATES.fullmatch(text)
    if not found or not (found[1] or found[3]) or bool(found[1] and found[3]) > bool(found[2]):
        refuse("StudyDate", "is no day and no range of days, such as 20260101-20260131")
    return found[1], found[3] if found[2] else found[1]


def refuse(name: str, problem: str) -> NoReturn:
    """Refuse a parameter. Raises RequestValidationError."""
    raise RequestValidationError([{"loc": ("query", name), "msg": problem, "type": "value_error"}])


# --- pages ------------------------------------------------------------------------------------------------------

Read = Callable[..., Awaitable[list[R]]]
"""What returns up to `limit` records of a `listing`, behind the values `after` of its order's columns."""


async def one_page(page: Paged, listing: Listed, read: Read[R]) -> tuple[list[R], str | None]:
    """Return the records of a page, and what to ask for the next one with. Raises RequestValidationError."""
    after = None if page.after is None else _place(page.after, listing)
    records = await read(after=after, limit=page.limit + 1, listing=listing)
    some = records[: page.limit]
    return some, _next(some[-1], listing) if len(records) > page.limit else None


async def as_csv(listing: Listed, read: Read[R], columns: table.Table[R], request: Request) -> StreamingResponse:
    """Answer all that a listing names, a line each, in its order."""
    first = await read(after=None, limit=AT_ONCE, listing=listing)  # where it fails, that is the answer

    async def told() -> AsyncIterator[str]:
        yield columns.head()
        records = first
        while records:
            yield columns.lines(records)
            if request.app.state.follower.ended:
                raise DatabaseUnavailable("the server stops")  # cut off, which the client sees
            after = _place_behind(records[-1], listing)
            full = len(records) == AT_ONCE
            records = await read(after=after, limit=AT_ONCE, listing=listing) if full else []

    file = {"Content-Disposition": f'attachment; filename="{listing.table.name}.csv"'}
    return StreamingResponse(told(), media_type="text/csv; charset=utf-8", headers=file)


# --- places -----------------------------------------------------------------------------------------------------


def packed(place: Sequence[Any]) -> str:
    """Return a place as one word, which a client need not understand."""
    content = json.dumps(place, default=datetime.isoformat)
    return base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")


def unpacked(text: str, kinds: tuple[Any, ...]) -> list[Any]:
    """Return the values of a packed place. Raises ValueError."""
    content = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    return [*_adapter(kinds).validate_json(content)]


@functools.cache
def _adapter(kinds: tuple[Any, ...]) -> TypeAdapter[Any]:
    """Return what checks the values of a place."""
    several: Any = tuple
    return TypeAdapter(several[kinds])


def _next(record: Record, listing: Listed) -> str:
    """Return the place behind a record: its UID, or what else the order goes by, which a client need not understand."""
    place = _place_behind(record, listing)
    if len(place) == 1:
        return str(place[0])
    return packed(place)


def _place_behind(record: Record, listing: Listed) -> list[Any]:
    """Return the values of the columns that the listing is in order of."""
    known = searched(record.Attributes, None) if isinstance(record, SeriesRecord) else {}
    return [known[name] if name in known else getattr(record, name) for name in listing.order]


def _place(text: str, listing: Listed) -> list[Any]:
    """Return the values behind which a page begins. Raises RequestValidationError."""
    try:
        if len(listing.order) == 1:
            return [UID.validate_python(text)]
        return unpacked(text, tuple(PLACES.get(name, Uid) for name in listing.order))
    except ValueError:
        refuse("after", "is not `next` of a page that was asked for with the same filters and order")
