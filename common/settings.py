"""What an operator can change, with units. Read once, frozen."""

import os
import re
import uuid
from collections.abc import Mapping
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeVar

from common import kinds
from common.errors import GatewayError
from common.extras import Extra, extras
from common.kinds import Secret, Setting, Url

DATABASE_URL = re.compile(r"sqlite\+aiosqlite:///.+|postgresql\+asyncpg://[^/]*/.+")
DATABASE_URLS = (
    "must have the form sqlite+aiosqlite:///FILE, such as sqlite+aiosqlite:///series.db, or "
    "postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE"
)

IN_VIEWER_URL = ("StudyInstanceUID", "SeriesInstanceUID")
ORIGIN = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")  # as browsers send it (RFC 6454 §6.2)


class SettingsError(GatewayError):
    """A setting is unknown or wrong. The text names each one, its problem and the cure."""


class Settings:
    """Declared settings with their values. What is named model_… is pydantic's word for the same."""

    model_fields: ClassVar[dict[str, Setting]]
    prefix: ClassVar[str]
    """Of the environment's names."""
    model_fields_set: frozenset[str]
    """Those that were given; the rest are defaults."""
    flags: frozenset[str]
    """Those that were given on the command line."""

    def __init_subclass__(cls, prefix: str) -> None:
        cls.prefix = prefix
        cls.model_fields = {name: value for name, value in vars(cls).items() if isinstance(value, Setting)}

    def __init__(self, flags: Mapping[str, Any] | None = None, /, **given: Any) -> None:
        """`flags` are given, too, and named so where they are wrong. Raises SettingsError."""
        given |= flags or {}
        given.pop("_env_file", None)  # pydantic-settings' word: here nothing is read from a file
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
        """Raises ValueError where settings that are each right contradict each other."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name}: settings do not change")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{n}={getattr(self, n)!r}' for n in sorted(self.model_fields_set))})"

    def model_copy(self, *, update: Mapping[str, Any]) -> Self:
        """The same with some changes, which are taken as they are."""
        copied = object.__new__(type(self))
        vars(copied).update({name: vars(self)[name] for name in (*self.model_fields, "model_fields_set", "flags")})
        vars(copied).update(update)
        return copied

    def as_typed(self, told: str) -> str:
        """A text that names variables, with flags instead where flags were typed."""
        for name in self.flags:
            if self.model_fields[name].is_secret:
                continue  # never typed as a flag
            told = re.sub(rf"\b{variable(type(self), name)}(?![A-Z_])", f"--{name.replace('_', '-')}", told)
        return told


class GatewaySettings(Settings, prefix="GATEWAY_"):
    """The gateway's settings: environment (`GATEWAY_…`), then `.env`, then these defaults."""

    scp_host: str = kinds.text("127.0.0.1", "Address the DICOM listener binds to.", unit="HOST")
    scp_port: int = kinds.port(6667, "DICOM port; 0 takes a free one and logs it.")
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
        "(CT1@10.0.0.7); with =NAME behind it, only where it calls us NAME (CT1=ARCHIVE). Empty on a loopback address: "
        "everyone on this machine.",
    )
    allow_any_peer: bool = kinds.truth(False, "Let every peer that reaches the port send.")
    max_associations: int = kinds.number(200, "Associations at once; further ones are rejected as transient.", least=1)
    max_connections_per_peer: int = kinds.number(
        100,
        "Associations of one address, and as many connections that have none; beyond it associations are rejected as "
        "transient, and of the other connections the oldest has to go.",
        least=1,
    )
    associate_timeout_s: float = kinds.seconds(
        10.0, "Longest wait for a TLS handshake, for an A-ASSOCIATE-RQ, and for a peer to close."
    )
    pdu_timeout_s: float = kinds.seconds(30.0, "Longest time that one PDU may take.")
    association_idle_timeout_s: float = kinds.seconds(600.0, "An association this long without a PDU is aborted.")
    max_pdu_bytes: int = kinds.count_of_bytes(2**20, "Longest P-DATA-TF PDU; we announce 131072.", least=2**17)
    max_command_bytes: int = kinds.count_of_bytes(2**16, "Longest DIMSE command set.", least=1024)
    max_header_bytes: int = kinds.count_of_bytes(
        2**16,
        "How much of a data set is kept while it comes, for pydicom's reader to try where ours does not end well.",
        least=4096,
    )
    extra_attributes: str = kinds.text(
        "",
        "What else is kept of images, separated by ;: keywords, tags, private ones with their creator and maybe a VR, "
        "such as (0019,0C,SIEMENS MR HEADER,IS); in a creator %2C is a comma, %3B a semicolon, %28 and %29 "
        "parentheses, %25 a per cent sign. With * the values of every image, else the first of the series. "
        "NAME= before it names it.",
    )
    tls_cert: Path | None = kinds.file(None, "PEM certificate chain; with it the DICOM port speaks TLS only.")
    tls_key: Path | None = kinds.file(None, "PEM key of the certificate; by default in the same file.")
    tls_ca: Path | None = kinds.file(None, "PEM certificates that senders' certificates are checked against.")
    tls_client_certs: Literal["none", "optional", "required"] = kinds.choice(
        "none", "Whether senders have to show a certificate: none, optional, required.", "none", "optional", "required"
    )
    server_url: Url = kinds.url(
        "http://127.0.0.1:8000", "Where series reports are posted.", example="http://10.0.0.5:8000"
    )
    server_ca: Path | None = kinds.file(
        None, "PEM certificates that an https server's is checked against; by default the system's."
    )
    proxy_from_env: bool = kinds.truth(
        False, "Reach the server through the proxy that HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY name."
    )
    api_key: Secret | None = kinds.secret(
        "Key that the server wants, sent as a bearer token; not a flag, for others would see it."
    )
    api_key_file: Path | None = kinds.file(
        None, "File with the key on one line; read at start, and again when the server answers 401."
    )
    id: str = kinds.name(
        "",
        "Name of this gateway in its reports; by default host name and a random part.",
        form=r"[^\x00-\x1f\x7f/]{1,64}",
        words="1 to 64 characters without a slash or a control character",
        example="ct-room-2",
        default_factory=lambda: f"{os.uname().nodename[:51]}-{uuid.uuid4().hex[:12]}",
    )
    idle_policy: Literal["adaptive", "fixed"] = kinds.choice(
        "adaptive",
        "How long a series may be quiet: learnt per sender and modality, or the same for all.",
        "adaptive",
        "fixed",
    )
    idle_timeout_s: float = kinds.seconds(
        2.0,
        "Fixed policy: a series this long without a new image is reported as idle. Adaptive policy: what "
        "the waits for a sender not known yet are derived from.",
    )
    idle_max_s: float = kinds.seconds(
        400.0, "Longest adaptive wait, grace included; what a PACS says may have to stand for 45 s longer."
    )
    missing_timeout_s: float = kinds.seconds(
        60.0, "How long a quiet series waits for images that its PACS has and has not sent."
    )
    pacs: str = kinds.text(
        "",
        "Senders that can be asked what a series holds: AE@HOST:PORT, or AE@tls://HOST:PORT over TLS, "
        "comma separated, matched by the calling AE title.",
    )
    pacs_ca: Path | None = kinds.file(
        None,
        "PEM certificates that those of tls:// entries of GATEWAY_PACS are checked against; host names are "
        "not. Our own is GATEWAY_TLS_CERT.",
    )
    pacs_timeout_s: float = kinds.seconds(5.0, "Longest wait for a PACS: to associate, and for each answer.")
    fetch_missing: Literal["off", "get", "move"] = kinds.choice(
        "off", "Fetch what the PACS has and did not send, by C-GET, or by C-MOVE to our AE title.", "off", "get", "move"
    )
    trace_path: Path | None = kinds.file(
        None, "Record when images come, as JSON Lines, for `make policies TRACES=folder`."
    )
    metrics_port: int | None = kinds.port(
        None, "Port of the Prometheus metrics, over HTTP; worker N listens N-1 above it.", example=9464
    )
    metrics_host: str = kinds.text("127.0.0.1", "Address that the metrics are bound to.", unit="HOST")
    max_open_s: float = kinds.seconds(3600.0, "A series open this long is reported as capped, quiet or not.")
    drain_timeout_s: float = kinds.seconds(
        30.0, "On SIGTERM and drain: longest wait for open associations, then for undelivered reports."
    )
    inbox_size: int = kinds.number(1000, "Instances between the SCP and the collector.", least=1)
    inbox_timeout_s: float = kinds.seconds(5.0, "How long a C-STORE waits for room before it is refused 0xA700.")
    journal_path: Path = kinds.file(
        "gateway-journal.db", "What is acknowledged and not yet delivered; one file a gateway."
    )
    journal_max_bytes: int = kinds.count_of_bytes(
        4 * 2**30, "Journal size beyond which C-STORE gets 0xA700.", least=2**16
    )
    min_free_bytes: int = kinds.count_of_bytes(
        256 * 2**20, "Free disk beside the journal below which C-STORE gets 0xA700.", least=0
    )
    max_pending_instances: int = kinds.number(
        2_000_000, "Instances open or undelivered beyond which C-STORE gets 0xA700.", least=1
    )
    dispatch_concurrency: int = kinds.number(8, "Reports posted at the same time.", least=1, most=256)
    request_timeout_s: float = kinds.seconds(10.0, "Longest wait for one answer of the server.")
    retry_max_s: float = kinds.seconds(30.0, "Longest back-off between two tries of one report.")

    def _fits_together(self) -> None:
        self.extras  # noqa: B018 - raises where an entry is wrong
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

    @property
    def exposes_key(self) -> bool:
        """Whether a key travels in clear text to another machine."""
        has_key = self.api_key is not None or self.api_key_file is not None
        return has_key and self.server_url.scheme == "http" and not is_loopback(self.server_url.host)

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

    @cached_property
    def extras(self) -> tuple[Extra, ...]:
        """What `extra_attributes` names."""
        return extras(self.extra_attributes)

    def may_connect(self, address: str) -> bool:
        """Whether a peer at this address may send at all, whatever it calls itself."""
        return self._everyone or any(_matches(sender.network, address) for sender in self._peers)

    def may_associate(self, calling_ae_title: str, address: str, called_ae_title: str | None = None) -> bool:
        """Whether this peer may send, when it calls us so; None: by any name."""
        return self._everyone or any(
            sender.ae_title in ("", calling_ae_title)
            and (called_ae_title is None or sender.called in ("", called_ae_title))
            and _matches(sender.network, address)
            for sender in self._peers
        )

    def near(self, calling_ae_title: str, address: str, called_ae_title: str) -> str | None:
        """The first entry of GATEWAY_ALLOWED_PEERS that names this peer but for case and padding."""
        calling, called = _folded(calling_ae_title), _folded(called_ae_title)
        for entry, sender in zip(self._entries(), self._peers, strict=True):
            is_meant = _folded(sender.ae_title) in ("", calling) and _folded(sender.called) in ("", called)
            if is_meant and _matches(sender.network, address):
                return entry
        return None

    @property
    def max_waiting(self) -> int:
        """Connections without an association at once, of all addresses: so many descriptors they may hold."""
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
        raise ValueError(
            f"GATEWAY_PACS entry {entry!r} is not of the form AE@HOST:PORT or AE@tls://HOST:PORT, such as "
            "ORTHANC@10.0.0.5:4242"
        )
    return Peer(ae_title.strip(), host.strip("[]"), int(port), bool(tls))


