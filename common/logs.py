"""Logs and metrics, set up once. Events are `noun.verb_past` with fields; never patient data.

Every line goes the same way, whoever writes it: uvicorn, SQLAlchemy, asyncio, an exception that nobody caught. The text
of an exception can hold what it choked on, so of exceptions only their kinds and places are written.
"""

import asyncio
import logging
import sys
import threading
import traceback
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import prometheus_client
import structlog
from structlog.typing import EventDict, Processor

from common import metrics
from common.errors import GatewayError, printable
from common.settings import GatewaySettings

THEIR_OWN = ("uvicorn", "uvicorn.error", "uvicorn.access")  # loggers that uvicorn gives handlers of their own
MAX_SCRAPERS = 10  # connections to the metrics at once
MAX_REQUEST_BYTES = 2**14
SCRAPE_TIMEOUT_S = 5.0
ROOT = f"{Path(__file__).parents[1]}/"
FRAMES = 8  # of a traceback, the innermost

log = structlog.get_logger()


class CannotServeMetrics(GatewayError):
    """The port of the metrics cannot be bound."""


class _Stderr:
    """Whatever sys.stderr is now: a table on the terminal takes its place for a while.

    A line that cannot be written (disk full, reader gone) is lost: that stops no image, and no report.
    """

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()


STDERR: TextIO = _Stderr()  # type: ignore[assignment]


def configure_logging(*, silent: bool = False, **fields: object) -> None:
    """Write log events to stderr: coloured lines on a terminal, one JSON object a line otherwise.

    `fields` are added to every event of this process. `silent` leaves out all but what is critical.
    """
    structlog.contextvars.bind_contextvars(**fields)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_texts,
    ]
    renderers: list[Processor] = [structlog.processors.JSONRenderer()]
    if sys.stderr.isatty():
        renderers = [_one_text, structlog.dev.ConsoleRenderer()]
    structlog.configure(
        processors=[*shared, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL if silent else logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(STDERR),  # one write a line: workers share the pipe
    )
    handler = logging.StreamHandler(STDERR)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    handler.addFilter(_of_others)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in THEIR_OWN:
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = name != "uvicorn.access"  # request.audited says it, without query strings
    if sys.excepthook is sys.__excepthook__:  # else somebody hosts us and looks after it: pytest does
        sys.excepthook = lambda _, error, __: uncaught(error)
        sys.unraisablehook = lambda args: uncaught(args.exc_value)
        threading.excepthook = lambda args: uncaught(args.exc_value)
    warnings.showwarning = _warned


def places(error: BaseException | None) -> list[str]:
    """An exception and what led to it: of each its kind and its places, innermost first; never its text."""
    chain: list[str] = []
    while error is not None and len(chain) < FRAMES:
        frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
        at = " < ".join(f"{_shown(frame.filename)}:{frame.lineno}" for frame in reversed(frames))
        chain.append(f"{type(error).__name__} at {at}" if at else type(error).__name__)
        if isinstance(error, BaseExceptionGroup):
            chain += [place for inner in error.exceptions[:FRAMES] for place in places(inner)]
        error = error.__cause__ or error.__context__
    return chain


def _shown(filename: str) -> str:
    """Of ours the path from the project's root, of others the name alone."""
    is_ours = filename.startswith(ROOT) and "/site-packages/" not in filename
    return filename.removeprefix(ROOT) if is_ours else filename.rpartition("/")[2]


def _without_texts(_: Any, __: str, event: EventDict) -> EventDict:
    """What an event says of an exception: `exception` names kinds and places."""
    info = event.pop("exc_info", None)
    event.pop("exc_text", None)
    error = sys.exc_info()[1] if info is True else info[1] if isinstance(info, tuple) else info
    if isinstance(error, BaseException):
        event["exception"] = places(error)
    return event


def _one_text(_: Any, __: str, event: EventDict) -> EventDict:
    """For ConsoleRenderer, which puts it below the line, and writes texts as they are: an AE title, too."""
    event = {name: printable(value) if isinstance(value, str) else value for name, value in event.items()}
    if "exception" in event:
        event["exception"] = "\n".join(event["exception"])
    return event


def _of_others(record: logging.LogRecord) -> bool:
    """Of asyncio only what it says happened: what follows shows arguments and exceptions. No traceback as a text."""
    message = record.getMessage()
    if record.name == "asyncio":
        record.msg, record.args = message.partition("\n")[0].partition(" in callback")[0], ()
    return not message.startswith("Traceback ")  # of a start that failed; server.refused or server.failed says it


def uncaught(error: BaseException | None) -> None:
    """Log what nobody caught."""
    if not isinstance(error, KeyboardInterrupt):
        log.critical("process.failed", exception=places(error))


def _warned(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object, **__: object
) -> None:
    log.warning("warning.raised", category=category.__name__, place=f"{_shown(filename)}:{lineno}")


@asynccontextmanager
async def serve_metrics(settings: GatewaySettings) -> AsyncIterator[None]:
    """Let Prometheus ask for the gateway's metrics, if a port is set. Raises CannotServeMetrics."""
    if settings.metrics_port is None:
        yield
        return
    host, port = settings.metrics_host, settings.metrics_port
    try:
        server = await asyncio.start_server(_Metrics().answer, host, port, limit=MAX_REQUEST_BYTES)
    except OSError as error:
        raise CannotServeMetrics(
            f"cannot listen on GATEWAY_METRICS_HOST={host} GATEWAY_METRICS_PORT={port}: {error.strerror}. Stop what "
            "uses it, or choose another address or port (port 0 takes a free one)."
        ) from error
    log.info("metrics.served", host=host, port=server.sockets[0].getsockname()[1])
    try:
        yield
    finally:
        server.close()


class _Metrics:
    """Answers HTTP requests, each with all metrics, one a connection. Whoever is slow, or too many, is let go."""

    def __init__(self) -> None:
        self._open = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= MAX_SCRAPERS:
                async with asyncio.timeout(SCRAPE_TIMEOUT_S):
                    await reader.readuntil(b"\r\n\r\n")
                    writer.write(_response())
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # theirs to try again
        finally:
            self._open -= 1
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()


def _response() -> bytes:
    body = prometheus_client.generate_latest(metrics.GATEWAY)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {prometheus_client.CONTENT_TYPE_LATEST}\r\nContent-Length: {len(body)}"
    return f"{head}\r\nConnection: close\r\n\r\n".encode() + body
