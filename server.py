"""HTTP in: series reports, queries, changes. Run it with `uvicorn server:app`; see also `python server.py --help`."""

# series-gateway: Tab completes this (console/shell_completion.py)

if __name__ == "__main__":  # most commands need none of what follows
    from common.start import program

    program("api.cli.commands")

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from typing import Annotated, Any

import prometheus_client
import structlog
from fastapi import Body, Depends, FastAPI, Header, HTTPException, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from fastapi.sse import EventSourceResponse, ServerSentEvent
from fastapi_offline import FastAPIOffline
from pydantic import Field

from api import overview, webpage
from api.access import RETRY_AFTER_S, Guard, audit_log
from api.dicomweb import routes
from api.follower import Follower, ended_by_signals
from api.listeners import notice_the_dead
from api.operations import operations
from api.patience import Patience, WholeBodies
from api.webhooks import REQUEST_TIMEOUT_S, Webhooks
from common import metrics
from common.control import serve_control
from common.errors import GatewayError
from common.logs import configure_logging
from common.outgoing import http_client
from common.settings import ServerSettings, SettingsError, load, without_password
from common.tracing import Spans, open_spans
from common.version import version
from db import Database
from models import (
    ChangePage,
    Completions,
    ConflictPage,
    GatewayState,
    Health,
    InstanceList,
    Problem,
    Resolve,
    SeriesPage,
    SeriesRecord,
    SeriesReport,
    Timeline,
    Uid,
    valid_unicode,
)
from storage.engine import DatabaseUnavailable
from storage.keys import Keys

METRICS_TYPE = prometheus_client.CONTENT_TYPE_LATEST
DOCS_FILES = "/web/docs"  # Swagger UI's: like the live page's they hold no data, and everyone gets them
MAX_PROBLEMS = 20  # that one answer names
MAX_NAME = 64  # characters of a field that one names
KNOWN_FIELDS = set(SeriesReport.model_fields) | set(GatewayState.model_fields)
KNOWN_FIELDS |= {"after", "limit", "since", "Modality", "digest", "Resolution"}
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


def _answers(*codes: int) -> dict[int | str, dict[str, Any]]:
    """What a route answers beside its own: 401, 403 and 429 of the guard, 503 of the database, and `codes`."""
    return {code: {"model": Problem} for code in (*codes, 401, 403, 429, 503)}


def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


def _follower(request: Request) -> Follower:
    follower: Follower = request.app.state.follower
    return follower


Db = Annotated[Database, Depends(_database)]
Changes = Annotated[Follower, Depends(_follower)]
Limit = Annotated[int, Query(ge=1, le=1000)]
NO_CONTROL = r"^[^\x00-\x1f\x7f]*$"
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Number = Annotated[int, Field(ge=0, lt=2**63)]


def create_app(settings: ServerSettings | None = None) -> FastAPI:
    """The ASGI application. Settings come from the environment where none are given; raises SettingsError."""
    configure_logging()
    settings = settings or load(ServerSettings)
    patience = Patience()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with _told():
            async with AsyncExitStack() as stack:
                app.state.audit = stack.enter_context(audit_log(settings.audit_path))
                app.state.spans = await stack.enter_async_context(open_spans("series-server", Spans))
                database = app.state.database = await stack.enter_async_context(Database.open(settings))
                http = await stack.enter_async_context(http_client(timeout=REQUEST_TIMEOUT_S))
                tasks = await stack.enter_async_context(asyncio.TaskGroup())
                follower = app.state.follower = Follower(database)
                app.state.keys = Keys(database.engine)
                app.state.overview = overview.Overview(database, follower)
                tasks.create_task(_or_stop(follower.run()), name="follow")
                tasks.create_task(_or_stop(patience.run(follower)), name="patience")
                tasks.create_task(_or_stop(notice_the_dead(follower)), name="listeners")
                tasks.create_task(_or_stop(Webhooks(database, follower, http).run()), name="webhooks")
                stack.callback(follower.end)
                await stack.enter_async_context(_administered(settings, database))
                stack.enter_context(ended_by_signals(follower))
                log.info("server.started", database=without_password(settings.database_url), version=version())
                yield
        log.info("server.stopped")

    app = FastAPIOffline(
        redoc_url=None,
        static_url=DOCS_FILES,
        favicon_url="web/icon.svg",
        title="Series gateway",
        version=version(),
        summary="One correct row per DICOM series.",
        lifespan=lifespan,
        max_body_size=settings.max_body_bytes,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # its logs would hold what was refused
    )
    app.state.retrieve_url = settings.retrieve_url and str(settings.retrieve_url)
    app.add_middleware(WholeBodies, patience=patience)
    app.add_middleware(Guard, settings=settings)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(DatabaseUnavailable, _unavailable)
    _add_routes(app)
    return app


