"""Power cuts for `make faults`: what a gateway's and a server's disk had not been told to keep is gone.

Each of the two has a disk of its own that forgets (rig/forgetful_disk.py). A cut is one moment: nothing reaches the
disk any more, its processes are killed, what was not synced is lost or kept in part, and they start again.
"""

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Literal, Protocol

import alembic.command
import alembic.config
from sqlalchemy import create_engine

from bench.rig import forgetful_mount, postgres
from bench.rig.forgetful_mount import ForgetfulMount, forgetful
from bench.rig.processes import Process, ProcessFailed, make_key, without_settings
from bench.rig.proxy import Proxy
from console.findings import FAILED

Who = Literal["gateway", "server"]

STRIKES_WITHIN_S = 20.0  # an armed disk that has not struck by then is cut at once
STOPS_WITHIN_S = 120.0  # after SIGTERM
MIGRATED_FROM = "0012"  # later migrations added tables that nothing here needs
VACUUM_PAGES = 4000  # free pages with which the journal gives some back
JOURNAL = r"/gateway-journal\.db"
DATABASE = r"/series\.db"
SYNCS = ("write", "fsync")
RENAMES = ("rename", "create", "unlink", "write", "fsync", "fsyncdir")

MOUNTED: dict[Path, ForgetfulMount] = {}
"""The disks of the labs that run now, by folder."""
BROKEN = {
    "journal": ("gateway/journal_file.py", '"synchronous=FULL"', '"synchronous=NORMAL"'),
    "server": ("storage/engine.py", '"synchronous=FULL"', '"synchronous=NORMAL"'),
    "folder": ("common/at_rest.py", "os.fsync(folder)", "pass"),
}
"""For --break-it: a file, a line's part that keeps a promise, and one that does not."""


def missing(name: str) -> str | None:
    """Return why this cut cannot be tried here."""
    return forgetful_mount.missing() or (postgres.missing() if name.endswith("in a move") else None)


@contextmanager
def forgetful_disks(folder: Path) -> Iterator[dict[str, str]]:
    """Mount a disk for each; yield what both need in their environment. The server has an audit log and keys."""
    with ExitStack() as stack:
        for who in ("gateway", "server"):
            MOUNTED[folder / who] = stack.enter_context(forgetful(folder / who))
            stack.callback(MOUNTED.pop, folder / who)
        database = {"DATABASE_URL": f"sqlite+aiosqlite:///{folder / 'server'}/series.db"}
        key = make_key(folder, database, "gateway-1", "series:write")
        reader = make_key(folder, database, "reader", "series:read")
        yield {
            "GATEWAY_API_KEY_FILE": str(key),
            "READER_KEY_FILE": str(reader),
            "SERVER_AUDIT_PATH": str(folder / "server" / "audit.log"),
            "GATEWAY_MIN_FREE_BYTES": "0",
        }


class Lab(Protocol):
    """What a cut needs of bench.faults' lab."""

    folder: Path
    root: Path
    environment: dict[str, str]
    proxy: Proxy
    senders_done: threading.Event
    server: Process
    gateway: Process
    broken_promises: list[str]
    cuts: Counter[str]

    @property
    def journal(self) -> Path: ...

    @property
    def database(self) -> Path: ...

    @property
    def scp_port(self) -> int: ...

    def start_server(self) -> None: ...

    def start_gateway(self) -> None: ...


Inject = Callable[[Lab, random.Random], None]

# --- the cut --------------------------------------------------------------------------------------------------------


def cut(lab: Lab, rng: random.Random, *who: Who) -> None:
    """Cut the power of these at this moment, and start them again, in any order."""
    for one in who:
        _disk(lab, one).freeze()
    for one in who:
        _process(lab, one).popen.kill()
    for one in who:
        _process(lab, one).kill()
        _disk(lab, one).cut(rng.randrange(2**32))
    for one in rng.sample(who, len(who)):
        (lab.start_gateway if one == "gateway" else lab.start_server)()
    if "server" in who:
        _look_at_audit_log(lab)


