"""Data sets as the field sends them and PS3.5 does not allow them, each with what stands in it. Pure.

All are of one CT image; each has its own Series and SOP Instance UID, so that what is read of it can be found.
"""

import random
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
ROOT = "1.2.826.0.1.3680043.8.498.77"
UNDEFINED = 0xFFFFFFFF
LONG = ("OB", "OW", "SQ", "UN", "UT")
MUTATIONS = 100
NO_IDENTITY = "no identity: there is nothing to file it under"


@dataclass(frozen=True)
class Odd:
    """One data set to send, and its values as text."""

    name: str
    data: bytes
    series: str
    sop: str
    holds: Mapping[str, str]
    transfer_syntax: str = EXPLICIT
    sop_class_of_command: str = CT
    refused: str = ""
    """Why ours refuses it, where it does."""
    mutated: bool = False


# --- elements -------------------------------------------------------------------------------------------------


def element(tag: int, vr: str, value: bytes = b"", length: int | None = None) -> bytes:
    """Explicit VR little endian."""
    value += b"" if len(value) % 2 == 0 else b"\0" if vr in ("UI", "OB", "UN") else b" "
    length = len(value) if length is None else length
    if vr in LONG:
        return struct.pack("<HH2s2xL", tag >> 16, tag & 0xFFFF, vr.encode(), length) + value
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr.encode("latin-1"), length) + value


def implicit(tag: int, value: bytes) -> bytes:
    """Implicit VR little endian."""
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value)) + value


def item(content: bytes) -> bytes:
    """Return an item that says its length."""
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(content)) + content


def opened(tag: int, content: bytes, vr: str = "SQ") -> bytes:
    """A sequence that its delimiter ends."""
    return element(tag, vr, length=UNDEFINED) + content + END_SEQUENCE


ITEM, END_ITEM, END_SEQUENCE = (
    struct.pack("<HHL", 0xFFFE, e, n) for e, n in ((0xE000, UNDEFINED), (0xE00D, 0), (0xE0DD, 0))
)
INNER = element(0x00186012, "US", b"\1\0")
SQ, LATER_SQ = 0x00081140, 0x00211010


@dataclass(frozen=True)
class Parts:
    """The parts that a data set is put together from."""

    number: int
    study: str = f"{ROOT}.1"
    name: bytes = b"ODD^ONE"
    charset: bytes | None = None
    text: Mapping[str, str] = field(default_factory=dict)

    @property
    def series(self) -> str:
        return f"{ROOT}.1.{self.number}"

    @property
    def sop(self) -> str:
        return f"{self.series}.1"

    @property
    def head(self) -> bytes:
        charset = b"" if self.charset is None else element(0x00080005, "CS", self.charset)
        return charset + element(0x00080016, "UI", CT.encode()) + element(0x00080018, "UI", self.sop.encode())

    @property
    def order(self) -> bytes:
        return element(0x00080050, "SH", b"A1") + element(0x00080060, "CS", b"CT")

    @property
    def patient(self) -> bytes:
        return element(0x00100010, "PN", self.name) + element(0x00100020, "LO", b"P%03d" % self.number)

    @property
    def identity(self) -> bytes:
        return element(0x0020000D, "UI", self.study.encode()) + element(0x0020000E, "UI", self.series.encode())

    image = (
        element(0x00200013, "IS", b"7") + element(0x00280010, "US", b"\x08\0") + element(0x00280011, "US", b"\x08\0")
    )
    step = element(0x00400244, "DA", b"20260102")
    asked = element(0x00400275, "SQ", item(element(0x00401001, "SH", b"REQ1")))
    pixels = element(0x7FE00010, "OW", bytes(128))

    @property
    def rest(self) -> bytes:
        return self.image + self.step + self.asked + self.pixels

    @property
    def good(self) -> bytes:
        return self.head + self.order + self.patient + self.identity + self.rest

    @property
    def holds(self) -> dict[str, str]:
        return {
            "AccessionNumber": "A1",
            "Modality": "CT",
            "PatientID": f"P{self.number:03d}",
            "PatientName": "ODD^ONE",
            "StudyInstanceUID": self.study,
            "InstanceNumber": "7",
            "Rows": "8",
            "PerformedProcedureStepStartDate": "20260102",
            "RequestedProcedureID": "REQ1",
        } | dict(self.text)


# --- forms ----------------------------------------------------------------------------------------------------

Form = Callable[[Parts], bytes]


def between(more: bytes) -> Form:
    """Return the form that has `more` behind group 0008, before the patient and the identity."""
    return lambda p: p.head + p.order + more + p.patient + p.identity + p.rest


def behind(more: bytes) -> Form:
    """Return the form that has `more` behind the identity."""
    return lambda p: (
        p.head + p.order + p.patient + p.identity + p.image[:10] + more + p.image[10:] + p.step + p.asked + p.pixels
    )


