"""How long each side takes to notice that the other is cut off: everything is set up, then cut at once, both ways.

A connection's end is noticed when the system of the host that waits no longer has it as established; other things
by what the program says or answers. A bound is what the time-outs allow.
"""

import asyncio
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import httpx
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]
from rich.box import MARKDOWN
from rich.table import Table
from sqlalchemy import text

from bench.partitions import DICOM, GATEWAY, HTTP, hearing
from bench.rig.haproxy import OF_GATEWAYS, haproxy_process, listen
from bench.rig.network import SUBNET, Network, network
from bench.rig.postgres import postgresql_at
from bench.rig.processes import ROOT, Process, command_line, make_key, server_process, start_gateway, start_server
from bench.rig.senders import PynetdicomSender, associate_rq, synthetic_series
from common.connections import DEAD_AFTER_S, PROBE_EVERY_S
from common.settings import GatewaySettings, Peer, ServerSettings
from dicom.scu import Line, PacsUnavailable, matches
from storage.connection import Connection
from storage.engine import MIGRATING, DatabaseUnavailable, Engine

HOSTS = (
    *("idle", "silent", "broken", "free", "pacs", "front", "gateway", "behind"),
    *("server", "reader", "caller", "hook", "server-2", "starting", "locking", "database"),
)
CUTS = (
    *(("idle", "gateway"), ("silent", "gateway"), ("broken", "gateway"), ("pacs", "gateway"), ("front", "behind")),
    *(("gateway", "server"), ("reader", "server"), ("caller", "server"), ("hook", "server")),
    *(("server-2", "database"), ("starting", "database"), ("locking", "database")),
)
EVERYWHERE = "0.0.0.0"  # noqa: S104 - on hosts that only this program reaches
DEAD_S = DEAD_AFTER_S + PROBE_EVERY_S
KEEP_ALIVE = f"TCP keep-alive, {DEAD_AFTER_S} s"
PING_S = 15.0  # FastAPI's, on a stream that has nothing to tell
CLOSING_S = 2.0  # SQLAlchemy's, of a connection that it gives up
LOOK_S = 0.2
SLACK_S = 8.0  # of a busy machine
LONGEST_S = 120.0  # that anything is waited for
LOCK = "SELECT id FROM locked FOR UPDATE"


@dataclass
class Side:
    """Who waits for what of whom, what ends it, and within which time."""

    who: str
    waits: str
    by: str
    bound_s: float
    noticed: Callable[[], bool]
    after_s: float | None = None
    """None: not at all."""

    @property
    def late(self) -> bool:
        return self.after_s is None or self.after_s > self.bound_s + SLACK_S


