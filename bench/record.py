"""Records bench/traces/*.jsonl: what a gateway sees when real senders send, on fast, slow and stalling links.

`python -m bench.record` takes about three minutes and needs DCMTK and Orthanc. Images are synthetic.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from socket import create_connection, create_server, socket

import pydicom
from rich.console import Console
from rich.progress import track

from bench.rig.peers import orthanc
from bench.rig.processes import ROOT, gateway
from bench.rig.senders import synthetic_series

STORESCU, DCMSEND = str(shutil.which("storescu")), str(shutil.which("dcmsend"))
SERIES, IMAGES = 12, 25
Send = Callable[[int, list[list[str]]], None]
"""Send files, by series, to a port."""


def run(port: int, files: list[str], tool: str = STORESCU, **environment: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([tool, "127.0.0.1", str(port), "-aec", "STORESCP", *files], env=os.environ | environment)


def wait(*senders: "subprocess.Popen[bytes]") -> None:
    if any(sender.wait() for sender in senders):
        raise RuntimeError("a sender failed")


def one_association(port: int, series: list[list[str]]) -> None:
    wait(run(port, [file for files in series for file in files]))


def nodelay(port: int, series: list[list[str]]) -> None:
    for files in series:
        wait(run(port, files, TCP_NODELAY="1"))


def parallel(port: int, series: list[list[str]]) -> None:
    """Four series at a time, each on its association."""
    for first in range(0, len(series), 4):
        wait(*(run(port, files) for files in series[first : first + 4]))


def split(port: int, series: list[list[str]]) -> None:
    """Each series over four associations at once."""
    for files in series:
        wait(*(run(port, files[n::4]) for n in range(4)))


def dcmsend(port: int, series: list[list[str]]) -> None:
    for files in series:
        wait(run(port, files, DCMSEND))


def from_orthanc(port: int, series: list[list[str]]) -> None:
    with tempfile.TemporaryDirectory() as folder, orthanc(Path(folder), port) as pacs:
        studies = sorted({pacs.upload(Path(file)) for files in series for file in files})
        for study in studies:
            pacs.send([study])


def drip(port: int, series: list[list[str]]) -> None:
    for files in series[:3]:
        for file in files[:12]:
            wait(run(port, [file]))
            time.sleep(random.uniform(1.2, 1.8))


def throttled(port: int, series: list[list[str]]) -> None:
    """400 KB/s, as over an old line; 33 KB images."""
    with link(port, lambda n: time.sleep(n / 400_000)) as slow:
        parallel(slow, series)


def stalling(port: int, series: list[list[str]]) -> None:
    """A wireless link that stalls for half a second to four seconds, about once in a hundred reads."""

    def stall(_: int) -> None:
        if random.random() < 0.01:
            time.sleep(random.uniform(0.5, 4))

    with link(port, stall) as bad:
        nodelay(bad, series)


SENDS: list[Send] = [
    one_association, nodelay, parallel, split, dcmsend, from_orthanc, drip, throttled, stalling,
]  # fmt: skip


@contextmanager
def link(port: int, delay: Callable[[int], None]) -> Iterator[int]:
    """A TCP proxy to a port, which lets `delay` wait for every piece that a sender sends."""

    def pump(source: socket, sink: socket, wait_for: Callable[[int], None]) -> None:
        with suppress(OSError):
            while data := source.recv(16384):
                wait_for(len(data))
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(1)

    def serve() -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = create_connection(("127.0.0.1", port))
                threading.Thread(target=pump, args=(near, far, delay), daemon=True).start()
                threading.Thread(target=pump, args=(far, near, lambda _: None), daemon=True).start()

    with closing(create_server(("127.0.0.1", 0))) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield int(listener.getsockname()[1])


def main() -> int:
    (ROOT / "bench" / "traces").mkdir(exist_ok=True)
    for send in track(SENDS, "senders", console=Console(stderr=True), transient=True):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            files: list[list[str]] = []
            for _ in range(SERIES):
                files.append([])
                for ds in synthetic_series(IMAGES):
                    ds.Rows = ds.Columns = 128
                    ds.PixelData = bytes(32768)
                    path = folder / f"{ds.SOPInstanceUID}.dcm"
                    pydicom.dcmwrite(path, ds, enforce_file_format=True)
                    files[-1].append(str(path))
            trace = folder / "trace.jsonl"
            began = time.monotonic()
            with gateway(folder, "http://127.0.0.1:9", trace_path=trace, min_free_bytes=0, drain_timeout_s=1) as (
                _,
                port,
            ):
                send(port, files)
            target = ROOT / "bench" / "traces" / f"{send.__name__.removeprefix('from_')}.jsonl"
            shutil.copy(trace, target)
            print(f"{target.name}: {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
