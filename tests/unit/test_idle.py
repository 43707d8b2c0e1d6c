"""The idle policies, and how the collector uses them; the time is passed in."""

import contextlib
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.collector import SeriesCollector
from gateway.idle import (
    COUNTS_AFTER,
    ENOUGH,
    FADED,
    FLOOR_S,
    GRACE,
    MARGIN,
    MAX_SOURCES,
    PRIORS,
    WELL_KNOWN,
    WELL_KNOWN_MARGIN,
    Adaptive,
    Fixed,
    Phase,
    Quantile,
    Source,
)
from gateway.open_series import OpenSeries
from models import MAX_TIMELINE, Association, Instance, SeriesReport
from tests.rig.factories import SERIES, collector_of, make_instance

CT1 = Source("CT1", "CT")
numbers = count(1)


def association(at: float = 0.0, ae: str = "CT1") -> Association:
    return Association(next(numbers), ae, "10.0.0.7", at)


def image(sop: str, carrier: Association | None = None, **attributes: str) -> Instance:
    instance = make_instance(sop, series=attributes.pop("series", SERIES))
    more = {keyword: (value,) for keyword, value in attributes.items()}
    ae = carrier.calling_ae_title if carrier else "CT1"
    return replace(instance, calling_ae_title=ae, association=carrier, attributes={**instance.attributes, **more})


def adaptive() -> Adaptive:
    return Adaptive(idle_timeout_s=2.0, ceiling_s=60.0)


def release(collector: SeriesCollector, carrier: Association, now: float) -> None:
    carrier.released_at = now
    collector.released(carrier, now)


def due_at(collector: SeriesCollector) -> tuple[float, SeriesReport]:
    """Let the time pass until something is reported."""
    while (deadline := collector.next_deadline()) is not None:
        for report in collector.due(deadline):
            return deadline, report
    raise AssertionError("nothing is open")


# --- policies -------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 900), min_size=1, max_size=300))
def test_quantile_bounds_nearly_all_it_was_shown(silences: list[float]) -> None:
    estimator = Quantile(fading=1.0)
    for seconds in silences:
        estimator.add(seconds)
    assert sum(seconds > estimator.bound_s() * 1.0001 for seconds in silences) <= len(silences) * 0.01 + 1e-9


def test_quantile_forgets_what_is_old() -> None:
    estimator = Quantile()
    for seconds in [30.0] * 5 + [0.1] * 2000:
        estimator.add(seconds)
    assert estimator.bound_s() < 0.2


@pytest.mark.parametrize("phase", Phase)
def test_a_new_source_gets_the_prior_until_enough_is_known_and_then_less_and_less_of_it(phase: Phase) -> None:
    policy = adaptive()
    prior_s = PRIORS[phase] * 2.0
    for _ in range(ENOUGH):
        assert policy.timeout_s(CT1, phase, {}) == min(prior_s, 60.0)
        policy.learn(CT1, {phase: 0.0})
    assert policy.timeout_s(CT1, phase, {}) == pytest.approx(max(FADED * prior_s, FLOOR_S))
    learn(policy, CT1, {phase: 0.0}, 100 * ENOUGH)
    assert policy.timeout_s(CT1, phase, {}) == pytest.approx(max(FADED * prior_s / 101, FLOOR_S))


def learn(policy: Adaptive, source: Source, longest_s: dict[Phase, float], series: int = ENOUGH) -> None:
    for _ in range(series):
        policy.learn(source, longest_s)


@pytest.mark.parametrize("modality", ["US", "DX", "XA", "MG", "PT"])
def test_images_that_are_made_one_by_one_are_waited_for_before_anything_is_known(modality: str) -> None:
    policy = Adaptive(2.0, 400.0)
    assert policy.timeout_s(Source("NEW", modality), Phase.EACH, {}) >= 180.0
    assert policy.timeout_s(Source("NEW", modality), Phase.RELEASED, {}) < 10.0
    learn(policy, Source("NEW", modality), {Phase.EACH: 0.0})
    assert policy.timeout_s(Source("NEW", modality), Phase.EACH, {}) < 10.0


