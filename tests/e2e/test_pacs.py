"""Real PACS are asked and give: Orthanc, in clear text and over TLS, with compressed images; DCMTK's dcmqrscp."""

import asyncio
import subprocess
from pathlib import Path
from typing import Any

import pydicom
import pytest
import trustme
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from bench.rig.peers import Orthanc, dcmqrscp, free_port, orthanc, wait_for_port
from bench.rig.processes import Process, running
from bench.rig.senders import synthetic_series
from common.settings import GatewaySettings
from dicom.scu import PacsUnavailable
from gateway.cli.reach import dicom
from gateway.pacs import Pacs
from gateway.questions import Answer, Question
from models import Instance, SeriesKey

COMPRESSED = (
    "SC_rgb_jpeg_dcmtk.dcm",
    "JPEG-lossy.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "JPEG2000.dcm",
    "GDCMJ2K_TextGBR.dcm",
    "JPEGLSNearLossless_08.dcm",
    "SC_rgb_rle_2frame.dcm",
)


def one_series(names: tuple[str, ...]) -> list[Dataset]:
    """These images of pydicom's, as if they were one series of Secondary Capture."""
    study, series = generate_uid(), generate_uid()
    images: list[Dataset] = []
    for name in names:
        ds = pydicom.dcmread(str(get_testdata_file(name)))
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = study, series, generate_uid()
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.PatientID = "compressed"
        images.append(ds)
    return images


def upload(pacs: Orthanc, images: list[Dataset]) -> None:
    for ds in images:
        pacs.upload_dataset(ds)


async def ask(images: list[Dataset], **settings: Any) -> tuple[Answer, list[Instance]]:
    """What comes where the first image is here."""
    fetched: list[Instance] = []

    async def keep(instance: Instance) -> int:
        fetched.append(instance)
        return 0x0000

    async def known(_: SeriesKey) -> list[str]:
        return []

    gateway = GatewaySettings(fetch_missing="get", **settings)
    (pacs,) = gateway.pacs_by_ae_title
    first = images[0]
    key = SeriesKey(str(first.StudyInstanceUID), str(first.SeriesInstanceUID), None)
    here, classes = frozenset([str(first.SOPInstanceUID)]), frozenset([str(first.SOPClassUID)])
    question = Question(key, pacs, here, fetch=True, classes=classes)
    return await Pacs(gateway, known, keep).ask(question), fetched


@pytest.mark.peer("orthanc")
async def test_orthanc_gives_compressed_images_as_they_are(tmp_path: Path) -> None:
    images = one_series(COMPRESSED)
    port = free_port()
    with orthanc(tmp_path, free_port(), dicom_port=port) as pacs:
        upload(pacs, images)
        answer, fetched = await ask(images, pacs=f"ORTHANC@127.0.0.1:{port}")
    assert (answer.count, answer.fetched, answer.problem) == (len(images), len(images) - 1, None)
    sent = {str(ds.SOPInstanceUID): str(ds.file_meta.TransferSyntaxUID) for ds in images[1:]}
    assert {instance.sop_instance_uid: instance.transfer_syntax_uid for instance in fetched} == sent


@pytest.mark.peer("orthanc")
async def test_orthanc_counts_the_study_beside_the_series_and_by_order(tmp_path: Path) -> None:
    images, others, port = synthetic_series(3), synthetic_series(2), free_port()
    for ds in others:
        ds.StudyInstanceUID = images[0].StudyInstanceUID
    study = str(images[0].StudyInstanceUID)
    with orthanc(tmp_path, free_port(), dicom_port=port) as orthanc_:
        upload(orthanc_, images)
        settings = GatewaySettings(pacs=f"ORTHANC@127.0.0.1:{port}")
        pacs = Pacs(settings, nothing_stored, nothing_fetched)
        key = SeriesKey(study, str(images[0].SeriesInstanceUID), None)
        question = Question(key, "ORTHANC", frozenset(str(ds.SOPInstanceUID) for ds in images), fetch=False)
        first = await pacs.ask(question)
        upload(orthanc_, others)
        second, ordered = await pacs.ask(question), await pacs.count_study("ORTHANC", study)
        with pytest.raises(PacsUnavailable, match="does not know the study"):
            await pacs.count_study("ORTHANC", generate_uid())
    assert (first.confirmed, first.problem, second.confirmed, second.problem) == (True, None, True, None)
    counts = [one and (one.Series, one.Instances) for one in (first.study, second.study, ordered)]
    assert counts == [(1, 3), (2, 5), (2, 5)]


async def nothing_stored(_: SeriesKey) -> list[str]:
    return []


