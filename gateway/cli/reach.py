"""Check that the gateway's DICOM peers and the server can be reached, and accept the gateway."""

import socket
import ssl
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus

import httpx

from common.settings import GatewaySettings, Peer, is_loopback
from common.threads import in_thread
from common.version import compared, said_in, version
from console import machine
from console.findings import Finding, certificate_problem, failed, of_error, ok, warning
from dicom.query_retrieve import RECENT, StudyAnswer, probe, probe_study
from dicom.scu import Line, PacsUnavailable
from dicom.tls import BadCertificate, Tls
from gateway.server_client import CannotCall, server_client

CLOCKS_S = 2.0  # largest difference of clocks without a warning
DATE_S = 1.0  # precision of an HTTP Date header
COUNT_STUDIES = (
    "Have it answer NumberOfStudyRelatedSeries (0020,1206) and NumberOfStudyRelatedInstances (0020,1208) in C-FIND at "
    "STUDY level; or name the series that studies need in SERVER_REQUIRED_SERIES, on the server."
)
MAKE_A_KEY = "python server.py keys create gateway --scope series:write --scope series:read --save FILE"


# --- DICOM ------------------------------------------------------------------------------------------------------


def dicom(what: str, settings: GatewaySettings, peer: Peer, *, of_ours: bool = False) -> list[Finding]:
    """Check a peer by C-ECHO and, unless it is a gateway of ours, by C-FIND. Blocks."""
    if problem := connect_problem(peer.host, peer.port, settings.pacs_timeout_s):
        cure = f"Check that it runs, that {peer.host}:{peer.port} is its DICOM port, and that no firewall blocks it."
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
        found = ok(what, f"answers C-FIND from {settings.ae_title}")
        return [answers] if of_ours else [answers, found, _counts_studies(what, Line.to(peer, settings))]
    cure = f"Allow C-FIND from {settings.ae_title} there (Orthanc: DicomModalities); else no series becomes verified."
    return [answers, failed(what, f"C-FIND: {without_find}", cure)]


def _counts_studies(what: str, line: Line) -> Finding:
    """Check if a PACS counts what a study has, which it need not (PS3.4 table C.6-5)."""
    try:
        answer = probe_study(line, datetime.now(UTC).date())
    except PacsUnavailable as error:
        answer = StudyAnswer(problem=str(error))
    if answer is None:
        return ok(what, f"names no study of the last {RECENT.days} days, so that its counts cannot be seen yet")
    if answer.counts is not None:
        return ok(what, "counts the series and images of a study: studies can become verified")
    told = f"gives no counts of studies ({answer.problem}): series can become verified, studies only idle or expected"
    return warning(what, told, COUNT_STUDIES)


def _unavailable(what: str, settings: GatewaySettings, peer: Peer, problem: str, of_ours: bool) -> Finding:
    if of_ours and "Called AE title" in problem:
        cure = f"Stop the program that listens there, or set another GATEWAY_SCP_PORT than {peer.port}."
        return failed(what, f"{peer}: a program with another AE title listens there", cure)
    if of_ours and "Calling AE title" in problem:
        return ok(what, f"{peer} listens; this machine is not in its allow-list")
    return failed(what, f"{peer}: {problem}", _cure(settings, peer, problem))


def connect_problem(host: str, port: int, timeout_s: float) -> str | None:
    """Try a TCP connection; return why it fails, or None if it succeeds. Blocks."""
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
        return f"In the PACS, allow {settings.ae_title} at this machine's address to query (Orthanc: DicomModalities)."
    if "Called AE title" in problem:
        return f"Its AE title is not {peer.ae_title}: write the one that the PACS itself shows in GATEWAY_PACS."
    if "TLS" in problem:
        return _tls_cure(peer, problem)
    other = f"If it uses TLS, write {peer._replace(tls=True)} in GATEWAY_PACS."
    return (
        f"Check that {peer.port} is a DICOM port without TLS, and that the PACS knows {settings.ae_title} at this "
        f"machine's address. {other}"
    )


def _tls_cure(peer: Peer, problem: str) -> str:
    if "certificate is not valid" in problem:
        return "Put its authority, or the certificate itself, into GATEWAY_PACS_CA; have it renewed if it has expired."
    if "our certificate" in problem:
        return "Let the PACS trust the certificate in GATEWAY_TLS_CERT, which the gateway presents to it."
    return f"Check that {peer.port} uses TLS. If it does not, write {peer._replace(tls=False)} in GATEWAY_PACS."


def _as_a_peer(settings: GatewaySettings) -> Callable[[], Tls] | None:
    """Return TLS as a sender on this machine would use it. The certificate is not checked here, but in check.py."""
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
    """Check that the server answers, accepts our key, and has the same time. It is asked as the gateway would ask."""
    findings = _clear_text(settings) + machine.proxy("GATEWAY_PROXY_FROM_ENV", is_used=settings.proxy_from_env)
    try:
        http = await in_thread(partial(server_client, settings), "server")
    except CannotCall as error:
        return [*findings, of_error("server", error)]
    async with http:
        try:
            asked_at = time.time()
            response = await http.get("health/ready")
            answered_at = time.time()
        except httpx.HTTPError as error:
            return [*findings, failed("server", f"{settings.server_url} {_said(error)}", _server_cure(settings, error))]
        findings.append(_ready(settings, response))
        if findings[-1].state == "ok":
            findings += _version(response)
            findings += [_clock(response, asked_at, answered_at), await _key(settings, http)]
    return findings


