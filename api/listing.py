"""GET /series: stored series by what is known of them, a page at a time."""

import base64
import difflib
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Literal, NoReturn

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.params import Depends as Dependency
from fastapi.responses import StreamingResponse
from pydantic import AwareDatetime, BaseModel, BeforeValidator, Field, TypeAdapter

from api import table
from api.answers import SeriesPage
from db import Database
from models import SeriesRecord, SeriesVerdict, Timestamp, Uid
from storage.engine import DatabaseUnavailable
from storage.listing import BY_DATE, BY_UID, BY_UPDATE, Listing
from storage.merge import searched

NO_CONTROL = r"^[^\x00-\x1f\x7f]*$"
DATES = re.compile(r"(\d{8})?(-)?(\d{8})?")
AT_ONCE = 1000  # series that are read for one piece of a table
IGNORED = {"_", "access_token"}  # which browsers and scripts add
UID: TypeAdapter[str] = TypeAdapter(Uid)
PLACES: dict[tuple[str, ...], TypeAdapter[tuple[Any, ...]]] = {
    BY_UPDATE: TypeAdapter(tuple[AwareDatetime, Uid]),
    BY_DATE: TypeAdapter(tuple[Annotated[str, Field(pattern=NO_CONTROL)], Uid, Uid]),
}


def _in_digits(value: object) -> object:
    """A number of a query or a header is of digits: Python's 1_0 and +5 are a mistake of whoever wrote them."""
    if isinstance(value, str) and not (value.isascii() and value.isdecimal()):
        raise ValueError("is not a whole number in digits")
    return value


IN_DIGITS = BeforeValidator(_in_digits)


def _at_midnight(value: object) -> object:
    """A day alone begins at 00:00 in UTC; a + that was not quoted is a space; a number alone is no time."""
    if not isinstance(value, str):
        return value
    if not re.match(r"\d{4}-\d\d-\d\d", value):
        raise ValueError("is no time, such as 2026-01-31T08:00:00Z, and no day")
    return re.sub(r" (?=\d\d:\d\d$)", "+", value) if len(value) > len("2026-01-31") else f"{value}T00:00:00Z"


Moment = Annotated[Timestamp, BeforeValidator(_at_midnight)]


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
        """As the database is asked. Raises RequestValidationError."""
        given = self.model_dump(include={*Which.model_fields} - {"StudyDate"})
        return Listing(**given, StudyDate=None if self.StudyDate is None else _days(self.StudyDate))


class Filters(Which):
    """The same, and the order."""

    order: Annotated[Literal["newest"] | None, Field(description="Those that changed last come first.")] = None

    def listing(self) -> Listing:
        """As the database is asked. Raises RequestValidationError."""
        return replace(super().listing(), newest=self.order == "newest")


class Page(Filters):
    """Filters, and which page of what matches."""

    after: Annotated[str | None, Field(max_length=1024, description="`next` of the page before.")] = None
    limit: Annotated[int, IN_DIGITS, Field(ge=1, le=1000)] = 100


def add_listing(app: FastAPI, *, responses: Mapping[int | str, dict[str, Any]], dependencies: Sequence[Any]) -> None:
    """Add GET /series, and the same as CSV; `app.state` has database and follower."""
    described: dict[str, Any] = {"dependencies": dependencies}
    app.get("/series", responses={**responses}, **described)(list_series)
    text: dict[int | str, dict[str, Any]] = {200: {"content": {"text/csv": {}}, "description": "A line a series."}}
    app.get("/series.csv", responses={**responses} | text, response_class=StreamingResponse, **described)(series_as_csv)


def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


async def list_series(page: Annotated[Page, Query()], database: Annotated[Database, Depends(_database)]) -> SeriesPage:
    """Stored series, a page at a time (keyset pagination); what matches every filter.

    In order of SeriesInstanceUID; of StudyDate where that is asked for; of UpdatedAt where anything is asked for but
    PatientID, StudyInstanceUID, Modality and StudyDate.
    """
    listing = page.listing()
    after = None if page.after is None else _place(page.after, listing)
    records = await database.page(after=after, limit=page.limit + 1, listing=listing)
    some = records[: page.limit]
    return SeriesPage(series=some, next=_next(some[-1], listing) if len(records) > page.limit else None)


async def series_as_csv(
    filters: Annotated[Filters, Query()], database: Annotated[Database, Depends(_database)], request: Request
) -> StreamingResponse:
    """Every series that matches, as CSV (RFC 4180) with a line of names; in the order of GET /series.

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
    """The first and the last day."""
    found = DATES.fullmatch(text)
    if not found or not (found[1] or found[3]) or bool(found[1] and found[3]) > bool(found[2]):
        _refuse("StudyDate", "is no day and no range of days, such as 20260101-20260131")
    return found[1], found[3] if found[2] else found[1]


def _refuse(name: str, problem: str) -> NoReturn:
    raise RequestValidationError([{"loc": ("query", name), "msg": problem, "type": "value_error"}])


# --- places -----------------------------------------------------------------------------------------------------


def _next(record: SeriesRecord, listing: Listing) -> str:
    """The place behind a record: its UID, or what else the order goes by, which a client need not understand."""
    if listing.order == BY_UID:
        return record.SeriesInstanceUID
    content = json.dumps(_place_behind(record, listing), default=datetime.isoformat)
    return base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")


def _place_behind(record: SeriesRecord, listing: Listing) -> list[Any]:
    """The values of the order's columns."""
    known = searched(record.Attributes, None) | {name: getattr(record, name) for name in (*BY_UPDATE, *BY_DATE[1:])}
    return [known[name] for name in listing.order]


def _place(text: str, listing: Listing) -> list[Any]:
    """The values behind which a page begins. Raises RequestValidationError."""
    try:
        if listing.order == BY_UID:
            return [UID.validate_python(text)]
        content = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return [*PLACES[listing.order].validate_json(content)]
    except ValueError:
        _refuse("after", "is not `next` of a page that was asked for with the same filters and order")


# --- what is asked for by a wrong name --------------------------------------------------------------------------


def no_unknown_parameters(request: Request) -> None:
    """Refuse what would be ignored, and be taken for a filter that found everything. Raises RequestValidationError."""
    asked = set(request.query_params) - IGNORED
    if not asked:
        return
    described = request.app.openapi()["paths"][request.scope["route"].path_format][request.method.lower()]
    known = [one["name"] for one in described.get("parameters", ()) if one["in"] == "query"]
    if problems := [_unknown(name, known) for name in sorted(asked - {*known})]:
        raise RequestValidationError(problems)


def _unknown(name: str, known: Sequence[str]) -> dict[str, Any]:
    lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1)
    cure = f"did you mean {lower[near[0]]}?" if near else f"known: {', '.join(known) or 'none'}"
    return {"loc": ("query", name), "msg": f"is no parameter of this request; {cure}", "type": "unknown_parameter"}


KNOWN_ONLY: Dependency = Depends(no_unknown_parameters)
