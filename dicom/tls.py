"""DICOM over TLS, as in PS3.15 B.12 (BCP 195): at our own port, and towards a PACS."""

import ssl
from typing import Any, cast

from common.errors import GatewayError
from common.settings import GatewaySettings

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2, BCP 195
CALLED_CIPHERS = f"{CIPHERS}:DHE+AESGCM"  # where the other side has the DH parameters


class BadCertificate(GatewayError):
    """The certificate files cannot be used."""


def tls_context(settings: GatewaySettings) -> ssl.SSLContext | None:
    """DICOM TLS as in PS3.15 B.12 (BCP 195): TLS 1.2 with ECDHE and AES-GCM, or 1.3. None where it is not wanted.

    Raises BadCertificate.
    """
    if settings.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.verify_mode = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}[
        settings.tls_client_certs
    ]
    load_certificates(context, settings)
    return context


def load_certificates(context: ssl.SSLContext, settings: GatewaySettings) -> None:
    """Read the certificate files. Raises BadCertificate."""
    try:
        context.load_cert_chain(str(settings.tls_cert), settings.tls_key)
        if settings.tls_ca is not None:
            context.load_verify_locations(settings.tls_ca)
    except OSError as error:  # ssl.SSLError is one
        files = (
            f"GATEWAY_TLS_CERT={settings.tls_cert} GATEWAY_TLS_KEY={settings.tls_key} GATEWAY_TLS_CA={settings.tls_ca}"
        )
        cure = "Name readable PEM files whose key fits the certificate."
        raise BadCertificate(f"{files}: {error.strerror or error}. {cure}") from error


# --- towards a PACS ---------------------------------------------------------------------------------------------


class _TlsSocket(ssl.SSLSocket):
    """Tells its context why it failed: pynetdicom only logs that."""

    def connect(self, addr: Any) -> None:
        try:
            super().connect(addr)
        except OSError as error:
            cast(Tls, self.context).problem = error
            raise

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        try:
            return super().recv(buflen, flags)
        except OSError as error:  # so a refused certificate of ours shows in TLS 1.3: after the handshake
            cast(Tls, self.context).problem = error
            raise


class Tls(ssl.SSLContext):
    """A client's side of TLS, for one association."""

    sslsocket_class = _TlsSocket
    problem: OSError | None = None
    """Why the association was not made, or broke."""

    def __new__(cls) -> "Tls":
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def said(self) -> str:
        """The problem in words, and what may be the cure."""
        error = self.problem
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"TLS: its certificate is not good: {error.verify_message}: is its issuer in GATEWAY_PACS_CA?"
        reason = (getattr(error, "reason", None) or getattr(error, "strerror", None) or "no answer in time").lower()
        words = reason.replace("_", " ")
        if " alert " in f" {words} " and "version" not in words:
            other = ", or speaks other TLS than 1.2 and later of BCP 195" if "handshake" in words else ""
            return f"TLS: {words}: it does not take our certificate (GATEWAY_TLS_CERT), or wants one{other}"
        if isinstance(error, ConnectionRefusedError):
            return f"cannot be reached: {words}"
        return f"TLS: {words}: does it speak TLS 1.2 or later on this port?"


def pacs_tls(settings: GatewaySettings) -> Tls:
    """TLS to a PACS, as at our own port; its files are read anew each time. Raises BadCertificate.

    Host names are not checked, which DICOM certificates seldom have: who is in GATEWAY_PACS_CA is trusted.
    """
    context = Tls()
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # so that the certificate of one PACS can be named, too
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CALLED_CIPHERS)
    try:
        context.load_verify_locations(settings.pacs_ca)
        if settings.tls_cert is not None:
            context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except OSError as error:  # ssl.SSLError is one
        files = f"GATEWAY_PACS_CA={settings.pacs_ca} GATEWAY_TLS_CERT={settings.tls_cert or ''}"
        cure = "Name readable PEM files: who signed the PACS's certificate, and ours with its key."
        raise BadCertificate(f"{files}: {error.strerror or error}. {cure}") from error
    return context
