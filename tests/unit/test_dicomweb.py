"""What a QIDO-RS request says, and the DICOM JSON Model of what is stored."""

import json
import string
import warnings
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataset import Dataset

from api.dicomweb.answer import IF_KNOWN, OPTIONAL, REQUIRED, Totals, add_up, data_set
from api.dicomweb.request import MAX_LIMIT, BadQuery, Query, parse
from models import INSTANCE_KEYWORDS
from storage.matching import Like, OneOf, Range, _after
from storage.search import KEYS, Level


def query(text: str, level: Level = Level.INSTANCE, path: Mapping[str, str] = {}) -> Query:
    return parse(level, parse_qsl(text, keep_blank_values=True), path)


def keys(text: str, level: Level = Level.INSTANCE, path: Mapping[str, str] = {}) -> dict[str, Any]:
    return dict(query(text, level, path).search.keys)


# --- names of attributes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["PatientID", "00100020"])
def test_keyword_and_tag_name_the_same_attribute(name: str) -> None:
    assert keys(f"{name}=P1") == {"PatientID": OneOf(("P1",))}


def test_tag_may_have_small_letters() -> None:
    assert keys("0020000d=1.2") == {"StudyInstanceUID": OneOf(("1.2",))}


@pytest.mark.parametrize(
    "name",
    [
        "RequestAttributesSequence.RequestedProcedureID",
        "00400275.00401001",
        "RequestAttributesSequence.00401001",
        "00400275.RequestedProcedureID",
    ],
)
def test_attribute_of_a_sequence_is_named_by_a_path(name: str) -> None:
    assert keys(f"{name}=R1") == {"RequestAttributesSequence.RequestedProcedureID": OneOf(("R1",))}


@pytest.mark.parametrize("key", KEYS)
def test_every_key_can_be_matched_at_the_level_of_instances(key: str) -> None:
    value = {"DA": "20260101", "TM": "0930", "UI": "1.2"}.get(dictionary_VR(key.rpartition(".")[2]), "7")
    asked = query(f"{key}={value}")
    assert list(asked.search.keys) == [key]
    assert asked.warnings == ()


# --- values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("PatientName=Doe^Peter", OneOf(("Doe^Peter",))),
        ("PatientName=Doe*", Like("Doe*")),
        ("PatientName=D?e", Like("D?e")),
        ("PatientName=M%C3%BCller", OneOf(("Müller",))),
        ("PatientID=+A%2CB%5CC+", OneOf((r"A,B\C",))),
        ("StudyInstanceUID=1.2", OneOf(("1.2",))),
        ("StudyInstanceUID=1.2,1.3", OneOf(("1.2", "1.3"))),
        ("StudyInstanceUID=1.2%5C1.3%5C1.2", OneOf(("1.2", "1.3"))),
        ("ModalitiesInStudy=CT", OneOf(("CT",))),
        ("ModalitiesInStudy=CT,MR", OneOf(("CT", "MR"))),
        ("ModalitiesInStudy=C*", Like("C*")),
        ("SeriesNumber=%2B04", OneOf(("+04",))),
        ("Rows=512", OneOf(("512",))),
        ("StudyDate=20240229", OneOf(("20240229",))),
        ("StudyDate=20260101-20260131", Range("20260101", "20260131")),
        ("StudyDate=20260101+-+20260131", Range("20260101", "20260131")),
        ("StudyDate=20260101-", Range("20260101", None)),
        ("StudyDate=-20260131", Range(None, "20260131")),
        ("StudyTime=0930", Range("0930", "0930")),
        ("StudyTime=093000", Range("0930", "093000")),
        ("StudyTime=100000.000-", Range("10", None)),
        ("StudyTime=000000-", Range("00", None)),
        ("StudyTime=103000.500-1730", Range("103000.5", "1730")),
        ("StudyTime=-17", Range(None, "17")),
    ],
)
def test_value_says_how_to_match(text: str, match: object) -> None:
    assert list(keys(text).values()) == [match]


@pytest.mark.parametrize("value", ["", "*", "**", "+"])
@pytest.mark.parametrize("name", ["PatientName", "StudyDate", "StudyInstanceUID", "SeriesNumber", "00400275"])
def test_empty_value_and_star_match_everything_and_are_returned(name: str, value: str) -> None:
    if name == "00400275" and "*" in value:
        return  # a sequence has no value
    asked = query(f"{name}={value}")
    assert asked.search.keys == {}
    assert asked.include == {name if name != "00400275" else "RequestAttributesSequence"}


