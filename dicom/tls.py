"""Make TLS contexts as in PS3.15 B.12 (BCP 195), for our own port and for calls to a PACS."""

import ssl
from typing import Any, cast

from common.errors import SeriesGatewayError
from common.settings import GatewaySettings

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2, BCP 195
CALLED_CIPHERS = f"{CIPHERS}:DHE+AESGCM"  # for calls, since the other side has the DH parameters


class BadCertificate(SeriesGatewayError):
    """The certificate files cannot be used."""


def tls_context(settings: GatewaySettings) -> ssl.SSLContext | None:
    """Return the TLS context of our own port (PS3.15 B.12): TLS 1.2 with ECDHE and AES-GCM, or 1.3. None without TLS.

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
        cure = "Give readable PEM files, and a key that belongs to the certificate."
        raise BadCertificate(f"{files}: {error.strerror or error}. {cure}") from error


# --- towards a PACS ---------------------------------------------------------------------------------------------


class _TlsSocket(ssl.SSLSocket):
    """Stores its error in its context, since pynetdicom only logs it."""

    def connect(self, addr: Any) -> None:
        try:
            super().connect(addr)
        except OSError as error:
            cast(Tls, self.context).problem = error
            raise

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        try:
            return super().recv(buflen, flags)
        except OSError as error:  # in TLS 1.3 the PACS refuses our certificate only after the handshake
            cast(Tls, self.context).problem = error
            raise


class Tls(ssl.SSLContext):
    """The client's TLS context of one association."""

    sslsocket_class = _TlsSocket
    problem: OSError | None = None
    """Why the association was not made, or broke off."""

    def __new__(cls) -> "Tls":
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def said(self) -> str:
        """Say what went wrong, and what may fix it."""
        error = self.problem
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"TLS: its certificate is not valid: {error.verify_message}: is its issuer in GATEWAY_PACS_CA?"
        reason = (getattr(error, "reason", None) or getattr(error, "strerror", None) or "no answer in time").lower()
        words = reason.replace("_", " ")
        if " alert " in f" {words} " and "version" not in words:
            other = ", or does not speak TLS 1.2 or later as in BCP 195" if "handshake" in words else ""
            return f"TLS: {words}: it does not accept our certificate (GATEWAY_TLS_CERT), or wants one{other}"
        if isinstance(error, ConnectionRefusedError):
            return f"cannot be reached: {words}"
        return f"TLS: {words}: does it speak TLS 1.2 or later on this port?"


def pacs_tls(settings: GatewaySettings) -> Tls:
    """Return the TLS context for one call to a PACS. The files are read again each time. Raises BadCertificate.

    Host names are not checked, since DICOM certificates seldom have them. Everyone in GATEWAY_PACS_CA is trusted.
    """
    context = Tls()
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # allows the PACS's own certificate in GATEWAY_PACS_CA
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CALLED_CIPHERS)
    try:
        context.load_verify_locations(settings.pacs_ca)
        if settings.tls_cert is not None:
            context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except OSError as error:  # ssl.SSLError is one
        files = f"GATEWAY_PACS_CA={settings.pacs_ca} GATEWAY_TLS_CERT={settings.tls_cert or ''}"
        cure = "Give readable PEM files: the authority of the PACS's certificate, and our certificate with its key."
        raise BadCertificate(f"{files}: {error.strerror or error}. {cure}") from error
    return context
