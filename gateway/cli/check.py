"""`python client.py check`: whether a gateway with these settings would work here, and the cure of what would not."""

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
SOON_DAYS = 30  # before the end of a certificate
OTHER_FILES = 60  # file descriptors beside those of associations: journal, posts, listeners, libraries


async def check(settings: GatewaySettings) -> list[Finding]:
    """What is well and what is not, everything asked side by side."""
    for name in ("pynetdicom", "pydicom"):  # what they say of a peer, the findings say
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
        cure = f"Give it a name that stays: GATEWAY_ID={socket.gethostname()[:51]}."
        findings.append(warning("settings", "GATEWAY_ID is made up anew at each start", cure))
    if settings.trace_path is not None:
        cure = "Remove it, unless you record traffic now: the file grows with every image."
        findings.append(warning("settings", f"GATEWAY_TRACE_PATH={settings.trace_path} is on", cure))
    secret = [settings.api_key_file] if settings.api_key_file else [Path(".env")] if settings.api_key else []
    return findings + machine.readable_by_others("settings", secret)


def _senders(settings: GatewaySettings) -> list[Finding]:
    local = is_loopback(settings.scp_host)
    if settings.allow_any_peer:
        cure = "Name the senders in GATEWAY_ALLOWED_PEERS (AE titles, addresses, networks) and remove it."
        told = "GATEWAY_ALLOW_ANY_PEER: everyone who reaches the port"
        return [warning("who may send", told, cure) if not local else ok("who may send", told)]
    if settings.allowed_peers.strip():
        return [ok("who may send", settings.allowed_peers)]
    return [ok("who may send", "everyone on this machine")]


def _tls(settings: GatewaySettings) -> list[Finding]:
    if settings.tls_cert is None:
        if is_loopback(settings.scp_host):
            return [ok("TLS", "off; the port is for this machine only")]
        cure = "GATEWAY_TLS_CERT and GATEWAY_TLS_KEY, if senders speak DICOM TLS; else keep it in a network of its own."
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
    cure = f"ulimit -n {2 * needed} before the start (systemd: LimitNOFILE={2 * needed}), or fewer associations."
    return [warning("file descriptors", told, cure)]


# --- ports ------------------------------------------------------------------------------------------------------


def _running(settings: GatewaySettings) -> list[Finding]:
    """What a gateway that runs on these journals says of itself; empty where none runs."""
    findings = []
    for path in settings.journals:
        try:
            said = request(path, REQUEST_TIMEOUT_S, "status")
        except NotRunning:
            continue
        except RequestFailed as error:
            cure = "Run this as the user whom the gateway runs as."
            findings.append(warning("gateway", f"one runs on {path.name}: {error}", cure))
            continue
        if said.get("ready"):
            findings.append(ok("gateway", f"runs on {path.name} and takes images in"))
        else:
            cure = "`python client.py status` shows what waits; free disk, or cure the server so that reports leave."
            findings.append(failed("gateway", f"runs on {path.name} and takes nothing in: {said.get('reason')}", cure))
    return findings


def _port(settings: GatewaySettings, alive: Sequence[Finding]) -> list[Finding]:
    """A running gateway is called, where none runs its port is tried."""
    host, port = settings.scp_host, settings.scp_port
    if not alive:
        return [bind("DICOM port", host, port, "GATEWAY_SCP_PORT or GATEWAY_SCP_HOST")]
    if port == 0:
        return [*alive, warning("DICOM port", "0: any free one, another at each start", "Give senders one that stays.")]
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
        cure = "Start the gateway again with this setting, or look what its log says."
        return [warning("metrics port", f"the running gateway does not serve it: {error.strerror}", cure)]


def _callable(host: str) -> str:
    """Where this machine reaches what is bound to all of its addresses."""
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
            [*findings, ok(what, "not there yet: made at the first start")]
            if findings[0].state != "failed"
            else findings
        )
    cure = "Copy it and its -wal away first; the next start sets it aside (….corrupt-…) and begins a new one."
    sound = machine.soundness(what, path, cure)
    if sound.state == "failed":
        return [*findings, sound]
    files = [path.with_name(f"{path.name}{suffix}") for suffix in ("", "-wal", "-shm")]
    return [*findings, *_contents(what, path, sound.detail), *machine.readable_by_others(what, files)]


def _contents(what: str, path: Path, told: str) -> list[Finding]:
    try:
        version = journal_reader.schema_version(path)
        if version > SCHEMA_VERSION:
            cure = "Run the version that wrote it until the journal is empty, or name another file."
            return [failed(what, f"schema {version} is of a newer version; this one knows {SCHEMA_VERSION}", cure)]
        if version == 0:
            return [ok(what, f"{told}, and empty")]
        held = journal_reader.status(path)
    except JournalUnusable as error:
        return [failed(what, str(error), machine.AS_ITS_USER)]
    age = f"schema {version}" + (f", brought up to {SCHEMA_VERSION} at the start" if version < SCHEMA_VERSION else "")
    findings = [ok(what, f"{told}, {age}, {held['waiting_reports']} reports wait")]
    if held["dead_letters"]:
        cure = "`python client.py dead-letters list` shows why; then `dead-letters replay` or `discard`."
        findings.append(warning(what, f"{held['dead_letters']} reports were refused by the server for good", cure))
    return findings


def _left_out(settings: GatewaySettings) -> list[Finding]:
    """Journals of an earlier number of workers, which nobody delivers."""
    path = settings.journal_path
    beside = {path, *path.parent.glob(f"{path.stem}-[0-9]*{path.suffix}")} - {*settings.journals}
    findings = []
    for other in sorted(p for p in beside if os.path.isfile(p) and time.time() > p.stat().st_mtime):
        try:
            undelivered = journal_reader.undelivered(other)
        except JournalUnusable:
            continue  # something else of that name
        if undelivered:
            cure = f"python client.py --workers 1 --journal-path {other} drain"
            findings.append(
                warning("journals left out", f"{other} holds what is not delivered, and no worker has it", cure)
            )
    return findings


# --- certificates -----------------------------------------------------------------------------------------------


def expiry(what: str, certificate: Path, key: Path | None) -> Finding:
    """Whether a certificate is valid now, and in 30 days."""
    cure = f"Have {certificate} renewed, then send the gateway SIGHUP."
    try:
        ends_at = end_of(certificate, key)
    except ssl.SSLCertVerificationError as error:
        return failed(what, f"{certificate}: {error.verify_message}", cure)
    left = ends_at - datetime.now(UTC)
    told = f"{certificate} is valid until {stamp(ends_at)}"
    return ok(what, told) if left.days >= SOON_DAYS else warning(what, f"{told}, {left.days} days more", cure)


def end_of(certificate: Path, key: Path | None) -> datetime:
    """When it expires, by a handshake in memory that trusts nothing but it. Raises SSLCertVerificationError."""
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
