"""`python server.py check`: whether a server with these settings would work here, and the cure of what would not."""

import asyncio
import os
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from socket import getaddrinfo
from typing import Any
from urllib.parse import urlsplit

import httpx

from common.control import NotRunning, RequestFailed, request
from common.outgoing import reach
from common.settings import ServerSettings, is_loopback, variable, without_password
from common.threads import in_thread
from common.times import stamp
from common.version import agent, compared, said_in, version
from console import machine
from console.findings import Check, Finding, certificate_problem, failed, find, ok, warning
from console.machine import bind
from storage.inspection import CannotInspect, Inspection
from storage.keys import Key
from storage.urls import has_password, host_of

TIMEOUT_S = 60.0
REQUEST_TIMEOUT_S = 5.0
MIN_FREE_BYTES = 256 * 2**20
ROUND_TRIPS = 9
SLOW_ROUND_TRIP_S = 0.02
CLOCKS_S = 2.0
OLDEST_POSTGRESQL = 150000
SOON = timedelta(days=30)
HEARD_OF = timedelta(days=1)
GATEWAYS_KEY_FIRST = (
    "python server.py keys create gateway-1 --scope series:write --scope series:read --save FILE, and "
    "GATEWAY_API_KEY_FILE=FILE for the gateway, before any other key: from the first one on everyone needs one."
)


async def check(settings: ServerSettings, host: str, port: int, url: str | None) -> list[Finding]:
    """What is well and what is not, everything asked side by side."""
    file = settings.sqlite_path
    checks: dict[str, Check] = {
        "settings": partial(_settings, settings),
        "database": partial(_sqlite, file) if file else partial(_postgresql, settings),
        "contents": partial(_contents, settings),
        "audit log": partial(_audit, settings),
        "HTTP": partial(_http, host, port, url),
        "retrieve URL": partial(_retrieve, settings),
    }
    return await find(checks, TIMEOUT_S)


def _settings(settings: ServerSettings) -> list[Finding]:
    given = ", ".join(variable(ServerSettings, name) for name in sorted(settings.model_fields_set))
    secret = [Path(".env")] if has_password(settings.database_url) else []
    return [
        ok("settings", f"given: {given or 'none'}; the rest are defaults"),
        *machine.readable_by_others("settings", secret),
        *machine.proxy("SERVER_PROXY_FROM_ENV", is_used=settings.proxy_from_env),
    ]


# --- the database -----------------------------------------------------------------------------------------------


def _sqlite(path: Path) -> list[Finding]:
    findings = machine.folder("database", "DATABASE_URL", path, MIN_FREE_BYTES)
    try:
        request(path, REQUEST_TIMEOUT_S, "list_keys")
        findings.append(ok("database", f"a server runs on {path.name}"))
    except NotRunning:
        pass
    except RequestFailed as error:
        cure = "Run this as the user whom the server runs as."
        findings.append(warning("database", f"a server runs on {path.name}: {error}", cure))
    if machine.hidden(path) or not path.exists():
        return findings
    cure = "Stop the server, copy the file and its -wal away, and restore a backup, or name another file."
    sound = machine.soundness("database", path, cure)
    if sound.state == "failed":
        return [*findings, sound]
    files = [path.with_name(f"{path.name}{suffix}") for suffix in ("", "-wal", "-shm")]
    return [*findings, sound, *machine.readable_by_others("database", files)]


async def _postgresql(settings: ServerSettings) -> list[Finding]:
    shown = without_password(settings.database_url)
    try:
        async with Inspection.open(settings) as database:
            return [_version(await database.version(), shown), *await _connections(database, settings)]
    except CannotInspect as reason:
        cure = "Does it run there? Are user, password and database in DATABASE_URL right, and may this machine connect?"
        return [failed("database", f"{shown} cannot be opened: {reason}", cure)]


def _version(number: int, shown: str) -> Finding:
    told = f"{shown}: PostgreSQL {number // 10000}"
    if number < OLDEST_POSTGRESQL:
        return failed("database", told, f"Upgrade it to {OLDEST_POSTGRESQL // 10000} or later.")
    return ok("database", told)


async def _connections(database: Inspection, settings: ServerSettings) -> list[Finding]:
    """How many there may be, how fast and how safe they are, and whose time is right."""
    most, used = await database.connections()
    pool = f"SERVER_DATABASE_POOL_SIZE={settings.database_pool_size} of max_connections={most}, {used} in use now"
    findings = [ok("database", pool)]
    if settings.database_pool_size > most - used:
        cure = "Each server process may open so many: lower it, or raise PostgreSQL's max_connections."
        findings = [warning("database", pool, cure)]
    seconds = [await database.round_trip_s() for _ in range(ROUND_TRIPS)]
    trip = f"one round trip takes {1000 * statistics.median(seconds):.1f} ms"
    slow = statistics.median(seconds) > SLOW_ROUND_TRIP_S
    cure = "Each report takes several: let the server run near its database."
    findings.append(warning("database", trip, cure) if slow else ok("database", trip))
    findings.append(_clock(abs((datetime.now(UTC) - await database.clock()).total_seconds())))
    host = host_of(settings.database_url)
    if not is_loopback(host) and not await database.is_encrypted():
        cure = "Add ?ssl=verify-full to DATABASE_URL; PostgreSQL needs ssl=on and a certificate."
        findings.append(warning("database", f"patients' names travel to {host} in clear text", cure))
    return findings


