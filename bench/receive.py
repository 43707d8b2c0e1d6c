"""`make bench`: our gateway, complete, beside other receivers in one run, with real senders.

Each receiver runs alone on its port for the whole run; cells are measured in rounds, receivers in turn, medians count.
Ours is the gateway with its journal at FULL, its collector, and its server with SQLite. A cell's rate is instances a
second over all its associations, the senders' start included; every sender must end with exit code 0.
"""

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pydicom
from rich.console import Console

from bench.rig.peers import ORTHANC, free_port, orthanc, orthanc_process
from bench.rig.processes import ROOT, Process, gateway, running, server
from bench.rig.progress import bar
from bench.rig.receivers import (
    DCMSEND,
    EMPTY_HANDLER,
    SIZES,
    STORESCP,
    STORESCU,
    Cell,
    Receiver,
    make_files,
    measure,
    send,
)
from bench.rig.senders import associate_rq, synthetic_series
from bench.telemetry import measure_telemetry

ASSOCIATIONS = (1, 4, 16)
BIG_FRAMES = 2048  # of 512 by 512 16-bit pixels: 1 GiB
ORTHANC_IMAGES = 100
IDLE = 500
IDLE_S = 10.0
NODELAY = {"TCP_NODELAY": "1"}  # for the receivers built on DCMTK: their answers then do not wait either


# --- receivers -------------------------------------------------------------------------------------------------


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"nothing listens on {port}")


@contextmanager
def ours(folder: Path, name: str, **settings: Any) -> Iterator[Receiver]:
    """Gateway and server."""
    with (
        server(folder) as (http, url),
        gateway(folder, url, min_free_bytes=0, max_associations=1000, max_connections_per_peer=1000, **settings) as (
            process,
            port,
        ),
    ):
        yield Receiver(name, port, [psutil.Process(process.popen.pid), psutil.Process(http.popen.pid)])


@contextmanager
def command(name: str, folder: Path, make: Callable[[int], list[str]]) -> Iterator[Receiver]:
    """A receiver that is one command."""
    port = free_port()
    with running(Process(name, make(port), folder, **NODELAY)) as process:
        _wait_for_port(port)
        yield Receiver(name, port, [psutil.Process(process.popen.pid)])


@contextmanager
def orthanc_peer(folder: Path) -> Iterator[Receiver]:
    port = free_port()
    with orthanc_process(folder, port, free_port(), {}, **NODELAY) as process:
        yield Receiver("Orthanc", port, [psutil.Process(process.popen.pid)])


def receivers(folder: Path, stack: ExitStack, console: Console) -> list[Receiver]:
    """All that are installed; the others are named."""
    for name in ("ours", "workers", "files", "pynetdicom"):
        (folder / name).mkdir()
    found = [stack.enter_context(ours(folder / "ours", "ours"))]
    found.append(stack.enter_context(ours(folder / "workers", "ours, 2 workers", workers=2)))
    if STORESCP:
        scp = str(STORESCP)
        files = str(folder / "files")
        found += [
            stack.enter_context(command("storescp --ignore", folder, lambda p: [scp, "--fork", "--ignore", str(p)])),
            stack.enter_context(command("storescp -B", folder, lambda p: [scp, "--fork", "-B", "-od", files, str(p)])),
        ]
    else:
        console.print("missing: DCMTK (Debian: apt-get install dcmtk)")
    if ORTHANC:
        found.append(stack.enter_context(orthanc_peer(folder)))
    else:
        console.print("missing: Orthanc (Debian: apt-get install orthanc)")
    python = sys.executable
    app = [python, "-m", "pynetdicom", "storescp", "-od", str(folder / "pynetdicom")]
    found += [
        stack.enter_context(command("pynetdicom storescp", folder, lambda p: [*app, str(p)])),
        stack.enter_context(command("pynetdicom empty", folder, lambda p: [python, "-c", EMPTY_HANDLER, str(p)])),
    ]
    return found


# --- cells -----------------------------------------------------------------------------------------------------


def measure_all(console: Console, everyone: list[Receiver], files: dict[str, list[str]], rounds: int) -> list[Cell]:
    wanted = [("storescu nodelay", size, n) for size in SIZES for n in ASSOCIATIONS]
    wanted += [("storescu", "33 KB", n) for n in ASSOCIATIONS]
    wanted += [("dcmsend", "33 KB", 4)] if DCMSEND else []
    cells = []
    for sender, size, associations in wanted:
        seen: dict[str, list[Cell]] = {receiver.name: [] for receiver in everyone}
        with bar(console, f"{sender}, {size}, {associations}", rounds * len(everyone)) as measured:
            for _ in range(rounds):
                for receiver in everyone:
                    seen[receiver.name].append(measure(receiver, sender, size, files[size], associations))
                    measured()
        for name, some in seen.items():
            median = {
                field: statistics.median(getattr(cell, field) for cell in some)
                for field in ("instances_per_s", "mb_per_s", "cpu_s_per_1000", "peak_rss_mib")
            }
            cells.append(Cell(name, sender, size, associations, **median))
        line = ", ".join(f"{cell.receiver} {cell.instances_per_s:.0f}" for cell in cells[-len(seen) :])
        console.print(f"{sender}, {size}, {associations}: {line}")
    return cells


