"""header.py on real bytes, with pydicom as the oracle."""

import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom.deflate import MAX_INFLATED_BYTES
from dicom.header import (
    ALWAYS,
    INSTANCE_LEVEL,
    MAX_INSTANCE_VALUE,
    OTHER_VR,
    PYDICOM_BYTES,
    REQUEST_ATTRIBUTES,
    WANTED,
    HeaderError,
    _decode_element,
    finish,
    instance_values,
    read_instance,
    with_class_of_command,
)
from dicom.walk import MAX_ITEMS, MAX_VALUE_BYTES
from gateway.idle import Fixed
from models import INSTANCE_KEYWORDS, Instance
from tests.rig.data_sets import REQUIRED, SYNTAXES, element, header, identity, oracle, requests, rewritten, shipped
from tests.rig.factories import RECEIVED_AT, SERIES, collector_of, encode, make_dataset


def read(data: bytes, syntax: str = ExplicitVRLittleEndian) -> Instance:
    return read_instance(
        data, transfer_syntax_uid=syntax, calling_ae_title="AE", peer_address="::1", received_at=RECEIVED_AT
    )


# --- the oracle ---------------------------------------------------------------------------------------------


def test_every_file_pydicom_ships_reads_as_pydicom_reads_it() -> None:
    compared = 0
    for name, data, syntax, expected in shipped():
        if all(expected.get(keyword) for keyword in REQUIRED):
            assert (name, dict(read(data, syntax).attributes).items() >= expected.items()) == (name, True)
            compared += 1
        else:
            with pytest.raises(HeaderError):
                read(data, syntax)
    assert compared > 140


def test_what_is_wanted_is_known_to_pydicom() -> None:
    for tag, (keyword, vr) in (WANTED | REQUEST_ATTRIBUTES).items():
        element = Dataset()
        element.add_new(tag, vr, None)
        assert element[tag].keyword == keyword


@pytest.mark.parametrize(("announced", "implicit"), [(ImplicitVRLittleEndian, False), (ExplicitVRLittleEndian, True)])
def test_data_set_encoded_otherwise_than_announced_is_still_read(announced: str, implicit: bool) -> None:
    ds = make_dataset()
    instance = read(encode(ds, implicit=implicit, little_endian=True), announced)
    assert dict(instance.attributes).items() >= oracle(ds).items()


def test_pydicoms_reader_gets_a_bounded_part_and_its_errors_do_not_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    nested = struct.pack("<HHLHHL", 0x0008, 0x1140, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF) * 5000
    with pytest.raises(HeaderError):
        read(nested, ImplicitVRLittleEndian)
    seen: list[int] = []

    def none_of(file: BytesIO, *_: bool) -> Iterator[RawDataElement]:
        seen.append(len(file.getvalue()))
        return iter(())

    monkeypatch.setattr("dicom.header.data_element_generator", none_of)
    with pytest.raises(HeaderError):
        read(bytes(2**20))
    assert seen == [PYDICOM_BYTES]


def test_what_pydicoms_reader_found_before_it_failed_is_kept() -> None:
    sequence = struct.pack("<HH2s2xL", 0x0008, 0x1115, b"SQ", 0xFFFFFFFF)
    too_long = struct.pack("<HHL", 0xFFFE, 0xE000, 0x49FFFFFF)  # our own walk passes over all that is behind it
    ends = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    cut = struct.pack("<HH2s2xL", 0x0040, 0xA730, b"SQ", 0xFFFFFFFF)  # pydicom's raises an error for it
    numbers = [(0x00200013, "IS", b"7"), (0x00280010, "US", b"\0\2"), (0x00280011, "UL", b"\0\1\0\0")]
    behind = header(*numbers, (0x00280008, "UL", b"\3\0\0\0"))
    instance = read(sequence + too_long + element(0x00081150, "UI", b"1.2") + ends + behind + cut)
    assert instance.series_instance_uid == SERIES
    assert [instance.text(name) for name in ("InstanceNumber", "Rows", "Columns", "NumberOfFrames")] == [
        "7",
        "512",
        "256",
        "3",
    ]
    assert instance.doubtful == ("ends early", OTHER_VR)
    as_they_should_be = header(*numbers[:2])
    instance = read(sequence + too_long + element(0x00081150, "UI", b"1.2") + ends + as_they_should_be + cut)
    assert instance.text("Rows") == "512"
    assert instance.doubtful == ("ends early",)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_every_encoding_of_one_data_set_reads_alike(syntax: str) -> None:
    instance = read(rewritten(make_dataset(), syntax), syntax)
    assert instance.attributes == read(encode(make_dataset())).attributes
    assert (instance.attributes["Rows"], instance.attributes["BitsAllocated"]) == (("8",), ("16",))


