"""Receivers that are measured, the images that are sent to them, and what one round of sending costs."""

import os
import shutil
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pydicom

from bench.rig.senders import synthetic_series

STORESCP, STORESCU, DCMSEND = (shutil.which(name) for name in ("storescp", "storescu", "dcmsend"))
SIZES = {"33 KB": (128, 1400), "525 KB": (512, 300)}
"""Matrix size, and how many different files there are."""
CELL_S = 1.5
PROBE = 8  # images an association, to find out how many fill CELL_S
EMPTY_HANDLER = """
import sys
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
ae = AE("STORESCP")
for context in AllStoragePresentationContexts:
    ae.add_supported_context(context.abstract_syntax, ALL_TRANSFER_SYNTAXES)
ae.add_supported_context("1.2.840.10008.1.1")
ae.maximum_associations = 1000
ae.start_server(("127.0.0.1", int(sys.argv[1])), evt_handlers=[(evt.EVT_C_STORE, lambda event: 0)])
"""
"""Stock pynetdicom as a program that takes a port, and every storage class."""


@dataclass
class Receiver:
    """One that is measured: where it listens, and its processes."""

    name: str
    port: int
    processes: list[psutil.Process]

    def cpu_s(self) -> float:
        """CPU seconds so far, children included; a connection makes DCMTK's receiver collect those that ended."""
        if self.name.startswith("storescp"):
            socket.create_connection(("127.0.0.1", self.port), 5).close()
            time.sleep(0.1)
        everyone = [p for process in self.processes for p in (process, *process.children(recursive=True))]
        times = []
        for process in everyone:
            with suppress(psutil.NoSuchProcess):
                times.append(process.cpu_times())
        return sum(t.user + t.system + t.children_user + t.children_system for t in times)

    def peak_rss_mib(self) -> float:
        """Of the process that listens."""
        status = Path(f"/proc/{self.processes[0].pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024


@dataclass
class Cell:
    """What one receiver did in one cell: medians over the rounds."""

    receiver: str
    sender: str
    size: str
    associations: int
    instances_per_s: float
    mb_per_s: float
    cpu_s_per_1000: float
    peak_rss_mib: float


def make_files(folder: Path) -> dict[str, list[str]]:
    """CT images of each size, in series of 20."""
    files: dict[str, list[str]] = {}
    for size, (matrix, count) in SIZES.items():
        files[size] = []
        for ds in (ds for _ in range(count // 20) for ds in synthetic_series(20)):
            ds.Rows = ds.Columns = matrix
            ds.PixelData = bytes(2 * matrix * matrix)
            path = folder / f"{ds.SOPInstanceUID}.dcm"
            pydicom.dcmwrite(path, ds, enforce_file_format=True)
            files[size].append(str(path))
    return files


def send(receiver: Receiver, sender: str, files: list[str], associations: int, each: int) -> float:
    """Send `each` images over each association at once; seconds."""
    tool, environment = (DCMSEND if sender == "dcmsend" else STORESCU), dict(os.environ)
    if sender == "storescu nodelay":
        environment["TCP_NODELAY"] = "1"
    target = [str(tool), "-aec", "STORESCP", "127.0.0.1", str(receiver.port)]
    parts = [[files[(n * each + i) % len(files)] for i in range(each)] for n in range(associations)]
    began = time.monotonic()
    senders = [subprocess.Popen([*target, *part], env=environment, stderr=subprocess.DEVNULL) for part in parts]
    codes = [sender.wait() for sender in senders]
    if any(codes):
        raise RuntimeError(f"{receiver.name}: {sender} ended with {codes}")
    return time.monotonic() - began


def measure(receiver: Receiver, sender: str, size: str, files: list[str], associations: int) -> Cell:
    """One round of one cell: a probe, then as many images as fill CELL_S."""
    rate = PROBE * associations / send(receiver, sender, files, associations, PROBE)
    each = max(PROBE, min(int(rate * CELL_S / associations), len(files) // associations))
    cpu_s = receiver.cpu_s()
    took_s = send(receiver, sender, files, associations, each)
    count = each * associations
    matrix, _ = SIZES[size]
    return Cell(
        receiver.name,
        sender,
        size,
        associations,
        count / took_s,
        count * 2 * matrix * matrix / took_s / 1e6,
        (receiver.cpu_s() - cpu_s) / count * 1000,
        receiver.peak_rss_mib(),
    )
