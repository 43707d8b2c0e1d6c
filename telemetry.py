"""Logs, set up once. Events are `noun.verb_past` with fields; never patient data."""

import logging
import sys

import structlog


def configure_logging(**fields: object) -> None:
    """Write log events to stderr: coloured lines on a terminal, one JSON object a line otherwise.

    `fields` are added to every event of this process.
    """
    structlog.contextvars.bind_contextvars(**fields)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def hide_query_strings() -> None:
    """Cut the query string from uvicorn's access log: `?PatientID=…` is patient data. Probes are not logged."""
    logging.getLogger("uvicorn.access").addFilter(_without_query_string)


def _without_query_string(record: logging.LogRecord) -> bool:
    """uvicorn's arguments are client address, method, path with query, HTTP version, status."""
    if isinstance(record.args, tuple) and len(record.args) == 5:
        client, method, path, version, status = record.args
        record.args = (client, method, str(path).partition("?")[0], version, status)
        return not str(path).startswith("/health/")
    return True
