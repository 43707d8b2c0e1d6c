"""Senders: stock pynetdicom, and DCMTK's storescu; those that try again remember what they were told 0x0000 for."""

import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from dicom.upper_layer import NEED_DATA, PAUSED, Acceptor, AssociateRequested, InstanceFinished

STORESCU = shutil.which("storescu")
AGAIN_AFTER_S = 0.1  # a sender that was refused or cut off tries again; so do PACS


def synthetic_series(n: int) -> list[Dataset]:
    """A CT series of `n` small images under new UIDs."""
    study, series = generate_uid(), generate_uid()
    return [synthetic_image(study, series, generate_uid()) for _ in range(n)]


def synthetic_image(study: str, series: str, sop: str) -> Dataset:
    """Return a small CT image with everything that a C-STORE needs."""
    ds = ct_image(study, series, sop)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def ct_image(study: str, series: str, sop: str) -> Dataset:
    """Return a small CT image without File Meta Information."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, sop
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
    ds.PatientID, ds.PatientName, ds.Modality = "P1", "Test^One", "CT"
    ds.Rows = ds.Columns = 8
    ds.BitsAllocated = 16
    ds.PixelData = bytes(128)
    ds["PixelData"].VR = "OW"
    return ds


def copies(paths: Iterable[Path]) -> list[Dataset]:
    """The images of these files as one series in a study of its own, numbered, all under new UIDs."""
    study, series = generate_uid(), generate_uid()
    made: list[Dataset] = []
    for number, path in enumerate(paths, 1):
        ds = pydicom.dcmread(path)
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = study, series, generate_uid()
        ds.pop("ImagesInAcquisition", None)  # of copies it would not be true
        ds.file_meta.MediaStorageSOPInstanceUID, ds.InstanceNumber = ds.SOPInstanceUID, number
        made.append(ds)
    return made


def sending(images: Sequence[Dataset], port: int, ae_title: str) -> Generator[Dataset, None, None]:
    """C-STORE over one association; yields each image once it is answered 0x0000. Raises RuntimeError if one is not."""
    kinds = {(ds.SOPClassUID, ds.file_meta.TransferSyntaxUID) for ds in images}
    contexts = [build_context(*kind) for kind in sorted(kinds)]
    assoc = pure_scu(AE(ae_title).associate("127.0.0.1", port, contexts, ae_title="STORESCP"))
    if not assoc.is_established:
        raise RuntimeError(f"{ae_title} got no association on port {port}")
    try:
        for ds in images:
            status = assoc.send_c_store(ds).get("Status")
            if status != 0x0000:
                said = "no answer" if status is None else f"status 0x{status:04X}"
                raise RuntimeError(f"{ae_title} got {said} for an image")
            yield ds
    finally:
        if assoc.is_established:
            assoc.release()


def pure_scu(assoc: Association) -> Association:
    """Mend a race of stock pynetdicom 3.0: its reactor thread can take an answer for a request, and drop it.

    It does where the answer comes within the millisecond in which `send_c_store` stops that thread. An SCU gets no
    requests, so its reactor need not look for any.
    """
    get_msg = assoc.dimse.get_msg
    assoc.dimse.get_msg = lambda block=False: get_msg(block) if block else (None, None)  # type: ignore[method-assign]
    return assoc


def associate_rq(
    contexts: Iterable[PresentationContext] | None = None, maximum_length: int = 16384, called: str = "STORESCP"
) -> bytes:
    """An A-ASSOCIATE-RQ as stock pynetdicom sends it; by default CT as context 1 and Verification as 3."""
    request = A_ASSOCIATE()
    request.application_context_name = "1.2.840.10008.3.1.1.1"
    request.calling_ae_title, request.called_ae_title = "SCU", called
    chosen = list(contexts or [build_context(CTImageStorage, ExplicitVRLittleEndian), build_context(Verification)])
    for n, context in enumerate(chosen):
        context.context_id = 2 * n + 1
    request.presentation_context_definition_list = chosen
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = maximum_length
    implementation.implementation_class_uid = "1.2.3"
    request.user_information = [length, implementation]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(request)
    return pdu.encode()


def feed(acceptor: Acceptor, stream: bytes, cut: int) -> None:
    """Do what a caller does that accepts everything, with the stream in two parts; may raise nothing."""
    for part in (stream[:cut], stream[cut:]):
        acceptor.receive_data(part)
        while (event := acceptor.next_event()) is not NEED_DATA and event is not PAUSED:
            if isinstance(event, AssociateRequested):
                acceptor.accept()
            elif isinstance(event, InstanceFinished):
                acceptor.respond(0)


class Sender:
    """Sends its images, in their order, until each was answered 0x0000 or the time is up."""

    def __init__(self, port: int, images: Sequence[Dataset], deadline: float, host: str = "127.0.0.1") -> None:
        self._port = port
        self._host = host
        self._images = images
        self._deadline = deadline
        """Monotonic seconds."""
        self.acknowledged: set[str] = set()
        """SOP Instance UIDs."""
        self.cut_short = 0
        """Rounds that did not end with 0x0000 for every image."""

    def run(self) -> None:
        """Returns when all are acknowledged, or at the deadline."""
        left = list(self._images)
        while left and time.monotonic() < self._deadline:
            done = list(self.send(left))
            self.acknowledged.update(left[n].SOPInstanceUID for n in done)
            left = [ds for n, ds in enumerate(left) if n not in set(done)]
            self.cut_short += bool(left)
            if left:
                time.sleep(random.uniform(0, 2 * AGAIN_AFTER_S))

    def send(self, images: list[Dataset]) -> Iterator[int]:
        """Send over one association; yield the places of images as they are acknowledged."""
        raise NotImplementedError


class PynetdicomSender(Sender):
    """Stock pynetdicom as SCU."""

    ae_title = "FAULTS"

    def send(self, images: list[Dataset]) -> Iterator[int]:
        ae = AE(self.ae_title)
        ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 6
        contexts = [build_context(CTImageStorage, ExplicitVRLittleEndian)]
        assoc = pure_scu(ae.associate(self._host, self._port, contexts))
        for n, ds in enumerate(images):
            if not assoc.is_established:
                return
            try:
                status = assoc.send_c_store(ds)
            except (RuntimeError, ValueError, ConnectionError):  # the association ended meanwhile
                return
            if status.get("Status") == 0x0000:
                yield n
            elif "Status" in status:
                time.sleep(AGAIN_AFTER_S)
        if assoc.is_established:
            assoc.release()


class PacedSender(PynetdicomSender):
    """Stock pynetdicom that pauses between images, as a modality does: faults meet images on their way."""

    def __init__(  # noqa: PLR0913 - a sender's, and how it is paced
        self,
        port: int,
        images: Sequence[Dataset],
        deadline: float,
        pause_s: float,
        seed: float,
        *,
        host: str = "127.0.0.1",
        told: Callable[[], None] = lambda: None,
    ) -> None:
        """`pause_s` is the mean; `told` is called for each image that was acknowledged."""
        super().__init__(port, images, deadline, host)
        self._pause_s = pause_s
        self._rng = random.Random(seed)
        self._told = told

    def send(self, images: list[Dataset]) -> Iterator[int]:
        for n in super().send(images):
            self._told()
            yield n
            time.sleep(self._rng.uniform(0, 2 * self._pause_s))


class StorescuSender(Sender):
    """DCMTK's storescu, whose verbose output tells the answer to each file."""

    def __init__(self, port: int, images: Sequence[Dataset], deadline: float, folder: Path) -> None:
        super().__init__(port, images, deadline)
        self._paths = {ds.SOPInstanceUID: folder / f"{ds.SOPInstanceUID}.dcm" for ds in images}
        for ds in images:
            pydicom.dcmwrite(self._paths[ds.SOPInstanceUID], ds, enforce_file_format=True)

    def send(self, images: list[Dataset]) -> Iterator[int]:
        files = [str(self._paths[ds.SOPInstanceUID]) for ds in images]
        command = [
            str(STORESCU),
            "-v",
            "-nh",
            "-td",
            "6",
            "-ta",
            "6",
            "-to",
            "6",
            "-aec",
            "STORESCP",
            "127.0.0.1",
            str(self._port),
            *files,
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        file = None
        for line in done.stdout.splitlines():
            if found := re.search(r"Sending file: (\S+)", line):
                file = found[1]
            elif "Received Store Response (Success)" in line and file is not None:
                yield files.index(file)
                file = None
