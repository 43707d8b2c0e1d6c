"""Real peers: Debian's Orthanc and DCMTK, where they are installed."""

import contextlib
import json
import os
import random
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import MappingProxyType

import httpx
from pydicom.dataset import Dataset

from bench.rig.processes import Process, running

ORTHANC = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/bin:/usr/local/sbin")
ORTHANC_MISSING = "Orthanc is not installed (Debian: apt-get install orthanc)"
ORTHANC_DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
ORTHANC_DICOMWEB_MISSING = "Orthanc's DICOMweb is not installed (Debian: apt-get install orthanc-dicomweb)"
DCMTK_MISSING = "DCMTK is not installed (Debian: apt-get install dcmtk)"
CHROMIUM = shutil.which("chromium")
CHROMIUM_MISSING = "Chromium is not installed (Debian: apt-get install chromium)"
CHROMIUM_ARGUMENTS = ["--no-sandbox"] if os.geteuid() == 0 else []  # which it refuses to be without as root


class Orthanc:
    """A running Orthanc that knows the gateway as the modality GATEWAY."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def upload(self, path: Path) -> str:
        """Upload one DICOM file by the REST API; returns Orthanc's id of its study."""
        return str(self._call("/instances", content=path.read_bytes())["ParentStudy"])

    def upload_image(self, image: bytes) -> str:
        """Upload one encoded DICOM file; returns Orthanc's id of the instance."""
        return str(self._call("/instances", content=image)["ID"])

    def upload_dataset(self, ds: Dataset) -> str:
        """Upload one image with its File Meta Information; returns Orthanc's id of the instance."""
        file = BytesIO()
        ds.save_as(file, enforce_file_format=True)
        return self.upload_image(file.getvalue())

    def know(self, name: str, ae_title: str, port: int) -> None:
        """Add a modality to send to."""
        self._http.put(f"/modalities/{name}", json=[ae_title, "127.0.0.1", port]).raise_for_status()

    def send(self, resources: list[str], to: str = "GATEWAY") -> None:
        """`store to modality`: C-STORE all images of the resources to the gateway, and wait for it."""
        result = self._call(f"/modalities/{to}/store", json={"Resources": resources, "Synchronous": True})
        if result["FailedInstancesCount"]:
            raise RuntimeError(f"Orthanc could not send {result['FailedInstancesCount']} instances")

    def _call(self, path: str, **body: object) -> dict[str, object]:
        response = self._http.post(path, **body)  # type: ignore[arg-type]
        response.raise_for_status()
        answer: dict[str, object] = response.json()
        return answer


@contextmanager
def orthanc(
    folder: Path,
    gateway_port: int,
    ae_title: str = "STORESCP",
    dicom_port: int | None = None,
    configuration: Mapping[str, object] = MappingProxyType({}),
) -> Iterator[Orthanc]:
    """Debian's Orthanc as a process of its own, with its storage in `folder`; its AE title is ORTHANC."""
    http_port = free_port()
    modalities = {"GATEWAY": [ae_title, "127.0.0.1", gateway_port]}
    with (
        orthanc_process(folder, dicom_port or free_port(), http_port, modalities, configuration),
        httpx.Client(base_url=f"http://127.0.0.1:{http_port}", timeout=60, trust_env=False) as http,
    ):
        yield Orthanc(http)


@contextmanager
def orthanc_process(
    folder: Path,
    dicom_port: int,
    http_port: int,
    modalities: dict[str, list[object]],
    configuration: Mapping[str, object] = MappingProxyType({}),
    /,
    **environment: str,
) -> Iterator[Process]:
    """Debian's Orthanc, once it has started."""
    if ORTHANC is None:
        raise FileNotFoundError(ORTHANC_MISSING)
    whole = {
        "Name": "demo PACS",
        "StorageDirectory": str(folder / "orthanc"),
        "IndexDirectory": str(folder / "orthanc"),
        "HttpPort": http_port,
        "DicomPort": dicom_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomModalities": modalities,
        "DicomAlwaysAllowStore": True,
        "Plugins": [],
        **configuration,
    }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(whole))
    with running(Process("orthanc", [ORTHANC, str(path)], folder, **environment)) as process:
        process.wait_for(lambda line: True if "Orthanc has started" in line else None)
        yield process


@contextmanager
def dcmqrscp(folder: Path) -> Iterator[int]:
    """DCMTK's archive, empty: its port. It answers neither the count of a series nor the SOP Class of its images."""
    port = free_port()
    (folder / "images").mkdir()
    path = folder / "dcmqrscp.cfg"
    path.write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\nHostTable BEGIN\nHostTable END\n"
        "VendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nQRSCP {folder / 'images'} RW (9, 1024mb) ANY\nAETable END\n"
    )
    with running(Process("dcmqrscp", ["dcmqrscp", "-v", "-c", str(path)], folder)):
        wait_for_port(port)
        yield port


def wait_for_port(port: int, timeout_s: float = 60.0) -> None:
    """Until somebody listens."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), 1):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def free_port() -> int:
    """A port to listen on, below those that systems give to whoever asks for any: nobody gets it in the meantime."""
    while True:
        with (
            contextlib.suppress(OSError),
            socket.create_server(("127.0.0.1", random.randrange(20_000, 32_000))) as sock,
        ):
            return int(sock.getsockname()[1])
