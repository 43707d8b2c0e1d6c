"""`make scale`: two gateways, two servers, HAProxy: killed and cut off while images come; then how much they store.

The tests compare what senders were told, and what followers of the changes were told, with the rows: an image
acknowledged and not in its row is lost; a row, an instance or a change number too many is doubled. The curve posts
reports as gateways do, and says how many a second are stored and whose CPU that takes. Figures go into docs/scale.md.
"""

import argparse
import asyncio
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from sqlalchemy.engine import URL, make_url

from bench import noticing, partitions
from bench.faults import broken_copy
from bench.judging import PageFollower, StreamFollower, Trial, everything, judge_changes, judge_rows
from bench.rig.haproxy import HAPROXY, HAPROXY_MISSING, OF_GATEWAYS, OF_SERVERS, haproxy_process, listen, redispatched
from bench.rig.postgres import missing, new_database, postgresql
from bench.rig.processes import ROOT, Process, copy_to_break, make_key, running, start_gateway, start_server
from bench.rig.progress import bar
from bench.rig.senders import PynetdicomSender, synthetic_series
from gateway.collector import SeriesCollector
from gateway.idle import Fixed
from gateway.journal import Bounds, Journal
from gateway.journal_reader import read
from models import Association, Change, Instance, SeriesReport

DOCUMENT = ROOT / "docs" / "scale.md"

IMAGES, ASSOCIATIONS = 1000, 8
FURTHER, FURTHER_SENDERS = 48, 4  # series of up to 20 images at the same time
TWICE = 0.03  # so many of all images each association sends beside its own
PACE_S = 0.04  # mean pause of a sender between images: the kills meet images on their way
TRIAL_TIMEOUT_S = 400.0
GATEWAY = {
    "GATEWAY_IDLE_TIMEOUT_S": "0.3",
    "GATEWAY_MAX_OPEN_S": "0.5",  # the series is reported again and again while its images come
    "GATEWAY_RETRY_MAX_S": "0.5",
    "GATEWAY_MIN_FREE_BYTES": "0",
}
SERVER = {"SERVER_REQUESTS_PER_S": "1000000"}
SCOPES = {"gateways": "series:write", "followers": "series:read"}  # of the keys

GATEWAYS = (1, 4, 16)
CONCURRENCY = 8  # GATEWAY_DISPATCH_CONCURRENCY
INSTANCES = 100  # of a series
WARM_UP_S, MEASURED_S = 1.0, 5.0
JOURNALLED = 500  # series
PARTITIONS = 36
ROOT_UID = "1.2.826.0.1.3680043.8.498."
STUDY, SERIES, PATIENT = ROOT_UID + "1" + "0" * 23, ROOT_UID + "2" + "0" * 23, "P00000000"
BEGAN = datetime(2026, 1, 1, 8, tzinfo=UTC)


# --- HAProxy and what stands behind it ----------------------------------------------------------------------------


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
        """How many log events of that name, over all its runs."""
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
        """What calls the servers with this key."""
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
    folder: Path, database_url: str, *, gateways: int, servers: int, break_it: str | None = None
) -> Iterator[Site]:
    """So many of each, stopped at the end: gateways first, then HAProxy, then servers."""
    environment = SERVER | {"DATABASE_URL": database_url}
    keys = {name: make_key(folder, environment, name, scope) for name, scope in SCOPES.items()}
    gateway_root, server_root = _roots(folder, break_it)
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
    """A free port, listened on before HAProxy takes it over, so that nobody else can take it."""
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


# --- the kill test: senders and kills -----------------------------------------------------------------------------


