"""A server as a command reads it from any machine: over HTTP, with a key. What a server says is checked here."""

import os
import ssl
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from common.errors import GatewayError
from common.outgoing import http_client, retry_after_s

TIMEOUT_S = 20.0
M = TypeVar("M", bound=BaseModel)
CURES = {
    401: "name a key of scope series:read by --key-file, or in the environment as SERIES_KEY",
    403: "its key has not the scope series:read",
    404: "is that the address of a series server?",
    422: "it does not know what was asked; is it of an earlier version?",
}


class Unreadable(GatewayError):
    """The server gave no answer that can be used; asking again may help. The text names no more than its status."""

    def __init__(self, reason: str, retry_after_s: float = 0.0, *, may_pass: bool = True) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
        self.may_pass = may_pass
        """Asking again without changing anything may help."""


class Remote:
    """One server, read with one key, which is looked up at each request: it may be replaced meanwhile."""

    def __init__(self, url: str, key_file: Path | None, ca: Path | None) -> None:
        self._key_file = key_file
        verify: ssl.SSLContext | bool = ssl.create_default_context(cafile=str(ca)) if ca else True
        self.http = http_client(base_url=url, auth=self._with_key, timeout=TIMEOUT_S, verify=verify)

    def _with_key(self, request: httpx.Request) -> httpx.Request:
        key = self._key_file.read_text().strip() if self._key_file else os.environ.get("SERIES_KEY")
        if key:
            request.headers["Authorization"] = f"Bearer {key}"
        return request

    async def get(self, path: str, shape: type[M], **query: Any) -> M:
        """What is answered there, in the shape that it must have. Raises Unreadable."""
        try:
            answer = await self.http.get(path, params=query)
        except (httpx.HTTPError, OSError) as error:  # OSError: of the key's file
            raise Unreadable(f"{type(error).__name__}") from None
        if answer.status_code != 200:
            cure = CURES.get(answer.status_code)
            reason = f"HTTP {answer.status_code}" + (f": {cure}" if cure else "")
            wait_s = retry_after_s(answer.headers.get("Retry-After"))
            raise Unreadable(reason, wait_s, may_pass=answer.status_code == 429 or answer.status_code >= 500)
        try:
            return shape.model_validate_json(answer.content)
        except ValidationError:
            raise Unreadable("its answer is not that of a series server") from None
