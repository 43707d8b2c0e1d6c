"""When the collector believes the PACS: what it says has to stand, and what it holds has to be known."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.collector import SeriesCollector
from gateway.idle import FLOOR_S, PRIORS, Adaptive, Fixed, Phase
from gateway.open_series import ASK_AFTER_S, FETCHES, GREW_S, PARTS_S, RECEIVING_S, SHOWN_AFTER, TRUSTED_AFTER
from gateway.questions import Answer, Question
from models import Association, CountsOfStudy, Instance, SeriesReport
from tests.rig.factories import RECEIVED_AT, SERIES, collector_of, make_instance

ANSWER_S = 0.05
numbers = count(1)


class Pacs:
    """Has the images that it is given, and answers ANSWER_S after it is asked; fails while `broken`."""

    def __init__(self, collector: SeriesCollector) -> None:
        self.collector = collector
        self.has: dict[str, set[str]] = {}
        self.known: dict[str, set[str]] = {}
        self.broken = False
        self.names = True
        self.counts: CountsOfStudy | None = None
        self.asked: list[tuple[float, Question]] = []
        self.now = 0.0
        self._answers: list[tuple[float, Question, Answer]] = []

    def run(self, until: float) -> Iterator[tuple[float, SeriesReport]]:
        """Let the time pass; what is reported, and when."""
        while True:
            deadline = self.collector.next_deadline()
            times = [at for at, _, _ in self._answers] + ([deadline] if deadline is not None else [])
            if not times or min(times) >= until:
                self.now = until
                return
            self.now = max(min(times), self.now)
            for at, question, answer in [entry for entry in self._answers if entry[0] <= self.now]:
                self._answers.remove((at, question, answer))
                for report in self.collector.answered(question.key, answer, self.now):
                    yield self.now, report
            for report in self.collector.due(self.now):
                yield self.now, report
            self.ask()

    def ask(self) -> None:
        for question in self.collector.questions():
            self.asked.append((self.now, question))
            has = self.has.get(question.key.series_instance_uid, set())
            known = set(question.here) | self.known.get(question.key.series_instance_uid, set())
            missing = tuple(sorted(has - known)) if self.names and (question.quiet or question.fetch) else ()
            answer = Answer("PACS", question.here, len(known), len(has), has == known, missing)
            if self.broken:
                answer = Answer("PACS", question.here, problem="did not end in time")
            answer = replace(answer, revision=question.revision, study=self.counts)
            self._answers.append((self.now + ANSWER_S, question, answer))


@pytest.fixture
def pacs() -> Pacs:
    return new_pacs()


def new_pacs(**options: Any) -> Pacs:
    policy = Adaptive(idle_timeout_s=2.0, ceiling_s=400.0)
    collector = collector_of(policy, pacs={"PACS"}, patience_s=60.0, **options)
    return Pacs(collector)


def image(n: int, carrier: Association | None, series: str = SERIES) -> Instance:
    return replace(make_instance(str(n), series=series), calling_ae_title="PACS", association=carrier)


def uids(images: int, series: str = SERIES) -> set[str]:
    return {f"{series}.{n}" for n in range(images)}


def forward(
    pacs: Pacs, gaps: list[float], series: str = SERIES, *, each: bool = False, rest_s: float = 1000.0
) -> list[tuple[float, SeriesReport]]:
    """Images that the PACS gets with these gaps before each and forwards at once; all that is reported in the end."""
    reports: list[tuple[float, SeriesReport]] = []
    carrier = None
    for n, gap in enumerate(gaps):
        reports += pacs.run(pacs.now + gap)
        if len(pacs.has.setdefault(series, set())) < len(gaps):
            pacs.has[series].add(f"{series}.{n}")
        if carrier is None or each:
            carrier = Association(next(numbers), "PACS", "", pacs.now)
        pacs.collector.observe(image(n, carrier, series), pacs.now)
        pacs.ask()
        if each:
            release(pacs, carrier)
    if carrier is not None and not each:
        reports += pacs.run(pacs.now + 0.1)
        release(pacs, carrier)
    return [*reports, *pacs.run(pacs.now + rest_s)]


def push(pacs: Pacs, images: int, series: str, gap_s: float = 0.02) -> list[tuple[float, SeriesReport]]:
    """A series that the PACS holds from the start."""
    pacs.has[series] = uids(images, series)
    return forward(pacs, [gap_s] * images, series)


def release(pacs: Pacs, carrier: Association) -> None:
    carrier.released_at = pacs.now
    pacs.collector.released(carrier, pacs.now)


def verdicts(reports: list[tuple[float, SeriesReport]]) -> list[tuple[str | None, int]]:
    return [(report.Verdict, report.NumInstances) for _, report in reports]


def trusted(pacs: Pacs) -> Pacs:
    for n in range(TRUSTED_AFTER):
        push(pacs, 50, f"{SERIES}.8.{n}")
    return pacs


# --- a PACS that is itself still receiving ----------------------------------------------------------------------


@pytest.mark.parametrize("each", [True, False])
@pytest.mark.parametrize("before", [lambda pacs: pacs, trusted], ids=["unknown", "trusted"])
@pytest.mark.parametrize("pause_s", [0.0, 6.0])
def test_a_pacs_that_forwards_as_it_receives_makes_one_revision_and_nothing_false(
    pacs: Pacs, each: bool, before: Callable[[Pacs], Pacs], pause_s: float
) -> None:
    gaps = [1.5] * 14
    gaps[7] += pause_s
    assert verdicts(forward(before(pacs), gaps, each=each)) == [("verified", 14)]


@given(st.floats(0.05, 8.0), st.lists(st.floats(0.05, 40.0), min_size=1, max_size=30), st.booleans())
def test_no_pause_of_a_receiving_pacs_is_taken_for_its_last_word(first: float, more: list[float], each: bool) -> None:
    gaps = [1.0, first, *more]
    assert verdicts(forward(new_pacs(), gaps, each=each)) == [("verified", len(gaps))]


def test_a_count_that_grew_has_to_stand_for_longer(pacs: Pacs) -> None:
    ((at, _),) = forward(pacs, [1.0] * 5)
    assert at >= 5.0 + GREW_S
    for n in range(SHOWN_AFTER):
        forward(pacs, [1.0] * 3, f"1.9.{n}")
    began = pacs.now
    ((at, _),) = forward(pacs, [1.0] * 5, "1.8")
    assert began + 5.0 + RECEIVING_S <= at < began + 5.0 + GREW_S


def test_a_count_stands_since_it_was_first_said_and_not_since_the_last_image(pacs: Pacs) -> None:
    ((at, report),) = push(pacs, 400, "1.9", gap_s=0.05)  # 20 s, in which the PACS always says 400
    assert at < 20.5
    assert report.Verdict == "verified"


# --- a PACS that holds all --------------------------------------------------------------------------------------


def test_a_pacs_that_was_ahead_ten_times_is_believed_at_once_and_no_sooner(pacs: Pacs) -> None:
    waits = []
    for n in range(TRUSTED_AFTER + 3):
        began = pacs.now
        ((at, report),) = push(pacs, 20, f"1.9.{n}")
        assert report.Verdict == "verified"
        waits.append(at - began - 20 * 0.02)
    assert min(waits[:TRUSTED_AFTER]) > RECEIVING_S - 20 * 0.02
    assert max(waits[TRUSTED_AFTER:]) < 0.3


@pytest.mark.parametrize("lump", [2, 4, 10])
def test_a_pacs_that_gets_and_forwards_in_lumps_is_not_taken_for_one_that_holds_all(pacs: Pacs, lump: int) -> None:
    reports: list[tuple[float, SeriesReport]] = []
    for first in range(0, 3 * lump, lump):
        pacs.has[SERIES] = uids(first + lump)
        carrier = Association(next(numbers), "PACS", "", pacs.now)
        for n in range(first, first + lump):
            pacs.collector.observe(image(n, carrier), pacs.now)
            pacs.ask()
            reports += pacs.run(pacs.now + 0.01)
        release(pacs, carrier)
        reports += pacs.run(pacs.now + 6.0)
    reports += pacs.run(pacs.now + 1000.0)
    assert verdicts(reports) == [("verified", 3 * lump)]


def test_a_series_that_waits_while_the_pacs_wins_trust_is_verified_and_not_idle(pacs: Pacs) -> None:
    for n in range(TRUSTED_AFTER - 1):
        push(pacs, 50, f"{SERIES}.8.{n}")
    for series in ("1.7", "1.8", "1.9"):  # side by side: the first to be verified is the tenth
        pacs.has[series] = uids(5, series)
        for n in range(5):
            pacs.collector.observe(image(n, None, series), pacs.now)
            pacs.ask()
        list(pacs.run(pacs.now + 0.1))
    reports = list(pacs.run(pacs.now + 1000.0))
    assert [report.Verdict for _, report in reports] == ["verified"] * 3


def test_images_that_came_while_the_pacs_was_asked_prove_no_lead_of_it(pacs: Pacs) -> None:
    """A PACS that forwards one by one, faster than it answers."""
    for n in range(2 * TRUSTED_AFTER):
        series = f"1.7.{n}"
        forward(pacs, [ANSWER_S / 10] * 5, series)
    assert pacs.collector.trust_news() == {}


def test_a_stop_earns_no_trust(pacs: Pacs) -> None:
    for n in range(TRUSTED_AFTER):
        pacs.has[f"1.7.{n}"] = uids(5, f"1.7.{n}")
        pacs.collector.observe(image(0, None, f"1.7.{n}"), 0.0)
        pacs.ask()
    list(pacs.run(1.0))
    pacs.collector.drain(1.0)
    assert pacs.collector.trust_news() == {}


def test_a_count_that_goes_up_and_down_is_the_highest_and_keeps_nothing_open(pacs: Pacs) -> None:
    pacs.has[SERIES] = uids(10)
    for n in range(10):
        pacs.collector.observe(image(n, None), 0.01 * n)
    reports: list[tuple[float, SeriesReport]] = []
    while not reports or reports[-1][1].Verdict is None:
        pacs.has[SERIES] ^= {f"{SERIES}.10"}  # two nodes of one archive, in turn
        reports += pacs.run(pacs.now + 0.7)
    assert (reports[-1][1].Verdict, reports[-1][1].ExpectedInstances) == ("idle", 11)
    assert pacs.now < 200.0


def test_a_series_that_grew_costs_the_trust(pacs: Pacs) -> None:
    trusted(pacs)
    forward(pacs, [1.0] * 5)
    began = pacs.now
    ((at, _),) = push(pacs, 5, "1.9", gap_s=0.02)
    assert at > began + 5 * 0.02 + FLOOR_S


def test_a_verified_series_that_got_more_images_costs_the_trust(pacs: Pacs) -> None:
    trusted(pacs)
    pacs.collector.kept({}, pacs.collector.trust_news())
    forward(pacs, [0.02] * 20, "1.9", rest_s=100.0)
    pacs.collector.observe(image(99, None, "1.9"), pacs.now)
    assert pacs.collector.trust_news() == {"PACS": 0}


def test_trust_is_told_for_the_journal_and_taken_from_it() -> None:
    before = trusted(new_pacs())
    after = new_pacs(trust=before.collector.trust_news())
    ((at, _),) = push(after, 20, "1.9")
    assert at < 1.0


def test_a_pacs_one_image_ahead_may_just_have_got_it(pacs: Pacs) -> None:
    """The image that is on its way says nothing of what the PACS will get."""
    trusted(pacs)
    pacs.has[SERIES] = uids(2)
    carrier = Association(next(numbers), "PACS", "", pacs.now)
    began = pacs.now
    pacs.collector.observe(image(0, carrier), pacs.now)
    pacs.ask()
    reports = list(pacs.run(pacs.now + 0.2))
    pacs.collector.observe(image(1, carrier), pacs.now)
    reports += pacs.run(began + 2.0)
    assert reports == []


# --- which question, which answer -------------------------------------------------------------------------------


def test_who_cannot_be_asked_is_not(pacs: Pacs) -> None:
    other = replace(make_instance("1"), calling_ae_title="OTHER")
    pacs.collector.observe(other, 0.0)
    list(pacs.run(1000.0))
    assert pacs.asked == []


def test_the_pacs_is_asked_at_the_first_image_and_after_a_short_silence(pacs: Pacs) -> None:
    pacs.has[SERIES] = uids(9)
    pacs.collector.observe(image(0, None), 0.0)
    list(pacs.run(ANSWER_S * 2))
    pacs.collector.observe(image(1, None), 1.0)
    list(pacs.run(1.0 + ASK_AFTER_S + 0.01))
    assert [at for at, _ in pacs.asked][:1] == [0.0]
    assert 1.0 + ASK_AFTER_S in [at for at, _ in pacs.asked]
    question = pacs.asked[-1][1]
    assert (question.here, question.fetch, question.revision) == (frozenset(uids(2)), False, 1)
    assert question.classes == {make_instance().sop_class_uid}


def test_an_answer_about_an_earlier_revision_says_nothing_of_this_one() -> None:
    collector = collector_of(Fixed(2.0), pacs={"PACS"}, patience_s=60.0)
    for n in range(3):
        collector.observe(image(n, None), 0.1 * n)
    collector.due(0.6)
    (question,) = collector.questions()
    collector.drain(0.7)
    for n in range(3, 6):
        collector.observe(image(n, None), 0.7)
    stale = Answer("PACS", question.here, 3, 3, confirmed=True, revision=question.revision)
    assert collector.answered(question.key, stale, 100.0) == []


def test_an_image_that_came_while_the_pacs_was_asked_is_no_part_of_the_answer(pacs: Pacs) -> None:
    pacs.has[SERIES] = uids(1)
    pacs.collector.observe(image(0, None), 0.0)
    list(pacs.run(4.9))  # the count has nearly stood for long enough
    at, question = pacs.asked[-1]
    list(pacs.run(at + 5.0))
    pacs.collector.observe(image(1, None), pacs.now)
    answer = Answer("PACS", question.here, 1, 1, confirmed=True)
    assert pacs.collector.answered(question.key, answer, pacs.now) == []


def test_one_question_of_a_series_is_in_flight_and_no_idle_verdict_falls_meanwhile(pacs: Pacs) -> None:
    pacs.collector.observe(image(0, None), 0.0)
    assert pacs.collector.due(0.3) == []
    pacs.collector.observe(image(1, None), 0.4)
    for now in (0.8, 10.0, 100.0):
        assert pacs.collector.due(now) == []
    assert len(pacs.collector.questions()) == 1


def test_a_failed_question_leaves_what_the_pacs_said_before(pacs: Pacs) -> None:
    pacs.has[SERIES] = uids(30)
    for n in range(25):
        pacs.collector.observe(image(n, None), 0.01 * n)
    reports = list(pacs.run(20.0))
    pacs.broken = True
    reports += pacs.run(1000.0)
    (_, report) = reports[-1]
    assert (report.Verdict, report.ExpectedInstances, report.ExpectedFrom) == ("idle", 30, "pacs")
    assert len(report.MissingSOPInstanceUIDs) == 5
    assert "30 images" in str(report.Basis)
    assert "did not end in time" in str(report.Basis)
    assert "did not end in time" in [entry.Details.get("Problem") for entry in report.Timeline]


def test_a_pacs_that_has_less_than_is_known_is_no_expectation(pacs: Pacs) -> None:
    pacs.has[SERIES] = uids(3)
    for n in range(5):
        pacs.collector.observe(image(n, None), 0.01 * n)
    ((_, report),) = pacs.run(1000.0)
    assert (report.Verdict, report.ExpectedInstances) == ("idle", None)


def test_a_pacs_that_never_answers_leaves_it_to_the_time_out(pacs: Pacs) -> None:
    pacs.broken = True
    pacs.collector.observe(image(0, None), 0.0)
    ((at, report),) = pacs.run(1000.0)
    assert report.Verdict == "idle"
    assert at < 2 * PRIORS[Phase.OPEN] * 2.0


def test_pauses_between_questions_double_while_nothing_comes_and_begin_anew_with_an_image(pacs: Pacs) -> None:
    pacs.has[SERIES] = uids(9)
    pauses = []
    for n in range(2):
        pacs.asked.clear()
        pacs.collector.observe(image(n, None), pacs.now)
        assert [report.Verdict for _, report in pacs.run(pacs.now + 8.0)] in ([], [None])
        times = [at for at, _ in pacs.asked]
        pauses.append([round(later - at - ANSWER_S, 3) for at, later in pairwise(times)])
    assert pauses[0][-1] > 2 * pauses[0][0] > 0
    assert pauses[1][0] == pytest.approx(ASK_AFTER_S, abs=ANSWER_S)


# --- what the PACS has and has not sent -------------------------------------------------------------------------


def test_what_is_larger_at_the_pacs_is_posted_as_a_part_after_the_adaptive_time_out(pacs: Pacs) -> None:
    pacs.has[SERIES] = uids(5)
    for n in range(3):
        pacs.collector.observe(image(n, None), 0.01 * n)
    (part_at, part), (at, whole) = pacs.run(1000.0)
    assert (part.Verdict, part.NumInstances, part.Revision) == (None, 3, 1)
    assert part_at < PRIORS[Phase.OPEN] * 2.0 + 1.0
    assert (whole.Verdict, whole.NumInstances, whole.Revision) == ("idle", 3, 1)
    assert whole.ExpectedInstances == 5
    assert 60.0 <= at < 61.0


def test_the_gateway_that_knows_all_posts_its_part_for_the_one_that_does_not(pacs: Pacs) -> None:
    """It is seen to receive, so this one waits: the other must not wait for what is here meanwhile."""
    for n in range(6):
        pacs.has[SERIES] = uids(n + 1)
        pacs.known[SERIES] = {f"{SERIES}.{other}" for other in range(1, n + 1, 2)}
        if n % 2 == 0:
            pacs.collector.observe(image(n, None), pacs.now)
            pacs.ask()
        list(pacs.run(pacs.now + 1.0))
    reports = list(pacs.run(1000.0))
    assert [report.Verdict for _, report in reports] == [None, "verified"]
    assert reports[0][0] < 6.0 + PRIORS[Phase.OPEN] * 2.0 + 1.0


def test_what_is_missing_is_waited_for_after_a_part_was_posted_however_late_that_was() -> None:
    policy = Adaptive(idle_timeout_s=2.0, ceiling_s=100.0)
    pacs = Pacs(collector_of(policy, pacs={"PACS"}, patience_s=60.0))
    pacs.has[SERIES] = uids(6)
    for n in range(3):
        views = replace(image(n, None), attributes={"Modality": ("DX",), "PatientID": ("P1",)})
        pacs.collector.observe(views, pacs.now)
    (part_at, part), *rest = pacs.run(100.0 + PARTS_S - 1.0)
    assert (part.Verdict, rest) == (None, [])
    assert part_at >= 60.0
    pacs.known[SERIES] = uids(6)
    ((_, report),) = pacs.run(1000.0)
    assert report.Verdict == "verified"


def test_two_gateways_with_half_a_series_each_do_not_wait_for_each_other(pacs: Pacs) -> None:
    pacs.has[SERIES] = uids(6)
    for n in range(3):
        pacs.collector.observe(image(n, None), 0.01 * n)
    (part_at, _), *rest = pacs.run(PRIORS[Phase.OPEN] * 2.0 + 1.0)
    assert rest == []
    pacs.known[SERIES] = uids(6)  # the other's part is at the server
    ((at, report),) = pacs.run(1000.0)
    assert (report.Verdict, report.ExpectedInstances) == ("verified", 6)
    assert at < part_at + 15.0


def test_a_part_names_all_that_is_here_for_it_stands_for_the_one_before(pacs: Pacs) -> None:
    pacs.has[SERIES] = uids(9)
    pacs.collector.observe(image(0, None), 0.0)
    reports = list(pacs.run(20.0))
    pacs.collector.observe(image(1, None), 20.0)
    reports += pacs.run(1000.0)
    named = [report.SOPInstanceUIDs for _, report in reports]
    assert named == [[f"{SERIES}.0"], [f"{SERIES}.0", f"{SERIES}.1"], [f"{SERIES}.0", f"{SERIES}.1"]]


def test_what_is_missing_is_fetched_a_bounded_number_of_times() -> None:
    pacs = new_pacs(fetch=True)
    pacs.has[SERIES] = uids(2)
    pacs.collector.observe(image(0, None), 0.0)
    reports = list(pacs.run(1000.0))
    assert sum(question.fetch for _, question in pacs.asked) == FETCHES
    assert verdicts(reports) == [("idle", 1)]


def test_as_many_images_that_are_others_verify_nothing_and_do_not_flood_the_pacs(pacs: Pacs) -> None:
    pacs.has[SERIES] = {f"{SERIES}.{n}" for n in (0, 1, 99)}
    reports = forward(pacs, [0.1] * 3)
    assert verdicts(reports) == [("idle", 3)]
    assert reports[-1][1].ExpectedInstances == 4  # those here, and the one that is missing
    assert len(pacs.asked) < 20


def test_what_was_fetched_teaches_the_policy_nothing() -> None:
    pacs = new_pacs(fetch=True)
    waits = []
    for n in range(30):
        series, began = f"1.7.{n}", pacs.now
        pacs.has[series] = uids(3, series)
        for image_ in range(2):
            pacs.collector.observe(image(image_, None, series), pacs.now)
        while not any(question.fetch for at, question in pacs.asked if at >= began):
            list(pacs.run(pacs.now + 0.1))
        waits.append(pacs.now - began)
        pacs.collector.observe(image(2, None, series), pacs.now)
        list(pacs.run(pacs.now + 100.0))
    assert max(waits) <= 2 * waits[0]


def test_images_that_come_before_the_pacs_could_be_asked_do_not_put_the_question_off(pacs: Pacs) -> None:
    pacs.has[SERIES] = uids(9)
    pacs.collector.observe(image(0, None), 0.001)  # counted after a commit: later than what is due is decided at
    pacs.collector.due(0.0)
    pacs.collector.observe(image(1, None), 0.003)
    pacs.collector.due(0.002)
    assert len(pacs.collector.questions()) == 1


def test_what_is_missing_is_named_once_nothing_comes_any_more(pacs: Pacs) -> None:
    pacs.has[SERIES] = uids(9)
    for n in range(5):
        pacs.collector.observe(image(n, None), 0.5 * n)
        list(pacs.run(0.5 * n + 0.45))
    assert not any(question.quiet for _, question in pacs.asked)
    list(pacs.run(30.0))
    assert pacs.asked[-1][1].quiet


def test_an_image_an_association_is_no_question_an_image(pacs: Pacs) -> None:
    pacs.has[SERIES] = uids(201)
    forward(pacs, [0.02] * 200, each=True, rest_s=0.0)
    assert len(pacs.asked) <= 200 * 0.02 / ASK_AFTER_S + 2


def test_with_fetching_on_what_cannot_be_fetched_is_waited_for(pacs: Pacs) -> None:
    pacs = new_pacs(fetch=True)
    pacs.has[SERIES] = uids(30)
    pacs.names = False  # the server cannot tell what it has: nothing is called missing
    for n in range(5):
        pacs.collector.observe(image(n, None), 0.01 * n)
    ((at, report),) = [(at, report) for at, report in pacs.run(1000.0) if report.Verdict]
    assert (report.Verdict, report.ExpectedInstances) == ("idle", 30)
    assert at >= 60.0


def counts_of(series: int, instances: int) -> CountsOfStudy:
    return CountsOfStudy(Series=series, Instances=instances, At=RECEIVED_AT)


def test_the_last_counts_of_the_study_are_in_the_report_and_in_the_evidence() -> None:
    collector = collector_of(Fixed(2.0), pacs={"PACS"}, patience_s=60.0)
    collector.observe(image(1, None), 0.0)
    said = [counts_of(1, 1), counts_of(2, 5), None]  # the last time the PACS says none
    for n, counts in enumerate(said):
        (question,) = ask_at(collector, 3.0 * n)
        answer = Answer("PACS", question.here, 1, 3 + n, False, study=counts)
        assert collector.answered(question.key, answer, 3.0 * n + ANSWER_S) == []
    (report,) = collector.drain(20.0)
    assert report.StudyCounts == counts_of(2, 5)
    entries = [entry.Details for entry in report.Timeline if entry.Event == "pacs.answered"]
    assert [entry.get("StudyInstances") for entry in entries] == [1, 5, None]
    assert entries[1]["StudySeries"] == 2
    assert all(entry.get("Problem") is None for entry in entries)


def ask_at(collector: SeriesCollector, now: float) -> list[Question]:
    """The questions that come up by that time."""
    collector.due(now)
    return collector.questions()


def test_a_part_has_no_counts_of_the_study_and_a_series_without_an_answer_has_none() -> None:
    pacs = new_pacs()
    pacs.counts = counts_of(1, 4)
    pacs.has[SERIES] = uids(4)
    pacs.known[SERIES] = {f"{SERIES}.3"}
    reports = forward(pacs, [0.1] * 2, rest_s=30.0)
    reports += [(pacs.now, report) for report in pacs.collector.drain(pacs.now)]
    counts = [(report.Verdict, report.StudyCounts) for _, report in reports]
    assert (None, None) in counts
    assert counts[-1] == ("drained", counts_of(1, 4))
    quiet = new_pacs()
    quiet.broken = True
    (_, report), *_ = forward(quiet, [0.1])
    assert report.StudyCounts is None


def test_the_end_of_an_association_is_a_reason_to_ask_sooner(pacs: Pacs) -> None:
    """However long the pause between two questions has become."""
    pacs.has[SERIES] = uids(9)
    carrier = Association(next(numbers), "PACS", "", 0.0)
    pacs.collector.observe(image(0, carrier), 0.0)
    list(pacs.run(3.0))
    asked = [at for at, _ in pacs.asked]
    release(pacs, carrier)
    list(pacs.run(3.1))
    assert asked[-1] < 2.9
    assert [at for at, _ in pacs.asked] == [*asked, 3.0]
