"""The live page: its files, which hold no data and which everyone gets, and its login."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.params import Depends
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from api.access import COOKIE
from api.answers import Session
from storage.key_reader import SCOPES
from storage.keys import SESSION_S, Key, Keys

FILES = Path(__file__).parents[1] / "web"

Responses = Mapping[int | str, dict[str, Any]]


def add_webpage(app: FastAPI, *, responses: Responses, dependencies: Sequence[Depends]) -> None:
    """Add the page at `/` and its login at `/session`. The guard lets in who asks (api/access.py)."""
    app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)(index)
    app.mount("/web", StaticFiles(directory=FILES), name="web")
    described: dict[str, Any] = {"responses": {**responses}, "dependencies": dependencies, "tags": ["Session"]}
    app.get("/session", **described)(who_asks)
    app.post("/session", **described)(log_in)
    app.delete("/session", status_code=204, tags=["Session"])(log_out)


async def index() -> FileResponse:
    """The page."""
    return FileResponse(FILES / "index.html")


async def who_asks(request: Request) -> Session:
    """Who the key, or the browser's session, belongs to. Every valid key may ask."""
    key: Key | None = request.state.key
    scopes = [scope for scope in SCOPES if key is None or key.may(scope)]
    viewer = getattr(request.app.state, "viewer_url", None)
    token = await _token(request, request.state.session)
    return Session(Who=request.state.who, Scopes=scopes, Viewer=viewer, Token=token)


async def _token(request: Request, session: str | None) -> str | None:
    """What the page of a session shows to act (acting.py); none where its key may not."""
    keys: Keys = request.app.state.keys
    key: Key | None = request.state.key
    return await keys.token(session) if session and key and key.may("admin") else None


async def log_in(request: Request, response: Response) -> Session:
    """Let a browser read with this key for twelve hours: a cookie that scripts cannot see, and that is not the key.

    It is sent as with every request, as a bearer token, so other web pages cannot log anybody in. The session ends
    with the key. While there is no key, this machine needs no session and gets none. With a key of scope admin its page
    may act, too, and shows `Token` for that.
    """
    keys: Keys = request.app.state.keys
    key: Key | None = request.state.key
    session = await keys.session(key.id) if key else None
    if session:
        secure = request.url.scheme == "https"
        response.set_cookie(
            COOKIE, session, SESSION_S, path=_root(request), secure=secure, httponly=True, samesite="strict"
        )
        request.state.session = session
    return await who_asks(request)


async def log_out(request: Request, response: Response) -> None:
    """Take the cookie away, and end its session for whoever has a copy."""
    if session := request.cookies.get(COOKIE):
        await request.app.state.keys.end_session(session)
    secure = request.url.scheme == "https"
    response.delete_cookie(COOKIE, _root(request), secure=secure, httponly=True, samesite="strict")


def _root(request: Request) -> str:
    """Where the server begins, behind what uvicorn's --root-path says: what stands beside it gets no cookie."""
    return request.scope.get("root_path") or "/"
