"""What is learnt of the silences of studies: who is waited for, how long, and that it stays small."""

import json
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from common.study_kinds import STORED, group_of, is_stored, kind_of
from storage.study_silence import (
    FLOOR_S,
    KNOWN,
    KNOWN_GROUP,
    LONGEST_S,
    MEMORY,
    PRIOR_S,
    PRIOR_STORED_S,
    RARE,
    SHORTEST_S,
    SURE,
    SURE_S,
    Study,
    ended,
    learn,
    sure_s,
    timeout_s,
)

CT, SR, MPR = kind_of("CT", "Thorax"), kind_of("SR", "Dose"), kind_of("CT", "MPR cor")
THORAX, SKULL = (group_of(name, None, datetime(2026, 1, 1, tzinfo=UTC)) for name in ("Thorax", "Skull"))
Learnt = dict[str, Any]


def studies(n: int, learnt: Learnt, *late: tuple[float, str], group: str = THORAX, begins: str = CT) -> Learnt:
    """What is learnt of so many studies, to each of which the same came late."""
    for _ in range(n):
        kinds = [begins]
        for silence_s, came in late:
            learnt = learn(learnt, silence_s, Study(tuple(kinds), group), came)
            kinds.append(came)
        learnt = ended(learnt, Study(tuple(kinds), group))
    return learnt


def waits(learnt: Mapping[str, Any], *kinds: str, group: str = THORAX) -> float:
    return timeout_s(learnt, Study(kinds or (CT,), group))


# --- how long ---------------------------------------------------------------------------------------------------


def test_a_new_source_waits_half_an_hour_and_for_stored_studies_two_minutes() -> None:
    assert timeout_s({}) == PRIOR_S == 1800
    assert waits({}, group=STORED) == PRIOR_STORED_S == 120


def test_a_source_to_whose_studies_nothing_comes_late_waits_less_and_less_and_a_minute_in_the_end() -> None:
    after = [waits(studies(n, {})) for n in (0, KNOWN_GROUP - 1, KNOWN_GROUP, 2 * KNOWN_GROUP, 100)]
    assert after == sorted(after, reverse=True)
    assert after[1] == PRIOR_S
    assert after[2] < PRIOR_S / 2
    assert after[-1] == FLOOR_S


def test_a_study_waits_for_the_kind_that_it_lacks_and_not_once_that_is_here() -> None:
    learnt = studies(40, {}, (1200, MPR))
    assert 1200 < waits(learnt, CT) < 1500
    assert waits(learnt, CT, MPR) == FLOOR_S


def test_it_waits_for_another_of_a_kind_only_where_another_has_come() -> None:
    learnt = studies(40, {}, (1200, CT))  # the study had one already
    assert waits(learnt, CT) > 1200
    assert waits(learnt, SR) < 120


def test_of_a_known_description_only_what_came_to_its_like_counts() -> None:
    learnt = studies(20, studies(20, {}, (1200, MPR)), group=SKULL)
    assert waits(learnt, CT, group=THORAX) > 1200
    assert waits(learnt, CT, group=SKULL) < 200
    assert waits(learnt, CT, group=group_of("Abdomen", None, datetime(2026, 1, 1, tzinfo=UTC))) > 1200


def test_stored_studies_do_not_wait_for_what_comes_to_live_ones() -> None:
    learnt = studies(20, studies(20, {}, (1200, MPR)), group=STORED)
    assert waits(learnt, group=STORED) == FLOOR_S
    assert waits(learnt, group=THORAX) > 1200


def test_the_fewer_of_a_kind_are_known_the_more_is_added() -> None:
    factors = [waits(studies(n, studies(KNOWN, {}), (3600, MPR))) / 3600 for n in (1, 2, 5, 30)]
    assert factors == [pytest.approx(factor) for factor in (2.0, 1.5, 1.2, 1.2)]


def test_one_study_in_twenty_five_may_be_told_too_early_and_not_one_in_sixteen() -> None:
    seldom = studies(RARE - 1, studies(1, {}, (3600, MPR)))
    assert waits(seldom, CT) < 120
    more_often = studies(RARE - 10, studies(1, {}, (3600, MPR)))
    assert waits(more_often, CT) > 3600