class Progress:
    """Counts acknowledged images, and wakes who waits for a number of them."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._count = 0
        self._news = threading.Condition()

    def one_more(self) -> None:
        with self._news:
            self._count += 1
            self._news.notify_all()

    def wait_for(self, count: int) -> bool:
        """Wait until so many are acknowledged; whether more were to come then."""
        with self._news:
            self._news.wait_for(lambda: self._count >= count, TRIAL_TIMEOUT_S)
            return self._count < self.total


class PacedSender(PynetdicomSender):
    """Stock pynetdicom that pauses between images, as a modality does."""

    def __init__(self, port: int, images: Sequence[Dataset], deadline: float, progress: Progress, seed: float) -> None:
        super().__init__(port, images, deadline)
        self._progress = progress
        self._rng = random.Random(seed)

    def send(self, images: list[Dataset]) -> Iterator[int]:
        for n in super().send(images):
            self._progress.one_more()
            yield n
            time.sleep(self._rng.uniform(0, 2 * PACE_S))


def strike(members: Sequence[Member], progress: Progress, rng: random.Random) -> int:
    """Kill each, one after the other, at random moments, and start each again later; how many while images came."""
    moments = sorted(rng.sample(range(progress.total // 20, progress.total * 2 // 3), 2 * len(members)))
    on_the_way = 0
    for member, kill_at, start_at in zip(rng.sample(members, len(members)), moments[::2], moments[1::2], strict=True):
        on_the_way += progress.wait_for(kill_at)
        member.kill()
        progress.wait_for(start_at)
        member.restart()
    return on_the_way


def parts_of(series: list[list[Dataset]], rng: random.Random) -> list[list[list[Dataset]]]:
    """What each of the senders sends, one association after the other; the first series is split over eight."""
    first, *further = series
    parts = [first[n::ASSOCIATIONS] + rng.sample(first, round(TWICE * len(first))) for n in range(ASSOCIATIONS)]
    shuffled = [[rng.sample(part, len(part))] for part in parts]
    return shuffled + [further[n::FURTHER_SENDERS] for n in range(FURTHER_SENDERS)]


def run_all(senders: Sequence[PacedSender]) -> None:
    for sender in senders:
        sender.run()


# --- the kill test: trials ----------------------------------------------------------------------------------------


def kill_test(postgres: URL, images: int, seed: str, break_it: str | None) -> Trial:
    """One trial, on a database and processes of its own."""
    with (
        new_database(postgres) as url,
        tempfile.TemporaryDirectory(prefix="scale-") as folder,
        site(Path(folder), url, gateways=2, servers=2, break_it=break_it) as here,
    ):
        return asyncio.run(_trial(here, images, random.Random(seed), forgets=break_it == "follower"))


async def _trial(site: Site, images: int, rng: random.Random, *, forgets: bool) -> Trial:
    began = time.monotonic()
    trial = Trial()
    series = [synthetic_series(n) for n in (images, *(rng.randint(1, 20) for _ in range(FURTHER)))]
    async with site.client("followers") as http, asyncio.TaskGroup() as tasks:
        followers = [StreamFollower(http, forgets=forgets), PageFollower(http)]
        following = [tasks.create_task(follower.run(), name=type(follower).__name__) for follower in followers]
        acknowledged = await asyncio.to_thread(send_and_strike, site, series, rng, trial)
        await asyncio.to_thread(site.drain)
        changes = [Change.model_validate(change) for change in (await everything(http, "changes"))]
        for follower in followers:
            await follower.reach(len(changes))
        for task in following:
            task.cancel()
        await judge_rows(http, series, acknowledged, trial, {change.SeriesInstanceUID: change for change in changes})
    judge_changes([changes, *(follower.seen for follower in followers)], trial)
    trial.broken = followers[0].broken
    trial.repeated = sum(gateway.events("report.delayed") for gateway in site.gateways)
    trial.redispatched = redispatched(site.folder)
    trial.took_s = time.monotonic() - began
    return trial


def send_and_strike(site: Site, series: list[list[Dataset]], rng: random.Random, trial: Trial) -> set[str]:
    """Send all, and kill each gateway and each server on the way; the SOP Instance UIDs that were acknowledged."""
    deadline = time.monotonic() + TRIAL_TIMEOUT_S
    parts = parts_of(series, rng)
    progress = Progress(sum(len(images) for part in parts for images in part))
    senders = [
        [PacedSender(site.scp_port, images, deadline, progress, rng.random()) for images in part] for part in parts
    ]
    with ThreadPoolExecutor(len(senders) + 2) as pool:
        kinds = (site.gateways, site.servers)
        strikes = [pool.submit(strike, members, progress, random.Random(rng.random())) for members in kinds]
        for sent in [pool.submit(run_all, some) for some in senders]:
            sent.result()
        trial.kills = sum(striking.result() for striking in strikes)
    everyone = [sender for some in senders for sender in some]
    acknowledged = set[str]().union(*(sender.acknowledged for sender in everyone))
    trial.acknowledged = len(acknowledged)
    trial.cut_short = sum(sender.cut_short for sender in everyone)
    if never := sum(map(len, series)) - len(acknowledged):
        trial.problems.append(f"{never} images were never acknowledged")
    return acknowledged


def _roots(folder: Path, break_it: str | None) -> tuple[Path, Path]:
    """Where the gateway's program is, and the server's."""
    gateway_root = broken_copy(folder) if break_it == "gateway" else ROOT
    return gateway_root, broken_server(folder) if break_it == "union" else ROOT


def broken_server(folder: Path) -> Path:
    """This project with one change: counts are added up where the union is to be counted."""
    united = 'return max(int(known["NumInstances"]), instances, floor)'
    added = 'return int(known["NumInstances"]) + report.NumInstances'
    return copy_to_break(folder / "broken-server", "storage/merge.py", united, added)


# --- the curve ----------------------------------------------------------------------------------------------------


@dataclass
class Cell:
    """How fast it was with one number of gateways and servers."""

    database: str
    servers: int
    gateways: int
    series_per_s: float
    cpu_ms: dict[str, float]
    """Per series, by who spent it; `machine` is all there was."""


class Load:
    """Posts new series, as so many gateways do that have more to report than the servers can store."""

    def __init__(self) -> None:
        self.stored = 0
        self.over = False
        self._template = finished_report(example()).model_dump_json(exclude_none=True)

    async def gateway(self, site: Site) -> None:
        """Post until it is over, CONCURRENCY reports at the same time."""
        async with site.client("gateways") as http, asyncio.TaskGroup() as posts:
            for _ in range(CONCURRENCY):
                posts.create_task(self._post(http))

    async def _post(self, http: httpx.AsyncClient) -> None:
        while not self.over:
            answer = await http.post("series", content=self._next(), headers={"Content-Type": "application/json"})
            if f'"NumInstances":{INSTANCES}' not in answer.raise_for_status().text:
                raise RuntimeError(f"a new series of {INSTANCES} instances was answered with {answer.text}")
            self.stored += 1

    def _next(self) -> str:
        number = random.randrange(10**23)
        report = self._template.replace(SERIES, f"{SERIES[:-23]}{number:023d}")
        return report.replace(STUDY, f"{STUDY[:-23]}{number:023d}").replace(PATIENT, f"P{number % 10**8:08d}")


def example() -> list[Instance]:
    """A CT series as the SCP receives it."""
    association = Association(1, "CT1", "10.0.0.7", 0.0, released_at=5.0)
    of_series = {
        "SpecificCharacterSet": ("ISO_IR 100",),
        "StudyDate": ("20260101",),
        "StudyTime": ("075502",),
        "AccessionNumber": (PATIENT,),
        "Modality": ("CT",),
        "StudyDescription": ("CT Abdomen with contrast",),
        "SeriesDescription": ("Abdomen 1.0 B30f",),
        "PatientName": ("Test^One",),
        "PatientID": (PATIENT,),
        "PatientBirthDate": ("19700101",),
        "PatientSex": ("O",),
        "StudyID": ("1",),
        "SeriesNumber": ("2",),
        "Rows": ("512",),
        "Columns": ("512",),
        "BitsAllocated": ("16",),
        "SOPClassUID": (CTImageStorage,),
    }
    return [
        Instance(
            study_instance_uid=STUDY,
            series_instance_uid=SERIES,
            sop_instance_uid=f"{SERIES}.{n}",
            sop_class_uid=CTImageStorage,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            calling_ae_title="CT1",
            peer_address="10.0.0.7",
            received_at=BEGAN + timedelta(seconds=0.05 * n),
            attributes=of_series | {"InstanceNumber": (str(n),)},
            association=association,
        )
        for n in range(1, INSTANCES + 1)
    ]


def finished_report(instances: Sequence[Instance]) -> SeriesReport:
    """What the gateway's collector makes of them, once the series is idle."""
    collector = SeriesCollector(
        policy=Fixed(2.0),
        max_open_s=900.0,
        gateway_id="gateway-1",
        wall_clock=lambda at: BEGAN + timedelta(seconds=at),
    )
    for n, instance in enumerate(instances):
        collector.observe(instance, 0.05 * n)
    while (deadline := collector.next_deadline()) is not None:
        if reports := collector.due(deadline):
            return reports[0]
    raise RuntimeError("the collector has reported nothing")


