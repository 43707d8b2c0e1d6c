"""`make soak`: a year in an hour. Days of senders, restarts and purges; then what grew with the number of series.

Real processes; their wall clocks go a day further with each day, so that what keeps something for days lets it go. A
day is some seconds long. Restarts are in the first half, so that the second shows whether memory grows. At the end
every series has to be stored with its images, or purged. Figures go into docs/reliability.md.
"""

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from rich.console import Console

from bench.faults import Lab, set_clock, stepped_clock
from bench.growth import document, save
from bench.judging import StreamFollower
from bench.looks import Looks, audit_log, query
from bench.play import Archive
from bench.rig.http_server import Answer, http_server
from bench.rig.peers import free_port
from bench.rig.postgres import missing, new_database, postgresql
from bench.rig.processes import ROOT, command_line
from bench.rig.progress import bar
from bench.rig.proxy import Proxy
from bench.rig.senders import PynetdicomSender, synthetic_image
from gateway.journal_reader import status
from models import Change, SeriesReport

RESULTS = ROOT / "bench" / "soak.json"
SERIES, SENT, SOURCES = 50_000, 10_000, 300
DAYS, LEAST_A_DAY = 365, 20  # a year, where that makes at least so many series a day
DAY_S = 86400
PURGES, KEPT = 52, 12  # weekly, and a month is kept; of a shorter year as large a part, at least KEPT_DAYS
KEPT_DAYS = 4
SENDERS = 8  # at the same time
IMAGES = (1, 1, 2, 2, 3, 4, 6)  # of a series
IN_PACS, KEPT_BACK, LATE, EACH = 20, 200, 25, 5  # every so many series: of the PACS, lacks an image, late, associations
STATIONS = 10  # behind the PACS
STUDY = 3  # series
DEADLINE_S = 300.0  # for one series to be taken, and for all to be stored
LOOK_S = 0.2
RESTARTS = 8  # each of four kinds twice
SETTINGS = {
    "GATEWAY_ID": "soak",
    "GATEWAY_IDLE_TIMEOUT_S": "0.5",
    "GATEWAY_IDLE_MAX_S": "4",
    "GATEWAY_MISSING_TIMEOUT_S": "5",
}


# --- what runs --------------------------------------------------------------------------------------------------


class House(Lab):
    """A server and a gateway with nothing between them."""

    def start_server(self) -> None:
        super().start_server()
        self.proxy.port = self.proxy.upstream_port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.proxy.port}"

    def stop_gateway(self) -> None:
        """Stop it by SIGTERM, and start it."""
        self._stopped("gateway")
        self.start_gateway()

    def stop_server(self) -> None:
        """Stop it by SIGTERM, and start it."""
        self._stopped("server")
        self.start_server()

    def _stopped(self, name: str) -> None:
        process = self.gateway if name == "gateway" else self.server
        if (code := process.stop()) not in (0, -signal.SIGTERM):
            self.broken_promises.append(f"{name}: SIGTERM ended in exit code {code}")

    def operate(self, *arguments: str) -> None:
        """Do what an operator types after `python server.py`."""
        command_line(self.folder / "server", self.environment, "server.py", *arguments)


