"""`make faults`: real processes, real senders, each fault many times at random moments; then who lost what.

For each trial, senders keep sending until every image was answered 0x0000; meanwhile the fault strikes and passes.
What they were told is then compared with the rows: an image acknowledged and not stored is lost, an image counted more
often than it exists is doubled.
"""

import argparse
import contextlib
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from bench import power
from bench.judging import Trial
from bench.rig import processes, warm
from bench.rig.processes import ROOT, Process, copy_to_break, start_gateway, start_server
from bench.rig.progress import bar
from bench.rig.proxy import Mischief, Proxy, proxy
from bench.rig.senders import STORESCU, PynetdicomSender, Sender, StorescuSender, synthetic_series

TRIAL_TIMEOUT_S = 300.0
BROKEN_TRIAL_TIMEOUT_S = 60.0  # of a broken copy: what it has lost is waited for in vain
WORKERS = 4
SETTINGS = {
    "GATEWAY_IDLE_TIMEOUT_S": "0.3",
    "GATEWAY_RETRY_MAX_S": "0.5",
    "GATEWAY_REQUEST_TIMEOUT_S": "1.5",
    "GATEWAY_DRAIN_TIMEOUT_S": "5",
    "GATEWAY_MIN_FREE_BYTES": "0",
}
TMPFS_BYTES = 24 * 2**20
POWER_CUT = "power cut: "


class Lab:
    """A server, a gateway that reaches it through a proxy, and their files; faults stop and start them at will."""

    def __init__(self, folder: Path, between: Proxy, root: Path, **environment: str) -> None:
        self.folder = folder
        self.proxy = between
        self.senders_done = threading.Event()
        self.root = root
        self.environment = SETTINGS | environment
        self.broken_promises: list[str] = []
        """What somebody was told, beside senders, and is not true."""
        self.cuts: Counter[str] = Counter()
        """By operation in which a disk was cut off, how often."""
        for name in ("gateway", "server"):
            (folder / name).mkdir(exist_ok=True)
        self._server_port = self._scp_port = 0
        self.server: Process
        self.gateway: Process
        self.start_server()
        self.start_gateway()

    @property
    def database(self) -> Path:
        return self.folder / "server" / "series.db"

    @property
    def journal(self) -> Path:
        return self.folder / "gateway" / "gateway-journal.db"

    @property
    def scp_port(self) -> int:
        return self._scp_port

    def start_server(self) -> None:
        self.server, url = start_server(self.folder / "server", self._server_port, self.root, **self.environment)
        self._server_port = self.proxy.upstream_port = int(url.rsplit(":", 1)[1])

    def start_gateway(self) -> None:
        self.gateway, self._scp_port = start_gateway(
            self.folder / "gateway",
            f"http://127.0.0.1:{self.proxy.port}",
            self._scp_port,
            self.root,
            self.environment,
        )

    def restart_gateway(self) -> None:
        """SIGKILL if it still runs, then start it on the same port and journal."""
        self.gateway.kill()
        self.start_gateway()

    def restart_server(self) -> None:
        """SIGKILL if it still runs, then start it on the same port and database."""
        self.server.kill()
        self.start_server()

    def close(self) -> None:
        self.gateway.kill()
        self.server.kill()

    def stored(self, series: list[str]) -> tuple[set[str], int]:
        """SOP Instance UIDs stored of these series, and the sum of their NumInstances."""
        marks = ",".join("?" * len(series))
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=30)) as connection:
            of_series = f'WHERE "SeriesInstanceUID" IN ({marks})'
            uids = connection.execute(f'SELECT "SOPInstanceUID" FROM instances {of_series}', series)  # noqa: S608
            stored = {uid for (uid,) in uids}
            counts = connection.execute(f'SELECT sum("NumInstances") FROM series {of_series}', series)  # noqa: S608
            return stored, counts.fetchone()[0] or 0


# --- the faults: each strikes at a random moment and has passed when the function returns ---------------------

Inject = Callable[[Lab, random.Random], None]


def nothing(lab: Lab, rng: random.Random) -> None:
    """Only the senders misbehave."""


def kill_gateway_receiving(lab: Lab, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 3)):
        time.sleep(rng.uniform(0, 0.4))
        lab.restart_gateway()


def kill_gateway_committing(lab: Lab, rng: random.Random) -> None:
    """The journal's write-ahead log grows: the record is there, or nearly, and the answer is not yet out."""
    wal = Path(f"{lab.journal}-wal")
    time.sleep(rng.uniform(0, 0.3))
    before = wal.stat()
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        now = wal.stat()
        if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            break
    lab.restart_gateway()