def test_what_came_to_the_only_studies_of_a_description_is_not_rare_among_those_of_another() -> None:
    learnt = studies(MEMORY, studies(KNOWN_GROUP - 1, {}, (3600, MPR)), group=SKULL)
    assert waits(learnt, CT, group=THORAX) > 3600
    assert waits(learnt, CT, group=SKULL) == waits(learnt, CT, group="new") == FLOOR_S


def test_a_silence_is_forgotten_after_a_hundred_studies_of_its_description() -> None:
    learnt = studies(10, {}, (3600, MPR))
    assert waits(studies(MEMORY - 20, learnt), CT) > 3600
    assert studies(MEMORY, learnt)["late"] == []


@pytest.mark.parametrize("silence_s", [0, SHORTEST_S, LONGEST_S + 1])
def test_silences_that_lengthen_no_wait_are_not_remembered(silence_s: float) -> None:
    assert studies(1, {}, (silence_s, MPR))["late"] == []


def test_without_kinds_and_descriptions_the_longest_silence_counts() -> None:
    learnt: Learnt = {}
    for silence_s in (500, 900, 700) * 5:
        learnt = ended(learn(learnt, silence_s))
    assert 900 < timeout_s(learnt) < 1200


def test_a_pacs_that_may_still_receive_is_believed_after_two_hours_or_later() -> None:
    assert sure_s({}) == SURE_S == 7200
    learnt = studies(KNOWN, {}, (7000, SR))
    assert sure_s(learnt, Study((CT,), THORAX)) == SURE * waits(learnt, CT) > SURE_S
    assert sure_s({}, Study((), STORED)) == SURE * PRIOR_STORED_S


# --- what is kept -----------------------------------------------------------------------------------------------


def test_what_is_learnt_stays_below_8_kb_whatever_comes_and_is_json() -> None:
    rng = random.Random(1)
    learnt: Learnt = {}
    for n in range(400):
        kinds = [kind_of("RTSTRUCT", f"plan {chr(97 + n % 26)}{rng.random()}") for _ in range(6)]
        study = Study(kinds[:3], group_of(f"Protocol {chr(97 + rng.randrange(26))} x{rng.randrange(9)}", None, NOW))
        for came in kinds[3:]:
            learnt = learn(learnt, rng.uniform(SHORTEST_S, LONGEST_S), study, came)
        learnt = ended(learnt, study)
    assert len(json.dumps(learnt)) <= 8192
    assert json.loads(json.dumps(learnt)) == learnt
    assert learnt["studies"] == 400


def test_learning_leaves_what_was_known_as_it_was() -> None:
    before = studies(3, {}, (500, MPR))
    copy = json.dumps(before)
    learn(before, 900, Study((CT,), THORAX), SR)
    ended(before, Study((CT,), SKULL))
    assert json.dumps(before) == copy


# --- kinds and descriptions -------------------------------------------------------------------------------------

NOW = datetime(2026, 6, 3, 12, tzinfo=UTC)


def test_numbers_that_stand_alone_make_no_kind_and_those_of_a_weighting_do() -> None:
    assert kind_of("CT", "Thorax 1.0 mm") == kind_of("CT", "THORAX 5 mm") == kind_of("CT", "Thorax  12.5mm")
    assert kind_of("MR", "t1 ax") != kind_of("MR", "t2 ax")
    assert kind_of("CT", "Thorax") != kind_of("SR", "Thorax")
    assert kind_of(None, None) == kind_of("", " 3 ") == ""


def test_a_kind_does_not_show_what_somebody_wrote_into_the_description() -> None:
    assert "doe" not in (kind_of("CT", "Doe^Jane") + group_of("Doe^Jane", None, NOW)).casefold()
    assert len(kind_of("RTSTRUCT", "x" * 1000)) <= 11
    assert kind_of("CT", "Schädel \udcff")


@pytest.mark.parametrize(
    ("date", "stored"),
    [("20260603", False), ("20260602", False), ("20260601", True), ("19700101", True), ("20991231", False)],
)
def test_a_study_of_an_earlier_day_is_stored_in_whatever_time_zone(date: str, *, stored: bool) -> None:
    assert is_stored(date, NOW) is stored
    assert (group_of("Thorax", date, NOW) == STORED) is stored


@pytest.mark.parametrize("date", [None, "", "2026", "20261301", "yesterday", "00000000"])
def test_a_date_that_is_none_makes_no_study_stored(date: str | None) -> None:
    assert not is_stored(date, NOW)
    assert not is_stored(date, NOW + timedelta(days=365))
