"""Data sets as they travel: built element by element, in every transfer syntax, and all that pydicom ships."""

import struct
import warnings
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.multival import MultiValue
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dicom.header import WANTED
from tests.rig.factories import SERIES, STUDY, encode, make_dataset

SHIPPED = sorted(path for path in (Path(pydicom.__file__).parent / "data").rglob("*") if path.is_file())
SYNTAXES = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
REQUIRED = {"StudyInstanceUID": 0x0020000D, "SeriesInstanceUID": 0x0020000E, "SOPInstanceUID": 0x00080018}


def element(tag: int, vr: str, value: bytes) -> bytes:
    """One explicit VR little endian element with a short length, padded to even."""
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr.encode(), len(value)) + value


def identity(**changes: bytes | None) -> list[tuple[int, str, bytes]]:
    """Returns the elements of the required UIDs, or of their `changes` (None: left out)."""
    values = {"StudyInstanceUID": STUDY.encode(), "SeriesInstanceUID": SERIES.encode(), "SOPInstanceUID": b"1.2.3"}
    return [(REQUIRED[k], "UI", v) for k, v in (values | changes).items() if v is not None]


def header(*elements: tuple[int, str, bytes], **changes: bytes | None) -> bytes:
    """A data set of the required UIDs (or their `changes`, None: left out) and other elements, in order of tag."""
    return b"".join(element(*e) for e in sorted([*identity(**changes), *elements]))


def oracle(ds: Dataset) -> dict[str, tuple[str, ...]]:
    """What pydicom reads, in the form of Instance.attributes."""
    values: dict[str, tuple[str, ...]] = {}
    for tag, (keyword, vr) in WANTED.items():
        if tag in ds:
            value: Any = ds[tag].value
            items = [] if value is None else list(value) if isinstance(value, MultiValue) else [value]
            texts = tuple(str(item).replace("\0", "").strip(" ") for item in items)
            values[keyword] = tuple(t.rstrip("=") if vr == "PN" else t for t in texts) if any(texts) else ()
    return values


@cache
def shipped() -> list[tuple[str, bytes, str, dict[str, tuple[str, ...]]]]:
    """Name, data set bytes, transfer syntax and pydicom's reading of every file with File Meta Information."""
    files = []
    for path in SHIPPED:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read_preamble(file, False)
                syntax = str(_read_file_meta_info(file).TransferSyntaxUID)
            except (pydicom.errors.InvalidDicomError, AttributeError, EOFError):
                continue
            files.append((path.name, file.read(), syntax, oracle(pydicom.dcmread(path, force=True))))
    return files


def rewritten(ds: Dataset, syntax: str) -> bytes:
    """Returns the bytes of a data set in this transfer syntax."""
    big, implicit = syntax == ExplicitVRBigEndian, syntax == ImplicitVRLittleEndian
    data = encode(ds, implicit=implicit, little_endian=not big)
    if syntax == DeflatedExplicitVRLittleEndian:
        compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        data = compressor.compress(data) + compressor.flush()
    return data


def requests() -> Dataset:
    """Returns a data set with two items of RequestAttributesSequence."""
    ds = make_dataset()
    ds.RequestAttributesSequence = [Dataset(), Dataset()]
    ds.RequestAttributesSequence[0].ScheduledProcedureStepID = "STEP"
    ds.RequestAttributesSequence[1].RequestedProcedureID = "PROCEDURE"
    return ds
