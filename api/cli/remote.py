"""Read a server over HTTP from any machine, with a key. The server's answers are checked here."""

import os
import ssl
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from common.errors import SeriesGatewayError, printable
from common.outgoing import http_client, retry_after_s
from common.settings import without_password
from console.findings import certificate_problem

TIMEOUT_S = 20.0
MAX_REFUSAL = 200  # characters of what a server says of a parameter
M = TypeVar("M", bound=BaseModel)
CURES = {
    401: "give a key of scope series:read with --key-file, or in the environment variable SERIES_KEY",
    403: "the key lacks the scope series:read",
    404: "is --url the address of a series server?",
    422: "the server does not know a parameter; is it of an earlier version?",
}


class Unreadable(SeriesGatewayError):
    """The server gave no usable answer. The text says no more about it than its status, and which value it refuses."""

    def __init__(self, reason: str, retry_after_s: float = 0.0, *, may_pass: bool = True) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
        self.may_pass = may_pass
        """If true, asking again without changing anything may help."""


class Remote:
    """A server that is read with a key. The key is read at each request, since its file may be replaced."""

    def __init__(self, url: str, key_file: Path | None, ca: Path | None) -> None:
        self.url = url
        self._key_file = key_file
        verify: ssl.SSLContext | bool = ssl.create_default_context(cafile=str(ca)) if ca else True
        self.http = http_client(base_url=url, auth=self._with_key, timeout=TIMEOUT_S, verify=verify)

    def _with_key(self, request: httpx.Request) -> httpx.Request:
        key = self._key_file.read_text().strip() if self._key_file else os.environ.get("SERIES_KEY")
        if key:
            request.headers["Authorization"] = f"Bearer {key}"
        return request

    async def get(self, path: str, shape: type[M], **query: Any) -> M:
        """Get a path; return the answer, checked against the model `shape`. Raises Unreadable."""
        try:
            answer = await self.http.get(path, params=query)
        except httpx.HTTPError as error:
            raise Unreadable(self._unreached(error)) from None
        except OSError as error:
            file = f"{self._key_file} (--key-file, SERIES_KEY_FILE)"
            raise Unreadable(f"{file} cannot be read: {error.strerror or type(error).__name__}") from None
        if answer.status_code != 200:
            cure = _refusal(answer) or CURES.get(answer.status_code)
            reason = f"HTTP {answer.status_code}" + (f": {cure}" if cure else "")
            wait_s = retry_after_s(answer.headers.get("Retry-After"), answer.headers.get("Date"))
            raise Unreadable(reason, wait_s, may_pass=answer.status_code == 429 or answer.status_code >= 500)
        try:
            return shape.model_validate_json(answer.content)
        except ValidationError:
            raise Unreadable("the answer is not that of a series server") from None

    def _unreached(self, error: httpx.HTTPError) -> str:
        """Say which server gave no answer, and which setting names it."""
        server = f"the server at {without_password(self.url)} (--url, SERIES_URL)"
        if problem := certificate_problem(error):
            return f"{server} has a certificate that is not valid: {problem}"
        verb = "cannot be reached" if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) else "did not answer"
        return f"{server} {verb}: {type(error).__name__}"


def _refusal(answer: httpx.Response) -> str | None:
    """Return which parameter a server refuses, and why; None if it does not say that, or does not know it."""
    try:
        (first, *_) = answer.json()["detail"]
        where, what, is_unknown = first["loc"][-1], first["msg"], first["type"] == "unknown_parameter"
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None
    return None if answer.status_code != 422 or is_unknown else printable(f"{where} {what}")[:MAX_REFUSAL]
