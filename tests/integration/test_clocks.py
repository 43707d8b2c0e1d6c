"""Clocks that are wrong and are set right, the gateways' and the server's own, on both databases."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from sqlalchemy import select, update

from db import Database
from models import CountsOfStudy, GatewayState, Order, SeriesReport
from storage.orders import state_of
from storage.rhythm import hour_of
from storage.schema import gateways, orders, source_hours, studies, webhooks
from storage.webhooks import CLAIM_S, FOR_EVER
from tests.rig.factories import STUDY, arriving, make_report, make_state

NOW = datetime(2026, 6, 1, 12, 30, tzinfo=UTC)
YEAR, HOUR = timedelta(days=365), timedelta(hours=1)
SERIES = f"{STUDY}.1"


@pytest.fixture(autouse=True)
def clock() -> Iterator[Any]:
    """The time that the server has; it stands still until it is shifted."""
    with time_machine.travel(NOW, tick=False) as travelled:
        yield travelled


def of(series: int, at: datetime, *, verdict: str | None = "idle", gateway: str = "one") -> SeriesReport:
    """A gateway's report of a series, whose images came then by its clock."""
    said = {"FirstReceivedAt": at, "LastReceivedAt": at, "Source": "CT", "GatewayID": gateway, "Verdict": verdict}
    return make_report("1", series=f"{STUDY}.{series}").model_copy(update=said)


async def beat(database: Database, gateway: str = "one", **change: Any) -> list[Order]:
    return (await database.heard(GatewayState.model_validate(make_state(gateway, OpenStudies=[]) | change)))[0]


async def verdict(database: Database) -> str | None:
    await beat(database)
    await database.decide_due()
    found = await database.study(STUDY)
    assert found is not None
    return found.Verdict


@pytest.mark.parametrize("ahead", [YEAR, HOUR])
async def test_a_study_is_idle_in_time_though_its_gateways_clock_is_ahead(
    database: Database, clock: Any, ahead: timedelta
) -> None:
    record, _ = await database.store(of(1, NOW + ahead))
    assert (record.FirstReceivedAt, record.LastReceivedAt) == (NOW, NOW)
    assert await verdict(database) is None
    clock.shift(HOUR)
    assert await verdict(database) == "idle"


@pytest.mark.parametrize("wrong", [-YEAR, -HOUR, HOUR, YEAR])
async def test_the_silence_of_a_study_is_by_the_servers_clock_whatever_its_gateways(
    database: Database, clock: Any, wrong: timedelta
) -> None:
    async def said() -> str | None:
        await beat(database, At=(datetime.now(UTC) + wrong).isoformat())
        await database.decide_due()
        found = await database.study(STUDY)
        return found.Verdict if found else None

    assert await said() is None
    await database.store(of(1, NOW + wrong))
    assert await said() is None
    clock.shift(timedelta(seconds=30))
    assert await said() is None
    clock.shift(HOUR)
    assert await said() == "idle"


@pytest.mark.parametrize("behind", [-YEAR, timedelta(), YEAR])
@pytest.mark.parametrize("year", [1, 2026, 9999])
async def test_a_time_at_the_end_of_the_calendar_refuses_no_report(
    database: Database, behind: timedelta, year: int
) -> None:
    await beat(database, At=(NOW - behind).isoformat())
    record, _ = await database.store(of(1, NOW.replace(year=year)))
    assert record.LastReceivedAt is not None
    assert record.LastReceivedAt <= NOW


async def test_what_was_stored_of_a_clock_ahead_ends_with_the_next_report(database: Database, clock: Any) -> None:
    clock.shift(YEAR)
    await database.store(of(1, NOW + YEAR))
    clock.shift(-YEAR)
    record, _ = await database.store(of(1, NOW).model_copy(update={"SOPInstanceUIDs": [f"{SERIES}.2"]}))
    assert (record.NumInstances, record.LastReceivedAt) == (2, NOW)


