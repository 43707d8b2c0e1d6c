"""HTTP in: series reports and queries. Run it with `uvicorn server:app`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import structlog
from fastapi import Body, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from db import Database, DatabaseUnavailable
from models import Completion, SeriesEvent, SeriesRecord, SeriesReport, Uid
from settings import ServerSettings, SettingsError, load
from telemetry import configure_logging, hide_query_strings

RETRY_AFTER_S = 2

log = structlog.get_logger()

MINIMAL_REPORT = {
    "SeriesInstanceUID": "1.2.826.0.1.3680043.8.498.1.1",
    "PatientID": "98890234",
    "PatientName": "Doe^Peter",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.1",
    "NumInstances": 7,
}
GATEWAY_REPORT = MINIMAL_REPORT | {
    "NumInstances": 2,
    "SOPInstanceUIDs": ["1.2.826.0.1.3680043.8.498.1.1.1", "1.2.826.0.1.3680043.8.498.1.1.2"],
    "Attributes": {"Modality": ["MR"], "SeriesDescription": ["T2 axial"]},
    "Revision": 1,
    "Verdict": "idle",
    "GatewayID": "gateway-1",
    "FirstReceivedAt": "2026-01-01T08:00:00Z",
    "LastReceivedAt": "2026-01-01T08:00:01Z",
}
EXAMPLES = {
    "minimal": {"summary": "The five fields that are enough", "value": MINIMAL_REPORT},
    "gateway": {"summary": "What the gateway sends", "value": GATEWAY_REPORT},
}


class SeriesPage(BaseModel):
    """One page of series, in order of SeriesInstanceUID."""

    series: list[SeriesRecord]
    next: Annotated[str | None, Field(description="Pass it as `after` to get the next page; null on the last one.")]


class Timeline(BaseModel):
    events: list[SeriesEvent]


class InstanceList(BaseModel):
    SOPInstanceUIDs: list[str]


class Completions(BaseModel):
    completions: list[Completion]


class Health(BaseModel):
    status: str


class Problem(BaseModel):
    detail: str


UNAVAILABLE: dict[int | str, dict[str, Any]] = {503: {"model": Problem, "description": "Not now; see Retry-After."}}


def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


Db = Annotated[Database, Depends(_database)]


def create_app(settings: ServerSettings | None = None) -> FastAPI:
    """The ASGI application. Settings come from the environment where none are given; raises SettingsError."""
    settings = settings or load(ServerSettings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        configure_logging()
        hide_query_strings()
        async with Database.open(settings.database_url) as app.state.database:
            log.info("server.started", database=settings.database_url)
            yield
        log.info("server.stopped")

    app = FastAPI(
        title="Series gateway",
        summary="One correct row per DICOM series.",
        lifespan=lifespan,
        max_body_size=settings.max_body_bytes,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # its logs would hold what was refused
    )
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(DatabaseUnavailable, _unavailable)
    app.post("/series", responses=UNAVAILABLE | {201: {"model": SeriesRecord}})(post_series)
    app.get("/series", responses=UNAVAILABLE)(list_series)
    app.get("/series/{SeriesInstanceUID}", responses=UNAVAILABLE | {404: {"model": Problem}})(get_series)
    app.get("/series/{SeriesInstanceUID}/timeline", responses=UNAVAILABLE | {404: {"model": Problem}})(get_timeline)
    app.get("/series/{SeriesInstanceUID}/instances", responses=UNAVAILABLE | {404: {"model": Problem}})(get_instances)
    app.get("/completions", responses=UNAVAILABLE)(list_completions)
    app.get("/health/live")(live)
    app.get("/health/ready", responses=UNAVAILABLE)(ready)
    return app


async def post_series(
    report: Annotated[SeriesReport, Body(openapi_examples=EXAMPLES)], database: Db, response: Response
) -> SeriesRecord:
    """Store one report: the union with what is known of the series. Repeating it changes nothing.

    201 when the series was new, 200 otherwise. A report that names another PatientID or StudyInstanceUID than the
    stored one is kept aside, changes nothing else, and shows in the answer's `Conflicts`.
    """
    record, created = await database.store(report)
    response.status_code = 201 if created else 200
    log.info(
        "series.stored",
        series_instance_uid=record.SeriesInstanceUID,
        instances=record.NumInstances,
        revision=record.Revision,
        verdict=report.Verdict,
        conflicts=record.Conflicts,
    )
    return record


async def list_series(  # noqa: PLR0913, PLR0917 - one parameter a query parameter
    database: Db,
    PatientID: Annotated[str | None, Query(max_length=1024)] = None,
    StudyInstanceUID: Annotated[Uid | None, Query()] = None,
    Modality: Annotated[str | None, Query(max_length=16)] = None,
    after: Annotated[Uid | None, Query(description="`next` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> SeriesPage:
    """Stored series, a page at a time (keyset pagination); each filter matches exactly."""
    records = await database.page(
        after=after, limit=limit + 1, PatientID=PatientID, StudyInstanceUID=StudyInstanceUID, Modality=Modality
    )
    page = records[:limit]
    return SeriesPage(series=page, next=page[-1].SeriesInstanceUID if len(records) > limit else None)


async def get_series(SeriesInstanceUID: Uid, database: Db) -> SeriesRecord:
    """One stored series."""
    record = await database.get(SeriesInstanceUID)
    if record is None:
        raise HTTPException(404, f"no series {SeriesInstanceUID}")
    return record


async def get_timeline(SeriesInstanceUID: Uid, database: Db) -> Timeline:
    """What happened to a series, in order of time: the evidence for its verdict."""
    await get_series(SeriesInstanceUID, database)
    return Timeline(events=await database.timeline(SeriesInstanceUID))


async def get_instances(SeriesInstanceUID: Uid, database: Db) -> InstanceList:
    """The SOP Instance UIDs known of a series, whichever gateway sent them."""
    await get_series(SeriesInstanceUID, database)
    return InstanceList(SOPInstanceUIDs=await database.instances(SeriesInstanceUID))


async def list_completions(database: Db) -> Completions:
    """How verdicts have fared, by source, policy and verdict: how many series, and how many got more images after."""
    return Completions(completions=await database.completions())


async def live() -> Health:
    """The process answers."""
    return Health(status="live")


async def ready(database: Db) -> Health:
    """The database answers; 503 otherwise."""
    await database.ping()
    return Health(status="ready")


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """422 that names each field and its problem, without the value: that may be a patient's."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - what this handler is registered for
    details = [{"loc": e["loc"], "msg": e["msg"], "type": e["type"]} for e in error.errors()]
    log.warning("report.refused", fields=[".".join(map(str, e["loc"])) for e in details])
    return JSONResponse({"detail": details}, 422)


async def _unavailable(_: Request, error: Exception) -> JSONResponse:
    log.error("database.unavailable", reason=str(error))
    return JSONResponse(
        {"detail": "the database is not available; try again"}, 503, {"Retry-After": str(RETRY_AFTER_S)}
    )


try:
    app = create_app()
except SettingsError as problem:
    raise SystemExit(f"server: {problem}") from None