def test_sources_and_phases_learn_apart() -> None:
    policy = adaptive()
    learn(policy, CT1, {Phase.OPEN: 8.0})
    learnt = policy.timeout_s(CT1, Phase.OPEN, {})
    assert 8.0 * MARGIN <= learnt <= 8.0 * MARGIN * 1.1
    assert policy.timeout_s(CT1, Phase.RELEASED, {}) == PRIORS[Phase.RELEASED] * 2.0
    assert policy.timeout_s(Source("CT2", "MR"), Phase.OPEN, {}) == PRIORS[Phase.OPEN] * 2.0


def test_a_source_is_known_by_the_phase_that_it_was_seen_in_most() -> None:
    policy = adaptive()
    learn(policy, CT1, {Phase.OPEN: 1.0}, 3)
    learn(policy, CT1, {Phase.RELEASED: 1.0}, 1)
    assert policy.known(CT1) == 3


def test_a_source_that_is_well_known_needs_less_of_a_margin() -> None:
    policy = adaptive()
    learn(policy, CT1, {Phase.OPEN: 8.0}, WELL_KNOWN)
    assert 8.0 * WELL_KNOWN_MARGIN <= policy.timeout_s(CT1, Phase.OPEN, {}) <= 8.0 * WELL_KNOWN_MARGIN * 1.1


def test_what_this_series_has_shown_counts_at_once_in_its_phase_and_in_no_other() -> None:
    assert adaptive().timeout_s(CT1, Phase.OPEN, {Phase.OPEN: 20.0}) == 20.0 * MARGIN
    assert adaptive().timeout_s(CT1, Phase.RELEASED, {Phase.OPEN: 20.0}) == PRIORS[Phase.RELEASED] * 2.0


@given(st.floats(0, 1e4), st.integers(0, 2 * ENOUGH))
def test_nobody_waits_longer_than_the_ceiling_grace_included(silence_s: float, series: int) -> None:
    policy = adaptive()
    for _ in range(series):
        policy.learn(CT1, {Phase.OPEN: silence_s})
    timeout_s = policy.timeout_s(CT1, Phase.OPEN, {Phase.OPEN: silence_s})
    assert timeout_s + policy.grace_s(timeout_s) <= 60.0


def test_a_silence_beyond_the_ceiling_is_learnt_as_the_ceiling() -> None:
    policy = adaptive()
    for _ in range(ENOUGH):
        policy.learn(CT1, {Phase.EACH: 120.0})
    assert policy.timeout_s(CT1, Phase.EACH, {}) == 60.0


def test_a_new_source_is_taken_for_others_of_its_ae_title_then_of_its_modality() -> None:
    policy = adaptive()
    for _ in range(ENOUGH):
        policy.learn(Source("PACS", "US", "ROOM1"), {Phase.OPEN: 30.0})
        policy.learn(Source("PACS2", "US"), {Phase.EACH: 20.0})
    assert policy.timeout_s(Source("PACS", "US", "ROOM2"), Phase.OPEN, {}) > 30.0
    assert policy.timeout_s(Source("ELSEWHERE", "US", "ROOM1"), Phase.EACH, {}) > 20.0
    assert policy.timeout_s(Source("PACS", "CT"), Phase.OPEN, {}) > 30.0
    assert policy.timeout_s(Source("ELSEWHERE", "CT"), Phase.OPEN, {}) == PRIORS[Phase.OPEN] * 2.0


def test_stations_of_one_ae_title_learn_apart() -> None:
    policy = adaptive()
    slow, fast = Source("PACS", "CT", "SLOW"), Source("PACS", "CT", "FAST")
    for _ in range(ENOUGH):
        policy.learn(slow, {Phase.OPEN: 30.0})
        policy.learn(fast, {Phase.OPEN: 0.0})
    assert policy.timeout_s(fast, Phase.OPEN, {}) < 3.0
    assert policy.timeout_s(slow, Phase.OPEN, {}) > 30.0


