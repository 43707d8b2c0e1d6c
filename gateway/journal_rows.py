"""The journal's rows, read so that one that holds nonsense costs its own series at most. Pure: no I/O, no clock.

SQLite lets a column hold any type, and any bytes as text.
"""

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from sqlite3 import Row
from typing import Any

from dicom.header import INSTANCE_KEYWORDS
from models import MAX_DOUBT, DeadReport, Instance, SeriesKey, SeriesReport

KEY = "study_instance_uid, series_instance_uid, patient_id"
WAITING_COLUMNS = (
    f"id, {KEY}, revision, verdict, instances, attempts, next_attempt_at, reported_at, changed_at, traceparent"
)
Attributes = dict[str, tuple[str, ...]]
MAX_COUNT = 2**31 - 1  # models.Count
MAX_REVISION = 2**31 - 2  # the next one has to fit into SeriesReport.Revision
MAX_LINE = 256  # models.Line
MAX_FIELDS = 10  # that one reason names
TRACEPARENT = re.compile(r"[0-9a-f]{1,2}(-[0-9a-f]{1,32}){3}")


@dataclass(frozen=True, slots=True)
class Waiting:
    """A report to deliver: its place in line, not its content."""

    id: int
    key: SeriesKey
    revision: int
    instances: int
    attempts: int
    next_attempt_at: float
    """Wall-clock seconds since 1970; so is `reported_at`."""
    reported_at: float
    traceparent: str | None = None
    part: bool = False
    """Its instances are in the log still."""

    @property
    def moved(self) -> int:
        """How many instances it took out of the log."""
        return 0 if self.part else self.instances


def decode(stored: bytes) -> str:
    """What SQLite holds as text: lone surrogates as they are, so that what is read finds its row again."""
    try:
        return stored.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return stored.decode("utf-8", "replace")


def storable(value: Any) -> Any:
    """Text that SQLite takes: it has no lone surrogates."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def text(value: Any) -> str:
    """A text column."""
    if isinstance(value, bytes):
        return decode(value)
    return "" if value is None else str(value)


def count(value: Any, most: int = MAX_COUNT, least: int = 0) -> int:
    """A column of whole numbers, within its bounds."""
    return min(max(value, least), most) if isinstance(value, int) else least


def seconds(value: Any) -> float:
    """A column of seconds; 0 where it holds none."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0


