"""When a source is unusually silent: weeks of synthetic days, in hours since 1970."""

import random
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from storage.rhythm import KEPT_HOURS, UNUSUAL, WEEK, hour_of, missed_hours

MONDAY = datetime(2026, 1, 5, tzinfo=UTC)
WARD = range(8, 18)  # when the scanners of a ward send, on weekdays


def days(*numbers: int, hours: Iterable[int] = WARD) -> set[int]:
    """The hours in which a source sent on these days after MONDAY."""
    return {hour_of(MONDAY + timedelta(days=day, hours=hour)) for day in numbers for hour in hours}


def weekdays(weeks: Iterable[int]) -> set[int]:
    return days(*(7 * week + day for week in weeks for day in range(5)))


def missed(sent: set[int], at: datetime) -> int:
    """As the server asks: with the hours that it keeps of those that are over, or have begun."""
    now = hour_of(at)
    known = {hour for hour in sent if now - KEPT_HOURS <= hour <= now}
    return missed_hours(known, min(sent), max(known), now)


def at(day: int, hour: int, minute: int = 0) -> datetime:
    return MONDAY + timedelta(days=day, hours=hour, minutes=minute)


def test_an_hour_counts_once_it_has_passed_whole() -> None:
    sent = weekdays(range(4)) | days(28, hours=range(8, 11))  # the last image on Monday between 10 and 11
    assert [missed(sent, at(28, hour, minute)) for hour, minute in ((11, 59), (12, 0), (13, 59), (14, 0))] == [
        0,
        1,
        2,
        3,
    ]


def test_nights_and_weekends_add_nothing_and_end_nothing() -> None:
    sent = weekdays(range(4)) | days(28, hours=range(8, 16))
    assert missed(sent, at(28, 18)) == 2
    assert missed(sent, at(29, 8)) == 2
    assert missed(sent, at(29, 9)) == UNUSUAL
    friday = weekdays(range(4)) | days(*range(28, 32)) | days(32)
    assert {missed(friday, at(day, hour)) for day in (33, 34) for hour in range(24)} == {0}
    assert missed(friday, at(35, 8, 59)) == 0
    assert missed(friday, at(35, 11)) == UNUSUAL


def test_a_scanner_that_works_at_night_is_missed_at_night() -> None:
    sent = days(*range(28), hours=range(24)) | days(28, hours=range(23))
    assert missed(sent, at(29, 2)) == 3


@pytest.mark.parametrize(("weeks", "number"), [(0, 0), (1, 0), (2, 8), (3, 8), (4, 8)])
def test_a_source_has_a_rhythm_once_it_is_known_for_two_weeks(weeks: int, number: int) -> None:
    sent = weekdays(range(weeks)) | days(7 * weeks, hours=[8, 9])
    assert missed(sent, at(7 * weeks, 23)) == number


def test_three_of_four_weeks_are_usual_and_two_are_not() -> None:
    sent = weekdays(range(4)) | days(28, hours=[8])
    assert missed(sent - days(7), at(28, 18)) == 9
    assert missed(sent - days(7, 14), at(28, 18)) == 0


def test_of_two_or_three_weeks_known_all_have_to_be_alike() -> None:
    sent = weekdays(range(3)) | days(21, hours=[8])
    assert missed(sent, at(21, 18)) == 9
    assert missed(sent - days(7), at(21, 18)) == 0


def test_a_holiday_is_unusual_and_is_forgiven_the_weeks_after() -> None:
    holiday = weekdays(range(4)) | days(*range(29, 33))  # Monday the 28th was off
    assert missed(weekdays(range(4)), at(28, 12)) == 4
    assert missed(holiday, at(29, 12)) == 0
    assert missed(holiday, at(35, 12)) == 4


def test_after_two_weeks_off_nothing_is_usual_until_it_is_learnt_again() -> None:
    sent = weekdays(range(4)) | weekdays([6])
    assert missed(weekdays(range(4)), at(28, 23)) == 10
    assert missed(sent, at(49, 23)) == 0
    again = weekdays(range(4)) | weekdays([6, 7, 8])
    assert missed(again, at(63, 23)) == 10


def test_who_is_gone_for_weeks_is_missed_no_more() -> None:
    sent = weekdays(range(4))
    by_week = [missed(sent, at(7 * week, 0)) for week in range(4, 9)]
    assert by_week == [0, 50, 50, 0, 0]


@pytest.mark.parametrize(("month", "day"), [(3, 30), (10, 26)])
def test_a_change_of_clocks_is_no_silence(month: int, day: int) -> None:
    """In UTC everybody comes an hour earlier or later from that Monday on: less than is unusual, at any time."""
    change = datetime(2026, month, day, tzinfo=ZoneInfo("Europe/Berlin"))
    monday = change - timedelta(weeks=4)
    local = [monday + timedelta(days=day, hours=hour) for day in range(70) if day % 7 < 5 for hour in WARD]
    sent = {hour_of(when) for when in local}
    known = {hour: {one for one in sent if one < hour} for hour in range(hour_of(change), max(sent))}
    most = max(missed_hours(seen, min(sent), max(seen), hour) for hour, seen in known.items())
    assert most == 1


@pytest.mark.parametrize(("busy", "a_month"), [(0.2, 0.3), (0.6, 2.5), (0.8, 1.5), (0.9, 0.5), (0.95, 0.2)])
def test_false_alarms_are_rare(busy: float, a_month: float) -> None:
    """Of a source that sends in this share of the ward's hours, without ever failing."""
    rng = random.Random(1)
    weeks = 100
    sent = {hour for hour in weekdays(range(weeks)) if rng.random() < busy}
    assert sum(1 for _ in alarms(sent, weeks)) / weeks * 52 / 12 <= a_month


def alarms(sent: set[int], weeks: int) -> Iterable[int]:
    """The hours in which a silence became unusual."""
    first, last, was = min(sent), min(sent), False
    for now in range(first + 4 * WEEK, first + weeks * WEEK):
        last = max(last, now - 1) if now - 1 in sent else last
        is_unusual = missed_hours(sent, first, last, now) >= UNUSUAL
        if is_unusual and not was:
            yield now
        was = is_unusual