def cut_at(  # noqa: PLR0913 - what it waits for, and what makes it happen
    lab: Lab,
    rng: random.Random,
    who: Who,
    names: str,
    operations: Sequence[str] = SYNCS,
    *,
    most: int = 40,
    provoke: Callable[[], None] = lambda: None,
    both: bool = False,
) -> None:
    """Cut before or after one of the next `most` such operations; `provoke` makes them happen."""
    disk = _disk(lab, who)
    disk.arm(operations, names, rng.randint(1, most), before=rng.random() < 0.5)
    with contextlib.suppress(ProcessFailed, OSError, sqlite3.OperationalError):  # the power can go while it runs
        provoke()
    ends_at = time.monotonic() + STRIKES_WITHIN_S
    while not disk.struck.wait(0.05) and time.monotonic() < ends_at:
        if _process(lab, who).popen.poll() is not None:
            break  # it has ended, and nothing more will happen
    lab.cuts[disk.struck_at.split("/")[0].strip() if disk.struck.is_set() else "at rest"] += 1
    cut(lab, rng, *(("gateway", "server") if both else (who,)))


def _disk(lab: Lab, who: Who) -> ForgetfulMount:
    return MOUNTED[lab.folder / who]


def _process(lab: Lab, who: Who) -> Process:
    return lab.gateway if who == "gateway" else lab.server


def _stop(lab: Lab, who: Who) -> None:
    _ask_to_stop(lab, who)
    _process(lab, who).popen.wait(STOPS_WITHIN_S)


def _ask_to_stop(lab: Lab, who: Who) -> None:
    _process(lab, who).popen.send_signal(signal.SIGTERM)


def _look_at_audit_log(lab: Lab) -> None:
    """Whatever the cut has left of the last line, a new one is a line of its own."""
    audit = lab.folder / "server" / "audit.log"
    before = audit.stat().st_size
    _ask(lab, "/series?limit=1", Path(lab.environment["READER_KEY_FILE"]).read_text().strip())
    while len(written := audit.read_bytes()) == before or not written.endswith(b"\n"):
        time.sleep(0.01)  # it is written once the answer is out
    last = written.splitlines()[-1]
    try:
        json.loads(last)
    except ValueError:
        lab.broken_promises.append(f"the audit log's new line cannot be read: {last[:200]!r}")


def _ask(lab: Lab, path: str, key: str) -> int:
    """Return the status with which the server answers a GET."""
    url = f"http://127.0.0.1:{lab.proxy.upstream_port}{path}"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - http
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


# --- moments --------------------------------------------------------------------------------------------------------


def receiving(*who: Who) -> Inject:
    """At any moment while images come."""

    def inject(lab: Lab, rng: random.Random) -> None:
        _wait_for_the_first_image(lab)
        time.sleep(rng.uniform(0, 0.8))
        cut(lab, rng, *who)

    return inject


def _wait_for_the_first_image(lab: Lab) -> None:
    wal = Path(f"{lab.journal}-wal")
    before = wal.stat()
    while not lab.senders_done.wait(0.005):
        now = wal.stat()
        if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            return


def committing(who: Who, *, both: bool = False) -> Inject:
    """At a write to the write-ahead log, or its sync."""

    def inject(lab: Lab, rng: random.Random) -> None:
        cut_at(lab, rng, who, r"\.db-wal$", both=both)

    return inject


def checkpointing(who: Who) -> Inject:
    """While the write-ahead log is brought into the file, as at the end of the process."""

    def inject(lab: Lab, rng: random.Random) -> None:
        def end() -> None:
            time.sleep(rng.uniform(0.1, 1.0))
            _ask_to_stop(lab, who)

        cut_at(lab, rng, who, r"\.db$", (*SYNCS, "truncate"), most=12, provoke=end)

    return inject


