"""What the commands that check find, and servers that they find it at."""

import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import MappingProxyType
from typing import Any

from bench.rig.http_server import Answer, Request, http_server
from console.findings import Finding, State


@contextmanager
def some_server(
    answers: Mapping[str, tuple[int, Any]], apart_s: float = 0.0, tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """An HTTP server with these answers by path, and a clock that is apart from ours; its port."""

    def answer(request: Request) -> Answer:
        status, body = answers.get(request.path, (404, {"detail": "Not Found"}))
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=apart_s), usegmt=True)
        return Answer(status, json.dumps(body).encode(), {"Date": date})

    with http_server(answer, tls=tls) as url:
        yield url.rpartition(":")[2]


READY: Mapping[str, tuple[int, Any]] = MappingProxyType({"/health/ready": (200, {"status": "ready"})})


def said(findings: list[Finding], what: str, state: State) -> str:
    """What the lines of that kind say, with their cures."""
    return "\n".join(f"{f.detail} → {f.cure}" for f in findings if f.what.startswith(what) and f.state == state)


def is_well(printed: str) -> bool:
    """Tell whether a check warned of nothing, but for how fast this machine's disk is, and nothing failed."""
    warnings = [line for line in printed.splitlines() if line.startswith("warning") and "one fsync takes" not in line]
    return not warnings and printed.endswith(", 0 failed\n")
