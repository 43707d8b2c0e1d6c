"""Who may ask the server for what: keys, limits, the audit log. Stands before everything else, the body included."""

import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import structlog
from fastapi.routing import iter_route_contexts
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import acting
from api.routing import NeedsKey
from api.tolerance import without_slash
from common import metrics
from common.errors import SeriesGatewayError
from common.settings import ServerSettings, is_loopback
from storage.engine import DatabaseUnavailable
from storage.keys import Key, Keys

OPEN = ("/health/live", "/health/ready")  # for load balancers; they tell nothing else
HEARTBEAT = ("PUT", "/gateways/{GatewayID}")
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE")
COOKIE = "series-gateway-session"  # stands for a key in a browser: to read with, and by the page to act (acting.py)
PROXYS = re.compile(  # headers that say who asked before a proxy, or that there is one
    "forwarded|via|(cdn-loop|cf|tailscale|x-(forwarded|original|envoy|arr|azure|amzn|goog|nf|varnish|scheme))(-.*)?|"
    "front-end-https|x-remote-user|(.*-)?(client|connecting|real|remote|source|user|proxyuser|originating|cluster)-?"
    "(ip|ipv4|ipv6|addr|address|host)"
)
CONTROL = re.compile(r"[\0-\x1f\x7f]")
CLOSE = {"Connection": "close"}  # nobody knows what is left on the connection
FAILURES = 10  # wrong keys that one address may show at once
FAILURES_FADE_S = 6.0  # how often one of these is forgotten
REMEMBERED = 10_000  # addresses and keys whose rate is known
MOST_OF_NAME = 64  # characters of a gateway's name, as in GatewayState
RETRY_AFTER_S = 2
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}
NOTHING_ELSE = "default-src 'none'; frame-ancestors 'none'"
ITS_OWN = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
# FastAPI's page about the API begins its script in the page.
DOCS = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"
)
FAILED = "the server failed at this; its log says where. Try again"
EMPTY_KEY = "the key is empty: give one, or leave the header out on the server's machine while no key was made"
NO_KEY_YET = (
    "only this machine is served without a key. Make one where the server runs, and the gateway's with it, which needs "
    "one from then on: python server.py keys create NAME --scope series:read --with-gateway gateway-1"
)

Audit = Callable[..., None]
log = structlog.get_logger()


class CannotAudit(SeriesGatewayError):
    """The file of the audit log cannot be opened."""


@dataclass
class Buckets:
    """Token buckets by name: each holds `size`, and gets one back every `every_s`. The oldest are forgotten."""

    size: float
    every_s: float
    clock: Callable[[], float] = time.monotonic
    _left: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)

    def wait_s(self, name: str) -> float:
        """Return the seconds until there is a token; 0 if there is one."""
        return max(0.0, (1 - self._now(name)) * self.every_s)

    def take(self, name: str) -> None:
        self._left[name] = self._now(name) - 1, self.clock()
        self._left.move_to_end(name)
        if len(self._left) > REMEMBERED:
            self._left.popitem(last=False)

    def _now(self, name: str) -> float:
        left, at = self._left.get(name, (self.size, self.clock()))
        return min(self.size, left + (self.clock() - at) / self.every_s)


