"""SeriesCollector decides; the time is passed in."""

import itertools
import struct
from collections import defaultdict
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from dicom.header import WANTED, read_instance
from gateway.collector import DUE_AT_ONCE, SeriesCollector
from gateway.idle import PRIORS, Adaptive, Fixed, Phase, Source
from gateway.open_series import MAX_ARRIVALS, OpenSeries
from gateway.questions import Answer
from gateway.tag_counts import count_in
from models import INSTANCE_KEYWORDS, Association, Instance, SeriesReport
from tests.rig.factories import RECEIVED_AT, SERIES, STUDY, collector_of, encode, make_dataset, make_instance

IDLE_S = 2.0
MAX_OPEN_S = 10.0


@pytest.fixture
def collector() -> SeriesCollector:
    return new_collector()


def new_collector() -> SeriesCollector:
    return collector_of(Fixed(IDLE_S), max_open_s=MAX_OPEN_S)


def with_own(sop: str, sop_class_uid: str = CTImageStorage, **own: str) -> Instance:
    """An instance with attributes of its own."""
    instance = make_instance(sop)
    own_attributes = {keyword: (value,) for keyword, value in own.items()}
    return replace(instance, sop_class_uid=sop_class_uid, attributes={**instance.attributes, **own_attributes})


def sops(report: SeriesReport) -> set[str]:
    return set(report.SOPInstanceUIDs or ())


def test_nothing_open_has_no_deadline(collector: SeriesCollector) -> None:
    assert collector.next_deadline() is None
    assert collector.due(1e9) == []


def test_a_source_is_named_without_what_moves_a_terminals_cursor(collector: SeriesCollector) -> None:
    instance = replace(with_own("1", Modality="\x1b[2J\x1b[31mPW"), calling_ae_title="CT\x1b1")
    collector.observe(instance, 0.0)
    (series,) = collector.arriving(1)
    assert series.Source == "CT\ufffd1 \ufffd[2J\ufffd[31mPW"


def test_series_is_idle_after_the_timeout_and_not_before(collector: SeriesCollector) -> None:
    collector.observe(make_instance("1"), 100.0)
    assert collector.next_deadline() == 100.0 + IDLE_S
    assert collector.due(100.0 + IDLE_S - 0.001) == []
    (report,) = collector.due(100.0 + IDLE_S)
    assert (report.Verdict, report.NumInstances, report.Revision) == ("idle", 1, 1)
    assert collector.next_deadline() is None


def test_every_image_starts_the_timeout_again(collector: SeriesCollector) -> None:
    for second in range(4):
        collector.observe(make_instance(str(second)), float(second))
        assert collector.due(second + 0.9) == []
    assert collector.due(3.0 + IDLE_S - 0.001) == []
    assert collector.next_deadline() == 3.0 + IDLE_S
    assert collector.due(5.0)[0].NumInstances == 4


def test_deadline_is_the_next_one_though_an_older_series_still_receives(collector: SeriesCollector) -> None:
    collector.observe(make_instance("1", series="1.1"), 0.0)
    collector.observe(make_instance("1", series="1.2"), 1.0)
    collector.observe(make_instance("2", series="1.1"), 1.5)
    assert collector.next_deadline() == IDLE_S  # nothing falls due before
    assert collector.due(IDLE_S) == []
    assert collector.next_deadline() == 1.0 + IDLE_S


def test_repeated_image_counts_once(collector: SeriesCollector) -> None:
    for _ in range(3):
        collector.observe(make_instance("1"), 0.0)
    assert collector.due(IDLE_S)[0].NumInstances == 1


def test_dripping_series_is_capped(collector: SeriesCollector) -> None:
    for second in range(10):
        collector.observe(make_instance(str(second)), float(second))
        assert collector.due(float(second)) == []
    assert collector.due(MAX_OPEN_S - 0.001) == []
    assert collector.next_deadline() == MAX_OPEN_S
    (report,) = collector.due(MAX_OPEN_S)
    assert (report.Verdict, report.NumInstances) == ("capped", 10)


def test_series_do_not_disturb_each_other(collector: SeriesCollector) -> None:
    collector.observe(make_instance("1", series="1.1"), 0.0)
    collector.observe(make_instance("1", series="1.2"), 1.0)
    assert [r.SeriesInstanceUID for r in collector.due(2.0)] == ["1.1"]
    assert [r.SeriesInstanceUID for r in collector.due(3.0)] == ["1.2"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"study": "1.1"}, {"study": "1.2"}),
        ({"patient_id": "P1"}, {"patient_id": "P2"}),
        ({"patient_id": "P1"}, {"patient_id": None}),
    ],
)
def test_one_series_uid_of_two_owners_is_two_reports(
    collector: SeriesCollector, one: dict[str, str], other: dict[str, str]
) -> None:
    collector.observe(make_instance("1", **one), 0.0)
    collector.observe(make_instance("2", **other), 0.0)
    assert [r.NumInstances for r in collector.due(IDLE_S)] == [1, 1]


