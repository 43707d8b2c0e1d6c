"""The idle policies, and how the collector uses them; the time is passed in."""

from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector import ASK_AFTER_S, FETCHES, SeriesCollector
from idle import ENOUGH, FLOOR_S, MARGIN, OWN_MARGIN, PRIORS, Adaptive, Fixed, Phase, Quantile, Source
from models import MAX_TIMELINE, Association, Instance, SeriesReport
from pacs import Answer
from tests.factories import SERIES, collector_of, make_instance

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
        if reports := collector.due(deadline):
            return deadline, reports[0]
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
def test_a_new_source_gets_the_prior_until_enough_is_known(phase: Phase) -> None:
    policy = adaptive()
    for _ in range(ENOUGH):
        assert policy.timeout_s(CT1, phase, {}) == PRIORS[phase] * 2.0
        policy.learn(CT1, {phase: 0.0})
    assert policy.timeout_s(CT1, phase, {}) == FLOOR_S


def test_sources_and_phases_learn_apart() -> None:
    policy = adaptive()
    for _ in range(ENOUGH):
        policy.learn(CT1, {Phase.OPEN: 8.0})
    learnt = policy.timeout_s(CT1, Phase.OPEN, {})
    assert 8.0 * MARGIN <= learnt <= 8.0 * MARGIN * 1.3
    assert policy.timeout_s(CT1, Phase.RELEASED, {}) == PRIORS[Phase.RELEASED] * 2.0
    assert policy.timeout_s(Source("CT1", "MR"), Phase.OPEN, {}) == PRIORS[Phase.OPEN] * 2.0


def test_what_this_series_has_shown_counts_at_once() -> None:
    assert adaptive().timeout_s(CT1, Phase.RELEASED, {Phase.OPEN: 20.0}) == 20.0 * OWN_MARGIN


def test_never_longer_than_the_ceiling_which_also_bounds_what_is_learnt() -> None:
    policy = adaptive()
    assert policy.timeout_s(CT1, Phase.OPEN, {Phase.OPEN: 59.0}) == 60.0
    policy.learn(CT1, {Phase.OPEN: 61.0})
    assert policy.known(CT1) == 0


def test_what_was_learnt_survives_a_restart() -> None:
    before, after = adaptive(), adaptive()
    for seconds in (0.1, 3.0, 7.0) * ENOUGH:
        before.learn(CT1, {Phase.OPEN: seconds, Phase.RELEASED: 0.0})
    news = before.news()
    assert before.news() == {}
    for source, learnt in news.items():
        after.load(source, learnt)
    for phase in Phase:
        assert after.timeout_s(CT1, phase, {}) == before.timeout_s(CT1, phase, {})


# --- the collector --------------------------------------------------------------------------------------------


def test_release_shortens_the_wait_and_does_not_end_it() -> None:
    kept_open, released = collector_of(adaptive()), collector_of(adaptive())
    for collector in (kept_open, released):
        carrier = association()
        collector.observe(image("1", carrier), 0.0)
    release(released, carrier, 0.1)
    assert released.due(0.1) == []
    at, report = due_at(released)
    assert (report.Verdict, report.NumInstances) == ("idle", 1)
    assert 0.1 < at < due_at(kept_open)[0]


def test_going_on_to_another_series_shortens_the_wait() -> None:
    collector = collector_of(adaptive())
    carrier = association()
    collector.observe(image("1", carrier), 0.0)
    collector.observe(image("1", carrier, series="1.9"), 0.5)
    at, report = due_at(collector)
    assert report.SeriesInstanceUID == SERIES
    assert at == pytest.approx(PRIORS[Phase.MOVED] * 2.0 * 1.25)


def test_as_many_images_as_a_tag_says_shorten_the_wait_and_are_the_verdict() -> None:
    collector = collector_of(adaptive())
    for n in range(3):
        collector.observe(image(str(n), association(), ImagesInAcquisition="3"), 0.0)
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


def test_timeline_is_bounded() -> None:
    collector = collector_of(adaptive(), max_open_s=1e9)
    for n in range(MAX_TIMELINE * 2):
        collector.observe(image(str(n), association()), 0.001 * n)
    _, report = due_at(collector)
    assert len(report.Timeline) == MAX_TIMELINE
    assert report.Timeline[-1].Event == "series.reported"
    assert SeriesReport.model_validate_json(report.model_dump_json()) == report


# --- answers of the PACS ----------------------------------------------------------------------------------------


