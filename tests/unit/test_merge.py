"""What a report changes of a row, example by example; what holds of all reports stands in test_union.py."""

from datetime import datetime, timedelta
from typing import Any, cast

import pytest

from models import SeriesReport
from storage import merge
from storage.folding import FOLDED_LENGTH, folded
from storage.merge import BASIS_LENGTH, Word
from storage.rows import SeriesRow
from storage.schema import series
from tests.rig.factories import RECEIVED_AT, SERIES, STUDY, make_report

NOW, LATER = RECEIVED_AT + timedelta(hours=1), RECEIVED_AT + timedelta(hours=2)
PACS = {"ExpectedFrom": "pacs"}


def report(*sops: str, **said: Any) -> SeriesReport:
    return SeriesReport.model_validate(make_report(*sops).model_dump() | said)


def empty() -> SeriesRow:
    """The row of a series that was not known."""
    return cast("SeriesRow", dict.fromkeys(series.c.keys()) | merge.new_row(make_report(), NOW))


def row(*sops: str, known: Any = None, union: Any = None, **said: Any) -> SeriesRow:
    """A row once a report of these images is in; `union` counts those of others, too."""
    before = known or empty()
    one = report(*sops, **said)
    counted = merge.count(one, before, len(sops) if union is None else union)
    return cast("SeriesRow", before | merge.changes(one, before, counted, NOW))


def told(of: Any, *columns: str) -> tuple[Any, ...]:
    return tuple(of[column] for column in columns)


# --- identity ---


@pytest.mark.parametrize(
    ("said", "known", "contradicts"),
    [
        ({}, {}, False),
        ({"PatientID": "P2"}, {}, True),
        ({"PatientID": None}, {}, False),
        ({"PatientID": "P2"}, {"PatientID": None}, False),
        ({"StudyInstanceUID": "1.9"}, {}, True),
        ({"StudyInstanceUID": "1.9", "PatientID": None}, {}, True),
    ],
)
def test_another_study_contradicts_and_another_patient_where_both_are_named(
    said: dict[str, Any], known: dict[str, Any], contradicts: bool
) -> None:
    assert merge.contradicts(report("1", **said), cast("SeriesRow", empty() | known)) == contradicts


def test_no_patient_is_the_same_as_no_patient_only() -> None:
    of = {"StudyInstanceUID": STUDY, "PatientID": None}
    assert merge.same_identity(report("1", PatientID=None), of)
    assert not merge.same_identity(report("1"), of)
    assert not merge.same_identity(report("1", PatientID=None, StudyInstanceUID="1.9"), of)


def test_a_correction_takes_patient_and_study_with_their_attributes_and_leaves_the_series_its_own() -> None:
    known = row("1", Attributes={"Modality": ["CT"], "StudyDate": ["20250101"], "PatientSex": ["M"]})
    undecoded = {"PatientName": "/w==", "StudyDescription": "/w==", "SeriesDescription": "/w=="}
    known = known | {"Undecoded": undecoded}
    other = {"PatientID": "P2", "PatientName": "Other^Two", "StudyInstanceUID": "1.9"}
    attributes = {"Modality": ["MR"], "StudyDate": ["2026.02.02"], "ReferringPhysicianName": ["Ä"]}
    new = merge.corrected(report("2", **other, Attributes=attributes, Undecoded={"PatientName": "/g=="}), known, LATER)
    assert new == {
        **other,
        "Attributes": {"Modality": ["CT"], "StudyDate": ["2026.02.02"], "ReferringPhysicianName": ["Ä"]},
        "Undecoded": {"SeriesDescription": "/w==", "PatientName": "/g=="},
        "Modality": "CT",
        "StudyDate": "20260202",
        "AccessionNumber": None,
        "FoldedName": folded("Other^Two"),
        "FoldedReferrer": folded("Ä"),
        "Revision": 2,
        "UpdatedAt": LATER,
    }
    anonymous = merge.corrected(report("2", PatientID=None, PatientName=None, StudyInstanceUID="1.9"), known, LATER)
    assert told(anonymous, "PatientID", "PatientName", "StudyInstanceUID") == ("P1", "Test^One", "1.9")


def test_a_decision_dismisses_merges_or_corrects() -> None:
    known, other = row("1"), report("2", PatientID="P2", PatientName="Other^Two")
    outcomes = {d: merge.decided(d, other, known, 2, LATER) for d in ("dismiss", "merge", "correct")}
    assert outcomes["dismiss"] == known
    columns = ("PatientID", "NumInstances", "Revision", "UpdatedAt")
    assert told(outcomes["merge"], *columns) == ("P1", 2, 2, LATER)
    assert told(outcomes["correct"], *columns) == ("P2", 2, 3, LATER)


