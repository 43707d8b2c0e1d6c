"""What an operator can change, with units. Read once, frozen."""

import difflib
import os
import re
import uuid
from collections.abc import Mapping
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar

from dotenv import dotenv_values
from pydantic import (
    AliasChoices,
    Field,
    HttpUrl,
    SecretStr,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

DATABASE_URLS = "must have the form sqlite+aiosqlite:///FILE or postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE"
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SettingsError(Exception):
    """A setting is unknown or wrong. The text names each one, its problem and the cure."""


class GatewaySettings(BaseSettings):
    """The gateway's settings: environment (`GATEWAY_…`), then `.env`, then these defaults."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_", env_file=".env", extra="ignore", frozen=True)

    scp_host: str = Field("127.0.0.1", description="Address the DICOM listener binds to.")
    scp_port: int = Field(6667, ge=0, le=65535, description="DICOM port; 0 takes a free one and logs it.")
    ae_title: Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^[ -\[\]-~]{1,16}$")] = Field(
        "STORESCP", description="Our AE title: 1 to 16 ASCII characters without backslash (PS3.5 §6.2)."
    )
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes that share the DICOM port, each with a journal of its own (…-1.db, …-2.db).",
    )
    allowed_peers: str = Field(
        "",
        description="Who may send, comma separated: AE titles (CT1), addresses or networks (10.0.0.0/24), or both "
        "(CT1@10.0.0.7). Empty on a loopback address: everyone on this machine.",
    )
    allow_any_peer: bool = Field(False, description="Let every peer that reaches the port send.")
    max_associations: int = Field(
        200, ge=1, description="Associations at once; further ones are rejected as transient."
    )
    max_connections_per_peer: int = Field(
        100, ge=1, description="TCP connections of one address; beyond it the oldest that is silent has to go."
    )
    associate_timeout_s: Seconds = Field(
        10.0, description="Longest wait for a TLS handshake, for an A-ASSOCIATE-RQ, and for a peer to close."
    )
    pdu_timeout_s: Seconds = Field(30.0, description="Longest time that one PDU may take.")
    association_idle_timeout_s: Seconds = Field(600.0, description="An association this long without a PDU is aborted.")
    max_pdu_bytes: int = Field(2**20, ge=2**17, description="Longest P-DATA-TF PDU; we announce 131072.")
    max_command_bytes: int = Field(2**16, ge=1024, description="Longest DIMSE command set.")
    max_header_bytes: int = Field(
        2**20, ge=4096, description="How much of a data set is kept to find the header's attributes in."
    )
    tls_cert: Path | None = Field(None, description="PEM certificate chain; with it the DICOM port speaks TLS only.")
    tls_key: Path | None = Field(None, description="PEM key of the certificate; by default in the same file.")
    tls_ca: Path | None = Field(None, description="PEM certificates that senders' certificates are checked against.")
    tls_client_certs: Literal["none", "optional", "required"] = Field(
        "none", description="Whether senders have to show a certificate: none, optional, required."
    )
    server_url: HttpUrl = Field(HttpUrl("http://127.0.0.1:8000"), description="Where series reports are posted.")
    server_ca: Path | None = Field(
        None, description="PEM certificates that an https server's is checked against; by default the system's."
    )
    api_key: SecretStr | None = Field(
        None, description="Key that the server wants, sent as a bearer token; not a flag, for others would see it."
    )
    api_key_file: Path | None = Field(
        None, description="File with the key on one line; read at start, and again when the server answers 401."
    )
    id: str = Field(
        default_factory=lambda: f"{os.uname().nodename[:51]}-{uuid.uuid4().hex[:12]}",
        min_length=1,
        max_length=64,
        pattern=r"^[^\x00-\x1f\x7f/]+$",
        description="Name of this gateway in its reports; by default host name and a random part.",
    )
    idle_policy: Literal["adaptive", "fixed"] = Field(
        "adaptive", description="How long a series may be quiet: learnt per sender and modality, or the same for all."
    )
    idle_timeout_s: Seconds = Field(
        2.0,
        description="Fixed policy: a series this long without a new image is reported as idle. Adaptive policy: what "
        "the waits for a sender not known yet are derived from.",
    )
    idle_max_s: Seconds = Field(400.0, description="Longest adaptive wait, grace included.")
    missing_timeout_s: Seconds = Field(
        60.0, description="How long a quiet series waits for images that its PACS has and has not sent."
    )
    pacs: str = Field(
        "",
        description="Senders that can be asked what a series holds: AE@HOST:PORT, or AE@tls://HOST:PORT over TLS, "
        "comma separated, matched by the calling AE title.",
    )
    pacs_ca: Path | None = Field(
        None,
        description="PEM certificates that those of tls:// entries of GATEWAY_PACS are checked against; host names are "
        "not. Our own is GATEWAY_TLS_CERT.",
    )
    pacs_timeout_s: Seconds = Field(5.0, description="Longest wait for a PACS: to associate, and for each answer.")
    fetch_missing: Literal["off", "get", "move"] = Field(
        "off", description="Fetch what the PACS has and did not send, by C-GET, or by C-MOVE to our AE title."
    )
    trace_path: Path | None = Field(
        None, description="Record when images come, as JSON Lines, for `make completion TRACES=folder`."
    )
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="Port of the Prometheus metrics, over HTTP; worker N listens N-1 above it."
    )
    metrics_host: str = Field("127.0.0.1", description="Address that the metrics are bound to.")
    max_open_s: Seconds = Field(3600.0, description="A series open this long is reported as capped, quiet or not.")
    drain_timeout_s: Seconds = Field(
        30.0, description="On SIGTERM and drain: longest wait for open associations, then for undelivered reports."
    )
    inbox_size: int = Field(1000, ge=1, description="Instances between the SCP and the collector.")
    inbox_timeout_s: Seconds = Field(5.0, description="How long a C-STORE waits for room before it is refused 0xA700.")
    journal_path: Path = Field(
        Path("gateway-journal.db"), description="What is acknowledged and not yet delivered; one file a gateway."
    )
    journal_max_bytes: int = Field(4 * 2**30, ge=2**16, description="Journal size beyond which C-STORE gets 0xA700.")
    min_free_bytes: int = Field(
        256 * 2**20, ge=0, description="Free disk beside the journal below which C-STORE gets 0xA700."
    )
    max_pending_instances: int = Field(
        2_000_000, ge=1, description="Instances open or undelivered beyond which C-STORE gets 0xA700."
    )
    dispatch_concurrency: int = Field(8, ge=1, le=256, description="Reports posted at the same time.")
    request_timeout_s: Seconds = Field(10.0, description="Longest wait for one answer of the server.")
    retry_max_s: Seconds = Field(30.0, description="Longest back-off between two tries of one report.")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if any(entry in ("", "@") for entry in self._entries()):
            raise ValueError("GATEWAY_ALLOWED_PEERS has an empty entry: remove the comma")
        self._peers  # noqa: B018 - raises where an entry is wrong
        over_tls = [name for name, peer in self.pacs_by_ae_title.items() if peer.tls]  # raises where an entry is wrong
        if over_tls and self.pacs_ca is None:
            raise ValueError(
                f"GATEWAY_PACS asks {over_tls[0]} over tls://: name the PEM file of who signed its certificate, or "
                "that certificate itself, in GATEWAY_PACS_CA"
            )
        if self.pacs_ca is not None and not over_tls:
            raise ValueError("GATEWAY_PACS_CA does nothing without TLS: write AE@tls://HOST:PORT into GATEWAY_PACS")
        if self.fetch_missing != "off" and not self.pacs.strip():
            raise ValueError(f"GATEWAY_FETCH_MISSING={self.fetch_missing} needs GATEWAY_PACS to fetch from")
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("GATEWAY_API_KEY and GATEWAY_API_KEY_FILE are both given: remove one")
        if self.api_key is not None and (problem := key_problem(self.api_key.get_secret_value())):
            raise ValueError(f"GATEWAY_API_KEY {problem}: give the key as the server issued it, or remove the setting")
        if self.server_ca is not None and self.server_url.scheme != "https":
            raise ValueError("GATEWAY_SERVER_CA does nothing without https: let GATEWAY_SERVER_URL begin with https://")
        if (self.metrics_port or 0) + self.workers - 1 > 65535:
            raise ValueError(f"GATEWAY_METRICS_PORT={self.metrics_port} leaves no ports for {self.workers} workers")
        if self.tls_cert is None and (self.tls_key or self.tls_ca or self.tls_client_certs != "none"):
            raise ValueError("GATEWAY_TLS_CERT is missing: without it the other GATEWAY_TLS_… do nothing")
        if self.tls_client_certs != "none" and self.tls_ca is None:
            raise ValueError(f"GATEWAY_TLS_CLIENT_CERTS={self.tls_client_certs} needs GATEWAY_TLS_CA to check them")
        if not (self.allowed_peers.strip() or self.allow_any_peer or is_loopback(self.scp_host)):
            raise ValueError(
                f"GATEWAY_SCP_HOST={self.scp_host} can be reached from other machines. Name who may send in "
                "GATEWAY_ALLOWED_PEERS (AE titles, addresses, networks), or set GATEWAY_ALLOW_ANY_PEER=true"
            )
        return self

    @property
    def exposes_key(self) -> bool:
        """Whether a key travels in clear text to another machine."""
        host = (self.server_url.host or "").strip("[]")
        has_key = self.api_key is not None or self.api_key_file is not None
        return has_key and self.server_url.scheme == "http" and not is_loopback(host)

    @property
    def journals(self) -> list[Path]:
        """The journal of each worker."""
        path = self.journal_path
        if self.workers == 1:
            return [path]
        return [path.with_name(f"{path.stem}-{n}{path.suffix}") for n in range(1, self.workers + 1)]

    def of_worker(self, number: int) -> Self:
        """With files, a name and a metrics port of its own."""
        trace = self.trace_path and self.trace_path.with_name(
            f"{self.trace_path.stem}-{number}{self.trace_path.suffix}"
        )
        port = self.metrics_port and self.metrics_port + number - 1  # each its own free one, where it is 0
        own = {"id": f"{self.id[:60]}-{number}", "metrics_port": port}
        return self.model_copy(update={"journal_path": self.journals[number - 1], "trace_path": trace} | own)

    @cached_property
    def pacs_by_ae_title(self) -> dict[str, "Peer"]:
        """Who can be asked, by AE title."""
        entries = [_pacs(entry.strip()) for entry in self.pacs.split(",")] if self.pacs.strip() else []
        return {peer.ae_title: peer for peer in entries}

    def may_connect(self, address: str) -> bool:
        """Whether a peer at this address may send at all, whatever it calls itself."""
        return self._everyone or any(_matches(network, address) for _, network in self._peers)

    def may_associate(self, calling_ae_title: str, address: str) -> bool:
        """Whether this peer may send."""
        return self._everyone or any(
            ae_title in ("", calling_ae_title.strip()) and _matches(network, address)
            for ae_title, network in self._peers
        )

    @property
    def _everyone(self) -> bool:
        return self.allow_any_peer or not self.allowed_peers.strip()

    @cached_property
    def _peers(self) -> list[tuple[str, IPv4Network | IPv6Network | None]]:
        """AE title ('' for any) and network (None for any) of each entry."""
        return [_peer(entry) for entry in self._entries()]

    def _entries(self) -> list[str]:
        return [entry.strip() for entry in self.allowed_peers.split(",")] if self.allowed_peers.strip() else []


class Peer(NamedTuple):
    """A DICOM application that we call."""

    ae_title: str
    host: str
    port: int
    tls: bool = False

    def __str__(self) -> str:
        """As in GATEWAY_PACS."""
        return f"{self.ae_title}@{'tls://' if self.tls else ''}{self.host}:{self.port}"


def _pacs(entry: str) -> Peer:
    ae_title, at, address = entry.partition("@")
    scheme, tls, rest = address.rpartition("://")
    host, colon, port = rest.rpartition(":")
    is_port = port.isascii() and port.isdigit() and 0 < int(port) < 65536
    is_host = bool(host) and not re.search(r"[/@\s]", host)
    if not (ae_title.strip() and at and is_host and colon and is_port) or scheme.lower() != ("tls" if tls else ""):
        raise ValueError(f"GATEWAY_PACS entry {entry!r} is not of the form AE@HOST:PORT or AE@tls://HOST:PORT")
    return Peer(ae_title.strip(), host.strip("[]"), int(port), bool(tls))


def _peer(entry: str) -> tuple[str, IPv4Network | IPv6Network | None]:
    ae_title, at, network = entry.rpartition("@")
    try:
        return ae_title, ip_network(network, strict=False)
    except ValueError:
        if at:
            raise ValueError(f"{entry!r} is not of the form AE@address or AE@network") from None
        return network, None


def _matches(network: IPv4Network | IPv6Network | None, address: str) -> bool:
    return network is None or ip_address(address) in network


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def key_problem(key: str) -> str | None:
    """Why this cannot be a key, in words that do not show it; None where it can be one."""
    if not key.strip():
        return "is empty"
    if not re.fullmatch(r"[!-~]+", key):
        return "holds a space, a line break or a character that is not ASCII"
    return None


class ServerSettings(BaseSettings):
    """The server's settings: environment (`SERVER_…` and `DATABASE_URL`), then `.env`, then these defaults."""

    model_config = SettingsConfigDict(
        env_prefix="SERVER_", env_file=".env", extra="ignore", frozen=True, populate_by_name=True
    )

    database_url: str = Field(
        "sqlite+aiosqlite:///series.db",
        validation_alias=AliasChoices("DATABASE_URL"),
        description="Where series are stored: sqlite+aiosqlite:///FILE, or "
        "postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE.",
    )
    database_pool_size: int = Field(10, ge=1, le=1000, description="PostgreSQL connections of one server process.")
    database_timeout_s: Seconds = Field(
        10.0, description="PostgreSQL: longest wait for a connection, and for one statement."
    )
    max_body_bytes: int = Field(16 * 2**20, ge=1024, description="Largest request body; beyond it 413.")
    requests_per_s: float = Field(
        500.0, gt=0, allow_inf_nan=False, description="Requests of one key, or of this machine; beyond it 429."
    )
    audit_path: Path | None = Field(
        None, description="File of its own for the audit log, JSON Lines; by default it goes with the other logs."
    )
    retrieve_url: HttpUrl | None = Field(
        None, description="DICOMweb service that holds the images; QIDO-RS answers then say where to retrieve them."
    )

    @field_validator("database_url")
    @classmethod
    def _is_known(cls, url: str) -> str:
        if ":memory:" in url or not re.fullmatch(r"sqlite\+aiosqlite:///.+|postgresql\+asyncpg://[^/]*/.+", url):
            raise ValueError(DATABASE_URLS)
        return url


S = TypeVar("S", bound=BaseSettings)


def load(cls: type[S], flags: Mapping[str, Any] | None = None) -> S:
    """Read settings; `flags` (given on the command line) win over the environment. Raises SettingsError."""
    prefix = str(cls.model_config["env_prefix"])
    known = {variable(cls, name) for name in cls.model_fields}
    given = dotenv_values(".env") | os.environ
    problems = [
        f"{name}: unknown setting{_service_link(name, given[name]) or _suggest(name, known)}"
        for name in sorted(given)
        if name.upper().startswith(prefix) and name.upper() not in known
    ]
    try:
        settings = cls(**(flags or {}))
    except ValidationError as error:
        problems += [_explain(cls, details) for details in error.errors(include_url=False)]
    if problems:
        raise SettingsError("\n".join(problems))
    return settings


def variable(cls: type[BaseSettings], name: str) -> str:
    """The environment variable of a field: `scp_port` is `GATEWAY_SCP_PORT`."""
    alias = cls.model_fields[name].validation_alias
    return (
        str(alias.choices[0]) if isinstance(alias, AliasChoices) else f"{cls.model_config['env_prefix']}{name}".upper()
    )


def _suggest(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name.upper(), known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; remove it, or use one of {', '.join(sorted(known))}"


def _service_link(name: str, value: str | None) -> str:
    """The cure where Kubernetes put a variable there: one for each service, named after it."""
    injected = r".*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)"
    if re.fullmatch(injected, name.upper()) or re.match("(tcp|udp|sctp)://", value or ""):
        return "; Kubernetes sets it for a service of that name: enableServiceLinks: false in the pod's spec"
    return ""


def _explain(cls: type[BaseSettings], details: Any) -> str:
    if not details["loc"]:
        return str(details["msg"]).removeprefix("Value error, ")
    name = str(details["loc"][0])
    field = next((f for f in cls.model_fields if name in (f, variable(cls, f))), name)
    given, message = details["input"], str(details["msg"]).removeprefix("Value error, ")
    about = cls.model_fields[field].description if field in cls.model_fields else ""
    return f"{variable(cls, field)}={without_password(repr(given))}: {message}. {about}{_service_link('', str(given))}"


def without_password(url: str) -> str:
    """A URL that may be shown: without what stands before an @, or behind a ?."""
    return re.sub(r"//[^?#\s]*@", "//***@", re.sub(r"\?[^\s']*", "?…", url))
