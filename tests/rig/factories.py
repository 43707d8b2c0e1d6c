"""Synthetic instances and data sets. No patient ever had these names."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
from pydicom.dataset import Dataset
from pydicom.filebase import DicomIO
from pydicom.filewriter import write_dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from bench.rig.senders import ct_image
from common.threads import Worker
from common.version import version
from gateway.collector import SeriesCollector
from gateway.idle import IdlePolicy
from gateway.journal import Bounds, Journal
from gateway.journal_file import connect
from models import MAX_SLOTS, GatewayState, Instance, SeriesRecord, SeriesReport

STUDY = "1.2.826.0.1.3680043.10.1"
SERIES = f"{STUDY}.1"
RECEIVED_AT = datetime(2026, 1, 1, tzinfo=UTC)


def make_instance(
    sop: str = "1", *, study: str = STUDY, series: str = SERIES, patient_id: str | None = "P1"
) -> Instance:
    """An Instance as the SCP would make it; `sop` is the last component of its UID."""
    attributes: dict[str, tuple[str, ...]] = {"Modality": ("CT",), "PatientName": ("Test^One",)}
    if patient_id is not None:
        attributes["PatientID"] = (patient_id,)
    return Instance(
        study_instance_uid=study,
        series_instance_uid=series,
        sop_instance_uid=f"{series}.{sop}",
        sop_class_uid=CTImageStorage,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        calling_ae_title="TEST",
        peer_address="127.0.0.1",
        received_at=RECEIVED_AT,
        attributes=attributes,
    )


def make_report(*sops: str, series: str = SERIES, study: str = STUDY, patient_id: str | None = "P1") -> SeriesReport:
    """A gateway's report of these instances."""
    return SeriesReport(
        SeriesInstanceUID=series,
        PatientID=patient_id,
        PatientName="Test^One",
        StudyInstanceUID=study,
        NumInstances=len(sops),
        SOPInstanceUIDs=[f"{series}.{sop}" for sop in sops],
        Attributes={"Modality": ["CT"]},
        Verdict="idle",
        FirstReceivedAt=RECEIVED_AT,
        LastReceivedAt=RECEIVED_AT,
    )


def make_state(gateway_id: str, **change: Any) -> dict[str, Any]:
    """A gateway's heartbeat, as it travels."""
    now = datetime.now(UTC)
    state = GatewayState(
        GatewayID=gateway_id,
        At=now,
        StartedAt=now - timedelta(hours=1),
        AETitle="STORESCP",
        Address="127.0.0.1:6667",
        Associations=1,
        Refused=0,
        Instances=0,
        Bytes=0,
        Received=[0] * MAX_SLOTS,
        InboxSize=1000,
        OpenSeries=0,
        OpenInstances=0,
        UndeliveredReports=0,
        DeadLetters=0,
        Version=version(),
    )
    return state.model_dump(mode="json") | change


def arriving(series: str, instances: int, **change: Any) -> dict[str, Any]:
    """An open series of a heartbeat."""
    now = datetime.now(UTC).isoformat()
    times = {"FirstReceivedAt": now, "LastReceivedAt": now}
    return {"SeriesInstanceUID": series, "Source": "TEST CT", "Revision": 1, "Instances": instances} | times | change


def make_dataset(sop: str = "1", *, study: str = STUDY, series: str = SERIES) -> Dataset:
    """A small CT data set with everything a C-STORE needs, for the explicit VR little endian syntax."""
    return ct_image(study, series, f"{series}.{sop}")


def encode(ds: Dataset, *, implicit: bool = False, little_endian: bool = True) -> bytes:
    """The data set's bytes as they travel in P-DATA, without File Meta Information."""
    buffer = BytesIO()
    fp = DicomIO(buffer)
    fp.is_implicit_VR = implicit
    fp.is_little_endian = little_endian
    write_dataset(fp, ds)
    return buffer.getvalue()


UNBOUNDED = Bounds(max_instances=10**9, max_bytes=10**12, min_free_bytes=0)


class Inline(Worker):
    """Runs at once, in the caller: for virtual time, which does not wait for threads."""

    def __init__(self) -> None:
        super().__init__("inline")

    def run(self, do: Callable[..., Any], *args: Any, **kwargs: Any) -> "asyncio.Future[Any]":
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            future.set_result(do(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class InMemory(Journal):
    """A journal whose rows a test may look at and spoil."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(Path("/tmp"), connection, UNBOUNDED, Inline())  # noqa: S108 - only its free space is looked at
        self.connection = connection


@contextmanager
def memory_journal() -> Iterator[InMemory]:
    """A journal that dies with the test."""
    with closing(connect(Path(":memory:"))) as connection:
        yield InMemory(connection)


def collector_of(policy: IdlePolicy, *, max_open_s: float = 1e9, **options: Any) -> SeriesCollector:
    """A collector in virtual time, which begins at RECEIVED_AT."""
    return SeriesCollector(
        policy=policy,
        max_open_s=max_open_s,
        gateway_id="test",
        wall_clock=lambda at: RECEIVED_AT + timedelta(seconds=at),
        **options,
    )


def stored(report: SeriesReport) -> httpx.Response:
    """Returns the server's answer to a report that it has stored."""
    record = SeriesRecord(
        **report.model_dump(include={"SeriesInstanceUID", "PatientID", "PatientName", "StudyInstanceUID", "Verdict"}),
        NumInstances=report.NumInstances,
        Modality="CT",
        Attributes={},
        Undecoded={},
        Revision=1,
        ExpectedInstances=None,
        FirstReceivedAt=None,
        LastReceivedAt=None,
        UpdatedAt=RECEIVED_AT,
        Conflicts=0,
    )
    return httpx.Response(200, content=record.model_dump_json())