# --- images ---


def test_each_image_is_a_row_with_what_holds_for_all_and_its_own() -> None:
    columns = {"SOPClassUID": ["1.2"], "InstanceNumber": ["7", "x"], "Rows": [str(2**31 - 1), str(2**31)]}
    columns |= {"Columns": [str(1 - 2**31), str(-(2**31))], "NumberOfFrames": ["3"]}
    of_both = report("1", "2", InstanceAttributes=columns)
    first, second = (dict(zip(merge.INSTANCE_COLUMNS, row, strict=True)) for row in merge.instance_rows(of_both))
    assert list(merge.instance_numbers(of_both)) == [7]
    both = {"SeriesInstanceUID": SERIES, "SOPClassUID": "1.2", "NumberOfFrames": 3, "BitsAllocated": None}
    own = {"SOPInstanceUID": f"{SERIES}.1", "InstanceNumber": 7, "Rows": 2**31 - 1, "Columns": 1 - 2**31}
    assert first == both | own
    own = {"SOPInstanceUID": f"{SERIES}.2", "InstanceNumber": None, "Rows": None, "Columns": None}
    assert second == both | own
    assert list(merge.instance_rows(report(SOPInstanceUIDs=None, NumInstances=5))) == []


@pytest.mark.parametrize(
    ("sops", "said", "known", "instances", "count"),
    [
        ("12", {}, 0, 2, 2),
        ("12", {"NumInstances": 9}, 0, 2, 2),  # with UIDs only these count
        ("", {"SOPInstanceUIDs": None, "NumInstances": 9}, 3, 2, 9),
        ("", {"SOPInstanceUIDs": None, "NumInstances": 1}, 3, 2, 3),
        ("1", {}, 5, 2, 5),
    ],
)
def test_a_count_is_of_distinct_images_or_a_floor_and_never_falls(
    sops: str, said: dict[str, Any], known: int, instances: int, count: int
) -> None:
    one = report(*sops).model_copy(update=said)
    assert merge.count(one, empty() | {"NumInstances": known}, instances) == count


# --- what a report changes ---


def test_the_first_report_fills_a_row() -> None:
    said: dict[str, Any] = {"Basis": "quiet", "Source": "CT1 CT", "IdlePolicy": "fixed", "CalledAETitle": "ARCHIVE"}
    said |= {"Doubtful": ["odd"], "Undecoded": {"PatientName": "/w=="}, "ExpectedInstances": 3, "ExpectedFrom": "tags"}
    first = merge.changes(report("1", "2", **said), empty(), 2, LATER)
    assert first == said | {
        "PatientID": "P1",
        "PatientName": "Test^One",
        "NumInstances": 2,
        "Attributes": {"Modality": ["CT"]},
        "FalseCompletions": 0,
        "Modality": "CT",
        "StudyDate": None,
        "AccessionNumber": None,
        "FoldedName": folded("Test^One"),
        "FoldedReferrer": None,
        "Verdict": "idle",
        "Withdrawn": None,
        "FirstReceivedAt": RECEIVED_AT,
        "LastReceivedAt": RECEIVED_AT,
        "Revision": 1,
        "UpdatedAt": LATER,
    }


def test_a_first_report_is_a_revision_though_it_says_nothing() -> None:
    silent: dict[str, Any] = {
        "Attributes": {},
        "PatientName": None,
        "Verdict": None,
        "FirstReceivedAt": None,
        "LastReceivedAt": None,
    }
    first = merge.changes(report(NumInstances=0, **silent), empty(), 0, NOW)
    assert told(first, "Revision", "FirstReceivedAt", "LastReceivedAt") == (1, None, None)


def test_what_is_stored_stays_and_what_was_empty_is_filled() -> None:
    known = row("1", PatientID=None, PatientName=None, Undecoded={"StudyID": "/w=="})
    said = {"CalledAETitle": "ARCHIVE", "Undecoded": {"StudyID": "/g==", "SeriesDescription": "/g=="}}
    second = row("2", known=known, union=2, Attributes={"Modality": ["MR"], "StudyID": ["7"]}, **said)
    assert told(second, "PatientID", "PatientName", "CalledAETitle") == ("P1", "Test^One", "ARCHIVE")
    assert second["Attributes"] == {"Modality": ["CT"], "StudyID": ["7"]}
    assert second["Undecoded"] == {"StudyID": "/w==", "SeriesDescription": "/g=="}
    third = row("3", known=second, union=3, PatientID="P9", PatientName="Nine", CalledAETitle="OTHER")
    assert told(third, "PatientID", "PatientName", "CalledAETitle") == ("P1", "Test^One", "ARCHIVE")


