"""GET /studies: studies, each by what its series come to; one study, its series and timeline, and a person's word."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import Field

from api import declarations, table
from api.answers import Declare, SeriesPage, StudyCounts, StudyDeclaration, StudyEvent, StudyPage, StudyTimeline
from api.listing import AS_CSV, Common, Ordered, Paged, as_csv, one_page, packed, refuse, unpacked
from api.parameters import KNOWN_ONLY, NO_CONTROL
from api.routing import DECIDES, READS, WRITES, Changes, Db, answers
from common import metrics
from db import Database
from models import Positive, Timestamp, Uid
from storage.answers import StudyRecord
from storage.listing import Listing, StudyListing
from storage.study_views import SERIES_OF_TIMELINE

UNKNOWN = "no study {}"
ONE = "/studies/{StudyInstanceUID:path}"  # a UID that is none of PS3.5 §9.1 may have a slash
read: dict[str, Any] = {"responses": answers(404), "dependencies": [READS, KNOWN_ONLY]}
log = structlog.get_logger()
router = APIRouter()


class WhichStudies(Common, Ordered):
    """Which studies, and their order."""

    AccessionNumber: Annotated[str | None, Field(max_length=64, pattern=NO_CONTROL)] = None
    Incomplete: Annotated[
        bool | None,
        Field(
            description="Images of a series, a required series or what the PACS has are missing, or are not. Of "
            "a study that a person has declared complete nothing is."
        ),
    ] = None

    def listing(self) -> StudyListing:
        """Return the question for the database. Raises RequestValidationError."""
        names = WhichStudies.model_fields.keys() - Ordered.model_fields.keys()
        return StudyListing(**self.given(names), newest=self.newest)


class PageOfStudies(WhichStudies, Paged):
    """Filters, and which page of what matches."""


@router.get("/studies", responses=answers(), dependencies=[READS, KNOWN_ONLY])
async def list_studies(page: Annotated[PageOfStudies, Query()], database: Db) -> StudyPage:
    """List studies, a page at a time (keyset pagination); what matches every filter.

    In order of StudyInstanceUID; of StudyDate where that is asked for; of UpdatedAt where Verdict, Source, Incomplete
    or a last change is. `Modality` is that of any of the study's series.
    """
    some, following = await one_page(page, page.listing(), database.studies)
    return StudyPage(studies=some, next=following)


@router.get(
    "/studies.csv",
    responses=answers() | AS_CSV,
    response_class=StreamingResponse,
    dependencies=[READS, KNOWN_ONLY],
)
async def studies_as_csv(which: Annotated[WhichStudies, Query()], database: Db, request: Request) -> StreamingResponse:
    """List every study that matches, as CSV (RFC 4180) with a line of names; in the order of GET /studies.

    A cell that a spreadsheet would compute (=, +, -, @ in front) has an apostrophe before it.
    """
    return await as_csv(which.listing(), database.studies, table.STUDIES, request)


@router.get(f"{ONE}/series", **read)
async def list_series_of_study(StudyInstanceUID: Uid, page: Annotated[Paged, Query()], database: Db) -> SeriesPage:
    """List the stored series of a study, a page at a time, in order of SeriesInstanceUID."""
    await get_study(StudyInstanceUID, database)
    some, following = await one_page(page, Listing(StudyInstanceUID=StudyInstanceUID), database.page)
    return SeriesPage(series=some, next=following)


@router.get(f"{ONE}/timeline", **read)
async def get_study_timeline(StudyInstanceUID: Uid, page: Annotated[Paged, Query()], database: Db) -> StudyTimeline:
    """Return what happened to a study and its series, in order of time, a page at a time: the evidence for its verdict.

    Of a study of more than 1000 series, those of the first 1000 by their UIDs.
    """
    study = await get_study(StudyInstanceUID, database)
    after = None if page.after is None else _place(page.after)
    rows = await database.study_views.events(StudyInstanceUID, after, page.limit + 1)
    some = rows[: page.limit]
    return StudyTimeline(
        events=[StudyEvent.model_validate({**row, **_about(row)}) for row in some],
        next=packed([some[-1]["At"], some[-1]["Id"]]) if len(rows) > page.limit else None,
        NotShown=max(0, study.NumSeries - SERIES_OF_TIMELINE),
    )


def _about(event: Mapping[str, Any]) -> dict[str, str | None]:
    """Return which series an event is about: what is told of the study stands at one of its series."""
    return {"SeriesInstanceUID": None} if event["Event"].startswith("study.") else {}


def _place(text: str) -> list[Any]:
    """Return the time and Id behind which a page of events begins. Raises RequestValidationError."""
    try:
        return unpacked(text, (Timestamp, Positive))
    except ValueError:
        refuse("after", "is not `next` of a page of this timeline")


@router.post(f"{ONE}/declaration", responses=answers(404, 408, 413), dependencies=[DECIDES])
async def declare_study(
    StudyInstanceUID: Uid, said: Declare, database: Db, follower: Changes, request: Request
) -> StudyDeclaration:
    """Take a person's word that a study is complete, or that it is not; its timeline says who said so, and why.

    Gateways that have series of it open report them at once. Repeating it changes nothing.
    """
    done = await declarations.declare_study(database, StudyInstanceUID, said, request.state.who)
    if done is None:
        raise HTTPException(404, await declarations.unknown_study(database, StudyInstanceUID))
    follower.stored()
    request.state.done["decision"] = said.Declared
    return done


@router.post(f"{ONE}/counts", responses=answers(404, 408, 413), dependencies=[WRITES])
async def post_counts(StudyInstanceUID: Uid, said: StudyCounts, database: Db, follower: Changes) -> StudyRecord:
    """Take what a PACS has of a study, as a gateway has asked it. Returns the study as it is then."""
    record = await database.count_study(StudyInstanceUID, said, said.GatewayID)
    if record is None:
        raise HTTPException(404, UNKNOWN.format(StudyInstanceUID))
    follower.stored()
    return record


@router.get(ONE, **read)
async def get_study(StudyInstanceUID: Uid, database: Db) -> StudyRecord:
    """Return one study: what its stored series come to, and whether that is all of it."""
    record = await database.study(StudyInstanceUID)
    if record is None:
        raise HTTPException(404, UNKNOWN.format(StudyInstanceUID))
    return record


async def measure_studies(database: Database) -> None:
    """Let Prometheus read how many studies are open, and for how long one has been incomplete."""
    now = datetime.now(UTC)
    metrics.open_studies.set(await database.study_views.count_open())
    since = await database.study_views.incomplete_since(now)
    metrics.incomplete_study_seconds.set(max(0.0, (now - since).total_seconds()) if since else 0.0)
