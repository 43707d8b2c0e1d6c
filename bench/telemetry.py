"""What telemetry costs: gateways that measure nothing, what they do as they come, and all. `python -m bench.telemetry`.

Nothing: no counter counts, no heartbeat is sent (such a gateway is made here, by replacing what counts). As it comes:
metrics are counted, heartbeats sent. All: its metrics are scraped once a second, too, and every span is exported.
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console

from bench.rig.load import STORESCU_NODELAY, Load, Measured, Row, make_files
from bench.rig.otlp import sink
from bench.rig.processes import ROOT, Process, gateway, running, server, start_gateway
from bench.rig.progress import bar
from bench.rig.receivers import Listening, Receiver

NOTHING, AS_IT_COMES, ALL = "nothing", "as it comes", "all"
ROW = Row(STORESCU_NODELAY, "33 KB", 4)
ROUNDS = 15

MEASURES_NOTHING = """
import asyncio, sys
sys.path.insert(0, sys.argv.pop(1))
sys.argv[0] = "client.py"
import prometheus_client, client
from gateway.cli import commands

def nothing(self, *_, **__):
    return None

for kind in (prometheus_client.Counter, prometheus_client.Gauge, prometheus_client.Histogram):
    for name in ("inc", "dec", "set", "observe"):
        if hasattr(kind, name):
            setattr(kind, name, nothing)
    kind.labels = lambda self, *_: self

async def beat(vitals, http):
    await asyncio.Event().wait()

client.beat = beat
commands.command_line(client.run)()
"""


@contextmanager
def measuring_nothing(folder: Path) -> Iterator[Listening]:
    with server(folder) as (_, url):
        command = [sys.executable, "-c", MEASURES_NOTHING, str(ROOT), "--scp-port", "0", "--server-url", url]
        with running(Process("gateway", command, folder, GATEWAY_MIN_FREE_BYTES="0")) as process:
            port = int(process.wait_for_event("gateway.started")["port"])
            yield Listening(port, [psutil.Process(process.popen.pid)])


@contextmanager
def as_it_comes(folder: Path) -> Iterator[Listening]:
    with server(folder) as (_, url), gateway(folder, url, min_free_bytes=0) as (process, port):
        yield Listening(port, [psutil.Process(process.popen.pid)])


@contextmanager
def all_of_it(folder: Path) -> Iterator[Listening]:
    stopped = threading.Event()

    def scrape(url: str) -> None:
        while not stopped.wait(1.0):
            httpx.get(url, trust_env=False).raise_for_status()

    with sink() as collector, server(folder, 0, **collector.environment) as (_, url):
        settings = {"GATEWAY_METRICS_PORT": "0", "GATEWAY_MIN_FREE_BYTES": "0"}
        process, port = start_gateway(folder, url, environment=collector.environment | settings)
        with running(process):
            (served,) = process.events("metrics.served")
            scraping = threading.Thread(target=scrape, args=(f"http://127.0.0.1:{served['port']}/metrics",))
            scraping.start()
            try:
                yield Listening(port, [psutil.Process(process.popen.pid)])
            finally:
                stopped.set()
                scraping.join()


def measure_telemetry(console: Console, rounds: int = ROUNDS) -> dict[str, Any]:
    """Medians over rounds: images a second, as a ratio to a gateway that measures nothing too, and CPU time."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        load = Load(make_files(folder))
        starts = {NOTHING: measuring_nothing, AS_IT_COMES: as_it_comes, ALL: all_of_it}
        everyone = [stack.enter_context(Receiver(name, start, folder)) for name, start in starts.items()]
        cells: dict[str, list[Measured]] = {receiver.name: [] for receiver in everyone}
        with bar(console, "telemetry", rounds * len(everyone)) as measured:
            for number in range(rounds):
                for receiver in everyone if number % 2 else reversed(everyone):
                    cells[receiver.name].append(load.measure(receiver, ROW))
                    measured()
    results = {}
    for name, some in cells.items():
        ratios = [cell.images_per_s / base.images_per_s for cell, base in zip(some, cells[NOTHING], strict=True)]
        results[name] = {
            "images_per_s": statistics.median(cell.images_per_s for cell in some),
            "ratio": statistics.median(ratios),
            "cpu_us": statistics.median(cell.cpu_us for cell in some),
        }
    return results


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.telemetry", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    console = Console(width=160)
    results = measure_telemetry(console, parser.parse_args().rounds)
    for name, figures in results.items():
        console.print(name, json.dumps(figures))
    from bench.chart import write_document  # noqa: PLC0415 - matplotlib is slow to import

    path = ROOT / "bench" / "results.json"
    everything = json.loads(path.read_text()) | {"telemetry": results}
    path.write_text(json.dumps(everything, indent=1) + "\n")
    write_document(everything)
    return 0


if __name__ == "__main__":
    sys.exit(main())
