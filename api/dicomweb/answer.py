"""What is known of a study, series or instance, in the DICOM JSON Model (PS3.18 Annex F)."""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any
from urllib.parse import quote

from pydicom.datadict import dictionary_VR, tag_for_keyword

from models import INSTANCE_KEYWORDS
from storage.search import REQUEST, Level

Row = Mapping[str, Any]
Element = dict[str, Any]

REQUIRED = {
    Level.STUDY: (  # PS3.18 table 10.6.3-3
        "SpecificCharacterSet",
        "StudyDate",
        "StudyTime",
        "AccessionNumber",
        "InstanceAvailability",
        "ModalitiesInStudy",
        "ReferringPhysicianName",
        "TimezoneOffsetFromUTC",
        "RetrieveURL",
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyInstanceUID",
        "StudyID",
        "NumberOfStudyRelatedSeries",
        "NumberOfStudyRelatedInstances",
    ),
    Level.SERIES: (  # table 10.6.3-4
        "SpecificCharacterSet",
        "InstanceAvailability",
        "Modality",
        "TimezoneOffsetFromUTC",
        "SeriesDescription",
        "RetrieveURL",
        "SeriesInstanceUID",
        "SeriesNumber",
        "NumberOfSeriesRelatedInstances",
        "PerformedProcedureStepStartDate",
        "PerformedProcedureStepStartTime",
        REQUEST,
    ),
    Level.INSTANCE: (  # table 10.6.3-5
        "SpecificCharacterSet",
        "InstanceAvailability",
        "TimezoneOffsetFromUTC",
        "RetrieveURL",
        "SOPInstanceUID",
        *INSTANCE_KEYWORDS,
    ),
}
OPTIONAL = {
    Level.STUDY: ("StudyDescription",),
    Level.SERIES: (  # of no table: "all other attributes" that are kept (§10.6.3.3)
        *("ImageType", "SeriesDate", "SeriesTime", "Manufacturer", "StationName", "ManufacturerModelName"),
        *("ContrastBolusAgent", "BodyPartExamined", "SliceThickness", "DeviceSerialNumber", "ProtocolName"),
        "ConvolutionKernel",
    ),
    Level.INSTANCE: (),
}
IF_KNOWN = {"TimezoneOffsetFromUTC", "RetrieveURL", "SeriesDescription", REQUEST} | {
    *("PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime"),
    *("Rows", "Columns", "BitsAllocated", "NumberOfFrames"),
    *OPTIONAL[Level.SERIES],
}
REQUEST_ITEM = ("ScheduledProcedureStepID", "RequestedProcedureID")
GROUPS = ("Alphabetic", "Ideographic", "Phonetic")  # of a name: PS3.5 §6.2.1
A_DECIMAL = re.compile(r"\s*[+-]?([0-9]{1,16}(\.[0-9]{0,16})?|\.[0-9]{1,16})([eE][+-]?[0-9]{1,2})?\s*", re.ASCII)
AN_INTEGER = re.compile(r"\s*[+-]?[0-9]{1,12}\s*", re.ASCII)


@dataclass(slots=True)
class Totals:
    """Of one study."""

    series: int = 0
    instances: int = 0
    modalities: set[str] = field(default_factory=set)


def add_up(rows: Iterable[Row]) -> dict[str, Totals]:
    """Add up the totals of each study, from those of its parts (search.totals)."""
    totals: dict[str, Totals] = {}
    for row in rows:
        of_study = totals.setdefault(row["StudyInstanceUID"], Totals())
        of_study.series += row["Series"]
        of_study.instances += row["Instances"]
        of_study.modalities.update(row["Modalities"])
    return totals


def data_set(
    row: Row, level: Level, wanted: Iterable[str], totals: Totals, retrieve_url: str | None
) -> dict[str, Element]:
    """Return the wanted attributes of what a row (search.page) stands for, by tag."""
    values = _values(row, totals, retrieve_url and retrieve_url.rstrip("/") + _path(row, level))
    elements = {keyword: _element(keyword, values.get(keyword, ())) for keyword in wanted}
    return _by_tag({k: element for k, element in elements.items() if "Value" in element or k not in IF_KNOWN})


