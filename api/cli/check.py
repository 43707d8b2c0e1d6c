"""`python server.py check`: find out if a server with these settings works here, and how to fix what does not."""

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

TIMEOUT_S = 60.0  # of each check
REQUEST_TIMEOUT_S = 5.0
MIN_FREE_BYTES = 256 * 2**20
ROUND_TRIPS = 9  # how many are measured
SLOW_ROUND_TRIP_S = 0.02  # a median above this is a warning
CLOCKS_S = 2.0  # largest difference of clocks without a warning
OLDEST_POSTGRESQL = 150000  # as server_version_num
SOON = timedelta(days=30)  # a key that expires within this time is a warning
HEARD_OF = timedelta(days=1)  # gateways that were heard from within this time are compared
GATEWAYS_KEY_FIRST = (
    "Make the gateway's key before any other: python server.py keys create gateway-1 --scope series:write --scope "
    "series:read --save FILE, and give it to the gateway as GATEWAY_API_KEY_FILE=FILE. Once there is a key, everyone "
    "needs one."
)


async def check(settings: ServerSettings, host: str, port: int, url: str | None) -> list[Finding]:
    """Run all checks at the same time; return what they find."""
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
        cure = "Run this command as the user that the server runs as."
        findings.append(warning("database", f"a server runs on {path.name}: {error}", cure))
    if machine.hidden(path) or not path.exists():
        return findings
    cure = "Stop the server, move the file and its -wal away, and restore a backup, or use another file."
    sound = machine.soundness("database", path, cure)
    if sound.state == "failed":
        return [*findings, sound]
    files = [path.with_name(f"{path.name}{suffix}") for suffix in ("", "-wal", "-shm")]
    return [*findings, sound, *machine.readable_by_others("database", files)]


async def _postgresql(settings: ServerSettings) -> list[Finding]:
    shown = without_password(settings.database_url)
    try:
        async with Inspection.open(settings) as database:
            version = _version(await database.version(), shown)
            return [version, _durability(await database.promises()), *await _connections(database, settings)]
    except CannotInspect as reason:
        cure = "Check that it runs, that user, password and database in DATABASE_URL are right, and that it accepts "
        cure += "connections from this machine."
        return [failed("database", f"{shown} cannot be opened: {reason}", cure)]


def _version(number: int, shown: str) -> Finding:
    told = f"{shown}: PostgreSQL {number // 10000}"
    if number < OLDEST_POSTGRESQL:
        return failed("database", told, f"Upgrade it to {OLDEST_POSTGRESQL // 10000} or later.")
    return ok("database", told)


def _durability(promises: Mapping[str, str]) -> Finding:
    """Judge if PostgreSQL still has after a power cut what it has committed, and so what a gateway has forgotten."""
    off = [name for name, value in promises.items() if value == "off"]
    if not off:
        return ok("database", "commits are on its disk before it says so (fsync, synchronous_commit)")
    told = f"{', '.join(off)} off: a power cut of its machine loses reports that gateways have forgotten"
    cure = "; ".join(f"ALTER SYSTEM SET {name} = on" for name in off)
    return failed("database", told, f"{cure}; SELECT pg_reload_conf(); ALTER ROLE or ALTER DATABASE may say otherwise.")


async def _connections(database: Inspection, settings: ServerSettings) -> list[Finding]:
    """Check the database's connections: their number, speed and encryption, and the database's clock."""
    most, used = await database.connections()
    pool = f"SERVER_DATABASE_POOL_SIZE={settings.database_pool_size} of max_connections={most}, {used} in use now"
    findings = [ok("database", pool)]
    if settings.database_pool_size > most - used:
        cure = "Each server process may open that many: lower it, or raise PostgreSQL's max_connections."
        findings = [warning("database", pool, cure)]
    seconds = [await database.round_trip_s() for _ in range(ROUND_TRIPS)]
    trip = f"one round trip takes {1000 * statistics.median(seconds):.1f} ms"
    slow = statistics.median(seconds) > SLOW_ROUND_TRIP_S
    cure = "Each report needs several: run the server near its database."
    findings.append(warning("database", trip, cure) if slow else ok("database", trip))
    asked_at = datetime.now(UTC)
    theirs = await database.clock()
    apart = max(asked_at - theirs, theirs - datetime.now(UTC), timedelta())
    findings.append(_clock(apart.total_seconds()))
    host = host_of(settings.database_url)
    if not is_loopback(host) and not await database.is_encrypted():
        cure = "Add ?ssl=verify-full to DATABASE_URL; PostgreSQL needs ssl=on and a certificate for it."
        findings.append(warning("database", f"patients' names are sent to {host} in clear text", cure))
    return findings


