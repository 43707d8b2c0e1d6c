"""Each case in which a study gets a verdict, keeps it or loses it; gaps in numbers; series that a site requires."""

from datetime import timedelta
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.cli.commands import STUDY_KINDS
from common.required import MOST, missing_of, required_of, required_series
from common.settings import ServerSettings, SettingsError
from models import SeriesReport
from storage.gaps import gaps
from storage.merge import Word
from storage.rows import StudyRow, with_changes
from storage.study_rules import (
    COUNT_WAIT,
    DECLARED_WITHIN,
    HELD_AGAIN,
    MAX_MODALITIES,
    TRUSTED_AFTER,
    asked_whom,
    counted,
    decide,
    declared,
    disappoints,
    kinds,
    new_study,
    reopened,
    taken,
)
from tests.rig.factories import SERIES, STUDY, make_report
from tests.rig.study_rows import LAST, SILENCE, counted_row, counts, row, seen, verdict

HELD = "gateway one has images of it that it has not reported"


# --- 1: the PACS has the same -----------------------------------------------------------------------------------


def test_what_the_pacs_says_a_silence_after_the_last_image_verifies() -> None:
    assert verdict(counted_row(asked=SILENCE), seen(SILENCE)) == ("verified", "verified")


def test_what_the_pacs_said_before_verifies_nothing_until_it_is_asked_again() -> None:
    before = decide(counted_row(), seen())
    assert (before.columns["Verdict"], before.ask, before.columns["DueAt"]) == (None, False, LAST + SILENCE)
    at_silence = decide(counted_row(), seen(SILENCE))
    assert (at_silence.columns["Verdict"], at_silence.ask) == (None, True)
    assert at_silence.columns["DueAt"] == LAST + SILENCE + COUNT_WAIT


def test_a_trusted_pacs_that_had_more_than_had_come_verifies_at_once() -> None:
    assert verdict(counted_row(), seen(trust=TRUSTED_AFTER)) == ("verified", "verified")
    assert verdict(counted_row(), seen(trust=TRUSTED_AFTER - 1)) == (None, None)
    assert verdict(counted_row(CountedAhead=False), seen(trust=TRUSTED_AFTER)) == (None, None)
    assert verdict(counted_row(CountGrew=True), seen(trust=TRUSTED_AFTER)) == (None, None)


@pytest.mark.parametrize(("series", "images"), [(3, 10), (2, 11), (1, 10), (2, 9)])
def test_another_number_verifies_nothing(series: int, images: int) -> None:
    assert verdict(counted_row(series, images, asked=SILENCE), seen(SILENCE))[0] != "verified"


def test_an_open_series_keeps_all_but_capped_away() -> None:
    known = counted_row(asked=SILENCE, Unsettled=1)
    assert verdict(known, seen(SILENCE)) == (None, None)
    assert "1 of 2 series" in decide(known, seen(SILENCE)).columns["Basis"]
    assert verdict(known, seen(timedelta(days=2))) == ("capped", "capped")


def test_a_gateway_that_holds_it_keeps_the_verdict_away_and_is_named() -> None:
    held = decide(counted_row(asked=SILENCE), seen(SILENCE, held=HELD, held_elsewhere=HELD))
    assert (held.columns["Verdict"], held.columns["Basis"]) == (None, HELD)
    assert held.columns["DueAt"] == LAST + SILENCE + max(SILENCE / 4, HELD_AGAIN[0])


def test_the_gateway_whose_report_has_come_does_not_hold_what_its_pacs_has_counted() -> None:
    alone = seen(trust=TRUSTED_AFTER, held=HELD, held_elsewhere=None)
    assert verdict(counted_row(), alone) == ("verified", "verified")
    assert verdict(row(), seen(SILENCE, held=HELD, held_elsewhere=None)) == (None, None)


def test_nobody_has_looked_so_there_is_no_verdict_and_it_is_due() -> None:
    unseen = decide(counted_row(asked=SILENCE), seen(SILENCE, looked=False))
    assert (unseen.columns["Verdict"], unseen.look, unseen.columns["DueAt"]) == (None, True, LAST + SILENCE)


def test_the_weakest_series_bounds_what_is_told() -> None:
    weak = decide(counted_row(asked=SILENCE, Verdicts={"verified": 1, "idle": 1}), seen(SILENCE))
    assert (weak.columns["Verdict"], weak.columns["Policy"]) == ("idle", "verified")
    assert "a series is idle only" in weak.columns["Basis"]


