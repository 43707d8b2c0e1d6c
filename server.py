"""HTTP in: series reports, queries, changes. Run it with `uvicorn server:app`; see also `python server.py --help`."""

# series-gateway: Tab completes this (console/shell_completion.py)

if __name__ == "__main__":  # most commands need none of what follows
    from common.start import program

    program("api.cli.commands")

import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, Literal

import prometheus_client
import structlog
from fastapi import Body, Depends, FastAPI, Header, HTTPException, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from pydantic import Field
from starlette.middleware.cors import CORSMiddleware

from api import declarations
from api.access import Guard
from api.answers import ChangePage, Completions, Declaration, Declare, Health, InstanceList, Problem, Timeline
from api.conflicts import add_conflicts
from api.dicomweb.routes import add_searches
from api.examples import EXAMPLES
from api.follower import Follower
from api.lifespan import running
from api.listing import IN_DIGITS, KNOWN_ONLY, add_listing
from api.overview import add_overview
from api.patience import Patience, WholeBodies
from api.problems import invalid, unavailable
from api.sources import add_sources, measure_sources
from api.stream import DOCUMENTED, Events
from api.tolerance import Tolerance
from api.untold import add_untold
from api.webpage import add_webpage
from common import metrics
from common.logs import configure_logging
from common.settings import ServerSettings, SettingsError, load
from common.tracing import Spans
from common.version import version
from db import Database
from models import SeriesRecord, SeriesReport, Uid
from storage.engine import DatabaseUnavailable

METRICS_TYPE = prometheus_client.CONTENT_TYPE_LATEST
DOCS_FILES = "/web/docs"  # Swagger UI's: like the live page's they hold no data, and everyone gets them
OF_OTHER_ORIGINS: dict[str, Any] = {  # their pages read, with a key, and see why they may not
    "allow_methods": ["GET", "HEAD"],
    "allow_headers": ["*"],
    "expose_headers": ["Warning", "Retry-After", "WWW-Authenticate"],
}
log = structlog.get_logger()


def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


def _follower(request: Request) -> Follower:
    follower: Follower = request.app.state.follower
    return follower


Db = Annotated[Database, Depends(_database)]
Changes = Annotated[Follower, Depends(_follower)]
Limit = Annotated[int, IN_DIGITS, Query(ge=1, le=1000)]
Number = Annotated[int, IN_DIGITS, Field(ge=0, lt=2**63)]
Since = Number | Literal["now"]


def create_app(settings: ServerSettings | None = None) -> FastAPI:
    """The ASGI application. Settings come from the environment where none are given; raises SettingsError."""
    configure_logging()
    settings = settings or load(ServerSettings)
    patience = Patience()
    app = FastAPIOffline(
        redoc_url=None,
        redirect_slashes=False,
        static_url=DOCS_FILES,
        favicon_url="web/icon.svg",
        title="Series gateway",
        version=version(),
        summary="One correct row per DICOM series.",
        lifespan=partial(running, settings=settings, patience=patience),
        telemetry={"tracing": False, "metrics": False, "logs": False},  # its logs would hold what was refused
    )
    app.state.retrieve_url = settings.retrieve_url and str(settings.retrieve_url)
    app.state.viewer_url = settings.viewer_url or None
    app.add_middleware(Tolerance)
    app.add_middleware(WholeBodies, patience=patience, max_bytes=settings.max_body_bytes)
    app.add_middleware(Guard, settings=settings)
    if settings.origins:  # outside of the guard: a browser asks first, and without a key
        app.add_middleware(CORSMiddleware, allow_origins=settings.origins, **OF_OTHER_ORIGINS)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(DatabaseUnavailable, unavailable)
    _add_routes(app)
    return app