@pytest.mark.parametrize(
    ("text", "name", "cure"),
    [
        ("PatinetID=Secret", "PatinetID", "did you mean PatientID?"),
        ("PatientID.=Secret", "PatientID.", "did you mean PatientID?"),
        ("patientid=Secret", "patientid", "did you mean PatientID?"),
        ("LIMIT=1", "LIMIT", "did you mean limit?"),
        (
            "RequestAttributesSequence.RequestedProcedureId=Secret",
            "RequestAttributesSequence.RequestedProcedureId",
            "did you mean RequestAttributesSequence.RequestedProcedureID?",
        ),
        ("includefield=PatientID,StudyDte", "includefield", "did you mean StudyDate?"),
        ("limit=1&limit=1", "limit", "give it once"),
        ("RequestAttributesSequence=Secret", "RequestAttributesSequence", "match an attribute of its items"),
        ("StudyInstanceUID=S%C3%A9cret", "StudyInstanceUID", "ASCII"),
        ("StudyInstanceUID=1.2,,1.3", "StudyInstanceUID", "ASCII"),
        ("StudyInstanceUID=" + "1" * 129, "StudyInstanceUID", "ASCII"),
        ("StudyDate=2026-01-01", "StudyDate", "give a date"),
        ("StudyDate=20260230", "StudyDate", "give a date"),
        ("StudyDate=2026", "StudyDate", "give a date"),
        ("StudyDate=2026011a", "StudyDate", "give a date"),
        ("StudyDate=20260101-20260230", "StudyDate", "give a date"),
        ("StudyDate=-", "StudyDate", "give a date"),
        ("StudyDate=20260131-20260101", "StudyDate", "earlier date first"),
        ("StudyDate=%D9%A2%D9%A0%D9%A2%D9%A6%D9%A0%D9%A1%D9%A0%D9%A1", "StudyDate", "give a date"),
        ("StudyTime=24", "StudyTime", "give a time"),
        ("StudyTime=9:30", "StudyTime", "give a time"),
        ("StudyTime=093", "StudyTime", "give a time"),
        ("StudyTime=-", "StudyTime", "give a time"),
        ("StudyTime=12-11", "StudyTime", "earlier time first"),
        ("SeriesNumber=Secret", "SeriesNumber", "whole number"),
        ("SeriesNumber=4.5", "SeriesNumber", "whole number"),
        ("SeriesNumber=" + "9" * 5000, "SeriesNumber", "shorter"),
        ("InstanceNumber=*1", "InstanceNumber", "whole number"),
        ("PatientID=Secret%00", "PatientID", "control character"),
        ("PatientName=Secret%0A", "PatientName", "control character"),
        ("PatientName=" + "x" * 1025, "PatientName", "shorter"),
        ("limit=Secret", "limit", "whole number"),
        ("limit=-1", "limit", "whole number"),
        ("limit=1.0", "limit", "whole number"),
        ("limit=", "limit", "whole number"),
        ("offset=-1", "offset", "whole number"),
        ("offset=" + "9" * 5000, "offset", "whole number"),
        ("limit=%D9%A1", "limit", "whole number"),
        ("fuzzymatching=Secret", "fuzzymatching", "true nor false"),
        ("charset=Secret", "charset", "utf-8"),
    ],
)
def test_wrong_parameter_is_refused_by_name_with_the_cure(text: str, name: str, cure: str) -> None:
    with pytest.raises(BadQuery) as refused:
        query(text)
    assert str(refused.value).startswith(f"{name}: ")
    assert cure in str(refused.value)
    assert "Secret" not in str(refused.value)


def a_time() -> st.SearchStrategy[str]:
    parts = st.tuples(*(st.integers(0, top).map("{:02}".format) for top in (23, 59, 59)))
    fractions = st.text(string.digits, min_size=1, max_size=6)
    return st.builds(
        lambda parts, precision, fraction: (
            "".join(parts) + "." + fraction if precision == 4 else "".join(parts[:precision])
        ),
        parts,
        st.integers(1, 4),
        fractions,
    )


def begin(time: str) -> int:
    """In millionths of a second."""
    whole, _, fraction = time.partition(".")
    h, m, s = (int(whole[i : i + 2] or 0) for i in (0, 2, 4))
    return ((h * 60 + m) * 60 + s) * 10**6 + int(f"{fraction:0<6}")