def test_late_image_opens_the_next_revision_with_only_the_new(collector: SeriesCollector) -> None:
    collector.observe(make_instance("1"), 0.0)
    first = collector.due(IDLE_S)[0]
    collector.observe(make_instance("2"), IDLE_S)
    second = collector.due(2 * IDLE_S)[0]
    assert (first.Revision, sops(first)) == (1, {f"{SERIES}.1"})
    assert (second.Revision, sops(second)) == (2, {f"{SERIES}.2"})


def test_drain_reports_what_is_open_and_empties(collector: SeriesCollector) -> None:
    collector.observe(make_instance("1"), 0.0)
    (report,) = collector.drain(99.0)
    assert report.Verdict == "drained"
    assert (collector.next_deadline(), collector.drain(99.0)) == (None, [])


def test_a_declared_series_is_reported_at_once_and_no_other(collector: SeriesCollector) -> None:
    for series in (SERIES, "1.9"):
        collector.observe(make_instance("1", series=series), 0.0)
    (report,) = collector.declare(SERIES, 0.0, 0.5)
    assert (report.SeriesInstanceUID, report.Verdict, report.NumInstances) == (SERIES, "declared", 1)
    assert report.Timeline[-1].Details["Verdict"] == "declared"
    assert collector.declare(SERIES, 0.0, 0.6) == []
    assert [r.SeriesInstanceUID for r in collector.due(IDLE_S)] == ["1.9"]


def test_a_declared_series_is_reported_for_each_patient_that_it_is_collected_under(collector: SeriesCollector) -> None:
    collector.observe(make_instance("1"), 0.0)
    collector.observe(make_instance("2", patient_id="P2"), 0.0)
    assert [r.PatientID for r in collector.declare(SERIES, 0.0, 0.5)] == ["P1", "P2"]


def test_what_a_person_said_before_its_first_image_came_closes_no_series(collector: SeriesCollector) -> None:
    collector.observe(make_instance("1"), 0.0)
    assert collector.declare(SERIES, -0.001, 0.5) == []
    assert collector.open_series == 1


def test_an_image_after_a_declaration_contradicts_it(collector: SeriesCollector) -> None:
    collector.observe(make_instance("1"), 0.0)
    collector.declare(SERIES, 0.0, 0.5)
    collector.observe(make_instance("2"), 1.0)
    (report,) = collector.due(1.0 + IDLE_S)
    (reopened,) = [entry for entry in report.Timeline if entry.Event == "series.reopened"]
    assert (report.Revision, sops(report), reopened.Details["Verdict"]) == (2, {f"{SERIES}.2"}, "declared")


def test_that_a_person_was_impatient_teaches_nothing_of_a_source() -> None:
    policy = Adaptive(IDLE_S, 60.0)
    collector = collector_of(policy)
    collector.observe(make_instance("1"), 0.0)
    source = Source("TEST", "CT", "")
    collector.declare(SERIES, 0.0, 0.5)
    assert policy.known(source) == 0
    collector.observe(make_instance("1", series="1.9"), 1.0)
    collector.due(1000.0)
    assert policy.known(source) == 1


def test_attribute_missing_in_the_first_image_is_taken_from_a_later_one(collector: SeriesCollector) -> None:
    bare = make_instance("1")
    collector.observe(replace(bare, attributes={"PatientID": ("P1",), "PatientName": ()}), 0.0)
    collector.observe(make_instance("2"), 0.0)
    (report,) = collector.drain(99.0)
    assert report.PatientName == "Test^One"
    assert report.Attributes == {"Modality": ["CT"]}


def test_undecoded_text_is_reported_as_base64(collector: SeriesCollector) -> None:
    collector.observe(replace(make_instance("1"), undecoded={"PatientName": b"\xff"}), 0.0)
    assert collector.drain(99.0)[0].Undecoded == {"PatientName": "/w=="}


