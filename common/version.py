"""Which version this is, as pyproject.toml says it, and whether another is older or newer."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Literal

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
MAX_VERSION = 64  # characters of what somebody else says is its version


@cache
def version() -> str:
    """This one, as `1.2.3`. Read from the file: the project is run where it stands, and never installed."""
    found = re.search(r'^version = "(.+)"$', PYPROJECT.read_text(), re.MULTILINE)
    return found[1] if found else "0"


def agent() -> str:
    """How we introduce ourselves to HTTP servers."""
    return f"series-gateway/{version()}"


def compared(theirs: object) -> Literal["older", "newer"] | None:
    """What another version is beside this one; None for the same. Before 0.2 none was said: None is older."""
    theirs_parts, ours = _parts(theirs), _parts(version())
    if theirs_parts == ours:
        return None
    return "older" if theirs_parts < ours else "newer"


def said_in(answer: str) -> str | None:
    """The version in a server's answer about its health, which may be anybody's answer; None where there is none."""
    try:
        said = json.loads(answer).get("version")
    except (ValueError, AttributeError, RecursionError):
        return None
    return said[:MAX_VERSION] if isinstance(said, str) else None


def _parts(said: object) -> list[int]:
    """The numbers of a version; none where a stranger says something else."""
    numbers = re.findall(r"[0-9]+", said[:MAX_VERSION]) if isinstance(said, str) else []
    return [int(number) for number in numbers]