class Refused(Exception):
    """No answer but this one."""

    def __init__(self, status: int, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Scopes:
    """The scope that each request needs, as its route declares it (routing.py)."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._declared = [
            (route.path_regex, route.methods or set(), given.dependency.scope)
            for route in iter_route_contexts(routes)
            for given in getattr(route, "dependencies", ())
            if isinstance(given.dependency, NeedsKey)
        ]

    def needed(self, method: str, path: str) -> str | None:
        """Return the scope that a request needs; None if any key will do. To read or to act, if no route is there."""
        asked = "GET" if method == "HEAD" else method
        for pattern, methods, scope in self._declared:
            if asked in methods and pattern.match(path):
                return scope
        return "series:read" if method in acting.SAFE else "admin"


class Guard:
    """ASGI middleware: lets a request in, or answers it with 401, 403 or 429; either way it is in the audit log."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, scopes: Scopes) -> None:
        self._app = app
        self._scopes = scopes
        self._failures = Buckets(FAILURES, FAILURES_FADE_S)
        self._requests = Buckets(2 * settings.requests_per_s, 1 / settings.requests_per_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status: int | None = None
        began = time.perf_counter()
        headers_of = HEADERS | _of_page(_path(scope))  # before a mounted application changes what is the path
        is_open = _is_open(scope)

        async def send_safely(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(headers_of)
            await send(message)

        state = scope.setdefault("state", {})
        state |= {"who": "-", "key": None, "session": None, "done": {}}
        try:
            if not is_open:
                await self._admit(scope, state)
            await self._app(scope, receive, send_safely)
        except Refused as refusal:
            if refusal.status in (401, 403) and (gateway_id := _heartbeat_of(scope)):
                scope["app"].state.refusals.note(gateway_id, str(refusal))
            await JSONResponse({"detail": str(refusal)}, refusal.status, refusal.headers)(scope, receive, send_safely)
        except Exception:  # a fault of ours: answered like all else, and raised on, into the log
            if status is None:
                await JSONResponse({"detail": FAILED}, 500, CLOSE)(scope, receive, send_safely)
            raise
        finally:
            status = status or 500
            _measure(scope, status, time.perf_counter() - began)
            if not (is_open or _is_routine(scope, status)):
                scope["app"].state.audit(**(_what(scope) | state["done"]), who=state["who"], status=status)

    async def _admit(self, scope: Scope, state: dict[str, Any]) -> None:
        """Find out who asks, which the audit log and operators' decisions name. Raises Refused."""
        if CONTROL.search(scope["path"]):  # routes forgive a newline at the end; the scopes that they need do not
            raise Refused(400, "the path has control characters")
        address = _neighbourhood(scope)
        scope_needed = state["needs"] = self._scopes.needed(scope["method"], _path(scope))
        try:
            key = await self._key(scope, address)
            token = await self._token(scope)
        except DatabaseUnavailable:
            raise Refused(503, "the database is not available; try again", Retry_After=str(RETRY_AFTER_S)) from None
        state["who"], state["key"] = f"{key.id} {key.name}" if key else "this machine", key
        if wait_s := self._requests.wait_s(key.id if key else address):
            raise Refused(429, "too many requests; see Retry-After", Retry_After=str(int(wait_s) + 1))
        self._requests.take(key.id if key else address)
        if key and scope_needed and not key.may(scope_needed):
            challenge = f'Bearer error="insufficient_scope", scope="{scope_needed}"'
            raise Refused(403, f"this key lacks the scope {scope_needed}", WWW_Authenticate=challenge)
        if scope["method"] not in acting.SAFE and (key is None or state["session"] is not None):
            self._admit_page(scope, token)

    def _admit_page(self, scope: Scope, token: str | None) -> None:
        """Let a browser change something by our own page only, be it in a session or while there is no key.

        Raises Refused.
        """
        headers, session = Headers(scope=scope), scope["state"]["session"]
        if problem := acting.foreign(headers, must_say=session is not None):
            raise Refused(403, problem)
        if session is not None:
            if not acting.shows(headers, token):
                raise Refused(403, acting.NO_TOKEN)
            scope["state"]["done"]["via"] = "page"

    async def _token(self, scope: Scope) -> str | None:
        """Return what a session's page has to show for this request; None if a key asks, or nothing is changed."""
        keys: Keys = scope["app"].state.keys
        session: str | None = scope["state"]["session"]
        return None if session is None or scope["method"] in acting.SAFE else await keys.token(session)

    async def _key(self, scope: Scope, address: str) -> Key | None:
        """Return the key of a request; None if this machine asks and there is no key yet. Raises Refused."""
        keys: Keys = scope["app"].state.keys
        scheme, _, presented = Headers(scope=scope).get("authorization", "").partition(" ")
        session = None if scheme.lower() == "bearer" else _session(scope)  # Basic is a proxy's
        if session is not None:
            key = await keys.recognize_session(session)
        else:
            key = await keys.recognize(presented.strip()) if scheme.lower() == "bearer" else None
        if key is not None:  # a good one is let in whatever else comes from its address, which may be a proxy's
            scope["state"]["session"] = session
            return key
        if not (scheme or await keys.were_made()):
            if not _is_this_machine(scope):
                raise Refused(401, NO_KEY_YET, WWW_Authenticate="Bearer")
            return None
        acts = scope["method"] not in acting.SAFE and scope["state"]["needs"] == "admin"
        if scheme.lower() != "bearer" and session is None:
            if acts and acting.TOKEN in Headers(scope=scope):  # its page was logged out
                raise Refused(403, acting.ENDED)
            raise Refused(401, "a key is needed: Authorization: Bearer KEY", WWW_Authenticate="Bearer")
        if wait_s := self._failures.wait_s(address):
            raise Refused(429, "too many wrong keys from this address", Retry_After=str(int(wait_s) + 1))
        self._failures.take(address)
        if acts and session is not None:
            raise Refused(403, acting.ENDED)
        if session is not None:
            what = "this session has ended: show the key again"
        else:
            what = "this key is not valid" if presented.strip() else EMPTY_KEY
        raise Refused(401, what, WWW_Authenticate='Bearer error="invalid_token"')


def _session(scope: Scope) -> str | None:
    """Return a browser's cookie: it reads, and acts as an operator. It posts no reports, nor prolongs itself."""
    if scope["method"] not in ("GET", "HEAD") and scope["state"]["needs"] != "admin":
        return None
    return cookie_parser(Headers(scope=scope).get("cookie", "")).get(COOKIE)


def _is_open(scope: Scope) -> bool:
    """Return whether everyone is answered, and nothing is written down about it: there is no data behind it."""
    path = _path(scope)
    return path in OPEN or _is_page(path) or (scope["method"], path) == ("DELETE", "/session")


def _is_routine(scope: Scope, status: int) -> bool:
    """Return whether a request comes each second and tells nothing of a patient: a heartbeat taken, or metrics."""
    return status < 400 and (_path(scope) == "/metrics" or (scope["method"], _route(scope)) == HEARTBEAT)


def _heartbeat_of(scope: Scope) -> str | None:
    """Return the gateway whose heartbeat a request is, before any route is looked for; None if it is none."""
    name = _path(scope).removeprefix("/gateways/")
    is_heartbeat = scope["method"] == "PUT" and name != _path(scope) and 0 < len(name) <= MOST_OF_NAME
    return name if is_heartbeat else None


def _is_page(path: str) -> bool:
    return path == "/" or path.startswith("/web/")


def _of_page(path: str) -> dict[str, str]:
    """Return the headers that say what a browser may do with an answer: with most nothing."""
    if _is_page(path):
        return {"Content-Security-Policy": ITS_OWN, "Cache-Control": "no-cache"}  # asks whether there is a newer one
    return {"Content-Security-Policy": DOCS if path == "/docs" else NOTHING_ELSE}


def _path(scope: Scope) -> str:
    """Return the application's path, behind what uvicorn's --root-path says is before it."""
    return without_slash(scope).removeprefix(scope.get("root_path", "")) or "/"


def _peer(scope: Scope) -> str:
    """Return the peer's address; an IPv4 one also if it comes by way of an IPv6 socket."""
    host = scope["client"][0] if scope.get("client") else ""
    try:
        return str(getattr(ip_address(host), "ipv4_mapped", None) or host)
    except ValueError:
        return host


def _neighbourhood(scope: Scope) -> str:
    """Return the addresses that one machine can have all of: an IPv4 address, an IPv6 network of 64 bits."""
    peer = _peer(scope)
    try:
        return str(ip_network((peer, 64), strict=False)) if ":" in peer else peer
    except ValueError:  # a proxy has named something else
        return peer


def _is_this_machine(scope: Scope) -> bool:
    """Return whether a program on this machine asks: no proxy, and no web page in a browser (DNS rebinding)."""
    headers = Headers(scope=scope)
    host = re.sub(r":[0-9]*$", "", headers.get("host", "").lower()).strip("[]").removesuffix(".")
    proxied = any(PROXYS.fullmatch(name) for name in headers)
    return not proxied and is_loopback(_peer(scope)) and is_loopback(host)


def _what(scope: Scope) -> dict[str, Any]:
    """Return route and UID of a request, without what else its path or query could hold."""
    named = scope.get("path_params", {})
    uids = {
        "series_instance_uid": named.get("SeriesInstanceUID") or named.get("series") or "",
        "study_instance_uid": named.get("StudyInstanceUID") or "",
    }
    about = {name: uid for name, uid in uids.items() if uid and set(uid) <= set("0123456789.")}
    return {"method": _method(scope), "route": _route(scope), "peer": _peer(scope)} | about


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in METHODS else "other"


def _route(scope: Scope) -> str:
    """Return the template of a request's path, `-` if no route has it."""
    return getattr(scope.get("route"), "path_format", "-")


def _measure(scope: Scope, status: int, seconds: float) -> None:
    metrics.requests.labels(_method(scope), _route(scope), status).inc()
    metrics.request_seconds.labels(_route(scope)).observe(seconds)


@contextmanager
def audit_log(path: Path | None) -> Iterator[Audit]:
    """Open what `request.audited` is written to: a file of its own, or the log. Raises CannotAudit."""
    if path is None:
        yield lambda **fields: log.info("request.audited", **fields)
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError as error:
        raise CannotAudit(f"SERVER_AUDIT_PATH={path} cannot be written: {error.strerror}.") from error
    file = os.fdopen(descriptor, "a", buffering=1)
    with suppress(OSError):  # of a full disk the next line will tell
        file.write("\n" * _ends_within_a_line(path))
    processors: list[structlog.typing.Processor] = [structlog.processors.TimeStamper(fmt="iso", utc=True)]
    processors.append(structlog.processors.JSONRenderer())
    audit = structlog.wrap_logger(structlog.WriteLogger(file), processors=processors)

    def write(**fields: Any) -> None:
        try:
            audit.info("request.audited", **fields)
        except OSError as error:  # the request was answered all the same
            log.error("audit.unwritten", reason=error.strerror)

    try:
        yield write
    finally:
        with suppress(OSError):  # what is left of a line that was not written, which was said
            file.close()


def _ends_within_a_line(path: Path) -> bool:
    """Tell if a power cut or a full disk has left a part of a line, which would spoil the next one."""
    with suppress(OSError), path.open("rb") as file:  # it is empty, or may only be written
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
    return False
