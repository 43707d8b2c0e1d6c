"""`make bench`: our gateway, complete, beside other receivers and a floor in one run, with real senders and our own.

Ours is the gateway with its journal at FULL, its collector, and its server with SQLite. Each round of a row runs all
receivers in turn, every second one in the opposite order; a cell has the medians over the rounds, and the median of the
ratios within a round. A sender that fails ends its cell, not the run. `--quick` runs a few rows once, in three minutes,
and only prints them.
"""

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pydicom
from rich.console import Console

from bench.rig.built import CARGO, NotBuilt, compiled, dicom_rs
from bench.rig.load import (
    C_SENDER,
    CELL_S,
    DCMSEND,
    DICOM_RS_STORESCU,
    ORTHANC_IMAGES,
    ORTHANC_SENDER,
    SIZES,
    STORESCU,
    STORESCU_NODELAY,
    Load,
    Measured,
    Row,
    SendFailed,
    make_files,
    send_file,
)
from bench.rig.peers import ORTHANC, orthanc
from bench.rig.processes import ROOT, ProcessFailed
from bench.rig.progress import bar
from bench.rig.receivers import Receiver, receivers
from bench.rig.senders import associate_rq, synthetic_series
from bench.tables import table
from bench.telemetry import measure_telemetry

ROUNDS = 3
QUICK_CELL_S = 0.3
BIG_FRAMES = 2048  # of 512 by 512 16-bit pixels: 1 GiB
IDLE = 500
IDLE_S = 10.0
SMALL, LARGE = SIZES
WINDOW = 16
TEAM_IMAGES = 373  # CT images of 0.5 MB: what Orthanc's team measures with

PARTS = {
    "Senders that set TCP_NODELAY": [Row(STORESCU_NODELAY, size, n) for size in SIZES for n in (1, 4, 16)],
    "Senders as they come": [
        *(Row("storescu", SMALL, n) for n in (1, 4, 16)),
        Row("dcmsend", SMALL, 4),
        *(Row(DICOM_RS_STORESCU, SMALL, n) for n in (1, 4)),
        Row(ORTHANC_SENDER, SMALL, 1, images=ORTHANC_IMAGES),
    ],
    "The load of Orthanc's team": [Row("storescu", LARGE, n, images=TEAM_IMAGES) for n in (1, 4, 16)],
    "A sender that costs little, without and with a window": [
        *(Row(C_SENDER, size, n) for size in SIZES for n in (1, 4, 16)),
        *(Row(C_SENDER, size, n, WINDOW) for size in SIZES for n in (1, 4)),
    ],
    "Long links": [
        *(Row(C_SENDER, SMALL, 1, window, ms) for ms in (30, 60) for window in (1, WINDOW)),
        *(Row(C_SENDER, LARGE, 1, window, 60) for window in (1, WINDOW)),
    ],
}
QUICK = {
    "Quick": [
        Row(STORESCU_NODELAY, SMALL, 1),
        Row(STORESCU_NODELAY, LARGE, 4),
        Row("storescu", SMALL, 16),
        Row(C_SENDER, SMALL, 4),
        Row(C_SENDER, SMALL, 1, WINDOW),
        Row(C_SENDER, SMALL, 1, WINDOW, 60),
    ],
}


@dataclass
class Cell:
    """What one receiver did with one row."""

    images_per_s: float = 0.0
    cpu_us: float = 0.0
    ratio: float = 0.0
    """How many times as fast ours was."""
    window: int = 1
    failed: str = ""
    """Why there are no figures."""


# --- rows ------------------------------------------------------------------------------------------------------


