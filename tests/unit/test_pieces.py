"""Large reports in pieces: nothing is lost, nothing too large, and only the last one claims anything."""

import json

from hypothesis import example, given
from hypothesis import strategies as st

from gateway.pieces import ENOUGH, MAX_BYTES, MAX_INSTANCES, pieces
from models import MAX_DESCRIPTION, CountsOfStudy, SeriesReport
from tests.rig.factories import RECEIVED_AT, SERIES, make_report

DESCRIPTIONS = ("SeriesDescription", "StudyDescription", "ProtocolName", "StationName", "Manufacturer")


def large(count: int, width: int, weight: int, rows: bool) -> SeriesReport:
    """A report of so many images, with attributes and values an image of some weight."""
    uids = [f"{SERIES}.{n}".ljust(width, "1")[:64] + str(n) for n in range(count)]
    report = make_report("1").model_copy(
        update={
            "SOPInstanceUIDs": [uid[-64:] for uid in uids],
            "NumInstances": count,
            "InstanceAttributes": {
                "SOPClassUID": [f"1.{n}".ljust(60, "1") for n in range(count)] if rows else ["1.2.3"],
                "Rows": [str(n) for n in range(count)] if rows else ["8"],
            },
            "Attributes": {keyword: ["山" * weight] for keyword in DESCRIPTIONS},
            "Undecoded": {"StudyDescription": "AAAA"},
            "Doubtful": ["StudyDescription"],
            "CalledAETitle": "ARCHIVE",
            "Verdict": "verified",
            "ExpectedInstances": count,
            "ExpectedFrom": "pacs",
        }
    )
    return SeriesReport.model_validate_json(report.model_dump_json(exclude_none=True))


@given(count=st.integers(0, 12_500), width=st.integers(20, 60), weight=st.integers(0, 10_000), rows=st.booleans())
@example(count=12_500, width=60, weight=10_000, rows=True)
def test_pieces_are_the_report_and_each_is_small(count: int, width: int, weight: int, rows: bool) -> None:
    report = large(count, width, weight, rows)
    made = pieces(report.model_dump_json(exclude_none=True))
    parts = [SeriesReport.model_validate_json(piece) for piece in made]
    assert [uid for part in parts for uid in part.SOPInstanceUIDs or ()] == report.SOPInstanceUIDs
    assert all(len(part.SOPInstanceUIDs or ()) <= MAX_INSTANCES for part in parts)
    assert all(len(piece.encode()) <= MAX_BYTES for piece in made)
    assert [part.Verdict for part in parts] == [None] * (len(parts) - 1) + ["verified"]
    assert {part.key for part in parts} == {report.key}
    assert {(part.Revision, part.CalledAETitle) for part in parts} == {(report.Revision, "ARCHIVE")}
    told = report.Attributes, report.Undecoded, report.Doubtful
    assert all((part.Attributes, part.Undecoded, part.Doubtful) == told for part in parts)
    if rows:
        assert [value for part in parts for value in part.InstanceAttributes["Rows"]] == [str(n) for n in range(count)]


def test_a_report_that_is_small_stays_as_it_is() -> None:
    report = make_report("1", "2").model_dump_json(exclude_none=True)
    assert pieces(report) == [report]


def test_a_heavy_report_still_goes_on_by_some_images_a_piece() -> None:
    report = json.loads(large(1000, 60, 10, rows=True).model_dump_json(exclude_none=True))
    report["Attributes"] = {
        "Modality": ["x" * (MAX_DESCRIPTION + MAX_BYTES)]
    }  # no server takes it: refused, not looped
    made = [json.loads(piece) for piece in pieces(json.dumps(report))]
    assert [len(piece["SOPInstanceUIDs"]) for piece in made] == [ENOUGH] * (1000 // ENOUGH)


def test_only_the_last_piece_says_what_the_pacs_has_of_the_study() -> None:
    counts = CountsOfStudy(Series=2, Instances=12_500, At=RECEIVED_AT)
    report = large(12_500, 20, 0, False).model_copy(update={"StudyCounts": counts})
    parts = [SeriesReport.model_validate_json(piece) for piece in pieces(report.model_dump_json(exclude_none=True))]
    assert len(parts) > 1
    assert [part.StudyCounts for part in parts] == [None] * (len(parts) - 1) + [counts]