def _kill_at(lab: Lab, hook: str, *kill: Process) -> None:
    struck = threading.Event()

    def strike() -> None:
        for process in kill:
            process.popen.kill()
        struck.set()

    setattr(lab.proxy, hook, strike)
    if not struck.wait(120):
        raise RuntimeError(f"no post came by: {hook}")


def kill_gateway_posting(lab: Lab, rng: random.Random) -> None:
    _kill_at(lab, "on_request", lab.gateway)
    lab.restart_gateway()


def kill_gateway_before_answer(lab: Lab, rng: random.Random) -> None:
    _kill_at(lab, "on_answer", lab.gateway)
    lab.restart_gateway()


def kill_server(lab: Lab, rng: random.Random) -> None:
    if rng.random() < 0.5:
        _kill_at(lab, rng.choice(["on_request", "on_answer"]), lab.server)
    else:
        time.sleep(rng.uniform(0, 2))
    lab.restart_server()


def kill_both(lab: Lab, rng: random.Random) -> None:
    _kill_at(lab, rng.choice(["on_request", "on_answer"]), lab.server, lab.gateway)
    lab.restart_gateway()
    time.sleep(rng.uniform(0, 1))
    lab.restart_server()


def server_down(lab: Lab, rng: random.Random) -> None:
    lab.server.kill()
    lab.senders_done.wait(TRIAL_TIMEOUT_S)
    time.sleep(rng.uniform(0.5, 2))
    lab.start_server()


def answers(*kinds: Mischief) -> Inject:
    """The next few posts meet these."""

    def inject(lab: Lab, rng: random.Random) -> None:
        lab.proxy.mischief.extend(rng.choice(kinds) for _ in range(rng.randint(2, 6)))

    return inject


def database_locked(lab: Lab, rng: random.Random) -> None:
    """Another process holds the write lock, at times longer than the server's busy timeout."""
    time.sleep(rng.uniform(0, 1))
    with closing(sqlite3.connect(lab.database, isolation_level=None, timeout=30)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(rng.uniform(0.5, 6.5))
        connection.execute("ROLLBACK")


def quota(who: str) -> Inject:
    """A file size limit (RLIMIT_FSIZE) on the running process: no file of its can grow."""

    def inject(lab: Lab, rng: random.Random) -> None:
        process: Process = getattr(lab, who)
        time.sleep(rng.uniform(0, 0.4))
        _, hard = resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE, (8192, hard))
        time.sleep(rng.uniform(0.5, 2))
        resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE, (hard, hard))

    return inject


def disk_full(who: str) -> Inject:
    """The small file system fills up, down to the last byte."""

    def inject(lab: Lab, rng: random.Random) -> None:
        time.sleep(rng.uniform(0, 0.4))
        filler = lab.folder / who / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            for chunk in (bytes(65536), b"0"):
                with contextlib.suppress(OSError):
                    while file.write(chunk):
                        pass
        time.sleep(rng.uniform(0.5, 2))
        filler.unlink()

    return inject


def sigterm(lab: Lab, rng: random.Random) -> None:
    time.sleep(rng.uniform(0, 0.4))
    lab.gateway.popen.send_signal(signal.SIGTERM)
    if lab.gateway.popen.wait(30) != 0:
        raise RuntimeError(f"SIGTERM ended in exit code {lab.gateway.popen.returncode}")
    lab.start_gateway()


def clock_steps(lab: Lab, rng: random.Random) -> None:
    for step in (rng.choice([3600, -3600]), 0):
        time.sleep(rng.uniform(0, 1))
        set_clock(lab.folder, step)


def set_clock(folder: Path, step_s: int) -> None:
    path = folder / "clock"
    path.with_suffix(".new").write_text(str(step_s))
    path.with_suffix(".new").rename(path)


# --- surroundings ---------------------------------------------------------------------------------------------


@contextmanager
def plain(folder: Path) -> Iterator[dict[str, str]]:
    yield {}


@contextmanager
def stepped_clock(folder: Path) -> Iterator[dict[str, str]]:
    """Wall clocks that `clock_steps` sets; monotonic ones stay true."""
    set_clock(folder, 0)
    yield {"PYTHONPATH": str(ROOT / "bench" / "stepped_clock"), "STEPPED_CLOCK": str(folder / "clock")}


@contextmanager
def patient_gateway(folder: Path) -> Iterator[dict[str, str]]:
    """A gateway that waits for the server's 503, which comes when its busy timeout has passed."""
    yield {"GATEWAY_REQUEST_TIMEOUT_S": "10"}


