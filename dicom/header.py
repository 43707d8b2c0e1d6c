"""Read an Instance out of an encoded data set: the attributes that we keep, and never the pixels."""

import contextlib
import functools
import io
import math
import re
import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from pydicom.dataelem import RawDataElement
from pydicom.filereader import data_element_generator

from common.attributes import OF_IMAGES
from common.errors import SeriesGatewayError
from common.extras import NUMBERS, TEXTS, Extra
from dicom.text import decode_text, guess, is_defined_term
from dicom.walk import MAX_VALUE_BYTES, Encoding, Walk
from models import INSTANCE_KEYWORDS, MAX_UID, Association, Instance, is_standard_uid, is_uid

PYDICOM_BYTES = 2**16  # how much of a data set pydicom reads if our own walk fails
MAX_PATIENT_ID_BYTES = 256  # an LO has at most 64 characters; databases index it

# The attributes that are kept. PS3.18 tables 10.6.3-3 (study), -4 (series) and -5 (instance) list those that QIDO-RS
# returns; the others are often used to select series. Of study and series attributes the first image's value counts.
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
    0x00080008: ("ImageType", "CS"),
    0x00080020: ("StudyDate", "DA"),
    0x00080021: ("SeriesDate", "DA"),
    0x00080030: ("StudyTime", "TM"),
    0x00080031: ("SeriesTime", "TM"),
    0x00080050: ("AccessionNumber", "SH"),
    0x00080060: ("Modality", "CS"),
    0x00080070: ("Manufacturer", "LO"),
    0x00080090: ("ReferringPhysicianName", "PN"),
    0x00080201: ("TimezoneOffsetFromUTC", "SH"),
    0x00081010: ("StationName", "SH"),
    0x00081030: ("StudyDescription", "LO"),
    0x0008103E: ("SeriesDescription", "LO"),
    0x00081090: ("ManufacturerModelName", "LO"),
    0x00100010: ("PatientName", "PN"),
    0x00100020: ("PatientID", "LO"),
    0x00100030: ("PatientBirthDate", "DA"),
    0x00100040: ("PatientSex", "CS"),
    0x00180010: ("ContrastBolusAgent", "LO"),
    0x00180015: ("BodyPartExamined", "CS"),
    0x00180050: ("SliceThickness", "DS"),
    0x00181000: ("DeviceSerialNumber", "LO"),
    0x00181030: ("ProtocolName", "LO"),
    0x00181210: ("ConvolutionKernel", "SH"),
    0x0020000D: ("StudyInstanceUID", "UI"),
    0x0020000E: ("SeriesInstanceUID", "UI"),
    0x00200010: ("StudyID", "SH"),
    0x00200011: ("SeriesNumber", "IS"),
    0x00400244: ("PerformedProcedureStepStartDate", "DA"),
    0x00400245: ("PerformedProcedureStepStartTime", "TM"),
}
COUNTS = {  # how many images there should be; only hints, since senders fill them in carelessly
    0x00181090: ("CardiacNumberOfImages", "IS"),
    0x00200105: ("NumberOfTemporalPositions", "IS"),
    0x00201002: ("ImagesInAcquisition", "IS"),
    0x00201209: ("NumberOfSeriesRelatedInstances", "IS"),
    0x00540081: ("NumberOfSlices", "US"),
    0x00540101: ("NumberOfTimeSlices", "US"),
}
WANTED = INSTANCE_LEVEL | SERIES_LEVEL | COUNTS
MAX_INSTANCE_VALUE = MAX_UID  # characters of an instance's attribute; the longest are UIDs
REMEMBERED_VALUES = 2**14  # entries of the cache of instance values
REMEMBERED_BYTES = 128  # longest value whose decoding is cached; senders choose the values, so caches are bounded
REQUEST_ATTRIBUTES_SEQUENCE = 0x00400275  # its items' values are kept as lists, in item order, under two keywords:
REQUEST_ATTRIBUTES = {0x00400009: ("ScheduledProcedureStepID", "SH"), 0x00401001: ("RequestedProcedureID", "SH")}
IDENTITY = {0x0020000D: "StudyInstanceUID", 0x0020000E: "SeriesInstanceUID", 0x00080018: "SOPInstanceUID"}
WALKED = {tag: vr.encode() for tag, (_, vr) in WANTED.items()} | {REQUEST_ATTRIBUTES_SEQUENCE: b"SQ"}
ANY_VR = b""  # for private elements and private creators
WHOLE, DECIMAL = ("US", "IS"), ("DS",)  # VRs of numbers
AN_INTEGER = re.compile(r"[+-]?[0-9]+")
NO_STANDARD_UID = "{} is none of PS3.5 9.1"
OTHER_VR = "a number has another value representation than its own"
A_NUMBER = re.compile(r"[+-]?([0-9]{1,16}(\.[0-9]{0,16})?|\.[0-9]{1,16})([eE][+-]?[0-9]{1,2})?")
IN_ITEMS = {REQUEST_ATTRIBUTES_SEQUENCE: frozenset(REQUEST_ATTRIBUTES)}