def test_only_a_pacs_that_was_ahead_and_has_the_same_in_the_end_earns_trust() -> None:
    assert decide(counted_row(asked=SILENCE), seen(SILENCE)).trusted
    assert not decide(counted_row(asked=SILENCE, CountedAhead=False), seen(SILENCE)).trusted
    assert not decide(counted_row(asked=SILENCE, CountGrew=True), seen(SILENCE)).trusted
    assert not decide(counted_row(), seen(trust=TRUSTED_AFTER)).trusted
    stands = counted_row(asked=SILENCE, Verdict="verified", Policy="verified")
    assert not decide(stands, seen(SILENCE)).trusted


# --- 2, 3: a person's word --------------------------------------------------------------------------------------


def said(word: str, at: timedelta = timedelta()) -> Word:
    return Word(cast("Any", word), "Dr. House", "the ward has called", LAST + at)


def test_declared_complete_is_that_at_once_where_nobody_holds_it() -> None:
    columns = declared(row(Unsettled=1), said("complete"), LAST, waits=False)
    assert (columns["Verdict"], columns["Policy"]) == ("declared", "declared")
    assert verdict(row(Unsettled=1, **columns), seen()) == ("declared", "declared")
    assert declared(row(**columns), said("complete"), LAST, waits=False) == {}
    assert declared(row(Verdict="verified"), said("complete"), LAST, waits=False) == {}


def test_declared_complete_waits_for_the_gateways_that_hold_it_and_not_for_ever() -> None:
    waiting = row(**declared(row(), said("complete"), LAST, waits=True))
    assert verdict(waiting, seen(held=HELD)) == (None, "declared")
    assert decide(waiting, seen(held=HELD)).columns["DueAt"] == LAST + DECLARED_WITHIN
    assert verdict(waiting, seen()) == ("declared", "declared")
    assert verdict(waiting, seen(DECLARED_WITHIN, held=HELD)) == ("declared", "declared")
    assert reopened(waiting, LAST) == {}


def test_declared_incomplete_has_no_verdict_until_it_is_verified() -> None:
    columns = declared(row(Verdict="idle", Policy="idle"), said("incomplete"), LAST, waits=False)
    withdrawn = counted_row(**columns)
    assert (withdrawn["Verdict"], withdrawn["Withdrawn"]) == (None, "idle")
    decided = decide(withdrawn, seen(timedelta(days=3)))
    assert (decided.columns["Verdict"], decided.columns["Withdrawn"], decided.columns["DueAt"]) == (None, "idle", None)
    assert decided.columns["Basis"] == columns["Basis"]
    asked = decide(counted_row(asked=SILENCE, CountedSince=LAST + SILENCE, **columns), seen(SILENCE))
    assert (asked.columns["Verdict"], asked.columns["Withdrawn"]) == ("verified", None)
    assert declared(withdrawn, said("incomplete"), LAST, waits=False) == {}


@pytest.mark.parametrize("since", [None, LAST - SILENCE, LAST])
def test_what_a_pacs_has_said_before_a_person_denied_it_verifies_nothing(since: Any) -> None:
    columns = declared(counted_row(Verdict="verified", Policy="verified"), said("incomplete"), LAST, waits=False)
    for trust in (0, TRUSTED_AFTER):
        again = decide(counted_row(asked=SILENCE, CountedSince=since, **columns), seen(SILENCE, trust=trust))
        assert (again.columns["Verdict"], again.columns["Withdrawn"]) == (None, "verified")


def test_the_pacs_of_a_study_that_is_declared_incomplete_is_asked_again_for_as_long_as_one_is_open() -> None:
    before = counted_row(Verdict="verified", Policy="verified", CountedSince=LAST)
    withdrawn = counted_row(CountedSince=LAST, **declared(before, said("incomplete"), LAST, waits=False))
    assert withdrawn["DueAt"] == LAST
    now, asked = timedelta(), 0
    while (due := withdrawn["DueAt"]) is not None:
        now = due - LAST
        decided = decide(withdrawn, seen(now))
        assert (decided.columns["Verdict"], decided.columns["Basis"]) == (None, withdrawn["Basis"])
        asked += decided.ask
        at = LAST + now if decided.ask else withdrawn["CountedAt"]
        withdrawn = cast("StudyRow", {**withdrawn, **decided.columns, "CountedAt": at})
    assert now > timedelta(hours=22)
    assert 20 < asked < 50
    assert not decide(withdrawn, seen(timedelta(days=2))).ask
    assert decide(row(**declared(row(), said("incomplete"), LAST, waits=False)), seen()).columns["DueAt"] is None


# --- 4: what is required ----------------------------------------------------------------------------------------


