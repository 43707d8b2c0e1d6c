"""walk.py on what senders write that PS3.5 does not allow, and on any bytes cut anywhere; pydicom is the oracle."""

import random
import struct
import tracemalloc
import warnings
import zlib
from functools import cache
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.filereader import read_dataset

from dicom import deflate, walk
from dicom.header import IN_ITEMS, WALKED, WANTED
from dicom.walk import Walk
from tests.rig.data_sets import SYNTAXES, element, requests, rewritten, shipped

EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED = (
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
)
UNDEFINED = 0xFFFFFFFF
ITEM, END_ITEM, END_SEQUENCE = (
    struct.pack("<HHL", 0xFFFE, e, n) for e, n in ((0xE000, UNDEFINED), (0xE00D, 0), (0xE0DD, 0))
)
UNIT = element(0x00186012, "US", b"\1\0")
SOP = element(0x00080016, "UI", b"1.2") + element(0x00080018, "UI", b"1.2.3")
PATIENT = element(0x00100010, "PN", b"TEST^ONE") + element(0x00100020, "LO", b"P1")
IDENTITY = element(0x0020000D, "UI", b"1.2.4") + element(0x0020000E, "UI", b"1.2.5")
NUMBER = element(0x00200013, "IS", b"7 ")
ROWS = element(0x00280010, "US", b"\x08\0")


def long(tag: int, vr: str, value: bytes = b"", length: int | None = None) -> bytes:
    """One explicit VR little endian element with a length of 32 bits."""
    length = len(value) if length is None else length
    return struct.pack("<HH2s2xL", tag >> 16, tag & 0xFFFF, vr.encode(), length) + value


def item(content: bytes) -> bytes:
    """One of defined length."""
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(content)) + content


def implicit(tag: int, value: bytes) -> bytes:
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value)) + value


ASKED = element(0x00400009, "SH", b"STEP") + element(0x00401001, "SH", b"ASKED ")
REQUESTS = long(0x00400275, "SQ", item(ASKED))
PIXELS = long(0x7FE00010, "OW", bytes(128))
REST = NUMBER + ROWS + REQUESTS + PIXELS
WHOLE = {
    0x00080016: b"1.2\0",
    0x00080018: b"1.2.3\0",
    0x00100010: b"TEST^ONE",
    0x00100020: b"P1",
    0x0020000D: b"1.2.4\0",
    0x0020000E: b"1.2.5\0",
    0x00200013: b"7 ",
    0x00280010: b"\x08\0",
}
ITEMS = [{0x00400009: b"STEP", 0x00401001: b"ASKED "}]


def walked(data: bytes, syntax: str = EXPLICIT, pieces: int = 0) -> Walk:
    """A walk that was fed all, in pieces of so many bytes, and ended."""
    found = Walk(syntax, WALKED, IN_ITEMS, 2**16)
    for at in range(0, len(data), pieces or len(data) or 1):
        found.feed(memoryview(data)[at : at + (pieces or len(data))])
    found.end()
    return found


def said(found: Walk) -> tuple[object, ...]:
    return found.values, found.items, list(found.doubts), found.encoding, found.beginning


def opened(tag: int, inner: bytes, vr: str = "SQ") -> bytes:
    return long(tag, vr, length=UNDEFINED) + inner + END_SEQUENCE


ODD_VR = {
    vr: struct.pack("<HH2sH", 0x0009, 0x1010, vr, 2) + b"1 " for vr in (b"  ", b"??", b"\0\0", b"ox", b"ZZ", b"-1")
}
EMPTY = {vr: struct.pack("<HH2sH", 0x0009, 0x1010, vr, 0) for vr in (b"  ", b"??", b"\0\0", b"ZZ", b"L\x0f", b"\xffO")}
LATER_VR = struct.pack("<HH2sHL", 0x0009, 0x1010, b"ZZ", 0, 6) + b"abcdef"
BEFORE, BEHIND = SOP, PATIENT + IDENTITY + REST