def reporting(hook: str, *who: Who) -> Inject:
    """Cuts while a report, or its answer, is on its way: at once, or a few changes of a disk later."""

    def inject(lab: Lab, rng: random.Random) -> None:
        disk, struck = _disk(lab, rng.choice(who)), threading.Event()
        later = rng.randint(0, 6)

        def strike() -> None:
            if later:
                disk.arm(SYNCS, r"\.db-wal$", later, before=rng.random() < 0.5)
            else:
                for one in who:
                    _disk(lab, one).freeze()
            struck.set()

        setattr(lab.proxy, hook, strike)
        if not struck.wait(120):
            raise RuntimeError(f"no post came by: {hook}")
        if later:
            disk.struck.wait(0.5)
        cut(lab, rng, *who)

    return inject


def migrating_journal(lab: Lab, rng: random.Random) -> None:
    _stop(lab, "gateway")
    with closing(sqlite3.connect(lab.journal, isolation_level=None)) as connection:
        connection.executescript("DROP TABLE sources; PRAGMA user_version = 6")
    cut_at(lab, rng, "gateway", JOURNAL, forgetful_mount.CHANGES, most=25, provoke=lab.start_gateway)


def vacuuming_journal(lab: Lab, rng: random.Random) -> None:
    """While free pages are given back to the file system, and the file is cut short."""
    _stop(lab, "gateway")
    with closing(sqlite3.connect(lab.journal, isolation_level=None)) as connection:
        connection.executescript("CREATE TABLE filler (bytes); PRAGMA synchronous = FULL")
        connection.execute("INSERT INTO filler VALUES (zeroblob(?))", (VACUUM_PAGES * 4096,))
        connection.executescript("DROP TABLE filler; PRAGMA wal_checkpoint(TRUNCATE)")

    def vacuum() -> None:
        lab.start_gateway()
        time.sleep(rng.uniform(0.3, 1.5))
        _ask_to_stop(lab, "gateway")

    if rng.random() < 0.5:
        cut_at(lab, rng, "gateway", r"\.db$", (*SYNCS, "truncate"), most=30, provoke=vacuum)
    else:
        cut_at(lab, rng, "gateway", r"\.db-wal$", SYNCS, most=80, provoke=vacuum)


def setting_journal_aside(lab: Lab, rng: random.Random) -> None:
    """While a corrupt journal, of which all was delivered, makes room for a new one; its bytes have to stay."""
    _stop(lab, "gateway")
    while _undelivered(lab.journal):
        lab.start_gateway()
        _stop(lab, "gateway")
    mark = os.urandom(16)
    with lab.journal.open("r+b", buffering=0) as file:
        file.seek(rng.choice([0, 4096]))
        file.write(mark * 256)
        os.fsync(file.fileno())
    cut_at(lab, rng, "gateway", r"\.db", RENAMES, most=12, provoke=lab.start_gateway)
    if not any(mark in path.read_bytes() for path in lab.journal.parent.glob("gateway-journal.db*") if path.is_file()):
        lab.broken_promises.append("the corrupt journal is gone, which was to be kept aside")


def _undelivered(journal: Path) -> int:
    query = "SELECT (SELECT count(*) FROM instances) + (SELECT count(*) FROM reports WHERE state = 'waiting')"
    with closing(sqlite3.connect(journal)) as connection:
        return int(connection.execute(query).fetchone()[0])