def without_missing(console: Console, parts: dict[str, list[Row]], cargo: str | None) -> dict[str, list[Row]]:
    """Names the senders that are not here and cannot be built, and leaves their rows out."""
    wanted = {row.sender for rows in parts.values() for row in rows}
    missing = {} if DCMSEND else {"dcmsend": "DCMTK (Debian: apt-get install dcmtk)"}
    missing |= {} if ORTHANC else {ORTHANC_SENDER: "Orthanc (Debian: apt-get install orthanc)"}
    builds: dict[str, Callable[[], Path]] = {
        C_SENDER: lambda: compiled("sender"),
        DICOM_RS_STORESCU: lambda: dicom_rs(cargo),
    }
    for sender in builds.keys() & wanted:
        try:
            builds[sender]()
        except NotBuilt as error:
            missing[sender] = str(error)
    for sender in missing.keys() & wanted:
        console.print(f"missing, its rows are left out: {sender}: {missing[sender]}")
    return {title: [row for row in rows if row.sender not in missing] for title, rows in parts.items()}


def measure_row(
    row: Row,
    everyone: Sequence[Receiver],
    rounds: int,
    measure: Callable[[Receiver, Row], Measured],
    measured: Callable[[], None] = lambda: None,
) -> dict[str, Cell]:
    """Returns a cell for each receiver. One that fails is started anew and gets no further round of this row."""
    seen: dict[str, list[Measured]] = {receiver.name: [] for receiver in everyone}
    failed: dict[str, str] = {}
    for number in range(rounds):
        for receiver in everyone if number % 2 == 0 else reversed(everyone):
            if receiver.name not in failed:
                try:
                    seen[receiver.name].append(measure(receiver, row))
                except SendFailed as error:
                    failed[receiver.name] = str(error)
                    with suppress(OSError, ProcessFailed):  # then it fails in the next row, too
                        receiver.restart()
                receiver.forget()
            measured()
    mine = [] if "ours" in failed else seen["ours"]
    return {name: Cell(failed=failed[name]) if name in failed else _cell(some, mine) for name, some in seen.items()}


def _cell(some: Sequence[Measured], mine: Sequence[Measured]) -> Cell:
    ratios = [ours.images_per_s / one.images_per_s for ours, one in zip(mine, some, strict=False)]
    return Cell(
        statistics.median(one.images_per_s for one in some),
        statistics.median(one.cpu_us for one in some),
        statistics.median(ratios) if ratios else 0.0,
        min(one.window for one in some),
    )


def measure_parts(
    console: Console, parts: dict[str, list[Row]], everyone: Sequence[Receiver], load: Load, rounds: int
) -> list[dict[str, Any]]:
    """Returns what bench/results.json holds of the parts: their rows, each with its cells."""
    done = []
    for title, rows in parts.items():
        told = []
        for row in rows:
            with bar(console, row.name, rounds * len(everyone)) as measured:
                cells = measure_row(row, everyone, rounds, load.measure, measured)
            shown = (f"{name} {cell.failed or round(cell.images_per_s)}" for name, cell in cells.items())
            console.print(f"{row.name}: {', '.join(shown)}")
            told.append(asdict(row) | {"name": row.name, "cells": {name: asdict(cell) for name, cell in cells.items()}})
        done.append({"title": title, "rows": told})
    return done


# --- extremes --------------------------------------------------------------------------------------------------


def one_gibibyte(folder: Path, everyone: Sequence[Receiver]) -> dict[str, dict[str, Any]]:
    """A 1 GiB multi-frame instance: peak RSS before, seconds, and by how much it raised that; or why it failed."""
    (ds,) = synthetic_series(1)
    ds.Rows = ds.Columns = 512
    ds.NumberOfFrames = BIG_FRAMES
    ds.PixelData = bytes(BIG_FRAMES * 512 * 512 * 2 - 2)
    path = folder / "big.dcm"
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
    del ds
    results: dict[str, dict[str, Any]] = {}
    for receiver in everyone:
        told: dict[str, Any] = results.setdefault(receiver.name, {})
        try:
            told["peak_rss_mib"] = receiver.peak_rss_mib()
            told["seconds"] = send_file(receiver.port, path)
            told["raised_rss_mib"] = receiver.peak_rss_mib() - told["peak_rss_mib"]
        except (SendFailed, OSError) as error:
            told["failed"] = str(error)
        receiver.forget()
    path.unlink()
    return results