def test_new_names_never_evict_a_source_with_history_and_memory_is_bounded() -> None:
    policy = adaptive()
    for _ in range(ENOUGH):
        policy.learn(CT1, {Phase.OPEN: 20.0})
    for n in range(MAX_SOURCES + 50):
        policy.learn(Source(f"STRANGER{n}", ""), {Phase.OPEN: 0.0})
    news = policy.news()
    assert policy.known(CT1) == ENOUGH
    assert sum(learnt is not None for learnt in news.values()) <= MAX_SOURCES
    assert news[Source("STRANGER0", "")] is None  # the journal is to forget it, too


def test_images_in_an_acquisition_count_the_series_of_a_source_once_ten_in_a_row_have_ended_there() -> None:
    before, after = adaptive(), adaptive()
    for _ in range(COUNTS_AFTER):
        assert not before.counts_series(CT1, "acquisition")
        before.learn_count(CT1, "acquisition", right=True)
    (learnt,) = before.news().values()
    after.load(CT1, learnt or "")
    for policy in (before, after):
        assert policy.counts_series(CT1, "acquisition")
        policy.learn_count(CT1, "acquisition", right=False)
        assert not policy.counts_series(CT1, "acquisition")


def test_what_an_earlier_version_learnt_is_taken_over() -> None:
    policy = adaptive()
    policy.load(CT1, '{"open": [40, {"30": 39.0, "0": 1.0}]}')  # bin 30 of ten a decade ends at 10 s
    assert policy.known(CT1) == 40
    assert policy.timeout_s(CT1, Phase.OPEN, {}) == pytest.approx(10.0 * WELL_KNOWN_MARGIN)


def test_what_was_learnt_survives_a_restart() -> None:
    before, after = adaptive(), adaptive()
    for seconds in (0.1, 3.0, 7.0) * ENOUGH:
        before.learn(CT1, {Phase.OPEN: seconds, Phase.RELEASED: 0.0})
    news = before.news()
    for source, learnt in news.items():
        after.load(source, learnt or "")
    for phase in Phase:
        assert after.timeout_s(CT1, phase, {}) == before.timeout_s(CT1, phase, {})


# --- the collector --------------------------------------------------------------------------------------------


def test_release_shortens_the_wait_and_does_not_end_it() -> None:
    kept_open, released = collector_of(adaptive()), collector_of(adaptive())
    for collector in (kept_open, released):
        carrier = association()
        for sop in ("1", "2"):
            collector.observe(image(sop, carrier), 0.0)
    release(released, carrier, 0.1)
    assert released.due(0.1) == []
    at, report = due_at(released)
    assert (report.Verdict, report.NumInstances) == ("idle", 2)
    assert 0.1 < at < due_at(kept_open)[0]


def test_going_on_to_another_series_shortens_the_wait() -> None:
    collector = collector_of(adaptive())
    carrier = association()
    collector.observe(image("1", carrier), 0.0)
    collector.observe(image("1", carrier, series="1.9"), 0.5)
    at, report = due_at(collector)
    assert report.SeriesInstanceUID == SERIES
    assert at == pytest.approx(PRIORS[Phase.MOVED] * 2.0 * (1 + GRACE))


def test_as_many_images_as_a_tag_says_shorten_the_wait_and_are_the_verdict() -> None:
    collector = collector_of(adaptive())
    for n in range(3):
        collector.observe(image(str(n), association(), NumberOfSeriesRelatedInstances="3"), 0.0)
    at, report = due_at(collector)
    assert (report.Verdict, report.ExpectedInstances, report.ExpectedFrom) == ("expected", 3, "tags")
    assert at < 1.0
    assert report.Attributes == {"Modality": ["CT"]}


