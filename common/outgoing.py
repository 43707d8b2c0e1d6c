"""The HTTP client for servers that are strangers: it keeps nothing of what they say."""

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import httpx

from common.errors import GatewayError
from common.version import agent

RETRY_AFTER_MAX_S = 3600.0  # the longest that anybody may ask us to wait


class NoCookies(CookieJar):
    """Takes none and sends none: nobody logs in here, and what a proxy sets may be no header that can be sent."""

    def extract_cookies(self, response: object, request: object) -> None: ...

    def add_cookie_header(self, request: object) -> None: ...


def http_client(*, trust_env: bool = False, **options: Any) -> httpx.AsyncClient:
    """An httpx client without cookies. Redirects are not followed: a report goes where the settings say.

    `trust_env`: whether it goes through the proxy that HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY name.
    """
    return httpx.AsyncClient(
        trust_env=trust_env, cookies=NoCookies(), follow_redirects=False, headers={"User-Agent": agent()}, **options
    )


class LinkLocalAddress(GatewayError):
    """The host is at an address that only its own network has, where clouds keep the secrets of their machines."""


async def refuse_link_local(event: str, info: Mapping[str, Any]) -> None:
    """Raise LinkLocalAddress before anything is sent to such an address, whatever name led there (httpx's `trace`)."""
    if event == "connection.connect_tcp.complete":
        stream = info["return_value"]
        if is_link_local(stream.get_extra_info("server_addr")[0]):
            await stream.aclose()
            raise LinkLocalAddress


def is_link_local(host: str) -> bool:
    """Whether this is an address in 169.254.0.0/16 or fe80::/10."""
    address = _address(host)
    return address is not None and address.is_link_local


def reach(host: str) -> str:
    """Where an address is, in words."""
    address = _address(host)
    if address is None:
        return "nowhere"
    if address.is_loopback:
        return "this machine"
    if address.is_link_local:
        return "a link-local address"
    return "a private network" if address.is_private else "the internet"


def _address(host: str) -> IPv4Address | IPv6Address | None:
    """An IPv4 address also where it is written as an IPv6 one."""
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


def retry_after_s(header: str | None) -> float:
    """Seconds that a Retry-After header asks for (RFC 9110 §10.2.3: seconds or a date), at most an hour; 0 if none."""
    if header is None:
        return 0.0
    try:
        if header.isdigit():
            return min(float(header), RETRY_AFTER_MAX_S)
        at = parsedate_to_datetime(header)
        at = at if at.tzinfo else at.replace(tzinfo=UTC)  # -0000: in UTC, of nowhere (RFC 5322 §3.3)
        return min(max((at - datetime.now(UTC)).total_seconds(), 0.0), RETRY_AFTER_MAX_S)
    except Exception:  # a stranger's text: '²' is a digit and no number, a zone can be beyond all bounds
        return 0.0