class Reader(StreamFollower):
    """Follows the changes, and keeps of each series only the last one."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        super().__init__(http)
        self.images: dict[str, int] = {}
        """By Series Instance UID, as it was told last."""
        self.doubled = 0
        self._number = 0

    @property
    def last(self) -> int:
        return self._number

    def take(self, change: Change) -> None:
        self.doubled += change.Number <= self._number
        self._number = max(self._number, change.Number)
        self.images[str(change.SeriesInstanceUID)] = change.NumInstances


@contextmanager
def reading(url: str) -> Iterator[Reader]:
    """Follow the changes on a thread of its own."""
    made: list[tuple[Reader, asyncio.Task[None], asyncio.AbstractEventLoop]] = []
    ready = threading.Event()

    async def run() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:
            reader = Reader(http)
            task = asyncio.create_task(reader.run())
            made.append((reader, task, asyncio.get_running_loop()))
            ready.set()
            await asyncio.wait([task])

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="reader")
    thread.start()
    ready.wait()
    reader, task, loop = made[0]
    try:
        yield reader
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()


# --- what is sent -----------------------------------------------------------------------------------------------


@dataclass
class Parcel:
    """Images of one series that are sent together."""

    ae_title: str
    images: list[Dataset]
    over_dicom: bool
    revision: int = 1
    apart: bool = False
    """Each image over an association of its own."""


class Plan:
    """Which series come, from whom and how."""

    def __init__(self, options: argparse.Namespace, archive: Archive) -> None:
        self._options = options
        self._archive = archive
        self._rng = random.Random(options.seed)
        self._root = generate_uid()[:40]

    def series(self, number: int) -> tuple[Parcel, Parcel | None]:
        """Return what comes today, and what comes a day late."""
        of_pacs = number % IN_PACS == 1
        sent, all_ = self._options.sent, self._options.series
        over_dicom = number * sent // all_ != (number + 1) * sent // all_
        source = self._rng.randrange(min(self._options.sources, STATIONS) if of_pacs else self._options.sources)
        images = self._images(number, source)
        title = "ARCHIVE" if of_pacs else f"S{source:03d}"
        if of_pacs:
            self._archive.hold(images)
            lacks = number % KEPT_BACK == 1 and len(images) > 1
            return Parcel(title, images[:-1] if lacks else images, over_dicom=True), None
        if number % LATE == 0 and len(images) > 1:
            return Parcel(title, images[:-1], over_dicom), Parcel(title, images[-1:], over_dicom, revision=2)
        return Parcel(title, images, over_dicom, apart=number % EACH == 0), None

    def _images(self, number: int, source: int) -> list[Dataset]:
        study, series = f"{self._root}.1.{number // STUDY}", f"{self._root}.2.{number}"
        made = []
        for n in range(self._rng.choice(IMAGES)):
            ds = synthetic_image(study, series, f"{series}.{n + 1}")
            ds.PatientID, ds.PatientName = f"P{number // STUDY:08d}", f"Test^{number // STUDY}"
            ds.StationName, ds.Modality = f"STATION{source:03d}", "CT" if source % 2 else "MR"
            ds.InstanceNumber = n + 1
            made.append(ds)
        return made


@dataclass
class Senders:
    """Sends over DICOM or posts, and remembers what was taken."""

    house: House
    http: httpx.Client
    today: Callable[[], datetime]
    taken: dict[str, set[str]] = field(default_factory=dict)
    """SOP Instance UIDs by Series Instance UID."""
    sent: int = 0
    posted: int = 0
    problems: list[str] = field(default_factory=list)

    def send(self, parcel: Parcel) -> None:
        """Return when all of it is taken."""
        acknowledged = self._store(parcel) if parcel.over_dicom else self._post(parcel)
        if parcel.revision == 1:
            self.sent += parcel.over_dicom
            self.posted += not parcel.over_dicom
        self.taken.setdefault(str(parcel.images[0].SeriesInstanceUID), set()).update(acknowledged)
        if missing := len(parcel.images) - len(acknowledged):
            self.problems.append(f"{missing} images of {parcel.images[0].SeriesInstanceUID} were never taken")

    def _store(self, parcel: Parcel) -> set[str]:
        acknowledged: set[str] = set()
        for images in [[ds] for ds in parcel.images] if parcel.apart else [parcel.images]:
            sender = PynetdicomSender(self.house.scp_port, images, time.monotonic() + DEADLINE_S)
            sender.ae_title = parcel.ae_title
            sender.run()
            acknowledged |= {str(uid) for uid in sender.acknowledged}
        return acknowledged

    def _post(self, parcel: Parcel) -> set[str]:
        report = as_report(parcel, self.today()).model_dump_json(exclude_none=True)
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            try:
                answer = self.http.post("series", content=report, headers={"Content-Type": "application/json"})
                answer.raise_for_status()
            except httpx.HTTPError:
                time.sleep(LOOK_S)
            else:
                return {str(ds.SOPInstanceUID) for ds in parcel.images}
        return set()


def as_report(parcel: Parcel, now: datetime) -> SeriesReport:
    """Return what a gateway would report of them."""
    first = parcel.images[0]
    return SeriesReport(
        SeriesInstanceUID=first.SeriesInstanceUID,
        PatientID=first.PatientID,
        PatientName=str(first.PatientName),
        StudyInstanceUID=first.StudyInstanceUID,
        NumInstances=len(parcel.images),
        SOPInstanceUIDs=[ds.SOPInstanceUID for ds in parcel.images],
        Attributes={"Modality": (first.Modality,), "StationName": (first.StationName,)},
        Revision=parcel.revision,
        Verdict="idle",
        Basis="silence",
        Source=f"{parcel.ae_title} {first.Modality} {first.StationName}",
        IdlePolicy="adaptive",
        GatewayID="soak-2",
        FirstReceivedAt=now - timedelta(seconds=3),
        LastReceivedAt=now - timedelta(seconds=2),
    )


# --- the year ---------------------------------------------------------------------------------------------------


@dataclass
class Year:
    """A year of a house, and what came of it."""

    options: argparse.Namespace
    house: House
    looks: Looks
    senders: Senders
    plan: Plan
    clock: Callable[[int], None]
    restarts: int = 0
    purges: int = 0

    @property
    def days(self) -> int:
        return max(1, min(DAYS, int(self.options.series) // LEAST_A_DAY))

    def live(self, passed: Callable[[], None]) -> None:
        """Live through all days."""
        late: list[Parcel] = []
        restarts = self._restarts()
        with ThreadPoolExecutor(SENDERS, thread_name_prefix="sender") as pool:
            for day in range(self.days):
                numbers = range(*(self.options.series * n // self.days for n in (day, day + 1)))
                today, later = zip(*(self.plan.series(number) for number in numbers), strict=True)
                sending = [pool.submit(self.senders.send, parcel) for parcel in [*late, *today]]
                late = [parcel for parcel in later if parcel]
                for restart in restarts.pop(day, []):
                    restart()
                    self.restarts += 1
                for sent in sending:
                    sent.result()
                self._evening(day, numbers.stop)
                passed()
            for parcel in late:
                self.senders.send(parcel)

    def _evening(self, day: int, series: int) -> None:
        every = max(1, self.days // PURGES)
        if day % every == every - 1:
            kept = timedelta(days=max(KEPT_DAYS, self.days // KEPT))
            self.house.operate("purge", "--before", (self.senders.today() - kept).isoformat(timespec="seconds"))
            self.purges += 1
        self.looks.look(series)
        self.clock(day + 1)
        self._night()

    def _night(self) -> None:
        """Wait until the webhook was told all changes that are stored: days are short, and nights would be long."""
        deadline = time.monotonic() + DEADLINE_S
        while not self.senders.problems and (behind := self.looks.untold()) > 0:
            if time.monotonic() > deadline:
                self.senders.problems.append(f"the webhook was not told {behind} changes in a night")
            time.sleep(LOOK_S)

    def _restarts(self) -> dict[int, list[Callable[[], None]]]:
        """Return what is restarted on which day: all in the first half."""
        house = self.house
        kinds = (house.stop_gateway, house.restart_gateway, house.stop_server, house.restart_server)
        on: dict[int, list[Callable[[], None]]] = {}
        for n in range(RESTARTS):
            on.setdefault(n * (self.days // 2) // RESTARTS, []).append(kinds[n % len(kinds)])
        return on


def settle(house: House, database: str, reader: Reader) -> None:
    """Wait until the gateway has reported everything, and everybody was told of it, at most DEADLINE_S."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        held = status(house.journal)
        last = query(database, 'SELECT max("Number") FROM changes')[0][0] or 0
        of_series = query(database, """SELECT max("Number") FROM changes WHERE "Subject" = 'series'""")[0][0] or 0
        unnumbered = query(database, 'SELECT count(*) FROM changes WHERE "Number" IS NULL')[0][0]
        behind = query(database, f'SELECT count(*) FROM webhooks WHERE "Position" < {last}')[0][0]  # noqa: S608
        if not any((held["open_series"], held["waiting_reports"], unnumbered, behind)) and reader.last >= of_series:
            return
        time.sleep(LOOK_S)