def instead(vr: str, value: bytes, tag: int = 0x00280010) -> Form:
    """A number of the image with another VR than its own."""
    own = {0x00280010: ("US", b"\x08\0"), 0x00200013: ("IS", b"7")}[tag]
    return lambda p: p.good.replace(element(tag, *own), element(tag, vr, value))


FORMS: dict[str, Form] = {
    "as it should be": lambda p: p.good,
    "item delimiter at top level": between(END_ITEM),
    "sequence delimiter at top level": between(END_SEQUENCE),
    "sequence of length 0 with a delimiter": between(element(SQ, "SQ") + END_SEQUENCE),
    "the same behind the identity": behind(element(LATER_SQ, "SQ") + END_SEQUENCE),
    "sequence of length 0 with a delimiter, in an item": between(
        opened(SQ, ITEM + element(0x00081199, "SQ") + END_SEQUENCE + INNER + END_ITEM)
    ),
    "sized sequence with a delimiter": between(element(SQ, "SQ", item(INNER)) + END_SEQUENCE),
    "sized item with a delimiter": between(opened(SQ, item(INNER) + END_ITEM)),
    "sized item that holds its delimiter": between(element(SQ, "SQ", item(INNER + END_ITEM))),
    "bare item of defined length": between(item(INNER)),
    "bare item of undefined length": between(ITEM + INNER + END_ITEM),
    "item left open": between(opened(SQ, ITEM + INNER)),
    "two items left open": between(opened(SQ, ITEM + INNER + ITEM + INNER)),
    "inner item left open": between(opened(SQ, ITEM + opened(0x00081199, ITEM + INNER) + END_ITEM)),
    "item left open, behind the identity": behind(opened(LATER_SQ, ITEM + INNER)),
    "sequence without items that never ends": between(element(SQ, "SQ", length=UNDEFINED)),
    "VR blank": between(element(0x00091010, "  ", b"1 ")),
    "VR ??": between(element(0x00091010, "??", b"1 ")),
    "VR NUL": between(element(0x00091010, "\0\0", b"1 ")),
    "VR of small letters": between(element(0x00091010, "lo", b"1 ")),
    "VR unknown, 16-bit length": between(element(0x00091010, "ZZ", b"1 ")),
    "VR unknown, 32-bit length": between(struct.pack("<HH2s2xL", 9, 0x1010, b"ZZ", 6) + b"abcdef"),
    "VR of no characters, without value": between(element(0x00091010, "L\x0f")),
    "first element with a VR of no characters, without value": lambda p: element(0x00080005, "C\x0f") + p.good,
    "first element whose group has its bytes the other way round": lambda p: (
        b"\0\x08" + element(0x00080005, "CS", b"ISO_IR 100")[2:] + p.good
    ),
    "VR blank, behind the identity": behind(element(0x00200012, "  ", b"1 ")),
    "one element of implicit VR": between(implicit(0x00091010, b"\1\0\2\0")),
    "UN of implicit items": between(opened(0x00091010, ITEM + implicit(0x00186012, b"\1\0") + END_ITEM, "UN")),
    "UN of explicit items": between(opened(0x00091010, ITEM + INNER + END_ITEM, "UN")),
    "patient behind the identity": lambda p: p.head + p.order + p.identity + p.patient + p.rest,
    "patient behind (0051,1008)": lambda p: (
        p.head + p.order + p.identity + p.image + p.step + p.asked
        + element(0x00511008, "LO", b"X") + p.patient + p.pixels
    ),
    "patient behind the pixels": lambda p: p.head + p.order + p.identity + p.rest + p.patient,
    "identity behind the pixels": lambda p: p.head + p.order + p.patient + p.rest + p.identity,
    "patient behind fragments": lambda p: (
        p.head + p.order + p.identity + p.image + p.step + p.asked
        + opened(0x7FE00010, item(b"") + item(b"\xff\xd8\xff\xd9"), "OB") + p.patient
    ),
    "1.3 MB of references": between(opened(SQ, (ITEM + INNER * 9 + END_ITEM) * 12_000)),
    "PatientID twice": lambda p: p.head + p.order + p.patient + p.patient[-12:] + p.identity + p.rest,
    "sequences 40 deep": between((element(SQ, "SQ", length=UNDEFINED) + ITEM) * 40 + (END_ITEM + END_SEQUENCE) * 40),
    "pixels cut off": lambda p: p.good[:-50],
    "7 zeros behind": lambda p: p.good + bytes(7),
    "1000 zeros behind": lambda p: p.good + bytes(1000),
    "Rows as IS": instead("IS", b"8"),
    "Rows as DS": instead("DS", b"8.0"),
    "Rows as UL": instead("UL", b"\x08\0\0\0"),
    "Rows as SL": instead("SL", b"\x08\0\0\0"),
    "Rows as UN": instead("UN", b"\x08\0"),
    "InstanceNumber as US": instead("US", b"\7\0", 0x00200013),
}  # fmt: skip
NAMES: dict[str, tuple[bytes, bytes, str]] = {
    "escape not repeated behind ^, Korean": (b"\\ISO 2022 IR 149", b"\x1b$)C\xfb\xf3^\xd1\xce\xd4\xd7", "洪^吉洞"),
    "escape not repeated behind ^, Cyrillic": (b"\\ISO 2022 IR 144", b"\x1b-L\xbb\xee^\xcf", "Лю^Я"),
    "padding within an escaped set": (b"\\ISO 2022 IR 87", b"\x1b$B;3ED ", "山田"),
    "character set ISO-IR 144": (b"ISO-IR 144", b"\xbb\xee^\xcf", "Лю^Я"),
    "character set ISO_2022_IR_6": (b"ISO_2022_IR_6\\ISO 2022 IR 144", b"\x1b-L\xbb\xee", "Лю"),
    "character set ISO IR 192": (b"ISO IR 192", "Лю^Я".encode(), "Лю^Я"),
    "character set GB 18030": (b"GB 18030", "王^小东".encode("gb18030"), "王^小东"),
}
UIDS: dict[str, str] = {
    "Study UID with letters": "1.2.abc.X",
    "Study UID of 65 characters": "1." + "2" * 63,
    "Study UID with leading zeros": "1.02.003",
    "Study UID with a slash": "1.2/3",
}