def _add_routes(app: FastAPI) -> None:
    """The guard says who may ask what (api/access.py); the bearer scheme here only documents it."""
    key = [Security(HTTPBearer(auto_error=False, description="A key of `python server.py keys create`."))]
    of_series = "/series/{SeriesInstanceUID}"
    stored: dict[int | str, dict[str, Any]] = {201: {"model": SeriesRecord, "description": "Stored, and new."}}
    app.post("/series", responses=_answers(400, 408, 413) | stored, dependencies=key)(post_series)
    app.get("/series", responses=_answers(), dependencies=key)(list_series)
    app.get(of_series, responses=_answers(404), dependencies=key)(get_series)
    app.get(f"{of_series}/timeline", responses=_answers(404), dependencies=key)(get_timeline)
    app.get(f"{of_series}/instances", responses=_answers(404), dependencies=key)(get_instances)
    app.get("/completions", responses=_answers(), dependencies=key)(list_completions)
    app.get("/conflicts", responses=_answers(), dependencies=key)(list_conflicts)
    app.post("/conflicts/{digest}", responses=_answers(400, 404, 408, 413), dependencies=key)(resolve_conflict)
    app.get("/changes", responses=_answers(), dependencies=key)(list_changes)
    app.get("/changes/stream", responses=_answers(), response_class=EventSourceResponse, dependencies=key)(
        stream_changes
    )
    routes.add_routes(app, responses=_answers(), dependencies=key)
    overview.add_routes(app, responses=_answers(400, 408, 413), dependencies=key)
    webpage.add_routes(app, responses=_answers(), dependencies=key)
    text: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}}}
    app.get("/metrics", response_class=Response, responses=_answers() | text, dependencies=key)(measured)
    app.get("/health/live")(live)
    app.get("/health/ready", responses={503: {"model": Problem}})(ready)


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


