"""GET /series: stored series by what is known of them, a page at a time."""

import base64
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Literal, NoReturn

from fastapi import APIRouter, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from pydantic import AwareDatetime, BaseModel, Field, TypeAdapter

from api import table
from api.answers import SeriesPage
from api.parameters import IN_DIGITS, KNOWN_ONLY, NO_CONTROL, Moment
from api.routing import READS, Db, Responses, answers
from models import SeriesRecord, SeriesVerdict, Uid
from storage.engine import DatabaseUnavailable
from storage.listing import BY_DATE, BY_UID, BY_UPDATE, Listing
from storage.merge import searched

DATES = re.compile(r"(\d{8})?(-)?(\d{8})?")
AT_ONCE = 1000  # series that are read for one piece of a table
UID: TypeAdapter[str] = TypeAdapter(Uid)
PLACES: dict[tuple[str, ...], TypeAdapter[tuple[Any, ...]]] = {
    BY_UPDATE: TypeAdapter(tuple[AwareDatetime, Uid]),
    BY_DATE: TypeAdapter(tuple[Annotated[str, Field(pattern=NO_CONTROL)], Uid, Uid]),
}
AS_CSV: Responses = {200: {"content": {"text/csv": {}}, "description": "A line a series."}}
router = APIRouter(dependencies=[READS, KNOWN_ONLY])


class Which(BaseModel):
    """Which series, each by an exact match."""

    PatientID: Annotated[str | None, Field(max_length=256, pattern=NO_CONTROL)] = None
    StudyInstanceUID: Uid | None = None
    Modality: Annotated[str | None, Field(max_length=16, pattern=NO_CONTROL)] = None
    Verdict: SeriesVerdict | None = None
    Source: Annotated[
        str | None, Field(max_length=64, pattern=NO_CONTROL, description="Calling AE title and modality: `CT1 CT`.")
    ] = None
    StudyDate: Annotated[
        str | None, Field(max_length=17, description="A day or a range: `20260101-20260131`, `20260101-`.")
    ] = None
    UpdatedSince: Annotated[
        Moment | None, Field(description="Last changed then or later: `2026-01-31T08:00:00Z`, or a day in UTC.")
    ] = None
    UpdatedUntil: Annotated[Moment | None, Field(description="Last changed before then.")] = None
    Incomplete: Annotated[bool | None, Field(description="`Missing` is above 0, or is not.")] = None
    Conflicts: Annotated[bool | None, Field(description="It has open conflicts, or none.")] = None
    Doubtful: Annotated[bool | None, Field(description="Something of it breaks the standard, or nothing.")] = None

    def listing(self) -> Listing:
        """Return the question for the database. Raises RequestValidationError."""
        given = self.model_dump(include={*Which.model_fields} - {"StudyDate"})
        return Listing(**given, StudyDate=None if self.StudyDate is None else _days(self.StudyDate))


class Filters(Which):
    """The same, and the order."""

    order: Annotated[Literal["newest"] | None, Field(description="Those that changed last come first.")] = None

    def listing(self) -> Listing:
        """Return the question for the database. Raises RequestValidationError."""
        return replace(super().listing(), newest=self.order == "newest")


class Page(Filters):
    """Filters, and which page of what matches."""

    after: Annotated[str | None, Field(max_length=1024, description="`next` of the page before.")] = None
    limit: Annotated[int, IN_DIGITS, Field(ge=1, le=1000)] = 100


@router.get("/series", responses=answers())
async def list_series(page: Annotated[Page, Query()], database: Db) -> SeriesPage:
    """List stored series, a page at a time (keyset pagination); what matches every filter.

    In order of SeriesInstanceUID; of StudyDate where that is asked for; of UpdatedAt where anything is asked for but
    PatientID, StudyInstanceUID, Modality and StudyDate.
    """
    listing = page.listing()
    after = None if page.after is None else _place(page.after, listing)
    records = await database.page(after=after, limit=page.limit + 1, listing=listing)
    some = records[: page.limit]
    return SeriesPage(series=some, next=_next(some[-1], listing) if len(records) > page.limit else None)


@router.get("/series.csv", responses=answers() | AS_CSV, response_class=StreamingResponse)
async def series_as_csv(filters: Annotated[Filters, Query()], database: Db, request: Request) -> StreamingResponse:
    """List every series that matches, as CSV (RFC 4180) with a line of names; in the order of GET /series.

    A cell that a spreadsheet would compute (=, +, -, @ in front) has an apostrophe before it.
    """
    listing = filters.listing()
    first = await database.page(after=None, limit=AT_ONCE, listing=listing)  # where it fails, that is the answer

    async def told() -> AsyncIterator[str]:
        yield table.head()
        records = first
        while records:
            yield table.lines(records)
            if request.app.state.follower.ended:
                raise DatabaseUnavailable("the server stops")  # cut off, which the client sees
            after = _place_behind(records[-1], listing)
            full = len(records) == AT_ONCE
            records = await database.page(after=after, limit=AT_ONCE, listing=listing) if full else []

    file = {"Content-Disposition": 'attachment; filename="series.csv"'}
    return StreamingResponse(told(), media_type="text/csv; charset=utf-8", headers=file)


def _days(text: str) -> tuple[str | None, str | None]:
    """Return the first and the last day. Raises RequestValidationError."""
    found = DATES.fullmatch(text)
    if not found or not (found[1] or found[3]) or bool(found[1] and found[3]) > bool(found[2]):
        _refuse("StudyDate", "is no day and no range of days, such as 20260101-20260131")
    return found[1], found[3] if found[2] else found[1]


def _refuse(name: str, problem: str) -> NoReturn:
    """Refuse a parameter. Raises RequestValidationError."""
    raise RequestValidationError([{"loc": ("query", name), "msg": problem, "type": "value_error"}])


# --- places -----------------------------------------------------------------------------------------------------


def _next(record: SeriesRecord, listing: Listing) -> str:
    """Return the place behind a record: its UID, or what else the order goes by, which a client need not understand."""
    if listing.order == BY_UID:
        return record.SeriesInstanceUID
    content = json.dumps(_place_behind(record, listing), default=datetime.isoformat)
    return base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")


def _place_behind(record: SeriesRecord, listing: Listing) -> list[Any]:
    """Return the values of the columns that the listing is in order of."""
    known = searched(record.Attributes, None) | {name: getattr(record, name) for name in (*BY_UPDATE, *BY_DATE[1:])}
    return [known[name] for name in listing.order]


def _place(text: str, listing: Listing) -> list[Any]:
    """Return the values behind which a page begins. Raises RequestValidationError."""
    try:
        if listing.order == BY_UID:
            return [UID.validate_python(text)]
        content = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return [*PLACES[listing.order].validate_json(content)]
    except ValueError:
        _refuse("after", "is not `next` of a page that was asked for with the same filters and order")
