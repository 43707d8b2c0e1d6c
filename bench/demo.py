"""`make demo`: real studies in on the DICOM side, the stored rows out, compared with what was sent."""

import argparse
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pydicom
from pydicom.data import get_testdata_file
from pydicom.errors import InvalidDicomError
from pynetdicom import AE
from pynetdicom.presentation import build_context
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.peers import ORTHANC, ORTHANC_MISSING, orthanc
from bench.processes import Process, ProcessFailed, gateway, server
from bench.senders import pure_scu

ASSOCIATIONS = 2
IDLE_TIMEOUT_S = 2.0
ROWS_TIMEOUT_S = 60.0


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
    with (
        server(folder) as (_, url),
        gateway(folder, url, idle_timeout_s=IDLE_TIMEOUT_S) as (process, port),
        Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        ) as progress,
    ):
        console.print(f"server {url}, gateway STORESCP@127.0.0.1:{port}, PACS {pacs or 'pynetdicom'}")
        bar = progress.add_task("images sent", total=len(files))
        if pacs == "orthanc":
            _send_through_orthanc(files, folder, port, lambda n: progress.advance(bar, n))
        else:
            send_interleaved(files, port, lambda: progress.advance(bar))
        rows = progress.add_task("rows stored", total=len(sent))
        _wait_for_rows(process, len(sent), lambda: progress.advance(rows))
        stored = httpx.get(f"{url}/series", params={"limit": 1000}, trust_env=False).json()["series"]
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


def send_interleaved(files: list[Path], port: int, sent_one: Callable[[], None]) -> None:
    """C-STORE the files over two associations at once, taking turns between the series."""
    by_series: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        by_series[pydicom.dcmread(path, stop_before_pixels=True).SeriesInstanceUID].append(path)
    turns = sorted(
        ((turn, path) for paths in by_series.values() for turn, path in enumerate(paths)), key=lambda pair: pair[0]
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
        raise RuntimeError(f"{len(problems)} images were not accepted, the first: {problems[0]}")


def _send(files: list[Path], port: int, sent_one: Callable[[], None], problems: list[str]) -> None:
    datasets = [pydicom.dcmread(path) for path in files]
    kinds = {(ds.SOPClassUID, ds.file_meta.TransferSyntaxUID) for ds in datasets}
    contexts = [build_context(*kind) for kind in sorted(kinds)]
    assoc = pure_scu(AE("DEMO").associate("127.0.0.1", port, contexts, ae_title="STORESCP"))
    if not assoc.is_established:
        problems.append("no association")
        return
    for path, ds in zip(files, datasets, strict=True):
        status = assoc.send_c_store(ds)
        if status.get("Status") == 0x0000:
            sent_one()
        else:
            problems.append(f"{path.name}: status {status.get('Status', 'none')}")
    assoc.release()


def _send_through_orthanc(files: list[Path], folder: Path, port: int, sent: Callable[[int], None]) -> None:
    """Upload to Orthanc by its REST API, then its "store to modality", study by study."""
    with orthanc(folder, port) as pacs:
        by_study: dict[str, int] = defaultdict(int)
        for path in files:
            by_study[pacs.upload(path)] += 1
        for study, images in by_study.items():
            pacs.send([study])
            sent(images)


def _wait_for_rows(process: Process, series: int, one_stored: Callable[[], None]) -> None:
    seen: set[str] = set()
    while len(seen) < series:
        uid = process.wait_for_event("report.delivered", ROWS_TIMEOUT_S)["series_instance_uid"]
        if uid not in seen:
            seen.add(uid)
            one_stored()


def _table(stored: list[dict[str, str]]) -> Table:
    table = Table("Series", "PatientID", "PatientName", "Modality", "NumInstances", "Verdict", box=SIMPLE)
    for row in sorted(stored, key=lambda row: (row["PatientID"], row["SeriesInstanceUID"])):
        columns = [str(row[str(column.header)]) for column in table.columns[1:]]
        table.add_row(f"…{row['SeriesInstanceUID'][-11:]}", *columns)
    return table


def _verdict(console: Console, sent: dict[str, Sent], stored: list[dict[str, object]]) -> int:
    """Compare rows with what was sent and say so."""
    got = {r["SeriesInstanceUID"]: (r["PatientID"], r["PatientName"], r["Modality"], r["NumInstances"]) for r in stored}
    want = {u: (s.patient_id, s.patient_name, s.modality, len(s.sop_instance_uids)) for u, s in sent.items()}
    for uid in sorted(want.keys() | got.keys(), key=str):
        if want.get(str(uid)) != got.get(uid):
            console.print(f"demo: DIFFERENT {uid}: sent {want.get(str(uid))}, stored {got.get(uid)}", markup=False)
    if want != got:
        console.print("demo: FAILED, the rows are not what was sent")
        return 1
    console.print(f"demo: stored {len(want)} series, {sum(len(s.sop_instance_uids) for s in sent.values())} instances")
    return 0


if __name__ == "__main__":
    sys.exit(main())
