"""What keeping costs: C-STORE throughput with the journal on disk against in memory, and restart with a full journal.

In memory means the same code on a journal in /dev/shm, where fsync costs nothing. Senders are DCMTK's storescu with
TCP_NODELAY=1, so that Nagle's algorithm does not hide the difference.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pydicom
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from bench.rig.processes import as_event, gateway, server
from bench.rig.progress import bar
from bench.rig.senders import STORESCU, synthetic_series
from gateway.journal import Bounds, Journal
from models import Instance

ASSOCIATIONS = (1, 4, 16)
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - memory, not a temporary file


def images(folder: Path, n: int) -> list[str]:
    """Files of 33 KB each, all of one series."""
    paths = []
    for ds in synthetic_series(n):
        ds.Rows = ds.Columns = 128
        ds.PixelData = bytes(2 * 128 * 128)
        path = folder / f"{ds.SOPInstanceUID}.dcm"
        pydicom.dcmwrite(path, ds, enforce_file_format=True)
        paths.append(str(path))
    return paths


def throughput(journal_folder: Path, url: str, files: list[str], associations: int) -> float:
    """Instances a second over that many associations at once, each of the same size."""
    with gateway(journal_folder, url, idle_timeout_s=600, drain_timeout_s=0.1, min_free_bytes=0) as (process, port):
        command = [str(STORESCU), "-aec", "STORESCP", "127.0.0.1", str(port)]
        part = len(files) // associations
        began = time.monotonic()
        senders = [
            subprocess.Popen([*command, *files[n * part : (n + 1) * part]], env=os.environ | {"TCP_NODELAY": "1"})
            for n in range(associations)
        ]
        codes = [sender.wait() for sender in senders]
        took_s = time.monotonic() - began
        if any(codes):
            raise RuntimeError(f"senders ended with {codes}")
        process.kill()
    return part * associations / took_s


def keeping(console: Console, rounds: int, n: int) -> None:
    """Alternate between disk and memory; medians and their ratio."""
    table = Table("associations", "on disk, FULL", "in memory", "ratio", box=MARKDOWN)
    with tempfile.TemporaryDirectory() as folder:
        files = images(Path(folder), n)
        for associations in ASSOCIATIONS:
            rates: dict[Path | None, list[float]] = {None: [], SHARED_MEMORY: []}
            with bar(console, f"{associations} associations", rounds * len(rates)) as measured:
                for _ in range(rounds):
                    for where, seen in rates.items():
                        with tempfile.TemporaryDirectory(dir=where) as journal_folder:
                            seen.append(throughput(Path(journal_folder), "http://127.0.0.1:9", files, associations))
                        measured()
            disk, memory = (statistics.median(seen) for seen in rates.values())
            table.add_row(str(associations), f"{disk:.0f}/s", f"{memory:.0f}/s", f"{disk / memory:.2f}")
    console.print(table)


async def fill(path: Path, series: int, instances: int) -> None:
    """A journal of that many open series and instances, as a killed gateway leaves it."""
    each = instances // series
    async with Journal.open(path, Bounds(10**9, 10**12, 0)) as journal:
        for _ in range(series):
            study, uid = generate_uid(), generate_uid()
            first = Instance(
                study_instance_uid=study,
                series_instance_uid=uid,
                sop_instance_uid="1",
                sop_class_uid=CTImageStorage,
                transfer_syntax_uid=ExplicitVRLittleEndian,
                calling_ae_title="CT1",
                peer_address="127.0.0.1",
                received_at=datetime.now(UTC),
                attributes={"PatientID": ("P1",), "PatientName": ("Test^One",), "Modality": ("CT",)}
                | {f"StudyText{n}": ("some text of a usual length",) for n in range(20)},
            )
            await journal.keep([replace(first, sop_instance_uid=f"{uid}.{n}"[-64:]) for n in range(each)])


def restart(console: Console, series: int, instances: int) -> None:
    """Time to `gateway.started` with a full journal, and the size of its file before and after delivery."""
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as server_folder:
        folder = Path(name)
        path = folder / "gateway-journal.db"
        with console.status("filling a journal"):
            asyncio.run(fill(path, series, instances))
        before = path.stat().st_size
        with server(Path(server_folder)) as (_, url):
            began = time.monotonic()
            with gateway(folder, url, min_free_bytes=0, drain_timeout_s=600, idle_timeout_s=2) as (process, _):
                ready_s = time.monotonic() - began
                with bar(console, "reports delivered", series) as delivered:
                    for _ in range(series):
                        process.wait_for(lambda line: as_event(line).get("event") == "report.delivered" or None, 120)
                        delivered()
                delivered_s = time.monotonic() - began
        after = sum(file.stat().st_size for file in folder.glob("gateway-journal.db*"))
    console.print(
        f"restart: {series} open series, {instances} instances: ready after {ready_s:.1f} s, all delivered after "
        f"{delivered_s:.0f} s; journal {before / 2**20:.0f} MiB before, {after / 2**20:.1f} MiB after delivery"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=1600)
    options = parser.parse_args()
    console = Console(width=140)
    if STORESCU is None:
        console.print("storescu is missing (Debian: apt-get install dcmtk)")
        return 1
    restart(console, 10_000, 500_000)
    keeping(console, options.rounds, options.images)
    return 0


if __name__ == "__main__":
    sys.exit(main())