def asking(**options: Any) -> SeriesCollector:
    return collector_of(adaptive(), pacs={"CT1"}, patience_s=60.0, **options)


def answer(here: int, count: int | None, **more: Any) -> Answer:
    fields = {"known": here, "confirmed": count == here} | more
    return Answer("CT1", here, count=count, **fields)


def test_who_cannot_be_asked_is_not() -> None:
    collector = asking()
    collector.observe(image("1", association(ae="OTHER")), 0.0)
    due_at(collector)
    assert collector.questions() == []


def test_the_pacs_is_asked_after_a_short_silence_and_at_once_after_the_release() -> None:
    collector = asking()
    carrier = association()
    collector.observe(image("1", carrier), 0.0)
    assert collector.next_deadline() == ASK_AFTER_S
    release(collector, carrier, 0.1)
    assert collector.next_deadline() == 0.1
    collector.due(0.1)
    (question,) = collector.questions()
    assert (question.calling_ae_title, question.here, question.fetch) == ("CT1", frozenset({f"{SERIES}.1"}), False)


def test_two_equal_answers_that_are_what_is_known_verify_at_once() -> None:
    collector = asking()
    collector.observe(image("1", association()), 0.0)
    collector.due(ASK_AFTER_S)
    (report,) = collector.answered(image("1").key, answer(1, 1), 0.5)
    assert (report.Verdict, report.ExpectedInstances, report.ExpectedFrom) == ("verified", 1, "pacs")
    assert report.Basis == "CT1 said 1 twice"
    assert collector.next_deadline() is None


def test_an_image_that_came_while_the_pacs_was_asked_is_no_part_of_the_answer() -> None:
    collector = asking()
    collector.observe(image("1", association()), 0.0)
    collector.due(ASK_AFTER_S)
    collector.observe(image("2", association()), 0.4)
    assert collector.answered(image("1").key, answer(1, 1), 0.5) == []
    collector.due(0.4 + ASK_AFTER_S)
    assert len(collector.questions()) == 2  # it is asked again


def test_one_question_of_a_series_is_in_flight_and_no_idle_verdict_falls_meanwhile() -> None:
    collector = asking()
    collector.observe(image("1", association()), 0.0)
    assert collector.due(0.3) == []
    collector.observe(image("2", association()), 0.4)
    for now in (0.8, 10.0, 100.0):
        assert collector.due(now) == []
    assert len(collector.questions()) == 1


def test_what_the_pacs_has_more_is_waited_for_and_reported_missing_in_the_end() -> None:
    collector = asking()
    collector.observe(image("1", association()), 0.0)
    collector.due(ASK_AFTER_S)
    now = 0.4
    while not (reports := collector.due(now)):
        for question in collector.questions():
            assert collector.answered(question.key, answer(1, 3, missing=["1.2", "1.3"]), now) == []
        now += 0.5
    (report,) = reports
    assert 60.0 < now < 90.0
    assert (report.Verdict, report.ExpectedInstances, report.MissingSOPInstanceUIDs) == ("idle", 3, ["1.2", "1.3"])


@pytest.mark.parametrize("count", [None, 0, 1])
def test_an_answer_that_is_none_or_too_small_falls_back_to_the_time_out(count: int | None) -> None:
    collector = asking()
    for sop in ("1", "2"):
        collector.observe(image(sop, association()), 0.0)
    now = 0.0
    while not (reports := collector.due(now)):
        for question in collector.questions():
            collector.answered(question.key, answer(2, count, problem=None if count else "refused"), now)
        now += 0.1
    (report,) = reports
    assert report.Verdict == "idle"
    assert 5.0 < now < 8.0
    assert "CT1: " in str(report.Basis)


def test_what_is_missing_is_fetched_a_bounded_number_of_times() -> None:
    collector = asking(fetch=True)
    collector.observe(image("1", association()), 0.0)
    now, fetches = 0.0, 0
    while not (reports := collector.due(now)):
        for question in collector.questions():
            fetches += question.fetch
            collector.answered(question.key, answer(1, 2, missing=["1.2"], fetched=0), now)
        now += 0.1
    assert (fetches, reports[0].Verdict) == (FETCHES, "idle")


def test_many_series_on_one_association_cost_no_more_than_few(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = 0
    compute = SeriesCollector._deadline

    def counting(self: SeriesCollector, *series: Any) -> float:
        nonlocal looked_at
        looked_at += 1
        return compute(self, *series)

    monkeypatch.setattr(SeriesCollector, "_deadline", counting)
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