async def list_series(  # noqa: PLR0913, PLR0917 - one parameter a query parameter
    database: Db,
    PatientID: Annotated[str | None, Query(max_length=256, pattern=NO_CONTROL)] = None,
    StudyInstanceUID: Annotated[Uid | None, Query()] = None,
    Modality: Annotated[str | None, Query(max_length=16, pattern=NO_CONTROL)] = None,
    after: Annotated[Uid | None, Query(description="`next` of the page before.")] = None,
    limit: Limit = 100,
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


async def list_conflicts(
    database: Db,
    resolved: Annotated[bool, Query(description="Those that are resolved instead of those that are open.")] = False,
    after: Annotated[Digest | None, Query(description="`next` of the page before.")] = None,
    limit: Limit = 100,
) -> ConflictPage:
    """Reports that were kept aside because they name another patient or study for a known series."""
    found = await database.conflicts(after=after, limit=limit + 1, resolved=resolved)
    page = found[:limit]
    return ConflictPage(conflicts=page, next=page[-1].Digest if len(found) > limit else None)


async def resolve_conflict(
    digest: Digest, resolution: Resolve, database: Db, follower: Changes, request: Request
) -> SeriesRecord:
    """Settle a conflict, as an operator decides. What was stored before stays in the conflict."""
    record = await database.resolve(digest, resolution.Resolution, request.state.who)
    if record is None:
        raise HTTPException(404, "no open conflict with this digest")
    follower.stored()
    metrics.conflicts_resolved.labels(resolution.Resolution).inc()
    log.info("conflict.resolved", series_instance_uid=record.SeriesInstanceUID, decision=resolution.Resolution)
    return record


async def list_changes(
    database: Db,
    since: Annotated[Number, Query(description="`last` of the page before; 0 for the beginning.")] = 0,
    limit: Limit = 100,
) -> ChangePage:
    """What changed behind a number, in order: each revision of each series once, those of one series in their order."""
    found = await database.changes(since=since, limit=limit + 1)
    page = found[:limit]
    return ChangePage(changes=page, last=page[-1].Number if page else since, done=len(found) <= limit)


async def stream_changes(
    follower: Changes,
    since: Annotated[Number, Query(description="As in /changes.")] = 0,
    last_event_id: Annotated[
        Number | None, Header(description="Sent by whoever reconnects; wins over `since`.")
    ] = None,
) -> AsyncIterator[ServerSentEvent]:
    """The same as server-sent events, those to come included: `id` is the number, `data` the change."""
    with metrics.watchers.track_inprogress(), contextlib.suppress(DatabaseUnavailable):  # the client asks again
        async for change in follower.changes(since if last_event_id is None else last_event_id):
            yield ServerSentEvent(data=change, event="change", id=str(change.Number))


async def measured() -> Response:
    """What is measured of this process, for Prometheus. Names no patient."""
    return Response(prometheus_client.generate_latest(metrics.SERVER), media_type=METRICS_TYPE)


async def live() -> Health:
    """The process answers."""
    return Health(status="live", version=version())


async def ready(database: Db) -> Health:
    """The database answers; 503 otherwise."""
    await database.ping()
    return Health(status="ready", version=version())


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """422 that names each field and its problem, without the value: that may be a patient's."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - what this handler is registered for
    details = [
        {"loc": [*map(_shown, e["loc"])], "msg": _plain(e["type"], e["msg"]), "type": e["type"]}
        for e in error.errors()[:MAX_PROBLEMS]
    ]
    fields = {str(e["loc"][1]) for e in details if len(e["loc"]) > 1 and e["loc"][1] in KNOWN_FIELDS}
    log.warning("report.refused", fields=sorted(fields), problems=len(details))
    return JSONResponse({"detail": details}, 422)


def _plain(kind: str, message: str) -> str:
    """A problem in words: a regular expression is none."""
    return "does not have the form that it must have: see /docs" if kind == "string_pattern_mismatch" else message


def _shown(part: str | int) -> str | int:
    """Part of where a problem is: a name there can be anything."""
    return valid_unicode(part)[:MAX_NAME] if isinstance(part, str) else part


async def _unavailable(_: Request, error: Exception) -> JSONResponse:
    log.error("database.unavailable", reason=str(error))
    return JSONResponse(
        {"detail": "the database is not available; try again"}, 503, {"Retry-After": str(RETRY_AFTER_S)}
    )


@contextmanager
def _told() -> Iterator[None]:
    """Say why the server does not start, or goes down, before uvicorn shows a traceback with texts of exceptions."""
    try:
        yield
    except GatewayError as error:
        log.error("server.refused", reason=str(error))
        raise
    except Exception:
        log.exception("server.failed")
        raise


async def _or_stop(work: Coroutine[Any, Any, None]) -> None:
    """Stop the process where `work` fails: uvicorn would go on serving without it, and without the file's lock."""
    try:
        await work
    except Exception:  # a bug, whatever it is
        log.exception("server.failed")
        os.kill(os.getpid(), signal.SIGTERM)


def _administered(settings: ServerSettings, database: Database) -> AbstractAsyncContextManager[None]:
    """On SQLite this process alone may write: it does what `python server.py` asks for on a Unix socket."""
    path = settings.sqlite_path
    return serve_control(path, operations(database)) if path else nullcontext()


try:
    app = create_app()
except SettingsError as problem:
    raise SystemExit(f"server: {problem}") from None
