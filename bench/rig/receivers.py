"""Receivers that are measured: ours, a floor, and others; each can be started again."""

import re
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from bench.rig.built import NotBuilt, compiled, dicom_rs
from bench.rig.peers import ORTHANC, free_port, orthanc_process, wait_for_port
from bench.rig.processes import Process, ProcessFailed, gateway, running, server

IMAGES = "images"  # the folder for those that write files
STORESCP = shutil.which("storescp")
NODELAY = {"TCP_NODELAY": "1"}  # for the receivers built on DCMTK: their answers then do not wait either
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


@dataclass(frozen=True)
class Listening:
    """A receiver that has started: its port, and the processes whose CPU time counts, the one that listens first."""

    port: int
    processes: list[psutil.Process]


Start = Callable[[Path], AbstractContextManager[Listening]]
"""Starts a receiver in a folder of its own."""


class Receiver:
    """One that is measured; a context manager."""

    def __init__(self, name: str, start: Start, folder: Path) -> None:
        self.name = name
        self._start = start
        self._folder = folder
        self._starts = 0
        self._images = folder
        self._running: AbstractContextManager[Listening] | None = None
        self._listening = Listening(0, [])

    def __enter__(self) -> "Receiver":
        folder = self._folder / re.sub(r"\W+", "-", f"{self.name} {self._starts}")
        (folder / IMAGES).mkdir(parents=True)
        self._starts += 1
        self._images = folder / IMAGES
        self._running = self._start(folder)
        self._listening = self._running.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._running is not None:
            with suppress(ProcessFailed):  # it had to be killed
                self._running.__exit__(None, None, None)

    def restart(self) -> None:
        """Starts it anew, with nothing of before."""
        self.__exit__()
        self.__enter__()

    def forget(self) -> None:
        """Deletes the files that it wrote, if it writes any: a long run would fill the disk."""
        for path in self._images.iterdir():
            path.unlink()

    @property
    def port(self) -> int:
        return self._listening.port

    def cpu_s(self) -> float:
        """CPU seconds so far, children included; a connection makes DCMTK's receiver collect those that ended."""
        if self.name.startswith("storescp"):
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 5).close()
            time.sleep(0.1)
        used_s = 0.0
        for process in self._listening.processes:
            with suppress(psutil.NoSuchProcess, OSError):
                ended = process.cpu_times()
                used_s += process_cpu_s(process.pid) + ended.children_user + ended.children_system
                used_s += sum(process_cpu_s(child.pid) for child in process.children(recursive=True))
        return used_s

    def peak_rss_mib(self) -> float:
        """Returns the peak RSS of the process that listens."""
        status = Path(f"/proc/{self._listening.processes[0].pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024


def process_cpu_s(pid: int) -> float:
    """CPU seconds of a process, its threads that ended included, without the 10 ms steps of /proc.

    This is the clock that clock_getcpuclockid(3) names. Raises OSError if there is no such process.
    """
    return time.clock_gettime(~pid << 3 | 2)


def ours(**settings: Any) -> Start:
    """Gateway and server."""

    @contextmanager
    def start(folder: Path) -> Iterator[Listening]:
        limits = {"min_free_bytes": 0, "max_associations": 1000, "max_connections_per_peer": 1000}
        with server(folder) as (http, url), gateway(folder, url, **limits, **settings) as (process, port):
            yield Listening(port, [psutil.Process(process.popen.pid), psutil.Process(http.popen.pid)])

    return start


def command(make: Callable[[int], list[str]]) -> Start:
    """A receiver that is one command."""

    @contextmanager
    def start(folder: Path) -> Iterator[Listening]:
        port = free_port()
        with running(Process(folder.name, make(port), folder, **NODELAY)) as process:
            wait_for_port(port, 30)
            yield Listening(port, [psutil.Process(process.popen.pid)])

    return start


@contextmanager
def orthanc_peer(folder: Path) -> Iterator[Listening]:
    port = free_port()
    with orthanc_process(folder, port, free_port(), {}, **NODELAY) as process:
        yield Listening(port, [psutil.Process(process.popen.pid)])


def receivers(folder: Path, console: Console, cargo: str | None) -> list[Receiver]:
    """Returns all that are installed or can be built, dicom-rs by `cargo`, not started yet; the others are named."""
    starts = {"ours": ours(), "ours, 2 workers": ours(workers=2)}
    try:
        floor = str(compiled("floor"))
        starts["floor"] = command(lambda port: [floor, "floor", str(port)])
    except NotBuilt as error:
        console.print(f"missing: the floor: {error}")
    if STORESCP:
        scp = [STORESCP, "--fork"]
        starts["storescp --ignore"] = command(lambda port: [*scp, "--ignore", str(port)])
        starts["storescp -B"] = command(lambda port: [*scp, "-B", "-od", IMAGES, str(port)])
    else:
        console.print("missing: DCMTK (Debian: apt-get install dcmtk)")
    try:
        rust = str(dicom_rs(cargo) / "dicom-storescp")
        starts["dicom-rs storescp"] = command(lambda port: [rust, "--non-blocking", "-o", IMAGES, "-p", str(port)])
    except NotBuilt as error:
        console.print(f"missing: {error}")
    if ORTHANC:
        starts["Orthanc"] = orthanc_peer
    else:
        console.print("missing: Orthanc (Debian: apt-get install orthanc)")
    python = sys.executable
    starts["pynetdicom storescp"] = command(
        lambda port: [python, "-m", "pynetdicom", "storescp", "-od", IMAGES, str(port)]
    )
    starts["pynetdicom empty"] = command(lambda port: [python, "-c", EMPTY_HANDLER, str(port)])
    return [Receiver(name, start, folder) for name, start in starts.items()]
