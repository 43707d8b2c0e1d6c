"""The HTTP client for servers that are strangers: it keeps nothing of what they say."""

from http.cookiejar import CookieJar
from typing import Any

import httpx

from common.version import agent


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