async def nothing_fetched(_: Instance) -> int:
    raise AssertionError("fetched")


def certificates(folder: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Orthanc's configuration, whose certificate names another host, and our settings."""
    theirs, ours = trustme.CA(), trustme.CA()
    certificate = theirs.issue_cert("pacs.example")
    certificate.cert_chain_pems[0].write_to_path(str(folder / "pacs.pem"))
    certificate.private_key_pem.write_to_path(str(folder / "pacs.key"))
    theirs.cert_pem.write_to_path(str(folder / "pacs-ca.pem"))
    ours.cert_pem.write_to_path(str(folder / "our-ca.pem"))
    ours.issue_cert("gateway").private_key_and_cert_chain_pem.write_to_path(str(folder / "ours.pem"))
    configuration = {
        "DicomTlsCertificate": str(folder / "pacs.pem"),
        "DicomTlsPrivateKey": str(folder / "pacs.key"),
        "DicomTlsTrustedCertificates": str(folder / "our-ca.pem"),
    }
    return configuration, {"pacs_ca": folder / "pacs-ca.pem", "tls_cert": folder / "ours.pem"}


@pytest.mark.slow
@pytest.mark.peer("orthanc")
@pytest.mark.parametrize("wants_ours", [False, True])
async def test_orthanc_is_asked_and_gives_over_tls(tmp_path: Path, wants_ours: bool) -> None:
    files, settings = certificates(tmp_path)
    tls = {"DicomTlsEnabled": True, "DicomTlsRemoteCertificateRequired": wants_ours, **files}
    images, port = synthetic_series(3), free_port()
    at: dict[str, Any] = {"pacs": f"ORTHANC@tls://127.0.0.1:{port}", "pacs_ca": settings["pacs_ca"]}
    ours = at | {"tls_cert": settings["tls_cert"]} if wants_ours else at
    with orthanc(tmp_path, free_port(), dicom_port=port, configuration=tls) as pacs:
        upload(pacs, images)
        answer, fetched = await ask(images, **ours)
        findings = dicom("PACS", gateway := GatewaySettings(**ours), gateway.pacs_by_ae_title["ORTHANC"])
        without, _ = await ask(images, **at)
    assert (answer.count, answer.fetched, answer.problem, len(fetched)) == (3, 2, None, 2)
    assert [finding.state for finding in findings] == ["ok"] * 3  # C-ECHO, C-FIND, counts of a study
    if wants_ours:
        assert "(GATEWAY_TLS_CERT)" in str(without.problem)


@pytest.mark.peer("dcmtk")
async def test_dcmqrscp_gives_although_it_says_no_classes(tmp_path: Path) -> None:
    images = synthetic_series(3)
    for n, ds in enumerate(images, 1):
        ds.StudyDate = ds.StudyTime = ds.StudyID = ds.AccessionNumber = ""
        ds.SeriesNumber, ds.InstanceNumber = "1", str(n)
    files = [tmp_path / f"{n}.dcm" for n in range(len(images))]
    for ds, file in zip(images, files, strict=True):
        ds.save_as(file, enforce_file_format=True)
    with dcmqrscp(tmp_path) as port:
        send = ["storescu", "-aec", "QRSCP", "127.0.0.1", str(port), *map(str, files)]
        await asyncio.to_thread(subprocess.run, send, check=True)
        answer, fetched = await ask(images, pacs=f"QRSCP@127.0.0.1:{port}")
    assert (answer.count, answer.fetched, answer.problem) == (3, 2, None)
    assert answer.study is None  # it does not count studies, and that costs nothing
    assert {instance.sop_instance_uid for instance in fetched} == {str(ds.SOPInstanceUID) for ds in images[1:]}


@pytest.mark.peer("dcmtk")
def test_dcmtk_answers_over_tls(tmp_path: Path) -> None:
    _, settings = certificates(tmp_path)
    port = free_port()
    command = ["storescp", "+tls", str(tmp_path / "pacs.key"), str(tmp_path / "pacs.pem"), "--ignore"]
    command += ["+cf", str(tmp_path / "our-ca.pem"), "-aet", "PACS1", str(port)]
    gateway = GatewaySettings(pacs=f"PACS1@tls://127.0.0.1:{port}", **settings)
    with running(Process("storescp", command, tmp_path)):
        wait_for_port(port)
        echoed, found = dicom("PACS", gateway, gateway.pacs_by_ae_title["PACS1"])
    assert (echoed.state, echoed.detail) == ("ok", f"PACS1@tls://127.0.0.1:{port} answers C-ECHO")
    assert "does not offer Study Root C-FIND" in found.detail