def small_disk(who: str) -> Callable[[Path], Any]:
    @contextmanager
    def mounted(folder: Path) -> Iterator[dict[str, str]]:
        path = folder / who
        path.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", str(path)],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield {}
        finally:
            subprocess.run(["umount", str(path)], check=True)

    return mounted


def can_mount() -> bool:
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.suppress(OSError, subprocess.CalledProcessError),
        small_disk("probe")(Path(folder)),
    ):
        return True
    return False


@dataclass(frozen=True)
class Fault:
    name: str
    inject: Inject
    around: Callable[[Path], Any] = plain
    repeats: bool = False
    """Senders send images twice and in any order."""


FAULTS = [
    Fault("gateway kill -9 while receiving", kill_gateway_receiving),
    Fault("gateway kill -9 between commit and answer", kill_gateway_committing),
    Fault("gateway kill -9 during a post", kill_gateway_posting),
    Fault("gateway kill -9 after the server's commit", kill_gateway_before_answer),
    Fault("server kill -9", kill_server),
    Fault("both kill -9", kill_both),
    Fault("server down for the whole run", server_down),
    Fault("server answers 500", answers(Mischief.ERROR_500)),
    Fault("server answers 429", answers(Mischief.ERROR_429)),
    Fault("server never answers", answers(Mischief.HANG)),
    Fault("answer half-closed", answers(Mischief.HALF_CLOSE)),
    Fault("proxy cuts connections", answers(Mischief.CUT_REQUEST, Mischief.CUT_ANSWER)),
    Fault("database locked", database_locked, patient_gateway),
    Fault("journal: file size quota", quota("gateway")),
    Fault("database: file size quota", quota("server")),
    Fault("journal: disk full", disk_full("gateway"), small_disk("gateway")),
    Fault("database: disk full", disk_full("server"), small_disk("server")),
    Fault("SIGTERM in mid-association", sigterm),
    Fault("clock steps of an hour", clock_steps, stepped_clock),
    Fault("repeated, reordered, interleaved", nothing, repeats=True),
    *(Fault(f"{POWER_CUT}{name}", inject, power.forgetful_disks) for name, inject in power.CUTS),
]


# --- trials ---------------------------------------------------------------------------------------------------


@dataclass
class Row(Trial):
    """What was seen of one fault, in all its trials."""

    fault: str = ""
    trials: int = 0
    recovery_s: float = 0.0
    cuts: Counter[str] = field(default_factory=Counter)
    """By operation, how often the power was cut in it."""


