"""What crosses the wire."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

import models
from api.answers import Resolve
from dicom.header import REQUEST_ATTRIBUTES, SERIES_LEVEL
from dicom.walk import MAX_VALUE_BYTES
from gateway.reporting import NOT_IN_ATTRIBUTES
from models import ArrivingSeries, GatewayState, SeriesReport, fitting, fitting_bytes, valid_unicode
from tests.rig.factories import arriving, make_state

MINIMAL = {"SeriesInstanceUID": "1.2", "PatientID": "P", "PatientName": "N", "StudyInstanceUID": "1", "NumInstances": 3}


def test_the_seeds_five_fields_come_first() -> None:
    assert list(SeriesReport.model_fields)[:5] == list(MINIMAL)


@pytest.mark.parametrize("field", ["SeriesInstanceUID", "StudyInstanceUID", "NumInstances"])
def test_missing_field_is_named(field: str) -> None:
    with pytest.raises(ValidationError) as error:
        SeriesReport.model_validate({k: v for k, v in MINIMAL.items() if k != field})
    assert [e["loc"] for e in error.value.errors()] == [(field,)]


@pytest.mark.parametrize(
    "change",
    [
        {"SeriesInstanceUID": ""},
        {"SeriesInstanceUID": "1\\2"},
        {"SeriesInstanceUID": "1" * 129},
        {"SeriesInstanceUID": "1.2\n"},
        {"SeriesInstanceUID": "١.٢"},
        {"StudyInstanceUID": None},
        {"NumInstances": -1},
        {"NumInstances": 2**31},
        {"NumInstances": "many"},
        {"SOPInstanceUIDs": ["1", "\x7f"]},
        {"SopInstanceUids": ["1"]},
        {"PatientName": "x" * 1025},
        {"Verdict": "complete"},
        {"LastReceivedAt": "2026-01-01T00:00:00"},
    ],
)
def test_bad_value_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SeriesReport.model_validate(MINIMAL | change)


def test_padding_and_nul_are_removed_and_empty_is_null() -> None:
    report = SeriesReport.model_validate(
        MINIMAL
        | {"SeriesInstanceUID": "01.2\0", "PatientID": " ", "PatientName": "A\0^B ", "Attributes": {"X": ["\0"]}}
    )
    assert (report.SeriesInstanceUID, report.PatientID, report.PatientName) == ("01.2", None, "A^B")
    assert report.Attributes == {"X": [""]}


def test_patient_may_be_null_or_absent() -> None:
    report = SeriesReport.model_validate({"SeriesInstanceUID": "1", "StudyInstanceUID": "2", "NumInstances": 0})
    assert (report.PatientID, report.PatientName) == (None, None)


def strings(schema: Any) -> Iterator[dict[str, Any]]:
    """What a JSON schema says of each text, names of entries included."""
    if isinstance(schema, list):
        for each in schema:
            yield from strings(each)
    elif isinstance(schema, dict):
        if schema.get("type") == "string":
            yield schema
        for name, each in schema.items():
            if name == "additionalProperties" and isinstance(each, dict):
                assert "propertyNames" in schema or "patternProperties" in schema
            yield from strings(each)


@pytest.mark.parametrize("model", [SeriesReport, GatewayState, Resolve])
def test_every_text_that_is_taken_has_a_bound_so_it_is_looked_at_and_valid_unicode(model: type[BaseModel]) -> None:
    found = list(strings(model.model_json_schema()))
    assert found
    assert [text for text in found if not text.keys() & {"maxLength", "pattern", "enum", "const", "format"}] == []


def test_what_a_gateway_sends_at_most_is_taken() -> None:
    """Each value of MAX_VALUE_BYTES, and eight items with request attributes."""
    keywords = [keyword for keyword, _ in SERIES_LEVEL.values() if keyword not in NOT_IN_ATTRIBUTES]
    requested = [keyword for keyword, _ in REQUEST_ATTRIBUTES.values()]
    as_bytes = base64.b64encode(b"\xff" * MAX_VALUE_BYTES).decode()
    items = base64.b64encode(b"\\".join([b"\xff" * MAX_VALUE_BYTES] * 8)).decode()
    for values in (["x" * MAX_VALUE_BYTES], "x\\".join([""] * (MAX_VALUE_BYTES // 2 + 1)).split("\\"), [""] * 1025):
        undecoded = dict.fromkeys((*keywords, "PatientName", "PatientID"), as_bytes)
        undecoded |= dict.fromkeys(requested, items)
        attributes = dict.fromkeys(keywords, values) | dict.fromkeys(requested, ["x" * MAX_VALUE_BYTES] * 8)
        report = SeriesReport.model_validate(MINIMAL | {"Attributes": attributes, "Undecoded": undecoded})
        assert report.Attributes == attributes


WORDS = st.dictionaries(st.text("KL", max_size=3), st.lists(st.text(max_size=5), max_size=3), max_size=5)


@given(WORDS)
def test_what_fits_stays_as_it_is(attributes: dict[str, list[str]]) -> None:
    assert fitting(attributes) == attributes
    flat = {keyword: "".join(values) for keyword, values in attributes.items()}
    assert fitting_bytes(flat) == flat


def test_what_was_cut_to_fit_is_taken() -> None:
    big = {f"K{n}": ["x" * 5000] * n for n in range(3000)}
    flat = {f"K{n}": "AAAA" * n for n in range(6000)}
    report = SeriesReport.model_validate(MINIMAL | {"Attributes": fitting(big), "Undecoded": fitting_bytes(flat)})
    assert fitting(report.Attributes) == report.Attributes
    assert fitting_bytes(report.Undecoded) == report.Undecoded
    assert report.Attributes
    assert report.Undecoded


ANY_TEXT = st.text(st.characters())


@given(
    st.recursive(st.none() | st.integers() | ANY_TEXT, lambda inner: st.lists(inner) | st.dictionaries(ANY_TEXT, inner))
)
def test_text_with_surrogates_replaced_is_valid(value: Any) -> None:
    TypeAdapter(Any).dump_json(valid_unicode(value))


def test_valid_text_is_left_alone() -> None:
    assert valid_unicode({"ü": ["\U0001f600", 1, None, {"": "x"}]}) == {"ü": ["\U0001f600", 1, None, {"": "x"}]}
    assert models.MAX_VALUE > MAX_VALUE_BYTES


NUMBERS = (
    "Associations",
    "Refused",
    "Instances",
    "Bytes",
    "InboxSize",
    "OpenSeries",
    "OldestUndeliveredS",
    "DeadLetters",
)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [False, True, "1", None])
def test_a_heartbeats_number_is_a_number(name: str, value: object) -> None:
    state = make_state("gateway-1")
    GatewayState.model_validate_json(json.dumps(state | {name: 1}))
    with pytest.raises(ValidationError, match=name):
        GatewayState.model_validate_json(json.dumps(state | {name: value}))


@pytest.mark.parametrize("name", ["Revision", "Instances", "Expected"])
def test_a_number_of_an_arriving_series_is_a_number(name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        ArrivingSeries.model_validate(arriving("1.2", 1) | {name: True})