def _clear_text(settings: GatewaySettings) -> list[Finding]:
    host = (settings.server_url.host or "").strip("[]")
    if settings.server_url.scheme == "https" or is_loopback(host):
        return []
    what = "the key and patients' names are sent" if settings.exposes_key else "patients' names are sent"
    cure = "Set TLS up at the server, and begin GATEWAY_SERVER_URL with https://."
    return [warning("server", f"{what} to {host} in clear text", cure)]


def _said(error: httpx.HTTPError) -> str:
    """Say why there was no answer, in the words of the operating system or of TLS."""
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
            "Put its authority into GATEWAY_SERVER_CA, and a host that the certificate names into GATEWAY_SERVER_URL; "
            "renew it if it has expired."
        )
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError) and settings.server_url.scheme == "http":
        return "If it uses TLS, begin GATEWAY_SERVER_URL with https://."
    return "Start it (`uvicorn server:app`), or correct GATEWAY_SERVER_URL; until then reports wait in the journal."


def _ready(settings: GatewaySettings, response: httpx.Response) -> Finding:
    url = settings.server_url
    if response.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
        cure = "Run `python server.py check` where the server runs."
        return failed("server", f"{url} answers, but its database does not", cure)
    if response.status_code != HTTPStatus.OK or "ready" not in response.text[:1000]:
        cure = "Correct GATEWAY_SERVER_URL (with its path, if a proxy adds one)."
        return failed(
            "server", f"{url} answers health/ready with HTTP {response.status_code}: it is not our server", cure
        )
    return ok("server", f"{url} is ready")


def _version(response: httpx.Response) -> list[Finding]:
    """Compare the server's version with this one. A server that does not say its version is older."""
    said = said_in(response.text)
    told = f"the server is {said or 'before 0.2'}, this gateway {version()}"
    match compared(said):
        case "older":
            cure = "Upgrade the server: it refuses what it does not know in a newer gateway's reports and heartbeats."
            return [warning("version", f"{told}: it is older", cure)]
        case "newer":
            return [warning("version", f"{told}: it is newer", "Upgrade this gateway; it is served all the same.")]
    return [ok("version", f"{version()}, the same as the server's")]


def _clock(response: httpx.Response, asked_at: float, answered_at: float) -> Finding:
    """Compare the server's time with ours, which may be any between question and answer."""
    try:
        date = parsedate_to_datetime(response.headers["Date"]).timestamp()
    except (KeyError, ValueError):
        return warning("clock", "the server's answer has no time", "Let proxies pass on the Date header.")
    apart_s = max(date - answered_at, asked_at - date - DATE_S, 0.0)  # the Date header has whole seconds
    if apart_s <= CLOCKS_S:
        return ok("clock", "the same time as the server's, to the precision of its Date header")
    cure = "Synchronize both (chrony, systemd-timesyncd); timelines and latencies compare their times."
    return warning("clock", f"{apart_s:.0f} s apart from the server's", cure)


async def _key(settings: GatewaySettings, http: httpx.AsyncClient) -> Finding:
    try:
        response = await http.get("session")
        said = response.json()
        who, scopes = str(said.get("Who")), set(said.get("Scopes", ()))
    except (httpx.HTTPError, ValueError, AttributeError, TypeError) as error:
        return warning("key", f"cannot be checked: {type(error).__name__}", "Is it our server, and of this version?")
    has_key = settings.api_key is not None or settings.api_key_file is not None
    return _judged(settings, response.status_code, has_key, who, scopes)


def _judged(settings: GatewaySettings, status: int, has_key: bool, who: str, scopes: set[str]) -> Finding:
    if status == HTTPStatus.UNAUTHORIZED:
        told = "the server does not know the key, or it was revoked or expired" if has_key else "the server needs a key"
        return failed("key", told, f"On the server: `{MAKE_A_KEY}`; then set GATEWAY_API_KEY_FILE=FILE here.")
    if status != HTTPStatus.OK:
        return warning(
            "key",
            f"cannot be checked: the server answers HTTP {status}",
            "If it is an older server, upgrade it before the gateways.",
        )
    missing = [scope for scope in ("series:write", "series:read") if scope not in scopes]
    if not missing:
        return ok("key", f"the server knows us as {who}, with {' and '.join(sorted(scopes))}")
    told = f"the key lacks {' and '.join(missing)}"
    cure = f"On the server: `{MAKE_A_KEY}`."
    if missing == ["series:read"] and not settings.pacs.strip():
        return warning("key", f"{told}, which is needed for GATEWAY_PACS", cure)
    return failed("key", told, cure)