def test_times_are_those_of_the_first_and_of_the_last_image_of_all_reports() -> None:
    def between(first: int | None, last: int | None) -> dict[str, datetime | None]:
        seconds = {"FirstReceivedAt": first, "LastReceivedAt": last}
        return {name: None if s is None else RECEIVED_AT + timedelta(seconds=s) for name, s in seconds.items()}

    known = row("1", **between(10, 20))
    for n, (first, last, wanted) in enumerate(((5, 15, (5, 20)), (12, 30, (5, 30)), (None, None, (5, 30))), 2):
        known = row(str(n), known=known, union=n, **between(first, last))
        assert {name: known[name] for name in between(0, 0)} == between(*wanted)  # type: ignore[literal-required]


def test_what_is_searched_by_is_short_folded_and_without_the_dots_of_old_dates() -> None:
    found = merge.searched(
        {"Modality": ["M" * 99, "CT"], "StudyDate": ["2026.01.31"], "AccessionNumber": ["A" * 2000]}, "Strauß^" * 999
    )
    assert told(found, "Modality", "StudyDate", "FoldedReferrer") == ("M" * 64, "20260131", None)
    assert found["AccessionNumber"] == "A" * FOLDED_LENGTH
    assert str(found["FoldedName"]) == folded("Strauß^" * 999)[:FOLDED_LENGTH]


# --- verdicts ---


def test_images_after_a_verdict_make_it_a_false_one_unless_they_are_another_gateways_first() -> None:
    known = row("1")
    late, first = row("2", known=known, union=2, Revision=2), row("2", known=known, union=2)
    repeated = row("1", known=known, union=1, Revision=2)
    assert [one["FalseCompletions"] for one in (late, first, repeated)] == [1, 0, 0]
    again = row("3", known=late, union=3, Revision=3)
    assert again["FalseCompletions"] == 2
    for verdict, false in (("capped", 0), ("drained", 0), ("expected", 1), ("declared", 1), (None, 0)):
        ended = row("1", Verdict=verdict, ExpectedInstances=1, ExpectedFrom="tags")
        assert row("2", known=ended, union=2, Revision=2)["FalseCompletions"] == false, verdict


def figures(before: SeriesRow, one: SeriesReport, union: int) -> list[tuple[str | None, str]]:
    after = cast("SeriesRow", before | merge.changes(one, before, union, NOW))
    return [(of["Verdict"], column) for of, column in merge.completions(one, before, after)]


def test_figures_count_each_verdict_once_and_what_came_after_it() -> None:
    idle, capped = row("1"), row("1", Verdict="capped")
    withdrawn = cast("SeriesRow", idle | merge.declared(idle, Word("incomplete", "me", "so", NOW), NOW))
    assert figures(empty(), report("1"), 1) == [("idle", "Series")]
    assert figures(empty(), report("1", Verdict="drained"), 1) == []
    assert figures(idle, report("1"), 1) == []
    assert figures(idle, report("2", Revision=2), 2) == [("idle", "False"), ("idle", "Series")]
    assert figures(capped, report("2", Revision=2), 2) == [("capped", "AfterCapped"), ("idle", "Series")]
    assert figures(idle, report("2"), 2) == [("idle", "Series")]
    assert figures(withdrawn, report("2", Revision=2), 2)[0] == ("idle", "False")


VERIFIED = {"Verdict": "verified", "Basis": "the PACS", "ExpectedInstances": 2, **PACS}


@pytest.mark.parametrize(
    ("said", "union", "claim"),
    [
        (VERIFIED, 2, ("verified", "the PACS", 2, "pacs")),
        (VERIFIED, 3, ("idle", "the PACS; 3 are known", None, None)),
        (VERIFIED | {"Basis": None}, 3, ("idle", "3 are known", None, None)),
        (VERIFIED | {"ExpectedFrom": "tags"}, 2, ("idle", "the PACS; 2 are known", 2, "tags")),
        ({"Verdict": "expected", "ExpectedInstances": 2, "ExpectedFrom": "tags"}, 2, ("expected", None, 2, "tags")),
        ({"Verdict": "expected", "ExpectedInstances": 2, "ExpectedFrom": "tags"}, 3, ("idle", None, None, None)),
        ({"Verdict": "idle", "Basis": "quiet", "ExpectedInstances": 9, **PACS}, 2, ("idle", "quiet", 9, "pacs")),
        ({"Verdict": None, "Basis": "a part"}, 2, (None, "a part", None, None)),
    ],
)
def test_a_row_claims_what_its_report_says_as_far_as_it_bears_out(
    said: dict[str, Any], union: int, claim: tuple[Any, ...]
) -> None:
    told_of = row("1", "2", union=union, **said)
    assert told(told_of, "Verdict", "Basis", "ExpectedInstances", "ExpectedFrom") == claim


