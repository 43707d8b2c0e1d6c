"""Convert the journal's rows, so that a damaged row affects only its own series. No clock, no I/O but the log.

SQLite lets a column hold values of any type, and any bytes as text.
"""

import base64
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from sqlite3 import Row
from typing import Any, TypeVar

import structlog

from common.logs import places
from models import INSTANCE_KEYWORDS, MAX_DOUBT, DeadReport, Instance, SeriesKey, SeriesReport

KEY = "study_instance_uid, series_instance_uid, patient_id"
WAITING_COLUMNS = (
    f"id, {KEY}, revision, verdict, instances, attempts, next_attempt_at, reported_at, changed_at, traceparent"
)
Attributes = dict[str, tuple[str, ...]]
T = TypeVar("T")
MAX_COUNT = 2**31 - 1  # models.Count
MAX_REVISION = 2**31 - 2  # the next revision has to fit into SeriesReport.Revision
MAX_LINE = 256  # models.Line
MAX_FIELDS = 10  # most fields that a reason names
TRACEPARENT = re.compile(r"[0-9a-f]{1,2}(-[0-9a-f]{1,32}){3}")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Waiting:
    """A report that waits for delivery, without its content."""

    id: int
    key: SeriesKey
    revision: int
    instances: int
    attempts: int
    next_attempt_at: float
    """Wall-clock time in seconds since 1970, as is `reported_at`."""
    reported_at: float
    traceparent: str | None = None
    part: bool = False
    """True for a part, whose instances stay in the log."""

    @property
    def moved(self) -> int:
        """Return how many instances the report took out of the log."""
        return 0 if self.part else self.instances


def decode(stored: bytes) -> str:
    """Decode text from SQLite. Lone surrogates are kept, so that a key that was read finds its row again."""
    try:
        return stored.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return stored.decode("utf-8", "replace")


def storable(value: Any) -> Any:
    """Return a text that SQLite accepts: without lone surrogates. Other values are returned unchanged."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def text(value: Any) -> str:
    """Read a text column."""
    if isinstance(value, bytes):
        return decode(value)
    return "" if value is None else str(value)


def count(value: Any, most: int = MAX_COUNT, least: int = 0) -> int:
    """Read a column of whole numbers; values out of range are brought within its bounds."""
    return min(max(value, least), most) if isinstance(value, int) else least


def seconds(value: Any) -> float:
    """Read a column of seconds; 0 if it has no valid number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0


def point(value: Any, otherwise: datetime) -> datetime:
    """Read a column of seconds since 1970 as a time."""
    try:
        return datetime.fromtimestamp(value, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        return otherwise


def traceparent(value: Any) -> str | None:
    """Read a column with a W3C traceparent."""
    return value if isinstance(value, str) and TRACEPARENT.fullmatch(value) else None


def key(row: Row) -> SeriesKey:
    """Return the identity of a row's series."""
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
    """Return a dead letter for a heartbeat; None if the row is damaged."""
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


@dataclass(slots=True)
class Unreadable:
    """Logs once that a row cannot be read."""

    table: str
    row: int
    said: bool = False

    def unless(self, do: Callable[[Any], T], value: Any) -> T | None:
        """Return `do(value)`; None if that fails."""
        try:
            return do(value)
        except Exception as error:  # whatever the row holds, only this row is affected
            if not self.said:
                log.error("journal.unreadable", table=self.table, row=self.row, reason=places(error)[0])
            self.said = True
            return None


# --- what is open ----------------------------------------------------------------------------------------------


def pack(attributes: Mapping[str, tuple[str, ...]], undecoded: Mapping[str, bytes], doubtful: Sequence[str]) -> str:
    """Return the content column of an open series."""
    return json.dumps([attributes, {k: base64.b64encode(v).decode() for k, v in undecoded.items()}, doubtful])


def unpack(content: Any) -> tuple[Attributes, dict[str, bytes], tuple[str, ...]]:
    """Read the content column of an open series, without attributes of single instances. Raises ValueError or others.

    Rows of an earlier version have no doubts.
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
    """Return the attributes with this PatientID, since the series is collected under it, and no other."""
    if "\\".join(attributes.get("PatientID", ())) == (patient_id or ""):
        return attributes
    others = {k: v for k, v in attributes.items() if k != "PatientID"}
    return others if patient_id is None else {**others, "PatientID": (patient_id,)}


def identity(attributes: Attributes) -> Attributes:
    """Return the attributes that `Instance.key` needs."""
    return {k: attributes[k] for k in ("PatientID",) if k in attributes}


@lru_cache(maxsize=4096)  # most images have the values of many others
def own_attributes(values: str | None) -> Mapping[str, tuple[str, ...]]:
    """Read the attributes of a single instance, those of INSTANCE_KEYWORDS. Raises ValueError or others."""
    found = json.loads(values or "[]")
    if not isinstance(found, list) or not all(isinstance(v, str | None) for v in found):
        raise TypeError
    return {k: (v,) for k, v in zip(INSTANCE_KEYWORDS, found, strict=False) if v}


def instance(series: Row, row: Row, attributes: Attributes, now: datetime) -> Instance:
    """Make an instance of a row and its series' row. It gets only the given attributes."""
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
    """Return the content of a dead letter for a series whose report cannot be made: only identity and UIDs."""
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
    """Make the report that a dead letter holds. Raises ValueError or others if it still cannot be made."""
    return SeriesReport.model_validate(json.loads(text(content)))  # json, since pydantic refuses lone surrogates


def why_unmade(error: Exception) -> str:
    """Say which fields are wrong, and how. The error's own text is not used, since it may quote patient data."""
    fields = []
    if hasattr(error, "errors"):
        problems = error.errors(include_input=False, include_context=False, include_url=False)[:MAX_FIELDS]
        fields = [f"{_field(problem['loc'])}{problem['type']}" for problem in problems]
    return f"no report can be made from it: {'; '.join(fields) or type(error).__name__}"[:MAX_LINE]


def _field(loc: tuple[Any, ...]) -> str:
    return f"{loc[0]}: " if loc and loc[0] in SeriesReport.model_fields else ""