InstanceValues = tuple[str | None, ...]
"""The values of INSTANCE_KEYWORDS, in their order."""


class HeaderError(SeriesGatewayError):
    """The data set cannot be assigned to a series. The text names the element and the problem, never the value."""

    def __init__(self, tag: int, keyword: str, problem: str) -> None:
        super().__init__(f"{keyword} {problem}")
        self.tag = tag


class Wanted:
    """The elements to keep of a data set: those that are always kept, and a site's own."""

    def __init__(self, extras: Sequence[Extra] = ()) -> None:
        self.extras = extras
        self.vrs = {tag: ANY_VR for extra in extras for tag in extra.tags} | WALKED

    def begin(self, transfer_syntax_uid: str, kept_bytes: int = PYDICOM_BYTES) -> Walk:
        """Return a Walk to feed a data set to, without its File Meta Information."""
        return Walk(transfer_syntax_uid, self.vrs, IN_ITEMS, kept_bytes)


ALWAYS = Wanted()


def finish(  # noqa: PLR0913 - one parameter a field
    walk: Walk,
    *,
    wanted: Wanted = ALWAYS,
    transfer_syntax_uid: str,
    calling_ae_title: str,
    peer_address: str,
    received_at: datetime,
    called_ae_title: str = "",
    length: int = 0,
    association: Association | None = None,
) -> Instance:
    """Return the Instance that a walk found, once its data set has come completely.

    1. End the walk. If it did not end well or found no UIDs, let pydicom read the beginning as well.
    2. Decode the wanted values with the data set's character set; note what is odd.
    3. Read numbers that were sent with another VR than their own, and the site's own attributes.
    4. Check the UIDs of study, series and instance.

    Raises HeaderError if one is missing, empty, multi-valued or no UID. A cut data set is read as far as it goes.
    """
    ended_well = walk.end() and walk.values.keys() >= IDENTITY.keys()
    values, vrs = (walk.values, walk.vrs) if ended_well else _second_reading(walk)
    odd = list(walk.doubts)
    attributes, undecoded = _decode_values(values, walk.items, walk.encoding, odd)
    if vrs:
        attributes |= _numbers_as_sent(values, vrs, walk.encoding.order, odd)
    if wanted.extras:
        attributes = {**_extra_values(values, vrs, wanted.extras, walk.encoding.order), **attributes}
    odd += _odd_charset(values.get(0x00080005, b""))
    study, series, sop = [_uid(values, tag, odd) for tag in IDENTITY]
    sop_class_uid = "\\".join(attributes.get("SOPClassUID", ()))
    if sop_class_uid and not is_standard_uid(sop_class_uid):
        odd.append(NO_STANDARD_UID.format("SOPClassUID"))
    return Instance(
        study_instance_uid=study,
        series_instance_uid=series,
        sop_instance_uid=sop,
        sop_class_uid=sop_class_uid,
        transfer_syntax_uid=transfer_syntax_uid,
        calling_ae_title=calling_ae_title,
        peer_address=peer_address,
        received_at=received_at,
        attributes=attributes,
        undecoded=undecoded,
        doubtful=tuple(odd),
        called_ae_title=called_ae_title,
        length=length,
        association=association,
    )


