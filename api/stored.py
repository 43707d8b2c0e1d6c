"""GET /overview/series: the live page's table, the newest first, or what filters and words find."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from api.answers import StoredPage, StoredSeries, StoredStudy
from api.listing import Which
from api.parameters import IN_DIGITS, KNOWN_ONLY, NO_CONTROL
from api.routing import READS, Db, answers
from db import Database
from storage.listing import Listing
from storage.stored import LOOKED_THROUGH, Wanted, words_of

MAX_SKIP = 1000  # what stands further behind is for GET /series

router = APIRouter(tags=["Overview"])


class Asked(Which):
    """Filters, words, an order, and which page."""

    search: Annotated[
        str,
        Field(
            max_length=256,
            pattern=NO_CONTROL,
            description="Words, each of which stands in the patient's name (in any case), PatientID, accession number "
            "or a description, or begins the study date or a UID.",
        ),
    ] = ""
    sort: Annotated[
        Literal["Stored", "Patient", "StudyDate", "Modality", "Verdict", "Source"], Field(description="By what.")
    ] = "Stored"
    descending: Annotated[bool, Field(description="The last come first.")] = True
    before: Annotated[int | None, IN_DIGITS, Field(ge=1, lt=2**63, description="`next` of the newest.")] = None
    skip: Annotated[int, IN_DIGITS, Field(ge=0, le=MAX_SKIP, description="`next` of anything else.")] = 0
    limit: Annotated[int, IN_DIGITS, Field(ge=1, le=200)] = 50

    def wanted(self) -> Wanted:
        """Return the question for the database. Raises RequestValidationError."""
        return Wanted(self.listing(), self.search, self.sort, self.descending)


@router.get("/overview/series", responses=answers(408, 413), dependencies=[READS, KNOWN_ONLY])
async def list_stored(asked: Annotated[Asked, Query()], database: Db) -> StoredPage:
    """List stored series, those that changed last first (`before` a number), or what filters and words find."""
    wanted = asked.wanted()
    if wanted == Wanted(Listing()):
        return await _newest(database, asked.before, asked.limit)
    rows = await database.stored.found(wanted, asked.limit + 1, asked.skip)
    behind, more = asked.skip + asked.limit, len(rows) > asked.limit
    series, studies = await shown(database, rows[: asked.limit])
    return StoredPage(
        series=series,
        studies=studies,
        next=behind if more and behind <= MAX_SKIP else None,
        more=more and behind > MAX_SKIP,
        LookedThrough=LOOKED_THROUGH if words_of(wanted.words) else None,
    )


async def _newest(database: Database, before: int | None, limit: int) -> StoredPage:
    """Return a page of the series that changed last."""
    if before is None:
        await database.last_change()  # which numbers them
    rows = await database.latest.newest(limit + 1, before)
    following = rows[limit - 1]["Number"] if len(rows) > limit else None
    series, studies = await shown(database, rows[:limit])
    return StoredPage(series=series, studies=studies, next=following)


async def shown(database: Database, rows: Sequence[Mapping[str, Any]]) -> tuple[list[StoredSeries], list[StoredStudy]]:
    """Return rows as the page has them, and their studies."""
    found = await database.study_views.shown({row["StudyInstanceUID"] for row in rows})
    totals = {study["StudyInstanceUID"]: study["NumSeries"] for study in found}
    series = [
        StoredSeries.model_validate({**row, "SeriesInStudy": totals.get(row["StudyInstanceUID"], 1)}) for row in rows
    ]
    return series, [StoredStudy.model_validate(study) for study in found]
