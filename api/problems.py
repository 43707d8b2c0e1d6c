"""What a request is answered that is wrong, or that the database cannot answer now; logged without its values."""

import structlog
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from api.access import RETRY_AFTER_S
from models import GatewayState, SeriesReport, valid_unicode

MAX_PROBLEMS = 20  # problems that one answer names
MAX_NAME = 64  # characters of a field's name in one
KNOWN_FIELDS = set(SeriesReport.model_fields) | set(GatewayState.model_fields)
KNOWN_FIELDS |= {"after", "limit", "since", "Modality", "digest", "Resolution", "StudyDate", "order"}
KNOWN_FIELDS |= {"Declared", "Because", "Kind", "DeadLetter", "Do"}
KNOWN_FIELDS |= {"UpdatedSince", "UpdatedUntil", "Incomplete", "Conflicts"}
log = structlog.get_logger()


async def unavailable(_: Request, error: Exception) -> JSONResponse:
    """Answer 503: the client asks again."""
    log.error("database.unavailable", reason=str(error))
    return JSONResponse(
        {"detail": "the database is not available; try again"}, 503, {"Retry-After": str(RETRY_AFTER_S)}
    )


async def invalid(_: Request, error: Exception) -> JSONResponse:
    """Answer 422, which names each field and its problem, without the value: that may be a patient's."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - what this handler is registered for
    details = [
        {"loc": [*map(_shown, e["loc"])], "msg": _plain(e["type"], e["msg"]), "type": e["type"]}
        for e in error.errors()[:MAX_PROBLEMS]
    ]
    fields = {str(e["loc"][1]) for e in details if len(e["loc"]) > 1 and e["loc"][1] in KNOWN_FIELDS}
    log.warning("report.refused", fields=sorted(fields), problems=len(details))
    return JSONResponse({"detail": details}, 422)


def _plain(kind: str, message: str) -> str:
    """Return a problem in words: a regular expression is none."""
    return "does not have the form that it must have: see /docs" if kind == "string_pattern_mismatch" else message


def _shown(part: str | int) -> str | int:
    """Return a part of where a problem is, cut: a name there can be anything."""
    return valid_unicode(part)[:MAX_NAME] if isinstance(part, str) else part
