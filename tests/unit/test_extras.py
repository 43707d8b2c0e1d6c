"""GATEWAY_EXTRA_ATTRIBUTES: what it may say, and that what it names is kept, of the first image or of each."""

import struct
from typing import Any

import pytest

from common.attributes import MAX_OF_IMAGES, OF_IMAGES, news
from common.extras import MOST, Extra, extras
from common.settings import GatewaySettings, SettingsError
from dicom.header import Wanted, read_instance
from gateway.idle import Fixed
from models import Instance
from storage import merge
from tests.rig.data_sets import element, identity
from tests.rig.factories import RECEIVED_AT, collector_of, make_report


@pytest.mark.parametrize(
    ("entry", "extra"),
    [
        ("EchoTime", Extra("EchoTime", 0x00180081, "DS")),
        ("(0018,0081)", Extra("EchoTime", 0x00180081, "DS")),
        ("00180081*", Extra("EchoTime", 0x00180081, "DS", of_images=True)),
        ("Te=EchoTime", Extra("Te", 0x00180081, "DS")),
        ("(0019,0c,SIEMENS MR HEADER)", Extra("0019xx0C", 0x0019000C, "LO", "SIEMENS MR HEADER")),
        ("(0019,0c,A%3BB%2C %28C%29 5%25,IS)", Extra("0019xx0C", 0x0019000C, "IS", "A;B, (C) 5%")),
        ("(0019,0c,100% OURS)", Extra("0019xx0C", 0x0019000C, "LO", "100% OURS")),
        (
            "BValue=(0019,0C,SIEMENS MR HEADER,IS)*",
            Extra("BValue", 0x0019000C, "IS", "SIEMENS MR HEADER", of_images=True),
        ),
    ],
)
def test_an_entry_names_an_attribute(entry: str, extra: Extra) -> None:
    assert extras(f" {entry} ;") == (extra,)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("EchoTimes", "'EchoTimes' is not an attribute of PS3.6"),
        ("(0019,000C)", "is not an attribute of PS3.6"),
        ("(0018,0C,X)", "its group is even"),
        ("EchoTime, Rows", "'EchoTime, Rows' cannot be read: write EchoTime"),
        ("PixelData", "has VR OB"),
        ("RequestAttributesSequence", "has VR SQ"),
        ("(0019,0C,X,ZZ)", "has VR ZZ"),
        ("PatientID=(0019,0C,X)", "has the name of another attribute"),
        ("EchoTime;00180081", "has EchoTime twice: remove one"),
        (";".join(f"N{n}=EchoTime" for n in range(MOST + 1)), f"at most {MOST}"),
    ],
)
def test_a_wrong_entry_stops_the_start_with_the_cure(text: str, told: str) -> None:
    with pytest.raises(SettingsError, match="GATEWAY_EXTRA_ATTRIBUTES") as wrong:
        GatewaySettings(extra_attributes=text)
    assert told in str(wrong.value)


def read(text: str, *elements: tuple[int, str, bytes], sop: bytes = b"1.2.3") -> Instance:
    return read_bytes(text, b"".join(element(*e) for e in sorted([*identity(SOPInstanceUID=sop), *elements])))


def read_bytes(text: str, data: bytes) -> Instance:
    return read_instance(
        data,
        wanted=Wanted(extras(text)),
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        calling_ae_title="AE",
        peer_address="::1",
        received_at=RECEIVED_AT,
    )


@pytest.mark.parametrize("block", [0x10, 0x11, 0xFF])
def test_a_private_attribute_is_found_in_the_block_of_its_creator(block: int) -> None:
    other = 0x10 if block != 0x10 else 0x12
    instance = read(
        "BValue=(0019,0C,SIEMENS MR HEADER,IS)",
        (0x00190000 | other, "LO", b"ANOTHER"),
        (0x00190000 | block, "LO", b"SIEMENS MR HEADER"),
        (0x0019000C | other << 8, "IS", b"7"),
        (0x0019000C | block << 8, "IS", b"1000"),
    )
    assert instance.attributes["BValue"] == ("1000",)
    assert "BValue" not in read("BValue=(0019,0C,SIEMENS MR HEADER,IS)", (0x0019100C, "IS", b"7")).attributes


def test_a_creator_may_have_what_separates_entries() -> None:
    creator, value = (0x00190010, "LO", b"MADE; BY, US (5%)"), (0x0019100C, "LO", b"7")
    instance = read("N=(0019,0C,MADE%3B BY%2C US %285%25%29);EchoTime", creator, value, (0x00180081, "DS", b"1.5 "))
    assert (instance.attributes["N"], instance.attributes["EchoTime"]) == (("7",), ("1.5",))


