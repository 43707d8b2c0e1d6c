"""Series and studies as lines of CSV: one column for each thing that is known of one, the same for all."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any, Generic, TypeVar

from models import SeriesRecord
from storage.answers import StudyRecord

ROW = (
    *("SeriesInstanceUID", "PatientID", "PatientName", "StudyInstanceUID", "NumInstances", "Modality"),
    *("Verdict", "Basis", "ExpectedInstances", "ExpectedFrom", "Missing", "Source", "Revision"),
    *("FalseCompletions", "Conflicts", "Doubtful", "FirstReceivedAt", "LastReceivedAt", "UpdatedAt"),
)
ATTRIBUTES = (
    *("StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber", "ReferringPhysicianName"),
    *("PatientBirthDate", "PatientSex", "SeriesNumber", "SeriesDescription", "StationName"),
    *("PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime", "ScheduledProcedureStepID"),
    *("RequestedProcedureID", "TimezoneOffsetFromUTC", "SpecificCharacterSet"),
    *("SeriesDate", "SeriesTime", "BodyPartExamined", "ProtocolName", "ImageType", "SliceThickness"),
    *("ConvolutionKernel", "ContrastBolusAgent", "Manufacturer", "ManufacturerModelName", "DeviceSerialNumber"),
)
"""The `Attributes` that a gateway sends; several values stand in one cell, a backslash between, as in DICOM."""
STUDY_ROW = tuple(StudyRecord.model_fields)
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula: https://owasp.org/www-community/attacks/CSV_Injection."""


R = TypeVar("R", SeriesRecord, StudyRecord)


@dataclass(frozen=True)
class Table(Generic[R]):
    """The columns of one kind of records."""

    fields: Sequence[str]
    attributes: Sequence[str] = ()

    def head(self) -> str:
        """Return the line of the columns' names."""
        return _lines([[*self.fields, *self.attributes]])

    def lines(self, records: Iterable[R]) -> str:
        """Return a line for each record (RFC 4180)."""
        return _lines([_safe(cell) for cell in self._cells(record)] for record in records)

    def _cells(self, record: R) -> Iterator[str]:
        known = record.model_dump(mode="json", include={*self.fields})
        for name in self.fields:
            yield _cell(name, known[name])
        attributes: Mapping[str, Sequence[str]] = record.Attributes if isinstance(record, SeriesRecord) else {}
        for name in self.attributes:
            yield "\\".join(attributes.get(name, ()))


SERIES: Table[SeriesRecord] = Table(ROW, ATTRIBUTES)
STUDIES: Table[StudyRecord] = Table(STUDY_ROW)


def _lines(rows: Iterable[list[str]]) -> str:
    text = StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def _cell(name: str, value: Any) -> str:
    """Return a value as it stands in its cell; several modalities are joined as in DICOM."""
    if isinstance(value, list):
        return ("\\" if name == "Modalities" else "; ").join(value)
    if isinstance(value, dict):
        return "; ".join(f"{uid}: {numbers}" for uid, numbers in value.items())
    return "" if value is None else str(value)


def _safe(cell: str) -> str:
    """Put an apostrophe before what a spreadsheet would compute: a sender chooses these texts."""
    return f"'{cell}" if cell.startswith(FORMULA) else cell
