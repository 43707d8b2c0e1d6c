"""`python client.py check`: find out if a gateway with these settings works here, and how to fix what does not."""

import contextlib
import logging
import os
import resource
import socket
import ssl
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from common.control import NotRunning, RequestFailed, request
from common.settings import GatewaySettings, Peer, is_loopback
from common.times import stamp
from console import machine
from console.findings import Check, Finding, failed, find, of_error, ok, warning
from console.machine import bind
from dicom.tls import BadCertificate, tls_context
from gateway import journal_reader
from gateway.cli.reach import dicom, server
from gateway.journal_file import SCHEMA_VERSION
from gateway.journal_reader import JournalUnusable

REQUEST_TIMEOUT_S = 5.0
SOON_DAYS = 30  # a certificate that expires within this time is a warning
OTHER_FILES = 60  # file descriptors that are needed in addition to those of associations and posts


async def check(settings: GatewaySettings) -> list[Finding]:
    """Run all checks at the same time; return what they find."""
    for name in ("pynetdicom", "pydicom"):  # the findings say the same
        logging.getLogger(name).setLevel(logging.CRITICAL)
    alive = _running(settings)
    checks: dict[str, Check] = {
        "settings": partial(_settings, settings),
        "who may send": partial(_senders, settings),
        "DICOM port": partial(_port, settings, alive),
        "metrics port": partial(_metrics_port, settings, alive),
        "TLS": partial(_tls, settings),
        "file descriptors": partial(_descriptors, settings),
        "server": partial(server, settings),
    }
    for peer in settings.pacs_by_ae_title.values():
        checks[f"PACS {peer.ae_title}"] = partial(_pacs, settings, peer)
    for path in settings.journals:
        checks[f"journal {path.name}"] = partial(_journal, settings, path)
    checks["journals left out"] = partial(_left_out, settings)
    return await find(checks, timeout_s=30 + 6 * settings.pacs_timeout_s)


# --- settings ---------------------------------------------------------------------------------------------------


def _settings(settings: GatewaySettings) -> list[Finding]:
    given = ", ".join(f"GATEWAY_{name}".upper() for name in sorted(settings.model_fields_set))
    findings = [ok("settings", f"given: {given or 'none'}; the rest are defaults")]
    if "id" not in settings.model_fields_set:
        cure = f"Set a name that stays the same: GATEWAY_ID={socket.gethostname()[:51]}."
        findings.append(warning("settings", "GATEWAY_ID is another one at each start", cure))
    if settings.trace_path is not None:
        cure = "Remove it unless you are recording traffic: the file grows with every image."
        findings.append(warning("settings", f"GATEWAY_TRACE_PATH={settings.trace_path} is on", cure))
    secret = [settings.api_key_file] if settings.api_key_file else [Path(".env")] if settings.api_key else []
    return findings + machine.readable_by_others("settings", secret)


def _senders(settings: GatewaySettings) -> list[Finding]:
    local = is_loopback(settings.scp_host)
    if settings.allow_any_peer:
        cure = "List the senders in GATEWAY_ALLOWED_PEERS (AE titles, addresses, networks), and remove it."
        told = "GATEWAY_ALLOW_ANY_PEER: everyone who can reach the port"
        return [warning("who may send", told, cure) if not local else ok("who may send", told)]
    if settings.allowed_peers.strip():
        return [ok("who may send", settings.allowed_peers)]
    return [ok("who may send", "everyone on this machine")]


def _tls(settings: GatewaySettings) -> list[Finding]:
    if settings.tls_cert is None:
        if is_loopback(settings.scp_host):
            return [ok("TLS", "off; only this machine can reach the port")]
        cure = "Set GATEWAY_TLS_CERT and GATEWAY_TLS_KEY if senders can use DICOM TLS; otherwise separate the network."
        return [warning("TLS", "off: images and patients' names come in clear text", cure)]
    try:
        tls_context(settings)
    except BadCertificate as error:
        return [of_error("TLS", error)]
    private = settings.tls_key or settings.tls_cert
    return [expiry("TLS", settings.tls_cert, settings.tls_key), *machine.readable_by_others("TLS", [private])]


def _descriptors(settings: GatewaySettings) -> list[Finding]:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = settings.max_associations + settings.max_waiting + settings.dispatch_concurrency + OTHER_FILES
    told = f"{limit} here, {needed} needed for GATEWAY_MAX_ASSOCIATIONS={settings.max_associations}"
    if limit in (-1, resource.RLIM_INFINITY) or limit >= needed:
        return [ok("file descriptors", told)]
    cure = (
        f"Run ulimit -n {2 * needed} before the start (systemd: LimitNOFILE={2 * needed}), or allow fewer associations."
    )
    return [warning("file descriptors", told, cure)]


# --- ports ------------------------------------------------------------------------------------------------------


def _running(settings: GatewaySettings) -> list[Finding]:
    """Ask the gateway that runs on each journal for its state; return nothing if none runs."""
    findings = []
    for path in settings.journals:
        try:
            said = request(path, REQUEST_TIMEOUT_S, "status")
        except NotRunning:
            continue
        except RequestFailed as error:
            cure = "Run this command as the user that the gateway runs as."
            findings.append(warning("gateway", f"one runs on {path.name}: {error}", cure))
            continue
        if said.get("ready"):
            findings.append(ok("gateway", f"runs on {path.name} and accepts images"))
        else:
            cure = (
                "`python client.py status` shows what waits; free disk space, or fix the server so that reports leave."
            )
            findings.append(failed("gateway", f"runs on {path.name} but accepts no images: {said.get('reason')}", cure))
    return findings