class _Sender(NamedTuple):
    """An entry of GATEWAY_ALLOWED_PEERS: '' and None stand for any."""

    ae_title: str
    network: IPv4Network | IPv6Network | None
    called: str


def _peer(entry: str) -> _Sender:
    sender, equals, called = (part.strip() for part in entry.partition("="))
    ae_title, at, network = sender.rpartition("@")
    if equals and not called:
        raise ValueError(f"GATEWAY_ALLOWED_PEERS entry {entry!r} names nothing behind the =: such as CT1=ARCHIVE")
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
    """An AE title without regard to case, and to what may pad it."""
    return re.sub(r"[^!-~\xa1-\U0010ffff]", "", ae_title).casefold()


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


def _is_known(url: str) -> None:
    if ":memory:" in url or not DATABASE_URL.fullmatch(url):
        raise ValueError(DATABASE_URLS)


class ServerSettings(Settings, prefix="SERVER_"):
    """The server's settings: environment (`SERVER_…` and `DATABASE_URL`), then `.env`, then these defaults."""

    database_url: str = kinds.checked(
        "sqlite+aiosqlite:///series.db",
        "Where series are stored: sqlite+aiosqlite:///FILE, or postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE.",
        variable="DATABASE_URL",
        check=_is_known,
    )
    database_pool_size: int = kinds.number(10, "PostgreSQL connections of one server process.", least=1, most=1000)
    database_timeout_s: float = kinds.seconds(10.0, "PostgreSQL: longest wait for a connection, and for one statement.")
    max_body_bytes: int = kinds.count_of_bytes(16 * 2**20, "Largest request body; beyond it 413.", least=1024)
    requests_per_s: float = kinds.rate(500.0, "Requests of one key, or of this machine; beyond it 429.")
    audit_path: Path | None = kinds.file(
        None, "File of its own for the audit log, JSON Lines; by default it goes with the other logs."
    )
    proxy_from_env: bool = kinds.truth(
        False, "Post webhooks through the proxy that HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY name."
    )
    retrieve_url: Url | None = kinds.url(
        None,
        "DICOMweb service that holds the images; QIDO-RS answers then say where to retrieve them.",
        example="https://pacs.example/dicom-web",
    )

    allowed_origins: str = kinds.text(
        "",
        "Origins whose pages a browser lets read here, with a key: https://viewer.example, comma separated.",
    )

    viewer_url: str = kinds.text(
        "",
        "Viewer that the live page links to, such as https://viewer.example/?StudyInstanceUIDs={StudyInstanceUID}; "
        "{SeriesInstanceUID} may stand there, too.",
    )

    def _fits_together(self) -> None:
        if self.viewer_url:
            _is_viewer(self.viewer_url)
        wrong = [origin for origin in self.origins if not ORIGIN.fullmatch(origin)]
        if wrong:
            raise ValueError(
                f"SERVER_ALLOWED_ORIGINS has the entry {wrong[0]!r}: name scheme, host and maybe a port, and nothing "
                "behind them, such as https://viewer.example or http://10.0.0.5:3000"
            )

    @property
    def origins(self) -> list[str]:
        """Those of allowed_origins."""
        entries = self.allowed_origins.split(",") if self.allowed_origins.strip() else []
        return [re.sub("^(http://.*):80$|^(https://.*):443$", r"\1\2", entry.strip().lower()) for entry in entries]

    @property
    def sqlite_path(self) -> Path | None:
        """The file of a SQLite database."""
        kind, _, database = self.database_url.partition(":///")
        return Path(database.partition("?")[0]).resolve() if kind == "sqlite+aiosqlite" else None