def run_fault(fault: Fault, trials: int, seed: int, root: Path, tried: Callable[[], None] = lambda: None) -> Row:
    """All trials of one fault on one pair of processes and their growing files."""
    row = Row(fault=fault.name)
    rng = random.Random(f"{seed} {fault.name}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
        environment = stack.enter_context(fault.around(folder))
        lab = Lab(folder, stack.enter_context(proxy()), root, **environment)
        stack.callback(lab.close)
        for _ in range(trials):
            _trial(lab, fault, rng, row)
            tried()
        row.cuts = lab.cuts
    return row


def _trial(lab: Lab, fault: Fault, rng: random.Random, row: Row) -> None:
    images = [synthetic_series(rng.randint(1, 60)) for _ in range(rng.randint(2, 4))]
    deadline = time.monotonic() + (TRIAL_TIMEOUT_S if lab.root == ROOT else BROKEN_TRIAL_TIMEOUT_S)
    senders = _senders(lab, images, rng, deadline, repeats=fault.repeats)
    lab.senders_done.clear()

    def watch() -> None:
        wait(sending)
        lab.senders_done.set()

    with ThreadPoolExecutor(len(senders) + 1) as pool:
        sending = [pool.submit(sender.run) for sender in senders]
        pool.submit(watch)
        fault.inject(lab, rng)
        passed = time.monotonic()
        for sent in sending:
            sent.result()
    acknowledged = row.count(senders, sum(map(len, images)))
    stored, counted = _wait_until_stored(lab, [s[0].SeriesInstanceUID for s in images], acknowledged, deadline)
    lab.proxy.mischief.clear()
    row.trials += 1
    row.stored += len(stored)
    row.lost += len(acknowledged - stored) + len(lab.broken_promises)
    row.problems += lab.broken_promises
    lab.broken_promises.clear()
    row.doubled += max(0, counted - sum(map(len, images)))
    row.recovery_s = max(row.recovery_s, time.monotonic() - passed)


def _senders(
    lab: Lab, series: list[list[Dataset]], rng: random.Random, deadline: float, *, repeats: bool
) -> list[Sender]:
    """Two or three senders that take turns at the images of all series, so that series interleave."""
    images = [ds for one in series for ds in one]
    rng.shuffle(images)
    n = rng.randint(2, 3)
    parts = [images[i::n] for i in range(n)]
    if repeats:
        parts = [
            rng.sample(part + rng.sample(images, len(images) // 2), len(part) + len(images) // 2) for part in parts
        ]
    if STORESCU and not repeats and rng.random() < 0.4:
        folder = Path(tempfile.mkdtemp(dir=lab.folder))
        return [StorescuSender(lab.scp_port, part, deadline, folder) for part in parts if part]
    return [PynetdicomSender(lab.scp_port, part, deadline) for part in parts if part]


def _wait_until_stored(lab: Lab, series: list[str], acknowledged: set[str], deadline: float) -> tuple[set[str], int]:
    while True:
        stored, counted = lab.stored(series)
        if acknowledged <= stored or time.monotonic() > deadline:
            return stored, counted
        time.sleep(0.05)


# --- the break-it test ------------------------------------------------------------------------------------------


COMMIT = "await journal.keep([arrival.instance for arrival in arrivals])"
EARLY = "[arrival.status.set_result(SUCCESS) for arrival in arrivals]; await asyncio.sleep(0.02); "
BROKEN = {"answer": ("client.py", COMMIT, EARLY + COMMIT)} | power.BROKEN


def broken_copy(folder: Path, what: str) -> Path:
    """This project with one change, which breaks a promise; "answer": 0x0000 comes before the commit."""
    return copy_to_break(folder / "broken", *BROKEN[what])


# --- the command ------------------------------------------------------------------------------------------------


def missing(fault: Fault, may_mount: bool) -> str | None:
    """Why a fault cannot be injected here."""
    if fault.name.endswith("disk full") and not may_mount:
        return "this user may not mount a tmpfs; the quota rows stand for it"
    if fault.name.startswith(POWER_CUT):
        return power.missing(fault.name)
    return None


def main() -> int:
    """Run the faults; exit code 0 if nothing was lost or doubled."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--trials", type=int, default=16, help="of each fault")
    parser.add_argument("--only", default="", help="faults whose name contains this")
    parser.add_argument("--without", help="faults whose name does not contain this")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument(
        "--break-it",
        nargs="?",
        const="answer",
        choices=BROKEN,
        help="must show losses: answer before the commit (default); with --only power: no sync of the journal's or "
        "the server's commits, or of folders",
    )
    options = parser.parse_args()
    processes.started = warm.popen
    console = Console(width=160)
    may_mount = can_mount()
    chosen = [fault for fault in FAULTS if options.only in fault.name]
    chosen = [fault for fault in chosen if not options.without or options.without not in fault.name]
    for fault in chosen:
        if problem := missing(fault, may_mount):
            console.print(f"skipped: {fault.name}: {problem}")
    chosen = [fault for fault in chosen if not missing(fault, may_mount)]
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(WORKERS) as pool,
        bar(console, "trials", options.trials * len(chosen)) as tried,
    ):
        root = broken_copy(Path(folder), options.break_it) if options.break_it else ROOT
        rows = list(pool.map(lambda fault: run_fault(fault, options.trials, options.seed, root, tried), chosen))
    return report(console, rows, options.seed)


def report(console: Console, rows: list[Row], seed: int) -> int:
    table = Table(
        "fault",
        "trials",
        "acknowledged",
        "rounds cut short",
        "stored",
        "lost",
        "doubled",
        "longest recovery",
        box=MARKDOWN,
    )
    for row in rows:
        numbers = (row.trials, row.acknowledged, row.cut_short, row.stored, row.lost, row.doubled)
        table.add_row(row.fault, *map(str, numbers), f"{row.recovery_s:.1f} s")
    console.print(table)
    for row in rows:
        for problem in row.problems:
            console.print(f"{row.fault}: {problem}")
    if cuts := sum((row.cuts for row in rows), Counter[str]()):
        console.print("cut in: " + ", ".join(f"{operation} {n}" for operation, n in cuts.most_common()))
    total = {name: sum(getattr(row, name) for row in rows) for name in ("trials", "acknowledged", "lost", "doubled")}
    console.print(
        f"seed {seed}; {os.cpu_count()} cores; storescu {'among the senders' if STORESCU else 'not installed'}"
    )
    console.print("faults: " + " ".join(f"{name}={n}" for name, n in total.items()))
    return 1 if total["lost"] or total["doubled"] or any(row.problems for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