def read_instance(  # noqa: PLR0913 - one parameter a field
    data_set: bytes,
    *,
    wanted: Wanted = ALWAYS,
    transfer_syntax_uid: str,
    calling_ae_title: str,
    peer_address: str,
    received_at: datetime,
) -> Instance:
    """Read an Instance from a complete encoded data set. Raises HeaderError, as `finish` does."""
    walk = wanted.begin(transfer_syntax_uid)
    walk.feed(data_set)
    return finish(
        walk,
        wanted=wanted,
        transfer_syntax_uid=transfer_syntax_uid,
        calling_ae_title=calling_ae_title,
        peer_address=peer_address,
        received_at=received_at,
    )


def with_class_of_command(instance: Instance, sop_class_uid: str) -> Instance:
    """Return the instance with the command's SOP Class if the data set has none.

    If the data set has another SOP Class, it keeps that one and is marked as doubtful.
    """
    if instance.sop_class_uid == sop_class_uid:
        return instance
    if not instance.sop_class_uid:
        return replace(instance, sop_class_uid=sop_class_uid)
    return replace(instance, doubtful=(*instance.doubtful, "SOPClassUID is not the command's"))


def instance_values(instance: Instance) -> InstanceValues:
    """Return the values of INSTANCE_KEYWORDS; None for a missing value, or one that is too long to be valid."""
    texts = (instance.sop_class_uid, *map(instance.text, INSTANCE_KEYWORDS[1:]))
    return _shared(tuple([text if text and len(text) <= MAX_INSTANCE_VALUE else None for text in texts]))


@functools.lru_cache(maxsize=REMEMBERED_VALUES)
def _shared(values: InstanceValues) -> InstanceValues:
    """Return one shared tuple for equal values, to save memory: most images have the values of many others."""
    return values


def _second_reading(walk: Walk) -> tuple[Mapping[int, bytes], Mapping[int, bytes]]:
    """Let pydicom read the beginning of a data set that our walk could not read well; return values and wrong VRs.

    1. If only pydicom found all three UIDs, its values replace ours.
    2. Otherwise ours count, and pydicom's fill the gaps.

    The VRs are those of elements that were sent with another VR than their own.
    """
    found = _read_by_pydicom(walk.beginning, walk.encoding)
    known = walk.values
    if not known.keys() >= IDENTITY.keys() and found.keys() >= IDENTITY.keys():
        known = {}
    known = {tag: value for tag, value in known.items() if value or tag not in found}
    theirs = {tag: (element.VR or "").encode() for tag, element in found.items() if tag not in known}
    other = {tag: vr for tag, vr in theirs.items() if vr and vr != WALKED[tag]}
    values = {tag: (element.value or b"")[: MAX_VALUE_BYTES + 1] for tag, element in found.items()}
    return {**values, **known}, {**other, **{tag: vr for tag, vr in walk.vrs.items() if tag in known}}


def _read_by_pydicom(data: bytes, encoding: Encoding) -> dict[int, RawDataElement]:
    """Return the wanted elements that pydicom finds until it fails. Its guesses differ from ours. It is slow."""
    found: dict[int, RawDataElement] = {}
    with contextlib.suppress(Exception), warnings.catch_warnings():  # hostile bytes may raise anything
        warnings.simplefilter("ignore")
        has_vr = data[4:6].isalpha() and data[4:6].isupper()
        for element in data_element_generator(io.BytesIO(data), not has_vr, encoding.order == "<"):
            if isinstance(element, RawDataElement) and element.tag in WANTED:
                found[element.tag] = element
    return found


def _uid(raw: Mapping[int, bytes], tag: int, odd: list[str]) -> str:
    """Return a required UID as it was sent. One that does not conform to PS3.5 §9.1 is noted in `odd`."""
    if tag not in raw:
        raise HeaderError(tag, IDENTITY[tag], "is missing")
    uid = raw[tag].strip(b"\0 ").decode("latin-1")
    if not is_standard_uid(uid):
        problem = "is empty" if not uid else "has several values" if "\\" in uid else "is not a UID"
        if not is_uid(uid):
            raise HeaderError(tag, IDENTITY[tag], problem)
        odd.append(NO_STANDARD_UID.format(IDENTITY[tag]))
    return uid


