"""Who sent and when, exact on a real SQLite and a real PostgreSQL, however reports come."""

import asyncio
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import time_machine
from fastapi import FastAPI
from sqlalchemy import func, select, text

from common.settings import ServerSettings
from db import Database
from models import GatewayState, SeriesReport
from storage.rhythm import KEPT_HOURS, UNUSUAL
from storage.schema import source_hours, sources
from tests.rig.factories import STUDY, make_report, make_state
from tests.rig.migrating import downgrade

NOW = datetime.now(UTC).replace(minute=30)  # hours are counted: no test begins shortly before the next one
CT = "CT1 CT"


@pytest.fixture(autouse=True)
def clock() -> Iterator[None]:
    with time_machine.travel(NOW):
        yield


def sent(*sops: str, source: str | None = CT, at: datetime = NOW, **more: Any) -> SeriesReport:
    """A gateway's report of images that came then."""
    fields = {"Source": source, "LastReceivedAt": at, "FirstReceivedAt": at, "IdlePolicy": "adaptive"}
    return make_report(*sops, series=more.pop("series", f"{STUDY}.1")).model_copy(update=fields | more)


async def counted(database: Database) -> dict[str, tuple[int, int]]:
    """Images and series of each source."""
    names = [one.Source for one in await database.sources.all(NOW)]
    days = await database.sources.days(names)
    of = {name: [row for row in days if row["Source"] == name] for name in names}
    return {n: (sum(int(r["Images"]) for r in rows), sum(int(r["Series"]) for r in rows)) for n, rows in of.items()}


async def test_only_what_is_new_is_counted(database: Database) -> None:
    for _ in range(3):
        await database.store(sent("1", "2"))
    assert await counted(database) == {CT: (2, 1)}
    for _ in range(2):
        await database.store(sent("2", "3", Revision=2))
    assert await counted(database) == {CT: (3, 1)}
    await database.store(sent("1", series=f"{STUDY}.2", Verdict=None))
    assert await counted(database) == {CT: (4, 2)}


async def test_reports_at_the_same_time_are_counted_exactly(database: Database) -> None:
    reports = [
        sent(
            str(n % 7), str(n % 5), series=f"{STUDY}.{n % 11}", source=f"CT{n % 2} CT", at=NOW - timedelta(hours=n % 3)
        )
        for n in range(200)
    ]
    await asyncio.gather(*(database.store(report) for report in reports * 2))
    wanted = {(r.SeriesInstanceUID, uid) for r in reports for uid in r.SOPInstanceUIDs or ()}
    found = await counted(database)
    assert sum(images for images, _ in found.values()) == len(wanted)
    assert sum(series for _, series in found.values()) == 11
    hours = await database.engine.read(select(func.count().label("n")).select_from(source_hours))
    assert hours[0]["n"] == 6


async def test_what_was_committed_and_not_answered_is_counted_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = type(database.engine).write

    async def twice(self: Any, do: Any) -> Any:
        await write(self, do)
        return await write(self, do)

    monkeypatch.setattr(type(database.engine), "write", twice)
    await database.store(sent("1", "2"))
    assert await counted(database) == {CT: (2, 1)}


async def test_an_image_sent_again_and_one_kept_aside_say_that_the_source_sends(database: Database) -> None:
    await database.store(sent("1", at=NOW - timedelta(hours=3)))
    await database.store(sent("1", at=NOW - timedelta(hours=2)))
    (one,) = await database.sources.all(NOW)
    assert (one.FirstReceivedAt, one.LastReceivedAt) == (NOW - timedelta(hours=3), NOW - timedelta(hours=2))
    await database.store(sent("2", at=NOW, PatientID="P2"))
    (one,) = await database.sources.all(NOW)
    assert one.LastReceivedAt == NOW
    assert await counted(database) == {CT: (1, 1)}


async def test_a_merged_conflict_is_counted_when_its_images_came(database: Database) -> None:
    await database.store(sent("1", at=NOW - timedelta(days=2)))
    await database.store(sent("2", at=NOW - timedelta(days=1), PatientID="P2"))
    (conflict,) = await database.conflicts(after=None, limit=9, resolved=False)
    await database.resolve(conflict.Digest, "merge", "op")
    assert [(row["Images"], row["Series"]) for row in await database.sources.days([CT])] == [(1, 0), (1, 1)]


