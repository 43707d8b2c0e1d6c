"""`make demo`: real studies in on the DICOM side, the stored rows out, compared with what was sent."""

import argparse
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pydicom
from pydicom.data import get_testdata_file
from pydicom.errors import InvalidDicomError
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.rig.peers import ORTHANC, ORTHANC_MISSING, Orthanc, free_port, orthanc
from bench.rig.processes import Process, ProcessFailed, gateway, server
from bench.rig.senders import sending

ASSOCIATIONS = 2
IDLE_TIMEOUT_S = 2.0
ROWS_TIMEOUT_S = 60.0
NEXT = "next: make play  # images that go on coming, and a page to watch them on"


@dataclass
class Sent:
    """What one series must look like in the database."""

    patient_id: str
    patient_name: str
    modality: str
    sop_instance_uids: set[str] = field(default_factory=set)


def main() -> int:
    """Run the demo; exit code 0 if the rows are exactly what was sent."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--pacs", choices=["", "orthanc"], default="", help="send through a real Orthanc")
    pacs = parser.parse_args().pacs
    console = Console()
    if pacs == "orthanc" and ORTHANC is None:
        console.print(f"demo: {ORTHANC_MISSING}; `make demo` runs without it")
        return 1
    try:
        with tempfile.TemporaryDirectory(prefix="series-gateway-") as folder:
            return _demo(console, Path(folder), pacs)
    except (ProcessFailed, RuntimeError, httpx.HTTPError) as error:
        console.print(f"demo: {error}", markup=False)
        return 1


def _demo(console: Console, folder: Path, pacs: str) -> int:
    files = studies()
    sent = expected(files)
    dicom_port = free_port()
    asks = {"pacs": f"ORTHANC@127.0.0.1:{dicom_port}"} if pacs else {}
    with (
        server(folder) as (_, url),
        gateway(folder, url, idle_timeout_s=IDLE_TIMEOUT_S, min_free_bytes=0, **asks) as (process, port),
        orthanc(folder, port, dicom_port=dicom_port) if pacs else nullcontext() as sender,
        Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        ) as progress,
    ):
        console.print(f"server {url}, gateway STORESCP@127.0.0.1:{port}, PACS {pacs or 'pynetdicom'}")
        images = progress.add_task("images sent", total=len(files))
        rows = progress.add_task("rows stored", total=len(sent))
        if sender:
            _send_through_orthanc(files, sender, lambda n: progress.advance(images, n))
        else:
            send_interleaved(files, port, lambda: progress.advance(images))
        stored = _judged_rows(process, url, len(sent), lambda n: progress.update(rows, completed=n))
    console.print(_table(stored))
    return _verdict(console, sent, stored)


def studies() -> list[Path]:
    """The images in pydicom's `dicomdirtests`: CR, CT and MR series of several patients."""
    root = get_testdata_file("dicomdirtests/DICOMDIR")
    if root is None:
        raise RuntimeError("pydicom's test images are missing: install pydicom again")
    return sorted(path for path in Path(str(root)).parent.rglob("*") if path.is_file() and _is_image(path))


def _is_image(path: Path) -> bool:
    try:
        return "SOPInstanceUID" in pydicom.dcmread(path, specific_tags=["SOPInstanceUID"], stop_before_pixels=True)
    except InvalidDicomError:
        return False


def expected(files: list[Path]) -> dict[str, Sent]:
    """Per Series Instance UID, what the files say."""
    sent: dict[str, Sent] = {}
    for path in files:
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        series = sent.setdefault(ds.SeriesInstanceUID, Sent(ds.PatientID, str(ds.PatientName), ds.Modality))
        series.sop_instance_uids.add(ds.SOPInstanceUID)
    return sent


def by_series(files: list[Path]) -> dict[str, list[Path]]:
    """The files of each Series Instance UID, in their order."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        found[pydicom.dcmread(path, stop_before_pixels=True).SeriesInstanceUID].append(path)
    return found


def send_interleaved(files: list[Path], port: int, sent_one: Callable[[], None]) -> None:
    """C-STORE the files over two associations at once, taking turns between the series."""
    turns = sorted(
        ((turn, path) for paths in by_series(files).values() for turn, path in enumerate(paths)),
        key=lambda pair: pair[0],
    )
    problems: list[str] = []
    threads = [
        threading.Thread(target=_send, args=([p for _, p in turns[n::ASSOCIATIONS]], port, sent_one, problems))
        for n in range(ASSOCIATIONS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise RuntimeError(problems[0])


def _send(files: list[Path], port: int, sent_one: Callable[[], None], problems: list[str]) -> None:
    try:
        for _ in sending([pydicom.dcmread(path) for path in files], port, "DEMO"):
            sent_one()
    except RuntimeError as error:
        problems.append(str(error))


def _send_through_orthanc(files: list[Path], pacs: Orthanc, sent: Callable[[int], None]) -> None:
    """Upload to Orthanc by its REST API, then its "store to modality", study by study."""
    by_study: dict[str, int] = defaultdict(int)
    for path in files:
        by_study[pacs.upload(path)] += 1
    for study, images in by_study.items():
        pacs.send([study])
        sent(images)


def _judged_rows(process: Process, url: str, series: int, judged: Callable[[int], None]) -> list[dict[str, Any]]:
    """The rows, once as many as there are series have a verdict; a part of a series has none."""
    while True:
        process.wait_for_event("report.delivered", ROWS_TIMEOUT_S)
        answer = httpx.get(f"{url}/series", params={"limit": 1000}, trust_env=False).raise_for_status()
        rows: list[dict[str, Any]] = answer.json()["series"]
        done = sum(row["Verdict"] is not None for row in rows)
        judged(done)
        if done >= series:
            return rows


def _table(stored: list[dict[str, Any]]) -> Table:
    table = Table("Series", "PatientID", "PatientName", "Modality", "NumInstances", "Verdict", box=SIMPLE)
    for row in sorted(stored, key=lambda row: (row["PatientID"], row["SeriesInstanceUID"])):
        columns = [str(row[str(column.header)]) for column in table.columns[1:]]
        table.add_row(f"…{row['SeriesInstanceUID'][-9:]}", *columns)
    return table


def _verdict(console: Console, sent: dict[str, Sent], stored: list[dict[str, Any]]) -> int:
    """Compare rows with what was sent, and say so and what to do next."""
    got = {r["SeriesInstanceUID"]: (r["PatientID"], r["PatientName"], r["Modality"], r["NumInstances"]) for r in stored}
    want = {u: (s.patient_id, s.patient_name, s.modality, len(s.sop_instance_uids)) for u, s in sent.items()}
    for uid in sorted(want.keys() | got.keys(), key=str):
        if want.get(str(uid)) != got.get(uid):
            console.print(f"demo: DIFFERENT {uid}: sent {want.get(str(uid))}, stored {got.get(uid)}", markup=False)
    if want != got:
        console.print("demo: FAILED, the rows are not what was sent")
        return 1
    images, verified = sum(count for *_, count in want.values()), sum(row["Verdict"] == "verified" for row in stored)
    proof = f"; verified by the PACS: {verified}" if verified else ""
    console.print(f"demo: stored {len(want)} series, {images} instances, equal to what was sent{proof}", soft_wrap=True)
    console.print(NEXT, style="bold", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