def point(value: Any, otherwise: datetime) -> datetime:
    """A column of seconds since 1970, as a time."""
    try:
        return datetime.fromtimestamp(value, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        return otherwise


def traceparent(value: Any) -> str | None:
    """A column of W3C Trace Context."""
    return value if isinstance(value, str) and TRACEPARENT.fullmatch(value) else None


def key(row: Row) -> SeriesKey:
    """The identity of a row's series."""
    return SeriesKey(text(row["study_instance_uid"]), text(row["series_instance_uid"]), text(row["patient_id"]) or None)


def waiting(row: Row) -> Waiting:
    """Return a report to deliver."""
    return Waiting(
        id=row["id"],
        key=key(row),
        revision=count(row["revision"], MAX_REVISION),
        instances=count(row["instances"]),
        attempts=count(row["attempts"]),
        next_attempt_at=seconds(row["next_attempt_at"]),
        reported_at=seconds(row["reported_at"]) or seconds(row["changed_at"]),
        traceparent=traceparent(row["traceparent"]),
        part=row["verdict"] is None,
    )


def dead_report(row: Row, now: datetime) -> DeadReport | None:
    """What a heartbeat says of a dead letter; None where it cannot be said."""
    try:
        return DeadReport(
            SeriesInstanceUID=text(row["series_instance_uid"]),
            Instances=count(row["instances"]),
            Answer=storable(text(row["answer"]))[:MAX_LINE],
            At=point(row["changed_at"], now),
            Id=row["id"],
        )
    except ValueError:
        return None


# --- what is open ----------------------------------------------------------------------------------------------


def pack(attributes: Mapping[str, tuple[str, ...]], undecoded: Mapping[str, bytes], doubtful: Sequence[str]) -> str:
    """The content of an open series."""
    return json.dumps([attributes, {k: base64.b64encode(v).decode() for k, v in undecoded.items()}, doubtful])


def unpack(content: Any) -> tuple[Attributes, dict[str, bytes], tuple[str, ...]]:
    """The series' attributes; those that each instance has of its own stand beside it. Raises ValueError or others.

    An earlier version kept no doubts.
    """
    *described, doubtful = [*json.loads(content), []][:3]
    attributes, undecoded = ({k: v for k, v in d.items() if k not in INSTANCE_KEYWORDS} for d in described)
    if not all(isinstance(v, list) and all(isinstance(one, str) for one in v) for v in attributes.values()):
        raise TypeError
    as_sent = {k: base64.b64decode(v) for k, v in undecoded.items()}
    return (
        {k: tuple(v) for k, v in attributes.items()},
        as_sent,
        tuple(text[:MAX_DOUBT] for text in doubtful if isinstance(text, str)),
    )


def of_patient(attributes: Attributes, patient_id: str | None) -> Attributes:
    """The attributes, with that patient's id and no other: it is what the series is collected under."""
    if "\\".join(attributes.get("PatientID", ())) == (patient_id or ""):
        return attributes
    others = {k: v for k, v in attributes.items() if k != "PatientID"}
    return others if patient_id is None else {**others, "PatientID": (patient_id,)}


def identity(attributes: Attributes) -> Attributes:
    """The part of the attributes that `Instance.key` reads."""
    return {k: attributes[k] for k in ("PatientID",) if k in attributes}


@lru_cache(maxsize=4096)  # the images of different series differ in little
def own_attributes(values: str | None) -> Mapping[str, tuple[str, ...]]:
    """What an instance has of its own: those of INSTANCE_KEYWORDS. Raises ValueError or others."""
    found = json.loads(values or "[]")
    if not isinstance(found, list) or not all(isinstance(v, str | None) for v in found):
        raise TypeError
    return {k: (v,) for k, v in zip(INSTANCE_KEYWORDS, found, strict=False) if v}


def instance(series: Row, row: Row, attributes: Attributes, now: datetime) -> Instance:
    """An instance as it was kept; `attributes` are all that it is to carry."""
    return Instance(
        study_instance_uid=text(series["study_instance_uid"]),
        series_instance_uid=text(series["series_instance_uid"]),
        sop_instance_uid=text(row["sop_instance_uid"]),
        sop_class_uid=attributes.get("SOPClassUID", ("",))[0],
        transfer_syntax_uid=text(series["transfer_syntax_uid"]),
        calling_ae_title=text(series["calling_ae_title"]),
        peer_address=text(series["peer_address"]),
        called_ae_title=text(series["called_ae_title"]),
        received_at=point(row["received_at"], now),
        attributes=attributes,
    )


# --- reports that could not be made ----------------------------------------------------------------------------


def unmade(key: SeriesKey, sop_instance_uids: list[str], revision: int) -> str:
    """What is kept of a series whose report cannot be made: who and which, whatever they hold."""
    report = {
        "SeriesInstanceUID": key.series_instance_uid,
        "PatientID": key.patient_id,
        "StudyInstanceUID": key.study_instance_uid,
        "NumInstances": len(sop_instance_uids),
        "SOPInstanceUIDs": sop_instance_uids,
        "Revision": revision,
        "Verdict": "idle",
    }
    return json.dumps(report, default=str)


def made(content: Any) -> SeriesReport:
    """The report that a dead letter holds. Raises ValueError or others where it still cannot be made."""
    return SeriesReport.model_validate(json.loads(text(content)))  # of pydantic's own JSON a lone surrogate is no part


def why_unmade(error: Exception) -> str:
    """Which fields, and what kind of error; the error's own text would hold what stands there."""
    fields = []
    if hasattr(error, "errors"):
        problems = error.errors(include_input=False, include_context=False, include_url=False)[:MAX_FIELDS]
        fields = [f"{_field(problem['loc'])}{problem['type']}" for problem in problems]
    return f"no report can be made of it: {'; '.join(fields) or type(error).__name__}"[:MAX_LINE]


def _field(loc: tuple[Any, ...]) -> str:
    return f"{loc[0]}: " if loc and loc[0] in SeriesReport.model_fields else ""