def test_all_that_is_required_is_here_and_nothing_is_waited_for() -> None:
    here = decide(row(), seen(required=True))
    assert (here.columns["Verdict"], here.columns["Policy"]) == ("idle", "expected")  # its series are only idle
    assert verdict(row(Verdicts={"verified": 2}), seen(required=True)) == ("expected", "expected")


def test_what_is_required_and_missing_is_named_and_keeps_idle_away() -> None:
    lacking = decide(row(), seen(SILENCE, required=True, missing=("MPR cor",)))
    assert (lacking.columns["Verdict"], lacking.columns["MissingSeries"]) == (None, ["MPR cor"])
    assert "MPR cor" in lacking.columns["Basis"]


def test_what_its_pacs_has_more_keeps_expected_and_idle_away_and_it_is_asked_again() -> None:
    more = decide(counted_row(3, 15), seen(SILENCE, required=True))
    assert (more.columns["Verdict"], more.ask) == (None, True)
    assert "3 series with 15 images, known are 2 with 10" in more.columns["Basis"]
    assert more.columns["DueAt"] > LAST + SILENCE
    just_asked = decide(counted_row(3, 15, asked=SILENCE), seen(SILENCE))
    assert not just_asked.ask


# --- 5: silence -------------------------------------------------------------------------------------------------


def test_its_source_is_silent_for_longer_than_ever_so_it_is_idle() -> None:
    early = decide(row(), seen(SILENCE - timedelta(seconds=1)))
    assert (early.columns["Verdict"], early.columns["DueAt"]) == (None, LAST + SILENCE)
    assert verdict(row(), seen(SILENCE)) == ("idle", "idle")


def test_a_pacs_that_does_not_answer_holds_idle_up_no_longer_than_it_may() -> None:
    assert verdict(counted_row(), seen(SILENCE + COUNT_WAIT - timedelta(seconds=1))) == (None, None)
    decided = decide(counted_row(), seen(SILENCE + COUNT_WAIT))
    assert (decided.columns["Verdict"], decided.ask, decided.columns["DueAt"]) == ("idle", True, None)


def test_a_gateways_clock_that_is_ahead_holds_nothing_up_for_longer() -> None:
    ahead = row(LastReceivedAt=LAST + timedelta(days=3))
    assert decide(ahead, seen()).columns["DueAt"] == LAST + SILENCE


# --- 6: for how long at most ------------------------------------------------------------------------------------


def test_capped_gives_way_to_what_says_more() -> None:
    open_for_long = seen(timedelta(days=2), held=HELD, held_elsewhere=HELD)
    capped = decide(row(), open_for_long).columns
    assert (capped["Verdict"], capped["Policy"]) == ("capped", "capped")
    assert HELD in capped["Basis"]
    assert verdict(row(**capped), seen(timedelta(days=2))) == ("idle", "idle")
    assert reopened(row(**capped), LAST) == {}


# --- a verdict stands, or is refuted ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "refuted"),
    [
        (counted_row(Verdict="verified", Policy="verified"), {"ExpectedInstances": 11}),
        (counted_row(Verdict="verified", Policy="verified"), {"NumInstances": 9}),
        (counted_row(Verdict="verified", Policy="verified"), {"Unsettled": 1}),
        (row(Verdict="idle", Policy="idle"), {"Unsettled": 1}),
        (row(Verdict="idle", Policy="idle"), {"ExpectedSeries": 3, "ExpectedInstances": 10}),
        (row(Verdict="idle", Policy="upgrade"), {"Unsettled": 1}),
        (row(Verdict="expected", Policy="expected", Verdicts={"expected": 2}), {"ExpectedInstances": 11}),
    ],
)
def test_a_verdict_stands_until_it_is_refuted(known: StudyRow, refuted: dict[str, Any]) -> None:
    again = decide(known, seen(held=HELD, held_elsewhere=HELD))
    assert (again.columns["Verdict"], again.columns["Policy"]) == (known["Verdict"], known["Policy"])
    assert (again.columns["Basis"], again.ask) == (known["Basis"], False)
    assert verdict(cast("StudyRow", {**known, **refuted}), seen(held=HELD, held_elsewhere=HELD)) == (None, None)


def test_a_verdict_grows_with_that_of_its_weakest_series() -> None:
    known = counted_row(Verdict="idle", Policy="verified", Verdicts={"verified": 2})
    assert verdict(known, seen(looked=False)) == ("verified", "verified")


