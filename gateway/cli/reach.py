"""Whether those whom a gateway talks to can be reached, and let it: DICOM peers, the server."""

import socket
import ssl
import time
from collections.abc import Callable
from contextlib import closing
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus

import httpx

from common.settings import GatewaySettings, Peer, is_loopback
from common.threads import in_thread
from common.version import compared, said_in, version
from console import machine
from console.findings import Finding, certificate_problem, failed, of_error, ok, warning
from dicom.query_retrieve import probe
from dicom.scu import Line, PacsUnavailable
from dicom.tls import BadCertificate, Tls
from gateway.server_client import CannotCall, server_client

CLOCKS_S = 2.0  # how far apart clocks may be
DATE_S = 1.0  # how exact an HTTP Date is
MAKE_A_KEY = "python server.py keys create gateway --scope series:write --scope series:read --save FILE"


# --- DICOM ------------------------------------------------------------------------------------------------------


def dicom(what: str, settings: GatewaySettings, peer: Peer, *, of_ours: bool = False) -> list[Finding]:
    """C-ECHO, and C-FIND unless it is a gateway of ours. Blocks."""
    if problem := connect_problem(peer.host, peer.port, settings.pacs_timeout_s):
        cure = f"Does it run, is {peer.host}:{peer.port} its DICOM port, does a firewall let this machine through?"
        return [failed(what, f"{peer} cannot be reached: {problem}", cure)]
    line = Line(peer, settings.ae_title, settings.pacs_timeout_s, _as_a_peer(settings))
    try:
        without_find = probe(line if of_ours else Line.to(peer, settings))
    except BadCertificate as error:
        return [of_error(what, error)]
    except PacsUnavailable as error:
        return [_unavailable(what, settings, peer, str(error), of_ours)]
    answers = ok(what, f"{peer} answers C-ECHO")
    if of_ours or without_find is None:
        return [answers] if of_ours else [answers, ok(what, f"answers C-FIND from {settings.ae_title}")]
    cure = f"Let it answer C-FIND from {settings.ae_title} (Orthanc: DicomModalities), or no series becomes verified."
    return [answers, failed(what, f"C-FIND: {without_find}", cure)]


def _unavailable(what: str, settings: GatewaySettings, peer: Peer, problem: str, of_ours: bool) -> Finding:
    if of_ours and "Called AE title" in problem:
        cure = f"Stop what listens there, or give the gateway another GATEWAY_SCP_PORT than {peer.port}."
        return failed(what, f"{peer}: another AE title listens there", cure)
    if of_ours and "Calling AE title" in problem:
        return ok(what, f"{peer} listens; its allow-list does not hold this machine")
    return failed(what, f"{peer}: {problem}", _cure(settings, peer, problem))


def connect_problem(host: str, port: int, timeout_s: float) -> str | None:
    """Why no TCP connection comes about. Blocks."""
    try:
        with closing(socket.create_connection((host, port), timeout_s)):
            return None
    except socket.gaierror:
        return f"no address belongs to the name {host}"
    except TimeoutError:
        return f"no answer within {timeout_s:g} s"
    except OSError as error:
        return error.strerror or str(error)


def _cure(settings: GatewaySettings, peer: Peer, problem: str) -> str:
    if "Calling AE title" in problem:
        return f"Tell the PACS to let {settings.ae_title} at this machine's address ask (Orthanc: DicomModalities)."
    if "Called AE title" in problem:
        return (
            f"It has another AE title than {peer.ae_title}: write the one that the PACS itself shows into GATEWAY_PACS."
        )
    if "TLS" in problem:
        return _tls_cure(peer, problem)
    other = f"With TLS, write {peer._replace(tls=True)} into GATEWAY_PACS."
    return (
        f"Is {peer.port} a DICOM port without TLS? Does the PACS know {settings.ae_title} at this machine's address? "
        f"{other}"
    )


def _tls_cure(peer: Peer, problem: str) -> str:
    if "certificate is not valid" in problem:
        return "Name who signed it, or the certificate itself, in GATEWAY_PACS_CA; have it renewed where it expired."
    if "our certificate" in problem:
        return "Let the PACS trust the certificate in GATEWAY_TLS_CERT, which is shown to it, too."
    return f"Does {peer.port} speak TLS? If not, write {peer._replace(tls=False)} into GATEWAY_PACS."


def _as_a_peer(settings: GatewaySettings) -> Callable[[], Tls] | None:
    """TLS as a sender on this machine would speak it; whether the certificate is good is asked elsewhere."""
    if settings.tls_cert is None:
        return None

    def context() -> Tls:
        tls = Tls()
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        tls.load_cert_chain(str(settings.tls_cert), settings.tls_key)
        return tls

    return context


# --- the server -------------------------------------------------------------------------------------------------


async def server(settings: GatewaySettings) -> list[Finding]:
    """Whether it answers, takes our key, and has the same time: asked as the gateway asks."""
    findings = _clear_text(settings) + machine.proxy("GATEWAY_PROXY_FROM_ENV", is_used=settings.proxy_from_env)
    try:
        http = await in_thread(partial(server_client, settings), "server")
    except CannotCall as error:
        return [*findings, of_error("server", error)]
    async with http:
        try:
            sent_at = time.time()
            response = await http.get("health/ready")
            asked_at = (sent_at + time.time()) / 2
        except httpx.HTTPError as error:
            return [*findings, failed("server", f"{settings.server_url} {_said(error)}", _server_cure(settings, error))]
        findings.append(_ready(settings, response))
        if findings[-1].state == "ok":
            findings += _version(response)
            findings += [_clock(response, asked_at), await _key(settings, http)]
    return findings