@dataclass
class Curve:
    """What the curve found."""

    cells: list[Cell] = field(default_factory=list)
    sizes: list[str] = field(default_factory=list)
    """Sentences."""
    lost: int = 0
    doubled: int = 0


Spent = Mapping[str, Callable[[], float]]
"""CPU seconds so far, by who spent them."""


def curve(postgres: URL, measured: Callable[[], None]) -> Curve:
    """Every number of servers and gateways on PostgreSQL, every number of gateways on SQLite; then the sizes."""
    found = Curve()
    for servers in (1, 2):
        with new_database(postgres) as url, tempfile.TemporaryDirectory(prefix="scale-") as folder:
            with site(Path(folder), url, gateways=0, servers=servers) as here:
                asyncio.run(_cells(here, "PostgreSQL", url, found, measured))
            if servers == 2:
                found.sizes.append(asyncio.run(database_size(url)))
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        url = f"sqlite+aiosqlite:///{folder}/series.db"
        with site(Path(folder), url, gateways=0, servers=1) as here:
            asyncio.run(_cells(here, "SQLite", url, found, measured))
        found.sizes.append(asyncio.run(journal_size(Path(folder) / "journal.db")))
    return found


async def _cells(site: Site, database: str, url: str, found: Curve, measured: Callable[[], None]) -> None:
    servers = [psutil.Process(server.process.popen.pid) for server in site.servers]
    spent: dict[str, Callable[[], float]] = {"servers": lambda: sum(map(_own_s, servers))}
    if database == "PostgreSQL" and (postmaster := await _postmaster(url)) is not None:
        spent["PostgreSQL"] = partial(_family_s, postmaster)
    spent["HAProxy"] = partial(_own_s, psutil.Process(site.haproxy.popen.pid))
    spent["load"] = partial(_own_s, psutil.Process())
    spent["machine"] = _machine_s
    posted = 0
    for gateways in GATEWAYS:
        load = Load()
        series_per_s, cpu_ms = await measure(load, site, gateways, spent)
        found.cells.append(Cell(database, len(servers), gateways, series_per_s, cpu_ms))
        posted += load.stored
        measured()
    async with site.client("followers") as http:
        completions = (await http.get("completions")).raise_for_status().json()["completions"]
    stored = sum(completion["Series"] for completion in completions)
    found.lost += max(0, posted - stored)
    found.doubled += max(0, stored - posted)


