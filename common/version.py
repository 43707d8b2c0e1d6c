"""The version of this program, from pyproject.toml, and how another version compares to it."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Literal

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
MAX_VERSION = 64  # characters that are read of a version that another program sends


@cache
def version() -> str:
    """Return this version, as `1.2.3`. It is read from the file, since the project is run without being installed."""
    found = re.search(r'^version = "(.+)"$', PYPROJECT.read_text(), re.MULTILINE)
    return found[1] if found else "0"


def agent() -> str:
    """Return the User-Agent header that we send to HTTP servers."""
    return f"series-gateway/{version()}"


def compared(theirs: object) -> Literal["older", "newer"] | None:
    """Tell if another version is older or newer than this one; None if it is the same.

    No version (None) counts as older: before 0.2 none was sent.
    """
    theirs_parts, ours = _parts(theirs), _parts(version())
    if theirs_parts == ours:
        return None
    return "older" if theirs_parts < ours else "newer"


def said_in(answer: str) -> str | None:
    """Return the version in an answer of /health/ready, which may be any server's; None if there is none."""
    try:
        said = json.loads(answer).get("version")
    except (ValueError, AttributeError, RecursionError):
        return None
    return said[:MAX_VERSION] if isinstance(said, str) else None


def _parts(said: object) -> list[int]:
    """Return the numbers in a version; an empty list if it is not a text."""
    numbers = re.findall(r"[0-9]+", said[:MAX_VERSION]) if isinstance(said, str) else []
    return [int(number) for number in numbers]