def _clear_text(settings: GatewaySettings) -> list[Finding]:
    host = (settings.server_url.host or "").strip("[]")
    if settings.server_url.scheme == "https" or is_loopback(host):
        return []
    what = "the key and patients' names travel" if settings.exposes_key else "patients' names travel"
    cure = "Let the server speak TLS, and GATEWAY_SERVER_URL begin with https://."
    return [warning("server", f"{what} to {host} in clear text", cure)]


def _said(error: httpx.HTTPError) -> str:
    """Why there was no answer, as the operating system or TLS says it."""
    if problem := certificate_problem(error):
        return f"has a certificate that is not valid: {problem}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return f"cannot be reached: {cause.strerror}"
        cause = cause.__cause__ or cause.__context__
    return f"did not answer ({type(error).__name__})"


def _server_cure(settings: GatewaySettings, error: httpx.HTTPError) -> str:
    if certificate_problem(error):
        return (
            "Name who signed it in GATEWAY_SERVER_CA, and in GATEWAY_SERVER_URL a host that the certificate names; "
            "renew it where it expired."
        )
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError) and settings.server_url.scheme == "http":
        return "Does it speak TLS? Then let GATEWAY_SERVER_URL begin with https://."
    return "Start it (`uvicorn server:app`), or correct GATEWAY_SERVER_URL; until then reports wait in the journal."


def _ready(settings: GatewaySettings, response: httpx.Response) -> Finding:
    url = settings.server_url
    if response.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
        cure = "Run `python server.py check` where the server runs."
        return failed("server", f"{url} answers, and its database does not", cure)
    if response.status_code != HTTPStatus.OK or "ready" not in response.text[:1000]:
        cure = "Correct GATEWAY_SERVER_URL (with the path, where a proxy adds one)."
        return failed(
            "server", f"{url} answers health/ready with HTTP {response.status_code}: it is not our server", cure
        )
    return ok("server", f"{url} is ready")


def _version(response: httpx.Response) -> list[Finding]:
    """Whether the server is of another version. One that says none is older."""
    said = said_in(response.text)
    told = f"the server is {said or 'before 0.2'}, this gateway {version()}"
    match compared(said):
        case "older":
            cure = "Upgrade the server: it refuses what it does not know of a newer gateway's reports and heartbeats."
            return [warning("version", f"{told}: it is older", cure)]
        case "newer":
            return [
                warning("version", f"{told}: it is newer", "Upgrade this gateway; until then it is served as it is.")
            ]
    return [ok("version", f"{version()}, as the server")]


def _clock(response: httpx.Response, asked_at: float) -> Finding:
    try:
        date = parsedate_to_datetime(response.headers["Date"]).timestamp()
    except (KeyError, ValueError):
        return warning("clock", "the server does not say its time", "Let proxies pass the Date header on.")
    apart_s = max(date - asked_at, asked_at - date - DATE_S, 0.0)  # the Date was cut to whole seconds
    if apart_s <= CLOCKS_S:
        return ok("clock", "the same time as the server's, as far as its Date tells")
    cure = "Synchronize both (chrony, systemd-timesyncd): timelines and latencies compare their times."
    return warning("clock", f"{apart_s:.0f} s apart from the server's", cure)


async def _key(settings: GatewaySettings, http: httpx.AsyncClient) -> Finding:
    try:
        response = await http.get("session")
        said = response.json()
        who, scopes = str(said.get("Who")), set(said.get("Scopes", ()))
    except (httpx.HTTPError, ValueError, AttributeError, TypeError) as error:
        return warning("key", f"cannot tell: {type(error).__name__}", "Is it our server, and of this version?")
    has_key = settings.api_key is not None or settings.api_key_file is not None
    return _judged(settings, response.status_code, has_key, who, scopes)


def _judged(settings: GatewaySettings, status: int, has_key: bool, who: str, scopes: set[str]) -> Finding:
    if status == HTTPStatus.UNAUTHORIZED:
        told = "the server does not know the key, or it has ended" if has_key else "the server wants a key"
        return failed("key", told, f"On the server: `{MAKE_A_KEY}`; then GATEWAY_API_KEY_FILE=FILE here.")
    if status != HTTPStatus.OK:
        return warning(
            "key", f"cannot tell: the server answers HTTP {status}", "An older server? Upgrade it before the gateways."
        )
    missing = [scope for scope in ("series:write", "series:read") if scope not in scopes]
    if not missing:
        return ok("key", f"the server knows us as {who}, with {' and '.join(sorted(scopes))}")
    told = f"the key lacks {' and '.join(missing)}"
    cure = f"On the server: `{MAKE_A_KEY}`."
    if missing == ["series:read"] and not settings.pacs.strip():
        return warning("key", f"{told}, which GATEWAY_PACS would need", cure)
    return failed("key", told, cure)