@pytest.mark.parametrize("was", ["verified", "declared", "expected", "idle"])
def test_images_after_a_verdict_take_it_and_are_counted(was: str) -> None:
    late = reopened(row(Verdict=was, Policy=was), LAST + SILENCE)
    assert (late["Verdict"], late["Policy"], late["FalseCompletions"]) == (None, None, 1)
    assert late["OpenSince"] == LAST + SILENCE
    assert reopened(row(Withdrawn=was), LAST)["FalseCompletions"] == 1
    assert reopened(row(Verdict=was, Policy=was), LAST, counts=False)["FalseCompletions"] == 0


def test_images_that_a_gateway_brings_for_a_persons_word_are_part_of_what_was_declared() -> None:
    known = row(Verdict="declared", Policy="declared")
    assert reopened(known, LAST, obeys=True) == {}
    assert reopened(known, LAST)["FalseCompletions"] == 1


def test_a_study_is_told_when_its_verdict_changes_and_only_then() -> None:
    before = row()
    assert kinds(before, row(NumInstances=11, Basis="another")) == []
    assert kinds(before, row(Verdict="idle")) == ["revised"]
    assert kinds(before, row(Verdict="verified")) == ["revised", "verified"]
    assert kinds(before, row(Verdict="declared")) == ["revised", "declared"]
    assert kinds(row(Verdict="idle"), row(Withdrawn="idle")) == ["revised", "declared"]
    assert kinds(row(Verdict="idle"), row(FalseCompletions=1)) == ["revised", "contradicted"]
    assert kinds(row(Verdict="verified"), row(Verdict="verified", FalseCompletions=1)) == [
        *("revised", "verified", "contradicted")
    ]


# --- what the PACS says -----------------------------------------------------------------------------------------


def test_the_first_count_says_if_the_pacs_was_ahead_and_later_ones_if_it_grew() -> None:
    first = taken(row(), counts(3, 15), by="one", pacs="ORTHANC")
    assert (first["CountedAhead"], first["CountGrew"], first["CountedSince"]) == (True, False, LAST)
    assert taken(row(), counts(2, 10), by="one", pacs="ORTHANC")["CountedAhead"] is False
    assert taken(row(), counts(2, 10), by="one", pacs="ORTHANC", ahead=True)["CountedAhead"] is True
    known = row(**first)
    same = taken(known, counts(3, 15, SILENCE), by=None, pacs=None)
    assert (same["CountGrew"], same["CountedSince"], same["CountedBy"]) == (False, LAST, "one")
    assert not disappoints(known, same)
    grown = taken(known, counts(3, 16, SILENCE), by=None, pacs=None)
    assert (grown["CountGrew"], grown["CountedSince"]) == (True, LAST + SILENCE)
    assert disappoints(known, grown)


def test_of_two_pacs_the_one_counts_that_has_more_of_the_study() -> None:
    known = row(**{**taken(row(), counts(5, 500), by="one", pacs="ARCHIVE"), "CountGrew": True})
    later = timedelta(minutes=1)
    assert taken(known, counts(1, 100, later), by="one", pacs="MODALITY") == {}
    assert taken(known, counts(6, 400, later), by="one", pacs="MODALITY") == {}
    more = taken(known, counts(5, 500, later), by="one", pacs="SECOND")
    assert (more["PACS"], more["CountedAhead"], more["CountGrew"]) == ("SECOND", True, False)
    assert more["CountedSince"] == more["CountedAt"] == LAST + later
    assert taken(known, counts(1, 100, later), by="one", pacs=None)["ExpectedSeries"] == 1


def test_an_older_count_that_comes_later_is_left_out() -> None:
    known = row(**taken(row(), counts(3, 15), by="one", pacs="ORTHANC"))
    assert taken(known, counts(2, 10, -SILENCE), by="one", pacs="ORTHANC") == {}


def test_a_report_names_its_pacs_and_says_if_that_was_ahead() -> None:
    event = {"At": LAST, "Event": "pacs.answered"}
    details = {"PACS": "ORTHANC", "Count": 10, "Known": 1}
    body = make_report("1").model_dump()
    later = {"At": LAST, "Event": "pacs.answered", "Details": {**details, "Known": 10}}
    ahead = SeriesReport.model_validate(body | {"Timeline": [event | {"Details": details}, later]})
    assert asked_whom(ahead) == ("ORTHANC", True)
    assert asked_whom(SeriesReport.model_validate(body | {"Timeline": [later]})) == ("ORTHANC", False)
    failed = {"At": LAST, "Event": "pacs.answered", "Details": {"PACS": "ORTHANC", "Problem": "no answer"}}
    assert asked_whom(SeriesReport.model_validate(body | {"Timeline": [failed]})) == ("ORTHANC", False)
    assert asked_whom(make_report("1")) == (None, False)


