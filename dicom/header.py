"""Encoded data set in, Instance out: reads only the header, never the pixels."""

import contextlib
import functools
import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import NamedTuple, get_args

from pydicom.charset import CODES_TO_ENCODINGS, python_encoding
from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_dataset

from common.errors import GatewayError
from models import Instance, InstanceKeyword

MAX_HEADER_BYTES = 8 * 2**20  # a deflated data set is inflated no further than this
PYDICOM_BYTES = 2**16  # what our own walk finds no identity in is tried once more with pydicom's, no further than this
MAX_VALUE_BYTES = 1024  # PN, the longest of the wanted VRs, has at most 3 component groups of 64 characters
MAX_PATIENT_ID_BYTES = 256  # an LO of at most 64 characters; databases index it

# PS3.18 tables 10.6.3-3 (study), -4 (series) and -5 (instance): what QIDO-RS returns and a data set can hold.
INSTANCE_LEVEL = {
    0x00080016: ("SOPClassUID", "UI"),
    0x00080018: ("SOPInstanceUID", "UI"),
    0x00200013: ("InstanceNumber", "IS"),
    0x00280008: ("NumberOfFrames", "IS"),
    0x00280010: ("Rows", "US"),
    0x00280011: ("Columns", "US"),
    0x00280100: ("BitsAllocated", "US"),
}
SERIES_LEVEL = {
    0x00080005: ("SpecificCharacterSet", "CS"),
    0x00080020: ("StudyDate", "DA"),
    0x00080030: ("StudyTime", "TM"),
    0x00080050: ("AccessionNumber", "SH"),
    0x00080060: ("Modality", "CS"),
    0x00080090: ("ReferringPhysicianName", "PN"),
    0x00080201: ("TimezoneOffsetFromUTC", "SH"),
    0x00081010: ("StationName", "SH"),
    0x00081030: ("StudyDescription", "LO"),
    0x0008103E: ("SeriesDescription", "LO"),
    0x00100010: ("PatientName", "PN"),
    0x00100020: ("PatientID", "LO"),
    0x00100030: ("PatientBirthDate", "DA"),
    0x00100040: ("PatientSex", "CS"),
    0x0020000D: ("StudyInstanceUID", "UI"),
    0x0020000E: ("SeriesInstanceUID", "UI"),
    0x00200010: ("StudyID", "SH"),
    0x00200011: ("SeriesNumber", "IS"),
    0x00400244: ("PerformedProcedureStepStartDate", "DA"),
    0x00400245: ("PerformedProcedureStepStartTime", "TM"),
}
COUNTS = {  # of the images there should be: hints only, senders fill them in loosely
    0x00201002: ("ImagesInAcquisition", "IS"),
    0x00201209: ("NumberOfSeriesRelatedInstances", "IS"),
}
WANTED = INSTANCE_LEVEL | SERIES_LEVEL | COUNTS
INSTANCE_KEYWORDS: tuple[InstanceKeyword, ...] = get_args(InstanceKeyword)
MAX_INSTANCE_VALUE = 64  # characters; the longest valid value of one of these is a UID
REMEMBERED_VALUES = 2**14
REQUEST_ATTRIBUTES_SEQUENCE = 0x00400275  # its items' values stand flat, in item order, under the two keywords:
REQUEST_ATTRIBUTES = {0x00400009: ("ScheduledProcedureStepID", "SH"), 0x00401001: ("RequestedProcedureID", "SH")}
MAX_REQUESTS = 15  # items of it that are kept: as many as fit into a report, whatever their values
IDENTITY = {0x00080018, 0x0020000D, 0x0020000E}  # SOP, Study and Series Instance UID
LAST_WANTED = REQUEST_ATTRIBUTES_SEQUENCE