@pytest.mark.parametrize(
    ("named", "vr", "sent", "values"),
    [
        ("", "US", struct.pack("<2H", 3, 4), ("3", "4")),
        ("", "UL", struct.pack("<L", 3) + b"\1\2", ("3",)),  # with part of another one
        ("", "FD", struct.pack("<d", 0.1), ("0.1",)),
        (",US", "IS", b"1000", ("1000",)),
        (",IS", "SL", struct.pack("<l", -5), ("-5",)),
        (",US", "UN", b"\1\0", ("1",)),
        (",IS", "SH", b"A", ("A",)),
    ],
)
def test_a_private_value_is_read_by_the_vr_that_it_was_sent_with(
    named: str, vr: str, sent: bytes, values: tuple[str, ...]
) -> None:
    long = struct.pack("<HH2s2xL", 0x19, 0x100C, b"UN", len(sent)) + sent
    data = b"".join(element(*e) for e in sorted([*identity()[2:], (0x00190010, "LO", b"X")]))
    data += long if vr == "UN" else element(0x0019100C, vr, sent)
    data += b"".join(element(*e) for e in identity()[:2])
    assert read_bytes(f"N=(0019,0C,X{named})", data).attributes["N"] == values


@pytest.mark.parametrize(
    ("entry", "vr", "sent", "values"),
    [
        ("EchoTime", "DS", b"1.5\\2 ", ("1.5", "2")),
        ("ScanningSequence", "CS", b"", ()),
        ("SamplesPerPixel", "US", struct.pack("<2H", 3, 4), ("3", "4")),
        ("DiffusionBValue", "FD", struct.pack("<d", 0.1), ("0.1",)),
        ("(0018,9074)", "DT", b"20260101", ("20260101",)),
        ("InstitutionName", "LO", "Zürich".encode("latin-1"), ("Zürich",)),
    ],
)
def test_values_are_kept_in_text_form(entry: str, vr: str, sent: bytes, values: tuple[str, ...]) -> None:
    (extra,) = extras(entry)
    instance = read(entry, (0x00080005, "CS", b"ISO_IR 100"), (extra.tag, vr, sent))
    assert instance.attributes[extra.name] == values


def test_of_a_series_the_first_value_is_kept_or_those_of_every_image() -> None:
    collector = collector_of(Fixed(1.0))
    for n in (1, 2, 1, 3):
        number = (0x00180081, "DS", b"%d" % n)
        collector.observe(read("EchoTime; EchoTime*", number, sop=b"1.2.%d" % n), 0.0)
    (report,) = collector.drain(1.0)
    assert report.Attributes["EchoTime"] == ["1"]
    assert report.Attributes["EchoTimeOfImages"] == ["1", "2", "3"]


def test_the_values_of_every_image_are_joined_in_the_row() -> None:
    known: Any = merge.new_row(make_report("1"), RECEIVED_AT) | {"PatientName": None, "ExpectedInstances": None}
    known |= dict.fromkeys(
        (
            *("Verdict", "Basis", "Source", "IdlePolicy", "ExpectedFrom", "LastReceivedAt", "FirstReceivedAt"),
            *("CalledAETitle", "Withdrawn"),
        )
    )
    for values in (["1", "2"], ["3", "2"]):
        report = make_report("1").model_copy(update={"Attributes": {"EOfImages": values, "E": values}})
        known |= merge.changes(report, known, 1, RECEIVED_AT)
    assert (known["Attributes"]["EOfImages"], known["Attributes"]["E"]) == (["1", "2", "3"], ["1", "2"])


def test_they_are_bounded_and_what_is_known_is_no_news() -> None:
    known = {"XOfImages": tuple(map(str, range(MAX_OF_IMAGES)))}
    assert news({"XOfImages": ("new",), "Y": ()}, known) == {}
    assert news({"XOfImages": ("1",)}, {"XOfImages": ("1", "2")}) == {}


def test_a_name_longer_than_a_report_takes_is_refused_at_the_start() -> None:
    from pydicom.datadict import DicomDictionary  # type: ignore[attr-defined]

    keywords = {entry[4] for entry in DicomDictionary.values() if len(entry[4]) > 56 and entry[1] == "1"}
    refused = 0
    for keyword in sorted(keywords):
        for entry in (f"{keyword}*", f"Short={keyword}*", keyword):
            try:
                (extra,) = extras(entry)
            except ValueError as error:
                assert "GATEWAY_EXTRA_ATTRIBUTES" in str(error)
                refused += 1
            else:
                assert len(extra.name + (OF_IMAGES if extra.of_images else "")) <= 64
    assert refused


def test_what_is_longer_than_is_kept_breaks_no_standard_where_a_site_wants_it() -> None:
    wanted = Wanted(extras("(0029,10,OTHER CREATOR);ImageComments"))
    more = [(0x00204000, "LT", b"x" * 2000), (0x00290010, "LO", b"SOMEBODY"), (0x00291010, "LT", b"x" * 2000)]
    found = read_instance(
        b"".join(element(*e) for e in sorted([*identity(), *more])),
        wanted=wanted,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        calling_ae_title="A",
        peer_address="127.0.0.1",
        received_at=RECEIVED_AT,
    )
    assert not found.doubtful
