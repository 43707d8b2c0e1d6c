"""What a report says of its series: every field, and how many images there should be by whom."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pydicom.uid import CTImageStorage

from gateway import reporting
from gateway.collector import SeriesCollector
from gateway.idle import Fixed
from gateway.questions import Answer
from models import Association, Instance, SeriesReport
from tests.rig.factories import RECEIVED_AT, SERIES, STUDY, collector_of, make_instance

IDLE_S = 2.0


def image(sop: str = "1", at: float = 0.0, **tags: str) -> Instance:
    attributes = {"PatientID": ("P1",), "PatientName": ("Test^One",), "Modality": ("CT",), "StationName": ("ROOM1",)}
    return replace(
        make_instance(sop),
        called_ae_title="ARCHIVE",
        received_at=RECEIVED_AT + timedelta(seconds=at),
        attributes=attributes | {keyword: (value,) for keyword, value in tags.items()},
        undecoded={"StudyDescription": b"\xff"},
        doubtful=("odd",),
    )


def collected(*images: Instance, **options: Any) -> SeriesCollector:
    collector = collector_of(Fixed(IDLE_S), **options)
    for one in images:
        collector.observe(one, (one.received_at - RECEIVED_AT).total_seconds())
    return collector


def test_a_report_says_all_that_is_known_of_its_series() -> None:
    (report,) = collected(image("1", StudyDescription="?"), image("2", 1.0)).due(3.0)
    assert report.model_dump(exclude={"Timeline", "Basis"}, exclude_none=True) == {
        "SeriesInstanceUID": SERIES,
        "PatientID": "P1",
        "PatientName": "Test^One",
        "StudyInstanceUID": STUDY,
        "NumInstances": 2,
        "SOPInstanceUIDs": [f"{SERIES}.1", f"{SERIES}.2"],
        "InstanceAttributes": {"SOPClassUID": [CTImageStorage]},
        "Attributes": {"Modality": ["CT"], "StationName": ["ROOM1"], "StudyDescription": ["?"]},
        "Undecoded": {"StudyDescription": "/w=="},
        "Doubtful": ["odd"],
        "Revision": 1,
        "Verdict": "idle",
        "MissingSOPInstanceUIDs": [],
        "Source": "TEST CT ROOM1",
        "CalledAETitle": "ARCHIVE",
        "IdlePolicy": "fixed",
        "GatewayID": "test",
        "FirstReceivedAt": RECEIVED_AT,
        "LastReceivedAt": RECEIVED_AT + timedelta(seconds=1),
    }


@pytest.mark.parametrize("extras", [(), ("NumberOfSlices",)])
def test_a_count_of_a_tag_is_an_attribute_only_where_a_site_wants_it_as_its_own(extras: tuple[str, ...]) -> None:
    assert "NumberOfSlices" in reporting.HINTS
    (report,) = collected(image("1", NumberOfSlices="1"), extras=extras).due(9.0)
    assert [keyword for keyword in report.Attributes if keyword in reporting.HINTS] == list(extras)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (lambda collector: collector.due(9.0), "quiet for 2 s (fixed, "),
        (lambda collector: collector.declare(SERIES, 1.0, 1.0), "a person has declared it complete"),
        (lambda collector: collector.drain(1.0), "an operator's request, or a stop"),
    ],
)
def test_the_basis_says_what_its_verdict_rests_on(end: Any, words: str) -> None:
    (report,) = end(collected(image()))
    assert report.Basis.startswith(words)


def test_the_least_report_still_says_whose_it_is_and_when_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> SeriesReport:
        raise ValueError("never shown")

    monkeypatch.setattr(reporting, "full_report", fail)
    (report,) = collected(image("1"), image("2", 1.0)).due(3.0)
    assert report.model_dump(exclude_defaults=True) == {
        "SeriesInstanceUID": SERIES,
        "PatientID": "P1",
        "StudyInstanceUID": STUDY,
        "NumInstances": 2,
        "SOPInstanceUIDs": [f"{SERIES}.1", f"{SERIES}.2"],
        "Verdict": "idle",
        "Doubtful": ["odd"],
        "Source": "TEST CT ROOM1",
        "CalledAETitle": "ARCHIVE",
        "GatewayID": "test",
        "FirstReceivedAt": RECEIVED_AT,
        "LastReceivedAt": RECEIVED_AT + timedelta(seconds=1),
    }


def test_what_arrives_is_told_with_all_that_a_heartbeat_has_room_for() -> None:
    (series,) = collected(image("1", SeriesDescription="T2"), image("2", 1.0)).arriving(1)
    assert series.model_dump() == {
        "SeriesInstanceUID": SERIES,
        "StudyInstanceUID": STUDY,
        "PatientID": "P1",
        "PatientName": "Test^One",
        "SeriesDescription": "T2",
        "Source": "TEST CT ROOM1",
        "Revision": 1,
        "Instances": 2,
        "Expected": None,
        "Waiting": "for images",
        "FirstReceivedAt": RECEIVED_AT,
        "LastReceivedAt": RECEIVED_AT + timedelta(seconds=1),
    }


@pytest.mark.parametrize(("in_tags", "expected"), [("3", (3, "tags")), ("2", (2, "tags")), ("1", (None, None))])
def test_a_tag_s_number_is_an_expectation_unless_more_came(in_tags: str, expected: tuple[Any, Any]) -> None:
    (report,) = collected(*(image(sop, NumberOfSeriesRelatedInstances=in_tags) for sop in "12")).due(1000.0)
    assert (report.ExpectedInstances, report.ExpectedFrom) == expected


@pytest.mark.parametrize(
    ("count", "known", "missing", "expected"),
    [
        (5, 2, (), (5, "pacs")),
        (2, 2, (f"{SERIES}.8", f"{SERIES}.9"), (4, "pacs")),  # as many, but others
        (1, 2, (), (None, None)),  # less than is known is no expectation
    ],
)
def test_what_the_pacs_says_comes_before_a_tag(
    count: int, known: int, missing: tuple[str, ...], expected: tuple[Any, Any]
) -> None:
    collector = collected(*(image(sop, NumberOfSeriesRelatedInstances="9") for sop in "12"), pacs={"TEST"})
    collector.due(0.3)
    (question,) = collector.questions()
    collector.answered(question.key, Answer("PACS", question.here, known, count, missing=missing, revision=1), 0.4)
    (report,) = collector.drain(1.0)
    assert (report.ExpectedInstances, report.ExpectedFrom) == expected
    assert report.MissingSOPInstanceUIDs == [*missing]
    assert f"PACS: {count} images, {known} known" in str(report.Basis)


def test_an_acquisition_s_count_is_told_as_evidence_only() -> None:
    (report,) = collected(image(ImagesInAcquisition="40")).due(IDLE_S)
    assert "40" in str(report.Basis)
    assert report.ExpectedInstances is None


def test_evidence_says_what_each_association_brought_and_when_it_ended() -> None:
    first, second = (Association(n, "TEST", "::1", 0.0) for n in (1, 2))
    collector = collected(replace(image("1"), association=first), replace(image("2"), association=second))
    collector.observe(replace(image("3"), association=second), 0.5)
    first.released_at = 0.25
    collector.released(first, 0.25)
    (report,) = collector.drain(4.0)
    counted = [(e.At - RECEIVED_AT, e.Details) for e in report.Timeline if e.Event == "images.counted"]
    assert counted == [
        (timedelta(seconds=0.25), {"Association": 1, "Images": 1, "Released": True}),
        (timedelta(seconds=4), {"Association": 2, "Images": 2, "Released": False}),
    ]
    (reported,) = [e.Details for e in report.Timeline if e.Event == "series.reported"]
    assert reported == {"Verdict": "drained", "Images": 3}
