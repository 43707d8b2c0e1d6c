"""Set up logging. Events are named `noun.verb_past` and have fields; they never hold patient data.

Every line has the same form, whether our code, uvicorn, SQLAlchemy, asyncio or an uncaught exception wrote it. The text
of an exception may quote patient data, so only the kind and the place of an exception are logged.
"""

import logging
import os
import sys
import threading
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor

from common.errors import printable

THEIR_OWN = ("uvicorn", "uvicorn.error", "uvicorn.access")  # loggers to which uvicorn adds its own handlers
ROOT = f"{Path(__file__).parents[1]}/"
FRAMES = 8  # how many of a traceback's frames are logged, from the innermost

log = structlog.get_logger()


class _Stderr:
    """A file that writes to the current sys.stderr, which the table on a terminal replaces for a while.

    A line that cannot be written (disk full, reader gone) is dropped; logging never stops an image or a report.
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
        renderers = [_one_text, structlog.dev.ConsoleRenderer(colors=_has_colours())]
    structlog.configure(
        processors=[*shared, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL if silent else logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(STDERR),  # one write for each line, since workers share the pipe
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
        logging.getLogger(name).propagate = name != "uvicorn.access"  # request.audited replaces it, without queries
    if sys.excepthook is sys.__excepthook__:  # otherwise a host, such as pytest, has set its own
        sys.excepthook = lambda _, error, __: uncaught(error)
        sys.unraisablehook = lambda args: uncaught(args.exc_value)
        threading.excepthook = lambda args: uncaught(args.exc_value)
    warnings.showwarning = _warned


def _has_colours() -> bool:
    """Tell if the terminal can show colours and the user wants them (https://no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in ("dumb", "unknown")


def places(error: BaseException | None) -> list[str]:
    """Return an exception and its causes: the kind of each, and its places from the innermost; never its text.

    Each exception is listed once: one that is raised out of a group has the group as its context, and so itself.
    """
    chain: dict[int, str] = {}
    ahead = [error]
    while ahead and len(chain) < FRAMES:
        error = ahead.pop(0)
        if error is None or id(error) in chain:
            continue
        frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
        at = " < ".join(f"{_shown(frame.filename)}:{frame.lineno}" for frame in reversed(frames))
        chain[id(error)] = f"{type(error).__name__} at {at}" if at else type(error).__name__
        inner = error.exceptions[:FRAMES] if isinstance(error, BaseExceptionGroup) else ()
        ahead = [*inner, error.__cause__ or error.__context__, *ahead]
    return list(chain.values())


def _shown(filename: str) -> str:
    """Return the path of a project file from the project's root; the name alone of any other file."""
    is_ours = filename.startswith(ROOT) and "/site-packages/" not in filename
    return filename.removeprefix(ROOT) if is_ours else filename.rpartition("/")[2]


def _without_texts(_: Any, __: str, event: EventDict) -> EventDict:
    """Replace an event's exception by the field `exception`: kinds and places, without texts."""
    info = event.pop("exc_info", None)
    event.pop("exc_text", None)
    error = sys.exc_info()[1] if info is True else info[1] if isinstance(info, tuple) else info
    if isinstance(error, BaseException):
        event["exception"] = places(error)
    return event


def _one_text(_: Any, __: str, event: EventDict) -> EventDict:
    """Prepare an event for structlog's ConsoleRenderer, which prints texts such as AE titles unchanged."""
    event = {name: printable(value) if isinstance(value, str) else value for name, value in event.items()}
    if "exception" in event:
        event["exception"] = "\n".join(event["exception"])
    return event


def _of_others(record: logging.LogRecord) -> bool:
    """Filter records of other packages, whose texts may hold anything.

    Of asyncio's records only the first words are kept; arguments and exceptions follow them. Tracebacks that are logged
    as text are dropped.
    """
    message = record.getMessage()
    if record.name == "asyncio":
        record.msg, record.args = message.partition("\n")[0].partition(" in callback")[0], ()
    return not message.startswith("Traceback ")  # a failed start; server.refused or server.failed reports it


def uncaught(error: BaseException | None) -> None:
    """Log an exception that nobody caught."""
    if not isinstance(error, KeyboardInterrupt):
        log.critical("process.failed", exception=places(error))


def _warned(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object, **__: object
) -> None:
    log.warning("warning.raised", category=category.__name__, place=f"{_shown(filename)}:{lineno}")