def test_bytes_that_still_come_are_activity() -> None:
    collector = collector_of(Fixed(2.0))
    carrier = association()
    collector.observe(image("1", carrier), 0.0)
    for second in range(1, 30):
        carrier.receiving_at = float(second)
        assert collector.due(float(second)) == []
    carrier.receiving_at = None
    collector.observe(image("2", carrier), 30.0)
    at, report = due_at(collector)
    assert (at, report.NumInstances) == (32.0, 2)


def test_time_in_which_bytes_came_is_no_silence() -> None:
    collector = collector_of(adaptive())
    carrier = association()
    collector.observe(image("1", carrier), 0.0)
    carrier.began_at, carrier.receiving_at = 0.1, 39.0
    collector.observe(image("2", carrier), 40.0)
    carrier.receiving_at = None
    release(collector, carrier, 40.0)
    assert due_at(collector)[0] < 45.0


def test_grace_period_follows_the_idle_time_out_and_an_image_in_it_goes_on() -> None:
    collector = collector_of(adaptive())
    carrier = association()
    collector.observe(image("1", carrier), 0.0)
    timeout_s = PRIORS[Phase.OPEN] * 2.0
    assert collector.due(timeout_s) == []
    collector.observe(image("2", carrier), timeout_s + 0.1)
    _, report = due_at(collector)
    assert report.NumInstances == 2
    assert [e.Event for e in report.Timeline].count("series.idle") == 2


def test_a_late_image_teaches_the_silence_that_it_ended() -> None:
    policy = adaptive()
    collector = collector_of(policy)
    for n in range(ENOUGH + 1):
        collector.observe(image("1", series=f"1.{n + 1}"), 100.0 * n)
        at, _ = due_at(collector)
    before = policy.timeout_s(Source("CT1", "CT"), Phase.OPEN, {})
    collector.observe(image("2", series=f"1.{ENOUGH + 1}"), 100.0 * ENOUGH + 20.0)
    assert policy.timeout_s(CT1, Phase.OPEN, {}) > max(before, 20.0)
    _, report = due_at(collector)
    assert report.Timeline[0].Event == "series.reopened"
    assert report.Timeline[0].Details == {"LateByS": 20.0, "Verdict": "idle"}
    assert at > 0


def test_a_series_sent_again_teaches_nothing() -> None:
    policy = adaptive()
    collector = collector_of(policy)
    collector.observe(image("1"), 0.0)
    due_at(collector)
    known = policy.known(CT1)
    collector.observe(image("1"), 30.0)
    assert policy.known(CT1) == known


def send(collector: SeriesCollector, gaps: list[float], at: float, **attributes: str) -> Association:
    """Images on one association with these gaps before each; it stays open."""
    carrier = association(at)
    for n, gap in enumerate(gaps):
        at += gap
        collector.observe(image(str(n), carrier, **attributes), at)
    return carrier


@pytest.mark.parametrize(
    ("images", "aborted", "phase"), [(1, False, "each"), (2, False, "released"), (2, True, "aborted")]
)
def test_how_an_association_ended_is_the_phase_of_the_silence(images: int, aborted: bool, phase: str) -> None:
    collector = collector_of(adaptive())
    carrier = send(collector, [0.1] * images, 0.0)
    carrier.aborted = aborted
    release(collector, carrier, 1.0)
    _, report = due_at(collector)
    assert f", {phase}," in str(report.Basis)


def test_a_verdicts_reason_and_its_timeline_tell_the_same_silence() -> None:
    policy = adaptive()
    collector = collector_of(policy)
    learn(policy, CT1, {Phase.RELEASED: 0.5}, series=3)
    carrier = send(collector, [0.1, 0.1], 0.0)
    release(collector, carrier, 1.0)
    assert collector.due(collector.next_deadline() or 0.0) == []  # idle, which the next image would take back
    learn(policy, CT1, {Phase.RELEASED: 0.5})
    _, report = due_at(collector)
    silence = next(event.Details for event in report.Timeline if event.Event == "series.idle")
    assert f"quiet for {silence['IdleTimeoutS']:g} s" in str(report.Basis)
    assert f"learnt from {silence['LearntFrom']} series" in str(report.Basis)
    assert policy.known(CT1) > int(str(silence["LearntFrom"]))


