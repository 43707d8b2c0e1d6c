"""Gateways and servers, each kind behind a port of HAProxy's, on one database; each can be killed and comes back."""

import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx

from bench.rig.haproxy import OF_GATEWAYS, OF_SERVERS, haproxy_process, listen
from bench.rig.processes import ROOT, Process, make_key, running, start_gateway, start_server

GATEWAY = {
    "GATEWAY_IDLE_TIMEOUT_S": "0.3",
    "GATEWAY_MAX_OPEN_S": "0.5",  # the series is reported again and again while its images come
    "GATEWAY_RETRY_MAX_S": "0.5",
    "GATEWAY_MIN_FREE_BYTES": "0",
}
SERVER = {"SERVER_REQUESTS_PER_S": "1000000"}
SCOPES = {"gateways": "series:write", "followers": "series:read"}  # of the keys


class Member:
    """A process behind HAProxy that can be killed and comes back on its port."""

    def __init__(self, name: str, start: Callable[[int], tuple[Process, int]]) -> None:
        self.name = name
        self._start = start
        self.process, self.port = start(0)
        self._runs = [self.process]

    def kill(self) -> None:
        self.process.kill()

    def restart(self) -> None:
        self.process, _ = self._start(self.port)
        self._runs.append(self.process)

    def stop(self) -> None:
        self.process.stop()

    def events(self, event: str) -> int:
        """Count the log events of that name, over all its runs."""
        return sum(len(run.events(event)) for run in self._runs)


@dataclass(frozen=True)
class Site:
    """Gateways and servers, each kind behind a port of HAProxy's, on one database."""

    folder: Path
    scp_port: int
    url: str
    gateways: list[Member]
    servers: list[Member]
    haproxy: Process
    keys: Mapping[str, Path]

    @asynccontextmanager
    async def client(self, key: str) -> AsyncIterator[httpx.AsyncClient]:
        """Open what calls the servers with this key."""
        headers = {"Authorization": f"Bearer {self.keys[key].read_text().strip()}"}
        timeout = httpx.Timeout(10.0, read=30.0)  # a stream says something every 15 s
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=timeout, trust_env=False) as http:
            yield http

    def drain(self) -> None:
        """Stop the gateways; what they hold is delivered before they end."""
        for gateway in self.gateways:
            gateway.stop()
            if [event["undelivered"] for event in gateway.process.events("gateway.stopped")] != [0]:
                raise RuntimeError(f"{gateway.name} has kept reports for its next start")


@contextmanager
def site(
    folder: Path, database_url: str, *, gateways: int, servers: int, roots: tuple[Path, Path] = (ROOT, ROOT)
) -> Iterator[Site]:
    """Run so many of each, stopped at the end: gateways first, then HAProxy, then servers.

    `roots`: where the gateways' program is, and the servers'.
    """
    environment = SERVER | {"DATABASE_URL": database_url}
    keys = {name: make_key(folder, environment, name, scope) for name, scope in SCOPES.items()}
    gateway_root, server_root = roots
    with ExitStack() as stack, _listener() as dicom, _listener() as http:
        scp_port, url = dicom.getsockname()[1], f"http://127.0.0.1:{http.getsockname()[1]}"
        some_servers = _members(stack, "server", servers, partial(_server, folder, server_root, environment))
        settings = GATEWAY | {"GATEWAY_SERVER_URL": url, "GATEWAY_API_KEY_FILE": str(keys["gateways"])}
        some_gateways = _members(stack, "gateway", gateways, partial(_gateway, folder, gateway_root, settings))
        sections = [
            _section("gateways", dicom, some_gateways, OF_GATEWAYS),
            _section("servers", http, some_servers, OF_SERVERS),
        ]
        haproxy = stack.enter_context(running(haproxy_process(folder, sections, [dicom.fileno(), http.fileno()])))
        for gateway in some_gateways:  # before HAProxy, through which they deliver what they hold
            stack.callback(gateway.stop)
        dicom.close()  # from here on the ports are HAProxy's alone
        http.close()
        yield Site(folder, scp_port, url, some_gateways, some_servers, haproxy, keys)


def _listener() -> socket.socket:
    """Take a free port, listened on before HAProxy takes it over, so that nobody else can take it."""
    return socket.create_server(("127.0.0.1", 0), backlog=1024)


def _members(stack: ExitStack, kind: str, n: int, start: Callable[[str, int], tuple[Process, int]]) -> list[Member]:
    members: list[Member] = []
    for name in (f"{kind}-{number}" for number in range(1, n + 1)):
        members.append(Member(name, partial(start, name)))
        stack.callback(members[-1].stop)
    return members


def _server(folder: Path, root: Path, environment: Mapping[str, str], name: str, port: int) -> tuple[Process, int]:
    process, url = start_server(_made(folder / name), port, root, **environment)
    return process, int(url.rsplit(":", 1)[1])


def _gateway(folder: Path, root: Path, environment: Mapping[str, str], name: str, port: int) -> tuple[Process, int]:
    url = environment["GATEWAY_SERVER_URL"]
    return start_gateway(_made(folder / name), url, port, root, {**environment, "GATEWAY_ID": name})


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def _section(name: str, listener: socket.socket, members: Sequence[Member], more: str) -> str:
    return listen(name, f"fd@{listener.fileno()}", [(it.name, f"127.0.0.1:{it.port}") for it in members], more)