ITEM, ITEM_DELIMITATION, SEQUENCE_DELIMITATION = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD  # PS3.5 §7.5
UNDEFINED_LENGTH = 0xFFFFFFFF
LENGTH_OF_32_BITS = frozenset(
    (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
)
LENGTH_OF_16_BITS = frozenset(
    (b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
     b"ST", b"TM", b"UI", b"UL", b"US")
)  # fmt: skip
SHORT_HEADERS = {order: struct.Struct(order + "HH2sH") for order in "<>"}  # group, element, VR, length: PS3.5 §7.1.2
A_UID = re.compile(rb"[0-9.]{1,64}")

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = {"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"}  # PS3.5 A.5, A.7, A.10

InstanceValues = tuple[str | None, ...]
"""The values of INSTANCE_KEYWORDS, in their order."""


class HeaderError(GatewayError):
    """The data set cannot be filed under a series. Names the element and the problem, never the value."""

    def __init__(self, tag: int, keyword: str, problem: str) -> None:
        super().__init__(f"{keyword} {problem}")
        self.tag = tag


class Encoding(NamedTuple):
    """How a data set is encoded (PS3.5 Annex A)."""

    implicit: bool
    order: str  # struct's byte order mark


def read_instance(
    data_set: bytes, *, transfer_syntax_uid: str, calling_ae_title: str, peer_address: str, received_at: datetime
) -> Instance:
    """Read one Instance from an encoded data set (without File Meta Information).

    Raises HeaderError where the Study, Series or SOP Instance UID is missing, empty, multi-valued or not a UID.
    A data set that ends early is read as far as it goes.
    """
    if transfer_syntax_uid in DEFLATED:
        data_set = _inflate(data_set)
    encoding = Encoding(
        implicit=transfer_syntax_uid == IMPLICIT_VR_LITTLE_ENDIAN,
        order=">" if transfer_syntax_uid == EXPLICIT_VR_BIG_ENDIAN else "<",
    )
    raw = _read_values(data_set, encoding)
    if not raw.keys() >= IDENTITY:
        raw = _read_by_pydicom(data_set, encoding) or raw
    attributes, undecoded = _decode_values(raw, encoding)
    return Instance(
        study_instance_uid=_uid(raw, 0x0020000D),
        series_instance_uid=_uid(raw, 0x0020000E),
        sop_instance_uid=_uid(raw, 0x00080018),
        sop_class_uid="\\".join(attributes.get("SOPClassUID", ())),
        transfer_syntax_uid=transfer_syntax_uid,
        calling_ae_title=calling_ae_title,
        peer_address=peer_address,
        received_at=received_at,
        attributes=attributes,
        undecoded=undecoded,
    )


def instance_values(instance: Instance) -> InstanceValues:
    """What is known of an instance beside its UID; None where it has no value, or one too long to be valid."""
    texts = (instance.sop_class_uid, *map(instance.text, INSTANCE_KEYWORDS[1:]))
    return _shared(tuple([text if text and len(text) <= MAX_INSTANCE_VALUE else None for text in texts]))


@functools.lru_cache(maxsize=REMEMBERED_VALUES)
def _shared(values: InstanceValues) -> InstanceValues:
    """One tuple for all that are equal: the images of one series differ from those of another in little."""
    return values


def _inflate(data_set: bytes) -> bytes:
    """Inflate the first MAX_HEADER_BYTES of a deflated data set (RFC 1951 without zlib header, PS3.5 A.5)."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data_set, MAX_HEADER_BYTES)
    except zlib.error:
        return b""  # reads as an empty data set: refused for its missing UIDs


def _read_values(data: bytes, encoding: Encoding) -> dict[int, tuple[bytes, ...]]:
    """The wanted elements' values as sent; more than one only for values from sequence items.

    What is longer than MAX_VALUE_BYTES is cut, one byte later, so that it is seen to be longer.
    """
    raw: dict[int, tuple[bytes, ...]] = {}
    for tag, start, end, inner in _elements(data, 0, len(data), encoding):
        if tag in WANTED:
            raw[tag] = (data[start : min(end, start + MAX_VALUE_BYTES + 1)],)
        elif tag == REQUEST_ATTRIBUTES_SEQUENCE:
            for item_start, item_end in islice(_items(data, start, end, inner), MAX_REQUESTS):
                item = {
                    t: data[s : min(e, s + MAX_VALUE_BYTES + 1)]
                    for t, s, e, _ in _elements(data, item_start, item_end, inner)
                    if t in REQUEST_ATTRIBUTES
                }
                for item_tag in REQUEST_ATTRIBUTES:
                    raw[item_tag] = (*raw.get(item_tag, ()), item.get(item_tag, b""))
        if tag >= LAST_WANTED:
            break
    return raw


def _read_by_pydicom(data: bytes, encoding: Encoding) -> dict[int, tuple[bytes, ...]]:
    """What pydicom's reader finds, which also guesses at data sets encoded otherwise than announced.

    Empty unless it finds a whole identity. It is slow and recursive: it gets the first PYDICOM_BYTES only.
    """
    with contextlib.suppress(Exception), warnings.catch_warnings():  # the edge to hostile bytes
        warnings.simplefilter("ignore")
        reader = io.BytesIO(data[:PYDICOM_BYTES])
        ds = read_dataset(reader, encoding.implicit, encoding.order == "<", stop_when=lambda tag, *_: tag > LAST_WANTED)
        elements = {tag: ds.get_item(tag) for tag in WANTED if tag in ds}
        if elements.keys() >= IDENTITY:
            return {
                tag: ((element.value or b"")[: MAX_VALUE_BYTES + 1],)
                for tag, element in elements.items()
                if isinstance(element, RawDataElement)
            }
    return {}


def _elements(data: bytes, p: int, end: int, encoding: Encoding) -> Iterator[tuple[int, int, int, Encoding]]:
    """Walk the elements of one level: (tag, value start, value end, encoding of nested items). Ends where data ends."""
    short = SHORT_HEADERS[encoding.order].unpack_from
    while p + 8 <= end:
        group, element, vr, length = short(data, p)
        if vr in LENGTH_OF_16_BITS and not encoding.implicit and group != 0xFFFE:  # nearly all of them
            tag, p, inner = group << 16 | element, p + 8, encoding
        else:
            tag, length, p, inner = _element_header(data, p, encoding)
        if tag == ITEM_DELIMITATION:
            return
        stop = _skip_undefined(data, p, inner) if length == UNDEFINED_LENGTH else p + length
        if stop > end:
            return
        yield tag, p, stop, inner
        p = stop


def _element_header(data: bytes, p: int, encoding: Encoding) -> tuple[int, int, int, Encoding]:
    """Tag, length, start of the value, and how items inside it are encoded (PS3.5 §7.1, §6.2.2 note on UN)."""
    group, element = struct.unpack_from(encoding.order + "HH", data, p)
    tag = group << 16 | element
    vr = data[p + 4 : p + 6]
    if encoding.implicit or group == 0xFFFE or not vr.isalpha() or not vr.isupper():
        return tag, struct.unpack_from(encoding.order + "L", data, p + 4)[0], p + 8, encoding
    if vr not in LENGTH_OF_32_BITS:
        return tag, struct.unpack_from(encoding.order + "H", data, p + 6)[0], p + 8, encoding
    if p + 12 > len(data):
        return tag, len(data), p, encoding  # cut off inside its own header: ends beyond the data
    length = struct.unpack_from(encoding.order + "L", data, p + 8)[0]
    inner = Encoding(True, "<") if vr == b"UN" and length == UNDEFINED_LENGTH else encoding
    return tag, length, p + 12, inner


def _skip_undefined(data: bytes, p: int, encoding: Encoding) -> int:
    """The end of a value of undefined length that starts at p: past its delimiter. Iterative, whatever the depth."""
    open_levels = [encoding]
    while open_levels:
        if p + 8 > len(data):
            return len(data) + 1
        tag, length, p, inner = _element_header(data, p, open_levels[-1])
        if tag in (ITEM_DELIMITATION, SEQUENCE_DELIMITATION):
            open_levels.pop()
        elif length == UNDEFINED_LENGTH:
            open_levels.append(inner)
        else:
            p += length
    return p


def _items(data: bytes, p: int, end: int, encoding: Encoding) -> Iterator[tuple[int, int]]:
    """Start and end of each item's content in a sequence's value (PS3.5 §7.5.1)."""
    while p + 8 <= end:
        tag, length, p, _ = _element_header(data, p, encoding)
        if tag != ITEM:
            return
        stop = _skip_undefined(data, p, encoding) if length == UNDEFINED_LENGTH else p + length
        yield p, min(stop, end)
        p = stop


def _uid(raw: Mapping[int, tuple[bytes, ...]], tag: int) -> str:
    """A required UID, accepted as sent if it is one value of at most 64 characters of the UID alphabet (PS3.5 §9.1)."""
    keyword = WANTED[tag][0]
    if tag not in raw:
        raise HeaderError(tag, keyword, "is missing")
    value = raw[tag][0].strip(b"\0 ")
    if not value:
        raise HeaderError(tag, keyword, "is empty")
    if b"\\" in value:
        raise HeaderError(tag, keyword, "has several values")
    if not A_UID.fullmatch(value):
        raise HeaderError(tag, keyword, "is not a UID")
    return value.decode("ascii")


def _decode_values(
    raw: Mapping[int, tuple[bytes, ...]], encoding: Encoding
) -> tuple[dict[str, tuple[str, ...]], dict[str, bytes]]:
    """Attributes in text form, and the bytes of what the declared character set could not decode."""
    charset = raw.get(0x00080005, (b"",))[0]
    attributes: dict[str, tuple[str, ...]] = {}
    undecoded: dict[str, bytes] = {}
    for tag, values in raw.items():
        keyword, texts, as_sent = _decode_element(tag, values, encoding.order, charset)
        attributes[keyword] = texts
        if as_sent is not None:
            undecoded[keyword] = as_sent
    return attributes, undecoded


@functools.lru_cache(maxsize=4096)  # the images of a series differ in few of their values
def _decode_element(
    tag: int, values: tuple[bytes, ...], order: str, charset: bytes
) -> tuple[str, tuple[str, ...], bytes | None]:
    """Keyword, values in text form, and the bytes as sent where that text is only a guess."""
    keyword, vr = WANTED.get(tag) or REQUEST_ATTRIBUTES[tag]
    if vr == "US":
        numbers = (n for v in values for (n,) in struct.iter_unpack(order + "H", v[: len(v) // 2 * 2]))
        return keyword, tuple(map(str, numbers)), None
    terms = [term.strip().decode("latin-1") for term in charset.strip(b"\0").split(b"\\")]
    texts, as_sent = _texts(values, vr, terms, MAX_PATIENT_ID_BYTES if keyword == "PatientID" else MAX_VALUE_BYTES)
    if tag in REQUEST_ATTRIBUTES:  # positions are items: keep the empty ones
        return keyword, tuple(_trim(text) for text in texts), as_sent
    trimmed = tuple(_trim(text).rstrip("=" if vr == "PN" else "") for text in texts[0].split("\\"))
    return keyword, trimmed if any(trimmed) else (), as_sent


def _texts(values: Sequence[bytes], vr: str, charset: list[str], longest: int) -> tuple[list[str], bytes | None]:
    """The values as text; with the bytes as sent (each cut at MAX_VALUE_BYTES) where that text is only a guess."""
    if max(map(len, values)) <= longest:
        with contextlib.suppress(UnicodeError, LookupError):
            return [decode_text(value, vr, charset) for value in values], None
    guesses = [_guess(value[:longest]) for value in values]
    return guesses, b"\\".join(value[:MAX_VALUE_BYTES] for value in values)


def _trim(text: str) -> str:
    return text.replace("\0", "").strip(" ")


def decode_text(value: bytes, vr: str, charset: list[str]) -> str:
    """Decode text strictly by its Specific Character Set (PS3.3 §C.12.1.1.2, code extensions PS3.5 §6.1.2.5).

    Raises UnicodeError or LookupError where that cannot be done without guessing.
    """
    default = _codec(charset[0]) if vr in ("PN", "LO", "SH") else "ascii"
    if b"\x1b" not in value:
        return value.decode(default)
    delimiters = rb"[\\\r\n\t\f^=]" if vr == "PN" else rb"[\\\r\n\t\f]"
    parts = re.findall(rb"\x1b[^\x1b]*|^[^\x1b]+", value)
    return "".join(_decode_part(part, default, delimiters) for part in parts)


def _codec(term: str) -> str:
    """Python's codec for a defined term; ISO 646 is ASCII, not pydicom's lenient Latin-1."""
    return "ascii" if term in ("", "ISO_IR 6", "ISO 2022 IR 6") else python_encoding[term]


def _decode_part(part: bytes, default: str, delimiters: bytes) -> str:
    """One stretch of text under one escape sequence; a delimiter returns to the default character set."""
    if not part.startswith(b"\x1b"):
        return part.decode(default)
    size = 4 if part.startswith((b"\x1b$(", b"\x1b$)")) else 3
    codec = CODES_TO_ENCODINGS[part[:size]]
    if codec.startswith("iso2022"):
        return part.decode(codec)  # knows its own escape sequences
    text = part[size:]
    at = found.start() if (found := re.search(delimiters, text)) else len(text)
    return text[:at].decode(codec) + text[at:].decode(default)


def _guess(value: bytes) -> str:
    """Readable text for bytes that contradict their character set: UTF-8 if it is valid, else Latin-1."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")