async def test_a_study_is_decided_after_the_servers_clock_was_a_year_ahead(database: Database, clock: Any) -> None:
    clock.shift(YEAR)
    await database.store(of(1, NOW + YEAR))
    assert await verdict(database) is None
    clock.shift(-YEAR)
    assert await verdict(database) is None  # its silence begins anew
    (row,) = await database.engine.read(select(studies))
    assert NOW < row["DueAt"] <= NOW + timedelta(days=1)
    assert await database.decide_due() == 0
    clock.shift(HOUR)
    assert await verdict(database) == "idle"


async def test_a_study_that_is_not_over_is_capped_though_the_servers_clock_was_a_year_ahead(
    database: Database, clock: Any
) -> None:
    clock.shift(YEAR)
    await database.store(of(1, NOW + YEAR, verdict=None))
    clock.shift(-YEAR)
    assert await verdict(database) is None
    clock.shift(timedelta(days=1, minutes=1))
    assert await verdict(database) == "capped"


# --- a clock is set forward -------------------------------------------------------------------------------------


class Monotonic:
    """What the monotonic clock says, which is not set with the other one."""

    def __init__(self, clock: Any) -> None:
        self._clock, self._s = clock, 0.0

    def __call__(self) -> float:
        return self._s

    def passes(self, time: timedelta) -> None:
        """Let time pass, by both clocks."""
        self._clock.shift(time)
        self._s += time.total_seconds()


@pytest.fixture
def monotonic(clock: Any, monkeypatch: pytest.MonkeyPatch) -> Monotonic:
    found = Monotonic(clock)
    monkeypatch.setattr("storage.leaps.monotonic", found)
    return found


async def decided(database: Database) -> str | None:
    await database.decide_due()
    found = await database.study(STUDY)
    return found.Verdict if found else None


def restarted(database: Database) -> Database:
    """The same database, as a server process that has just started sees it."""
    return Database(database.engine)


@pytest.mark.parametrize("wrong", [timedelta(minutes=40), YEAR])
async def test_a_server_whose_clock_is_set_forward_tells_no_study_early(
    database: Database, clock: Any, monotonic: Monotonic, wrong: timedelta
) -> None:
    database = restarted(database)
    await beat(database)
    await database.store(of(1, NOW))
    clock.shift(wrong)
    assert await decided(database) in (None, "capped")
    if await decided(database) is None:
        monotonic.passes(timedelta(minutes=29))
        assert await decided(database) is None
    monotonic.passes(timedelta(minutes=31))
    await beat(database)
    assert await decided(database) == "idle"


@pytest.mark.parametrize("gateways_set", [(), ("one",), ("one", "two")])
async def test_a_clock_that_was_set_while_no_server_ran_shows_by_its_gateways(
    database: Database, clock: Any, monotonic: Monotonic, gateways_set: tuple[str, ...]
) -> None:
    async def speak() -> None:
        for name in ("one", "two"):
            at = datetime.now(UTC) - (timedelta(minutes=40) if name in gateways_set else timedelta())
            await beat(database, name, At=at.isoformat())

    await beat(database, "one")
    await beat(database, "two")
    await database.store(of(1, NOW))
    clock.shift(timedelta(minutes=40))
    database = restarted(database)
    await speak()
    assert await decided(database) == (None if gateways_set else "idle")
    monotonic.passes(timedelta(minutes=31))
    await speak()
    assert await decided(database) == "idle"


async def test_a_report_that_comes_before_its_gateway_has_spoken_again_decides_nothing(
    database: Database, clock: Any, monotonic: Monotonic
) -> None:
    await beat(database)
    clock.shift(HOUR)  # while no server ran
    database = restarted(database)
    asked = {"Series": 1, "Instances": 1, "At": NOW}
    await database.store(of(1, NOW).model_copy(update={"StudyCounts": CountsOfStudy.model_validate(asked)}))
    found = await database.study(STUDY)
    assert (found and found.Verdict, found and found.Basis) == (
        None,
        "gateway one is silent since 2026-06-01T12:30:00+00:00, and has reported",
    )