def _clock(apart_s: float) -> Finding:
    if apart_s <= CLOCKS_S:
        return ok("clock", "the same time as the database's")
    cure = "Synchronize both (chrony, systemd-timesyncd); keys and webhooks depend on the time."
    return warning("clock", f"{apart_s:.0f} s apart from the database's", cure)


# --- what it holds ----------------------------------------------------------------------------------------------


async def _contents(settings: ServerSettings) -> list[Finding]:
    """Check schema, keys, webhooks, conflicts and gateways. Nothing is changed."""
    file = settings.sqlite_path
    hidden = await in_thread(lambda: file is not None and machine.hidden(file), "contents")
    if hidden:
        return [failed("schema", f"{file} cannot be read: Permission denied", machine.AS_ITS_USER)]
    if file and not await in_thread(file.exists, "contents"):
        return [ok("schema", "none yet; the first start makes it"), _no_keys()]
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
        cure = "See the lines about the database."
        return [failed("schema", f"the database cannot be read ({error.kind})", cure)]


def _schema(current: str | None, known: Sequence[str]) -> Finding:
    if current is None:
        return ok("schema", "none yet; the first start makes it")
    if current not in known:
        cure = "Run the version that wrote it, or a newer one, or use another database."
        return failed("schema", f"{current} was made by a newer version; this one knows {known[-1]}", cure)
    if current != known[-1]:
        cure = "Make a backup first; with a large database this can take a while."
        return warning("schema", f"{current}: the next start migrates it to {known[-1]}", cure)
    return ok("schema", f"{current} is current")


def _keys(keys: Sequence[Key]) -> list[Finding]:
    if not keys:
        return [_no_keys()]
    valid = [key for key in keys if key.is_valid]
    if not valid:
        return [failed("keys", f"none of {len(keys)} is valid any more: no request is served", GATEWAYS_KEY_FIRST)]
    findings = [ok("keys", ", ".join(f"{key.name} ({' '.join(sorted(key.scopes))})" for key in valid))]
    for key in valid:
        if key.expires_at is not None and key.expires_at < datetime.now(UTC) + SOON:
            told = f"{key.name} ({key.id}) expires {stamp(key.expires_at)}"
            findings.append(warning("keys", told, "Make a new key before that: python server.py keys create …"))
    if not any(key.may("series:write") for key in valid):
        cure = "python server.py keys create gateway --scope series:write --scope series:read"
        findings.append(warning("keys", "none may post reports", cure))
    return findings


def _no_keys() -> Finding:
    return warning("keys", "none: every user of this machine is served, and no other machine", GATEWAYS_KEY_FIRST)


async def _webhook(row: Mapping[str, Any]) -> Finding:
    host = urlsplit(row["Url"]).hostname or ""  # the rest of the URL may hold a secret
    told = f"{row['Id']} {host}: {row['Behind']} behind, {await _reach(host)}"
    if row["Dead"]:
        cure = f"Fix the receiver, then: python server.py webhooks replay {row['Id']}"
        return warning("webhooks", f"{told}, {row['Dead']} changes were given up", cure)
    if row["Attempts"]:
        cure = "It is tried again for a day; look at the receiver's log."
        return warning("webhooks", f"{told}, the last attempt failed: {row['Problem']}", cure)
    return ok("webhooks", told)


async def _reach(host: str) -> str:
    """Say where requests to a host go: to this machine, a private network or the internet."""
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            found = await in_thread(lambda: getaddrinfo(host, None), "resolve")
    except (OSError, ValueError, TimeoutError):
        return "its name cannot be resolved here"
    return "on " + " and ".join(sorted({reach(str(address[0])) for *_, address in found}))