def end(time: str) -> int:
    """Of what begins so; the next one's begin."""
    whole, dot, fraction = time.partition(".")
    return begin(time) + (10 ** (6 - len(fraction)) if dot else {2: 3600, 4: 60, 6: 1}[len(whole)] * 10**6)


def is_within(text: str, match: Range) -> bool:
    """As the database does it."""
    return (match.low is None or text >= match.low) and (match.high is None or text < _after(match.high))


@given(a_time(), a_time(), a_time())
@example("1030", "103000", "11")
@example("10", "100000.000", "1000")
@example("103030", "103005", "1030")
def test_times_of_any_precision_are_compared_as_times(stored: str, one: str, other: str) -> None:
    first, last = (one, other) if begin(one) < end(other) else (other, one)
    asked = keys(f"StudyTime={first}-{last}")["StudyTime"]
    assert is_within(stored, asked) == (begin(first) <= begin(stored) < end(last))


A_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), A_TEXT)
@example("a\ud7ff", "a\ue000")
@example("a\U0010ffff", "b")
@example("\U0010ffff", "\U0010ffff")
def test_what_begins_so_is_a_range(start: str, text: str) -> None:
    behind = _after(start)
    assert (start <= text and (not behind or text < behind)) == text.startswith(start)
    assert not behind or start + text < behind


def test_ranges_of_date_and_time_become_one() -> None:
    asked = "StudyDate=20260101-20260103&StudyTime=18-10"
    assert keys(asked) == {"StudyDate": Range("20260101", "20260103", Range("18", "10"))}


def test_single_time_holds_on_each_day_of_a_range() -> None:
    asked = keys("StudyDate=20260101-20260103&StudyTime=18")
    assert asked == {"StudyDate": Range("20260101", "20260103"), "StudyTime": Range("18", "18")}


# --- what else a request says -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "limit", "offset"), [("", MAX_LIMIT, 0), ("limit=7&offset=8", 7, 8), ("limit=5000", MAX_LIMIT, 0)]
)
def test_limit_is_capped(text: str, limit: int, offset: int) -> None:
    assert (query(text).search.limit, query(text).search.offset) == (limit, offset)


def test_includefields_are_repeated_or_separated_by_commas() -> None:
    asked = query("includefield=00081030,00080060&includefield=PatientSex&includefield=all&includefield=00091001")
    assert asked.include == {"StudyDescription", "Modality", "PatientSex", "all", "00091001"}
    assert asked.search.keys == {}


@pytest.mark.parametrize("name", ["fuzzymatching", "emptyvaluematching", "multiplevaluematching"])
def test_unsupported_kind_of_matching_is_told(name: str) -> None:
    assert query(f"{name}=false").warnings == ()
    (warning,) = query(f"{name}=true").warnings
    assert warning.startswith(f"The {name} parameter is not supported. ")


@pytest.mark.parametrize(
    ("text", "level", "ignored"),
    [
        ("BodyPartExamined=CHEST", Level.SERIES, "BodyPartExamined"),
        ("00180015=CHEST&00091001=x", Level.SERIES, "00180015, 00091001"),
        ("SeriesNumber=4", Level.STUDY, "SeriesNumber"),
        ("SOPInstanceUID=1.2", Level.SERIES, "SOPInstanceUID"),
        ("NumberOfStudyRelatedSeries=4", Level.STUDY, "NumberOfStudyRelatedSeries"),
        ("TimezoneOffsetFromUTC=%2B0100", Level.STUDY, "TimezoneOffsetFromUTC"),
        ("ProcedureCodeSequence.CodeValue=x", Level.STUDY, "ProcedureCodeSequence.CodeValue"),
    ],
)
def test_what_cannot_be_matched_is_ignored_and_told(text: str, level: Level, ignored: str) -> None:
    asked = query(text + "&PatientID=P1", level)
    assert list(asked.search.keys) == ["PatientID"]
    assert asked.warnings == (f"The following attributes cannot be matched here and were ignored: {ignored}",)


def test_modality_of_a_study_is_one_of_its_modalities() -> None:
    assert keys("Modality=CT", Level.STUDY) == {"Modality": OneOf(("CT",))}