async def test_reports_that_come_late_or_in_another_order_do_not_set_a_source_back(database: Database) -> None:
    for n, hours in enumerate((0, 5, 1, 700)):
        await database.store(sent("1", series=f"{STUDY}.{n}", at=NOW - timedelta(hours=hours)))
    await database.store(sent("1", series=f"{STUDY}.9", at=NOW.replace(minute=0, second=0, microsecond=0)))
    (one,) = await database.sources.all(NOW)
    assert one.LastReceivedAt == NOW
    assert await counted(database) == {CT: (5, 5)}


async def test_clocks_that_are_wrong_and_reports_without_times_or_source(database: Database) -> None:
    await database.store(sent("1", at=NOW + timedelta(days=300)))
    await database.store(sent("1", series="1.1", at=datetime(1, 1, 1, tzinfo=UTC), source="OLD CT"))
    await database.store(sent("1", series="1.2", source=None))
    await database.store(sent("1", series="1.3", source="MR1 MR", LastReceivedAt=None, FirstReceivedAt=None))
    found = {one.Source: one.LastReceivedAt for one in await database.sources.all(datetime.now(UTC))}
    assert found.keys() == {CT, "MR1 MR"}
    assert all(NOW <= last <= datetime.now(UTC) for last in found.values())


async def test_counts_larger_than_an_integer_do_not_fail_a_report(database: Database) -> None:
    for n in range(3):
        report = sent(series=f"1.{n}", NumInstances=2**31 - 1, SOPInstanceUIDs=None)
        await database.store(report)
    assert await counted(database) == {CT: (3 * (2**31 - 1), 3)}


# --- bounds -----------------------------------------------------------------------------------------------------


