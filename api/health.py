"""How the process is: what it measures, for Prometheus, and whether it answers, for load balancers."""

import contextlib
from datetime import UTC, datetime

import prometheus_client
from fastapi import APIRouter, Response

from api.answers import Health, Problem
from api.routing import Db, Responses, answers, needs
from api.sources import measure_sources
from api.studies import measure_studies
from common import metrics
from common.version import version
from storage.engine import DatabaseUnavailable

METRICS_TYPE = prometheus_client.CONTENT_TYPE_LATEST
AS_TEXT: Responses = {200: {"content": {"text/plain": {}}}}
router = APIRouter()


@router.get("/metrics", response_class=Response, responses=answers() | AS_TEXT, dependencies=[needs("metrics:read")])
async def measured(database: Db) -> Response:
    """Return what is measured of this process, for Prometheus. Names no patient."""
    with contextlib.suppress(DatabaseUnavailable):  # which is a number of its own
        metrics.incomplete_series.set(await database.latest.incomplete(datetime.now(UTC)))
        await measure_studies(database)
        await measure_sources(database)
    return Response(prometheus_client.generate_latest(metrics.SERVER), media_type=METRICS_TYPE)


@router.get("/health/live")
async def live() -> Health:
    """Say that the process answers."""
    return Health(status="live", version=version())


@router.get("/health/ready", responses={503: {"model": Problem}})
async def ready(database: Db) -> Health:
    """Say that the database answers; 503 otherwise."""
    await database.ping()
    return Health(status="ready", version=version())
