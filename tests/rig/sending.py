"""New series, as images and as files; sent to a gateway by stock pynetdicom, or left as dead letters."""

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.presentation import build_context

from bench.rig.http_server import Answer, http_server
from bench.rig.processes import gateway
from bench.rig.senders import pure_scu
from tests.rig.factories import STUDY, make_dataset

numbers = itertools.count(1)


def new_series(n: int) -> list[Dataset]:
    """Returns this many images of a series that no other test of this process has."""
    study = f"{STUDY}.{next(numbers)}"
    series = f"{study}.1"
    return [make_dataset(str(i + 1), study=study, series=series) for i in range(n)]


def write(folder: Path, datasets: list[Dataset]) -> list[str]:
    """Writes each as a file there, and returns their paths."""
    paths = []
    for ds in datasets:
        path = folder / f"{ds.SOPInstanceUID}.dcm"
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        pydicom.dcmwrite(path, ds, enforce_file_format=True)
        paths.append(str(path))
    return paths


@contextmanager
def association(port: int, datasets: list[Dataset], ae_title: str = "SCU") -> Iterator[Association]:
    """An open association for these data sets, which are made ready to be sent."""
    contexts = [build_context(datasets[0].SOPClassUID, ExplicitVRLittleEndian)]
    assoc = pure_scu(AE(ae_title).associate("127.0.0.1", port, contexts))
    assert assoc.is_established
    for ds in datasets:
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    yield assoc
    assoc.release()


def send(port: int, datasets: list[Dataset], ae_title: str = "SCU") -> None:
    """Send over one association; every image must be accepted."""
    with association(port, datasets, ae_title) as assoc:
        for ds in datasets:
            assert assoc.send_c_store(ds).Status == 0x0000


def send_in_parallel(port: int, parts: list[list[Dataset]]) -> None:
    """Sends each part over an association of its own, all at once."""
    problems: list[BaseException] = []

    def run(part: list[Dataset]) -> None:
        try:
            send(port, part)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=run, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


NOT_OURS = {"detail": [{"loc": ["body", "PatientID"], "msg": "not one of ours", "type": "foreign"}]}


def dead_letters(folder: Path, n: int) -> list[str]:
    """Leave that many dead letters in the journal of a stopped gateway; the series they are about."""
    series = [new_series(2) for _ in range(n)]
    refusal = Answer(422, json.dumps(NOT_OURS).encode())
    with http_server(lambda _: refusal) as url, gateway(folder, url, idle_timeout_s=0.2) as (process, port):
        for datasets in series:
            send(port, datasets)
            process.wait_for_event("report.rejected")
    return [datasets[0].SeriesInstanceUID for datasets in series]