@functools.lru_cache
def _odd_charset(charset: bytes) -> tuple[str, ...]:
    return () if all(map(is_defined_term, _terms(charset))) else ("SpecificCharacterSet has no defined term",)


def _decode_values(
    values: Mapping[int, bytes], items: Sequence[Mapping[int, bytes]], encoding: Encoding, odd: list[str]
) -> tuple[dict[str, tuple[str, ...]], dict[str, bytes]]:
    """Return the attributes as texts, and the bytes of values that the declared character set could not decode."""
    charset, order = values.get(0x00080005, b""), encoding.order
    attributes: dict[str, tuple[str, ...]] = {}
    undecoded: dict[str, bytes] = {}
    for tag, value in values.items():
        if tag not in WANTED:
            continue
        size = len(value)
        decode = _decode_element if size <= REMEMBERED_BYTES else _decode_element.__wrapped__
        keyword, texts, as_sent = decode(tag, value, order, charset)
        attributes[keyword] = texts
        if as_sent is not None:
            undecoded[keyword] = as_sent
        if size > MAX_VALUE_BYTES:
            odd.append(f"{keyword} has more than {MAX_VALUE_BYTES} bytes")
    if items:
        for tag, (keyword, vr) in REQUEST_ATTRIBUTES.items():
            texts, as_sent = _decode_of_items([item.get(tag, b"") for item in items], vr, charset)
            attributes[keyword] = texts
            if as_sent is not None:
                undecoded[keyword] = as_sent
    return attributes, undecoded


# --- a site's own attributes -------------------------------------------------------------------------------------


def _extra_values(
    values: Mapping[int, bytes], vrs: Mapping[int, bytes], extras: Sequence[Extra], order: str
) -> dict[str, tuple[str, ...]]:
    charset = values.get(0x00080005, b"")
    blocks = _private_blocks(values)
    found = {}
    for extra in extras:
        block = blocks.get((extra.tag >> 16, extra.creator.encode())) if extra.creator else 0
        tag = -1 if block is None else extra.tag | block << 8
        if tag in values:
            decode = _extra_texts if len(values[tag]) <= REMEMBERED_BYTES else _extra_texts.__wrapped__
            sent = vrs.get(tag, b"").decode()
            vr = sent if sent in NUMBERS or (sent in TEXTS and extra.vr in NUMBERS) else extra.vr
            texts = decode(values[tag], vr, order, charset)
            found[extra.name + (OF_IMAGES if extra.of_images else "")] = texts
    return found


def _private_blocks(values: Mapping[int, bytes]) -> dict[tuple[int, bytes], int]:
    """Map group and creator to the first block that is reserved for the creator (PS3.5 §7.8.1)."""
    creators = sorted((tag for tag in values if 0x10 <= tag & 0xFFFF <= 0xFF), reverse=True)
    return {(tag >> 16, values[tag].strip(b"\0 ")): tag & 0xFF for tag in creators}


@functools.lru_cache(maxsize=4096)
def _extra_texts(value: bytes, vr: str, order: str, charset: bytes) -> tuple[str, ...]:
    """Return the values as texts: binary numbers are formatted, text is decoded by the data set's character set."""
    if vr in NUMBERS:
        return _binary(value, vr, order)
    kind = vr if vr == "PN" else "LO" if vr in ("LO", "SH", "ST", "LT", "UC", "UT") else "CS"
    texts, _ = _texts([value], kind, _terms(charset), MAX_VALUE_BYTES)
    trimmed = tuple(_trim(text) for text in (texts if vr in ("ST", "LT", "UT", "UR") else texts[0].split("\\")))
    return trimmed if any(trimmed) else ()