async def measure(load: Load, site: Site, gateways: int, spent: Spent) -> tuple[float, dict[str, float]]:
    """How many series a second were stored in MEASURED_S, and the CPU milliseconds of each."""
    async with asyncio.TaskGroup() as posting:
        for _ in range(gateways):
            posting.create_task(load.gateway(site))
        await asyncio.sleep(WARM_UP_S)
        stored, began, before = load.stored, time.monotonic(), {who: so_far() for who, so_far in spent.items()}
        await asyncio.sleep(MEASURED_S)
        stored, took_s = load.stored - stored, time.monotonic() - began
        cpu_ms = {who: 1000 * (so_far() - before[who]) / stored for who, so_far in spent.items()}
        load.over = True
    return stored / took_s, cpu_ms


def _own_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _family_s(process: psutil.Process) -> float:
    """With its children, those that have ended included."""
    times = process.cpu_times()
    ended = float(times.children_user + times.children_system)
    return _own_s(process) + ended + sum(map(_own_s, process.children(recursive=True)))


def _machine_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


async def _connect(url: str) -> Any:
    return await asyncpg.connect(make_url(url).set(drivername="postgresql").render_as_string(hide_password=False))


async def _postmaster(url: str) -> psutil.Process | None:
    """PostgreSQL's main process, where it runs on this machine."""
    connection = await _connect(url)
    try:
        parent = psutil.Process(await connection.fetchval("SELECT pg_backend_pid()")).parent()
        return parent if parent and parent.name() == "postgres" else None
    except psutil.NoSuchProcess:
        return None
    finally:
        await connection.close()


async def database_size(url: str) -> str:
    """What a series takes in PostgreSQL, by table, indexes included."""
    connection = await _connect(url)
    try:
        series = await connection.fetchval("SELECT count(*) FROM series")
        tables = await connection.fetch(
            "SELECT relname, pg_total_relation_size(oid) AS size FROM pg_class "
            "WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY size DESC LIMIT 4"
        )
        version = await connection.fetchval("SHOW server_version")
    finally:
        await connection.close()
    each = [f"{table['relname']} {table['size'] / series / 1024:.1f} KiB" for table in tables]
    total = sum(table["size"] for table in tables) / series
    return (
        f"PostgreSQL {version}, after {series} series of {INSTANCES} instances, indexes included: {', '.join(each)} "
        f"a series; {total * 10**6 / 2**30:.0f} GiB for 1,000,000 series and {INSTANCES},000,000 instances."
    )


