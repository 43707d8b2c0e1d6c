"""One series: its reports taken in, its record, timeline and images, and a person's word about it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Body, HTTPException, Request, Response

from api import declarations
from api.answers import Declaration, Declare, InstanceList, Timeline
from api.examples import EXAMPLES
from api.parameters import KNOWN_ONLY
from api.routing import DECIDES, READS, WRITES, Changes, Db, Responses, answers
from common.tracing import Spans
from models import SeriesRecord, SeriesReport, Uid

ONE = "/series/{SeriesInstanceUID:path}"  # a UID that is none of PS3.5 §9.1 may have a slash
STORED: Responses = {201: {"model": SeriesRecord, "description": "Stored, and new."}}
read: dict[str, Any] = {"responses": answers(404), "dependencies": [READS, KNOWN_ONLY]}
log = structlog.get_logger()
router = APIRouter()


@router.post("/series", responses=answers(408, 413) | STORED, dependencies=[WRITES])
async def post_series(
    report: Annotated[SeriesReport, Body(openapi_examples=EXAMPLES)],
    database: Db,
    follower: Changes,
    request: Request,
    response: Response,
) -> SeriesRecord:
    """Store one report: the union with what is known of the series. Repeating it changes nothing.

    201 when the series was new, 200 otherwise. A report that names another PatientID or StudyInstanceUID than the
    stored one is kept aside, changes nothing else, and shows in the answer's `Conflicts`.
    """
    spans: Spans | None = request.app.state.spans
    tracing: AbstractContextManager[dict[str, str]] = spans.stored(request.headers) if spans else nullcontext({})
    with tracing as trace:
        record, created = await database.store(report)
    follower.stored()
    response.status_code = 201 if created else 200
    log.info(
        "series.stored",
        series_instance_uid=record.SeriesInstanceUID,
        instances=record.NumInstances,
        revision=record.Revision,
        verdict=report.Verdict,
        conflicts=record.Conflicts,
        **trace,
    )
    return record


@router.get(f"{ONE}/timeline", **read)
async def get_timeline(SeriesInstanceUID: Uid, database: Db) -> Timeline:
    """Return what happened to a series, in order of time: the evidence for its verdict."""
    await get_series(SeriesInstanceUID, database)
    return Timeline(events=await database.timeline(SeriesInstanceUID))


@router.get(f"{ONE}/instances", **read)
async def get_instances(SeriesInstanceUID: Uid, database: Db) -> InstanceList:
    """Return the SOP Instance UIDs known of a series, whichever gateway sent them."""
    await get_series(SeriesInstanceUID, database)
    return InstanceList(SOPInstanceUIDs=await database.instances(SeriesInstanceUID))


@router.post(f"{ONE}/declaration", responses=answers(404, 408, 413), dependencies=[DECIDES])
async def declare(
    SeriesInstanceUID: Uid, said: Declare, database: Db, follower: Changes, request: Request
) -> Declaration:
    """Take a person's word that a series is complete, or that it is not; its timeline says who said so, and why.

    Gateways that have it open report it at once. Repeating it changes nothing.
    """
    done = await declarations.declare(database, SeriesInstanceUID, said, request.state.who)
    if done is None:
        raise HTTPException(404, await declarations.unknown(database, said, SeriesInstanceUID))
    follower.stored()
    request.state.done["decision"] = said.Declared
    return done


@router.get(ONE, **read)
async def get_series(SeriesInstanceUID: Uid, database: Db) -> SeriesRecord:
    """Return one stored series."""
    record = await database.get(SeriesInstanceUID)
    if record is None:
        raise HTTPException(404, f"no series {SeriesInstanceUID}")
    return record