def test_a_sender_that_aborts_is_given_time_to_begin_again() -> None:
    collector = collector_of(Adaptive(2.0, 400.0))
    carrier = send(collector, [0.1] * 9, 0.0)
    carrier.aborted = True
    release(collector, carrier, 1.0)
    now = 1.0
    while (deadline := collector.next_deadline() or now) < 61.0:
        now = deadline
        assert collector.due(now) == []
    send(collector, [0.1] * 20, 61.0)
    _, report = due_at(collector)
    assert (report.Revision, report.NumInstances) == (1, 20)


def test_a_source_that_has_begun_its_next_series_is_not_waited_for_as_one_that_has_not() -> None:
    policy = adaptive()
    collector = collector_of(policy)
    learn(policy, CT1, {Phase.EACH: 40.0, Phase.NEXT: 0.0})
    for n in range(3):
        carrier = association()
        collector.observe(image(str(n), carrier), float(n))
        release(collector, carrier, float(n) + 0.1)
    carrier = association()
    collector.observe(image("1", carrier, series="1.9"), 10.0)
    at, report = due_at(collector)
    assert (report.SeriesInstanceUID, report.NumInstances) == (SERIES, 3)
    assert at <= 10.0  # it is due when the next one begins, and not 40 s later
    assert ", next," in str(report.Basis)


def test_a_silence_that_only_repeated_images_ended_teaches_nothing() -> None:
    policy = adaptive()
    collector = collector_of(policy)
    learn(policy, CT1, {Phase.OPEN: 20.0})
    collector.observe(image("1"), 0.0)
    collector.observe(image("1"), 18.0)
    due_at(collector)
    assert policy.timeout_s(CT1, Phase.OPEN, {}) < 20.0 * MARGIN * 1.1
    collector.observe(image("1", series="1.9"), 100.0)
    collector.observe(image("1", series="1.9"), 125.0)
    collector.observe(image("2", series="1.9"), 125.1)
    due_at(collector)
    assert policy.timeout_s(CT1, Phase.OPEN, {}) > 25.0 * MARGIN


def test_an_image_an_association_is_learnt_apart_from_a_release() -> None:
    policy = adaptive()
    collector = collector_of(policy)
    for n in range(3):
        carrier = association()
        collector.observe(image(str(n), carrier), 4.0 * n)
        release(collector, carrier, 4.0 * n + 0.1)
    due_at(collector)
    assert policy.timeout_s(CT1, Phase.EACH, {}) > 4.0
    assert policy.timeout_s(CT1, Phase.RELEASED, {}) == PRIORS[Phase.RELEASED] * 2.0


def test_a_late_image_is_known_to_be_late_on_a_busy_gateway_too() -> None:
    collector = collector_of(Adaptive(2.0, 400.0))
    collector.observe(image("1", series="1.1"), 0.0)
    due_at(collector)
    for n in range(2, 1000):  # others that were closed since
        collector.observe(image("1", series=f"1.{n}"), 10.0)
    while collector.next_deadline() is not None:
        due_at(collector)
    collector.observe(image("2", series="1.1"), 150.0)
    _, report = due_at(collector)
    assert report.Timeline[0].Details == {"LateByS": 150.0, "Verdict": "idle"}


def test_what_is_remembered_of_closed_series_is_bounded_in_images_and_in_time() -> None:
    collector = collector_of(Fixed(2.0), remember_s=100.0)
    for n in range(30):
        collector.observe(image("1", series=f"1.{n}"), 10.0 * n)
        due_at(collector)
    assert 1 <= collector.remembered_images <= 12


