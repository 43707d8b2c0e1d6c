"""What lets a browser act: its request is our own page's, and no other's.

A session's cookie alone only reads. To act, it needs all of these; a key in `Authorization` needs none of them.

1. The key that the session stands for has the scope admin, and the session was not ended.
2. The browser says that the request is our page's: by Sec-Fetch-Site, or, where it sends none (http), by Origin, which
   has to name the host that was asked for: Host, or X-Forwarded-Host of a proxy. A page elsewhere can set none of them.
3. The page shows the token that `GET /session` told it, which no page of another origin can read.
"""

import hmac

from starlette.datastructures import Headers

TOKEN = "X-CSRF-Token"  # noqa: S105 - a header's name
SAFE = ("GET", "HEAD", "OPTIONS")
FOREIGN = (
    "this request does not come from the live page of this server: Origin names another host than the one that was "
    "asked for. Behind a proxy, pass Host on as it came (nginx: proxy_set_header Host $http_host)"
)
UNSAID = "this request does not say that it comes from the live page: Sec-Fetch-Site or Origin is needed"
NO_TOKEN = (
    f"this session acts by its own page only: {TOKEN} is missing, or is another session's. Load the page again; "
    "scripts send a key as Authorization: Bearer KEY"
)
ENDED = "this session has ended, or is none: log in again"
PORTS = {"http": "80", "https": "443"}


def foreign(headers: Headers, *, must_say: bool) -> str | None:
    """Say why a request is not our own page's, as far as its browser says so; None if it is.

    `must_say`: what says nothing is foreign, too.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return None if site == "same-origin" else FOREIGN
    if origin is None:
        return UNSAID if must_say else None
    return None if _host(origin) in _asked_for(headers, origin.lower().partition("://")[0]) else FOREIGN


def shows(headers: Headers, token: str | None) -> bool:
    """Return whether a request has the token of its session."""
    return token is not None and hmac.compare_digest(headers.get(TOKEN, "").encode(), token.encode())


def _asked_for(headers: Headers, scheme: str) -> set[str]:
    """Return the hosts, with port, that a browser may have asked for: each proxy before us may name another."""
    named = [headers.get("host", ""), *headers.get("x-forwarded-host", "").split(",")]
    return {_without_port(host.strip().lower(), scheme) for host in named if host.strip()}


def _host(origin: str) -> str:
    scheme, _, host = origin.lower().partition("://")
    return _without_port(host, scheme)


def _without_port(host: str, scheme: str) -> str:
    """Return a host without the port that the scheme has anyway."""
    return host.removesuffix(f":{PORTS[scheme]}") if scheme in PORTS else host
