"""A report of 200,000 images, and what others wait for meanwhile: `python -m bench.large`.

The report goes the gateway's way, in pieces, to a real server on SQLite, while reports of one image are posted one
after the other. Beside it: what they wait for when nothing else goes on, and when the report goes as one body.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil

from bench.rig.processes import server
from common.outgoing import http_client
from gateway import pieces
from gateway.dispatcher import SeriesDispatcher
from gateway.journal import Bounds, Journal
from models import SeriesReport

IMAGES = 200_000
ROOT_UID = "1.2.826.0.1.3680043.10.1"
EVERY_S = 0.05  # between two others


def report_of(series: str, count: int) -> SeriesReport:
    """A series of so many images, as the gateway reports it."""
    uid = f"{ROOT_UID}.{series}"
    uids = [f"{uid}.{n}" for n in range(count)]
    numbers = [str(n) for n in range(count)]
    return SeriesReport(
        SeriesInstanceUID=uid,
        StudyInstanceUID=ROOT_UID,
        PatientID="P1",
        NumInstances=count,
        SOPInstanceUIDs=uids,
        InstanceAttributes={"SOPClassUID": ["1.2.840.10008.5.1.4.1.1.2"], "InstanceNumber": numbers},
        Verdict="idle",
    )


async def others(http: httpx.AsyncClient, label: str, done: asyncio.Event) -> list[float]:
    """Post one image after another until `done`; seconds each."""
    took: list[float] = []
    while not done.is_set():
        content = report_of(f"{label}.{len(took)}", 1).model_dump_json().encode()
        began = time.perf_counter()
        answer = await http.post("series", content=content, headers={"Content-Type": "application/json"})
        answer.raise_for_status()
        took.append(time.perf_counter() - began)
        await asyncio.sleep(EVERY_S)
    return took


async def measure(folder: Path, url: str, label: str, count: int) -> tuple[float, list[float]]:
    """Seconds until the report is delivered, and what others waited for."""
    bounds = Bounds(10**9, 2**40, 0)
    client = http_client(base_url=url, timeout=600)
    async with Journal.open(folder / f"{label}.db", bounds) as journal, client as http, asyncio.TaskGroup() as tasks:
        posting = SeriesDispatcher(http, journal, concurrency=8, retry_max_s=1.0)
        running, done = tasks.create_task(posting.run()), asyncio.Event()
        waited = tasks.create_task(others(http, f"9{len(label)}", done))
        began = time.perf_counter()
        if count:
            (waiting,) = await journal.file_reports([report_of(f"1{len(label)}", count)], {}, [None], {})
            posting.submit(waiting)
            left = await posting.drain(600)
            stored = (await http.get(f"series/{ROOT_UID}.1{len(label)}")).json()["NumInstances"]
            if left or stored != count:
                raise RuntimeError(f"{label}: {left} undelivered, {stored} of {count} stored")
        else:
            await asyncio.sleep(5)
        took_s = time.perf_counter() - began
        done.set()
        times = await waited
        running.cancel()
    return took_s, times


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.large", description=__doc__)
    parser.add_argument("--images", type=int, default=IMAGES)
    images = parser.parse_args().images
    print("| meanwhile | report, s | others: posts | median, ms | longest, s | server's CPU, s |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with server(folder, SERVER_MAX_BODY_BYTES=str(2**30)) as (process, url):
            cpu = psutil.Process(process.popen.pid)
            for label, count in (("nothing", 0), ("in pieces", images), ("as one body", images)):
                before = sum(cpu.cpu_times()[:2])
                if label == "as one body":  # as earlier versions did
                    pieces.MAX_INSTANCES = pieces.MAX_BYTES = sys.maxsize
                took_s, times = asyncio.run(measure(folder, url, label, count))
                used = sum(cpu.cpu_times()[:2]) - before
                shown = f"{took_s:.1f}" if count else ""
                print(
                    f"| {label} | {shown} | {len(times)} | {1000 * statistics.median(times):.1f} | {max(times):.2f} | "
                    f"{used:.1f} |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