@functools.lru_cache(maxsize=4096)  # most values are the same for all images of a series
def _decode_element(tag: int, value: bytes, order: str, charset: bytes) -> tuple[str, tuple[str, ...], bytes | None]:
    """Return keyword, values as texts, and the bytes as sent if the texts are only a guess."""
    keyword, vr = WANTED[tag]
    if vr == "US":
        numbers = struct.iter_unpack(order + "H", value[: len(value) // 2 * 2])
        return keyword, tuple([str(number) for (number,) in numbers]), None
    longest = MAX_PATIENT_ID_BYTES if keyword == "PatientID" else MAX_VALUE_BYTES
    texts, as_sent = _texts([value], vr, _terms(charset), longest)
    trimmed = tuple(_trim(text).rstrip("=" if vr == "PN" else "") for text in texts[0].split("\\"))
    return keyword, trimmed if any(trimmed) else (), as_sent


def _decode_of_items(values: Sequence[bytes], vr: str, charset: bytes) -> tuple[tuple[str, ...], bytes | None]:
    """Decode the values of an attribute in a sequence's items: one text for each item, also for empty ones."""
    if sum(map(len, values)) <= REMEMBERED_BYTES:
        return _remembered_of_items(tuple(values), vr, charset)
    return _remembered_of_items.__wrapped__(tuple(values), vr, charset)


@functools.lru_cache(maxsize=1024)
def _remembered_of_items(values: tuple[bytes, ...], vr: str, charset: bytes) -> tuple[tuple[str, ...], bytes | None]:
    texts, as_sent = _texts(values, vr, _terms(charset), MAX_VALUE_BYTES)
    return tuple([_trim(text) for text in texts]), as_sent


# --- numbers, by the VR that they were sent with ------------------------------------------------------------------


def _numbers_as_sent(
    values: Mapping[int, bytes], vrs: Mapping[int, bytes], order: str, odd: list[str]
) -> dict[str, tuple[str, ...]]:
    """Return, as texts, the numbers that were sent with another VR than their own.

    A number that cannot be read by that VR has no value, and is noted in `odd`.
    """
    found = {}
    for tag, vr in vrs.items():
        keyword, own = WANTED.get(tag, ("", ""))
        if own in WHOLE or own in DECIMAL:
            if vr != b"UN":  # the value of a UN is encoded as by its own VR (PS3.5 §6.2.2)
                odd += [OTHER_VR] if OTHER_VR not in odd else []
            numbers = _numbers(values[tag], own if vr == b"UN" else vr.decode(), order, is_whole=own in WHOLE)
            found[keyword] = numbers or ()
            if numbers is None:
                odd.append(f"{keyword} cannot be read by its value representation")
    return found


def _numbers(value: bytes, vr: str, order: str, *, is_whole: bool) -> tuple[str, ...] | None:
    """Return numbers as texts; None if the value contains anything else."""
    if vr in NUMBERS:
        one = struct.Struct(order + NUMBERS[vr])
        if len(value) % one.size:
            return None
        texts = _binary(value, vr, order)
    else:
        text = value.decode("latin-1").strip("\0 ")
        texts = tuple([part.strip() for part in text.split("\\")]) if text else ()
    if is_whole and all(AN_INTEGER.fullmatch(text) for text in texts):
        return texts
    if vr not in NUMBERS and not all(A_NUMBER.fullmatch(text) for text in texts):
        return None
    floats = list(map(float, texts))
    if not is_whole:
        return texts if all(map(math.isfinite, floats)) else None
    return tuple([str(int(number)) for number in floats]) if all(map(float.is_integer, floats)) else None


def _binary(value: bytes, vr: str, order: str) -> tuple[str, ...]:
    """Return binary numbers as texts."""
    one = struct.Struct(order + NUMBERS[vr])
    numbers = one.iter_unpack(value[: len(value) // one.size * one.size])
    return tuple([f"{number:.8g}" if vr == "FL" else str(number) for (number,) in numbers])


def _terms(charset: bytes) -> list[str]:
    return [term.strip(b"\0 ").decode("latin-1") for term in charset.split(b"\\")]


def _texts(values: Sequence[bytes], vr: str, charset: list[str], longest: int) -> tuple[list[str], bytes | None]:
    """Decode values; if the texts are only guesses, also return the bytes as sent, each cut at MAX_VALUE_BYTES."""
    if max(map(len, values)) <= longest:
        with contextlib.suppress(ValueError, LookupError):  # UnicodeError is a ValueError
            return [decode_text(value, vr, charset) for value in values], None
    guesses = [guess(value[:longest]) for value in values]
    return guesses, b"\\".join(value[:MAX_VALUE_BYTES] for value in values)


def _trim(text: str) -> str:
    return text.replace("\0", "").strip(" ")
