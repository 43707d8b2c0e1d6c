"""The HTTP client for servers that we do not control: no cookies, no redirects, bounded waits. HTTP's dates."""

import random
import time
from collections.abc import Mapping
from email.utils import mktime_tz, parsedate_tz
from http.cookiejar import CookieJar
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import httpx

from common.errors import SeriesGatewayError
from common.version import agent

RETRY_AFTER_MAX_S = 3600.0  # the longest that anybody may ask us to wait


class NoCookies(CookieJar):
    """A cookie jar that stores and sends nothing: no login is needed, and a proxy's cookie may be an invalid header."""

    def extract_cookies(self, response: object, request: object) -> None: ...

    def add_cookie_header(self, request: object) -> None: ...


def http_client(*, trust_env: bool = False, **options: Any) -> httpx.AsyncClient:
    """Return an httpx client without cookies and redirects: a report goes only where the settings say.

    With `trust_env` it uses the proxy that HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY name.
    """
    return httpx.AsyncClient(
        trust_env=trust_env, cookies=NoCookies(), follow_redirects=False, headers={"User-Agent": agent()}, **options
    )


class LinkLocalAddress(SeriesGatewayError):
    """The host has a link-local address, where cloud providers serve their machines' secrets."""


async def refuse_link_local(event: str, info: Mapping[str, Any]) -> None:
    """Raise LinkLocalAddress before anything is sent to a link-local address, by whatever name (httpx's `trace`)."""
    if event == "connection.connect_tcp.complete":
        stream = info["return_value"]
        if is_link_local(stream.get_extra_info("server_addr")[0]):
            await stream.aclose()
            raise LinkLocalAddress


def is_link_local(host: str) -> bool:
    """Tell if a host is an address in 169.254.0.0/16 or fe80::/10."""
    address = _address(host)
    return address is not None and address.is_link_local


def reach(host: str) -> str:
    """Return a few words about where an address is."""
    address = _address(host)
    if address is None:
        return "nowhere"
    if address.is_loopback:
        return "this machine"
    if address.is_link_local:
        return "a link-local address"
    return "a private network" if address.is_private else "the internet"


def _address(host: str) -> IPv4Address | IPv6Address | None:
    """Parse an address; one that is written as IPv4-mapped IPv6 becomes IPv4. Return None for a name."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def backoff_s(attempt: int, longest_s: float, base_s: float) -> float:
    """Return how long to wait after a failed attempt, at most `longest_s`.

    Full jitter: uniform between 0 and a bound that doubles with each attempt, so that clients do not retry in step.
    """
    return random.uniform(0, min(longest_s, base_s * 2.0 ** min(attempt, 30)))  # noqa: S311 - not a secret


def retry_after_s(header: str | None, date: str | None = None) -> float:
    """Return the seconds that a Retry-After header asks for (RFC 9110 §10.2.3), at most an hour; 0 if there are none.

    The header holds seconds or a date. A date is after that of the answer's Date header, which the same clock has told,
    or after our own clock's.
    """
    if header is None:
        return 0.0
    try:
        if header.isdigit():
            return min(float(header), RETRY_AFTER_MAX_S)
        answered_at = seconds_of(date) if date else None
        wait_s = (seconds_of(header) or 0.0) - (time.time() if answered_at is None else answered_at)
        return min(max(wait_s, 0.0), RETRY_AFTER_MAX_S)
    except Exception:  # the text may be anything: '²' is a digit but not a number, a zone may be out of range
        return 0.0


def seconds_of(date: str) -> float | None:
    """Return the seconds since 1970 of an HTTP date, which may name a leap second (23:59:60); None if it is none."""
    try:
        parsed = parsedate_tz(date)  # a date without a zone, or in zone -0000, is in UTC (RFC 5322 §3.3)
        return None if parsed is None else float(mktime_tz((*parsed[:9], parsed[9] or 0)))
    except Exception:  # the text may be anything: a zone may be out of range
        return None
