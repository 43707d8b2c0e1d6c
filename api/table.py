"""Series as lines of CSV: one column for each thing that is known of a series, the same for every series."""

import csv
from collections.abc import Iterable, Iterator
from io import StringIO

from models import SeriesRecord

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
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula: https://owasp.org/www-community/attacks/CSV_Injection."""


def head() -> str:
    """Return the line of the columns' names."""
    return _lines([[*ROW, *ATTRIBUTES]])


def lines(records: Iterable[SeriesRecord]) -> str:
    """Return a line for each series (RFC 4180)."""
    return _lines([_safe(cell) for cell in _cells(record)] for record in records)


def _lines(rows: Iterable[list[str]]) -> str:
    text = StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def _cells(record: SeriesRecord) -> Iterator[str]:
    known = record.model_dump(mode="json", include={*ROW})
    known["Doubtful"] = "; ".join(known["Doubtful"])
    for name in ROW:
        yield "" if known[name] is None else str(known[name])
    for name in ATTRIBUTES:
        yield "\\".join(record.Attributes.get(name, ()))


def _safe(cell: str) -> str:
    """Put an apostrophe before what a spreadsheet would compute: a sender chooses these texts."""
    return f"'{cell}" if cell.startswith(FORMULA) else cell