def _conflicts(number: int) -> Finding:
    if not number:
        return ok("conflicts", "none open")
    return warning("conflicts", f"{number} open", "GET /conflicts shows them, POST /conflicts/DIGEST settles one.")


def _gateways(rows: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Compare the versions of the gateways that were heard from within a day with this one."""
    here = [
        row["State"] for row in rows if row["At"] > datetime.now(UTC) - HEARD_OF and not row["State"].get("Stopped")
    ]
    others = [_other_version(state) for state in here if compared(state.get("Version"))]
    if others:
        return others
    told = f"{len(here)} heard from within a day, all of this version" if here else "none heard from within a day"
    return [ok("gateways", told)]


def _other_version(state: Mapping[str, Any]) -> Finding:
    said = state.get("Version")
    told = f"{state.get('GatewayID')} is {said or 'before 0.2'}, this server {version()}: it is {compared(said)}"
    if compared(said) == "older":
        return warning("gateways", told, "Upgrade it; it is served all the same.")
    return warning(
        "gateways", told, "Upgrade the server: it refuses what it does not know in a newer gateway's reports."
    )


# --- around it --------------------------------------------------------------------------------------------------


def _audit(settings: ServerSettings) -> list[Finding]:
    path = settings.audit_path
    if path is None:
        return [ok("audit log", "written to the other logs")]
    if machine.hidden(path):
        return [failed("audit log", f"{path} cannot be read: Permission denied", machine.AS_ITS_USER)]
    if not path.parent.is_dir():
        return [failed("audit log", f"{path.parent} does not exist", "Make the folder, or change SERVER_AUDIT_PATH.")]
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        cure = "Let the user that the server runs as write to it, or change SERVER_AUDIT_PATH."
        return [failed("audit log", f"{path} cannot be written", cure)]
    return [ok("audit log", str(path)), *machine.readable_by_others("audit log", [path])]


async def _http(host: str, port: int, url: str | None) -> list[Finding]:
    """Ask the running server; if none answers, check that its port can be bound."""
    asked = url or f"http://{f'[{host}]' if ':' in host else host}:{port}"
    findings = []
    if url is None and not is_loopback(host):
        cure = "Use uvicorn --ssl-keyfile … --ssl-certfile …, or a proxy that speaks TLS."
        findings = [
            warning("HTTP", f"{host}: keys and patients' names are sent in clear text, unless uvicorn has TLS", cure)
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
        return [*findings, ok("HTTP", f"the server at {shown} runs and is ready"), *_running_version(response)]
    if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        return [*findings, failed("HTTP", f"{shown} answers, but its database does not", "See the lines above.")]
    told = f"another program answers at {shown} (HTTP {response.status_code})"
    return [*findings, failed("HTTP", told, "Stop it, or run uvicorn with another --port (and give it here).")]


def _running_version(response: httpx.Response) -> list[Finding]:
    said = said_in(response.text)
    if compared(said):
        told = f"the running server is {said or 'before 0.2'}, these files are {version()}"
        return [warning("version", told, "Restart it, if it runs from this folder.")]
    return [ok("version", f"{version()}, the same as the running server's")]


async def _ready(url: str, *, or_by_tls: bool) -> httpx.Response:
    """Ask a server if it is ready. With `or_by_tls`, try https if http fails, without checking the certificate."""
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
        cure = "Give --url a host that the certificate names, renew it, or let this machine trust its authority."
        return failed("HTTP", f"the certificate of {shown} is not valid: {problem}", cure)
    cure = "Start it (`uvicorn server:app`), or correct --url."
    return failed("HTTP", f"{shown} does not answer ({type(error).__name__})", cure)


async def _retrieve(settings: ServerSettings) -> list[Finding]:
    url = settings.retrieve_url
    if url is None:
        return [ok("retrieve URL", "none: QIDO-RS answers say that images are unavailable")]
    shown = without_password(str(url))
    try:
        async with _client() as http:
            response = await http.get(str(url))
    except httpx.HTTPError as error:
        cure = "Correct SERVER_RETRIEVE_URL, unless viewers can reach it from other machines."
        return [warning("retrieve URL", f"{shown} does not answer ({type(error).__name__})", cure)]
    return [ok("retrieve URL", f"{shown} answers (HTTP {response.status_code})")]