def idle_cpu(receiver: Receiver, associations: int) -> dict[str, Any]:
    """Measures what so many idle associations cost, in percent of one core."""
    told: dict[str, Any] = {"associations": associations}
    with ExitStack() as stack:
        try:
            for _ in range(associations):
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", receiver.port), 30))
                sock.sendall(associate_rq())
                if sock.recv(1)[:1] != b"\x02":
                    return told | {"failed": "does not accept all"}
        except OSError as error:
            return told | {"failed": str(error)}
        time.sleep(1)
        before = receiver.cpu_s()
        time.sleep(IDLE_S)
        return told | {"percent": (receiver.cpu_s() - before) / IDLE_S * 100}


# --- the command -----------------------------------------------------------------------------------------------


@contextmanager
def bench(
    console: Console, cell_s: float, parts: dict[str, list[Row]], cargo: str | None
) -> Iterator[tuple[Path, list[Receiver], Load]]:
    """Everything that runs meanwhile: a folder, the receivers, and Orthanc as a sender if a row wants it."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        files = make_files(folder)
        everyone = []
        for receiver in receivers(folder, console, cargo):
            try:
                everyone.append(stack.enter_context(receiver))
            except (OSError, ProcessFailed) as error:
                console.print(f"missing: {receiver.name} does not start: {error}")
        pacs = None
        if any(row.sender == ORTHANC_SENDER for rows in parts.values() for row in rows):
            (home := folder / "sender").mkdir()
            pacs = stack.enter_context(orthanc(home, 1))
        yield folder, everyone, Load(files, pacs, cell_s)


def worst_ratio(parts: Sequence[dict[str, Any]]) -> tuple[float, str, str]:
    """Ours against the peer, and in the row, where we look worst; the floor is none."""
    return min(
        (cell["ratio"], name, row["name"])
        for part in parts
        for row in part["rows"]
        for name, cell in row["cells"].items()
        if not name.startswith("ours") and name != "floor" and cell["ratio"]
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few rows, one round, printed only")
    parser.add_argument("--rounds", type=int, help=f"{ROUNDS}; with --quick 1")
    options = parser.parse_args()
    rounds = options.rounds or (1 if options.quick else ROUNDS)
    console = Console(width=160)
    if STORESCU is None:
        console.print("missing: storescu, the sender (Debian: apt-get install dcmtk)")
        return 1
    cell_s, cargo = (QUICK_CELL_S, None) if options.quick else (CELL_S, CARGO)  # building takes minutes
    parts = without_missing(console, QUICK if options.quick else PARTS, cargo)
    with bench(console, cell_s, parts, cargo) as (folder, everyone, load):
        results: dict[str, Any] = {"cores": os.cpu_count(), "rounds": rounds}
        if options.quick:
            (done,) = measure_parts(console, parts, everyone, load, rounds)
            print(table(done))
            return 0
        results["parts"] = measure_parts(console, parts, everyone, load, rounds)
        with console.status("idle associations; 1 GiB"):
            by_name = {receiver.name: receiver for receiver in everyone}
            idle = {"ours": IDLE, "pynetdicom empty": 50}
            results["idle"] = {name: idle_cpu(by_name[name], n) for name, n in idle.items() if name in by_name}
            results["one_gibibyte"] = one_gibibyte(folder, everyone)
    try:
        results["telemetry"] = measure_telemetry(console)
    except SendFailed as error:
        console.print(f"telemetry failed: {error}")
    (ROOT / "bench" / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    from bench.chart import write_document  # noqa: PLC0415 - matplotlib is slow to import

    write_document(results)
    ratio, peer, where = worst_ratio(results["parts"])
    console.print(f"bench: worst ratio to {peer} = {ratio:.2f} in {where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
