"""Loads: the images, the senders, and what one round of sending costs a receiver."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import pydicom

from bench.rig.built import compiled, dicom_rs
from bench.rig.link import long_link
from bench.rig.peers import Orthanc
from bench.rig.receivers import Receiver
from bench.rig.senders import synthetic_series

STORESCU, DCMSEND = (shutil.which(name) for name in ("storescu", "dcmsend"))
SIZES = {"33 KB": (128, 1400), "525 KB": (512, 380)}
"""Matrix size, and how many different files there are."""
C_SENDER, STORESCU_NODELAY, DICOM_RS_STORESCU, ORTHANC_SENDER = (
    "C sender", "storescu nodelay", "dicom-rs storescu", "Orthanc",
)  # fmt: skip
CELL_S = 1.5
PROBE = 8  # images an association, to find out how many fill a cell
MOST_BYTES = 400_000_000  # of a cell from the sender in C: some receivers write all of it
SEND_TIMEOUT_S = 60.0
ORTHANC_IMAGES = 100


class SendFailed(Exception):
    """A sender did not send everything. The text is short enough for a cell of a table."""


@dataclass(frozen=True)
class Row:
    """A load that every receiver gets."""

    sender: str
    size: str
    associations: int
    window: int = 1
    """Requests unanswered at a time on an association (PS3.7 §D.3.3.3)."""
    round_trip_ms: int = 0
    images: int | None = None
    """On all associations together; None: as many as fill a cell."""

    @property
    def name(self) -> str:
        """Returns what a table calls it."""
        size = f"{self.images} of {self.size}" if self.images else self.size
        parts = [self.sender, size, str(self.associations)]
        parts += [f"window {self.window}"] if self.window > 1 else []
        parts += [f"{self.round_trip_ms} ms"] if self.round_trip_ms else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Sent:
    """What one call of a sender did."""

    seconds: float
    """Of a sender in C between the first request and the last answer, of others with their start."""
    window: int = 1
    """What was negotiated."""


@dataclass(frozen=True)
class Measured:
    """One round of one row at one receiver."""

    images_per_s: float
    cpu_us: float
    """The receiver's user and system time for each image."""
    window: int = 1


def make_files(folder: Path) -> dict[str, list[str]]:
    """Writes CT images of each size, in series of 20."""
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


class Load:
    """The senders, and the files that most of them send."""

    def __init__(self, files: dict[str, list[str]], orthanc: Orthanc | None = None, cell_s: float = CELL_S) -> None:
        """`orthanc` sends the first ORTHANC_IMAGES images of 33 KB, if there is one."""
        self._files = files
        self._cell_s = cell_s
        self._orthanc = orthanc
        images = files["33 KB"][:ORTHANC_IMAGES] if orthanc else []
        self._studies = sorted({orthanc.upload(Path(path)) for path in images}) if orthanc else []

    def measure(self, receiver: Receiver, row: Row) -> Measured:
        """Returns one round: a probe, then as many images as the row says or as fill a cell. Raises SendFailed."""
        with ExitStack() as stack:
            port = receiver.port
            if row.round_trip_ms:
                port = stack.enter_context(long_link(port, row.round_trip_ms / 1000))
            count = row.images or self._filling(port, row)
            cpu_s = receiver.cpu_s()
            sent = self.send(port, row, count)
        return Measured(count / sent.seconds, (receiver.cpu_s() - cpu_s) / count * 1e6, sent.window)

    def _filling(self, port: int, row: Row) -> int:
        """Returns how many images fill a cell: as many on each association, files at most once."""
        least = max(PROBE, row.window) * row.associations
        rate = least / self.send(port, row, least).seconds
        matrix, files = SIZES[row.size]
        most = MOST_BYTES // (2 * matrix * matrix) if row.sender == C_SENDER else files
        count = max(least, min(int(rate * self._cell_s), most))
        return count - count % row.associations

    def send(self, port: int, row: Row, count: int) -> Sent:
        """Sends so many images, over all associations together. Raises SendFailed."""
        if row.sender == C_SENDER:
            return _send_from_c(port, row, count)
        files = [self._files[row.size][n % len(self._files[row.size])] for n in range(count)]
        began = time.monotonic()
        if row.sender == ORTHANC_SENDER:
            self._send_from_orthanc(port)
        elif row.sender == DICOM_RS_STORESCU:
            several = ["-c", str(row.associations)] if row.associations > 1 else []
            _run([[str(dicom_rs() / "dicom-storescu"), "--fail-first", *several, f"STORESCP@127.0.0.1:{port}", *files]])
        else:
            _send_by_dcmtk(port, row.sender, [files[n :: row.associations] for n in range(row.associations)])
        return Sent(time.monotonic() - began)

    def _send_from_orthanc(self, port: int) -> None:
        """Has Orthanc "store to modality", by one job of one association."""
        if self._orthanc is None:
            raise SendFailed("no Orthanc")
        try:
            self._orthanc.know("RECEIVER", "STORESCP", port)
            self._orthanc.send(self._studies, to="RECEIVER")
        except (httpx.HTTPError, RuntimeError) as error:
            raise SendFailed(str(error)[:100]) from error


def send_file(port: int, path: Path) -> float:
    """Sends one file by storescu; returns seconds. Raises SendFailed."""
    began = time.monotonic()
    _send_by_dcmtk(port, STORESCU_NODELAY, [[str(path)]])
    return time.monotonic() - began


def _send_by_dcmtk(port: int, sender: str, parts: Sequence[Sequence[str]]) -> None:
    """Sends files by DCMTK, each part over an association of its own, all at once. Raises SendFailed."""
    tool = DCMSEND if sender == "dcmsend" else STORESCU
    environment = {"TCP_NODELAY": "1"} if sender == STORESCU_NODELAY else {}
    _run([[str(tool), "-aec", "STORESCP", "127.0.0.1", str(port), *part] for part in parts if part], environment)


def _send_from_c(port: int, row: Row, count: int) -> Sent:
    matrix, _ = SIZES[row.size]
    options = {
        "-a": row.associations,
        "-n": count // row.associations,
        "-w": row.window,
        "-m": matrix,
        "-t": SEND_TIMEOUT_S,
    }
    told = [text for name, value in options.items() for text in (name, f"{value:.0f}")]
    (said,) = _run([[str(compiled("sender")), *told, "127.0.0.1", str(port)]])
    done = json.loads(said)
    return Sent(done["seconds"], done["window"])


def _run(commands: Sequence[Sequence[str]], environment: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """Runs senders at once; returns what each printed. Raises SendFailed where one fails, or takes too long."""
    deadline = time.monotonic() + SEND_TIMEOUT_S
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    senders = [subprocess.Popen(command, env=os.environ | environment, **pipes) for command in commands]
    try:
        said = [sender.communicate(timeout=max(0.1, deadline - time.monotonic())) for sender in senders]
    except subprocess.TimeoutExpired:
        raise SendFailed(f"no end within {SEND_TIMEOUT_S:.0f} s") from None
    finally:
        for sender in senders:
            if sender.poll() is None:
                sender.kill()
                sender.communicate()
    failed = [error for sender, (_, error) in zip(senders, said, strict=True) if sender.returncode]
    if failed:
        why = failed[0].strip().splitlines()[-1:] if len(senders) == 1 else [f"{len(failed)} of {len(senders)} senders"]
        raise SendFailed("".join(why)[:100] or f"exit code {senders[0].returncode}")
    return [output for output, _ in said]