def test_attributes_of_each_instance_are_columns_in_the_order_of_the_uids(collector: SeriesCollector) -> None:
    collector.observe(with_own("3", InstanceNumber="30", Rows="512", NumberOfFrames="2"), 0.0)
    collector.observe(with_own("1", InstanceNumber="10", Rows="512"), 0.0)
    collector.observe(with_own("2", SecondaryCaptureImageStorage, InstanceNumber="20", Rows="512"), 0.0)
    (report,) = collector.drain(99.0)
    assert report.SOPInstanceUIDs == [f"{SERIES}.{n}" for n in (1, 2, 3)]
    assert report.InstanceAttributes == {
        "SOPClassUID": [CTImageStorage, SecondaryCaptureImageStorage, CTImageStorage],
        "InstanceNumber": ["10", "20", "30"],
        "Rows": ["512"],  # holds for all
        "NumberOfFrames": [None, None, "2"],  # no image has Columns or BitsAllocated
    }


def test_the_first_of_a_repeated_instance_says_its_attributes(collector: SeriesCollector) -> None:
    collector.observe(with_own("1", InstanceNumber="1"), 0.0)
    collector.observe(with_own("1", InstanceNumber="2", Rows="8"), 0.0)
    assert collector.drain(99.0)[0].InstanceAttributes == {"SOPClassUID": [CTImageStorage], "InstanceNumber": ["1"]}


def test_late_image_brings_only_its_own_attributes(collector: SeriesCollector) -> None:
    collector.observe(with_own("1", InstanceNumber="1", Rows="8"), 0.0)
    collector.due(IDLE_S)
    collector.observe(with_own("2", InstanceNumber="2"), IDLE_S)
    (report,) = collector.drain(99.0)
    assert report.InstanceAttributes == {"SOPClassUID": [CTImageStorage], "InstanceNumber": ["2"]}


def test_undecoded_text_of_one_instance_is_not_said_of_the_series(collector: SeriesCollector) -> None:
    instance = with_own("1", InstanceNumber="\xff")
    collector.observe(replace(instance, undecoded={"InstanceNumber": b"\xff"}), 0.0)
    assert collector.drain(99.0)[0].Undecoded == {}


arrivals = st.lists(
    st.tuples(
        st.floats(0, 3, allow_nan=False),  # gap to the one before, around the idle timeout
        st.sampled_from(["1.1", "1.2", "1.3"]),
        st.integers(0, 5).map(str),
    ),
    max_size=60,
)


@given(arrivals)
def test_any_arrivals_split_at_idle_gaps_and_nothing_is_lost_or_doubled(gaps: list[tuple[float, str, str]]) -> None:
    collector = new_collector()
    reports: list[SeriesReport] = []
    expected: dict[str, list[set[str]]] = defaultdict(list)  # an independent account: per series, a set per revision
    opened: dict[str, float] = {}
    seen: dict[str, float] = {}
    now = 0.0
    for gap, series, sop in gaps:
        now += gap
        reports += collector.due(now)
        instance = make_instance(sop, series=series)
        if series not in seen or now >= min(seen[series] + IDLE_S, opened[series] + MAX_OPEN_S):
            expected[series].append(set())
            opened[series] = now
        seen[series] = now
        expected[series][-1].add(instance.sop_instance_uid)
        collector.observe(instance, now)
    reports += collector.drain(99.0)
    for series, revisions in expected.items():
        mine = [r for r in reports if r.SeriesInstanceUID == series]
        assert [r.Revision for r in mine] == list(range(1, len(revisions) + 1))
        assert [sops(r) for r in mine] == revisions


def test_next_deadline_does_not_look_at_every_series(monkeypatch: pytest.MonkeyPatch) -> None:
    collector = new_collector()
    looked_at = 0
    compute = OpenSeries.deadline

    def counting(series: OpenSeries) -> float:
        nonlocal looked_at
        looked_at += 1
        return compute(series)

    monkeypatch.setattr(OpenSeries, "deadline", counting)
    n = 2000
    for i in range(n):
        collector.observe(make_instance("1", series=f"{STUDY}.{i}"), i * 1e-6)
        collector.next_deadline()
    for i in range(n):
        collector.observe(make_instance("2", series=f"{STUDY}.{i}"), 1 + i * 1e-6)
        collector.next_deadline()
        collector.due(1 + i * 1e-6)
    assert looked_at < 6 * n


@given(
    st.dictionaries(
        st.sampled_from(
            ["PatientName", "PatientID", "Modality", "SeriesDescription", "SpecificCharacterSet", *INSTANCE_KEYWORDS]
        ),
        st.lists(st.binary(max_size=2000), max_size=3),
    )
)
def test_whatever_a_header_holds_can_be_reported(values: dict[str, list[bytes]]) -> None:
    ds = make_dataset()
    del ds.PixelData  # the walk ends there, and the spoilt elements follow
    body = encode(ds)
    for tag, (keyword, vr) in WANTED.items():
        if keyword in values:
            raw = b"\\".join(values[keyword])
            raw += b" " * (len(raw) % 2)
            body += struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr.encode(), len(raw)) + raw
    instance = read_instance(
        body, transfer_syntax_uid=ExplicitVRLittleEndian, calling_ae_title="", peer_address="", received_at=RECEIVED_AT
    )
    collector = new_collector()
    collector.observe(instance, 0.0)
    (report,) = collector.drain(99.0)
    assert SeriesReport.model_validate_json(report.model_dump_json()) == report