def _clock(apart_s: float) -> Finding:
    if apart_s <= CLOCKS_S:
        return ok("clock", "the same time as the database's")
    cure = "Synchronize both (chrony, systemd-timesyncd): keys expire and webhooks are claimed by the clock."
    return warning("clock", f"{apart_s:.0f} s apart from the database's", cure)


# --- what it holds ----------------------------------------------------------------------------------------------


async def _contents(settings: ServerSettings) -> list[Finding]:
    """Schema, keys, webhooks, conflicts; nothing is changed."""
    file = settings.sqlite_path
    hidden = await in_thread(lambda: file is not None and machine.hidden(file), "contents")
    if hidden:
        return [failed("schema", f"{file} cannot be read: Permission denied", machine.AS_ITS_USER)]
    if file and not await in_thread(file.exists, "contents"):
        return [ok("schema", "none yet: made at the first start"), _no_keys()]
    try:
        async with Inspection.open(settings) as database:
            current, known = await database.schemas()
            schema = _schema(current, known)
            if current != known[-1]:
                return [schema]
            webhooks = [await _webhook(row) for row in await database.webhooks()] or [ok("webhooks", "none")]
            found = [*_keys(await database.keys()), *webhooks, _conflicts(await database.open_conflicts())]
            return [schema, *found, *_gateways(await database.gateways())]
    except CannotInspect as error:
        cure = "See what the lines about the database say."
        return [failed("schema", f"the database cannot be read ({error.kind})", cure)]


def _schema(current: str | None, known: Sequence[str]) -> Finding:
    if current is None:
        return ok("schema", "none yet: made at the first start")
    if current not in known:
        cure = "Run the version that wrote it, or a newer one, or name another database."
        return failed("schema", f"{current} is of a newer version; this one knows {known[-1]}", cure)
    if current != known[-1]:
        cure = "Take a backup before; a large database takes its time."
        return warning("schema", f"{current}: the next start brings it up to {known[-1]}", cure)
    return ok("schema", f"{current} is current")


def _keys(keys: Sequence[Key]) -> list[Finding]:
    if not keys:
        return [_no_keys()]
    valid = [key for key in keys if key.is_valid]
    if not valid:
        return [failed("keys", f"none of {len(keys)} is valid any more: nobody is served", GATEWAYS_KEY_FIRST)]
    findings = [ok("keys", ", ".join(f"{key.name} ({' '.join(sorted(key.scopes))})" for key in valid))]
    for key in valid:
        if key.expires_at is not None and key.expires_at < datetime.now(UTC) + SOON:
            told = f"{key.name} ({key.id}) expires {stamp(key.expires_at)}"
            findings.append(warning("keys", told, "Make its successor before: python server.py keys create …"))
    if not any(key.may("series:write") for key in valid):
        cure = "python server.py keys create gateway --scope series:write --scope series:read"
        findings.append(warning("keys", "none may post reports", cure))
    return findings


def _no_keys() -> Finding:
    return warning("keys", "none: only this machine is served, and everyone on it", GATEWAYS_KEY_FIRST)


async def _webhook(row: Mapping[str, Any]) -> Finding:
    host = urlsplit(row["Url"]).hostname or ""  # the rest may be a secret
    told = f"{row['Id']} {host}: {row['Behind']} behind, {await _reach(host)}"
    if row["Dead"]:
        cure = f"Cure the receiver, then: python server.py webhooks replay {row['Id']}"
        return warning("webhooks", f"{told}, {row['Dead']} changes were given up", cure)
    if row["Attempts"]:
        cure = "It is tried again for a day; see what its receiver says."
        return warning("webhooks", f"{told}, the last try failed: {row['Problem']}", cure)
    return ok("webhooks", told)


async def _reach(host: str) -> str:
    """Where the server's requests go, as names are resolved here and now."""
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            found = await in_thread(lambda: getaddrinfo(host, None), "resolve")
    except (OSError, ValueError, TimeoutError):
        return "its name is not known here"
    return "on " + " and ".join(sorted({reach(str(address[0])) for *_, address in found}))


def _conflicts(number: int) -> Finding:
    if not number:
        return ok("conflicts", "none open")
    return warning("conflicts", f"{number} open", "GET /conflicts shows them, POST /conflicts/DIGEST settles one.")


