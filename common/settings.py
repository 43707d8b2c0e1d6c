"""All settings of gateway and server, with their units. They are read once at the start and never change."""

import os
import re
import uuid
from collections.abc import Mapping
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeVar

from common import kinds
from common.errors import SeriesGatewayError
from common.extras import Extra, extras
from common.kinds import Secret, Setting, Url
from common.required import required_series

IN_VIEWER_URL = ("StudyInstanceUID", "SeriesInstanceUID")
ORIGIN = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")  # the form browsers send (RFC 6454 §6.2)


class SettingsError(SeriesGatewayError):
    """A setting is unknown or wrong. The text names each one, its problem and the cure."""


class Settings:
    """A set of declared settings and their values. The names `model_…` are those of pydantic-settings."""

    model_fields: ClassVar[dict[str, Setting]]
    prefix: ClassVar[str]
    """What the names of the environment variables begin with."""
    model_fields_set: frozenset[str]
    """The settings that were given; the others have their defaults."""
    flags: frozenset[str]
    """The settings that were given on the command line."""

    def __init_subclass__(cls, prefix: str) -> None:
        cls.prefix = prefix
        cls.model_fields = {name: value for name, value in vars(cls).items() if isinstance(value, Setting)}

    def __init__(self, flags: Mapping[str, Any] | None = None, /, **given: Any) -> None:
        """Check every value. `flags` come from the command line; errors name them as flags. Raises SettingsError."""
        given |= flags or {}
        given.pop("_env_file", None)  # an argument of pydantic-settings; this class reads no file
        if unknown := given.keys() - self.model_fields.keys():
            raise TypeError(f"no settings: {', '.join(sorted(unknown))}")
        vars(self).update(model_fields_set=frozenset(given), flags=frozenset(flags or ()))
        problems = []
        for name, setting in self.model_fields.items():
            try:
                vars(self)[name] = setting.read(given[name]) if name in given else setting.unset()
            except ValueError as error:
                problems.append(_explained(type(self), name, given[name], str(error)))
        try:
            if not problems:
                self._fits_together()
        except ValueError as error:
            problems.append(str(error))
        if problems:
            raise SettingsError(self.as_typed("\n".join(problems)))

    def _fits_together(self) -> None:
        """Raise ValueError if settings that are each valid contradict each other."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name}: settings cannot be changed")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{n}={getattr(self, n)!r}' for n in sorted(self.model_fields_set))})"

    def model_copy(self, *, update: Mapping[str, Any]) -> Self:
        """Return a copy with some values replaced. The new values are not checked."""
        copied = object.__new__(type(self))
        vars(copied).update({name: vars(self)[name] for name in (*self.model_fields, "model_fields_set", "flags")})
        vars(copied).update(update)
        return copied

    def as_typed(self, told: str) -> str:
        """Return a text about settings in which those typed as flags are named as flags, not as variables."""
        for name in self.flags:
            if self.model_fields[name].is_secret:
                continue  # there is no flag for it
            told = re.sub(rf"\b{variable(type(self), name)}(?![A-Z_])", f"--{name.replace('_', '-')}", told)
        return told


class GatewaySettings(Settings, prefix="GATEWAY_"):
    """The gateway's settings: from the environment (`GATEWAY_…`), then `.env`, then these defaults."""

    scp_host: str = kinds.text("127.0.0.1", "Address the DICOM listener binds to.", unit="HOST")
    scp_port: int = kinds.port(6667, "DICOM port; 0 takes a free port and logs it.")
    ae_title: str = kinds.name(
        "STORESCP",
        "Our AE title: 1 to 16 ASCII characters without backslash (PS3.5 §6.2).",
        form=r"[ -\[\]-~]{1,16}",
        words="1 to 16 ASCII characters without backslash",
        example="STORESCP",
    )
    workers: int = kinds.number(
        1, "Processes that share the DICOM port, each with a journal of its own (…-1.db, …-2.db).", least=1, most=64
    )
    allowed_peers: str = kinds.text(
        "",
        "Who may send, comma separated: AE titles (CT1), addresses or networks (10.0.0.0/24), or both "
        "(CT1@10.0.0.7). With =NAME added, only if the sender calls the gateway NAME (CT1=ARCHIVE). If empty on a "
        "loopback address, everyone on this machine may send.",
    )
    allow_any_peer: bool = kinds.truth(False, "Let every peer that reaches the port send.")
    max_associations: int = kinds.number(
        200, "Most associations at the same time; further ones are rejected as transient.", least=1
    )
    max_connections_per_peer: int = kinds.number(
        100,
        "Most associations from one address; further ones are rejected as transient. The same limit holds for "
        "connections without an association: beyond it the oldest is closed.",
        least=1,
    )
    associate_timeout_s: float = kinds.seconds(
        10.0, "Longest wait for a TLS handshake, for an A-ASSOCIATE-RQ, and for a peer to close its connection."
    )
    pdu_timeout_s: float = kinds.seconds(30.0, "Longest time from the first to the last byte of one PDU.")
    association_idle_timeout_s: float = kinds.seconds(600.0, "An association without a PDU for this long is aborted.")
    max_pdu_bytes: int = kinds.count_of_bytes(
        2**20, "Largest P-DATA-TF PDU that is accepted; peers are told 131072.", least=2**17
    )
    max_operations: int = kinds.number(
        16, "Most C-STOREs in flight where an Asynchronous Operations Window is asked for.", least=1, most=2**16 - 1
    )
    max_command_bytes: int = kinds.count_of_bytes(2**16, "Largest DIMSE command set that is accepted.", least=1024)
    max_header_bytes: int = kinds.count_of_bytes(
        2**16,
        "How much of each data set is kept while it arrives, so that pydicom can read it if the gateway's own reader "
        "fails.",
        least=4096,
    )
    extra_attributes: str = kinds.text(
        "",
        "Further attributes to keep, separated by semicolons: a keyword (EchoTime), a tag (0018,0081), or a private "
        "attribute with its creator and, if needed, its VR: (0019,0C,SIEMENS MR HEADER,IS). In a creator write %2C for "
        "a comma, %3B for a semicolon, %28 and %29 for parentheses, %25 for a per cent sign. NAME= in front gives it "
        "another name. With * at the end the values of all images are kept, without it the first of the series.",
    )
    tls_cert: Path | None = kinds.file(
        None, "PEM file of the gateway's certificate chain. If it is set, the DICOM port speaks only TLS."
    )
    tls_key: Path | None = kinds.file(None, "PEM file of the certificate's key; by default the certificate's file.")
    tls_ca: Path | None = kinds.file(None, "PEM file of certificates to check senders' certificates against.")
    tls_client_certs: Literal["none", "optional", "required"] = kinds.choice(
        "none", "Whether senders must present a certificate.", "none", "optional", "required"
    )
    server_url: Url = kinds.url(
        "http://127.0.0.1:8000", "URL of the server that series reports are posted to.", example="http://10.0.0.5:8000"
    )
    server_ca: Path | None = kinds.file(
        None,
        "PEM file of the certificates that an https server's certificate is checked against; by default the system's.",
    )
    proxy_from_env: bool = kinds.truth(
        False, "Reach the server through the proxy that HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY name."
    )
    api_key: Secret | None = kinds.secret(
        "API key for the server, sent as a bearer token. It is not a flag, since other users would see it."
    )
    api_key_file: Path | None = kinds.file(
        None, "File with the API key on one line. It is read at the start, and again when the server answers 401."
    )
    id: str = kinds.name(
        "",
        "Name of this gateway in its reports; by default the host name and a random part.",
        form=r"[^\x00-\x1f\x7f/]{1,64}",
        words="1 to 64 characters without a slash or a control character",
        example="ct-room-2",
        default_factory=lambda: f"{os.uname().nodename[:51]}-{uuid.uuid4().hex[:12]}",
    )
    idle_policy: Literal["adaptive", "fixed"] = kinds.choice(
        "adaptive",
        "How long to wait for the next image of a series: learnt for each sender and modality (adaptive), or always "
        "the same (fixed).",
        "adaptive",
        "fixed",
    )
    idle_timeout_s: float = kinds.seconds(
        2.0,
        "Policy fixed: a series without a new image for this long is reported as idle. Policy adaptive: the waits for "
        "a sender that is not known yet are derived from it.",
    )
    idle_max_s: float = kinds.seconds(
        400.0,
        "Longest wait of the adaptive policy, its grace period included. If a PACS is asked, its answer may have to "
        "stay the same for up to 45 s longer.",
    )
    missing_timeout_s: float = kinds.seconds(
        60.0, "How long a quiet series waits for images that its PACS has but did not send."
    )
    pacs: str = kinds.text(
        "",
        "PACS that can be asked which images a series has, comma separated: AE@HOST:PORT, or AE@tls://HOST:PORT over "
        "TLS. AE is the AE title under which the PACS sends.",
    )
    pacs_ca: Path | None = kinds.file(
        None,
        "PEM file of the certificates that tls:// entries of GATEWAY_PACS are checked against; their host names are "
        "not checked. The gateway itself presents GATEWAY_TLS_CERT.",
    )
    pacs_timeout_s: float = kinds.seconds(
        5.0, "Longest wait for a PACS to accept an association, and for each of its answers."
    )
    fetch_missing: Literal["off", "get", "move"] = kinds.choice(
        "off",
        "Fetch the images that the PACS has but did not send: by C-GET (get), or by C-MOVE to this gateway (move).",
        "off",
        "get",
        "move",
    )
    trace_path: Path | None = kinds.file(
        None, "File to record the times of arriving images in, as JSON Lines, for `make policies TRACES=folder`."
    )
    metrics_port: int | None = kinds.port(
        None, "Port of the Prometheus metrics, over HTTP; worker N listens on this port plus N-1.", example=9464
    )
    metrics_host: str = kinds.text("127.0.0.1", "Address that the metrics port binds to.", unit="HOST")
    max_open_s: float = kinds.seconds(
        3600.0, "A series that has been open for this long is reported as capped, even if images still come."
    )
    drain_timeout_s: float = kinds.seconds(
        30.0, "On SIGTERM and `drain`: longest wait for open associations, and then for undelivered reports."
    )
    inbox_size: int = kinds.number(1000, "Most instances that wait between the SCP and the collector.", least=1)
    inbox_timeout_s: float = kinds.seconds(
        5.0, "How long a C-STORE waits for room in the inbox before it is refused with 0xA700."
    )
    journal_path: Path = kinds.file(
        "gateway-journal.db",
        "File of everything that is acknowledged and not yet delivered; one file for each gateway.",
    )
    journal_max_bytes: int = kinds.count_of_bytes(
        4 * 2**30, "Largest size of the journal; beyond it C-STORE is refused with 0xA700.", least=2**16
    )
    min_free_bytes: int = kinds.count_of_bytes(
        256 * 2**20,
        "Least free disk space beside the journal; below it C-STORE is refused with 0xA700.",
        least=0,
    )
    max_pending_instances: int = kinds.number(
        2_000_000,
        "Most instances that are open or undelivered; beyond it C-STORE is refused with 0xA700.",
        least=1,
    )
    dispatch_concurrency: int = kinds.number(8, "Most reports that are posted at the same time.", least=1, most=256)
    request_timeout_s: float = kinds.seconds(10.0, "Longest wait for an answer of the server.")
    retry_max_s: float = kinds.seconds(30.0, "Longest pause between two attempts to post a report.")

    def _fits_together(self) -> None:
        self.extras  # noqa: B018 - raises if an entry is wrong
        if any(entry in ("", "@") for entry in self._entries()):
            raise ValueError("GATEWAY_ALLOWED_PEERS has an empty entry: remove the comma")
        self._peers  # noqa: B018 - raises if an entry is wrong
        over_tls = [name for name, peer in self.pacs_by_ae_title.items() if peer.tls]  # raises if an entry is wrong
        if over_tls and self.pacs_ca is None:
            raise ValueError(
                f"GATEWAY_PACS asks {over_tls[0]} over TLS: set GATEWAY_PACS_CA to the PEM file of its certificate, or "
                "of the authority that signed it"
            )
        if self.pacs_ca is not None and not over_tls:
            raise ValueError(
                "GATEWAY_PACS_CA has no effect without TLS: write AE@tls://HOST:PORT in GATEWAY_PACS, or remove it"
            )
        if self.fetch_missing != "off" and not self.pacs.strip():
            raise ValueError(f"GATEWAY_FETCH_MISSING={self.fetch_missing} needs GATEWAY_PACS to fetch from")
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("GATEWAY_API_KEY and GATEWAY_API_KEY_FILE are both given: remove one")
        if self.api_key is not None and (problem := key_problem(self.api_key.get_secret_value())):
            raise ValueError(f"GATEWAY_API_KEY {problem}: give the key as the server issued it, or remove the setting")
        if self.server_ca is not None and self.server_url.scheme != "https":
            raise ValueError(
                "GATEWAY_SERVER_CA has no effect without https: begin GATEWAY_SERVER_URL with https://, or remove it"
            )
        if (self.metrics_port or 0) + self.workers - 1 > 65535:
            raise ValueError(f"GATEWAY_METRICS_PORT={self.metrics_port} leaves no ports for {self.workers} workers")
        if self.tls_cert is None and (self.tls_key or self.tls_ca or self.tls_client_certs != "none"):
            raise ValueError("GATEWAY_TLS_CERT is missing: without it the other GATEWAY_TLS_… settings have no effect")
        if self.tls_client_certs != "none" and self.tls_ca is None:
            raise ValueError(
                f"GATEWAY_TLS_CLIENT_CERTS={self.tls_client_certs} needs GATEWAY_TLS_CA, which the certificates are "
                "checked against"
            )
        if not (self.allowed_peers.strip() or self.allow_any_peer or is_loopback(self.scp_host)):
            raise ValueError(
                f"GATEWAY_SCP_HOST={self.scp_host} can be reached from other machines. Name who may send in "
                "GATEWAY_ALLOWED_PEERS (AE titles, addresses, networks), or set GATEWAY_ALLOW_ANY_PEER=true"
            )

    @property
    def exposes_key(self) -> bool:
        """Tell if the API key is sent in clear text to another machine."""
        has_key = self.api_key is not None or self.api_key_file is not None
        return has_key and self.server_url.scheme == "http" and not is_loopback(self.server_url.host)

    @property
    def journals(self) -> list[Path]:
        """Return the path of each worker's journal."""
        path = self.journal_path
        if self.workers == 1:
            return [path]
        return [path.with_name(f"{path.stem}-{n}{path.suffix}") for n in range(1, self.workers + 1)]

    def of_worker(self, number: int) -> Self:
        """Return the settings of one worker, counted from 1: with its own files, name and metrics port."""
        trace = self.trace_path and self.trace_path.with_name(
            f"{self.trace_path.stem}-{number}{self.trace_path.suffix}"
        )
        port = self.metrics_port and self.metrics_port + number - 1  # 0 stays 0: each worker takes a free port
        own = {"id": f"{self.id[:60]}-{number}", "metrics_port": port}
        return self.model_copy(update={"journal_path": self.journals[number - 1], "trace_path": trace} | own)

    @cached_property
    def pacs_by_ae_title(self) -> dict[str, "Peer"]:
        """Return the PACS that can be asked, by AE title."""
        entries = [_pacs(entry.strip()) for entry in self.pacs.split(",")] if self.pacs.strip() else []
        return {peer.ae_title: peer for peer in entries}

    @cached_property
    def extras(self) -> tuple[Extra, ...]:
        """Return the attributes that `extra_attributes` names."""
        return extras(self.extra_attributes)

    def may_connect(self, address: str) -> bool:
        """Tell if a peer at this address may send under some AE title."""
        return self._everyone or any(_matches(sender.network, address) for sender in self._peers)

    def may_associate(self, calling_ae_title: str, address: str, called_ae_title: str | None = None) -> bool:
        """Tell if a peer may send. Without `called_ae_title` it is enough if it may under one called AE title."""
        return self._everyone or any(
            sender.ae_title in ("", calling_ae_title)
            and (called_ae_title is None or sender.called in ("", called_ae_title))
            and _matches(sender.network, address)
            for sender in self._peers
        )

    def near(self, calling_ae_title: str, address: str, called_ae_title: str) -> str | None:
        """Return the first entry of GATEWAY_ALLOWED_PEERS that would match if case and padding were ignored."""
        calling, called = _folded(calling_ae_title), _folded(called_ae_title)
        for entry, sender in zip(self._entries(), self._peers, strict=True):
            is_meant = _folded(sender.ae_title) in ("", calling) and _folded(sender.called) in ("", called)
            if is_meant and _matches(sender.network, address):
                return entry
        return None

    @property
    def max_waiting(self) -> int:
        """Return the most connections without an association at the same time, from all addresses together."""
        return max(self.max_associations, self.max_connections_per_peer)

    @property
    def _everyone(self) -> bool:
        return self.allow_any_peer or not self.allowed_peers.strip()

    @cached_property
    def _peers(self) -> list["_Sender"]:
        return [_peer(entry) for entry in self._entries()]

    def _entries(self) -> list[str]:
        return [entry.strip() for entry in self.allowed_peers.split(",")] if self.allowed_peers.strip() else []