def test_a_series_sent_again_with_more_is_contradicted_and_teaches_nothing() -> None:
    policy = adaptive()
    collector = collector_of(policy)
    collector.observe(image("1"), 0.0)
    due_at(collector)
    before = policy.timeout_s(CT1, Phase.OPEN, {})
    collector.observe(image("1"), 30.0)
    collector.observe(image("2"), 30.1)
    _, report = due_at(collector)
    assert [e.Event for e in report.Timeline].count("series.reopened") == 1
    assert policy.timeout_s(CT1, Phase.OPEN, {}) == before


def test_images_in_an_acquisition_are_evidence_and_no_expectation() -> None:
    collector = collector_of(adaptive())
    for n in range(120):  # three acquisitions of 40, in one series
        if n and n % 40 == 0:
            assert collector.due(6.0 * (n // 40) - 0.1) == []
        collector.observe(image(str(n), ImagesInAcquisition="40"), 6.0 * (n // 40) + 0.001 * n)
    _, report = due_at(collector)
    assert (report.Verdict, report.NumInstances, report.ExpectedInstances) == ("idle", 120, None)
    assert "a tag counts 40 images in an acquisition" in str(report.Basis)


def test_a_late_acquisition_shows_that_the_tag_counts_no_series() -> None:
    policy = Adaptive(2.0, 60.0)
    collector = collector_of(policy, remember_s=800.0)
    for n in range(2 * COUNTS_AFTER):
        for acquisition in range(2):  # further apart than the longest wait
            at = 1000.0 * n + 200.0 * acquisition
            collector.observe(image(f"{acquisition}", series=f"1.{n}", ImagesInAcquisition="1"), at)
            due_at(collector)
    assert not policy.counts_series(CT1, "acquisition")


def test_a_tag_counts_no_later_revision() -> None:
    collector = collector_of(adaptive())
    for revision in range(2):
        for n in range(3):
            collector.observe(image(f"{revision}{n}", NumberOfSeriesRelatedInstances="3"), 100.0 * revision)
        _, report = due_at(collector)
        assert report.Verdict == ("idle" if revision else "expected")


def test_a_deadline_is_never_later_than_what_the_phase_asks_for() -> None:
    collector = collector_of(Adaptive(2.0, 400.0))
    carrier = send(collector, [0.1] * 3, 0.0)
    carrier.aborted = True
    release(collector, carrier, 1.0)
    while (deadline := collector.next_deadline() or 99.0) < 60.0:  # it may begin again
        assert collector.due(deadline) == []
    send(collector, [0.1], 20.0)
    assert (collector.next_deadline() or 99.0) <= 20.1 + PRIORS[Phase.OPEN] * 2.0


def test_news_is_news_until_it_is_kept() -> None:
    policy = adaptive()
    policy.learn(CT1, {Phase.OPEN: 1.0})
    first = policy.news()
    assert policy.news() == first  # the journal could not take it
    policy.learn(CT1, {Phase.OPEN: 2.0})
    policy.kept(first)
    assert policy.news() != {}  # it has learnt more since
    policy.kept(policy.news())
    assert policy.news() == {}


@pytest.mark.parametrize("number", ["1" + "0" * 400, "-5", "1e400"])
def test_a_number_of_series_that_makes_no_sense_stops_nothing(number: str) -> None:
    policy = adaptive()
    with contextlib.suppress(OverflowError):
        policy.load(CT1, f'{{"open": [{number}, {{"30": 1.0}}], "counted": {number}}}')
    assert 0.0 < policy.timeout_s(CT1, Phase.OPEN, {}) <= 60.0
    policy.learn(CT1, {Phase.OPEN: 1.0})


@pytest.mark.parametrize("weight", ["NaN", "Infinity", "-Infinity"])
def test_a_weight_that_is_no_number_teaches_nothing(weight: str) -> None:
    policy = adaptive()
    policy.load(CT1, f'{{"open": [40, {{"per_decade": 30, "0": {weight}, "90": 1.0}}]}}')
    assert policy.timeout_s(CT1, Phase.OPEN, {}) > 10.0


def test_a_histogram_holds_any_silence_and_is_zero_without_one() -> None:
    silences = Quantile()
    assert silences.bound_s() == 0.0
    silences.add(10.0**9)
    assert silences.bound_s() == pytest.approx(1000.0)
    again = Quantile()
    again.load({"per_decade": 30, "150": 1.0, "151": 1.0, str(10**9): 1.0})
    assert again.bound_s() == pytest.approx(1000.0)
    assert again.dump() == {"per_decade": 30, 150: 3.0}


def test_ten_series_that_ended_at_the_images_in_their_acquisition_make_it_an_expectation() -> None:
    collector = collector_of(adaptive())
    verdicts = []
    for n in range(COUNTS_AFTER + 1):
        for sop in ("1", "2", "3"):
            collector.observe(image(sop, series=f"1.{n}", ImagesInAcquisition="3"), 100.0 * n)
        _, report = due_at(collector)
        verdicts.append((report.Verdict, report.ExpectedInstances))
    assert verdicts == [("idle", None)] * COUNTS_AFTER + [("expected", 3)]


def test_no_expectation_is_below_what_is_here() -> None:
    collector = collector_of(adaptive())
    for n in range(5):
        collector.observe(image(str(n), NumberOfSeriesRelatedInstances="3"), 0.1 * n)
    _, report = due_at(collector)
    assert (report.Verdict, report.ExpectedInstances, report.ExpectedFrom) == ("idle", None, None)


def test_timeline_is_bounded() -> None:
    collector = collector_of(adaptive(), max_open_s=1e9)
    for n in range(MAX_TIMELINE * 2):
        collector.observe(image(str(n), association()), 0.001 * n)
    _, report = due_at(collector)
    assert len(report.Timeline) == MAX_TIMELINE
    assert report.Timeline[-1].Event == "series.reported"
    assert SeriesReport.model_validate_json(report.model_dump_json()) == report


def test_many_series_on_one_association_cost_no_more_than_few(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = 0
    compute = OpenSeries.deadline

    def counting(series: OpenSeries) -> float:
        nonlocal looked_at
        looked_at += 1
        return compute(series)

    monkeypatch.setattr(OpenSeries, "deadline", counting)
    collector = collector_of(Fixed(60.0))
    carrier = association()
    images = 3000
    for n in range(images):
        now = n * 0.001
        carrier.receiving_at = now
        collector.observe(image(str(n), carrier, series=f"1.{n // 10 + 1}"), now)
        collector.due(now)
        collector.next_deadline()
    assert looked_at < images


def test_a_series_that_was_cut_short_or_continues_another_says_nothing_of_what_a_count_counts() -> None:
    policy = Adaptive(2.0, 400.0)
    collector = collector_of(policy)
    for n in range(2 * COUNTS_AFTER):
        collector.observe(image("1", series=f"1.{n + 1}", ImagesInAcquisition="1"), 100.0 * n)
        collector.drain(100.0 * n + 0.1)
    assert not policy.counts_series(CT1, "acquisition")
    for n in range(2 * COUNTS_AFTER):
        collector.observe(image("2", series=f"1.{n + 1}", ImagesInAcquisition="1"), 1e5 + 1e3 * n)
        collector.due(1e5 + 1e3 * n + 999)  # their second revision
    assert not policy.counts_series(CT1, "acquisition")


def test_a_fixed_wait_believes_no_count_and_has_learnt_nothing() -> None:
    policy = Fixed(2.0)
    policy.learn(CT1, {Phase.OPEN: 30.0})
    policy.learn_count(CT1, "acquisition", right=True)
    assert (policy.timeout_s(CT1, Phase.OPEN, {Phase.OPEN: 30.0}), policy.grace_s(2.0)) == (2.0, 0.0)
    assert not policy.counts_series(CT1, "acquisition")
    assert (policy.known(CT1), policy.learnt_s(CT1), policy.news()) == (0, {}, {})
