"""What crosses the wire."""

import pytest
from pydantic import ValidationError

from models import SeriesReport

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
        {"SeriesInstanceUID": "../../evil"},
        {"SeriesInstanceUID": "1\\2"},
        {"SeriesInstanceUID": "1" * 65},
        {"SeriesInstanceUID": "1.2\n"},
        {"SeriesInstanceUID": "١.٢"},
        {"StudyInstanceUID": None},
        {"NumInstances": -1},
        {"NumInstances": 2**31},
        {"NumInstances": "many"},
        {"SOPInstanceUIDs": ["1", "x"]},
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