def test_a_new_revision_follows_the_last_one_of_an_earlier_run() -> None:
    key = make_instance().key
    collector = collector_of(Fixed(IDLE_S), revisions={key: 4})
    collector.observe(make_instance(), 0.0)
    assert collector.drain(99.0)[0].Revision == 5


def test_no_more_series_are_closed_at_once_than_may_keep_the_inbox_waiting(collector: SeriesCollector) -> None:
    for n in range(DUE_AT_ONCE + 7):
        collector.observe(make_instance(series=f"1.{n + 1}"), 0.0)
    assert len(collector.due(IDLE_S)) == DUE_AT_ONCE
    assert collector.next_deadline() == IDLE_S
    assert len(collector.due(IDLE_S)) == 7


def associated(sop: str, association: Association) -> Instance:
    return replace(make_instance(sop), association=association)


def test_what_an_open_series_waits_for() -> None:
    collector = collector_of(Fixed(IDLE_S), pacs={"TEST"}, patience_s=60.0)
    association = Association(1, "TEST", "::1", 0.0)
    collector.observe(associated("1", association), 1.0)
    assert [series.Waiting for series in collector.arriving(9)] == ["for images"]
    association.released_at = 1.1
    collector.released(association, 1.1)
    assert [series.Waiting for series in collector.arriving(9)] == ["for silence"]
    collector.due(1.4)  # it is time to ask
    (question,) = collector.questions()
    assert [series.Waiting for series in collector.arriving(9)] == ["for the PACS"]
    collector.answered(question.key, Answer("TEST", question.here, count=1, known=1), 1.5)
    assert [(s.Waiting, s.Expected) for s in collector.arriving(9)] == [("for silence", 1)]


@pytest.mark.parametrize("values", [("10", "20"), ("9" * 5000,), ("٣",), ("-1",), ("1.5",), ("",)])
def test_a_count_that_makes_no_sense_stops_nothing(values: tuple[str, ...]) -> None:
    collector = new_collector()
    instance = make_instance("1")
    attributes = {**instance.attributes, "ImagesInAcquisition": values}
    collector.observe(replace(instance, attributes=attributes), 0.0)
    assert len(collector.arriving(9)) == 1
    (report,) = collector.due(IDLE_S)
    assert report.ExpectedInstances in (None, 10, 3)
    assert collector.failures() == []


def test_a_series_about_to_be_reported_says_so() -> None:
    collector = collector_of(Adaptive(2.0, 60.0))
    collector.observe(make_instance("1"), 0.0)
    now = 0.0
    while not (reports := collector.due(now)) and collector.arriving(9)[0].Waiting != "to be reported":
        now = collector.next_deadline() or now
    assert not reports


def test_open_series_are_named_the_latest_first_and_not_too_many(collector: SeriesCollector) -> None:
    for n in range(10):
        collector.observe(make_instance("1", series=f"{STUDY}.{n}"), float(n) / 10)
    collector.observe(make_instance("2", series=f"{STUDY}.3"), 1.5)
    assert collector.open_series == 10
    named = collector.arriving(3)
    assert [series.SeriesInstanceUID for series in named] == [f"{STUDY}.{n}" for n in (3, 9, 8)]
    assert [series.Instances for series in named] == [2, 1, 1]


@given(gaps=st.lists(st.floats(0, 1.9), min_size=1, max_size=400))
def test_a_report_says_when_its_images_came(gaps: list[float]) -> None:
    collector, now = new_collector(), 0.0
    for n, gap in enumerate(gaps):
        now += gap if n else 0.0
        if reports := collector.due(now):  # capped
            break
        collector.observe(make_instance(str(n)), now)
    else:
        reports = collector.drain(now)
    report = reports[0]
    (entry,) = [e for e in report.Timeline if e.Event == "images.arrived"]
    text = str(entry.Details["Arrivals"])
    marks = [(float(at), int(count)) for at, _, count in (mark.partition(":") for mark in text.split())]
    assert len(text) <= 256
    assert marks == sorted(marks)
    assert marks[0] == (0.0, 1)
    assert marks[-1][1] == report.NumInstances