class Peer(NamedTuple):
    """A DICOM application that the gateway calls."""

    ae_title: str
    host: str
    port: int
    tls: bool = False

    def __str__(self) -> str:
        """Write it as an entry of GATEWAY_PACS."""
        return f"{self.ae_title}@{'tls://' if self.tls else ''}{self.host}:{self.port}"


def _pacs(entry: str) -> Peer:
    ae_title, at, address = entry.partition("@")
    scheme, tls, rest = address.rpartition("://")
    host, colon, port = rest.rpartition(":")
    is_port = port.isascii() and port.isdigit() and 0 < int(port) < 65536
    is_host = bool(host) and not re.search(r"[/@\s]", host)
    if not (ae_title.strip() and at and is_host and colon and is_port) or scheme.lower() != ("tls" if tls else ""):
        raise ValueError(
            f"GATEWAY_PACS entry {entry!r} is not of the form AE@HOST:PORT or AE@tls://HOST:PORT, such as "
            "ORTHANC@10.0.0.5:4242"
        )
    return Peer(ae_title.strip(), host.strip("[]"), int(port), bool(tls))


class _Sender(NamedTuple):
    """An entry of GATEWAY_ALLOWED_PEERS. An empty AE title matches any, and so does the network None."""

    ae_title: str
    network: IPv4Network | IPv6Network | None
    called: str


