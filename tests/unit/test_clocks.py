"""Clocks that are wrong and are set right while series are open. No verdict, no order and no expiry suffers."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from zoneinfo import ZoneInfo

import httpx
import pytest
import time_machine
from pydicom.uid import ExplicitVRLittleEndian

from client import restore
from common.outgoing import RETRY_AFTER_MAX_S, retry_after_s
from common.settings import GatewaySettings
from dicom.header import read_instance
from gateway.clock import SET_BACK, Onward, later
from gateway.collector import SeriesCollector
from gateway.dispatcher import SeriesDispatcher
from gateway.held_studies import HeldStudies
from gateway.idle import Fixed
from gateway.journal import Journal
from models import Association, Instance, SeriesReport
from storage.rhythm import KEPT_HOURS, UNUSUAL, hour_of, missed_hours
from tests.rig.factories import SERIES, encode, make_dataset, make_instance, make_report, memory_journal

YEAR, HOUR = timedelta(days=365), timedelta(hours=1)
JUMPS = [timedelta(), YEAR, -YEAR, HOUR, -HOUR, timedelta(seconds=-1)]
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
IDLE_S = 2.0


class Site:
    """A collector in virtual time, and a wall clock that is `wrong` by some time."""

    def __init__(self, wrong: timedelta = timedelta()) -> None:
        self.wrong = wrong
        self.association = Association(1, "TEST", "127.0.0.1", 0.0)
        self.collector = SeriesCollector(
            policy=Fixed(IDLE_S), max_open_s=60.0, gateway_id="test", wall_clock=self.wall, pacs=()
        )

    def wall(self, at: float) -> datetime:
        return NOW + self.wrong + timedelta(seconds=at)

    def image(self, sop: str, at: float, series: str = SERIES) -> None:
        came = replace(make_instance(sop, series=series), received_at=self.wall(at), association=self.association)
        self.collector.observe(came, at)


def closed_with(before: timedelta, after: timedelta) -> tuple[list[float], SeriesReport]:
    """Returns the deadlines of a series during which the clock was set, and its report."""
    site, deadlines = Site(before), []
    site.image("1", 0.0)
    deadlines.append(site.collector.next_deadline() or 0.0)
    site.image("2", 1.0)
    site.wrong = after
    site.image("3", 2.0)
    site.collector.due(2.0 + IDLE_S - 0.001)
    deadlines.append(site.collector.next_deadline() or 0.0)
    reports: list[SeriesReport] = []
    while not reports:
        at = site.collector.next_deadline()
        assert at is not None
        deadlines.append(at)
        reports = site.collector.due(at)
    return deadlines, reports[0]


@pytest.mark.parametrize("after", JUMPS)
@pytest.mark.parametrize("before", JUMPS)
def test_an_open_series_closes_when_it_would_whatever_the_clock_is_set_to(before: timedelta, after: timedelta) -> None:
    deadlines, report = closed_with(before, after)
    expected, usual = closed_with(timedelta(), timedelta())
    assert deadlines == expected
    assert (report.Verdict, report.Basis, report.NumInstances) == (usual.Verdict, usual.Basis, 3)
    assert [entry.Event for entry in report.Timeline] == [entry.Event for entry in usual.Timeline]
    assert report.FirstReceivedAt is not None
    assert report.LastReceivedAt is not None
    assert report.FirstReceivedAt <= report.LastReceivedAt
    if before - after > SET_BACK or before == after:  # a time of the wrong clock does not outlast it
        assert report.LastReceivedAt == NOW + after + timedelta(seconds=2)


@pytest.mark.parametrize("before", JUMPS)
@pytest.mark.parametrize("after", JUMPS)
def test_an_order_closes_what_was_open_when_it_was_given_and_nothing_later(before: timedelta, after: timedelta) -> None:
    site = Site(before)
    site.image("1", 10.0)
    site.wrong = after
    site.image("1", 20.0, series="1.9")
    given_at = 15.0
    assert site.collector.declare("1.9", given_at, 21.0) == []
    assert [report.Verdict for report in site.collector.declare(SERIES, given_at, 21.0)] == ["declared"]


def test_a_source_was_heard_when_the_clock_that_was_set_right_says() -> None:
    site = Site(YEAR)
    site.image("1", 0.0)
    site.wrong = timedelta()
    site.image("2", 1.0, series="1.9")
    (heard,) = site.collector.heard()
    assert heard.LastReceivedAt == NOW + timedelta(seconds=1)


# --- a restart with another clock ---------------------------------------------------------------------------------


@contextmanager
def restarted(wrong: timedelta, *instances: Instance) -> Iterator[tuple[SeriesCollector, SeriesDispatcher, Journal]]:
    """What a gateway restores whose clock is then wrong by some time; its images came at NOW."""
    with memory_journal() as journal:
        journal._keep([replace(one, received_at=NOW) for one in instances])
        journal._file_reports([make_report("9", series="1.9")], {}, [None], {})
        journal._execute("UPDATE reports SET next_attempt_at = ?, reported_at = ?", NOW.timestamp(), NOW.timestamp())
        journal._execute("UPDATE server SET paused_until = ?", NOW.timestamp())
        with time_machine.travel(NOW + wrong, tick=False):
            http = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(503)))
            dispatcher = SeriesDispatcher(http, journal, concurrency=1, retry_max_s=1.0)
            settings = GatewaySettings(id="test", idle_policy="fixed", idle_timeout_s=IDLE_S, max_open_s=60)
            yield restore(settings, journal, dispatcher, HeldStudies()), dispatcher, journal


@pytest.mark.virtual_time
@pytest.mark.parametrize("wrong", JUMPS)
async def test_after_a_restart_a_series_waits_a_full_time_out_whatever_the_clock_says(wrong: timedelta) -> None:
    with restarted(wrong, make_instance("1"), make_instance("2")) as (collector, dispatcher, _):
        now = asyncio.get_running_loop().time()
        assert collector.next_deadline() == pytest.approx(now + IDLE_S, abs=0.01)
        assert collector.due(now + IDLE_S - 0.01) == []
        assert dispatcher._due[0][0] - now <= RETRY_AFTER_MAX_S  # a report is not held for a year, …
        assert dispatcher._paused_until - now <= RETRY_AFTER_MAX_S  # … nor are all
        assert dispatcher.oldest_undelivered_s >= 0


@pytest.mark.virtual_time
@pytest.mark.parametrize("wrong", [timedelta(minutes=10), YEAR, -YEAR, -HOUR])
async def test_after_a_restart_an_order_closes_a_series_unless_that_may_be_younger(wrong: timedelta) -> None:
    with restarted(wrong, make_instance("1")) as (collector, _, _):
        now = asyncio.get_running_loop().time()
        is_closed = bool(collector.declare(SERIES, now - 60, now))
        assert is_closed == (wrong > timedelta())
        assert is_closed or collector.declare(SERIES, now, now)


@pytest.mark.parametrize("wrong", [YEAR, HOUR])
def test_what_the_journal_knows_of_a_source_is_of_now_once_the_clock_is_set_right(wrong: timedelta) -> None:
    with memory_journal() as journal:
        for clock in (NOW + wrong, NOW):
            with time_machine.travel(clock, tick=False):
                sent = {"Source": "CT", "LastReceivedAt": clock, "Verdict": "idle"}
                report = make_report("1", series=f"1.{clock.year}.{clock.hour}").model_copy(update=sent)
                journal._file_reports([report], {}, [None], {})
        (row,) = journal._all("SELECT last_image_at, series FROM sources")
        assert (row["last_image_at"], row["series"]) == (NOW.timestamp(), 2)


# --- two readings, one after the other ----------------------------------------------------------------------------


def test_the_later_of_two_times_is_the_second_one_if_the_clock_was_set_back() -> None:
    assert later(NOW, NOW + YEAR) == NOW + YEAR
    assert later(NOW, NOW - timedelta(seconds=1)) == NOW
    assert later(NOW, NOW - HOUR) == NOW - HOUR


def test_a_clock_that_is_set_back_a_little_stands_still_and_one_set_back_far_is_followed() -> None:
    with time_machine.travel(NOW, tick=False) as wall:
        clock = Onward()
        read = [clock.now()]
        for step_s in (0.0, -1.0, 0.5, 0.6, -40.0, 41.0):  # of a leap second, of NTP
            wall.shift(step_s)
            read.append(clock.now())
        assert read == sorted(set(read))
        assert read[-1] - NOW < timedelta(seconds=2)
        wall.shift(-YEAR)
        assert abs(clock.now() - (NOW - YEAR)) < timedelta(seconds=2)
        wall.shift(2 * YEAR)
        assert abs(clock.now() - (NOW + YEAR)) < timedelta(seconds=2)


# --- another's clock ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", JUMPS)
def test_a_date_to_wait_for_is_counted_from_the_answers_own_date(wrong: timedelta) -> None:
    date, until = (format_datetime(NOW + timedelta(seconds=s), usegmt=True) for s in (0, 90))
    with time_machine.travel(NOW + wrong, tick=False):
        assert retry_after_s(until, date) == 90
        assert retry_after_s("7", date) == 7
        assert retry_after_s(until, until) == 0


@pytest.mark.parametrize("date", [None, "", "soon", "Thu, 01 Jan 99999999999 00:00:00 GMT", "\ud800"])
def test_without_a_date_of_the_answer_it_is_counted_from_our_clock(date: str | None) -> None:
    with time_machine.travel(NOW, tick=False):
        assert retry_after_s(format_datetime(NOW + timedelta(seconds=90), usegmt=True), date) == 90


def test_a_leap_second_is_an_http_date() -> None:
    leap, before, after = (
        "Sat, 31 Dec 2016 23:59:60 GMT",
        "Sat, 31 Dec 2016 23:59:00 GMT",
        "Sun, 01 Jan 2017 00:01:00 GMT",
    )
    assert (retry_after_s(leap, before), retry_after_s(after, leap)) == (60, 60)


@pytest.mark.parametrize("time", ["235960", "235960.999999"])
def test_an_image_of_a_leap_second_is_read_and_its_time_stays_as_it_was_sent(time: str) -> None:
    ds = make_dataset()
    ds.StudyDate, ds.StudyTime = "20161231", time
    body, syntax = encode(ds), ExplicitVRLittleEndian
    instance = read_instance(
        body, transfer_syntax_uid=syntax, calling_ae_title="CT", peer_address="127.0.0.1", received_at=NOW
    )
    assert (instance.text("StudyTime"), instance.doubtful) == (time, ())


# --- the hours of the week, where clocks change -------------------------------------------------------------------


@pytest.mark.parametrize("change", [datetime(2026, 3, 29), datetime(2026, 10, 25)], ids=["spring", "autumn"])  # noqa: DTZ001 - a day
def test_a_ward_that_works_by_its_own_clock_is_never_unusually_silent_as_clocks_change(change: datetime) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    first = change - timedelta(weeks=5)
    days = [first + timedelta(days=n) for n in range(10 * 7)]
    wards = [day.replace(hour=hour, tzinfo=berlin) for day in days if day.weekday() < 5 for hour in range(8, 18)]
    sent = {hour_of(at.astimezone(UTC)) for at in wards}
    for now in range(hour_of(change.replace(tzinfo=UTC)) - 48, max(sent) + 1):
        known = {hour for hour in sent if now - KEPT_HOURS <= hour <= now}
        assert missed_hours(known, min(sent), max(known), now) < UNUSUAL
