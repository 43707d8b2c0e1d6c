"""How the parameters of queries are read: numbers, moments, and names that no route knows."""

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Depends, Query, Request, params
from fastapi.exceptions import RequestValidationError
from pydantic import BeforeValidator

from models import Timestamp

NO_CONTROL = r"^[^\x00-\x1f\x7f]*$"
IGNORED = {"_", "access_token"}  # which browsers and scripts add


def _in_digits(value: object) -> object:
    """Refuse a number that is not of digits: Python's 1_0 and +5 are a mistake of whoever wrote them."""
    if isinstance(value, str) and not (value.isascii() and value.isdecimal()):
        raise ValueError("is not a whole number in digits")
    return value


IN_DIGITS = BeforeValidator(_in_digits)
Limit = Annotated[int, IN_DIGITS, Query(ge=1, le=1000)]


def _at_midnight(value: object) -> object:
    """Read a day alone as 00:00 in UTC, and a space as the + that was not quoted; refuse a number alone."""
    if not isinstance(value, str):
        return value
    if not re.match(r"\d{4}-\d\d-\d\d", value):
        raise ValueError("is no time, such as 2026-01-31T08:00:00Z, and no day")
    return re.sub(r" (?=\d\d:\d\d$)", "+", value) if len(value) > len("2026-01-31") else f"{value}T00:00:00Z"


Moment = Annotated[Timestamp, BeforeValidator(_at_midnight)]


async def no_unknown_parameters(request: Request) -> None:  # not in threads, where FastAPI would describe itself twice
    """Refuse what would be ignored, and be taken for a filter that found everything. Raises RequestValidationError."""
    asked = set(request.query_params) - IGNORED
    if not asked:
        return
    described = request.app.openapi()["paths"][request.scope["route"].path_format][request.method.lower()]
    known = [one["name"] for one in described.get("parameters", ()) if one["in"] == "query"]
    if problems := [_unknown(name, known) for name in sorted(asked - {*known})]:
        raise RequestValidationError(problems)


def _unknown(name: str, known: Sequence[str]) -> dict[str, Any]:
    """Say that a parameter is unknown, and which one may have been meant."""
    lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1)
    cure = f"did you mean {lower[near[0]]}?" if near else f"known: {', '.join(known) or 'none'}"
    return {"loc": ("query", name), "msg": f"is no parameter of this request; {cure}", "type": "unknown_parameter"}


KNOWN_ONLY: params.Depends = Depends(no_unknown_parameters)