def _peer(entry: str) -> _Sender:
    sender, equals, called = (part.strip() for part in entry.partition("="))
    ae_title, at, network = sender.rpartition("@")
    if equals and not called:
        raise ValueError(f"GATEWAY_ALLOWED_PEERS entry {entry!r} has no name after the =; write, say, CT1=ARCHIVE")
    try:
        return _Sender(ae_title.strip(), ip_network(network, strict=False), called)
    except ValueError:
        if at:
            raise ValueError(
                f"GATEWAY_ALLOWED_PEERS entry {entry!r} is not of the form AE@address or AE@network, such as "
                "CT1@10.0.0.7 or CT1@10.0.0.0/24"
            ) from None
        return _Sender(network, None, called)


def _folded(ae_title: str) -> str:
    """Return an AE title in one case, without spaces and control characters, for comparison."""
    return re.sub(r"[^!-~\xa1-\U0010ffff]", "", ae_title).casefold()


def _matches(network: IPv4Network | IPv6Network | None, address: str) -> bool:
    return network is None or ip_address(address) in network


def is_loopback(host: str) -> bool:
    """Tell if only this machine can reach a host."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def key_problem(key: str) -> str | None:
    """Say why a text cannot be a key, without showing it; return None if it can be one."""
    if not key.strip():
        return "is empty"
    if not re.fullmatch(r"[!-~]+", key):
        return "holds a space, a line break or a character that is not ASCII"
    return None


class ServerSettings(Settings, prefix="SERVER_"):
    """The server's settings: from the environment (`SERVER_…`, `DATABASE_URL`), then `.env`, then these defaults."""

    database_url: str = kinds.checked(
        "sqlite+aiosqlite:///series.db",
        "Where series are stored: sqlite+aiosqlite:///FILE, or postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE.",
        check=kinds.is_database,
        variable="DATABASE_URL",
    )
    database_pool_size: int = kinds.number(10, "Most PostgreSQL connections of one server process.", least=1, most=1000)
    database_timeout_s: float = kinds.seconds(
        10.0, "PostgreSQL: longest wait for a connection, and for a statement to end."
    )
    max_body_bytes: int = kinds.count_of_bytes(
        16 * 2**20, "Largest request body; a larger one is answered with 413.", least=1024
    )
    requests_per_s: float = kinds.rate(
        500.0, "Most requests a second with one key, or from this machine; further ones are answered with 429."
    )
    audit_path: Path | None = kinds.file(
        None, "File for the audit log, as JSON Lines; by default it is written to the other logs."
    )
    proxy_from_env: bool = kinds.truth(
        False, "Post webhooks through the proxy that HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY name."
    )
    retrieve_url: Url | None = kinds.url(
        None,
        "URL of the DICOMweb service that holds the images; QIDO-RS answers then say to retrieve them there.",
        example="https://pacs.example/dicom-web",
    )
    allowed_origins: str = kinds.text(
        "",
        "Origins of web pages that may read from this server, with a key: https://viewer.example, comma separated.",
    )
    viewer_url: str = kinds.text(
        "",
        "URL of the viewer that the live page links to: https://viewer.example/?StudyInstanceUIDs={StudyInstanceUID}. "
        "{SeriesInstanceUID} is replaced as well.",
    )

    required_series: str = kinds.checked(
        "",
        "Series that a study has to have, entries separated by semicolons: CT1*:CHEST*=Thorax 1.0|MPR cor. Before the "
        "= a source (sender, modality, station) and a StudyDescription, behind it SeriesDescriptions, all patterns of "
        "the shell in whatever case; the first entry that matches any series of a study holds.",
        check=required_series,
    )
    study_max_open_s: float = kinds.seconds(
        86400.0, "A study that has been open for this long gets the verdict capped, even if something is still missing."
    )

    def _fits_together(self) -> None:
        if self.viewer_url:
            _is_viewer(self.viewer_url)
        wrong = [origin for origin in self.origins if not ORIGIN.fullmatch(origin)]
        if wrong:
            raise ValueError(
                f"SERVER_ALLOWED_ORIGINS entry {wrong[0]!r} is no origin: give scheme, host and, if needed, a port, "
                "such as https://viewer.example or http://10.0.0.5:3000"
            )

    @property
    def origins(self) -> list[str]:
        """Return the entries of `allowed_origins`, in the form in which browsers send them."""
        entries = self.allowed_origins.split(",") if self.allowed_origins.strip() else []
        return [re.sub("^(http://.*):80$|^(https://.*):443$", r"\1\2", entry.strip().lower()) for entry in entries]

    @property
    def sqlite_path(self) -> Path | None:
        """Return the file of a SQLite database; None for PostgreSQL."""
        kind, _, database = self.database_url.partition(":///")
        return Path(database.partition("?")[0]).resolve() if kind == "sqlite+aiosqlite" else None