async def journal_size(path: Path) -> str:
    """What a gateway's journal takes: for images of open series, for reports that wait, for those delivered."""
    images, sizes = example(), []
    async with Journal.open(path, Bounds(10**9, 10**12, 0)) as journal:
        reports = []
        for n in range(JOURNALLED):
            uid = f"{SERIES[:-23]}{n:023d}"
            some = [replace(i, series_instance_uid=uid, sop_instance_uid=f"{uid}.{m}") for m, i in enumerate(images)]
            await journal.keep(some)
            reports.append(finished_report(some))
        sizes.append(_used_bytes(path))
        waiting = await journal.file_reports(reports)
        sizes.append(_used_bytes(path))
        for one in waiting:
            await journal.delivered(one)
        sizes.append(_used_bytes(path))
    open_, waiting_, delivered = (size / JOURNALLED for size in sizes)
    return (
        f"A gateway's journal, measured with {JOURNALLED} series of {INSTANCES} instances: {open_ / INSTANCES:.0f} "
        f"bytes for each image of an open series, {waiting_ / 1024:.1f} KiB for a report that waits, "
        f"{delivered:.0f} bytes for one that is delivered."
    )


def _used_bytes(path: Path) -> int:
    pragmas = ("page_count", "freelist_count", "page_size")
    total, free, size = (int(read(path, f"PRAGMA {pragma}")[0][pragma]) for pragma in pragmas)
    return (total - free) * size


# --- the command --------------------------------------------------------------------------------------------------


PARTS = ("kills", "partitions", "noticing", "curve")


@dataclass
class Run:
    """What is asked for, and what came of it."""

    console: Console
    options: argparse.Namespace
    lost: int = 0
    doubled: int = 0
    problems: int = 0

    def wanted(self, part: str) -> bool:
        return self.options.only in (None, part)

    def count(self, *found: Trial | Curve) -> None:
        self.lost += sum(one.lost for one in found)
        self.doubled += sum(one.doubled for one in found)
        self.problems += sum(len(one.problems) for one in found if isinstance(one, Trial))


def main() -> int:
    """Run all parts; exit code 0 if nothing was lost or doubled, and nothing else was wrong."""
    parser = argparse.ArgumentParser(prog="make scale", description=__doc__)
    parser.add_argument("--trials", type=int, default=3, help="of the kill test")
    parser.add_argument("--images", type=int, default=IMAGES, help="of the series that is split, in the kill test")
    parser.add_argument("--partitions", type=int, default=PARTITIONS, help="at least 10")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--only", choices=PARTS, help="writes no document")
    parser.add_argument(
        "--break-it",
        choices=["gateway", "union", "follower"],
        help="answer before the commit; add counts up; forget what was told: must show losses or doubles",
    )
    run = Run(Console(width=160), parser.parse_args())
    if problem := missing() or (None if HAPROXY else HAPROXY_MISSING):
        run.console.print(f"scale: {problem}")
        return 1
    run.console.print(f"seed {run.options.seed}; {_versions()}")
    figures = [*_kills(run)]
    cut_off = [*_cut_off(run)]
    figures += _curve(run)
    if run.options.only is None and run.options.break_it is None:
        write_document("figures", [*figures, f"{_versions()}; seed {run.options.seed}."])
        if cut_off:
            write_document("cut off", [*cut_off, f"Seed {run.options.seed}."])
    run.console.print(f"scale: lost={run.lost} doubled={run.doubled}")
    return 1 if run.lost or run.doubled or run.problems else 0


def _kills(run: Run) -> Iterator[str]:
    if not run.wanted("kills"):
        return
    options, trials = run.options, list[Trial]()
    with postgresql() as postgres, bar(run.console, "kill tests", options.trials) as tried:
        for n in range(options.trials):
            trials.append(kill_test(postgres, options.images, f"{options.seed} {n}", options.break_it))
            _print_problems(run.console, f"trial {n + 1}", trials[-1])
            tried()
    run.count(*trials)
    if trials:
        yield _print(run.console, _text(trials_table(trials)))