def orthanc_sends(console: Console, folder: Path, everyone: list[Receiver], files: list[str]) -> list[Cell]:
    """Orthanc's "store to modality", one job of one association, to each receiver."""
    if ORTHANC is None:
        return []
    cells = []
    for receiver in everyone:
        home = folder / f"sender {receiver.name}"
        home.mkdir()
        with orthanc(home, receiver.port) as pacs:
            studies = sorted({pacs.upload(Path(path)) for path in files[:ORTHANC_IMAGES]})
            cpu_s, began = receiver.cpu_s(), time.monotonic()
            pacs.send(studies)
            took_s = time.monotonic() - began
        rate = ORTHANC_IMAGES / took_s
        used_s = (receiver.cpu_s() - cpu_s) / ORTHANC_IMAGES * 1000
        mb_per_s = rate * 2 * 128 * 128 / 1e6
        cells.append(Cell(receiver.name, "Orthanc", "33 KB", 1, rate, mb_per_s, used_s, receiver.peak_rss_mib()))
    console.print("Orthanc sends: " + ", ".join(f"{cell.receiver} {cell.instances_per_s:.0f}" for cell in cells))
    return cells


def one_gibibyte(folder: Path, everyone: list[Receiver]) -> dict[str, dict[str, float]]:
    """A 1 GiB multi-frame instance: seconds, and by how much it raised the receiver's peak RSS."""
    (ds,) = synthetic_series(1)
    ds.Rows = ds.Columns = 512
    ds.NumberOfFrames = BIG_FRAMES
    ds.PixelData = bytes(BIG_FRAMES * 512 * 512 * 2 - 2)
    path = folder / "big.dcm"
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
    del ds
    results = {}
    for receiver in everyone:
        before = receiver.peak_rss_mib()
        took_s = send(receiver, "storescu nodelay", [str(path)], 1, 1)
        results[receiver.name] = {"seconds": took_s, "raised_rss_mib": receiver.peak_rss_mib() - before}
    path.unlink()
    return results


def idle_cpu_percent(receiver: Receiver, associations: int) -> float:
    """Percent of one core that so many idle associations cost."""
    with ExitStack() as stack:
        for n in range(associations):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", receiver.port), 30))
            sock.sendall(associate_rq())
            if sock.recv(1)[:1] != b"\x02":
                raise RuntimeError(f"{receiver.name} did not accept association {n + 1}")
        time.sleep(1)
        before = receiver.cpu_s()
        time.sleep(IDLE_S)
        return (receiver.cpu_s() - before) / IDLE_S * 100


# --- the command -----------------------------------------------------------------------------------------------


def worst_ratio(cells: list[Cell]) -> tuple[float, str, str]:
    """Ours against the peer and in the cell where we look worst."""
    ratios = []
    for cell in cells:
        if cell.receiver == "ours":
            for peer in cells:
                if not peer.receiver.startswith("ours") and _where(peer) == _where(cell):
                    ratios.append((cell.instances_per_s / peer.instances_per_s, peer.receiver, _where(cell)))
    return min(ratios)


def _where(cell: Cell) -> str:
    return f"{cell.sender}, {cell.size}, {cell.associations} associations"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    console = Console(width=160)
    if STORESCU is None:
        console.print("missing: storescu, the sender (Debian: apt-get install dcmtk)")
        return 1
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        files = make_files(folder)
        everyone = receivers(folder, stack, console)
        cells = measure_all(console, everyone, files, options.rounds)
        with console.status("Orthanc sends; idle associations; 1 GiB"):
            cells += orthanc_sends(console, folder, everyone, files["33 KB"])
            by_name = {receiver.name: receiver for receiver in everyone}
            idle = {"ours": (IDLE, idle_cpu_percent(by_name["ours"], IDLE))}
            idle["pynetdicom empty"] = (50, idle_cpu_percent(by_name["pynetdicom empty"], 50))
            big = one_gibibyte(folder, everyone)
    results = {"cells": [asdict(cell) for cell in cells], "idle": idle, "one_gibibyte": big, "cores": os.cpu_count()}
    results["telemetry"] = measure_telemetry(console)
    (ROOT / "bench" / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    from bench.chart import write_document  # noqa: PLC0415 - matplotlib is slow to import

    write_document(results)
    ratio, peer, where = worst_ratio(cells)
    console.print(f"bench: worst ratio to {peer} = {ratio:.2f} in {where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