def _port(settings: GatewaySettings, alive: Sequence[Finding]) -> list[Finding]:
    """Call the running gateway; if none runs, check that its port can be bound."""
    host, port = settings.scp_host, settings.scp_port
    if not alive:
        return [bind("DICOM port", host, port, "GATEWAY_SCP_PORT or GATEWAY_SCP_HOST")]
    if port == 0:
        return [*alive, warning("DICOM port", "0: another free port at each start", "Set a port that stays the same.")]
    return [*alive, dicom("DICOM port", settings, Peer(settings.ae_title, _callable(host), port), of_ours=True)[0]]


def _metrics_port(settings: GatewaySettings, alive: Sequence[Finding]) -> list[Finding]:
    if settings.metrics_port is None:
        return [ok("metrics port", "off")]
    if not alive:
        ports = range(settings.metrics_port, settings.metrics_port + (settings.workers if settings.metrics_port else 1))
        change = "GATEWAY_METRICS_PORT or GATEWAY_METRICS_HOST"
        return [bind("metrics port", settings.metrics_host, port, change) for port in ports]
    try:
        with closing(socket.create_connection((_callable(settings.metrics_host), settings.metrics_port), 5)):
            return [ok("metrics port", f"{settings.metrics_port} is served")]
    except OSError as error:
        cure = "Restart the gateway with this setting, or look at its log."
        return [warning("metrics port", f"the running gateway does not serve it: {error.strerror}", cure)]


def _callable(host: str) -> str:
    """Return the address by which this machine can call a host that is bound to all addresses."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound, called


def _pacs(settings: GatewaySettings, peer: Peer) -> list[Finding]:
    return dicom(f"PACS {peer.ae_title}", settings, peer)


# --- journals ---------------------------------------------------------------------------------------------------


def _journal(settings: GatewaySettings, path: Path) -> list[Finding]:
    what = f"journal {path.name}"
    findings = machine.folder(what, "GATEWAY_JOURNAL_PATH", path, settings.min_free_bytes)
    if machine.hidden(path):
        return findings
    if not path.exists():
        return (
            [*findings, ok(what, "none yet; the first start makes it")] if findings[0].state != "failed" else findings
        )
    cure = "Copy it and its -wal file first; the next start renames it (….corrupt-…) and begins a new journal."
    sound = machine.soundness(what, path, cure)
    if sound.state == "failed":
        return [*findings, sound]
    files = [path.with_name(f"{path.name}{suffix}") for suffix in ("", "-wal", "-shm")]
    return [*findings, *_contents(what, path, sound.detail), *machine.readable_by_others(what, files)]


def _contents(what: str, path: Path, told: str) -> list[Finding]:
    try:
        version = journal_reader.schema_version(path)
        if version > SCHEMA_VERSION:
            cure = "Run the version that wrote it until the journal is empty, or use another file."
            told = f"schema {version} was made by a newer version; this one knows {SCHEMA_VERSION}"
            return [failed(what, told, cure)]
        if version == 0:
            return [ok(what, f"{told}, and empty")]
        held = journal_reader.status(path)
    except JournalUnusable as error:
        return [failed(what, str(error), machine.AS_ITS_USER)]
    age = f"schema {version}" + (f", migrated to {SCHEMA_VERSION} at the start" if version < SCHEMA_VERSION else "")
    findings = [ok(what, f"{told}, {age}, {held['waiting_reports']} reports wait")]
    if held["dead_letters"]:
        cure = "`python client.py dead-letters list` shows why; then `dead-letters replay` or `discard`."
        findings.append(warning(what, f"{held['dead_letters']} reports were refused by the server for good", cure))
    return findings


def _left_out(settings: GatewaySettings) -> list[Finding]:
    """Find journals of an earlier number of workers, which no worker delivers now."""
    path = settings.journal_path
    beside = {path, *path.parent.glob(f"{path.stem}-[0-9]*{path.suffix}")} - {*settings.journals}
    findings = []
    for other in sorted(p for p in beside if os.path.isfile(p) and time.time() > p.stat().st_mtime):
        try:
            undelivered = journal_reader.undelivered(other)
        except JournalUnusable:
            continue  # another file with such a name
        if undelivered:
            cure = f"python client.py --workers 1 --journal-path {other} drain"
            findings.append(
                warning("journals left out", f"{other} holds undelivered images, but no worker uses it", cure)
            )
    return findings


# --- certificates -----------------------------------------------------------------------------------------------


def expiry(what: str, certificate: Path, key: Path | None) -> Finding:
    """Check that a certificate is valid now, and will be in 30 days."""
    cure = f"Have {certificate} renewed, then send the gateway SIGHUP."
    try:
        ends_at = end_of(certificate, key)
    except ssl.SSLCertVerificationError as error:
        return failed(what, f"{certificate}: {error.verify_message}", cure)
    left = ends_at - datetime.now(UTC)
    told = f"{certificate} is valid until {stamp(ends_at)}"
    return ok(what, told) if left.days >= SOON_DAYS else warning(what, f"{told}, {left.days} days left", cure)


def end_of(certificate: Path, key: Path | None) -> datetime:
    """Return when a certificate expires. Raises SSLCertVerificationError if it is not valid now.

    Python reads a certificate only in a handshake. So this makes one in memory, in which only this certificate is
    trusted.
    """
    ours, theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ours.load_cert_chain(certificate, key)
    theirs.check_hostname = False
    theirs.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    theirs.load_verify_locations(certificate)
    to_us, to_them = ssl.MemoryBIO(), ssl.MemoryBIO()
    server, client = ours.wrap_bio(to_us, to_them, server_side=True), theirs.wrap_bio(to_them, to_us)
    for side in (client, server, client):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    shown = client.getpeercert() or {}
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(shown["notAfter"])), UTC)
