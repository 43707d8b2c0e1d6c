"""When a PACS is believed about a study: at once, after the silence, or only once it can hardly be receiving it."""

from datetime import timedelta
from typing import Any

from models import CountsOfStudy, SeriesReport
from storage.study_rules import TRUSTED_AFTER, decide, disappoints, first_counts, had_less, taken
from storage.study_silence import SURE_S
from tests.rig.factories import make_report
from tests.rig.study_rows import LAST, SILENCE, counted_row, counts, row, seen, verdict

SURE = timedelta(seconds=SURE_S)


def receiving(**change: Any) -> Any:
    """A study whose PACS may itself still receive it."""
    return counted_row(CountedAhead=False, **change)


def test_a_pacs_that_received_the_study_itself_is_believed_two_hours_later_and_idle_is_told_before() -> None:
    at_silence = decide(receiving(asked=SILENCE), seen(SILENCE, sure=SURE))
    assert (at_silence.columns["Verdict"], at_silence.columns["DueAt"]) == ("idle", LAST + SURE)
    known = receiving(asked=SILENCE) | at_silence.columns
    before = decide(known, seen(SURE - timedelta(seconds=1), sure=SURE))
    assert (before.columns["Verdict"], before.ask) == ("idle", False)
    then = decide(known, seen(SURE, sure=SURE))
    assert (then.columns["Verdict"], then.ask, then.columns["DueAt"]) == ("idle", True, None)
    answered = known | {"CountedAt": LAST + SURE}
    assert verdict(answered, seen(SURE, sure=SURE)) == ("verified", "verified")


def test_a_pacs_whose_count_grew_is_believed_as_late_whatever_its_trust() -> None:
    grew = counted_row(asked=SILENCE, CountGrew=True)
    assert verdict(grew, seen(SILENCE, sure=SURE, trust=TRUSTED_AFTER)) == ("idle", "idle")


def test_a_pacs_that_held_the_study_is_believed_after_the_silence() -> None:
    assert verdict(counted_row(asked=SILENCE), seen(SILENCE, sure=SURE)) == ("verified", "verified")


def test_a_pacs_that_has_more_two_hours_later_ends_the_idle_verdict() -> None:
    known = receiving(asked=SILENCE)
    known |= decide(known, seen(SILENCE, sure=SURE)).columns
    more = known | {"CountedAt": LAST + SURE, "ExpectedSeries": 3, "ExpectedInstances": 11}
    assert verdict(more, seen(SURE, sure=SURE)) == (None, None)


def answered(*events: dict[str, Any]) -> SeriesReport:
    timeline = [{"At": LAST, "Event": "pacs.answered", "Details": details} for details in events]
    return SeriesReport.model_validate(make_report("1").model_dump() | {"Timeline": timeline})


def test_what_the_pacs_said_first_is_read_from_the_timeline_of_a_report() -> None:
    first, last = ({"PACS": "ORTHANC", "StudySeries": n, "StudyInstances": 10 * n} for n in (1, 3))
    assert first_counts(answered(first, last)) == CountsOfStudy(Series=1, Instances=10, At=LAST)
    assert first_counts(answered({"PACS": "ORTHANC", "Problem": "no answer"}, last)) == CountsOfStudy(
        Series=3, Instances=30, At=LAST
    )
    assert first_counts(answered({"PACS": "ORTHANC", "StudySeries": "3", "StudyInstances": -1})) is None
    assert first_counts(make_report("1")) is None


def test_a_pacs_that_had_less_of_the_study_when_a_series_began_is_itself_receiving_it() -> None:
    known = row(**taken(row(), counts(2, 10), by="one", pacs="ORTHANC", ahead=True))
    assert had_less(known, None) == had_less(known, counts(2, 10, -SILENCE)) == had_less(row(), counts(1, 3)) == {}
    for fewer in (counts(1, 10, -SILENCE), counts(2, 9, -SILENCE)):
        assert had_less(known, fewer) == {"CountGrew": True}
        assert disappoints(known, had_less(known, fewer))