@pytest.mark.parametrize("wrong", [-HOUR, HOUR])
async def test_a_gateway_whose_clock_is_set_right_before_it_reports_tells_no_study_early(
    database: Database, clock: Any, monotonic: Monotonic, wrong: timedelta
) -> None:
    await beat(database, "two")
    await beat(database, At=(NOW + wrong).isoformat())
    monotonic.passes(timedelta(minutes=1))
    await beat(database)
    await database.store(of(1, NOW + wrong))
    assert await decided(database) is None
    monotonic.passes(timedelta(minutes=31))
    await beat(database)
    assert await decided(database) == "idle"


async def test_a_study_that_waits_for_gateways_to_be_declared_waits_though_the_clock_is_set_forward(
    database: Database, clock: Any, monotonic: Monotonic
) -> None:
    database = restarted(database)
    await beat(database, OpenSeries=1, OpenStudies=[STUDY], Arriving=[arriving(SERIES, 1, StudyInstanceUID=STUDY)])
    await database.store(of(2, NOW))
    monotonic.passes(timedelta(seconds=1))
    await database.declare_study(STUDY, "complete", "me", "the ward has called")
    clock.shift(HOUR)
    assert await decided(database) is None
    monotonic.passes(timedelta(seconds=31))
    assert await decided(database) == "declared"


async def test_a_silent_gateway_is_not_forgotten_as_the_clock_is_set_forward_or_the_server_starts(
    database: Database, clock: Any, monotonic: Monotonic
) -> None:
    async def names() -> set[str]:
        await beat(database, "one", At=(datetime.now(UTC) - wrong).isoformat())
        return {row["GatewayID"] for row in await database.engine.read(select(gateways))}

    wrong = timedelta()
    await beat(database, "gone", OpenSeries=1)
    monotonic.passes(timedelta(days=2))  # nobody has run meanwhile
    database = restarted(database)
    assert await names() == {"one", "gone"}
    wrong = YEAR
    clock.shift(YEAR)
    for passed in (timedelta(), timedelta(hours=23)):
        monotonic.passes(passed)
        assert await names() == {"one", "gone"}
    monotonic.passes(timedelta(hours=2))
    assert await names() == {"one"}


async def test_a_gateway_whose_clock_is_set_again_and_again_holds_up_nobody(
    database: Database, clock: Any, monotonic: Monotonic
) -> None:
    database = restarted(database)
    await beat(database, "gone", OpenSeries=1)
    monotonic.passes(timedelta(days=1, hours=1))
    await database.store(of(1, datetime.now(UTC), gateway="other"))
    for minutes in range(0, 40, 4):
        wrong = timedelta(seconds=30 * (minutes % 8 > 0))
        await beat(database, "one", At=(datetime.now(UTC) - wrong).isoformat())
        monotonic.passes(timedelta(minutes=4))
    assert {row["GatewayID"] for row in await database.engine.read(select(gateways))} == {"one"}
    assert await decided(database) == "idle"


# --- gateways, orders, webhooks, sources, keys -------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [YEAR, -YEAR, HOUR, -HOUR])
async def test_a_gateway_is_heard_when_the_server_heard_it_whatever_its_own_clock_says(
    database: Database, clock: Any, wrong: timedelta
) -> None:
    await beat(database, At=(NOW + wrong).isoformat(), StartedAt=(NOW + wrong - HOUR).isoformat())
    clock.shift(10)
    (gateway,) = await database.gateways()
    assert (gateway.SeenAt, gateway.SilentS) == (NOW, 10)
    await beat(database, At=(NOW + timedelta(seconds=10)).isoformat(), StartedAt=(NOW + wrong - HOUR).isoformat())
    (gateway,) = await database.gateways()
    assert (gateway.SilentS, gateway.State.At) == (0, NOW + timedelta(seconds=10))


async def test_a_gateway_that_is_gone_is_silent_though_the_servers_clock_was_a_year_ahead(
    database: Database, clock: Any
) -> None:
    clock.shift(YEAR)
    await beat(database, "gone")
    clock.shift(-YEAR)
    await beat(database, "one")
    clock.shift(100)
    assert {gateway.State.GatewayID: gateway.SilentS for gateway in await database.gateways()}["gone"] == 100
    assert await database.heartbeats.dismiss("gone", datetime.now(UTC))


