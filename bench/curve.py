"""The curve of `make scale`: how many series a second are stored, whose CPU that takes, and how large a series is."""

import asyncio
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from sqlalchemy.engine import URL, make_url

from bench.rig.cluster import Site, site
from bench.rig.postgres import new_database
from gateway.collector import SeriesCollector
from gateway.idle import Fixed
from gateway.journal import Bounds, Journal
from gateway.journal_reader import read
from models import Association, Instance, SeriesReport

GATEWAYS = (1, 4, 16)
CONCURRENCY = 8  # GATEWAY_DISPATCH_CONCURRENCY
INSTANCES = 100  # of a series
WARM_UP_S, MEASURED_S = 1.0, 5.0
JOURNALLED = 500  # series
ROOT_UID = "1.2.826.0.1.3680043.8.498."
STUDY, SERIES, PATIENT = ROOT_UID + "1" + "0" * 23, ROOT_UID + "2" + "0" * 23, "P00000000"
BEGAN = datetime(2026, 1, 1, 8, tzinfo=UTC)


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


def example(began: datetime = BEGAN) -> list[Instance]:
    """Return a CT series as the SCP receives it."""
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
            received_at=began + timedelta(seconds=0.05 * n),
            attributes=of_series | {"InstanceNumber": (str(n),)},
            association=association,
        )
        for n in range(1, INSTANCES + 1)
    ]


def finished_report(instances: Sequence[Instance], began: datetime = BEGAN) -> SeriesReport:
    """Return what the gateway's collector makes of them, once the series is idle."""
    collector = SeriesCollector(
        policy=Fixed(2.0),
        max_open_s=900.0,
        gateway_id="gateway-1",
        wall_clock=lambda at: began + timedelta(seconds=at),
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
    """Measure all numbers of servers and gateways on PostgreSQL, all numbers of gateways on SQLite; then sizes."""
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
    spent: dict[str, Callable[[], float]] = {"servers": lambda: sum(map(own_s, servers))}
    if database == "PostgreSQL" and (main_process := await postmaster_of(url)) is not None:
        spent["PostgreSQL"] = partial(family_s, main_process)
    spent["HAProxy"] = partial(own_s, psutil.Process(site.haproxy.popen.pid))
    spent["load"] = partial(own_s, psutil.Process())
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
    """Return how many series a second were stored in MEASURED_S, and the CPU milliseconds of each."""
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


def own_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def family_s(process: psutil.Process) -> float:
    """Return the CPU seconds of a process and its children, those that have ended included."""
    times = process.cpu_times()
    ended = float(times.children_user + times.children_system)
    return own_s(process) + ended + sum(map(own_s, process.children(recursive=True)))


def _machine_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


async def _connect(url: str) -> Any:
    return await asyncpg.connect(make_url(url).set(drivername="postgresql").render_as_string(hide_password=False))


async def postmaster_of(url: str) -> psutil.Process | None:
    """Return PostgreSQL's main process, if it runs on this machine."""
    connection = await _connect(url)
    try:
        parent = psutil.Process(await connection.fetchval("SELECT pg_backend_pid()")).parent()
        return parent if parent and parent.name() == "postgres" else None
    except psutil.NoSuchProcess:
        return None
    finally:
        await connection.close()


async def database_size(url: str) -> str:
    """Say what a series takes in PostgreSQL, by table, indexes included."""
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
    """Say what a gateway's journal takes: for images of open series, for reports that wait, for those delivered."""
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
