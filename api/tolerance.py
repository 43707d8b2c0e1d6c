"""What clients say in several ways, made one before the routes see it: HEAD is GET, `/series/` is `/series`."""

from urllib.parse import unquote_to_bytes

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

NO_TEXT = "the query is no UTF-8: percent-encode the bytes of UTF-8, as %C3%BC for ü"


class Tolerance:
    """ASGI middleware, right before the routes: who redirects a client leads it astray behind a proxy that does TLS."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif not _is_text(scope["query_string"]):  # read all the same, it would ask for something else
            await JSONResponse({"detail": NO_TEXT}, 400)(scope, receive, send)
        else:
            scope["path"] = without_slash(scope)
            if scope["method"] == "HEAD":
                await self._head(scope, receive, send)
            else:
                await self._app(scope, receive, send)

    async def _head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as GET is answered, without the body; a stream ends there, since its client is told that it ended."""
        begun = False

        async def send_head(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start" and not begun:
                begun, scope["method"] = True, "HEAD"  # the server looks at it as it sends
                await send(message)
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        scope["method"] = "GET"
        try:
            await self._app(scope, receive, send_head)
        finally:
            scope["method"] = "HEAD"  # for the audit log, which comes later


def without_slash(scope: Scope) -> str:
    """Return the path without slashes at its end; the root's has one. An encoded one (`%2F`) is a UID's, and stays."""
    path: str = scope["path"]
    if path == f"{scope.get('root_path', '')}/":
        return path
    sent = unquote_to_bytes((scope.get("raw_path") or b"").rstrip(b"/"))
    encoded = len(sent) - len(sent.rstrip(b"/"))
    return path.rstrip("/") + "/" * encoded or "/"


def _is_text(query: bytes) -> bool:
    try:
        unquote_to_bytes(query).decode()
    except UnicodeDecodeError:
        return False
    return True