def _values(row: Row, totals: Totals, url: str | None) -> dict[str, Any]:
    """Return the values by keyword: as the gateway sent them, except for what the server itself knows."""
    attributes: Mapping[str, list[str]] = row["Attributes"]
    return {
        **attributes,
        **{keyword: [row[keyword]] for keyword in ("SOPInstanceUID", *INSTANCE_KEYWORDS) if keyword in row},
        "SpecificCharacterSet": ["ISO_IR 192"],
        "InstanceAvailability": ["ONLINE" if url else "UNAVAILABLE"],
        "RetrieveURL": [url],
        "PatientID": [row["PatientID"]],
        "PatientName": (row["PatientName"] or "").split("\\"),
        "StudyInstanceUID": [row["StudyInstanceUID"]],
        "SeriesInstanceUID": [row["SeriesInstanceUID"]],
        "ModalitiesInStudy": sorted(totals.modalities),
        "NumberOfStudyRelatedSeries": [totals.series],
        "NumberOfStudyRelatedInstances": [totals.instances],
        "NumberOfSeriesRelatedInstances": [row["NumInstances"]],
        REQUEST: list(zip_longest(*(attributes.get(keyword, ()) for keyword in REQUEST_ITEM))),
    }


def _path(row: Row, level: Level) -> str:
    path = f"/studies/{quote(row['StudyInstanceUID'], safe='')}"
    if level >= Level.SERIES:
        path += f"/series/{quote(row['SeriesInstanceUID'], safe='')}"
    return path + (f"/instances/{quote(row['SOPInstanceUID'], safe='')}" if level is Level.INSTANCE else "")


def _element(keyword: str, values: Iterable[Any]) -> Element:
    """Return an attribute; without Value if none of its values can be told."""
    vr = _tag_and_vr(keyword)[1]
    told = list(map(CONVERT.get(vr, _text), values))
    if vr in ("DS", "IS", "US"):
        told = [number for number in told if number is not None]
    return {"vr": vr, "Value": told} if told.count(None) < len(told) else {"vr": vr}


def _by_tag(elements: Mapping[str, Element]) -> dict[str, Element]:
    return dict(sorted((_tag_and_vr(keyword)[0], element) for keyword, element in elements.items()))


@functools.cache
def _tag_and_vr(keyword: str) -> tuple[str, str]:
    return f"{tag_for_keyword(keyword):08X}", dictionary_VR(keyword)


# --- values by VR: PS3.18 table F.2.3-1; None is what has no value (§F.2.5) ----------------------------------------


def _text(value: str | None) -> str | None:
    return value or None


def _name(value: str) -> dict[str, str] | None:
    groups = zip(GROUPS, value.split("=", len(GROUPS) - 1), strict=False)
    return {group: text for group, text in groups if text} or None


def _integer(low: int, high: int, value: str | int | None) -> int | None:
    """Return the number if it is one that the VR can hold."""
    if isinstance(value, str):
        value = int(value) if AN_INTEGER.fullmatch(value) else None
    return value if value is not None and low <= value <= high else None


def _decimal(value: str) -> float | None:
    """Return the number of a DS if it is one (PS3.5 table 6.2-1)."""
    return float(value) if A_DECIMAL.fullmatch(value) else None


def _item(value: tuple[str | None, ...]) -> dict[str, Element]:
    return _by_tag({keyword: _element(keyword, [text]) for keyword, text in zip(REQUEST_ITEM, value, strict=True)})


CONVERT: Mapping[str, Callable[[Any], Any]] = {
    "DS": _decimal,
    "IS": functools.partial(_integer, -(2**31), 2**31 - 1),
    "PN": _name,
    "SQ": _item,
    "US": functools.partial(_integer, 0, 2**16 - 1),
}