# --- identity -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keyword", REQUIRED)
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "is missing"),
        (b"", "is empty"),
        (b"\0\0", "is empty"),
        (b"  ", "is empty"),
        (b"1.2\\1.3", "has several values"),
        (b"1" * 129, "is not a UID"),
        (b"1.\xe9", "is not a UID"),
        (b"1.\x002", "is not a UID"),
        (b"1.2\n", "is not a UID"),
    ],
)
def test_identity_that_cannot_be_used_is_refused_by_name(keyword: str, value: bytes | None, problem: str) -> None:
    with pytest.raises(HeaderError) as error:
        read(header(**{keyword: value}))
    assert str(error.value) == f"{keyword} {problem}"
    assert error.value.tag == REQUIRED[keyword]


@pytest.mark.parametrize("value", [b"1.2.0", b"1" * 64, b"1.2\0", b"1.2 "])
def test_uid_is_taken_as_sent_but_for_padding(value: bytes) -> None:
    instance = read(header(SeriesInstanceUID=value))
    assert (instance.series_instance_uid, instance.doubtful) == (value.rstrip(b"\0 ").decode(), ())


@pytest.mark.parametrize("keyword", [*REQUIRED, "SOPClassUID"])
@pytest.mark.parametrize(
    "value", [b"01.002.3", b"1" * 65, b"1" * 128, b"1..2", b".1", b"1.2.x", b"../../evil", b"a,b c;~", b"%2e"]
)
def test_uid_that_others_take_is_taken_as_sent_and_said(keyword: str, value: bytes) -> None:
    odd = (0x00080016, "UI", value)
    instance = read(header(odd) if keyword == "SOPClassUID" else header(**{keyword: value}))
    assert instance.doubtful == (f"{keyword} is none of PS3.5 9.1",)
    assert value.decode() in (*instance.key, instance.sop_instance_uid, instance.sop_class_uid)
    collector = collector_of(Fixed(1.0))
    collector.observe(instance, 0.0)
    (report,) = collector.drain(1.0)
    assert collector.failures() == []
    assert (report.SeriesInstanceUID, report.Doubtful) == (instance.series_instance_uid, list(instance.doubtful))


def test_several_classes_are_taken_as_sent_and_said() -> None:
    instance = read(header((0x00080016, "UI", b"1.2.8\\1.2.9")))
    assert instance.sop_class_uid == "1.2.8\\1.2.9"
    assert instance.doubtful == ("SOPClassUID is none of PS3.5 9.1",)


def test_the_class_of_the_command_stands_where_there_is_no_other() -> None:
    instance = read(header())
    assert with_class_of_command(instance, "1.2.7").sop_class_uid == "1.2.7"
    told = with_class_of_command(read(header((0x00080016, "UI", b"1.2.8"))), "1.2.7")
    assert (told.sop_class_uid, told.doubtful) == ("1.2.8", ("SOPClassUID is not the command's",))
    assert with_class_of_command(told, "1.2.8") is told


# --- text ---------------------------------------------------------------------------------------------------


def named(name: bytes, charset: bytes | None = None) -> Instance:
    elements = [(0x00100010, "PN", name)] + ([(0x00080005, "CS", charset)] if charset is not None else [])
    return read(header(*elements))