@dataclass
class Judgement:
    """What senders were told, compared with the rows."""

    lost: int = 0
    doubled: int = 0
    stored: int = 0
    purged: int = 0
    images: int = 0
    problems: list[str] = field(default_factory=list)


def judge(taken: Mapping[str, set[str]], database: str, told: Mapping[str, int]) -> Judgement:
    """Look whether each series is stored once, with exactly its images, or purged with as many, and was told so."""
    found = Judgement(images=sum(map(len, taken.values())))
    stored = counts(database, "series")
    purged = counts(database, "purged")
    listed: dict[str, set[str]] = {}
    for series, image in query(database, 'SELECT "SeriesInstanceUID", "SOPInstanceUID" FROM instances'):
        listed.setdefault(series, set()).add(image)
    found.stored, found.purged = len(stored), len(purged)
    found.doubled += len((stored.keys() | purged.keys()) - taken.keys()) + len(stored.keys() & purged.keys())
    for uid, images in taken.items():
        count = stored.get(uid, purged.get(uid, 0))
        there = listed.get(uid, set()) if uid in stored else images
        found.lost += max(len(images - there), len(images) - count)
        found.doubled += max(0, count - len(images), len(there - images))
        if told.get(uid) != len(images):
            found.problems.append(f"{uid}: the reader of changes was told {told.get(uid)} of {len(images)}")
    return found