def _is_viewer(url: str) -> None:
    """Raise ValueError if a page could not link to this URL."""
    named = re.findall(r"\{([^{}]*)\}", url)
    if not (re.match(r"https?://[^/?#\s{}]+", url) and not re.search(r"\s", url)):
        problem = "is not an http or https URL"
    elif unknown := [name for name in named if name not in IN_VIEWER_URL]:
        problem = f"contains {{{unknown[0]}}}, which is unknown"
    elif not named:
        problem = "does not say where the study or series goes"
    else:
        return
    known = " or ".join(f"{{{name}}}" for name in IN_VIEWER_URL)
    raise ValueError(
        f"SERVER_VIEWER_URL={without_password(url)!r} {problem}: give a URL with {known}, such as "
        "https://viewer.example/?StudyInstanceUIDs={StudyInstanceUID}"
    )


S = TypeVar("S", bound=Settings)


def load(cls: type[S], flags: Mapping[str, Any] | None = None) -> S:
    """Read settings from the environment and `.env`; command-line `flags` win over both. Raises SettingsError."""
    names = {variable(cls, name): name for name in cls.model_fields}
    environment = _dotenv() | os.environ
    problems = [
        f"{name}: unknown setting{_service_link(name, environment[name]) or _suggest(name, names)}"
        for name in sorted(environment)
        if name.upper().startswith(cls.prefix) and name.upper() not in names
    ]
    given = {names[k.upper()]: value for k, value in environment.items() if k.upper() in names and value is not None}
    try:
        settings = cls(flags, **given)
    except SettingsError as error:
        problems.append(str(error))
    if problems:
        raise SettingsError("\n".join(problems))
    return settings


