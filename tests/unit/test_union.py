"""What reports make of a row, whatever they say, in whatever order, however often."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from models import MAX_DESCRIPTION, MAX_DOUBTS, SeriesReport
from storage import merge
from storage.rows import SeriesRow
from storage.schema import series
from tests.rig.factories import RECEIVED_AT, SERIES, make_report

NOW = datetime(2026, 1, 1, 0, 1, tzinfo=UTC)
VERDICTS = st.sampled_from([None, "declared", "expected", "idle", "capped", "drained"])
FEW = st.integers(0, 4)


@st.composite
def reports(draw: st.DrawFn) -> SeriesReport:
    """Of some gateway; its images are some of the first four, or only counted; often a PACS has just as many."""
    images = draw(st.sampled_from(["1", "12", "12", "123", "3", "34", ""]))
    said = make_report(*images).model_dump()
    said |= {"Verdict": draw(VERDICTS), "Basis": draw(st.sampled_from([None, "quiet"]))}
    said |= {"ExpectedInstances": draw(st.none() | FEW), "Revision": draw(st.integers(1, 3))}
    said |= {"ExpectedFrom": draw(st.sampled_from(["pacs", "pacs", "pacs", "tags", None]))}
    if draw(st.booleans()):
        said |= {"Verdict": "verified", "ExpectedInstances": len(images)}
    said |= {"GatewayID": draw(st.sampled_from("ab")), "Source": draw(st.sampled_from([None, "CT1 CT"]))}
    said |= {"LastReceivedAt": draw(st.none() | FEW.map(lambda n: RECEIVED_AT + timedelta(seconds=n)))}
    if draw(st.integers(0, 9)) == 0:
        said |= {"SOPInstanceUIDs": None, "NumInstances": draw(FEW)}
    return SeriesReport.model_validate(said)


Rows = list[tuple[SeriesReport, Any, Any]]


def taken(reports: list[SeriesReport]) -> Rows:
    """Each report with the row before and after it."""
    row: Any = dict.fromkeys(series.c.keys()) | merge.new_row(make_report(), NOW)
    known: set[str] = set()
    rows = []
    for report in reports:
        known |= set(report.SOPInstanceUIDs or ())
        after = row | merge.changes(report, row, merge.count(report, row, len(known)), NOW)
        rows.append((report, row, after))
        row = after
    return rows


SEQUENCES = st.lists(reports(), min_size=2, max_size=6).flatmap(
    lambda some: st.lists(st.sampled_from(some), min_size=1, max_size=12)
)


@settings(max_examples=300)
@given(SEQUENCES)
def test_verified_is_what_a_pacs_said_and_just_that(some: list[SeriesReport]) -> None:
    for report, before, after in taken(some):
        if after["Verdict"] == "verified":
            assert (after["ExpectedInstances"], after["ExpectedFrom"]) == (after["NumInstances"], "pacs")
            if before["Verdict"] != "verified" or before["NumInstances"] != after["NumInstances"]:
                assert report.Verdict == "verified"
                assert (report.ExpectedInstances, report.ExpectedFrom) == (after["NumInstances"], "pacs")


@settings(max_examples=300)
@given(SEQUENCES)
def test_no_expectation_is_below_what_is_known_nor_a_tag_s_where_a_pacs_spoke(some: list[SeriesReport]) -> None:
    for _, before, after in taken(some):
        assert after["ExpectedInstances"] is None or after["ExpectedInstances"] >= after["NumInstances"]
        assert after["ExpectedFrom"] is None or after["ExpectedInstances"] is not None
        if before["ExpectedFrom"] == "pacs" and before["ExpectedInstances"] >= after["NumInstances"]:
            assert after["ExpectedFrom"] == "pacs"


@settings(max_examples=300)
@given(SEQUENCES)
def test_a_part_says_none_if_it_added_and_nothing_if_not(some: list[SeriesReport]) -> None:
    for report, before, after in taken(some):
        if report.Verdict is None:
            added = after["NumInstances"] > before["NumInstances"]
            gave_way = before["Verdict"] == "verified" and before["ExpectedInstances"] != after["ExpectedInstances"]
            assert after["Verdict"] == (None if added else "idle" if gave_way else before["Verdict"])
            assert added or gave_way or all(after[column] == before[column] for column in merge.SETTLED)


@settings(max_examples=300)
@given(SEQUENCES)
def test_a_repeat_changes_nothing_and_counts_nothing(some: list[SeriesReport]) -> None:
    for report, _, after in taken(some):
        instances = int(after["NumInstances"])
        assert merge.changes(report, after, merge.count(report, after, instances), NOW) == {}


@settings(max_examples=300)
@given(SEQUENCES)
def test_no_verdict_is_contradicted_more_often_than_it_was_said(some: list[SeriesReport]) -> None:
    said: Counter[tuple[str | None, str]] = Counter()
    late: Counter[tuple[str | None, str]] = Counter()
    for report, before, after in taken(some):
        for of, column in merge.completions(report, before, after) if after is not before else ():
            key = (of["Verdict"], of["Source"] or "")
            (said if column == "Series" else late)[key] += 1
            assert column != "False" or of["Verdict"] != "capped"
    assert late <= said


def test_the_rules_read_each_column_of_the_table_and_no_other() -> None:
    assert [*SeriesRow.__annotations__] == series.c.keys()


def test_a_stale_word_of_the_pacs_verifies_nothing() -> None:
    """Another gateway was told of more in the meantime."""
    at = {"LastReceivedAt": RECEIVED_AT + timedelta(seconds=1), "ExpectedInstances": 3, "ExpectedFrom": "pacs"}
    newer = make_report("1", "2").model_copy(update=at)
    told = {"Verdict": "verified", "ExpectedInstances": 2, "ExpectedFrom": "pacs"}
    stale = make_report("1", "2").model_copy(update=told)
    assert taken([newer, stale])[-1][2]["Verdict"] == "idle"
    later = stale.model_copy(update={"LastReceivedAt": RECEIVED_AT + timedelta(seconds=2)})
    assert taken([newer, later])[-1][2]["Verdict"] == "verified"


def test_what_was_doubtful_once_stays_so_within_bounds() -> None:
    reports = [make_report(str(n)).model_copy(update={"Doubtful": [f"{n}", "odd"]}) for n in range(MAX_DOUBTS)]
    assert taken(reports[:2])[-1][2]["Doubtful"] == ["0", "odd", "1"]
    assert taken([*reports[:2], make_report("9")])[-1][2]["Doubtful"] == ["0", "odd", "1"]
    assert len(taken(reports)[-1][2]["Doubtful"]) == MAX_DOUBTS


def test_reports_with_ever_other_keywords_do_not_make_a_row_grow_without_bound() -> None:
    many = [
        make_report(str(n)).model_copy(
            update={"Attributes": {f"K{n}": ["x" * 1000]}, "Undecoded": {f"K{n}": "abcd" * 250}}
        )
        for n in range(200)
    ]
    row = taken(many)[-1][2]
    assert row["SeriesInstanceUID"] == SERIES
    assert row["Attributes"]["K0"] == ["x" * 1000]
    for described in (row["Attributes"], row["Undecoded"]):
        assert MAX_DESCRIPTION / 2 < sum(len("".join(text)) for text in described.values()) <= MAX_DESCRIPTION