def counts(database: str, table: str) -> dict[str, int]:
    """Return how many images each series of a table has."""
    rows = query(database, f'SELECT "SeriesInstanceUID", "NumInstances" FROM {table}')  # noqa: S608
    return {uid: int(count) for uid, count in rows}


# --- the command ------------------------------------------------------------------------------------------------


def main() -> int:
    """Live through the year; exit code 0 if nothing was lost or doubled, and nothing else was wrong."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--series", type=int, default=SERIES, help=f"{SERIES}: about an hour; 2000: a look")
    parser.add_argument("--sent", type=int, default=SENT, help="of them over DICOM; the others are posted as reports")
    parser.add_argument("--sources", type=int, default=SOURCES, help="most different senders, one station each")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--postgresql", action="store_true", help="instead of SQLite")
    parser.add_argument("--save", action="store_true", help="write bench/soak.json and docs/reliability.md")
    options = parser.parse_args()
    if min(options.series, options.sources) < 1 or options.sent < 0:
        parser.error("--series and --sources: a number of at least 1; --sent: of at least 0")
    console = Console(width=160, soft_wrap=True, highlight=False)
    if options.postgresql and (problem := missing()):
        console.print(f"soak: {problem}")
        return 1
    options.sent = min(options.sent, options.series)
    console.print(f"seed {options.seed}")
    results, problems = soak(console, options)
    if options.save:
        save(results, RESULTS)
        from bench.chart import write_soak  # noqa: PLC0415 - matplotlib is slow to import

        write_soak(results)
    for problem in problems[:10]:
        console.print(problem, markup=False)
    for paragraph in document(results):
        console.print(paragraph.strip("`") if paragraph.startswith("`soak") else paragraph, markup=False)
    return 1 if results["lost"] or results["doubled"] or problems else 0


def soak(console: Console, options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Return what bench/soak.json holds, and what else was wrong."""
    began = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        database = f"sqlite+aiosqlite:///{folder}/server/series.db"
        if options.postgresql:
            database = stack.enter_context(new_database(stack.enter_context(postgresql())))
        environment = stack.enter_context(stepped_clock(folder)) | {"STEPPED_CLOCK_PASSES": "1"}
        archive, metrics_port = Archive(), free_port()
        environment |= SETTINGS | {
            "DATABASE_URL": database,
            "SERVER_AUDIT_PATH": str(audit_log(folder)),
            "GATEWAY_METRICS_PORT": str(metrics_port),
            "GATEWAY_PACS": f"ARCHIVE@127.0.0.1:{stack.enter_context(archive.answering())}",
        }
        house = House(folder, Proxy(), ROOT, **environment)
        stack.callback(house.close)

        webhook = stack.enter_context(http_server(lambda _: Answer(204)))
        house.operate("webhooks", "add", webhook, "--subject", "any")
        reader = stack.enter_context(reading(house.url))
        http = stack.enter_context(httpx.Client(base_url=house.url, timeout=60, trust_env=False))
        steps = [0]

        def clock(day: int) -> None:
            steps[0] = day * DAY_S
            set_clock(folder, steps[0])

        senders = Senders(house, http, lambda: datetime.now(UTC) + timedelta(seconds=steps[0]))
        year = Year(options, house, Looks(house, database, metrics_port), senders, Plan(options, archive), clock)
        with bar(console, "days", year.days) as passed:
            year.live(passed)
        for restart in (house.restart_gateway, house.restart_server):
            restart()
            year.restarts += 1
        clock(year.days + 1)  # what a killed process had claimed for a minute is free
        settle(house, database, reader)
        found = judge(senders.taken, database, reader.images)
        found.doubled += reader.doubled
        found.problems += [*senders.problems, *house.broken_promises]
    return results_of(year, found, time.monotonic() - began), found.problems


def results_of(year: Year, found: Judgement, took_s: float) -> dict[str, Any]:
    """Return what bench/soak.json holds."""
    asked = {name: getattr(year.options, name) for name in ("series", "sources", "seed")}
    came = {name: getattr(found, name) for name in ("images", "stored", "purged", "lost", "doubled")}
    return {
        **asked,
        **came,
        "sent": year.senders.sent,
        "posted": year.senders.posted,
        "days": year.days,
        "restarts": year.restarts,
        "purges": year.purges,
        "database": "PostgreSQL" if year.options.postgresql else "SQLite",
        "cores": os.cpu_count(),
        "took_s": round(took_s),
        "samples": year.looks.seen,
    }


if __name__ == "__main__":
    sys.exit(main())