def _gateways(rows: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Those that were heard of within a day, and are of another version than this one."""
    here = [
        row["State"] for row in rows if row["At"] > datetime.now(UTC) - HEARD_OF and not row["State"].get("Stopped")
    ]
    others = [_other_version(state) for state in here if compared(state.get("Version"))]
    if others:
        return others
    return [ok("gateways", f"{len(here)} heard of within a day, of this version" if here else "none heard of in a day")]


def _other_version(state: Mapping[str, Any]) -> Finding:
    said = state.get("Version")
    told = f"{state.get('GatewayID')} is {said or 'before 0.2'}, this server {version()}: it is {compared(said)}"
    if compared(said) == "older":
        return warning("gateways", told, "Upgrade it; until then it is served as it is.")
    return warning("gateways", told, "Upgrade the server: it refuses what it does not know of a newer gateway.")


# --- around it --------------------------------------------------------------------------------------------------


def _audit(settings: ServerSettings) -> list[Finding]:
    path = settings.audit_path
    if path is None:
        return [ok("audit log", "goes with the other logs")]
    if machine.hidden(path):
        return [failed("audit log", f"{path} cannot be read: Permission denied", machine.AS_ITS_USER)]
    if not path.parent.is_dir():
        return [failed("audit log", f"{path.parent} does not exist", "Make the folder, or change SERVER_AUDIT_PATH.")]
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        cure = "Let the user that the server runs as write it, or change SERVER_AUDIT_PATH."
        return [failed("audit log", f"{path} cannot be written", cure)]
    return [ok("audit log", str(path)), *machine.readable_by_others("audit log", [path])]


async def _http(host: str, port: int, url: str | None) -> list[Finding]:
    """A server that runs is asked; where none answers, its address is tried."""
    asked = url or f"http://{f'[{host}]' if ':' in host else host}:{port}"
    findings = []
    if url is None and not is_loopback(host):
        cure = "uvicorn --ssl-keyfile … --ssl-certfile …, or a proxy that speaks TLS."
        findings = [
            warning("HTTP", f"{host}: keys and patients' names travel in clear text, unless uvicorn has TLS", cure)
        ]
    try:
        response = await _ready(asked, or_by_tls=url is None)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        if url is not None:
            return [*findings, _silent(without_password(url), error)]
        return [
            *findings,
            await in_thread(partial(bind, "HTTP", host, port, "uvicorn's --port or --host, and give it here"), "HTTP"),
        ]
    shown = without_password(str(response.url).removesuffix("/health/ready"))
    if response.url.scheme == "https":
        findings = []
    if response.is_success and "ready" in response.text[:1000]:
        return [*findings, ok("HTTP", f"{shown} is a server of ours, and ready"), *_running_version(response)]
    if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        return [*findings, failed("HTTP", f"{shown} answers, and its database does not", "See the lines above.")]
    told = f"something else answers at {shown} (HTTP {response.status_code})"
    return [*findings, failed("HTTP", told, "Stop it, or run uvicorn with another --port (and give it here).")]


def _running_version(response: httpx.Response) -> list[Finding]:
    said = said_in(response.text)
    if compared(said):
        told = f"the running server is {said or 'before 0.2'}, these files are {version()}"
        return [warning("version", told, "Start it again, if it runs from here.")]
    return [ok("version", f"{version()}, as the running server")]


async def _ready(url: str, *, or_by_tls: bool) -> httpx.Response:
    """The answer; also of a server at that address that turns out to speak TLS, whoever signed its certificate."""
    async with _client(trust_env=False) as http:
        try:
            return await http.get(f"{url.rstrip('/')}/health/ready")
        except (httpx.RemoteProtocolError, httpx.ReadError):
            if not or_by_tls:
                raise
    async with _client(trust_env=False, verify=False) as http:  # no key is sent
        return await http.get(f"https{url.removeprefix('http')}/health/ready")


def _client(**options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=REQUEST_TIMEOUT_S, headers={"User-Agent": agent()}, **options)


def _silent(shown: str, error: Exception) -> Finding:
    if problem := certificate_problem(error):
        cure = "Give --url a host that the certificate names; renew it, or let this machine trust who signed it."
        return failed("HTTP", f"{shown} has a certificate that is not good: {problem}", cure)
    cure = "Start it (`uvicorn server:app`), or correct --url."
    return failed("HTTP", f"{shown} does not answer ({type(error).__name__})", cure)


async def _retrieve(settings: ServerSettings) -> list[Finding]:
    url = settings.retrieve_url
    if url is None:
        return [ok("retrieve URL", "none: images are said to be unavailable")]
    shown = without_password(str(url))
    try:
        async with _client() as http:
            response = await http.get(str(url))
    except httpx.HTTPError as error:
        cure = "Correct SERVER_RETRIEVE_URL; viewers ask it from where they are, so it may still be right."
        return [warning("retrieve URL", f"{shown} does not answer ({type(error).__name__})", cure)]
    return [ok("retrieve URL", f"{shown} answers (HTTP {response.status_code})")]