async def test_servers_whose_clocks_differ_by_seconds_leave_each_others_gateways_alone(
    database: Database, clock: Any
) -> None:
    await beat(database, "theirs")
    clock.shift(-50)
    await beat(database, "ours")
    rows = await database.engine.read(select(gateways.c.GatewayID, gateways.c.At))
    assert {row["GatewayID"]: row["At"] for row in rows}["theirs"] == NOW


async def test_an_order_from_ahead_closes_nothing_and_can_be_given_again(database: Database, clock: Any) -> None:
    has_open: dict[str, Any] = {"Arriving": [arriving(SERIES, 1)], "OpenSeries": 1}
    clock.shift(YEAR)
    await beat(database, **has_open)
    await database.declare(SERIES, "complete", "me", "by a wrong clock")
    clock.shift(-YEAR)
    assert await beat(database, **has_open) == []
    (row,) = await database.engine.read(select(orders))
    assert state_of(row, NOW) == "expired"
    await database.declare(SERIES, "complete", "me", "again")
    clock.shift(5)
    assert [order.AgeS for order in await beat(database, **has_open)] == [5]


@pytest.mark.parametrize(
    ("column", "ahead", "is_told"),
    [
        ("NextAttemptAt", YEAR, True),
        ("NextAttemptAt", timedelta(minutes=30), False),
        ("NextAttemptAt", FOR_EVER - NOW, False),
        ("OwnedUntil", YEAR, True),
        ("OwnedUntil", timedelta(seconds=CLAIM_S), False),
    ],
)
async def test_a_webhook_is_told_again_once_the_clock_is_set_right(
    database: Database, column: str, ahead: timedelta, is_told: bool
) -> None:
    await database.webhooks.add("http://127.0.0.1:1/", 0, {})

    async def leave(connection: Any) -> None:
        left = {"Owner": "a process that is gone", "OwnedUntil": NOW - HOUR} | {column: NOW + ahead}
        await connection.execute(update(webhooks).values(left))

    await database.engine.write(leave)
    assert len(await database.webhooks.claim("us", 1, ())) == is_told


async def test_a_source_is_missed_again_though_the_servers_clock_was_a_year_ahead(
    database: Database, clock: Any
) -> None:
    clock.shift(YEAR)
    await database.store(of(1, NOW + YEAR))
    clock.shift(-YEAR)
    (sent,) = await database.sources.all(NOW)
    assert sent.LastReceivedAt == NOW
    await database.store(of(2, NOW))
    clock.shift(HOUR)
    (sent,) = await database.sources.all(datetime.now(UTC))
    assert (sent.FirstReceivedAt, sent.LastReceivedAt) == (NOW, NOW)
    rows = await database.engine.read(select(source_hours.c.Hour))
    assert [row["Hour"] for row in rows] == [hour_of(NOW)]


@pytest.mark.parametrize("wrong", [HOUR, timedelta(days=365)])
async def test_a_key_is_as_valid_as_the_clock_says_and_again_once_that_is_set_right(
    database: Database, clock: Any, wrong: timedelta
) -> None:
    _, presented = await database.keys.create("it", ["admin"], NOW + timedelta(minutes=30))
    clock.shift(wrong)
    assert await database.keys.recognize(presented) is None
    clock.shift(-wrong)
    assert await database.keys.recognize(presented) is not None


async def test_a_series_that_was_purged_by_a_clock_ahead_begins_its_timeline_with_that(
    database: Database, clock: Any
) -> None:
    await database.store(of(1, NOW))
    await database.last_change()  # which numbers it: one without is known to nobody
    clock.shift(YEAR)
    assert (await database.purger.series(NOW + HOUR, None, dry=False)).series == 1
    clock.shift(-YEAR)
    await database.store(of(1, NOW))
    events = await database.timeline(SERIES)
    assert (events[0].Event, events[0].At) == ("series.purged", NOW)