def test_of_more_images_than_are_marked_the_last_one_is_told() -> None:
    collector = new_collector()
    for n in range(1000):
        collector.observe(make_instance(str(n)), n / 1000)
    (report,) = collector.drain(1.0)
    (entry,) = [e for e in report.Timeline if e.Event == "images.arrived"]
    counts = [int(point.partition(":")[2]) for point in str(entry.Details["Arrivals"]).split()]
    assert counts[-1] == 1000
    steps = {later - earlier for earlier, later in itertools.pairwise(counts[:-1])}
    assert len(steps) == 1  # evenly over all of them


def test_a_series_whose_association_or_source_goes_on_to_another_falls_due_sooner() -> None:
    for ended, modality, phase in ((False, "MR", Phase.MOVED), (True, "CT", Phase.NEXT)):
        collector = collector_of(Adaptive(2.0, 60.0))
        association = Association(1, "TEST", "::1", 0.0)
        collector.observe(associated("1", association), 0.0)
        if ended:
            association.released_at = 0.1
            collector.released(association, 0.1)
            association = Association(2, "TEST", "::1", 0.1)
        before = collector.next_deadline()
        other = replace(associated("1", association), series_instance_uid=f"{STUDY}.9")
        collector.observe(replace(other, attributes={"Modality": (modality,)}), 1.0)
        assert before is not None
        assert collector.next_deadline() == 2.0 * PRIORS[phase] < before


def test_when_images_came_is_remembered_in_few_words() -> None:
    collector = collector_of(Fixed(IDLE_S))
    for n in range(5000):
        collector.observe(make_instance(str(n)), n / 100)
    (series,) = collector._open.values()
    assert len(series.arrivals) < 2 * MAX_ARRIVALS


def test_a_release_stands_in_the_timeline_at_its_own_time() -> None:
    collector = collector_of(Fixed(IDLE_S))
    association = Association(1, "TEST", "::1", 0.0)
    collector.observe(associated("1", association), 1.0)
    association.released_at = 1.25
    collector.released(association, 1.25)
    (report,) = collector.drain(2.0)
    (counted,) = [entry for entry in report.Timeline if entry.Event == "images.counted"]
    assert counted.At == RECEIVED_AT + timedelta(seconds=1.25)


def test_a_source_that_comes_back_to_a_series_has_not_gone_on_to_another() -> None:
    collector = collector_of(Adaptive(2.0, 60.0))

    def bring(number: int, series: str, at: float) -> None:
        association = Association(number, "TEST", "::1", at)
        image = replace(associated(str(number), association), series_instance_uid=series)
        collector.observe(image, at)
        association.released_at = at
        collector.released(association, at)

    bring(1, SERIES, 0.0)
    bring(2, f"{STUDY}.9", 1.0)
    (idle,) = (series for series in collector._open.values() if series.key.series_instance_uid == SERIES)
    assert idle.phase() is Phase.NEXT
    bring(3, SERIES, 2.0)
    assert idle.phase() is Phase.EACH


def test_who_was_heard_is_told_with_the_waits_that_were_learnt() -> None:
    collector = collector_of(Adaptive(2.0, 60.0))
    for n in range(2):
        collector.observe(make_instance("1", series=f"1.{n + 1}"), 100.0 * n)
        collector.due(100.0 * n + 99.0)
    (heard,) = collector.heard()
    assert (heard.Source, heard.LastReceivedAt, heard.LearntFrom) == ("TEST CT", RECEIVED_AT, 2)
    assert heard.WaitS == {"open": 2.0 * PRIORS[Phase.OPEN]}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1", 1),
        ("0", None),
        (str(2**31 - 1), 2**31 - 1),
        (str(2**31), None),
        ("5".zfill(12), 5),
        ("5".zfill(13), None),
        ("-1", None),
        ("", None),
    ],
)
def test_a_count_in_a_tag_is_a_number_that_an_integer_string_can_be(text: str, count: int | None) -> None:
    assert count_in({"ImagesInAcquisition": (text, "7")}, "ImagesInAcquisition") == count
    assert count_in({}, "ImagesInAcquisition") is None
    assert count_in({"ImagesInAcquisition": ()}, "ImagesInAcquisition") is None


def test_an_image_at_which_something_of_ours_fails_is_reported_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("never shown")

    collector = new_collector()
    collector.observe(make_instance("1"), 0.0)
    monkeypatch.setattr(OpenSeries, "end_silence", fail)
    collector.observe(make_instance("2"), 0.5)
    (report,) = collector.due(0.5)
    assert sops(report) == {f"{SERIES}.1", f"{SERIES}.2"}
    assert [failure.set_aside for failure in collector.failures()] == [()]
