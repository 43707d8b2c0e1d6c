"""How soon is a series verified? A real Orthanc sends, is asked, and is asked again; `python -m bench.verified`.

Ends with the median from the last image's arrival to the row being readable, of series of 200 images: of the first,
after which the PACS is trusted, and of 20 more. Before that stands one series of which Orthanc holds the last 20 images
back for 10 s.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import track

from bench.rig.peers import Orthanc, free_port, orthanc
from bench.rig.processes import gateway, server
from bench.rig.senders import synthetic_series
from gateway.open_series import TRUSTED_AFTER

SERIES, IMAGES = 20, 200
HELD_BACK, HELD_BACK_S = 20, 10.0


@contextmanager
def trio(folder: Path, **settings: Any) -> Iterator[tuple[Orthanc, httpx.Client]]:
    """A server, a gateway that may ask, and the Orthanc it asks."""
    port = free_port()
    with (
        server(folder) as (_, url),
        gateway(folder, url, pacs=f"ORTHANC@127.0.0.1:{port}", min_free_bytes=0, **settings) as (_, scp_port),
        orthanc(folder, scp_port, dicom_port=port) as pacs,
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        yield pacs, http


def upload(pacs: Orthanc, images: int) -> tuple[str, list[str]]:
    """A new series in Orthanc: its Series Instance UID, and Orthanc's ids of its images."""
    datasets = synthetic_series(images)
    return str(datasets[0].SeriesInstanceUID), [pacs.upload_dataset(ds) for ds in datasets]


def wait_for_row(http: httpx.Client, uid: str, timeout_s: float = 120.0, **wanted: Any) -> dict[str, Any]:
    """The row of a series, once it holds what is wanted."""
    deadline = time.monotonic() + timeout_s
    record: dict[str, Any] = {}
    while time.monotonic() < deadline:
        response = http.get(f"/series/{uid}")
        if response.status_code == 200:
            record = response.json()
            if wanted.items() <= record.items():
                return record
        time.sleep(0.01)
    raise RuntimeError(f"{wanted} did not come within {timeout_s:g} s: {record}")


def main() -> int:
    with tempfile.TemporaryDirectory() as name, trio(Path(name)) as (pacs, http):
        waits = []
        for _ in track(range(TRUSTED_AFTER + SERIES), "series", console=Console(stderr=True), transient=True):
            uid, ids = upload(pacs, IMAGES)
            pacs.send(ids)
            record = wait_for_row(http, uid, NumInstances=IMAGES, Verdict="verified")
            waits.append((datetime.now(UTC) - datetime.fromisoformat(record["LastReceivedAt"])).total_seconds())
        uid, ids = upload(pacs, IMAGES)
        pacs.send(ids[:-HELD_BACK])
        time.sleep(HELD_BACK_S)
        early = http.get(f"/series/{uid}").json().get("Verdict")
        pacs.send(ids[-HELD_BACK:])
        late = wait_for_row(http, uid, NumInstances=IMAGES)
    print(f"held back for {HELD_BACK_S:g} s: before {early}, after {late['Verdict']}")
    for name, some in (("not trusted yet", waits[:TRUSTED_AFTER]), ("trusted", waits[TRUSTED_AFTER:])):
        print(f"verified, {name}: median={statistics.median(some):.2f} s worst={max(some):.2f} s of {len(some)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