def test_a_verified_row_gives_way_to_the_word_that_there_is_more_and_to_nothing_else() -> None:
    known = row("1", "2", **VERIFIED)
    repeat = row("1", known=known, union=2, Basis="quiet")
    more = row("1", known=known, union=2, Verdict=None, ExpectedInstances=5, **PACS)
    assert told(repeat, "Verdict", "Basis") == ("verified", "the PACS")
    assert told(more, "Verdict", "Basis", "ExpectedInstances") == ("idle", "the PACS; then 5, 2 are known", 5)
    for seconds, verdict in ((-1, "idle"), (0, "verified"), (1, "verified")):  # heard before the larger number, or not
        at = {"LastReceivedAt": RECEIVED_AT + timedelta(seconds=seconds), "ExpectedInstances": 3}
        assert row("3", known=more, union=3, **(VERIFIED | at))["Verdict"] == verdict


def test_who_heard_the_same_number_earlier_verifies_too() -> None:
    later = {"LastReceivedAt": RECEIVED_AT + timedelta(seconds=5)}
    known = row("1", "2", ExpectedInstances=2, **PACS, **later)
    assert row("1", "2", known=known, **VERIFIED)["Verdict"] == "verified"


def test_of_two_numbers_the_pacs_word_comes_before_a_tags_and_the_larger_one_stands() -> None:
    known = row("1", ExpectedInstances=5, **PACS)
    for said, wanted in (
        ({"ExpectedInstances": 9, "ExpectedFrom": "tags"}, (5, "pacs")),
        ({"ExpectedInstances": 7, **PACS}, (7, "pacs")),
        ({"ExpectedInstances": 3, **PACS}, (5, "pacs")),
        ({}, (5, "pacs")),
    ):
        assert told(row("2", known=known, union=2, **said), "ExpectedInstances", "ExpectedFrom") == wanted
    by_tags = row("1", ExpectedInstances=5, ExpectedFrom="tags")
    newer = {"ExpectedInstances": 7, "ExpectedFrom": "tags"}
    assert row("2", known=by_tags, union=2, **newer)["ExpectedInstances"] == 7  # it brings an image
    assert row("1", known=by_tags, union=1, **newer)["ExpectedInstances"] == 5


@pytest.mark.parametrize(
    ("stored", "claim"),
    [
        ({"Verdict": "verified", "ExpectedInstances": 2, **PACS}, ("verified", 2, "pacs")),
        ({"Verdict": "verified", "ExpectedInstances": 3, **PACS}, ("idle", 3, "pacs")),
        ({"Verdict": "verified", "ExpectedInstances": 2, "ExpectedFrom": "tags"}, ("idle", 2, "tags")),
        ({"Verdict": "expected", "ExpectedInstances": 1, "ExpectedFrom": "tags"}, ("idle", None, None)),
        ({"Verdict": "expected", "ExpectedInstances": 2, "ExpectedFrom": "tags"}, ("expected", 2, "tags")),
        ({"Verdict": "capped", "ExpectedInstances": 1, "ExpectedFrom": "tags"}, ("capped", None, None)),
    ],
)
def test_what_an_earlier_version_stored_is_told_as_it_bears_out(stored: dict[str, Any], claim: tuple[Any, ...]) -> None:
    told_of = merge.truthful(row("1", "2") | stored)
    assert told(told_of, "Verdict", "ExpectedInstances", "ExpectedFrom") == claim


# --- what is told ---


def test_the_timeline_says_what_was_added_and_which_verdict_it_contradicts() -> None:
    before = row("1", IdlePolicy="fixed")
    one = report("2", "3", Revision=2)
    after = cast("SeriesRow", before | merge.changes(one, before, 3, LATER))
    at = {"At": LATER, "GatewayID": None, "Revision": 2}
    assert list(merge.own_events(one, before, after)) == [
        at | {"Event": "report.stored", "Details": {"Added": 2, "Known": 3, "Verdict": "idle"}},
        at | {"Event": "verdict.contradicted", "Details": {"Verdict": "idle", "IdlePolicy": "fixed", "Added": 2}},
    ]


