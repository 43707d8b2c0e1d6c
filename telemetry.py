"""Logs and metrics, set up once. Events are `noun.verb_past` with fields; never patient data.

Every line goes the same way, whoever writes it: uvicorn, SQLAlchemy, asyncio, an exception that nobody caught. The text
of an exception can hold what it choked on, so of exceptions only their kinds and places are written.
"""

import logging
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

import structlog
from prometheus_client import start_http_server
from structlog.typing import EventDict, Processor

import metrics
from models import GatewayError
from settings import GatewaySettings

THEIR_OWN = ("uvicorn", "uvicorn.error", "uvicorn.access")  # loggers that uvicorn gives handlers of their own
FRAMES = 8  # of a traceback, the innermost


class CannotServeMetrics(GatewayError):
    """The port of the metrics cannot be bound."""


class _Stderr:
    """Whatever sys.stderr is now: a table on the terminal takes its place for a while."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


STDERR: TextIO = _Stderr()  # type: ignore[assignment]


def configure_logging(**fields: object) -> None:
    """Write log events to stderr: coloured lines on a terminal, one JSON object a line otherwise.

    `fields` are added to every event of this process.
    """
    structlog.contextvars.bind_contextvars(**fields)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_texts,
    ]
    renderer: Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(STDERR),
    )
    handler = logging.StreamHandler(STDERR)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    handler.addFilter(_of_others)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in THEIR_OWN:
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = name != "uvicorn.access"  # request.audited says it, without query strings
    sys.excepthook = _uncaught
    threading.excepthook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    warnings.showwarning = _warned


def places(error: BaseException | None) -> list[str]:
    """An exception and what led to it: of each its kind and its places, innermost first; never its text."""
    chain: list[str] = []
    while error is not None and len(chain) < FRAMES:
        frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
        at = " < ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in reversed(frames))
        chain.append(f"{type(error).__name__} at {at}" if at else type(error).__name__)
        if isinstance(error, BaseExceptionGroup):
            chain += [place for inner in error.exceptions[:FRAMES] for place in places(inner)]
        error = error.__cause__ or error.__context__
    return chain


def _without_texts(_: Any, __: str, event: EventDict) -> EventDict:
    """What an event says of an exception: `exception` names kinds and places."""
    info = event.pop("exc_info", None)
    event.pop("exc_text", None)
    error = sys.exc_info()[1] if info is True else info[1] if isinstance(info, tuple) else info
    if isinstance(error, BaseException):
        event["exception"] = places(error)
    return event


def _of_others(record: logging.LogRecord) -> bool:
    """Of asyncio only what it says happened: what follows shows the exception's text."""
    if record.name == "asyncio":
        record.msg, record.args = record.getMessage().partition("\n")[0], ()
    return True


def _uncaught(kind: type[BaseException], error: BaseException | None, _: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        structlog.get_logger().critical("process.failed", exception=places(error))


def _warned(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object, **__: object
) -> None:
    place = f"{filename.rpartition('/')[2]}:{lineno}"
    structlog.get_logger().warning("warning.raised", category=category.__name__, place=place)


@contextmanager
def serve_metrics(settings: GatewaySettings) -> Iterator[None]:
    """Let Prometheus ask for the gateway's metrics, if a port is set. Raises CannotServeMetrics."""
    if settings.metrics_port is None:
        yield
        return
    host, port = settings.metrics_host, settings.metrics_port
    try:
        server, thread = start_http_server(port, host, metrics.GATEWAY)
    except OSError as error:
        raise CannotServeMetrics(
            f"cannot listen on GATEWAY_METRICS_HOST={host} GATEWAY_METRICS_PORT={port}: {error.strerror}. Stop what "
            "uses it, or choose another address or port (port 0 takes a free one)."
        ) from error
    structlog.get_logger().info("metrics.served", host=host, port=server.server_port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