def _is_viewer(url: str) -> None:
    """Raises ValueError where a page could not link to it."""
    named = re.findall(r"\{([^{}]*)\}", url)
    if not (re.match(r"https?://[^/?#\s{}]+", url) and not re.search(r"\s", url)):
        problem = "is no http or https URL"
    elif unknown := [name for name in named if name not in IN_VIEWER_URL]:
        problem = f"names {{{unknown[0]}}}, which is not known"
    elif not named:
        problem = "names no study or series"
    else:
        return
    known = " or ".join(f"{{{name}}}" for name in IN_VIEWER_URL)
    raise ValueError(
        f"SERVER_VIEWER_URL={without_password(url)!r} {problem}: give a URL with {known}, such as "
        "https://viewer.example/?StudyInstanceUIDs={StudyInstanceUID}"
    )


S = TypeVar("S", bound=Settings)


def load(cls: type[S], flags: Mapping[str, Any] | None = None) -> S:
    """Read settings; `flags` (given on the command line) win over the environment. Raises SettingsError."""
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
    """What stands in .env, if there is one."""
    if not os.path.isfile(".env"):
        return {}
    from dotenv import dotenv_values

    try:
        return dict(dotenv_values(".env"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f".env cannot be read: {getattr(error, 'strerror', None) or error}") from None


def variable(cls: type[Settings], name: str) -> str:
    """The environment variable of a field: `scp_port` is `GATEWAY_SCP_PORT`."""
    return cls.model_fields[name].variable or f"{cls.prefix}{name}".upper()


def _suggest(name: str, known: Mapping[str, str]) -> str:
    import difflib

    close = difflib.get_close_matches(name.upper(), known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; remove it, or use one of {', '.join(sorted(known))}"


def _service_link(name: str, value: str | None) -> str:
    """The cure where Kubernetes put a variable there: one for each service, named after it."""
    injected = r".*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)"
    if re.fullmatch(injected, name.upper()) or re.match("(tcp|udp|sctp)://", value or ""):
        return "; Kubernetes sets it for a service of that name: enableServiceLinks: false in the pod's spec"
    return ""


def _explained(cls: type[Settings], name: str, given: object, problem: str) -> str:
    """A line about one setting: name, value, problem, meaning."""
    setting = cls.model_fields[name]
    shown = "" if setting.is_secret else f"={without_password(repr(given))}"
    about = f"{setting.description}{_service_link('', str(given))}"
    return f"{variable(cls, name)}{shown}: {problem}. {about}"


def without_password(url: str) -> str:
    """A URL that may be shown: without what stands before an @, or behind a ?."""
    return re.sub(r"//[^?#\s]*@", "//***@", re.sub(r"\?[^\s']*", "?…", url))