def test_modalities_without_bound_are_counted_together_and_none_is_lost() -> None:
    series: Any = {"SeriesInstanceUID": SERIES, "NumInstances": 1, "ExpectedInstances": None, "FalseCompletions": 0}
    known: Any = new_study(STUDY, LAST)
    some: list[Any] = [series | {"Modality": f"M{n}", "Verdict": "idle"} for n in range(3 * MAX_MODALITIES)]
    for one in some:
        known |= counted(known, None, one)
        assert len(known["Modalities"]) <= MAX_MODALITIES + 1
    assert sum(known["Modalities"].values()) == known["NumSeries"] == len(some)
    for one in some:
        known |= counted(known, one, None)
    assert (known["Modalities"], known["Verdicts"], known["NumSeries"]) == ({}, {}, 0)


# --- gaps in numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ([*range(1, 41), *range(44, 101)], "41 to 43 missing?"),
        ([*range(20), *range(21, 40)], "20 missing?"),
        ([*range(1, 10), *range(11, 30), *range(33, 60)], "10, 30 to 32 missing?"),
        (range(1, 101), None),
        ([], None),
        ([1, 1, 1], None),
        ([*range(5, 40), *range(44, 100)], None),  # it does not begin at 0 or 1: nobody counts its images
        (range(1, 100, 2), None),  # each second one: that is how it is numbered
        ([1, 2, 90, 91], None),  # more is missing than is here
    ],
)
def test_a_gap_is_told_where_a_sender_counts_its_images(numbers: Any, told: str | None) -> None:
    assert gaps(numbers) == told


@given(st.lists(st.integers(-(2**31), 2**31)))
def test_a_gap_is_told_in_few_words_whatever_the_numbers_are(numbers: list[int]) -> None:
    assert len(gaps(numbers) or "") <= 80


# --- what a site requires ---------------------------------------------------------------------------------------


def test_what_is_required_is_found_by_source_and_description_in_whatever_case() -> None:
    rules = required_series("CT1*:CHEST*=Thorax 1.0|MPR cor; *:*Angio*=MIP*")
    assert required_of(rules, [("CT1 CT", "Chest native")]) == ("Thorax 1.0", "MPR cor")
    assert required_of(rules, [("CT2 CT", "CT-Angio")]) == ("MIP*",)
    assert required_of(rules, [("CT2 CT", "Chest")]) == ()
    assert required_of(rules, [(None, None)]) == ()
    assert missing_of(("Thorax 1.0", "MPR cor"), ["THORAX 1.0", "Topogram"]) == ("MPR cor",)
    assert missing_of(("MIP*",), ["mip cor 5.0"]) == ()
    composed, decomposed = "Sch\u00e4del*", "SCHA\u0308DEL nativ"
    assert missing_of((composed,), [decomposed]) == missing_of((decomposed,), [composed.upper()[:-1] + " nativ"]) == ()
    assert required_series(" ") == ()


@given(st.permutations([("CT1 CT", None), ("MR1 MR", "Chest"), ("CT1 CT", "Angio chest"), (None, "Angio")]))
def test_what_is_required_is_the_same_whichever_series_came_first(kinds: list[tuple[str | None, str | None]]) -> None:
    rules = required_series("MR2*:*=Never; *:Angio chest=MIP; CT1*:*=Thorax")
    assert required_of(rules, kinds) == ("MIP",)
    assert required_of(required_series("CT1*:Chest=Thorax"), kinds) == ()  # no one series is of both


@pytest.mark.parametrize(
    "text", ["CT1", "CT1:CHEST", "CT1=Thorax", "CT1:CHEST=", "CT1:CHEST=A||B", "*:*=A;" * (MOST + 1)]
)
def test_a_wrong_entry_stops_the_start_with_its_text_and_an_example(text: str) -> None:
    with pytest.raises(SettingsError, match="SERVER_REQUIRED_SERIES") as raised:
        ServerSettings(required_series=text)
    assert "CT1*:CHEST*=Thorax 1.0|MPR cor" in str(raised.value)


def test_the_kinds_that_a_webhook_may_ask_for_are_those_that_a_study_has() -> None:
    new = new_study("1.2", LAST)
    rows = [
        with_changes(new, {"Verdict": verdict, "Withdrawn": withdrawn, "FalseCompletions": wrong})
        for verdict in (None, "idle", "verified", "declared")
        for withdrawn in (None, "part")
        for wrong in (0, 1)
    ]
    found = {kind for before in rows for after in rows for kind in kinds(before, after)}
    assert found == set(STUDY_KINDS)
