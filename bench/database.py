"""`python -m bench.database`: is the union exact under load, what does a large report cost, do queries stay flat?

Four parts, each on SQLite and on a real PostgreSQL: 64 reports of overlapping parts of one series at the same time,
many times; the server's CPU for a report of 5,000 instances; latency of queries, and of a purge's batches, at 1,000 and
at 1,000,000 series, and how long the last migrations take there; a tenth of the series purged beside a server that is
posted reports.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import httpx
import psutil
import sqlalchemy
import time_machine
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sqlalchemy import text

from bench.rig.postgres import missing, new_database, postgresql
from bench.rig.processes import ROOT, server, without_settings
from common.settings import ServerSettings
from db import Database
from models import SeriesReport
from storage.connection import Connection
from storage.engine import Engine, insert, revisions
from storage.folding import folded
from storage.rhythm import KEPT_HOURS, hour_of
from storage.schema import changes, completions, counters, instances, series, source_hours, sources

AT_ONCE = 64
ROOT_UID = "1.2.826.0.1.3680043.10.1"
SERIES_A_STUDY = 4
BATCH = 5000
BORN = datetime(2026, 1, 1, tzinfo=UTC)
PATIENT = {"SERVER_REQUESTS_PER_S": "100000", "SERVER_DATABASE_TIMEOUT_S": "100"}  # what is slow is measured, too
FIRST_TIMED = "0009"  # the schema from which a large database is brought up to date
BEFORE_STUDIES = "0015"  # from which on series that are stored make the rows of their studies


def main() -> int:
    """Run what is asked for; exit code 0 if every union was exact."""
    parser = argparse.ArgumentParser(prog="python -m bench.database", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000, help="of 64 reports at the same time")
    parser.add_argument("--series", type=int, default=1_000_000, help="the larger database")
    parser.add_argument("--queries", type=int, default=300, help="of each kind")
    parser.add_argument("--only", choices=["union", "report", "queries", "purge"])
    parser.add_argument("--on", choices=["sqlite", "postgresql"])
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    wrong = 0
    for name in [options.on] if options.on else ["sqlite", "postgresql"]:
        if name == "postgresql" and missing():
            console.print(missing())
            continue
        if options.only in (None, "union"):
            with database(name) as (url, _):
                wrong += asyncio.run(union(console, name, url, options.rounds))
        if options.only in (None, "report"):
            with database(name) as (url, folder):
                large_report(console, name, url, folder)
        if options.only in (None, "queries"):
            queries(console, name, options.series, options.queries)
        if options.only in (None, "purge"):
            with database(name) as (url, folder):
                purge(console, name, url, folder, options.series)
    console.print(f"database: wrong={wrong}")
    return 1 if wrong else 0


@contextmanager
def database(name: str) -> Iterator[tuple[str, Path]]:
    """DATABASE_URL of an empty database, and a folder."""
    with tempfile.TemporaryDirectory(prefix="series-gateway-") as folder:
        if name == "sqlite":
            yield f"sqlite+aiosqlite:///{folder}/series.db", Path(folder)
            return
        with postgresql() as there, new_database(there) as url:
            yield url, Path(folder)


# --- the union --------------------------------------------------------------------------------------------------


async def union(console: Console, name: str, url: str, rounds: int) -> int:
    """Return how many rounds ended with another row than the union of what was reported."""
    rng = random.Random(rounds)
    wrong = 0
    began = time.monotonic()
    async with Database.open(ServerSettings(database_url=url)) as db:
        for round_ in track(range(rounds), f"union on {name}", console=console, transient=True):
            parts = [rng.sample(range(200), rng.randint(1, 40)) for _ in range(AT_ONCE)]
            reports = [report(f"{ROOT_UID}.{round_}", numbers) for numbers in parts]
            await asyncio.gather(*(db.store(one) for one in reports))
            record = await db.get(reports[0].SeriesInstanceUID)
            wanted = sorted({uid for one in reports for uid in one.SOPInstanceUIDs or ()})
            stored = await db.instances(reports[0].SeriesInstanceUID)
            wrong += record is None or record.NumInstances != len(wanted) or sorted(stored) != wanted
    rate = rounds * AT_ONCE / (time.monotonic() - began)
    console.print(f"{name}: {rounds} rounds of {AT_ONCE} reports at the same time, {rate:.0f} reports/s, {wrong} wrong")
    return wrong


def report(uid: str, numbers: list[int]) -> SeriesReport:
    return SeriesReport(
        SeriesInstanceUID=uid,
        StudyInstanceUID=ROOT_UID,
        PatientID="P1",
        NumInstances=len(numbers),
        SOPInstanceUIDs=[f"{uid}.{number}" for number in numbers],
    )


# --- a large report ---------------------------------------------------------------------------------------------


def large_report(console: Console, name: str, url: str, folder: Path, size: int = 5000) -> None:
    """CPU seconds of the server process for one report, the median of several."""
    with server(folder, DATABASE_URL=url) as (process, base):
        cpu = psutil.Process(process.popen.pid)
        used = []
        for n in range(8):
            body = report(f"{ROOT_UID}.{n}", list(range(size))).model_dump(mode="json")
            body["InstanceAttributes"] = {
                "SOPClassUID": ["1.2.840.10008.5.1.4.1.1.2"],
                "InstanceNumber": [str(number) for number in range(size)],
                "Rows": ["512"],
                "Columns": ["512"],
            }
            before = sum(cpu.cpu_times()[:2])
            answer = httpx.post(f"{base}/series", json=body, timeout=60, trust_env=False).raise_for_status()
            used.append(sum(cpu.cpu_times()[:2]) - before)
            assert answer.json()["NumInstances"] == size  # noqa: S101 - what is measured is what was asked for
    console.print(
        f"{name}: {1000 * sorted(used)[len(used) // 2]:.0f} ms of server CPU for a report of {size} instances"
    )


# --- a purge ----------------------------------------------------------------------------------------------------


def purge(console: Console, name: str, url: str, folder: Path, size: int) -> None:
    """Seconds that the command takes, and how long posts take meanwhile that come one after the other."""
    asyncio.run(fill(console, url, size))
    before = BORN + timedelta(seconds=20 * (size // 10))
    command = [sys.executable, str(ROOT / "server.py"), "purge", "--json", "--before", before.isoformat()]
    with server(folder, DATABASE_URL=url) as (_, base), httpx.Client(base_url=base, trust_env=False) as http:

        def post(n: int) -> float:
            began = time.perf_counter()
            http.post("/series", json=report(f"{ROOT_UID}.0.{n}", [1]).model_dump(mode="json")).raise_for_status()
            return time.perf_counter() - began

        alone = sorted(post(n) for n in range(200))
        began = time.perf_counter()
        environment = without_settings() | {"DATABASE_URL": url}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            beside: list[float] = []
            while process.poll() is None:
                beside.append(post(1000 + len(beside)))
            seconds = time.perf_counter() - began
            counted = json.loads(process.communicate()[0])
    posts = (
        f"{_median_ms(alone)} before, {_median_ms(sorted(beside))} meanwhile, the longest {1000 * max(beside):.0f} ms"
    )
    console.print(f"{name}: {counted['series']:,} of {size:,} series purged in {seconds:.1f} s; a post {posts}")


def _median_ms(seconds: list[float]) -> str:
    return f"{1000 * seconds[len(seconds) // 2]:.1f} ms"


# --- queries ----------------------------------------------------------------------------------------------------

QUERIES = {
    "GET /series": "/series?limit=100",
    "GET /series, a page in the middle": "/series?limit=100&after={series}",
    "GET /series?PatientID=": "/series?PatientID={patient}",
    "GET /series?Modality=": "/series?Modality=MR&limit=100",
    "GET /series, newest": "/series?order=newest&limit=100",
    "GET /series?Modality=, newest": "/series?Modality=XA&order=newest&limit=100",
    "GET /series?Incomplete=true, newest": "/series?Incomplete=true&order=newest&limit=100",
    "GET /series?Incomplete=true&Modality=": "/series?Incomplete=true&Modality=MR&limit=100",
    "GET /series?Incomplete=false": "/series?Incomplete=false&limit=100",
    "GET /series?Conflicts=true": "/series?Conflicts=true&limit=100",
    "GET /series?Conflicts=true, newest": "/series?Conflicts=true&order=newest&limit=100",
    "GET /series?Doubtful=true": "/series?Doubtful=true&limit=100",
    "GET /series?Doubtful=true, newest": "/series?Doubtful=true&order=newest&limit=100",
    "GET /series?Verdict=, newest": "/series?Verdict=capped&order=newest&limit=100",
    "GET /series?Verdict=, that none has": "/series?Verdict=declared&order=newest&limit=100",
    "GET /series?Verdict=&Modality=": "/series?Verdict=idle&Modality=XA&limit=100",
    "GET /series?Source=": "/series?Source=CT7%20CT&limit=100",
    "GET /series?Source=, newest": "/series?Source=CT7%20CT&order=newest&limit=100",
    "GET /series?UpdatedSince=, an hour": "/series?UpdatedSince={updated}&UpdatedUntil={until}&limit=100",
    "GET /series?UpdatedSince=, newest": "/series?UpdatedSince={updated}&order=newest&limit=100",
    "GET /series?UpdatedUntil=, newest": "/series?UpdatedUntil={until}&order=newest&limit=100",
    "GET /series?StudyDate=, a month": "/series?StudyDate={month}01-{month}31&limit=100",
    "GET /series?StudyDate=, a month, newest": "/series?StudyDate={month}01-{month}31&order=newest&limit=100",
    "GET /series?PatientID=, newest": "/series?PatientID={patient}&order=newest&limit=100",
    "GET /series.csv, its beginning": "/series.csv",
    "GET /series.csv, an hour, its beginning": "/series.csv?UpdatedSince={updated}&UpdatedUntil={until}",
    "GET /sources, of a thousand": "/sources?limit=100",
    "GET /sources?Unusual=true": "/sources?Unusual=true&limit=100",
    "GET /metrics": "/metrics",
    "GET /series/{uid}": "/series/{series}",
    "GET /changes, near the end": "/changes?since={near}&limit=50",
    "GET /studies": "/studies?limit=100",
    "GET /studies, newest": "/studies?order=newest&limit=100",
    "GET /studies?PatientID=": "/studies?PatientID={patient}",
    "GET /studies?Modality=": "/studies?Modality=XA&limit=100",
    "GET /studies?Incomplete=true, newest": "/studies?Incomplete=true&order=newest&limit=100",
    "GET /studies/{uid}": "/studies/{study}",
    "GET /studies/{uid}/timeline": "/studies/{study}/timeline",
    "studies, as OHIF asks": "/dicom-web/studies?limit=101&offset=0&fuzzymatching=false&includefield=00081030,00080060",
    "studies of a patient": "/dicom-web/studies?PatientID={patient}",
    "studies, name prefix": "/dicom-web/studies?PatientName={name}*&limit=25",
    "studies, dates": "/dicom-web/studies?StudyDate={date}-&limit=25",
    "studies, accession number": "/dicom-web/studies?AccessionNumber={accession}",
    "studies, modality": "/dicom-web/studies?ModalitiesInStudy=MR&limit=25",
    "studies, rare modality": "/dicom-web/studies?ModalitiesInStudy=XA&limit=25",
    "series of a study": "/dicom-web/studies/{study}/series",
    "instances of a series": "/dicom-web/studies/{study}/series/{series}/instances",
    "instances, by UID": "/dicom-web/instances?SOPInstanceUID={series}.1",
}


def queries(console: Console, name: str, large: int, times: int) -> None:
    """p50 and p99 of each query, and of a purge's batches, at 1,000 series and at `large`, and their ratio."""
    found: dict[str, list[list[float]]] = {query: [] for query in (*QUERIES, *BATCHES)}
    for size in (1000, large):
        with database(name) as (url, folder):
            asyncio.run(fill(console, url, size))
            asyncio.run(fill_sources(url, size))
            asyncio.run(migrations(console, name, url, size, since=BEFORE_STUDIES))
            with server(folder, DATABASE_URL=url, **PATIENT) as (_, base):
                for query, path in QUERIES.items():
                    found[query].append(latencies(base, path, size, times))
            for batch, seconds in asyncio.run(batches(url)).items():
                found[batch].append(seconds)
            if size == large:
                asyncio.run(migrations(console, name, url, size, since=FIRST_TIMED))
    table = Table(
        "query", "p50 at 1,000", f"p50 at {large:,}", "p99 at 1,000", f"p99 at {large:,}", "p99 ratio", box=SIMPLE
    )
    for query, (small, big) in found.items():
        p50 = [1000 * one[len(one) // 2] for one in (small, big)]
        p99 = [1000 * one[int(len(one) * 0.99)] for one in (small, big)]
        table.add_row(query, *(f"{ms:.1f} ms" for ms in (*p50, *p99)), f"{p99[1] / p99[0]:.2f}")
    console.print(f"{name}:")
    console.print(table)


def latencies(base: str, path: str, size: int, times: int) -> list[float]:
    """Sorted seconds of one query, each time for another series, after some to warm up."""
    rng = random.Random(size)
    seconds = []
    with httpx.Client(base_url=base, timeout=120, trust_env=False) as http:
        for n in range(times + 10):
            row = series_row(rng.randrange(size))
            values = {
                "series": row["SeriesInstanceUID"],
                "study": row["StudyInstanceUID"],
                "patient": row["PatientID"],
                "name": row["PatientName"][:9],
                "date": row["StudyDate"],
                "accession": row["AccessionNumber"],
                "near": max(0, size - 50),
                "updated": f"{row['UpdatedAt']:%Y-%m-%dT%H:%M:%SZ}",
                "until": f"{row['UpdatedAt'] + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}",
                "month": row["StudyDate"][:6],
            }
            began = time.perf_counter()
            with http.stream("GET", path.format(**values)) as response:
                assert response.status_code == 200, (path, response.status_code, response.read()[:200])  # noqa: S101
                if path.startswith("/series.csv"):
                    for _ in zip(range(2), response.iter_raw(), strict=False):  # its names, its first thousand series
                        pass
                else:
                    response.read()
            if n >= 10:
                seconds.append(time.perf_counter() - began)
    return sorted(seconds)


BATCHES = ("purge, a batch of series", "purge --dry-run, a batch of series", "purge, a batch of changes")


async def batches(url: str) -> dict[str, list[float]]:
    """Sorted seconds of the batches that remove the oldest 500 series, and of those that look for old changes."""
    before = BORN + timedelta(seconds=20 * 500)
    seconds: dict[str, list[float]] = {batch: [] for batch in BATCHES}
    async with Database.open(ServerSettings(database_url=url)) as db:
        for name, dry in ((BATCHES[1], True), (BATCHES[0], False)):
            after: Any = None
            while after is not None or not seconds[name]:
                began = time.perf_counter()
                after = (await db.purger.series(before, after, dry=dry)).after
                seconds[name].append(time.perf_counter() - began)
        for _ in range(10):
            began = time.perf_counter()
            await db.purger.changes(BORN + timedelta(days=1), 0, dry=False)
            seconds[BATCHES[2]].append(time.perf_counter() - began)
    return {name: sorted(found) for name, found in seconds.items()}


async def migrations(console: Console, name: str, url: str, size: int, *, since: str) -> None:
    """Seconds of each migration since this one, one after the other, at the time of the last series."""
    config = alembic.config.Config()
    config.set_main_option("script_location", str(ROOT / "storage" / "migrations"))

    def migrate(connection: sqlalchemy.Connection, change: Callable[..., None], to: str) -> None:
        config.attributes["connection"] = connection
        change(config, to)

    async with Engine.open(ServerSettings(database_url=url, database_timeout_s=3600)) as engine:
        for revision in revisions()[revisions().index(since) :]:
            change = alembic.command.downgrade if revision == since else alembic.command.upgrade
            began = time.monotonic()
            with time_machine.travel(BORN + timedelta(seconds=20 * size)):
                await engine.write(lambda connection, how=(change, revision): connection.run_sync(migrate, *how))  # type: ignore[misc]
            console.print(f"{name}: to the schema {revision} in {time.monotonic() - began:.1f} s")


async def fill(console: Console, url: str, size: int) -> None:
    """Write so many series, four a study, two instances each, written past the server in large batches."""
    async with Engine.open(ServerSettings(database_url=url, database_timeout_s=600)) as engine:
        for first in track(range(0, size, BATCH), f"{size:,} series", console=console, transient=True):
            numbers = range(first, min(first + BATCH, size))
            await engine.write(lambda connection, numbers=numbers: _insert(connection, numbers))  # type: ignore[misc]
        await engine.write(lambda connection: insert(connection, counters, {"Name": "changes", "Value": size}))
        if url.startswith("postgresql"):
            await engine.write(_analyze)


async def fill_sources(url: str, size: int) -> None:
    """A thousand sources, each with a row for each hour in which it sent: the working hours of five weeks at most."""
    now = hour_of(datetime.now(UTC))
    working = [hour for hour in range(now - KEPT_HOURS, now) if hour % 24 in range(7, 17) and hour // 24 % 7 < 5]
    names = [f"CT{n} CT" for n in range(1000)]
    first, last = datetime.now(UTC) - timedelta(hours=KEPT_HOURS), datetime.now(UTC)
    counts = {"LastReceivedAt": last, "Images": 2000, "Series": 10}
    sent = [{"Hour": hour} | counts for hour in working[-max(1, size // 1000) :]]
    async with Engine.open(ServerSettings(database_url=url, database_timeout_s=600)) as engine:

        async def write(connection: Connection) -> None:
            rows = [{"Source": source, "FirstReceivedAt": first} for source in names]
            await connection.execute(sources.insert(), rows)
            for source in names:
                await connection.execute(source_hours.insert(), [{"Source": source} | row for row in sent])
            verdict = {"IdlePolicy": "fixed", "Verdict": "idle", "Series": size // 1000, "False": 0, "AfterCapped": 0}
            await connection.execute(completions.insert(), [{"Source": source} | verdict for source in names])

        await engine.write(write)
        if url.startswith("postgresql"):
            await engine.write(_analyze)


async def _insert(connection: Connection, numbers: range) -> None:
    rows = [series_row(n) for n in numbers]
    await connection.execute(series.insert(), rows)
    uids = [row["SeriesInstanceUID"] for row in rows]
    images = [
        {"SeriesInstanceUID": uid, "SOPInstanceUID": f"{uid}.{n}", "InstanceNumber": n} for uid in uids for n in (1, 2)
    ]
    await connection.execute(instances.insert(), images)
    columns = ("SeriesInstanceUID", "StudyInstanceUID", "Revision", "NumInstances", "Verdict")
    told = [{c: row[c] for c in columns} | {"At": BORN, "Number": n + 1} for n, row in zip(numbers, rows, strict=True)]
    await connection.execute(changes.insert(), told)


async def _analyze(connection: Connection) -> None:
    await connection.execute(text("ANALYZE"))


def series_row(n: int) -> dict[str, Any]:
    """The n-th row; UIDs, names and dates are spread by a fixed shuffle."""
    study = n // SERIES_A_STUDY
    spread = study * 2654435761 % 2**32
    date = (BORN - timedelta(days=spread % 3650)).strftime("%Y%m%d")
    name = f"N{spread % 99991:05d}^Test{study}"
    attributes = {
        "Modality": [_modality(n)],
        "StudyDate": [date],
        "AccessionNumber": [f"A{study}"],
        "SeriesNumber": ["1"],
    }
    return {
        "SeriesInstanceUID": f"{ROOT_UID}.{spread}.{n}",
        "StudyInstanceUID": f"{ROOT_UID}.{spread}",
        "PatientID": f"P{spread % 1_000_003}",
        "PatientName": name,
        "FoldedName": folded(name),
        "NumInstances": 2,
        "Modality": _modality(n),
        "StudyDate": date,
        "AccessionNumber": f"A{study}",
        "Attributes": attributes,
        "Undecoded": {},
        "Revision": 1,
        "Verdict": "capped" if n % 900 == 0 else "idle",
        "Source": f"CT{n % 1009} CT",
        "ExpectedInstances": 3 if n % 700 == 0 else None,
        "UpdatedAt": BORN + timedelta(seconds=20 * n),
        "FirstReceivedAt": BORN,
        "LastReceivedAt": BORN,
        "Conflicts": int(n % 800 == 0),
        "Doubtful": ["a UID with letters"] if n % 600 == 0 else [],
        "FalseCompletions": 0,
    }


def _modality(n: int) -> str:
    return "XA" if n % 500 == 0 else ("CT", "MR", "CR", "US")[n % 4]


if __name__ == "__main__":
    sys.exit(main())