def odd_data_sets() -> list[Odd]:
    """All of them."""
    return list(_all())


def _all() -> Iterator[Odd]:
    number = 0

    def parts(**changes: Any) -> Parts:
        nonlocal number
        number += 1
        return Parts(number, **changes)

    for name, form in FORMS.items():
        yield _odd(name, parts(), form)
    for name, (charset, sent, text) in NAMES.items():
        yield _odd(name, parts(name=sent, charset=charset, text={"PatientName": text}), FORMS["as it should be"])
    for name, uid in UIDS.items():
        yield _odd(name, parts(study=uid), FORMS["as it should be"])
    yield from _otherwise_encoded(parts)
    p = parts()
    yield Odd("SOP Class other than the command's", p.good, p.series, p.sop, p.holds, sop_class_of_command=MR)
    for keyword, cut in (("Study", 0x0020000D), ("Series", 0x0020000E), ("SOP", 0x00080018)):
        p = parts()
        of_it = {"Study": p.study, "Series": p.series, "SOP": p.sop}[keyword].encode()
        missing = p.good.replace(element(cut, "UI", of_it), b"")
        yield Odd(f"without {keyword} Instance UID", missing, p.series, p.sop, p.holds, refused=NO_IDENTITY)
    rng = random.Random(12)
    for n in range(MUTATIONS):
        yield replace(_odd(f"mutation {n + 1}", parts(), lambda p: _mutated(p.good, rng)), mutated=True)


def _odd(name: str, p: Parts, form: Form) -> Odd:
    return Odd(name, form(p), p.series, p.sop, p.holds)


def _otherwise_encoded(parts: Callable[[], Parts]) -> Iterator[Odd]:
    for name, said, encode in (
        ("implicit, said to be explicit", EXPLICIT, as_implicit),
        ("explicit, said to be implicit", IMPLICIT, bytes),
        ("little endian, said to be big", BIG_ENDIAN, bytes),
        ("deflated, as it should be", DEFLATED, raw_deflated),
        ("deflated with a zlib header", DEFLATED, zlib.compress),
        ("not deflated, said to be", DEFLATED, bytes),
    ):
        p = parts()
        yield Odd(name, encode(p.good), p.series, p.sop, p.holds, said)


def raw_deflated(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    made = compressor.compress(data) + compressor.flush()
    return made + bytes(len(made) % 2)  # PS3.5 A.5


def as_implicit(data: bytes) -> bytes:
    """A good data set of ours, whose sequence says its lengths, in implicit VR."""
    made, at = b"", 0
    while at < len(data):
        group, number, vr, length = struct.unpack_from("<HH2sH", data, at)
        start = at + 8
        if vr.decode() in LONG:
            (length,) = struct.unpack_from("<L", data, at + 8)
            start = at + 12
        value = data[start : start + length]
        if vr == b"SQ":
            value = item(as_implicit(value[8:]))
        made += implicit(group << 16 | number, value)
        at = start + length
    return made


def _mutated(good: bytes, rng: random.Random) -> bytes:
    """Change one to three bytes, behind the UIDs that it is found by and before the Study Instance UID."""
    first, last = good.index(b"\x08\0\x50\0"), good.index(b"\x20\0\x0d\0")
    said = bytearray(good)
    for _ in range(rng.randint(1, 3)):
        said[rng.randrange(first, last)] = rng.randrange(256)
    return bytes(said)