def test_a_change_is_told_by_what_it_means() -> None:
    part, idle, verified = row("1", "2", Verdict=None), row("1", "2"), row("1", "2", **VERIFIED)
    declared, late = row("1", "2", Verdict="declared"), row("3", known=row("1", "2"), union=3, Revision=2)
    withdrawn = cast("SeriesRow", idle | merge.declared(idle, Word("incomplete", "me", "so", NOW), NOW))
    for before, after, kinds in (
        (empty(), idle, ["created"]),
        (empty(), verified, ["created", "verified"]),
        (part, idle, ["revised"]),
        (idle, verified, ["revised", "verified"]),
        (verified, verified, ["revised"]),
        (idle, declared, ["revised", "declared"]),
        (idle, withdrawn, ["revised", "declared"]),
        (withdrawn, withdrawn, ["revised"]),
        (idle, late, ["revised", "contradicted"]),
    ):
        assert merge.kinds(before, after) == kinds


def test_missing_is_what_is_expected_and_not_known() -> None:
    for expected, wanted in ((5, 3), (2, 0), (1, 0), (None, 0)):
        assert merge.missing({"ExpectedInstances": expected, "NumInstances": 2}) == wanted


def test_a_conflict_is_known_again_by_its_identity_and_images_in_whatever_order() -> None:
    first, again = (merge.conflict_row(report(*sops), NOW) for sops in ("12", "21"))
    assert first["Digest"] == again["Digest"] != merge.conflict_row(report("1"), NOW)["Digest"]
    assert first["Digest"] != merge.conflict_row(report("1", "2", PatientID="P2"), NOW)["Digest"]
    assert told(first, "SeriesInstanceUID", "ReceivedAt") == (SERIES, NOW)
    assert SeriesReport.model_validate(first["Report"]) == report("1", "2")


# --- a person's word ---


def word(declared: Any) -> Word:
    return Word(declared, "me", "so", NOW)


def test_a_word_says_who_and_why_within_bounds() -> None:
    assert word("complete").basis == "declared complete by me: so"
    assert len(Word("complete", "me", "x" * 999, NOW).basis) == BASIS_LENGTH


@pytest.mark.parametrize("stands", ["verified", "declared"])
def test_complete_adds_nothing_to_what_is_verified_or_declared(stands: str) -> None:
    known = cast("SeriesRow", row("1") | {"Verdict": stands})
    assert merge.declared(known, word("complete"), LATER) == {}


def test_a_word_makes_a_verdict_or_takes_it() -> None:
    known = row("1")
    common = {"Revision": 2, "UpdatedAt": LATER}
    complete = merge.declared(known, word("complete"), LATER)
    assert complete == common | {"Verdict": "declared", "Withdrawn": None, "Basis": "declared complete by me: so"}
    incomplete = merge.declared(known, word("incomplete"), LATER)
    assert incomplete == common | {"Verdict": None, "Withdrawn": "idle", "Basis": "declared incomplete by me: so"}
    withdrawn = cast("SeriesRow", known | incomplete)
    assert merge.declared(withdrawn, word("incomplete"), LATER) == {}
    assert merge.declared(row("1", Verdict=None), word("incomplete"), LATER)["Withdrawn"] == "part"
    assert row("1", known=withdrawn)["Withdrawn"] == "idle"  # a repeat brings no verdict back
    assert told(row("2", known=withdrawn, union=2), "Withdrawn", "Verdict") == (None, "idle")


def test_a_report_for_a_word_that_was_taken_back_brings_images_and_no_verdict() -> None:
    known = row("1")
    withdrawn = cast("SeriesRow", known | merge.declared(known, word("incomplete"), LATER))
    declared = report("2", Verdict="declared")
    for before, basis in ((known, "taken back"), (withdrawn, "declared incomplete by me: so")):
        brought = merge.without_verdict(declared, before)
        assert brought.Verdict is None
        assert basis in str(brought.Basis)
        added = merge.still_incomplete(merge.changes(brought, before, 2, LATER), before)
        assert told(added, "Verdict", "Withdrawn", "NumInstances") == (None, before["Withdrawn"] or "declared", 2)
    nothing = merge.changes(merge.without_verdict(report("1"), known), known, 1, LATER)
    assert merge.still_incomplete(nothing, known) == nothing