def test_path_narrows_what_is_asked_for() -> None:
    path = {"study": "1.2", "series": "1.3"}
    own = {"StudyInstanceUID": OneOf(("1.2",)), "SeriesInstanceUID": OneOf(("1.3",))}
    assert keys("", path=path) == own
    assert keys("StudyInstanceUID=1.2,1.9", path=path) == own
    assert keys("StudyInstanceUID=1.9", path=path) == own | {"StudyInstanceUID": OneOf(())}


@pytest.mark.parametrize("uid", ["Sécret", "1.2\\1.3", "1" * 129, "1.2\n"])
def test_path_that_is_no_uid_is_refused(uid: str) -> None:
    with pytest.raises(BadQuery) as refused:
        query("", path={"study": uid})
    assert str(refused.value).startswith("StudyInstanceUID in the path: is not a UID")


# --- the DICOM JSON Model ---------------------------------------------------------------------------------------

ROW = {
    "StudyInstanceUID": "1.2",
    "SeriesInstanceUID": "1.2.3",
    "PatientID": "P1",
    "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "NumInstances": 2,
    "Attributes": {
        "Modality": ["MR"],
        "StudyDate": ["20260131"],
        "StudyID": [],
        "SeriesNumber": ["04"],
        "ReferringPhysicianName": ["=山田"],
        "SpecificCharacterSet": ["ISO 2022 IR 6", "ISO 2022 IR 87"],
        "ScheduledProcedureStepID": ["S1", ""],
        "RequestedProcedureID": ["R1", "R2"],
        "NumberOfSeriesRelatedInstances": ["99"],  # of the sender: not what is known here
        "RetrieveURL": ["http://evil.example"],
    },
    "SOPInstanceUID": "1.2.3.4",
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4",
    "InstanceNumber": -1,
    "Rows": 512,
    "Columns": 70000,
    "BitsAllocated": None,
    "NumberOfFrames": None,
}
TOTALS = Totals(series=3, instances=30, modalities={"SR", "MR"})


def model(wanted: Iterable[str], level: Level = Level.INSTANCE, url: str | None = None, **row: Any) -> dict[str, Any]:
    """By keyword, and as it comes back from its text."""
    found = json.loads(json.dumps(data_set({**ROW, **row}, level, wanted, TOTALS, url)))
    assert list(found) == sorted(found)
    return {keyword_for_tag(int(tag, 16)): element for tag, element in found.items()}


@pytest.mark.parametrize(
    ("keyword", "element"),
    [
        ("SpecificCharacterSet", {"vr": "CS", "Value": ["ISO_IR 192"]}),
        ("StudyDate", {"vr": "DA", "Value": ["20260131"]}),
        ("StudyTime", {"vr": "TM"}),
        ("StudyID", {"vr": "SH"}),
        ("StudyInstanceUID", {"vr": "UI", "Value": ["1.2"]}),
        ("SeriesNumber", {"vr": "IS", "Value": [4]}),
        ("InstanceNumber", {"vr": "IS", "Value": [-1]}),
        ("Rows", {"vr": "US", "Value": [512]}),
        ("Columns", None),
        ("BitsAllocated", None),
        ("TimezoneOffsetFromUTC", None),
        ("RetrieveURL", None),
        ("InstanceAvailability", {"vr": "CS", "Value": ["UNAVAILABLE"]}),
        ("ModalitiesInStudy", {"vr": "CS", "Value": ["MR", "SR"]}),
        ("NumberOfStudyRelatedSeries", {"vr": "IS", "Value": [3]}),
        ("NumberOfStudyRelatedInstances", {"vr": "IS", "Value": [30]}),
        ("NumberOfSeriesRelatedInstances", {"vr": "IS", "Value": [2]}),
        ("ReferringPhysicianName", {"vr": "PN", "Value": [{"Ideographic": "山田"}]}),
        (
            "PatientName",
            {
                "vr": "PN",
                "Value": [{"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎", "Phonetic": "やまだ^たろう"}],
            },
        ),
        (
            "RequestAttributesSequence",
            {
                "vr": "SQ",
                "Value": [
                    {"00400009": {"vr": "SH", "Value": ["S1"]}, "00401001": {"vr": "SH", "Value": ["R1"]}},
                    {"00400009": {"vr": "SH"}, "00401001": {"vr": "SH", "Value": ["R2"]}},
                ],
            },
        ),
    ],
)
def test_attribute_is_told_as_its_vr_wants(keyword: str, element: dict[str, Any] | None) -> None:
    assert model([keyword]).get(keyword) == element