@pytest.mark.parametrize(
    ("charset", "sent", "text"),
    [
        (b"ISO_IR 100", b"Buc^J\xe9r\xf4me", "Buc^Jérôme"),
        (b"ISO_IR 192", "Wang^小東".encode(), "Wang^小東"),
        (b"GB18030", "王^小东".encode("gb18030"), "王^小东"),
        (b"GBK", "誠^\u8a93".encode("gbk"), "誠^誓"),
        (b"ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ".encode("shift_jis"), "ﾔﾏﾀﾞ^ﾀﾛｳ"),
        (b"\\ISO 2022 IR 87", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B", "Yamada^Tarou=山田^太郎"),
        (b"\\ISO 2022 IR 149", b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7", "Hong^Gildong=洪^吉洞"),
        (b"\\ISO 2022 IR 58", b"Zhang=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1", "Zhang=张^小"),
        # an escape sequence that is not repeated behind a delimiter
        (b"\\ISO 2022 IR 149", b"Hong^Gildong=\x1b$)C\xfb\xf3^\xd1\xce\xd4\xd7", "Hong^Gildong=洪^吉洞"),
        (b"\\ISO 2022 IR 58", b"Zhang=\x1b$)A\xd5\xc5^\xd0\xa1", "Zhang=张^小"),
        (b"\\ISO 2022 IR 13", b"\x1b)I\xb1^\xb2", "ｱ^ｲ"),
        (b"\\ISO 2022 IR 144", b"\x1b-L\xbb\xee^\xcf", "Лю^Я"),
        (b"\\ISO 2022 IR 144", b"\x1b-L\xbb\xee\x1b(B^\xcf", "Лю^Я"),
        (b"ISO 2022 IR 100\\ISO 2022 IR 144", b"\x1b-L\xbb\xee^\xe9", "Лю^é"),
        # padding in a set that is still escaped to
        (b"\\ISO 2022 IR 87", b"\x1b$B;3ED ", "山田"),
        (b"\\ISO 2022 IR 87", b"\x1b$B;3ED\0", "山田"),
    ],
)
def test_text_is_decoded_by_its_character_set(charset: bytes, sent: bytes, text: str) -> None:
    instance = named(sent, charset)
    assert (instance.text("PatientName"), instance.undecoded) == (text, {})


@pytest.mark.parametrize(
    ("term", "sent"),
    [
        (b"ISO-IR 144", b"\xbb\xee"),
        (b"ISO_IR_144", b"\xbb\xee"),
        (b"ISO IR 192", "Лю".encode()),
        (b"iso_ir 192", "Лю".encode()),
        (b"UTF-8", "Лю".encode()),
        (b"GB 18030", "Лю".encode("gb18030")),
        (b"ISO_2022_IR_6\\ISO_2022_IR_144", b"\x1b-L\xbb\xee"),
    ],
)
def test_a_misspelt_character_set_is_understood_and_said(term: bytes, sent: bytes) -> None:
    instance = named(sent, term)
    assert (instance.text("PatientName"), instance.undecoded) == ("Лю", {})
    assert instance.doubtful == ("SpecificCharacterSet has no defined term",)


@pytest.mark.parametrize("charset", [b"ISO 2022 IR 6\\nonsense", b"nonsense\\ISO 2022 IR 6", b"nonsense"])
def test_one_term_that_is_none_is_said_beside_others(charset: bytes) -> None:
    assert named(b"Test", charset).doubtful == ("SpecificCharacterSet has no defined term",)
    assert named(b"Test", b"ISO 2022 IR 6\\ISO 2022 IR 144").doubtful == ()


@pytest.mark.parametrize("term", [b"rot13", b"unicode_escape", b"punycode", b"idna", b"hex"])
def test_no_other_codec_of_pythons_is_let_in(term: bytes) -> None:
    assert "PatientName" in named(b"\xff", term).undecoded


@pytest.mark.parametrize(
    ("charset", "sent", "guess"),
    [
        (None, "Müller^Jörg".encode(), "Müller^Jörg"),
        (None, "Müller^Jörg".encode("latin-1"), "Müller^Jörg"),
        (b"ISO_IR 6", b"\xff\xfe", "ÿþ"),
        (b"ISO_IR 192", b"M\xfcller", "Müller"),
        (b"NO SUCH SET", "Müller".encode(), "Müller"),
        (b"\\ISO 2022 IR 87", b"\x1b$Z12", "\x1b$Z12"),
        (b"\\ISO 2022 IR 87", b"\x1b$B\xff\xff", "\x1b$Bÿÿ"),
        (b"\\ISO 2022 IR 87", b"\x1b$B;3ED\x1b(B\xf7\x1b$BB@O:\x1b(B", "山田÷太郎"),
        (b"\\ISO 2022 IR 87", "Müller^".encode() + b"\x1b$B;3ED\x1b(B", "Müller^山田"),
    ],
)
def test_text_that_contradicts_its_character_set_is_guessed_flagged_and_kept(
    charset: bytes | None, sent: bytes, guess: str
) -> None:
    instance = named(sent, charset)
    assert instance.text("PatientName") == guess
    assert instance.undecoded["PatientName"].rstrip(b"\0") == sent


def test_text_of_absurd_length_is_cut_and_flagged() -> None:
    instance = named(b"x" * 5000)
    assert instance.text("PatientName") == "x" * MAX_VALUE_BYTES
    assert instance.undecoded == {"PatientName": b"x" * MAX_VALUE_BYTES}


@pytest.mark.parametrize("length", [256, 257, 300, 1024, 5000])
def test_patient_id_of_any_length_can_be_reported_and_is_flagged_where_it_is_cut(length: int) -> None:
    instance = read(header((0x00100020, "LO", b"7" * length)))
    collector = collector_of(Fixed(1.0))
    collector.observe(instance, 0.0)
    (report,) = collector.drain(1.0)
    assert report.PatientID == "7" * min(length, 256)
    assert ("PatientID" in report.Undecoded) is (length > 256)


def test_backslash_inside_a_two_byte_character_does_not_split() -> None:
    sent = "誠".encode("gbk")
    assert sent[1] == 0x5C
    assert named(sent, b"GBK").attributes["PatientName"] == ("誠",)


def test_backslash_in_a_name_is_kept() -> None:
    instance = named(b"One\\Two")
    assert (instance.attributes["PatientName"], instance.text("PatientName")) == (("One", "Two"), "One\\Two")


def test_nul_and_padding_are_removed() -> None:
    assert named(b" Do\0e^Jane \0").text("PatientName") == "Doe^Jane"


def test_absent_and_empty_names_are_none() -> None:
    absent, empty, blank = read(header()), named(b""), named(b"  ")
    assert [i.text("PatientName") for i in (absent, empty, blank)] == [None, None, None]
    assert "PatientName" not in absent.attributes
    assert (empty.attributes["PatientName"], blank.attributes["PatientName"]) == ((), ())


# --- of each instance ---------------------------------------------------------------------------------------


def test_every_attribute_of_the_instance_level_but_its_uid_is_kept_of_each() -> None:
    assert {*INSTANCE_KEYWORDS, "SOPInstanceUID"} == {keyword for keyword, _ in INSTANCE_LEVEL.values()}


def test_values_of_an_instance_stand_in_the_order_of_their_keywords() -> None:
    ds = make_dataset()
    ds.InstanceNumber, ds.Rows, ds.NumberOfFrames = 7, 9, 30
    assert instance_values(read(encode(ds))) == (ds.SOPClassUID, "7", "9", "8", "16", "30")


@pytest.mark.parametrize("sent", [None, b"", b"  ", b"\0\0", b"1" * (MAX_INSTANCE_VALUE + 2), b"1\\" * 80])
def test_value_that_is_absent_or_too_long_to_be_valid_is_none(sent: bytes | None) -> None:
    elements = [(tag, vr, sent) for tag, (_, vr) in INSTANCE_LEVEL.items() if tag not in REQUIRED.values() and sent]
    numbers = [(0x00280010, "US", b"\0\0" * 80)]  # all of them are Rows
    values = instance_values(read(header(*(e for e in elements if e[1] != "US"), *(numbers if sent else ()))))
    assert values == (None,) * len(INSTANCE_KEYWORDS)


def test_longest_value_is_kept_without_nul() -> None:
    sent = b"1" * (MAX_INSTANCE_VALUE - 1) + b"\x002"
    assert instance_values(read(header((0x00200013, "IS", sent))))[1] == "1" * (MAX_INSTANCE_VALUE - 1) + "2"


def test_equal_values_of_different_images_are_one_object() -> None:
    one, other = (read(encode(make_dataset(sop, series=f"1.{sop}"))) for sop in "12")
    assert instance_values(one) is instance_values(other)


# --- numbers, by the VR that they were sent with --------------------------------------------------------------------

ROWS, FRAMES, NUMBER, THICKNESS = 0x00280010, 0x00280008, 0x00200013, 0x00180050


@pytest.mark.parametrize(
    ("tag", "vr", "sent", "number"),
    [
        (ROWS, "IS", b"512 ", "512"),
        (ROWS, "DS", b"512.0 ", "512"),
        (ROWS, "LO", b"+512", "+512"),
        (ROWS, "SS", struct.pack("<h", 512), "512"),
        (ROWS, "UL", struct.pack("<L", 512), "512"),
        (ROWS, "SL", struct.pack("<l", -1), "-1"),
        (ROWS, "FD", struct.pack("<d", 512), "512"),
        (FRAMES, "US", struct.pack("<H", 30), "30"),
        (FRAMES, "UL", struct.pack("<L", 30), "30"),
        (NUMBER, "US", struct.pack("<H", 7), "7"),
        (NUMBER, "DS", b"7.00", "7"),
        (THICKNESS, "FD", struct.pack("<d", 0.625), "0.625"),
        (THICKNESS, "FL", struct.pack("<f", 0.1), "0.1"),
        (THICKNESS, "LO", b"0.625 ", "0.625"),
    ],
)
def test_a_number_of_another_vr_is_read_by_the_vr_as_sent_and_said(tag: int, vr: str, sent: bytes, number: str) -> None:
    instance = read(header((tag, vr, sent)))
    assert instance.text(WANTED[tag][0]) == number
    assert instance.doubtful == (OTHER_VR,)


@pytest.mark.parametrize("vr", ["IS", "UL"])
def test_a_number_without_value_has_none_whatever_its_vr(vr: str) -> None:
    assert read(header((ROWS, vr, b""))).attributes["Rows"] == ()


def test_a_number_of_unknown_vr_is_as_it_should_be() -> None:
    unknown = struct.pack("<HH2s2xLH", 0x28, 0x10, b"UN", 2, 512)
    instance = read(header() + unknown)
    assert (instance.text("Rows"), instance.doubtful) == ("512", ())


@pytest.mark.parametrize(
    ("tag", "vr", "sent"),
    [
        (ROWS, "IS", b"wide"),
        (ROWS, "UL", b"\0\2"),
        (ROWS, "DS", b"1.5 "),
        (ROWS, "FD", struct.pack("<d", float("nan"))),
        (THICKNESS, "FD", struct.pack("<d", float("inf"))),
        (FRAMES, "DS", b"1e99\\x"),
    ],
)
def test_a_number_that_its_vr_cannot_be_is_no_value_and_said(tag: int, vr: str, sent: bytes) -> None:
    instance, keyword = read(header((tag, vr, sent))), WANTED[tag][0]
    assert instance.attributes[keyword] == ()
    assert f"{keyword} cannot be read by its value representation" in instance.doubtful


def test_the_vr_is_that_of_the_value_that_stands() -> None:
    own, other = element(ROWS, "US", struct.pack("<H", 8)), element(ROWS, "IS", b"512 ")
    empty = element(ROWS, "IS", b"")
    for sent, number in ((own + other, "512"), (other + own, "8"), (own + empty, "8")):
        for pieces in (1, 7, 1000):
            walk = ALWAYS.begin(ExplicitVRLittleEndian)
            data = header() + sent
            for at in range(0, len(data), pieces):
                walk.feed(data[at : at + pieces])
            fields = {"calling_ae_title": "AE", "peer_address": "::1", "received_at": RECEIVED_AT}
            instance = finish(walk, transfer_syntax_uid=ExplicitVRLittleEndian, **fields)  # type: ignore[arg-type]
            assert instance.text("Rows") == number


# --- sequences ----------------------------------------------------------------------------------------------

UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = (
    struct.pack("<HHL", 0xFFFE, e, n) for e, n in ((0xE000, UNDEFINED), (0xE00D, 0), (0xE0DD, 0))
)


def sequence(tag: int, vr: str = "SQ") -> bytes:
    return struct.pack("<HH2s2xL", tag >> 16, tag & 0xFFFF, vr.encode(), UNDEFINED)


def behind_sop_uid(between: bytes) -> bytes:
    """A header with these bytes at (0008,1140), behind the SOP Instance UID and before the others."""
    sop, study, series = (element(*e) for e in sorted(identity()))
    return sop + between + study + series


@pytest.mark.parametrize("depth", [1, 300, 20_000])
def test_deep_sequences_are_skipped(depth: int) -> None:
    nested = (sequence(0x00081140) + ITEM) * depth + (ITEM_END + SEQUENCE_END) * depth
    assert read(behind_sop_uid(nested)).series_instance_uid == SERIES


def test_un_of_undefined_length_holds_implicit_items() -> None:
    inside = struct.pack("<HHL", 0x0008, 0x1150, 4) + b"1.2\0"  # read as explicit, the length would be elsewhere
    data = sequence(0x00081140, "UN") + ITEM + inside + ITEM_END + SEQUENCE_END
    assert read(behind_sop_uid(data)).series_instance_uid == SERIES


def test_decoy_inside_a_sequence_is_not_taken() -> None:
    decoy = sequence(0x00081140) + ITEM + element(0x0020000E, "UI", b"9.9.9") + ITEM_END + SEQUENCE_END
    assert read(behind_sop_uid(decoy)).series_instance_uid == SERIES


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_request_attributes_stand_flat_in_item_order(syntax: str, undefined: bool) -> None:
    ds = requests()
    ds["RequestAttributesSequence"].is_undefined_length = undefined
    for item in ds.RequestAttributesSequence:
        item.is_undefined_length_sequence_item = undefined
    attributes = read(rewritten(ds, syntax), syntax).attributes
    assert attributes["ScheduledProcedureStepID"] == ("STEP", "")
    assert attributes["RequestedProcedureID"] == ("", "PROCEDURE")


def test_no_more_requests_are_kept_than_a_report_takes() -> None:
    ds = make_dataset()
    ds.RequestAttributesSequence = [Dataset() for _ in range(100)]
    with warnings.catch_warnings(action="ignore"):  # longer than an SH may be
        for item in ds.RequestAttributesSequence:
            item.RequestedProcedureID = "P" * MAX_VALUE_BYTES
        instance = read(encode(ds))
    assert len(instance.attributes["RequestedProcedureID"]) == MAX_ITEMS
    collector = collector_of(Fixed(1.0))
    collector.observe(instance, 0.0)
    (report,) = collector.drain(9.0)
    assert collector.failures() == []
    assert len(report.Attributes["RequestedProcedureID"]) == MAX_ITEMS


# --- hostile and broken bytes -------------------------------------------------------------------------------


def test_deflate_bomb_is_inflated_no_further_than_the_limit() -> None:
    bomb = element(0x00080018, "UI", b"1.2.3") + struct.pack("<HH2s2xL", 9, 16, b"OB", 200 * 2**20)
    compressor = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    data = compressor.compress(bomb) + b"".join(compressor.compress(bytes(2**20)) for _ in range(200))
    data += compressor.compress(header()) + compressor.flush()
    tracemalloc.start()
    with pytest.raises(HeaderError, match="StudyInstanceUID is missing"):
        read(data, DeflatedExplicitVRLittleEndian)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20 < MAX_INFLATED_BYTES


def test_garbage_instead_of_deflate_is_refused() -> None:
    with pytest.raises(HeaderError):
        read(b"\xff" * 100, DeflatedExplicitVRLittleEndian)


def test_pixels_that_are_none_cost_nothing_before_them() -> None:
    data = header((0x00280010, "US", b"\x08\0")) + b"\xe0\x7f\x10\x00" + b"\xff" * 1000
    assert read(data).series_instance_uid == SERIES


def read_or_refuse(data: bytes, syntax: str) -> None:
    try:
        instance = read(data, syntax)
    except HeaderError as error:
        assert error.tag in REQUIRED.values()
    else:
        assert all((instance.study_instance_uid, instance.series_instance_uid, instance.sop_instance_uid))


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_header_cut_anywhere_is_read_or_refused(syntax: str) -> None:
    data = rewritten(requests(), syntax)
    for end in range(len(data)):
        read_or_refuse(data[:end], syntax)


@given(st.binary(max_size=400), st.sampled_from(SYNTAXES))
def test_any_bytes_are_read_or_refused(data: bytes, syntax: str) -> None:
    read_or_refuse(data, syntax)


@settings(max_examples=300)
@given(st.data(), st.sampled_from(SYNTAXES[:3]))
def test_a_mutated_header_is_read_or_refused(data: st.DataObject, syntax: str) -> None:
    mutated = bytearray(rewritten(requests(), syntax))
    for _ in range(data.draw(st.integers(1, 8))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    read_or_refuse(bytes(mutated), syntax)


@pytest.mark.parametrize("nothing", [ITEM, ITEM_END, SEQUENCE_END, b"\0" * 8])
def test_a_megabyte_of_tiny_items_is_walked_once(nothing: bytes) -> None:
    read_or_refuse(sequence(0x00081140) + nothing * 130_000, ExplicitVRLittleEndian)


@pytest.mark.parametrize(
    "charset", [b"ut\0f8", b"\0utf8", b"lat\0in1", b"iso-8859-1", b"iso8859_1", b"windows 1252", b"\0\0"]
)
def test_no_character_set_keeps_an_image_out(charset: bytes) -> None:
    assert named(b"TEST^ONE", charset).text("PatientName") == "TEST^ONE"


def test_long_values_are_not_remembered() -> None:
    before = _decode_element.cache_info().currsize
    found = [named(b"%0900d" % number) for number in range(9)]
    assert len({image.text("PatientName") for image in found}) == 9
    assert _decode_element.cache_info().currsize <= before + 8
