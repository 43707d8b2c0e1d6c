"""The live page: its files, which hold no data and which everyone gets, and its login."""

from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

from api.access import COOKIE
from api.answers import Session
from api.routing import READS, answers, needs
from storage.key_reader import SCOPES
from storage.keys import SESSION_S, Key, Keys

FILES = Path(__file__).parents[1] / "web"
router = APIRouter()


@router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
async def index() -> FileResponse:
    """Return the page."""
    return FileResponse(FILES / "index.html")


@router.get("/session", responses=answers(), dependencies=[needs(None)], tags=["Session"])
async def who_asks(request: Request) -> Session:
    """Say who the key, or the browser's session, belongs to. Every valid key may ask."""
    key: Key | None = request.state.key
    scopes = [scope for scope in SCOPES if key is None or key.may(scope)]
    viewer = getattr(request.app.state, "viewer_url", None)
    token = await _token(request, request.state.session)
    return Session(Who=request.state.who, Scopes=scopes, Viewer=viewer, Token=token)


async def _token(request: Request, session: str | None) -> str | None:
    """Return what the page of a session shows to act (acting.py); None if its key may not."""
    keys: Keys = request.app.state.keys
    key: Key | None = request.state.key
    return await keys.token(session) if session and key and key.may("admin") else None


@router.post("/session", responses=answers(), dependencies=[READS], tags=["Session"])
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


@router.delete("/session", status_code=204, tags=["Session"])
async def log_out(request: Request, response: Response) -> None:
    """Take the cookie away, and end its session for whoever has a copy."""
    if session := request.cookies.get(COOKIE):
        await request.app.state.keys.end_session(session)
    secure = request.url.scheme == "https"
    response.delete_cookie(COOKIE, _root(request), secure=secure, httponly=True, samesite="strict")


def _root(request: Request) -> str:
    """Return where the server begins, behind uvicorn's --root-path: what stands beside it gets no cookie."""
    return request.scope.get("root_path") or "/"