@pytest.mark.parametrize("value", ["x", "4.5", "", "9" * 12, "٤", "1_0"])
def test_number_that_is_none_is_left_out(value: str) -> None:
    assert model(["SeriesNumber"], Attributes={"SeriesNumber": [value]}) == {"SeriesNumber": {"vr": "IS"}}


def test_number_beside_one_that_is_none_is_told() -> None:
    found = model(["SeriesNumber"], Attributes={"SeriesNumber": ["x", "4"]})
    assert found == {"SeriesNumber": {"vr": "IS", "Value": [4]}}


def test_no_value_between_others_is_null() -> None:
    attributes = {"Modality": ["CT", "", "MR"]}
    assert model(["Modality"], Attributes=attributes) == {"Modality": {"vr": "CS", "Value": ["CT", None, "MR"]}}


def test_missing_patient_is_told_as_empty() -> None:
    found = model(["PatientID", "PatientName"], PatientID=None, PatientName=None)
    assert found == {"PatientID": {"vr": "LO"}, "PatientName": {"vr": "PN"}}


@pytest.mark.parametrize(
    ("level", "path"),
    [
        (Level.STUDY, "/studies/1.2"),
        (Level.SERIES, "/studies/1.2/series/1.2.3"),
        (Level.INSTANCE, "/studies/1.2/series/1.2.3/instances/1.2.3.4"),
    ],
)
@pytest.mark.parametrize("slash", ["", "/"])
def test_images_are_retrieved_where_the_setting_says(level: Level, path: str, slash: str) -> None:
    found = model(["RetrieveURL", "InstanceAvailability"], level, f"https://pacs.example/dicom-web{slash}")
    assert found == {
        "RetrieveURL": {"vr": "UR", "Value": [f"https://pacs.example/dicom-web{path}"]},
        "InstanceAvailability": {"vr": "CS", "Value": ["ONLINE"]},
    }


def test_totals_are_of_each_study() -> None:
    row = {"StudyInstanceUID": "1", "Modalities": ["CT"], "Series": 2, "Instances": 20}
    rows = [row, row | {"Modalities": [], "Series": 1}, row | {"StudyInstanceUID": "2", "Modalities": ["MR"]}]
    assert add_up(rows) == {"1": Totals(3, 40, {"CT"}), "2": Totals(2, 20, {"MR"})}


WANTED = {keyword for level in Level for keyword in (*REQUIRED[level], *OPTIONAL[level])}
STORED = (WANTED | {"ScheduledProcedureStepID", "RequestedProcedureID"}) - set(INSTANCE_KEYWORDS)
NUMBERS = st.none() | st.integers(-(2**31), 2**31 - 1)


@given(
    attributes=st.dictionaries(st.sampled_from(sorted(STORED)), st.lists(st.text(max_size=20), max_size=3)),
    name=st.none() | st.text(max_size=30),
    patient=st.none() | st.text(max_size=30),
    numbers=st.lists(NUMBERS, min_size=5, max_size=5),
    sop_class=st.none() | st.text(max_size=20),
)
@example({"PatientName": ["==="], "StudyDate": ["\\"], "SeriesNumber": ["--4"]}, "=\\=", "\ud800", [0] * 5, "")
@example({"StudyID": ["\0\x1b\u2028\U0001f600"]}, "a=b=c=d", "\\", [-1] * 5, "x")
def test_any_stored_text_is_json_that_pydicom_reads(
    attributes: dict[str, list[str]],
    name: str | None,
    patient: str | None,
    numbers: list[int | None],
    sop_class: str | None,
) -> None:
    instance = dict(zip(INSTANCE_KEYWORDS, [sop_class, *numbers], strict=True))
    row = ROW | instance | {"Attributes": attributes, "PatientName": name, "PatientID": patient}
    text = json.dumps(data_set(row, Level.INSTANCE, WANTED, TOTALS, "http://pacs"))
    text.encode("ascii")
    found = json.loads(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says which values are not valid
        ds = Dataset.from_json(found)
    assert {element.keyword for element in ds} >= WANTED - IF_KNOWN
    for element in ds:
        assert element.VR == dictionary_VR(element.keyword) == found[f"{element.tag:08X}"]["vr"]
        assert found[f"{element.tag:08X}"].get("Value") != []
    if patient and "\\" not in patient:
        assert ds.PatientID == patient
