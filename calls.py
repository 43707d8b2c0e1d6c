"""How the gateway calls the server: TLS, the key, and what the server has of a series."""

import asyncio
import ssl
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import structlog

from models import GatewayError, SeriesKey
from settings import GatewaySettings, key_problem

log = structlog.get_logger()


class CannotCall(GatewayError):
    """The server cannot be called as the settings want it. The text names the setting, its problem and the cure."""


def server_client(settings: GatewaySettings) -> httpx.AsyncClient:
    """What every request to the server goes through. Raises CannotCall."""
    try:
        tls = ssl.create_default_context(cafile=settings.server_ca)
    except OSError as error:  # ssl.SSLError is one
        cure = "Name a readable PEM file of the certificates that the server's is checked against."
        raise CannotCall(f"GATEWAY_SERVER_CA={settings.server_ca}: {error.strerror or error}. {cure}") from error
    if settings.exposes_key:
        log.warning("key.exposed", host=settings.server_url.host, cure="let GATEWAY_SERVER_URL begin with https://")
    return httpx.AsyncClient(
        base_url=str(settings.server_url),
        timeout=settings.request_timeout_s,
        verify=tls,
        auth=Bearer(settings.api_key.get_secret_value() if settings.api_key else None, settings.api_key_file),
    )


class Bearer(httpx.Auth):
    """Sends the key (RFC 6750 §2.1), if there is one; one from a file is read again when the server answers 401."""

    def __init__(self, key: str | None, file: Path | None) -> None:
        """Raises CannotCall."""
        self._file = file
        self._key = key if file is None else read_key(file)

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        sent = self._key
        if sent is not None:
            request.headers["Authorization"] = f"Bearer {sent}"
        response = yield request
        if response.status_code not in (401, 429) or self._file is None:  # 429: too many wrong keys from our address
            return
        await self._read_again(self._file)
        if self._key != sent:
            request.headers["Authorization"] = f"Bearer {self._key}"
            yield request

    async def _read_again(self, file: Path) -> None:
        try:
            key = await asyncio.to_thread(read_key, file)
        except CannotCall as error:
            log.error("key.refused", reason=str(error))
            return
        if key != self._key:
            log.info("key.reloaded")
        self._key = key


def read_key(file: Path) -> str:
    """The key in a file. Raises CannotCall."""
    try:
        key = file.read_text("ascii", "replace").strip()
        problem = key_problem(key)
    except OSError as error:
        problem = error.strerror or str(error)
    if problem is not None:
        raise CannotCall(f"GATEWAY_API_KEY_FILE={file}: {problem}. Name a readable file with nothing but the key.")
    return key


async def stored_instances(http: httpx.AsyncClient, key: SeriesKey) -> list[str]:
    """SOP Instance UIDs that the server has of a series; none where it cannot say."""
    try:
        response = await http.get(f"series/{key.series_instance_uid}/instances")
        if response.status_code == 403:
            log.warning(
                "key.refused", reason="the key lacks the scope series:read: other gateways' images are not seen"
            )
        return [str(uid) for uid in response.raise_for_status().json()["SOPInstanceUIDs"]]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return []