def noticing() -> list[Side]:
    """Set up, cut, and look until everybody has noticed, or for LONGEST_S."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scale-", ignore_cleanup_errors=True)))
        folder.chmod(0o755)  # PostgreSQL is somebody else's
        net = stack.enter_context(network(HOSTS))
        stage = _Stage(folder, net, stack)
        sides = stage.sides()
        with _cut(net):
            began = time.monotonic()
            stage.cut.set()
            while any(side.after_s is None for side in sides) and time.monotonic() < began + LONGEST_S:
                for side in (side for side in sides if side.after_s is None and side.noticed()):
                    side.after_s = time.monotonic() - began
                time.sleep(LOOK_S)
        return sides


@contextmanager
def _cut(net: Network) -> Iterator[None]:
    ways = [way for one, other in CUTS for way in ((one, other), (other, one))]
    for way in ways:
        net.drop(*way)
    try:
        yield
    finally:
        for way in ways:
            net.pass_(*way)


class _Stage:
    """Everything that waits for something. What blocks is on a thread, on its host."""

    def __init__(self, folder: Path, net: Network, stack: ExitStack) -> None:
        self.cut = threading.Event()
        self.over = threading.Event()
        self._folder = folder
        self._net = net
        self._stack = stack
        self._pool = ThreadPoolExecutor(16)
        stack.callback(self._pool.shutdown)
        stack.callback(self.over.set)
        stack.callback(self.cut.set)

    def sides(self) -> list[Side]:
        """Started and connected; what has a short time-out comes last."""
        with self._net.inside("database"):
            at = postgresql_at(self._folder / "database", self._address("database"), f"{SUBNET}.0/24")
            self._database = self._stack.enter_context(at).render_as_string(hide_password=False)
        environment = {"DATABASE_URL": f"sqlite+aiosqlite:///{self._folder}/series.db"}
        self._key = make_key(self._folder, environment, "all", "admin").read_text().strip()
        with self._net.inside("hook"):
            hook = self._stack.enter_context(hearing(self._address("hook")))
        command_line(self._folder, environment, "server.py", "webhooks", "add", hook.url)
        server = self._server("server", environment)
        gateway = self._gateway("gateway")
        self._gateway("behind")
        with self._net.inside("front"):
            section = listen("gateways", f"*:{DICOM}", [("behind", f"{self._address('behind')}:{DICOM}")], OF_GATEWAYS)
            self._stack.callback(haproxy_process(self._folder, [section]).stop)
        return [*self._of_database(), *self._of_server(server), *self._of_gateway(gateway)]

    def _of_gateway(self, gateway: Process) -> Iterator[Side]:
        self._connected("idle", "gateway", DICOM, associate_rq())
        yield self._side(("gateway", "idle"), "gateway", "sender: a request on its association", KEEP_ALIVE, DEAD_S)
        self._connected("free", "front", DICOM, associate_rq())
        lost = "HAProxy, which has lost the gateway"
        yield self._side(("free", "front"), "sender", lost, "its health check, 5 s", 11.0)
        self._soon("free", self._send_image)
        delayed = _says(gateway, "report.delayed")
        yield Side("gateway", "server: a report's answer", "GATEWAY_REQUEST_TIMEOUT_S=10", 12.0, delayed)
        refused = _says(gateway, "heartbeat.refused")
        yield Side("gateway", "server: a heartbeat's answer", "10 s, after up to 5 s", 15.0, refused)
        self._connected("broken", "gateway", DICOM, associate_rq()).sendall(b"\x04\x00\x00")
        yield self._side(
            ("gateway", "broken"), "gateway", "sender: the rest of a PDU", "GATEWAY_PDU_TIMEOUT_S=30", 30.0
        )
        self._connected("silent", "gateway", DICOM)
        yield self._side(
            ("gateway", "silent"), "gateway", "sender: an association", "GATEWAY_ASSOCIATE_TIMEOUT_S=10", 10.0
        )
        yield Side("gateway", "PACS: an answer", "GATEWAY_PACS_TIMEOUT_S=5", 5.0, _ended(self._ask_pacs()))

    def _of_server(self, server: Process) -> Iterator[Side]:
        asks = f"GET /changes/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self._key}\r\n\r\n"
        self._connected("reader", "server", HTTP, asks.encode())
        yield self._side(("server", "reader"), "server", "follower of /changes/stream", KEEP_ALIVE, PING_S + DEAD_S)
        self._connected("caller", "server", HTTP).sendall(b"GET /series HTTP/1.1\r\n")
        yield self._side(("server", "caller"), "server", "gateway: the rest of a request", KEEP_ALIVE, DEAD_S)
        self._soon("free", self._post_series)
        yield Side("server", "webhook: an answer", "10 s", 12.0, _says(server, "webhook.delayed"))

    def _of_database(self) -> Iterator[Side]:
        self._server("server-2", {"DATABASE_URL": self._database})
        for asked in [self._on("free", partial(self._ask_server, 200)) for _ in range(6)]:  # on several connections
            asked.result()
        self._begun("locking", self._hold_row)
        self._begun("database", self._hold_migrations)
        with self._net.inside("starting"):
            starting = server_process(self._folder, HTTP, ROOT, EVERYWHERE, DATABASE_URL=self._database)
            self._stack.callback(starting.kill)
        asked = self._soon("free", partial(self._ask_server, 503))
        yield Side("server", "PostgreSQL: a statement", "SERVER_DATABASE_TIMEOUT_S=10", 10.0 + CLOSING_S, _ended(asked))
        yield self._side(("server-2", "database"), "server", "PostgreSQL: an idle connection", KEEP_ALIVE, DEAD_S)
        yield self._side(("starting", "database"), "server", "PostgreSQL: the lock of migrations", KEEP_ALIVE, DEAD_S)
        yield self._side(("database", "server-2"), "PostgreSQL", "server: an idle session", KEEP_ALIVE, DEAD_S)
        yield self._side(("database", "starting"), "PostgreSQL", "server: a session that migrates", KEEP_ALIVE, DEAD_S)
        freed = self._soon("database", lambda: asyncio.run(self._wait_for_row()))
        yield Side(
            "PostgreSQL", "server: the end of a transaction", "SERVER_DATABASE_TIMEOUT_S=10", 10.0, _ended(freed)
        )

    # --- what runs, and what waits ---

    def _address(self, host: str) -> str:
        return self._net.address(host)

    def _gateway(self, host: str) -> Process:
        (self._folder / host).mkdir()
        settings = GATEWAY | {"GATEWAY_API_KEY": self._key, "GATEWAY_RETRY_MAX_S": "1"}
        url = f"http://{self._address('server')}:{HTTP}"
        with self._net.inside(host):
            process, _ = start_gateway(self._folder / host, url, DICOM, ROOT, settings)
        self._stack.callback(process.kill)
        return process

    def _server(self, host: str, environment: Mapping[str, str]) -> Process:
        (self._folder / host).mkdir(exist_ok=True)
        with self._net.inside(host):
            process, _ = start_server(self._folder / host, HTTP, ROOT, EVERYWHERE, **environment)
        self._stack.callback(process.kill)
        return process

    def _connected(self, host: str, to: str, port: int, said: bytes = b"") -> socket.socket:
        """A connection that has said something, and has read the beginning of the answer."""
        with self._net.inside(host):
            sock = socket.create_connection((self._address(to), port), 10)
        self._stack.callback(sock.close)
        if said:
            sock.sendall(said)
            sock.recv(1)
        return sock

    def _side(self, ends: tuple[str, str], who: str, waits: str, by: str, bound_s: float) -> Side:
        """Makes a side that the system of the first end has a connection for."""
        self._until(lambda: bool(self._net.connections(*ends)))
        return Side(who, waits, by, bound_s, lambda: not self._net.connections(*ends))

    def _until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LONGEST_S
        while not true():
            if time.monotonic() > deadline:
                raise RuntimeError("what is to be cut off does not come about")
            time.sleep(LOOK_S)

    def _begun(self, host: str, hold: Callable[[threading.Event], Coroutine[Any, Any, None]]) -> None:
        """Something is held on that host from now on."""
        held = threading.Event()
        holding = self._on(host, lambda: asyncio.run(hold(held)))
        self._until(lambda: held.is_set() or holding.done())
        if not held.is_set():
            holding.result()

    def _on(self, host: str, do: Callable[[], Any]) -> Future[Any]:
        def there() -> Any:
            self._net.enter(host)
            return do()

        return self._pool.submit(there)

    def _soon(self, host: str, do: Callable[[], Any]) -> Future[Any]:
        """Done on that host as soon as all is cut."""

        def then() -> Any:
            self.cut.wait()
            return do()

        return self._on(host, then)

    def _send_image(self) -> None:
        PynetdicomSender(DICOM, synthetic_series(1), time.monotonic() + 10, self._address("gateway")).run()

    def _post_series(self) -> None:
        uids = {"SeriesInstanceUID": "1.2.3", "StudyInstanceUID": "1.2", "PatientID": "1", "PatientName": "Test^One"}
        url = f"http://{self._address('server')}:{HTTP}/series"
        headers = {"Authorization": f"Bearer {self._key}"}
        httpx.post(url, json=uids | {"NumInstances": 1}, headers=headers, trust_env=False).raise_for_status()

    def _ask_server(self, expected: int) -> None:
        url = f"http://{self._address('server-2')}:{HTTP}/health/ready"
        if (status := httpx.get(url, timeout=LONGEST_S, trust_env=False).status_code) != expected:
            raise RuntimeError(f"a server was {status} and not {expected}")

    def _ask_pacs(self) -> Future[None]:
        """A C-FIND that has come to the PACS, and is not answered before all is cut."""
        asked = threading.Event()
        address = (self._address("pacs"), DICOM)
        question = Dataset()
        question.QueryRetrieveLevel, question.StudyInstanceUID = "STUDY", "1.2"

        def answer(_: evt.Event) -> Iterator[tuple[int, Dataset]]:
            asked.set()
            self.cut.wait()
            yield 0xFF00, Dataset()

        def ask() -> None:
            with suppress(PacsUnavailable):
                list(matches(Line.to(Peer("PACS", *address), GatewaySettings()), question))
                raise RuntimeError("a PACS that was cut off has answered")

        with self._net.inside("pacs"):
            ae = AE("PACS")
            ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
            pacs = ae.start_server(address, block=False, evt_handlers=[(evt.EVT_C_FIND, answer)])
        if pacs is not None:
            self._stack.callback(pacs.shutdown)
        asking = self._on("gateway", ask)
        self._until(lambda: asked.is_set() or asking.done())
        return asking

    async def _hold_row(self, locked: threading.Event) -> None:
        """A transaction of a server's that is cut off in its middle."""

        async def lock(connection: Connection) -> None:
            await connection.execute(text(LOCK))
            locked.set()
            self.over.wait()  # a transaction awaits nothing but its connection

        async with Engine.open(ServerSettings(database_url=self._database)) as engine:
            await engine.write(_table)
            with suppress(DatabaseUnavailable):
                await engine.write(lock)

    async def _hold_migrations(self, held: threading.Event) -> None:
        """Holds the lock of a server that migrates; another that starts waits for it."""
        connection = await asyncpg.connect(self._database.replace("+asyncpg", ""))
        await connection.execute(f"SELECT pg_advisory_lock({MIGRATING})")
        held.set()
        await asyncio.to_thread(self.over.wait)
        await connection.close()

    async def _wait_for_row(self) -> None:
        connection = await asyncpg.connect(self._database.replace("+asyncpg", ""))
        await connection.execute(LOCK)
        await connection.close()


async def _table(connection: Connection) -> None:
    await connection.execute(text("CREATE TABLE locked (id int)"))
    await connection.execute(text("INSERT INTO locked VALUES (1)"))


def _ended(asked: Future[Any]) -> Callable[[], bool]:
    """Tells whether a request has ended; raises what it has raised."""
    return lambda: asked.done() and asked.result() is None


def _says(process: Process, event: str) -> Callable[[], bool]:
    """Tells whether a process logs an event from now on."""
    before = len(process.events(event))
    return lambda: len(process.events(event)) > before


def table(sides: Sequence[Side]) -> Table:
    """Makes the table, in the order of who waits."""
    shown = Table("who waits", "for", "is told by", "noticed after", box=MARKDOWN)
    for side in sorted(sides, key=lambda side: (side.who, side.waits)):
        after = "not at all" if side.after_s is None else f"{side.after_s:.0f} s"
        shown.add_row(side.who, side.waits, side.by, f"{after}, too late" if side.late else after)
    return shown
