"""What a server process has open, and what runs in it beside its answers; opened first, closed last."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from typing import Any

import structlog
from fastapi import FastAPI

from api.access import audit_log
from api.deciding import decide_due
from api.follower import Follower, ended_by_signals
from api.listeners import notice_the_dead
from api.operations import operations
from api.overview import Overview
from api.patience import Patience
from api.refusals import Refusals
from api.webhooks import REQUEST_TIMEOUT_S, Teller
from common.control import serve_control
from common.errors import SeriesGatewayError
from common.outgoing import http_client
from common.settings import ServerSettings, without_password
from common.tracing import Spans, open_spans
from common.version import version
from db import Database

log = structlog.get_logger()


@asynccontextmanager
async def running(app: FastAPI, settings: ServerSettings, patience: Patience) -> AsyncIterator[None]:
    """Open what the routes find in `app.state`, and run what follows changes, until uvicorn is told to stop."""
    with _told():
        async with AsyncExitStack() as stack:
            app.state.audit = stack.enter_context(audit_log(settings.audit_path))
            app.state.spans = await stack.enter_async_context(open_spans("series-server", Spans))
            database = app.state.database = await stack.enter_async_context(Database.open(settings))
            await _warn_of_power_cuts(database)
            http = await stack.enter_async_context(
                http_client(trust_env=settings.proxy_from_env, timeout=REQUEST_TIMEOUT_S)
            )
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            follower = app.state.follower = Follower(database)
            app.state.keys = database.keys
            app.state.overview = Overview(database, follower)
            refusals = app.state.refusals = Refusals(database, follower)
            tasks.create_task(_or_stop(follower.run()), name="follow")
            tasks.create_task(_or_stop(patience.run(follower)), name="patience")
            tasks.create_task(_or_stop(notice_the_dead(follower)), name="listeners")
            tasks.create_task(_or_stop(refusals.run()), name="refusals")
            tasks.create_task(_or_stop(decide_due(database, follower)), name="studies")
            tasks.create_task(_or_stop(Teller(database, follower, http).run()), name="webhooks")
            stack.callback(follower.end)
            await stack.enter_async_context(_administered(settings, database))
            stack.enter_context(ended_by_signals(follower))
            log.info("server.started", database=without_password(settings.database_url), version=version())
            yield
    log.info("server.stopped")


@contextmanager
def _told() -> Iterator[None]:
    """Say why the server does not start, or goes down, before uvicorn shows a traceback with texts of exceptions."""
    try:
        yield
    except SeriesGatewayError as error:
        log.error("server.refused", reason=str(error))
        raise
    except Exception:
        log.exception("server.failed")
        raise


async def _warn_of_power_cuts(database: Database) -> None:
    """Log if PostgreSQL says that it has committed what a power cut can take: gateways forget it then."""
    if off := await database.unkept_promises():
        cure = "; ".join(f"ALTER SYSTEM SET {name} = on" for name in off)
        log.warning("database.not_durable", off=off, cure=f"{cure}; SELECT pg_reload_conf()")


async def _or_stop(work: Coroutine[Any, Any, None]) -> None:
    """Stop the process where `work` fails: uvicorn would go on serving without it, and without the file's lock."""
    try:
        await work
    except Exception:  # a bug, whatever it is
        log.exception("server.failed")
        os.kill(os.getpid(), signal.SIGTERM)


def _administered(settings: ServerSettings, database: Database) -> AbstractAsyncContextManager[None]:
    """Do what `python server.py` asks for on a Unix socket: on SQLite this process alone may write."""
    path = settings.sqlite_path
    return serve_control(path, operations(database)) if path else nullcontext()