def _dotenv() -> dict[str, str | None]:
    """Read `.env`; return nothing if there is no such file. Raises SettingsError."""
    if not os.path.isfile(".env"):
        return {}
    from dotenv import dotenv_values

    try:
        return dict(dotenv_values(".env"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f".env cannot be read: {getattr(error, 'strerror', None) or error}") from None


def variable(cls: type[Settings], name: str) -> str:
    """Return the environment variable of a setting: `scp_port` is `GATEWAY_SCP_PORT`."""
    return cls.model_fields[name].variable or f"{cls.prefix}{name}".upper()


def _suggest(name: str, known: Mapping[str, str]) -> str:
    import difflib

    close = difflib.get_close_matches(name.upper(), known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; remove it, or use one of {', '.join(sorted(known))}"


def _service_link(name: str, value: str | None) -> str:
    """Return what to do if Kubernetes set this variable, as it does for each service; otherwise an empty text."""
    injected = r".*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)"
    if re.fullmatch(injected, name.upper()) or re.match("(tcp|udp|sctp)://", value or ""):
        return "; Kubernetes sets it for a service of that name: set enableServiceLinks: false in the pod's spec"
    return ""


def _explained(cls: type[Settings], name: str, given: object, problem: str) -> str:
    """Return a line about one wrong setting: name, value, problem, meaning."""
    setting = cls.model_fields[name]
    shown = "" if setting.is_secret else f"={without_password(repr(given))}"
    about = f"{setting.description}{_service_link('', str(given))}"
    return f"{variable(cls, name)}{shown}: {problem}. {about}"


def without_password(url: str) -> str:
    """Return a URL that may be shown: without user and password, and without its query."""
    return re.sub(r"//[^?#\s]*@", "//***@", re.sub(r"\?[^\s']*", "?…", url))