async def test_names_that_a_stranger_makes_up_never_evict_a_known_source(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.sources.MAX_SOURCES", 5)
    for n in range(3):
        await database.store(sent("1", series=f"1.{n}", at=NOW - timedelta(hours=n + 1)))
    for n in range(20):
        await database.store(sent("1", series=f"2.{n}", source=f"X{n:02}", at=NOW - timedelta(minutes=20 - n)))
    assert [one.Source for one in await database.sources.all(NOW)] == [CT, "X16", "X17", "X18", "X19"]
    many = [sent("1", series=f"3.{n}", source=f"Y{n:02}") for n in range(30)]
    await asyncio.gather(*(database.store(report) for report in many))
    await database.store(sent("1", series="4.1", source="Z"))
    found = [one.Source for one in await database.sources.all(NOW)]
    assert len(found) == 5
    assert {CT, "Z"} < {*found}


async def test_hours_that_no_question_goes_back_to_are_forgotten(database: Database) -> None:
    old = NOW - timedelta(hours=KEPT_HOURS)
    await database.store(sent("1", series="1.1", at=old))
    assert await counted(database) == {CT: (1, 1)}
    hour = int(old.timestamp()) // 3600
    earlier = source_hours.update().values(Hour=hour - 1)
    await database.engine.write(lambda connection: connection.execute(earlier))
    await database.store(sent("1", series="1.2"))
    rows = await database.engine.read(select(source_hours.c.Hour))
    assert [row["Hour"] for row in rows] == [int(NOW.timestamp()) // 3600]


# --- the rhythm -------------------------------------------------------------------------------------------------


async def with_a_rhythm(database: Database, until: datetime, source: str = CT) -> None:
    """A source that sent every hour of four weeks, until then."""
    hours: Iterable[datetime] = (until - timedelta(hours=n) for n in range(4 * 168))
    rows = [
        {"Source": source, "Hour": int(at.timestamp()) // 3600, "LastReceivedAt": at, "Images": 1, "Series": 1}
        for at in hours
    ]

    async def fill(connection: Any) -> None:
        first = until - timedelta(weeks=4)
        await connection.execute(sources.insert().values(Source=source, FirstReceivedAt=first))
        await connection.execute(source_hours.insert(), rows)

    await database.engine.write(fill)


async def missed(database: Database, now: datetime = NOW) -> dict[str, int]:
    return {one.Source: one.MissedHours for one in await database.sources.all(now)}


async def test_a_source_misses_its_usual_hours_until_an_image_comes(database: Database) -> None:
    await with_a_rhythm(database, NOW - timedelta(hours=4))
    assert await missed(database) == {CT: 3}
    assert await missed(database) == {CT: 3}
    assert await missed(database, NOW + timedelta(hours=1)) == {CT: 4}
    await database.store(sent("1", at=NOW - timedelta(hours=2)))
    assert await missed(database) == {CT: 1}
    await database.store(sent("1", at=NOW))
    assert await missed(database) == {CT: 0}


async def test_an_image_of_a_series_that_is_still_open_ends_a_silence(database: Database) -> None:
    await with_a_rhythm(database, NOW - timedelta(hours=5))
    assert (await missed(database))[CT] >= UNUSUAL
    heard = {"Source": CT, "LastReceivedAt": NOW, "LearntFrom": 7, "WaitS": {"released": 0.5}}
    stranger = heard | {"Source": "NEW CT", "WaitS": {}}
    await database.heard(GatewayState.model_validate(make_state("one", Sources=[heard, stranger])))
    await database.heard(GatewayState.model_validate(make_state("two")))
    (one,) = await database.sources.all(NOW)
    assert (one.LastReceivedAt, one.MissedHours) == (NOW, 0)
    assert [(gateway, source.WaitS) for gateway, source in await database.sources.heard()] == [
        ("one", {"released": 0.5}),
        ("one", {}),
    ]


# --- of an earlier version --------------------------------------------------------------------------------------


async def test_the_migration_fills_in_what_the_series_of_five_weeks_say(database_url: str) -> None:
    settings = ServerSettings(database_url=database_url)
    of_ct = select(source_hours).where(source_hours.c.Source == CT).order_by(source_hours.c.Hour)
    half_past = NOW.replace(minute=59, second=59, microsecond=600000) - timedelta(hours=2)
    async with Database.open(settings) as database:
        await database.store(sent("1", "2", series="1.1", at=half_past))
        await database.store(sent("1", series="1.2", at=half_past - timedelta(hours=1)))
        await database.store(sent("1", series="1.3", source="MR1 MR", LastReceivedAt=None))
        await database.store(sent("1", series="1.4", source="GONE", at=NOW))
        await database.store(sent("1", series="1.5", source=None))
        old = text("""UPDATE series SET "UpdatedAt" = '2020-01-01 00:00:00+00' WHERE "Source" = 'GONE'""")
        await database.engine.write(lambda connection: connection.execute(old))
        before = await database.engine.read(of_ct)
    await downgrade(database_url, "0010")
    async with Database.open(settings) as database:
        assert await counted(database) == {CT: (3, 2), "MR1 MR": (1, 1)}
        assert before == await database.engine.read(of_ct)
        first = {one.Source: one.FirstReceivedAt for one in await database.sources.all(NOW)}
        assert first[CT] == half_past - timedelta(hours=1)
        await database.store(sent("3", series="1.1"))
        assert (await counted(database))[CT] == (4, 2)


# --- over HTTP --------------------------------------------------------------------------------------------------


async def test_sources_are_told_with_days_verdicts_and_what_is_learnt(app: FastAPI, http: httpx.AsyncClient) -> None:
    database = app.state.database
    yesterday = NOW - timedelta(days=1)
    await database.store(sent("1", "2", at=yesterday))
    await database.store(sent("1", series="1.2"))
    await database.store(sent("3", Revision=2))
    await database.store(sent("1", series="1.3", source="CT2 CT", at=yesterday))
    for gateway in ("one", "two"):
        heard = {"Source": CT, "LastReceivedAt": yesterday, "LearntFrom": 7, "WaitS": {"released": 0.5}}
        await database.heard(GatewayState.model_validate(make_state(gateway, Sources=[heard])))
    answer = (await http.get("/sources")).json()
    (one, other), after = answer["sources"], answer["next"]
    assert ([one["Source"], other["Source"]], after) == ([CT, "CT2 CT"], None)
    day = {"Images": 2, "Series": 1}
    assert one["Days"] == [day | {"Day": f"{NOW:%Y-%m-%d}"}, day | {"Day": f"{yesterday:%Y-%m-%d}"}]
    assert one["Verdicts"] == [{"Verdict": "idle", "Series": 3, "Contradicted": 1}]
    learnt = {"LearntFrom": 7, "WaitS": {"released": 0.5}}
    assert one["Learnt"] == [learnt | {"GatewayID": "one"}, learnt | {"GatewayID": "two"}]
    assert (datetime.fromisoformat(one["FirstReceivedAt"]), datetime.fromisoformat(one["LastReceivedAt"])) == (
        yesterday,
        NOW,
    )
    assert other["SilentForS"] > 86400
    assert (other["MissedHours"], other["Unusual"], other["Learnt"]) == (0, False, [])


async def test_pages_of_sources_follow_each_other(app: FastAPI, http: httpx.AsyncClient) -> None:
    for n, name in enumerate(["b", "a", "\u00fc", "c\td", "B"]):
        await app.state.database.store(sent("1", series=f"1.{n}", source=name))
    found: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while query.get("after", "") is not None:
        page = (await http.get("/sources", params=query)).json()
        found += [one["Source"] for one in page["sources"]]
        query["after"] = page["next"]
    assert found == ["B", "a", "b", "c\td", "\u00fc"]
    assert (await http.get("/sources?limit=0")).status_code == 422
    assert "did you mean Unusual?" in (await http.get("/sources?unusual=true")).text


async def test_who_is_unusually_silent_can_be_asked_for(app: FastAPI, http: httpx.AsyncClient) -> None:
    await with_a_rhythm(app.state.database, datetime.now(UTC) - timedelta(hours=5))
    await with_a_rhythm(app.state.database, datetime.now(UTC), source="MR1 MR")
    silent, others = [(await http.get(f"/sources?Unusual={value}")).json()["sources"] for value in ("true", "false")]
    assert [(one["Source"], one["Unusual"]) for one in silent] == [(CT, True)]
    assert silent[0]["MissedHours"] in (4, 5)
    assert [(one["Source"], one["Unusual"]) for one in others] == [("MR1 MR", False)]


async def test_prometheus_is_told_of_those_known_longest_that_are_not_gone(
    app: FastAPI, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.sources.MAX_MEASURED", 2)
    database = app.state.database
    await with_a_rhythm(database, datetime.now(UTC) - timedelta(hours=5))
    for n in range(3):
        at = NOW - timedelta(minutes=3 - n)
        await database.store(sent("1", series=f"1.{n}", source=f"X{n}", at=at))
    text = (await http.get("/metrics")).text
    told = dict(re.findall(r'^server_source_missed_seconds\{source="(.*)"\} (.*)$', text, re.MULTILINE))
    assert told.keys() == {CT, "X0"}
    assert float(told[CT]) in (4 * 3600, 5 * 3600)
    silent = dict(re.findall(r'^server_source_silent_seconds\{source="(.*)"\} (.*)$', text, re.MULTILINE))
    assert 5 * 3600 <= float(silent[CT]) < 6 * 3600
    await database.engine.write(lambda connection: connection.execute(sources.delete().where(sources.c.Source == CT)))
    assert f'source="{CT}"' not in (await http.get("/metrics")).text


async def test_sources_are_read_from_their_own_tables(database: Database) -> None:
    """So it takes as long with a million series."""
    asked: list[str] = []
    read = database.engine.read

    async def watched(query: Any, parameters: Any = None) -> Any:
        asked.append(str(query))
        return await read(query, parameters)

    database.engine.read = watched  # type: ignore[method-assign]
    await with_a_rhythm(database, NOW - timedelta(hours=5))
    await database.sources.all(NOW)
    await database.sources.days([CT])
    await database.sources.verdicts([CT])
    tables = {table for query in asked for table in re.findall(r"(?:FROM|JOIN) (\w+)", query)}
    assert tables == {"sources", "source_hours", "gateways", "completions"}