def _cut_off(run: Run) -> Iterator[str]:
    """Partitions, and how long each side takes to notice one; both named and left out where hosts cannot be made."""
    if not (run.wanted("partitions") or run.wanted("noticing")):
        return
    if problem := partitions.missing():
        run.console.print(f"partitions and the time to notice them are left out: {problem}")
        return
    options = run.options
    if run.wanted("partitions"):
        with (
            bar(run.console, "partitions", options.partitions) as ended,
            tempfile.TemporaryDirectory(prefix="scale-") as folder,
        ):
            Path(folder).chmod(0o755)
            roots = _roots(Path(folder), options.break_it)
            forgets = options.break_it == "follower"
            cut = partitions.partition_test(options.partitions, f"{options.seed}", ended, roots, forgets=forgets)
        _print_problems(run.console, "partitions", cut)
        run.count(cut)
        yield from (_print(run.console, _text(table)) for table in partitions.tables(cut))
    if run.wanted("noticing") and options.break_it is None:
        sides = noticing.noticing()
        run.problems += sum(side.late for side in sides)
        yield _print(run.console, _text(noticing.table(sides)))


def _curve(run: Run) -> Iterator[str]:
    if not run.wanted("curve"):
        return
    with (
        postgresql() as postgres,
        bar(run.console, "numbers of servers and gateways", 3 * len(GATEWAYS)) as measured,
    ):
        found = curve(postgres, measured)
    run.count(found)
    yield from (_print(run.console, text) for text in (_text(curve_table(found.cells)), *found.sizes))


def _versions() -> str:
    version = subprocess.run([str(HAPROXY), "-v"], capture_output=True, text=True, check=True).stdout.split()[2]
    return f"{os.cpu_count()} cores, shared by everything; HAProxy {version}"


def _print_problems(console: Console, what: str, trial: Trial) -> None:
    for problem in trial.problems[:10]:
        console.print(f"{what}: {problem}", markup=False, highlight=False)


def trials_table(trials: Sequence[Trial]) -> Table:
    columns = ("cut_short", "kills", "redispatched", "repeated", "broken", "changes")
    titles = ("rounds cut short", "kills", "redispatched", "posts repeated", "stream broken off", "changes")
    table = Table("trial", "acknowledged", *titles, "stored", "lost", "doubled", "took", box=MARKDOWN)
    for n, trial in enumerate(trials, 1):
        numbers = [getattr(trial, name) for name in ("acknowledged", *columns, "stored", "lost", "doubled")]
        table.add_row(str(n), *map(str, numbers), f"{trial.took_s:.0f} s")
    return table


def curve_table(cells: Sequence[Cell]) -> Table:
    who = ("servers", "PostgreSQL", "HAProxy", "load")
    titles = ("CPU ms a series: servers", *who[1:], "cores busy with it", "with others")
    table = Table("database", "servers", "gateways", "series/s", "instances/s", *titles, box=MARKDOWN)
    for cell in cells:
        spent = [f"{cell.cpu_ms[name]:.2f}" if name in cell.cpu_ms else "" for name in who]
        ours, all_ms = sum(cell.cpu_ms.get(name, 0.0) for name in who), cell.cpu_ms["machine"]
        busy = [f"{cell.series_per_s * ms / 1000:.1f}" for ms in (ours, max(0.0, all_ms - ours))]
        rates = f"{cell.series_per_s:.0f}", f"{cell.series_per_s * INSTANCES:.0f}"
        table.add_row(cell.database, str(cell.servers), str(cell.gateways), *rates, *spent, *busy)
    return table


def _text(table: Table) -> str:
    console = Console(width=200, file=StringIO())
    with console.capture() as capture:
        console.print(table)
    return capture.get().strip()


def _print(console: Console, text: str) -> str:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    return text


def write_document(what: str, parts: Sequence[str]) -> None:
    """Put something between the document's marks of that name."""
    before, rest = DOCUMENT.read_text().split(f"<!-- {what} -->")
    _, after = rest.split(f"<!-- end of {what} -->")
    text = "\n\n".join(parts)
    DOCUMENT.write_text(f"{before}<!-- {what} -->\n\n{text}\n\n<!-- end of {what} -->{after}")


if __name__ == "__main__":
    sys.exit(main())