FORMS = {
    "as it should be": (SOP + BEHIND, None),
    **{f"VR {vr!r}": (SOP + odd + BEHIND, walk.UNKNOWN_VR) for vr, odd in ODD_VR.items()},
    **{f"VR {vr!r}, no value": (SOP + odd + BEHIND, walk.UNKNOWN_VR) for vr, odd in EMPTY.items()},
    **{
        f"VR {vr!r}, no value, in an item": (
            SOP + opened(0x00081140, ITEM + odd + UNIT + END_ITEM) + BEHIND,
            walk.UNKNOWN_VR,
        )
        for vr, odd in EMPTY.items()
    },
    "VR of a later edition": (SOP + LATER_VR + BEHIND, walk.UNKNOWN_VR),
    "an implicit element": (SOP + implicit(0x00091010, b"\0" * 8) + BEHIND, walk.OTHER_ENCODING),
    "pixels of implicit VR": (
        SOP + PATIENT + IDENTITY + NUMBER + ROWS + REQUESTS + implicit(0x7FE00010, bytes(2**17)),
        walk.OTHER_ENCODING,
    ),
    "sequence of length 0 with a delimiter": (
        SOP + long(0x00081140, "SQ") + END_SEQUENCE + BEHIND,
        walk.DELIMITERS,
    ),
    "the same inside an item": (
        SOP + opened(0x00081140, ITEM + long(0x00081199, "SQ") + END_SEQUENCE + UNIT + END_ITEM) + BEHIND,
        walk.DELIMITERS,
    ),
    "sized sequence with a delimiter": (
        SOP + long(0x00081140, "SQ", item(UNIT)) + END_SEQUENCE + BEHIND,
        walk.DELIMITERS,
    ),
    "sized item with a delimiter": (SOP + opened(0x00081140, item(UNIT) + END_ITEM) + BEHIND, walk.DELIMITERS),
    "sized item that holds its delimiter": (SOP + long(0x00081140, "SQ", item(UNIT + END_ITEM)) + BEHIND, None),
    "item delimiter at the top": (SOP + END_ITEM + BEHIND, walk.DELIMITERS),
    "sequence delimiter at the top": (SOP + END_SEQUENCE + BEHIND, walk.DELIMITERS),
    "bare item": (SOP + item(UNIT) + BEHIND, walk.BARE_ITEM),
    "bare item of undefined length": (SOP + ITEM + UNIT + END_ITEM + BEHIND, walk.BARE_ITEM),
    "bare item that a sequence delimiter ends": (SOP + ITEM + UNIT + END_SEQUENCE + BEHIND, walk.BARE_ITEM),
    "item left open": (SOP + opened(0x00081140, ITEM + UNIT) + BEHIND, walk.DELIMITERS),
    "two items left open": (SOP + opened(0x00081140, ITEM + UNIT + ITEM + UNIT) + BEHIND, walk.DELIMITERS),
    "inner item left open": (
        SOP + opened(0x00081140, ITEM + opened(0x00081199, ITEM + UNIT) + END_ITEM) + BEHIND,
        walk.DELIMITERS,
    ),
    "sequence that never ends": (SOP + long(0x00081140, "SQ", length=UNDEFINED) + BEHIND, walk.DELIMITERS),
    "UN of implicit items": (
        SOP + opened(0x00091010, ITEM + implicit(0x00080100, b"AB") + END_ITEM, "UN") + BEHIND,
        None,
    ),
    "UN of explicit items": (
        SOP + opened(0x00091010, ITEM + UNIT + END_ITEM, "UN") + BEHIND,
        walk.OTHER_ENCODING,
    ),
    "UN of explicit items in a sequence": (
        SOP + opened(0x00091010, ITEM + opened(0x00091011, ITEM + UNIT + END_ITEM, "UN") + END_ITEM, "UN") + BEHIND,
        walk.OTHER_ENCODING,
    ),
    "patient behind the pixels": (SOP + IDENTITY + REST + PATIENT, walk.UNORDERED),
    "patient behind fragments": (
        SOP + IDENTITY + NUMBER + ROWS + REQUESTS + opened(0x7FE00010, item(b"") + item(b"x" * 999), "OB") + PATIENT,
        walk.UNORDERED,
    ),
    "identity behind the requests": (SOP + PATIENT + NUMBER + ROWS + REQUESTS + IDENTITY + PIXELS, walk.UNORDERED),
    "an element twice": (SOP + PATIENT + element(0x00100020, "LO", b"P1") + IDENTITY + REST, walk.REPEATED),
    "the second time without value": (SOP + PATIENT + element(0x00100020, "LO", b"") + IDENTITY + REST, walk.REPEATED),
    "the second time far too long": (
        SOP + PATIENT + long(0x00100020, "UT", b"x" * 2000) + IDENTITY + REST,
        walk.REPEATED,
    ),
    "1.3 MB of references": (SOP + opened(0x00081140, (ITEM + UNIT * 9 + END_ITEM) * 12_000) + BEHIND, None),
    "requests of undefined length": (
        SOP + PATIENT + IDENTITY + NUMBER + ROWS + opened(0x00400275, ITEM + ASKED + END_ITEM) + PIXELS,
        None,
    ),
    "requests left open": (
        SOP + PATIENT + IDENTITY + NUMBER + ROWS + opened(0x00400275, ITEM + ASKED) + PIXELS,
        walk.DELIMITERS,
    ),
    "zeros behind": (SOP + BEHIND + bytes(7), None),
    "8 zeros behind": (SOP + BEHIND + bytes(8), None),
    "30 zeros behind": (SOP + BEHIND + bytes(30), None),
    "10,000 zeros behind": (SOP + BEHIND + bytes(10_003), None),
    "zeros between elements": (SOP + PATIENT + bytes(24) + IDENTITY + REST, walk.PADDED),
    "zeros between elements and behind": (SOP + PATIENT + bytes(8) + IDENTITY + REST + bytes(8), walk.PADDED),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pieces", [0, 1, 13, 4096])
def test_every_known_form_costs_nothing_and_is_said(form: str, pieces: int) -> None:
    data, doubt = FORMS[form]
    if pieces == 1 and len(data) > 2**16:
        pieces = 7001
    found = walked(data, pieces=pieces)
    assert (found.values, found.items) == (WHOLE, ITEMS)
    assert list(found.doubts) == ([doubt] if doubt else [])


def test_what_is_deflated_otherwise_than_said_is_read() -> None:
    data = SOP + BEHIND
    raw = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    for sent, doubts in (
        (raw.compress(data) + raw.flush(), []),
        (raw_with_padding(data), []),
        (zlib.compress(data), [deflate.NOT_AS_SAID]),
        (data, [deflate.NOT_AS_SAID]),
    ):
        for pieces in (0, 1, 5):
            found = walked(sent, DEFLATED, pieces)
            assert (found.values, found.items, list(found.doubts)) == (WHOLE, ITEMS, doubts)


def raw_deflated(data: bytes) -> bytes:
    raw = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    return raw.compress(data) + raw.flush()


@pytest.mark.parametrize("tiny", [ITEM + END_ITEM, opened(0x00081140, b""), ITEM + UNIT + END_ITEM])
def test_a_few_bytes_that_inflate_to_elements_without_end_are_given_up(tiny: bytes) -> None:
    data = raw_deflated(SOP + tiny * (2**24 // len(tiny)) + IDENTITY)
    found = walked(data, DEFLATED)
    assert walk.TOO_MANY in found.doubts
    assert found._steps < walk.FREE_STEPS + walk.STEPS_PER_BYTE * len(data) + deflate.AT_ONCE


def test_functional_groups_of_many_frames_are_inflated_to_their_end() -> None:
    rng = random.Random(1)
    group = opened(0x00209111, ITEM + UNIT + END_ITEM)
    positions = [b"%.8f\\%.8f\\%.8f" % (rng.random(), rng.random(), rng.random()) for _ in range(5000)]
    places = [opened(0x00209113, ITEM + element(0x00200032, "DS", at) + END_ITEM) for at in positions]
    frames = b"".join(ITEM + group * 8 + place + END_ITEM for place in places)
    found = walked(raw_deflated(SOP + PATIENT + opened(0x00209113, frames) + IDENTITY), DEFLATED, 4096)
    assert not [doubt for doubt in found.doubts if doubt != walk.UNORDERED]
    assert found.values[0x0020000E] == b"1.2.5\0"


VRS = sorted(walk.KNOWN)


def test_a_value_of_vrs_is_no_explicit_element_behind_a_length_that_spells_one() -> None:
    for vr in VRS:
        for text in VRS:
            value = text * (int.from_bytes(vr, "little") // 2) + b"x" * (vr[0] & 1)
            inner = ITEM + implicit(0x00091002, value) + END_ITEM
            found = walked(SOP + opened(0x00091001, inner, "UN") + PATIENT + IDENTITY, EXPLICIT)
            assert (found.values.keys() >= {0x0020000D, 0x0020000E}, *found.doubts) == (True,)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(VRS), st.integers(0, 1), st.booleans(), st.booleans(), st.data())
def test_a_length_that_spells_a_vr_is_a_length(
    vr: bytes, high: int, is_un: bool, has_neighbour: bool, draw: st.DataObject
) -> None:
    size = int.from_bytes(vr, "little") + (high << 16)
    value = (draw.draw(st.binary(max_size=64)) or b"x") * size
    inner = ITEM + implicit(0x00091002, value[:size]) + (implicit(0x00091003, b"ab") if has_neighbour else b"")
    if is_un:
        data, syntax = SOP + opened(0x00091001, inner + END_ITEM, "UN") + PATIENT + IDENTITY, EXPLICIT
    else:
        front = b"".join(implicit(tag, WHOLE[tag]) for tag in (0x00080016, 0x00080018))
        back = b"".join(implicit(tag, WHOLE[tag]) for tag in (0x00100020, 0x0020000D, 0x0020000E))
        private = struct.pack("<HHL", 0x0009, 0x1001, UNDEFINED)
        data, syntax = front + private + inner + END_ITEM + END_SEQUENCE + back, IMPLICIT
    found = walked(data, syntax)
    written = [0x00080016, 0x00080018, *([0x00100010] if is_un else []), 0x00100020, 0x0020000D, 0x0020000E]
    assert found.values == {tag: WHOLE[tag] for tag in written}
    assert not found.doubts
    if not is_un:  # in a UN pydicom goes by the VR that a length spells
        assert found.values == by_pydicom(data, syntax)


def test_no_value_of_an_implicit_item_passes_for_what_is_behind_it() -> None:
    forged = END_ITEM + END_SEQUENCE + implicit(0x00100020, b"EVIL")
    value = forged + implicit(0x00204000, bytes(16708 - len(forged) - 8))
    private = struct.pack("<HHL", 0x0009, 0x1001, UNDEFINED) + ITEM
    data = implicit(0x00080018, b"1.2.3\0") + private + implicit(0x00091002, value) + END_ITEM + END_SEQUENCE
    found = walked(data + implicit(0x0020000D, b"1.4\0"), IMPLICIT)
    assert found.values == {0x00080018: b"1.2.3\0", 0x0020000D: b"1.4\0"}


def raw_with_padding(data: bytes) -> bytes:
    raw = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return raw.compress(data) + raw.flush() + b"\0"


@pytest.mark.parametrize(
    ("said_to_be", "is_implicit", "is_little"),
    [(IMPLICIT, False, True), (EXPLICIT, True, True), (BIG_ENDIAN, False, True), (EXPLICIT, False, False)],
)
def test_another_encoding_than_said_is_read_and_said(said_to_be: str, is_implicit: bool, is_little: bool) -> None:
    syntax = IMPLICIT if is_implicit else EXPLICIT if is_little else BIG_ENDIAN
    found, right = (walked(rewritten(requests(), syntax), of) for of in (said_to_be, syntax))
    assert (found.values, found.items, found.encoding) == (right.values, right.items, right.encoding)
    assert list(found.doubts) == [walk.OTHER_ENCODING]


BODY = [(0x00080018, b"UI"), (0x00100010, b"PN"), (0x00100020, b"LO"), (0x0020000D, b"UI"), (0x0020000E, b"UI")]
FIRST = {
    "with a value": (0x00080005, b"CS", b"ISO_IR 100"),
    "without value": (0x00080005, b"CS", b""),
    "of a length": (0x00080000, b"UL", bytes(4)),
}


def encoded(elements: list[tuple[int, bytes, bytes]], syntax: str) -> bytes:
    order = ">" if syntax == BIG_ENDIAN else "<"
    form = order + ("HHL" if syntax == IMPLICIT else "HH2sH")
    made = b""
    for tag, vr, value in elements:
        made += struct.pack(form, tag >> 16, tag & 0xFFFF, *([] if syntax == IMPLICIT else [vr]), len(value)) + value
    return made


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
def test_a_first_element_that_is_hit_hides_nothing_behind_it(syntax: str, first: str) -> None:
    behind = {tag: WHOLE[tag] for tag, _ in BODY}
    data = encoded([FIRST[first], *((tag, vr, WHOLE[tag]) for tag, vr in BODY)], syntax)
    swapped = [bytes([data[1], data[0]]) + data[2:]]
    hits = [data[:at] + bytes([byte]) + data[at + 1 :] for at in range(4) for byte in range(256)]
    if syntax != IMPLICIT:  # its length is 4 bytes where a VR would be
        vrs = [data[:4] + bytes([data[4], byte]) + data[6:] for byte in range(256)]
        vrs += [data[:4] + bytes([byte, data[5]]) + data[6:] for byte in range(256)]
        hits += [hit for hit in vrs if hit[4:6] not in walk.LENGTH_OF_32_BITS]  # which have other lengths
    for hit in hits + swapped:
        found = walked(hit, syntax)
        assert (hit[:8], found.values | behind, found.encoding) == (
            hit[:8],
            found.values,
            walked(data, syntax).encoding,
        )


@pytest.mark.parametrize(
    "data",
    [
        SOP + BEHIND[:-1],
        SOP + PATIENT + opened(0x00081140, ITEM)[:-8] + IDENTITY,
        SOP + PATIENT + IDENTITY + opened(0x7FE00010, item(b"x"), "OB")[:-8],
        SOP + PATIENT[:-1],
        b"\x08",
    ],
)
def test_what_does_not_end_well_says_so(data: bytes) -> None:
    assert walk.CUT in walked(data).doubts


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("zeros", [1, 8, 12, 4096, 5000])
def test_zeros_behind_are_none_of_it(syntax: str, zeros: int) -> None:
    data = rewritten(requests(), syntax)
    for pieces in (0, 1, 97):
        found = walked(data + bytes(zeros), syntax, pieces)
        assert (found.values, list(found.doubts)) == (walked(data, syntax).values, [])


def test_a_value_of_absurd_length_is_seen_to_be_and_not_kept() -> None:
    found = walked(SOP + long(0x00100010, "UT", b"x" * 300_000) + IDENTITY, pieces=1000)
    assert found.values[0x00100010] == b"x" * (walk.MAX_VALUE_BYTES + 1)
    assert found.values[0x0020000E] == b"1.2.5\0"


def test_more_items_than_a_report_takes_are_said() -> None:
    found = walked(SOP + long(0x00400275, "SQ", item(ASKED) * (walk.MAX_ITEMS + 1)))
    assert (found.items, list(found.doubts)) == (ITEMS * walk.MAX_ITEMS, [walk.MANY_ITEMS])


def test_an_item_is_left_where_it_ends_whatever_its_elements_say() -> None:
    broken = struct.pack("<HH2sH", 0x0040, 0x0008, b"SH", 60) + b"short "
    found = walked(SOP + long(0x00400275, "SQ", item(broken) + item(ASKED)) + PIXELS)
    assert (found.items, list(found.doubts)) == ([{}, *ITEMS], [walk.TOO_LONG])


def test_a_short_item_at_the_end_of_a_data_set_is_read() -> None:
    found = walked(SOP + long(0x00400275, "SQ", item(element(0x00400009, "SH", b"STEP"))))
    assert (found.items, list(found.doubts)) == ([{0x00400009: b"STEP"}], [])


@pytest.mark.parametrize("length", [8, 18, 22, 26, 40])
def test_an_item_or_its_header_longer_than_its_sequence_is_said(length: int) -> None:
    items = item(element(0x00400009, "SH", b"STEP")) + item(element(0x00401001, "SH", b"ASKED "))
    found = walked(SOP + PATIENT + IDENTITY + long(0x00400275, "SQ", items, length) + PIXELS)
    assert walk.TOO_LONG in found.doubts


class Counted(list[walk._Level]):
    """Levels that count how often one is looked at."""

    looks = 0

    def __getitem__(self, at):  # type: ignore[no-untyped-def]
        self.looks += 1
        return super().__getitem__(at)


def head(element: int, length: int) -> bytes:
    """Of an item or a delimiter."""
    return struct.pack("<HHL", 0xFFFE, element, length)


NESTED = {
    "bare items in an item that says its length": (
        struct.pack("<HHL", 0x0040, 0x0275, 0x7FFFFFF0) + head(0xE000, 0x7FFFFFFF) + implicit(0x00400009, b""),
        ITEM,
    ),
    "bare items at the top": (b"", ITEM),
    "sequences": (b"", struct.pack("<HHL", 0x0008, 0x1140, UNDEFINED) + ITEM),
    "bare items in an item": (struct.pack("<HHL", 0x0008, 0x1140, UNDEFINED) + ITEM, ITEM),
}


@pytest.mark.parametrize("form", NESTED)
@pytest.mark.parametrize("end", [END_ITEM, END_SEQUENCE, END_ITEM + END_SEQUENCE])
def test_what_a_delimiter_costs_does_not_grow_with_what_is_open(form: str, end: bytes) -> None:
    before, opening = NESTED[form]
    found = Walk(IMPLICIT, WALKED, IN_ITEMS)
    found._levels = levels = Counted(found._levels)
    data = implicit(0x00080018, b"") + before + opening * 300 + end * 300
    found.feed(data)
    assert levels.looks < 20 * len(data) / 8


def test_a_wanted_value_of_undefined_length_is_said() -> None:
    found = walked(SOP + opened(0x00100020, item(b"P1"), "UN") + IDENTITY)
    assert (0x00100020 in found.values, list(found.doubts)) == (False, [walk.UNDEFINED])


def test_a_value_longer_than_its_item_is_kept_no_further_than_the_item() -> None:
    broken = struct.pack("<HH2sH", 0x0040, 0x0009, b"SH", 60) + b"short "
    found = walked(SOP + long(0x00400275, "SQ", item(broken) + item(ASKED)) + PIXELS)
    assert (found.items, list(found.doubts)) == ([{0x00400009: b"short "}, *ITEMS], [walk.TOO_LONG])


@pytest.mark.parametrize("inner", [opened(0x00400008, ITEM + UNIT)[:-8], opened(0x00400008, b"")[:-8], ITEM])
def test_what_waits_for_its_delimiter_ends_with_the_item_around_it(inner: bytes) -> None:
    found = walked(SOP + long(0x00400275, "SQ", item(ASKED + inner)) + PATIENT + PIXELS)
    assert (found.items, found.values[0x00100020]) == (ITEMS, b"P1")
    assert walk.DELIMITERS in found.doubts


def test_depth_without_end_is_given_up() -> None:
    found = walked((long(0x00081140, "SQ", length=UNDEFINED) + ITEM) * walk.MAX_LEVELS)
    assert list(found.doubts) == [walk.TOO_DEEP, walk.CUT]


def test_memory_does_not_grow_with_what_streams_through() -> None:
    pieces = [
        SOP + long(0x00081140, "SQ", length=UNDEFINED),
        *[(ITEM + UNIT * 1000 + END_ITEM) * 6] * 25,
        END_SEQUENCE + PATIENT + IDENTITY + long(0x7FE00010, "OW", length=2**30),
        *[bytes(2**16)] * 2**14,
        element(0x00100020, "LO", b"LATE"),
    ]
    found = Walk(EXPLICIT, WALKED, IN_ITEMS)
    tracemalloc.start()
    for piece in pieces:
        found.feed(piece)
    assert tracemalloc.get_traced_memory()[1] < 50_000
    tracemalloc.stop()
    assert found.end()
    assert found.values[0x00100020] == b"LATE"


# --- the same, however it is cut --------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_data_set_cut_anywhere_reads_alike(syntax: str) -> None:
    data = rewritten(requests(), syntax)
    whole = said(walked(data, syntax))
    for pieces in range(1, 40):
        assert said(walked(data, syntax, pieces)) == whole


STREAMS = [data for data, _ in FORMS.values() if len(data) < 4096]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(STREAMS), st.data(), st.sampled_from([EXPLICIT, IMPLICIT, BIG_ENDIAN]))
def test_any_bytes_read_alike_however_they_are_cut(data: bytes, draw: st.DataObject, syntax: str) -> None:
    mutated = bytearray(data)
    for _ in range(draw.draw(st.integers(0, 6))):
        mutated[draw.draw(st.integers(0, len(mutated) - 1))] = draw.draw(st.integers(0, 255))
    found = bytes(mutated)
    assert said(walked(found, syntax, draw.draw(st.integers(1, 64)))) == said(walked(found, syntax))


# --- pydicom as the oracle --------------------------------------------------------------------------------------


def by_pydicom(data: bytes, syntax: str) -> dict[int, bytes]:
    """The wanted elements' bytes. Raises whatever pydicom does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = read_dataset(BytesIO(data), syntax == IMPLICIT, syntax != BIG_ENDIAN)
        return {tag: ds.get_item(tag).value or b"" for tag in WANTED if tag in ds}


@cache
def whole() -> list[tuple[bytes, str]]:
    """What pydicom ships and is no longer than it has to be."""
    return [(data, syntax) for _, data, syntax, _ in shipped() if syntax != DEFLATED and len(data) < 2**17]


def test_every_file_pydicom_ships_reads_as_pydicom_reads_it() -> None:
    compared = 0
    for name, data, syntax, _ in shipped():
        if syntax != DEFLATED:
            right = {tag: value[: walk.MAX_VALUE_BYTES + 1] for tag, value in by_pydicom(data, syntax).items()}
            assert (name, walked(data, syntax, 9973).values) == (name, right)
            compared += 1
    assert compared > 140


def test_mutations_that_end_well_and_are_not_odd_read_as_pydicom_reads_them() -> None:
    rng, compared = random.Random(1), 0
    for data, syntax in whole() * 4:
        mutated = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            mutated[rng.randrange(min(2000, len(mutated)))] = rng.randrange(256)
        found = walked(bytes(mutated), syntax)
        if not found.doubts:
            assert found.values == by_pydicom(bytes(mutated), syntax)
            compared += 1
    assert compared > 150