def _add_routes(app: FastAPI) -> None:
    """The guard says who may ask what (api/access.py); the bearer scheme here only documents it."""
    key = [Security(HTTPBearer(auto_error=False, description="A key of `python server.py keys create`."))]
    of_series = "/series/{SeriesInstanceUID:path}"  # a UID that is none of PS3.5 §9.1 may have a slash
    stored: dict[int | str, dict[str, Any]] = {201: {"model": SeriesRecord, "description": "Stored, and new."}}
    app.post("/series", responses=_answers(408, 413) | stored, dependencies=key)(post_series)
    asked = [*key, KNOWN_ONLY]
    add_listing(app, responses=_answers(), dependencies=asked)
    app.get(f"{of_series}/timeline", responses=_answers(404), dependencies=asked)(get_timeline)
    app.get(f"{of_series}/instances", responses=_answers(404), dependencies=asked)(get_instances)
    app.post(f"{of_series}/declaration", responses=_answers(404, 408, 413), dependencies=key)(declare)
    app.get(of_series, responses=_answers(404), dependencies=asked)(get_series)
    app.get("/completions", responses=_answers(), dependencies=asked)(list_completions)
    add_sources(app, responses=_answers(), dependencies=asked)
    unknown: dict[str, Any] = {"responses": _answers(), "unknown": _answers(404, 408, 413), "dependencies": key}
    add_conflicts(app, **unknown)
    app.get("/changes", responses=_answers(), dependencies=asked)(list_changes)
    app.get("/changes/stream", responses=_answers() | DOCUMENTED, response_class=Events, dependencies=asked)(
        stream_changes
    )
    add_searches(app, responses=_answers(), dependencies=key)
    add_untold(app, **unknown)
    add_overview(app, responses=_answers(408, 413), dependencies=key)
    add_webpage(app, responses=_answers(), dependencies=key)
    text: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}}}
    app.get("/metrics", response_class=Response, responses=_answers() | text, dependencies=key)(measured)
    app.get("/health/live")(live)
    app.get("/health/ready", responses={503: {"model": Problem}})(ready)


def _answers(*codes: int) -> dict[int | str, dict[str, Any]]:
    """What a route answers beside its own: 400, 401, 403 and 429 of the guard, 503 of the database, and `codes`."""
    return {code: {"model": Problem} for code in (*codes, 400, 401, 403, 429, 503)}


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


async def declare(
    SeriesInstanceUID: Uid, said: Declare, database: Db, follower: Changes, request: Request
) -> Declaration:
    """A person's word that a series is complete, or that it is not; who said so, and why, stands in its timeline.

    Gateways that have it open report it at once. Repeating it changes nothing.
    """
    done = await declarations.declare(database, SeriesInstanceUID, said, request.state.who)
    if done is None:
        raise HTTPException(404, declarations.unknown(said, SeriesInstanceUID))
    follower.stored()
    request.state.done["decision"] = said.Declared
    return done


async def list_completions(database: Db) -> Completions:
    """How verdicts have fared, by source, policy and verdict: how many series, and how many got more images after."""
    return Completions(completions=await database.completions())


async def list_changes(
    database: Db,
    since: Annotated[
        Since, Query(description="`last` of the page before; 0 for the beginning, `now` for the end.")
    ] = 0,
    limit: Limit = 100,
) -> ChangePage:
    """What changed behind a number, in order: each revision of each series once, those of one series in their order."""
    place = await _place(database, since)
    found = await database.changes(since=place, limit=limit + 1)
    page = found[:limit]
    return ChangePage(changes=page, last=page[-1].Number if page else place, done=len(found) <= limit)


async def _place(database: Database, since: Since) -> int:
    return await database.last_change() if since == "now" else since


async def stream_changes(
    database: Db,
    follower: Changes,
    since: Annotated[Since, Query(description="As in /changes.")] = 0,
    last_event_id: Annotated[
        Number | None, Header(description="Sent by whoever reconnects; wins over `since`.")
    ] = None,
) -> Events:
    """The same as server-sent events, those to come included: `id` is the number, `data` the change."""
    place = await _place(database, since) if last_event_id is None else last_event_id

    async def told() -> AsyncIterator[bytes]:
        with metrics.watchers.track_inprogress(), contextlib.suppress(DatabaseUnavailable):  # the client asks again
            async for events in follower.events(place):
                yield events

    return Events(told())


async def measured(database: Db) -> Response:
    """What is measured of this process, for Prometheus. Names no patient."""
    with contextlib.suppress(DatabaseUnavailable):  # which is a number of its own
        metrics.incomplete_series.set(await database.latest.incomplete(datetime.now(UTC)))
        await measure_sources(database)
    return Response(prometheus_client.generate_latest(metrics.SERVER), media_type=METRICS_TYPE)


async def live() -> Health:
    """The process answers."""
    return Health(status="live", version=version())


async def ready(database: Db) -> Health:
    """The database answers; 503 otherwise."""
    await database.ping()
    return Health(status="ready", version=version())


try:
    app = create_app()
except SettingsError as problem:
    raise SystemExit(f"server: {problem}") from None
