"""Until when a certificate is good."""

import contextlib
import ssl
from datetime import UTC, datetime
from pathlib import Path

from console.findings import Finding, failed, ok, warning
from console.tables import stamp

SOON_DAYS = 30


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