def migrating_database(lab: Lab, rng: random.Random) -> None:
    _stop(lab, "server")
    config = alembic.config.Config()
    config.set_main_option("script_location", str(forgetful_mount.ROOT / "storage" / "migrations"))
    engine = create_engine(f"sqlite:///{lab.database}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, MIGRATED_FROM)
    engine.dispose()
    cut_at(lab, rng, "server", DATABASE, forgetful_mount.CHANGES, most=80, provoke=lab.start_server)


def moving(lab: Lab, rng: random.Random) -> None:
    """While `move` reads the database for PostgreSQL, whose disk has power; it is then run again to its end."""
    with postgres.postgresql() as target, postgres.new_database(target) as url:
        _stop(lab, "server")
        command = [sys.executable, str(lab.root / "server.py"), "move"]
        environment = {**without_settings(), **lab.environment, "MOVE_TO": url}
        environment |= {"DATABASE_URL": f"sqlite+aiosqlite:///{lab.database}"}
        moving = subprocess.Popen(command, cwd=lab.folder, env=environment, stderr=subprocess.PIPE, text=True)
        time.sleep(rng.uniform(0.5, 2.5))
        _disk(lab, "server").freeze()
        moving.kill()
        moving.communicate()
        _disk(lab, "server").cut(rng.randrange(2**32))
        again = subprocess.run(command, cwd=lab.folder, env=environment, capture_output=True, text=True, check=False)
        if again.returncode:
            lab.broken_promises.append(f"move could not be completed: {again.stderr[-300:]}")
    lab.start_server()
    _look_at_audit_log(lab)


def saving(lab: Lab, rng: random.Random) -> None:
    """After `keys create --save` and `init` have said that it is done: the key, its file and `.env` have to stay."""
    name = f"key-{rng.randrange(10**9)}"
    key, dotenv = lab.folder / "server" / f"{name}.key", lab.folder / "gateway" / ".env"
    site = f"site-{rng.randrange(10**9)}"
    _command(lab, "server", "server.py", "keys", "create", name, "--scope", "series:read", "--save", str(key))
    port = str(lab.scp_port)
    flags = {"--id": site, "--server-url": f"http://127.0.0.1:{lab.proxy.port}", "--scp-host": "127.0.0.1"}
    flags |= {"--scp-port": port, "--ae-title": "STORESCP", "--pacs": ""}
    _command(lab, "gateway", "client.py", "init", *(part for flag in flags.items() for part in flag))
    time.sleep(rng.uniform(0, 0.2))
    cut(lab, rng, "gateway", "server")
    kept = key.read_text().strip() if key.exists() else ""
    if not kept or _ask(lab, "/series?limit=1", kept) != 200:
        lab.broken_promises.append(f"the key that was saved is gone: {key.name} holds {len(kept)} bytes")
    if site not in (dotenv.read_text() if dotenv.exists() else ""):
        lab.broken_promises.append("what init wrote to .env is gone")


def _command(lab: Lab, who: Who, program: str, *arguments: str) -> None:
    """Do what an operator types in the folder of one of them. Raises RuntimeError if it fails, `check`'s part aside."""
    environment = {**without_settings(), "DATABASE_URL": f"sqlite+aiosqlite:///{lab.database}"}
    command = [sys.executable, str(lab.root / program), *arguments]
    done = subprocess.run(
        command,
        cwd=lab.folder / who,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, FAILED):
        raise RuntimeError(f"{program} {arguments[0]} ended in {done.returncode}: {done.stderr[-500:]}")


CUTS: list[tuple[str, Inject]] = [
    ("gateway, while receiving", receiving("gateway")),
    ("gateway, in a commit", committing("gateway")),
    ("gateway, in a checkpoint", checkpointing("gateway")),
    ("gateway, in a report", reporting("on_request", "gateway")),
    ("gateway, after the server's answer", reporting("on_answer", "gateway")),
    ("gateway, in a migration", migrating_journal),
    ("gateway, in a vacuum", vacuuming_journal),
    ("gateway, in a set-aside", setting_journal_aside),
    ("server, while receiving", receiving("server")),
    ("server, in a commit", committing("server")),
    ("server, in a checkpoint", checkpointing("server")),
    ("server, in a report", reporting("on_request", "server")),
    ("server, after its answer", reporting("on_answer", "server")),
    ("server, in a migration", migrating_database),
    ("server, in a move", moving),
    ("both, while receiving", receiving("gateway", "server")),
    ("both, in a commit of the journal", committing("gateway", both=True)),
    ("both, in a commit of the database", committing("server", both=True)),
    ("both, after the server's answer", reporting("on_answer", "gateway", "server")),
    ("both, after keys --save and init", saving),
]
"""What the power goes off in, and how."""
