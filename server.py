"""HTTP in: series reports, queries, changes. Run it with `uvicorn server:app`; see also `python server.py --help`."""

# series-gateway: Tab completes this (console/shell_completion.py)

if __name__ == "__main__":  # most commands need none of what follows
    from common.start import program

    program("api.cli.commands")

from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from api import (
    changes,
    conflicts,
    gateways,
    health,
    listing,
    overview,
    series,
    sources,
    stored,
    studies,
    untold,
    webpage,
)
from api.access import Guard, Scopes
from api.dicomweb.routes import searches
from api.lifespan import running
from api.patience import Patience, WholeBodies
from api.problems import invalid, unavailable
from api.tolerance import Tolerance
from common.logs import configure_logging
from common.settings import ServerSettings, SettingsError, load
from common.version import version
from storage.engine import DatabaseUnavailable

ROUTERS = (
    series.router,  # reports in, one series out
    listing.router,
    studies.router,
    sources.router,
    conflicts.router,
    changes.router,
    searches,
    untold.router,
    gateways.router,  # heartbeats in, orders out
    stored.router,
    overview.router,
    webpage.router,
    health.router,
)
DOCS_FILES = "/web/docs"  # Swagger UI's: like the live page's they hold no data, and everyone gets them
OTHER_ORIGINS: dict[str, Any] = {  # their pages read, with a key, and see why they may not
    "allow_methods": ["GET", "HEAD"],
    "allow_headers": ["*"],
    "expose_headers": ["Warning", "Retry-After", "WWW-Authenticate"],
}


def create_app(settings: ServerSettings | None = None) -> FastAPI:
    """Make the ASGI application. Settings come from the environment if none are given; raises SettingsError.

    A request goes through CORS, the guard, the body's time-out and what clients say in several ways, to its route.
    """
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
    for router in ROUTERS:
        app.router.routes.extend(router.routes)  # as they are: including a router builds each of its routes anew
    app.mount("/web", StaticFiles(directory=webpage.FILES), name="web")
    app.add_middleware(Tolerance)
    app.add_middleware(WholeBodies, patience=patience, max_bytes=settings.max_body_bytes)
    app.add_middleware(Guard, settings=settings, scopes=Scopes(app.routes))
    if settings.origins:  # outside of the guard: a browser asks first, and without a key
        app.add_middleware(CORSMiddleware, allow_origins=settings.origins, **OTHER_ORIGINS)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(DatabaseUnavailable, unavailable)
    return app


try:
    app = create_app()
except SettingsError as problem:
    raise SystemExit(f"server: {problem}") from None
